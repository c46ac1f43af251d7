"""The settings of a training run, JSON-able, checked before anything is computed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from trueward.naming import check_name


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Args:
        steps: number of updates.
        batch_size: samples per update, over all processes and accumulated pieces together.
        lr: learning rate after the warm-up.
        schedule: ``constant`` or ``cosine`` (from `lr` to `final_lr` times it at the last step).
        warmup: updates over which the learning rate rises linearly from 0.
        final_lr: share of `lr` that is left at the end of the cosine.
        weight_decay, betas: of AdamW.
        clip: largest norm of the gradient, or None.
        ema: decay of the average of the weights; in the n-th update it is min(ema, (1 + n)/(10 + n)). 0 keeps no average.
        accumulation: pieces in which a process computes its share of a batch; the result is that of the whole batch.
        mixed_precision: ``auto`` (chosen with `speed`), ``no``, ``bf16`` or ``fp16``.
        speed: ``auto`` measures on the first batch which memory format and precision are fastest on this machine;
            ``plain`` computes in float32 as the network is.
        compile: compile the network with ``torch.compile``: True, False or None (where a GPU makes it worth its time).
        seed: of the initial weights drawn by :func:`trueward.training.train`, the order of the data, times and noise.
        held_out: samples kept out of training for the validation loss: a number, or a share below 1.
        validate_every, sample_every, checkpoint_every, log_every: in updates; 0 for never.
        keep_checkpoints: how many of the last checkpoints stay.
        tensorboard: also write TensorBoard events.
        progress: show progress on the screen.

    Raises:
        ValueError: naming the setting that is out of range.
    """

    steps: int = 10000
    batch_size: int = 128
    lr: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 100
    final_lr: float = 0.01
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float | None = 1.0
    ema: float = 0.999
    accumulation: int = 1
    mixed_precision: str = "auto"
    speed: str = "auto"
    compile: bool | None = None
    seed: int = 0
    held_out: float = 0.02
    validate_every: int = 500
    sample_every: int = 1000
    checkpoint_every: int = 500
    log_every: int = 50
    keep_checkpoints: int = 2
    tensorboard: bool = False
    progress: bool = True

    #: settings that may differ when a run is resumed, because they do not change what is computed
    FREE: ClassVar[frozenset[str]] = frozenset(
        {
            "sample_every",
            "checkpoint_every",
            "log_every",
            "validate_every",
            "keep_checkpoints",
            "tensorboard",
            "progress",
        }
        | {"accumulation", "speed", "mixed_precision", "compile"}
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        for name in ("steps", "batch_size", "accumulation", "keep_checkpoints"):
            self._whole(name, 1)
        for name in ("warmup", "validate_every", "sample_every", "checkpoint_every", "log_every"):
            self._whole(name, 0)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be positive, got {self.lr}.")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be >= 0, got {self.weight_decay}.")
        if len(self.betas) != 2 or not all(0.0 <= b < 1.0 for b in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas}.")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be positive or None, got {self.clip}.")
        if not 0.0 <= self.ema < 1.0:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}.")
        if not 0.0 <= self.final_lr <= 1.0:
            raise ValueError(f"final_lr is a share of lr and must lie in [0, 1], got {self.final_lr}.")
        if not (math.isfinite(self.held_out) and self.held_out >= 0):
            raise ValueError(f"held_out must be a number of samples or a share of them, got {self.held_out}.")
        check_name("learning rate schedule", self.schedule, ["constant", "cosine"])
        check_name("mixed_precision", self.mixed_precision, ["auto", "no", "bf16", "fp16"])
        check_name("speed", self.speed, ["auto", "plain"])

    def _whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}.")

    def learning_rate(self, step: int) -> float:
        """The learning rate of update `step` = 0, 1, ...

        lr min(1, (step + 1)/warmup) for the warm-up, then constant, or
        lr (final + (1 - final)(1 + cos(pi u))/2) with u the share of the remaining updates done.
        """
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        u = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.lr * (self.final_lr + (1.0 - self.final_lr) * 0.5 * (1.0 + math.cos(math.pi * u)))

    def to_config(self) -> dict[str, Any]:
        """The settings as a JSON-able dict."""
        return {**asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TrainingConfig:
        """The settings in `config`; an unknown one is refused with the closest known name."""
        known = [f.name for f in fields(cls)]
        for name in config:
            check_name("training setting", name, known)
        return cls(**config)

    def check_resumes(self, before: dict[str, Any]) -> None:
        """Refuses to continue a run that was made with other settings.

        Raises:
            ValueError: naming the first setting that differs. The number of steps may grow if the learning rate is
                constant; under a cosine it belongs to the curve.
        """
        now = self.to_config()
        for name, value in before.items():
            if name in self.FREE or name not in now or now[name] == value:
                continue
            if name == "steps" and self.schedule == "constant" and self.steps >= value:
                continue
            if name == "final_lr" and self.schedule == "constant":
                continue
            raise ValueError(
                f"The run was started with {name}={value!r}, so it cannot be resumed with {name}={now[name]!r}; "
                f"give {name}={value!r} or choose another output folder."
            )
