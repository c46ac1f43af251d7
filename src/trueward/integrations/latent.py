r"""Models whose data are the latents of an autoencoder: z = scale (E(image) - shift), image = D(z / scale + shift).

Everything of trueward works on the latents; :meth:`LatentDenoiser.decode` takes the samples home. The prompt is a
condition like any other, so guidance is the ordinary wrapper::

    denoiser = trueward.integrations.from_pipeline("my-stable-diffusion")
    guided = denoiser.guided(7.5, negative_prompt="blurred")
    latents = trueward.sampler("dpm-solver++", steps=20).sample(guided, n=4, **denoiser.condition("a cat", n=4)).x
    images = denoiser.decode(latents)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trueward.denoisers import ClassifierFreeGuidance, Denoiser, Guided, Posterior
from trueward.schedules import Time

Encoding = Mapping[str, Tensor]


class LatentDenoiser(Guided):
    """A denoiser of latents, with the autoencoder and, where there is one, the text encoder that belong to it.

    Args:
        inner: the denoiser of the latents.
        autoencoder: has diffusers' ``encode`` and ``decode``.
        scale, shift: between the autoencoder's latents and the model's data.
        encode_prompt: ``encode_prompt(prompts) -> {keyword: (len(prompts), ...)}``, the condition of the network.
        companions: further modules that move with the model (text encoders).
    """

    def __init__(
        self,
        inner: Denoiser,
        autoencoder: nn.Module,
        *,
        scale: float = 1.0,
        shift: float = 0.0,
        encode_prompt: Callable[[list[str]], Encoding] | None = None,
        companions: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__(inner)
        self.autoencoder, self.companions = autoencoder, nn.ModuleList(companions)
        self.scale, self.shift, self._encode_prompt = float(scale), float(shift), encode_prompt

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        return self.inner(x_t, t, **condition)

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def _autoencoder_input(self, x: Tensor) -> Tensor:
        parameter = next(self.autoencoder.parameters(), None)
        return x if parameter is None else x.to(parameter.device, parameter.dtype)

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> Tensor:
        """Images in [-1, 1] to latents, in the units of the model.

        Args:
            images: (batch, channels, height, width).
            generator: draws from the autoencoder's posterior; without it, its mode is taken.
        """
        answer = self.autoencoder.encode(self._autoencoder_input(images))  # type: ignore[operator]
        if hasattr(answer, "latent_dist"):
            law = answer.latent_dist
            latents = law.mode() if generator is None else law.sample(generator)
        else:
            latents = answer.latents
        return (latents.to(images.dtype) - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "batch channels height width"], batch_size: int = 8) -> Tensor:
        """Latents to images, (batch, channels, height, width), in [-1, 1] up to the autoencoder's overshoot."""
        images = [
            self.autoencoder.decode(self._autoencoder_input(part), return_dict=False)[0]  # type: ignore[operator]
            for part in (latents / self.scale + self.shift).split(batch_size)
        ]
        return torch.cat(images).to(latents.device, latents.dtype)

    @torch.no_grad()
    def condition(self, prompt: str | Sequence[str], n: int | None = None) -> dict[str, Tensor]:
        """The condition that a prompt stands for, as keywords for a sampler.

        Args:
            prompt: one prompt, or one for every sample.
            n: how many samples; one prompt is repeated for all of them.
        """
        if self._encode_prompt is None:
            raise ValueError("This model has no text encoder, so it takes no prompt.")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise ValueError("prompt must hold at least one text.")
        n = len(prompts) if n is None else n
        if len(prompts) not in (1, n):
            raise ValueError(f"{len(prompts)} prompts were given for {n} samples: give one, or one for each.")
        encoding = self._encode_prompt(prompts)
        return {
            name: value.expand(n, *value.shape[1:]) if len(prompts) == 1 else value for name, value in encoding.items()
        }

    def guided(self, scale: float, negative_prompt: str = "") -> ClassifierFreeGuidance:
        """Classifier-free guidance away from `negative_prompt` (the empty prompt: away from the unconditional model)."""
        return ClassifierFreeGuidance(self, scale, unconditional=self.condition(negative_prompt))
