r"""Diffusion rejection sampling (DiffRS) called like the pipeline it refines::

    refined = DiffRSPipeline(pipeline, critic, sampler="ddim")
    images = refined(batch_size=16, generator=torch.Generator().manual_seed(0), num_inference_steps=20).images

Rejection moves single images of a batch back and forth between noise levels, which no scheduler of diffusers can follow; so the
pipeline is read as a denoiser, one of trueward's samplers walks it, and what comes back is what the pipeline returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trueward.critics.critic import Critic
from trueward.integrations.latent import LatentDenoiser
from trueward.integrations.peers import peer
from trueward.integrations.pipelines import from_pipeline
from trueward.refinement import Refined
from trueward.refinement.refined_sampler import RefinedSampler
from trueward.samplers import sampler as sampler_by_name

_UNSIGNED = 2**63


class DiffRSPipeline:
    """An unconditional or class-conditional pipeline with rejection.

    Args:
        pipeline: any such pipeline that :func:`~trueward.integrations.from_pipeline` reads. Put Discriminator Guidance into it
            with :func:`~trueward.integrations.guide` before, to have both.
        critic: log ratio of the data to this pipeline's samples; of latents, for a latent model.
        sampler: which sampler walks down: any that can be stepped row by row (ddim, ddpm, edm, dpm-solver++2s).
        sampler_options: of the sampler, e.g. ``{"eta": 1.0}``.
        folder: where the constants are kept, so that they are measured once; None: in memory.
        **options: of rejection: percentile, warm_up, max_nfe, backsteps, min_level, max_level, on_reject.

    Attributes:
        refined_: of the last call: cost, acceptance at every level, restarts.
    """

    def __init__(
        self,
        pipeline: Any,
        critic: Critic,
        sampler: str = "ddim",
        *,
        sampler_options: dict[str, Any] | None = None,
        folder: str | Path | None = None,
        **options: Any,
    ) -> None:
        self.pipeline, self.model = pipeline, from_pipeline(pipeline)
        if isinstance(self.model, LatentDenoiser) and self.model.companions:
            raise ValueError(
                f"{type(pipeline).__name__} takes prompts; rejection wraps unconditional and class-conditional pipelines."
            )
        self.critic, self.sampler = critic, sampler
        self.sampler_options, self.options = dict(sampler_options or {}), options
        self.folder = None if folder is None else Path(folder)
        self.refined_: Refined | None = None
        self._rules: dict[tuple[int, tuple[int, ...] | None], RefinedSampler] = {}
        self._rule(20, None)  # options that nothing knows are told now

    def _rule(self, steps: int, labels: tuple[int, ...] | None) -> RefinedSampler:
        """The sampler with rejection; constants are remembered by number of steps and classes."""
        key = (steps, labels)
        if key not in self._rules:
            inner = sampler_by_name(self.sampler, steps=steps, **self.sampler_options)
            self._rules[key] = RefinedSampler(
                inner, self.critic, rejection=self.options, labels=labels, folder=self.folder
            )
        return self._rules[key]

    def to(self, device: torch.device | str) -> DiffRSPipeline:
        """Moves pipeline and critic."""
        self.pipeline.to(device)
        self.model.to(device)
        self.critic.to(device)
        return self

    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_inference_steps: int = 20,
        output_type: str = "pil",
        return_dict: bool = True,
        *,
        class_labels: Sequence[int] | Tensor | None = None,
        slots: int = 64,
        callback: Callable[[int, int], None] | None = None,
    ) -> Any:
        """Draws images.

        Args:
            batch_size: how many; with `class_labels`, one for each label.
            generator: the seed is drawn from it; images then depend on the seed and their number in the batch.
            num_inference_steps: steps of the sampler (a Heun step costs two evaluations).
            output_type: pil, np or pt: (batch, height, width, channels) or (batch, channels, height, width) in [0, 1].
            return_dict: False returns a tuple.
            class_labels: of a class-conditional model.
            slots: how many images are worked on at the same time.
            callback: called with (images finished, images wanted).

        Returns:
            ``diffusers.ImagePipelineOutput``.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be pil, np or pt, got {output_type!r}.")
        if isinstance(generator, Sequence):
            raise ValueError(
                "Give one generator: the images of a batch have streams of their own, numbered from its seed."
            )
        condition: dict[str, Tensor] = {}
        if class_labels is not None:
            condition["class_labels"] = torch.as_tensor(class_labels, dtype=torch.int64).flatten()
            batch_size = len(condition["class_labels"])
        elif self.model.num_classes is not None and self.critic.num_classes is not None:
            raise ValueError("This critic judges images of a class: give class_labels.")
        device = "cpu" if generator is None else generator.device
        seed = int(torch.randint(_UNSIGNED - 1, (), generator=generator, device=device))
        labels = None if class_labels is None else tuple(sorted(set(condition["class_labels"].tolist())))
        rule = self._rule(num_inference_steps, labels).rule(self.model, batch_size=slots)
        self.refined_ = rule.sample(batch_size, seed=seed, batch_size=slots, condition=condition, callback=callback)
        x = self.refined_.x
        images = self.model.decode(x) if isinstance(self.model, LatentDenoiser) else x
        images = (images / 2 + 0.5).clamp(0, 1).cpu()
        found: Any = images
        if output_type != "pt":
            found = images.permute(0, 2, 3, 1).float().numpy()
            found = self.pipeline.numpy_to_pil(found) if output_type == "pil" else found
        if not return_dict:
            return (found,)
        return peer("diffusers").ImagePipelineOutput(images=found)
