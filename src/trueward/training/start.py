"""Training in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trueward.denoisers import Denoiser
from trueward.loading import build_model
from trueward.objectives import Objective
from trueward.training.config import TrainingConfig
from trueward.training.feed import as_dataset
from trueward.training.order import mixed_seed
from trueward.training.trainer import Trainer


def train(
    denoiser: Denoiser | dict[str, Any],
    data: Any,
    out: str | Path,
    *,
    resume: bool = False,
    objective: Objective | None = None,
    validation: Any = None,
    device: str | None = None,
    config: TrainingConfig | None = None,
    **settings: Any,
) -> Denoiser:
    """Trains a model into a run folder; the whole of it in one call.

    Args:
        denoiser: a denoiser around a registered network, or its description ``{"network": {...}, "denoiser": {...}}``, from
            which it is built with weights drawn from the seed.
        data: a dataset, or anything :func:`trueward.data.load_data` takes (a name, array, tensor, folder, ``(x, labels)``).
        out: the run folder; must be empty unless `resume`.
        resume: continue the run in `out` from its last checkpoint.
        objective: what to minimise; default: denoising score matching as fits the prediction.
        validation: held-out data; default: a share of `data`.
        device: default: what accelerate finds.
        config: settings; or give them by keyword:
        **settings: see :class:`TrainingConfig`, e.g. ``steps=10000, batch_size=128, lr=1e-3``.

    Returns:
        the denoiser with the averaged weights, as :func:`trueward.load` would open it.

    Raises:
        ValueError: see :class:`Trainer`.
    """
    if config is not None and settings:
        raise ValueError(f"Give the settings as config or by keyword, not both (got config and {', '.join(settings)}).")
    config = TrainingConfig.from_config(settings) if config is None else config
    if isinstance(denoiser, dict):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed_seed(config.seed, 0))
            denoiser = build_model(denoiser)
    held_out = None if validation is None else as_dataset(validation)
    trainer = Trainer(
        denoiser, as_dataset(data), out, config, objective=objective, validation=held_out, resume=resume, device=device
    )
    return trainer.fit()
