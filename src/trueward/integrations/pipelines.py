r"""diffusers pipelines in: a folder (or a pipeline object) becomes a `Denoiser` with the schedule it was trained on.

What is read: a `UNet2DModel` (DDPM, DDIM and class-conditional pipelines), a `DiTTransformer2DModel`, a
`UNet2DConditionModel` with its autoencoder and text encoders (Stable Diffusion 1, 2 and XL), unconditional latent models;
epsilon, sample, v and flow prediction, EDM preconditioning; every table of betas, zero terminal SNR included. A network
that also predicts variances (doubled channels) is read by its mean. The time input is the integer of the training table.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trueward.denoisers import Denoiser, denoiser
from trueward.integrations.latent import LatentDenoiser
from trueward.integrations.peers import peer
from trueward.integrations.scheduler_config import configuration, is_edm, prediction_of, schedule_of

INDEX = "model_index.json"
NOTE = "trueward.json"  # beside it, once a command was told the data: {"data": ...}
WRAPPERS = ("HeadedNetwork", "GuidedNetwork")
OWN_MODULES = tuple(
    f"trueward.integrations.{name}"
    for name in ("ancestral_scheduler", "dpm_solver_scheduler", "exported_network", "headed_network")
)


def is_pipeline_folder(folder: str | Path) -> bool:
    """Is this a diffusers pipeline folder (has it a ``model_index.json``)?"""
    return (Path(folder) / INDEX).is_file()


def load_pipeline(folder: str | Path, device: torch.device | str | None = None, **options: Any) -> Denoiser:
    """A diffusers pipeline folder as a `Denoiser`, in evaluation mode.

    Nothing is downloaded, no code from the folder is run and only safetensors are read. The model has the attributes `record`
    (which pipeline it was) and `folder` (statistics fitted to it are stored there).

    Args:
        folder: what ``pipeline.save_pretrained(folder)`` wrote.
        device: where to put the model.
        **options: see :func:`from_pipeline`; ``torch_dtype`` and ``variant`` are those of diffusers.

    Raises:
        ValueError: if the folder is no pipeline folder, is damaged, or holds a kind of pipeline that is not supported.
    """
    folder = Path(folder)
    if not is_pipeline_folder(folder):
        raise ValueError(f"{folder} is not a diffusers pipeline folder: it has no {INDEX}.")
    try:
        index = json.loads((folder / INDEX).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / INDEX} is not valid JSON: {error}.") from error
    # diffusers loads classes of other libraries only from modules that were imported before; ours may be
    for library in {str(entry[0]) for entry in index.values() if isinstance(entry, list)} & set(OWN_MODULES):
        peer("diffusers")
        importlib.import_module(library)
    unused = {name: None for name in ("safety_checker", "feature_extractor") if name in index}
    if "safety_checker" in unused:
        unused["requires_safety_checker"] = False  # type: ignore[assignment]
    reading = {name: options.pop(name) for name in ("torch_dtype", "variant") if name in options}
    try:
        with _without_bar():
            pipeline = peer("diffusers").DiffusionPipeline.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, **unused, **reading
            )
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"The pipeline in {folder} could not be read: {' '.join(str(error).split())[:300]}") from error
    model = from_pipeline(pipeline, **options).requires_grad_(False)
    model.record = {"kind": "diffusers-pipeline", "pipeline": type(pipeline).__name__}  # type: ignore[assignment]
    model.record |= _noted(folder)  # type: ignore[operator]
    model.folder = folder  # type: ignore[assignment]
    return model if device is None else model.to(device)


def _noted(folder: Path) -> dict[str, Any]:
    """What trueward has noted about the folder; a note that cannot be read is none."""
    try:
        note = json.loads((folder / NOTE).read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return {"data": note["data"]} if isinstance(note, dict) and isinstance(note.get("data"), dict) else {}


@contextlib.contextmanager
def _without_bar() -> Iterator[None]:
    """diffusers counts the components it loads on a progress bar; it takes a second and says nothing to our users."""
    logging = peer("diffusers").utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def from_pipeline(
    pipeline: Any,
    *,
    null_class: bool | None = None,
    shape: Sequence[int] | None = None,
    half_log_snr_clip: float = -5.1,
) -> Denoiser:
    """A diffusers pipeline as a `Denoiser` (for latent models, a :class:`LatentDenoiser`).

    Args:
        pipeline: a pipeline object, or the folder of one. A covariance head or Discriminator Guidance put into it by trueward
            becomes the wrapper of the denoiser.
        null_class: does the last class embedding mean "no class"? Default: yes for DiT, no for a `UNet2DModel`. Only with
            one can a class-conditional model be guided or asked without a label.
        shape: shape of one sample; default: that of the network's configuration.
        half_log_snr_clip: see :func:`~trueward.integrations.schedule_of`.

    Raises:
        ValueError: naming what is not supported.
    """
    if isinstance(pipeline, str | Path):
        return load_pipeline(pipeline, null_class=null_class, shape=shape, half_log_snr_clip=half_log_snr_clip)
    components = dict(getattr(pipeline, "components", {}))
    network = components.get("unet", components.get("transformer"))
    autoencoder = components.get("vae", components.get("vqvae"))
    if network is None or components.get("scheduler") is None:
        raise ValueError(
            f"{type(pipeline).__name__} has no network and scheduler that trueward can read: a pipeline needs `unet` (or `transformer`) and `scheduler`."
        )
    wrappers = []
    while type(network).__name__ in WRAPPERS:  # ours: a covariance head, Discriminator Guidance
        wrappers.append(network)
        network = network.network
    config = configuration(components["scheduler"])
    adapter = _adapter(network, null_class)
    schedule = schedule_of(config, half_log_snr_clip)
    prediction = prediction_of(config)
    extra = {"sigma_data": float(config["sigma_data"])} if is_edm(config) else {}
    model: Denoiser = denoiser(
        adapter,
        schedule,
        prediction,
        shape=_sample_shape(network, autoencoder, shape),
        data_range=(-1.0, 1.0) if autoencoder is None else None,
        num_classes=adapter.num_classes,
        **extra,
    )
    for wrapper in reversed(wrappers):
        model = wrapper.on_denoiser(model)
    if autoencoder is None:
        return model.eval()
    settings = autoencoder.config
    prompt = _PromptEncoder(pipeline, network) if components.get("text_encoder") is not None else None
    encoders = [components[name] for name in ("text_encoder", "text_encoder_2") if components.get(name) is not None]
    return LatentDenoiser(
        model,
        autoencoder,
        scale=getattr(settings, "scaling_factor", None) or 1.0,
        shift=getattr(settings, "shift_factor", None) or 0.0,
        encode_prompt=prompt,
        companions=encoders,
    ).eval()


# --- networks -------------------------------------------------------------------------------------------------------------


class PipelineNetwork(nn.Module):
    """A diffusers network called in trueward's way, ``network(x, label, **condition) -> Tensor``."""

    num_classes: int | None = None

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.model(x, label, return_dict=False)[0]


class ClassNetwork(PipelineNetwork):
    """A class-conditional network; without a null class, a label is required."""

    def __init__(self, model: nn.Module, embeddings: int, null_class: bool) -> None:
        super().__init__(model)
        self.embeddings, self.null_class = embeddings, null_class
        self.num_classes = embeddings - 1 if null_class else embeddings

    def forward(self, x: Tensor, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        if class_labels is None:
            class_labels = torch.full((x.shape[0],), self.embeddings - self.null_class, device=x.device)
        if not self.null_class and bool((class_labels >= self.embeddings).any()):
            raise ValueError(
                f"This network knows {self.embeddings} classes and no 'no class': give class_labels in 0 ... {self.embeddings - 1}, or load it with null_class=True if the last one stands for that."
            )
        return self.model(x, timestep=label, class_labels=class_labels, return_dict=False)[0]


class TextNetwork(PipelineNetwork):
    """A network that attends to an encoded prompt; `text_embeds` and `time_ids` are the further inputs of SD XL."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        label: Tensor,
        encoder_hidden_states: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        if encoder_hidden_states is None:
            raise ValueError('This model needs a prompt: pass **denoiser.condition("...") to the sampler.')
        added = None if text_embeds is None else {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.model(x, label, encoder_hidden_states, added_cond_kwargs=added, return_dict=False)[0]


def _adapter(network: nn.Module, null_class: bool | None) -> PipelineNetwork:
    kind = type(network).__name__
    config: Any = network.config
    if kind == "UNet2DConditionModel":
        return TextNetwork(network)
    if kind == "DiTTransformer2DModel":
        # the embedding table has one row more than there are classes
        return ClassNetwork(network, int(config.num_embeds_ada_norm) + 1, null_class is not False)
    if kind in ("UNet2DModel", "TruewardNetwork"):
        classes = getattr(config, "num_class_embeds", None)
        has_null = null_class if null_class is not None else kind == "TruewardNetwork"
        return ClassNetwork(network, int(classes), has_null) if classes else PipelineNetwork(network)
    raise ValueError(
        f"A pipeline with a {kind} is not supported; supported are UNet2DModel, UNet2DConditionModel and DiTTransformer2DModel. Other networks become denoisers with trueward.denoiser(network, schedule, prediction=...)."
    )


def _sample_shape(
    network: nn.Module, autoencoder: nn.Module | None, shape: Sequence[int] | None
) -> tuple[int, ...] | None:
    config: Any = network.config
    channels = int(config.in_channels)
    if autoencoder is not None:
        latent = getattr(autoencoder.config, "latent_channels", channels)
        if latent != channels:
            raise ValueError(
                f"The network takes {channels} channels, the latents have {latent}: models with further inputs (inpainting) are not supported."
            )
    if shape is not None:
        if len(shape) != 3 or shape[0] != channels:
            raise ValueError(f"shape must be ({channels}, height, width), got {tuple(shape)}.")
        return tuple(shape)
    size = getattr(config, "sample_size", None)
    if size is None:
        return None
    return (channels, size, size) if isinstance(size, int) else (channels, *size)


# --- prompts --------------------------------------------------------------------------------------------------------------


class _PromptEncoder:
    """Prompts to the condition of the network, through the pipeline's own encoding."""

    def __init__(self, pipeline: Any, network: nn.Module) -> None:
        if not hasattr(pipeline, "encode_prompt"):
            raise ValueError(f"{type(pipeline).__name__} has a text encoder but no encode_prompt.")
        config: Any = network.config
        self.pipeline, self.network = pipeline, network
        self.extended = getattr(config, "addition_embed_type", None) == "text_time"
        self.side = int(config.sample_size or 0) * int(getattr(pipeline, "vae_scale_factor", 8))

    def __call__(self, prompts: list[str]) -> dict[str, Tensor]:
        parameter = next(self.network.parameters())
        answer = self.pipeline.encode_prompt(
            prompt=prompts, device=parameter.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        encoding = {"encoder_hidden_states": answer[0].to(parameter.dtype)}
        if self.extended:  # SD XL is also told the size of the original, the crop and the target
            sizes = torch.tensor(
                [[self.side, self.side, 0, 0, self.side, self.side]], dtype=parameter.dtype, device=parameter.device
            )
            encoding["text_embeds"] = answer[2].to(parameter.dtype)
            encoding["time_ids"] = sizes.expand(len(prompts), -1)
        return encoding
