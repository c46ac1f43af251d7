r"""One trainer for every objective: update k = 0, 1, ... is

    batch    rows k B ... (k+1) B - 1 of the shuffled data (a pure function of seed and k)
    loss     (1/B) sum over the rows of objective(denoiser, batch, generator(seed, k))
    weights  AdamW with the gradient clipped to a norm, learning rate lr(k)
    average  exponential moving average of the weights

Nothing in it depends on how many processes share the batch or in how many pieces they compute it, nor on whether the run was
interrupted, so the loss curve is the same up to rounding.

The run folder holds ``run.json`` and ``model.safetensors`` (the average; what :func:`trueward.load` opens), ``log.jsonl``,
``samples/`` with a grid of samples every so often, and ``checkpoints/`` to resume from.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trueward import records
from trueward.denoisers import Denoiser, NetworkDenoiser
from trueward.loading import build_model, model_config, save_run, set_weights, to_json
from trueward.objectives import DSM, Objective
from trueward.training.checkpoints import (
    Checkpoint,
    checkpoint_folders,
    latest_checkpoint,
    load_optimizer,
    optimizer_tensors,
    save_checkpoint,
)
from trueward.training.config import TrainingConfig
from trueward.training.ema import EMA
from trueward.training.order import DataOrder, mixed_seed
from trueward.training.pictures import draw_samples
from trueward.training.progress import Log, Progress, duration, tensorboard_writer
from trueward.training.speed import Speed, adamw, choose

_VALIDATION_ROWS = 1024


class TrainingData(Protocol):
    """What the trainer needs of a dataset."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    data_range: tuple[float, float] | None
    num_classes: int | None

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, /) -> dict[str, Tensor]:
        """The samples with these numbers as ``{"x": ..., "class_labels": ...}``."""


class _Loss(nn.Module):
    """The objective as a module, so that several processes synchronise the gradients of all it learns."""

    def __init__(self, denoiser: Denoiser, objective: Objective) -> None:
        super().__init__()
        self.denoiser, self.objective = denoiser, objective

    def forward(self, batch: dict[str, Any], generator: torch.Generator) -> Tensor:
        return self.objective(self.denoiser, batch, generator)


class Trainer:
    """Trains a denoiser into a run folder.

    Args:
        denoiser: around a registered network; trained in place.
        data: a dataset (see :class:`TrainingData`).
        out: the run folder.
        config: how to train.
        objective: what to minimise; default: :class:`~trueward.objectives.DSM` with the weighting of the prediction.
        validation: held-out data; default: ``config.held_out`` of `data` are kept out of training.
        resume: continue from the last checkpoint in `out` (from the start, if there is none yet).
        device: e.g. "cpu"; default: what accelerate finds.

    Raises:
        ValueError: on data and model that do not fit, a folder that is not empty, other settings than the run had.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        data: TrainingData,
        out: str | Path,
        config: TrainingConfig | None = None,
        *,
        objective: Objective | None = None,
        validation: TrainingData | None = None,
        resume: bool = False,
        device: str | None = None,
    ) -> None:
        from accelerate import Accelerator

        self.config = config or TrainingConfig()
        self.out = Path(out)
        self.model = model_config(denoiser)
        assert isinstance(denoiser, NetworkDenoiser)
        self.denoiser = denoiser
        self.objective = objective or default_objective(denoiser)
        self.data, self.validation = data, validation
        check_data(data, denoiser)
        self._split(validation)
        self.order = DataOrder(len(self.training_rows), self.config.batch_size, self.config.seed)
        self.accelerator = Accelerator(mixed_precision="no", cpu=device == "cpu")
        if device is not None and self.accelerator.device.type != torch.device(device).type:
            raise ValueError(f"device={device!r} is not what accelerate was started for ({self.accelerator.device}).")
        self.device = self.accelerator.device
        if self.config.mixed_precision == "fp16" and self.device.type != "cuda":
            raise ValueError("mixed_precision='fp16' needs a CUDA GPU; use 'bf16' or 'no' here.")
        self.rows = self._own_rows()
        self._open_folder(resume)
        self._set_up()

    # --- before the first update --------------------------------------------------------------------------------------

    def _split(self, validation: TrainingData | None) -> None:
        """The numbers of the samples to train on and to validate on."""
        n, held_out = len(self.data), self.config.held_out
        if validation is not None:
            self.training_rows = torch.arange(n)
            self.validation_rows = torch.arange(min(len(validation), _VALIDATION_ROWS))
            return
        count = int(held_out) if held_out >= 1 else int(held_out * n)
        if count >= n:
            raise ValueError(f"held_out={held_out:g} leaves nothing of the {n} samples to train on.")
        order = torch.randperm(n, generator=torch.Generator().manual_seed(mixed_seed(self.config.seed, 3)))
        self.training_rows = order[count:].sort().values
        self.validation_rows = order[:count][:_VALIDATION_ROWS].sort().values

    def _own_rows(self) -> slice:
        processes, accumulation = self.accelerator.num_processes, self.config.accumulation
        if self.config.batch_size % (processes * accumulation):
            raise ValueError(
                f"batch_size={self.config.batch_size} must be a multiple of processes x accumulation = "
                f"{processes} x {accumulation}."
            )
        per = self.config.batch_size // processes
        return slice(self.accelerator.process_index * per, (self.accelerator.process_index + 1) * per)

    def _description(self) -> dict[str, Any]:
        """What makes this run this run: settings that a resumed run must share."""
        to_config = getattr(self.data, "to_config", None)
        return to_json(
            {
                **self.model,
                "objective": self.objective.to_config(),
                "training": self.config.to_config(),
                "data": to_config()
                if to_config is not None
                else {"n": len(self.data), "shape": list(self.data.shape), "num_classes": self.data.num_classes},
            }
        )

    def _open_folder(self, resume: bool) -> None:
        """Claims the folder, finds the checkpoint to continue from and refuses to mix runs."""
        self.checkpoint: Checkpoint | None = None
        self.warnings: list[str] = []
        self.run: dict[str, Any] = self._description()
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            taken = any(self.out.iterdir())
            if not os.access(self.out, os.W_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise ValueError(f"The output folder {self.out} cannot be written to ({error.strerror}).") from None
        self.accelerator.wait_for_everyone()  # all have looked before the first writes
        if not taken:
            return
        if not resume:
            raise ValueError(f"The output folder {self.out} is not empty: choose another one, or resume the run in it.")
        if not (self.out / "run.json").is_file():
            if checkpoint_folders(self.out / "checkpoints"):
                raise ValueError(f"{self.out} has checkpoints but no run.json: it cannot be resumed.")
            raise ValueError(f"{self.out} is not empty and not a trueward run: choose another folder.")
        before = records.read_json(self.out / "run.json")
        self._compare(before)
        self.checkpoint = latest_checkpoint(self.out / "checkpoints", self.warnings.append)
        self.before = before.get("record", {})

    def _compare(self, before: dict[str, Any]) -> None:
        for part in ("network", "denoiser", "objective", "data"):
            old, new = before.get(part) or {}, self.run[part]
            for name in sorted({*old, *new} - {"load", "name"}):
                if old.get(name) != new.get(name):
                    raise ValueError(
                        f"The run in {self.out} was started with {part} {name}={old.get(name)!r}, so it cannot be resumed "
                        f"with {new.get(name)!r}."
                    )
        self.config.check_resumes(before.get("training") or {})

    def _set_up(self) -> None:
        """Chooses how to compute, makes the optimizer and the average, and restores the checkpoint."""
        self.loss = _Loss(self.denoiser.to(self.device).train().requires_grad_(True), self.objective)
        self.ema = EMA(self.denoiser, self.config.ema)
        if self.checkpoint is not None:
            set_weights(self.denoiser.network, self.checkpoint.model, "The checkpoint")
        self.speed = self._choose_speed()
        self.speed.arrange(self.loss)
        self.averaged = copy.deepcopy(self.denoiser).eval().requires_grad_(False)
        if self.speed.compile:
            self.denoiser.network.compile()
        self.optimizer = adamw(self.loss, self.config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.speed.precision == "fp16")
        self.wrapped = self.accelerator.prepare_model(self.loss)
        self.step, self.seconds, self.last_loss, self.validation_loss = 0, 0.0, math.nan, None
        if self.checkpoint is not None:
            numbers = self.checkpoint.numbers
            self.step, self.seconds = self.checkpoint.step, numbers["seconds"]
            self.ema.load_state_dict(self.checkpoint.ema, numbers["ema_updates"])
            load_optimizer(self.optimizer, self.checkpoint.optimizer, numbers["optimizer"])
            self.scaler.load_state_dict(numbers["scaler"])
            self.last_loss = numbers["loss"] if numbers["loss"] is not None else math.nan
            self.validation_loss = numbers["validation_loss"]
            self.checkpoint = None

    def _choose_speed(self) -> Speed:
        if self.checkpoint is not None:  # go on as before, so that the curve goes on too
            asked = ("speed", "mixed_precision", "compile")
            if all(self.checkpoint.numbers["asked"][k] == getattr(self.config, k) for k in asked):
                return Speed(**self.checkpoint.numbers["speed"])

        def losses(module: nn.Module) -> Tensor:
            return module(*self._piece(0, 0))

        found = [choose(self.loss, losses, self.config, self.device)]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(found, from_process=0)
        return found[0]

    # --- one update ---------------------------------------------------------------------------------------------------

    def _piece(self, step: int, piece: int) -> tuple[dict[str, Any], torch.Generator]:
        """Piece `piece` of this process's rows of update `step`, and the generator that every piece starts from."""
        size = (self.rows.stop - self.rows.start) // self.config.accumulation
        start = self.rows.start + piece * size
        numbers = self.training_rows[self.order.batch(step, slice(start, start + size))]
        batch: dict[str, Any] = {k: v.to(self.device) for k, v in self.data.batch(numbers).items()}
        if self.speed_is_channels_last and batch["x"].ndim == 4:
            batch["x"] = batch["x"].contiguous(memory_format=torch.channels_last)
        batch["rows"] = torch.arange(start, start + size, device=self.device)
        batch["total"] = self.config.batch_size
        return batch, self.order.generator(step)

    @property
    def speed_is_channels_last(self) -> bool:
        """Whether images are handed over with channels last."""
        return getattr(self, "speed", Speed()).channels_last

    def update(self) -> Tensor:
        """One update of the weights. Returns the loss of this process's rows, a tensor ()."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate(self.step)
        total = torch.zeros((), device=self.device)
        for piece in range(self.config.accumulation):
            last = piece == self.config.accumulation - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                with self.speed.autocast(self.device):
                    losses = self.wrapped(*self._piece(self.step, piece))
                loss = losses.float().mean() / self.config.accumulation
                self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self.loss.parameters(), self.config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.denoiser)
        self.step += 1
        return total

    def fit(self) -> Denoiser:
        """Trains to the last update.

        Returns:
            the denoiser with the averaged weights, in evaluation mode.

        Raises:
            ValueError: if the loss becomes NaN or infinite.
        """
        main = self.accelerator.is_main_process
        progress = Progress(self.config.steps, self.step, self.config.batch_size, main and self.config.progress)
        board = tensorboard_writer(self.out / "tensorboard") if self.config.tensorboard and main else None
        log = Log(self.out / "log.jsonl", self.step) if main else None
        for warning in self.warnings:
            progress.say(warning)
        if main and self.step == 0:
            self._write_run()
        if self.step > 0:
            progress.say(f"Resuming {self.out} at step {self.step}.")
        progress.say(f"Training in {self.speed.name} on {self.accelerator.num_processes} x {self.device.type}.")
        began, before = time.perf_counter(), self.seconds
        recent: list[Tensor] = []
        try:
            while self.step < self.config.steps:
                recent.append(self.update())
                progress.advance(self.step)
                end = self.step == self.config.steps
                due = {name: end or self._due(f"{name}_every") for name in ("log", "validate", "sample", "checkpoint")}
                if not any(due.values()):
                    continue
                self.last_loss = self._mean(recent)
                recent.clear()
                self.seconds = before + time.perf_counter() - began
                if not math.isfinite(self.last_loss):
                    raise ValueError(
                        f"The loss became {self.last_loss} by step {self.step}: lower the learning rate (lr={self.config.lr:g}) "
                        "or check the data; the last checkpoint is intact."
                    )
                if due["validate"]:
                    self.validation_loss = self.validate()
                entry = {
                    "step": self.step,
                    "loss": self.last_loss,
                    "validation_loss": self.validation_loss if due["validate"] else None,
                    "lr": self.config.learning_rate(self.step - 1),
                    "images_per_second": round(progress.speed(self.step), 2),
                    "seconds": round(self.seconds, 3),
                }
                if log is not None:
                    log.write(**entry)
                    progress.show(self.step, loss=self.last_loss, validation_loss=self.validation_loss)
                if board is not None:
                    for name in ("loss", "validation_loss", "lr", "images_per_second"):
                        if entry[name] is not None:
                            board.add_scalar(name, entry[name], self.step)
                if due["sample"] and main and self.config.sample_every:
                    self._draw(progress)
                if due["checkpoint"]:
                    self.save()
        except KeyboardInterrupt:
            progress.close()
            if recent:
                self.save()
                progress.say(f"Stopped at step {self.step}; resume to go on.")
            raise
        finally:
            progress.close()
            if board is not None:
                board.close()
        self.ema.copy_to(self.averaged)
        progress.say(f"Trained {self.step} steps in {duration(self.seconds)}: {self.out}")
        return self.averaged

    def _due(self, name: str) -> bool:
        every = getattr(self.config, name)
        return every > 0 and self.step % every == 0

    def _mean(self, losses: list[Tensor]) -> float:
        mean = torch.stack(losses).mean() if losses else torch.tensor(math.nan, device=self.device)
        return float(self.accelerator.reduce(mean, reduction="mean"))

    # --- what is measured and written ---------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self) -> float | None:
        """The loss of the averaged weights on the held-out samples, at the same times and noise every time."""
        total = len(self.validation_rows)
        if total == 0:
            return None
        self.ema.copy_to(self.averaged)
        source = self.data if self.validation is None else self.validation
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        own = torch.arange(total)[rank::world]
        summed = torch.zeros((), dtype=torch.float64, device=self.device)
        for rows in own.split(256):
            batch: dict[str, Any] = {k: v.to(self.device) for k, v in source.batch(self.validation_rows[rows]).items()}
            batch.update(rows=rows.to(self.device), total=total)
            generator = torch.Generator().manual_seed(mixed_seed(self.config.seed, 4))
            with self.speed.autocast(self.device):
                summed += self.objective(self.averaged, batch, generator).double().sum()
        return float(self.accelerator.reduce(summed, reduction="sum")) / total

    def _draw(self, progress: Progress) -> None:
        self.ema.copy_to(self.averaged)
        try:
            with self.speed.autocast(self.device):
                draw_samples(self.averaged, self.out / "samples" / f"step-{self.step:08d}.png")
        except ValueError as error:  # a young model may answer nonsense; training goes on
            progress.say(f"No sample grid at step {self.step}: {error}")

    def save(self) -> None:
        """Writes a checkpoint, and the averaged weights with their record."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            tensors, numbers = optimizer_tensors(self.optimizer)
            checkpoint = Checkpoint(
                self.step,
                self.denoiser.network.state_dict(),
                self.ema.state_dict(),
                tensors,
                {
                    "seconds": self.seconds,
                    "loss": self.last_loss if math.isfinite(self.last_loss) else None,
                    "validation_loss": self.validation_loss,
                    "ema_updates": self.ema.updates,
                    "optimizer": numbers,
                    "scaler": self.scaler.state_dict(),
                    "speed": self.speed.to_config(),
                    "asked": {k: getattr(self.config, k) for k in ("speed", "mixed_precision", "compile")},
                },
            )
            try:
                save_checkpoint(self.out / "checkpoints", checkpoint, self.config.keep_checkpoints)
                self.ema.copy_to(self.averaged)
                self.averaged.network.load_state_dict(
                    {k: v for k, v in self.denoiser.network.named_buffers() if k in self.averaged.network.state_dict()},
                    strict=False,
                )
                self._write_run()
            except OSError as error:
                raise ValueError(
                    f"The checkpoint of step {self.step} could not be written to {self.out} ({error.strerror}); the one "
                    "before it is intact."
                ) from None
        self.accelerator.wait_for_everyone()

    def _write_run(self) -> None:
        record = {
            "steps": self.step,
            "images": self.step * self.config.batch_size,
            "seconds": round(self.seconds, 3),
            "loss": self.last_loss,
            "validation_loss": self.validation_loss,
            "parameters": sum(p.numel() for p in self.denoiser.network.parameters()),
            "processes": self.accelerator.num_processes,
            "device": str(self.device),
            "speed": self.speed.to_config(),
        }
        run = {k: v for k, v in self.run.items() if k not in ("network", "denoiser")}
        circumstances = {**records.circumstances()}
        save_run(
            self.out,
            self.averaged,
            {
                **run,
                "versions": circumstances.pop("versions"),
                "record": {**record, **circumstances},
                "citation": list(dict.fromkeys([*self.objective.citation, *type(self.denoiser).citation])),
            },
        )


def default_objective(denoiser: Denoiser) -> Objective:
    """DSM weighted for what the network predicts: edm, v, x0, and eps for eps and score."""
    prediction = getattr(denoiser, "prediction", "eps")
    return DSM(prediction if prediction in ("edm", "v", "x0") else "eps")


def check_data(data: TrainingData, denoiser: Denoiser) -> None:
    """Refuses data that the model cannot learn.

    Raises:
        ValueError: if shape, classes or range disagree, or a first look finds NaN, values out of range or wrong labels.
    """
    if denoiser.shape is not None and tuple(data.shape) != tuple(denoiser.shape):
        raise ValueError(
            f"The data have samples of shape {tuple(data.shape)}, but the denoiser takes {denoiser.shape}."
        )
    if denoiser.num_classes is not None and data.num_classes is None:
        raise ValueError(f"The denoiser is conditioned on {denoiser.num_classes} classes, but the data have no labels.")
    if denoiser.num_classes is not None and (data.num_classes or 0) > denoiser.num_classes:
        raise ValueError(f"The data have {data.num_classes} classes, but the denoiser knows {denoiser.num_classes}.")
    data_range = denoiser.data_range if denoiser.data_range is not None else data.data_range
    for numbers in torch.arange(len(data)).split(4096)[: max(1, 2**27 // max(1, 4096 * math.prod(data.shape)))]:
        batch = data.batch(numbers)
        x, labels = batch["x"], batch.get("class_labels")
        finite = x.isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            raise ValueError(f"Sample {int(numbers[~finite][0])} of the data holds NaN or infinite values.")
        if data_range is not None:
            low, high = data_range
            slack = 1e-4 * (high - low)
            if float(x.min()) < low - slack or float(x.max()) > high + slack:
                raise ValueError(
                    f"The data must lie in [{low:g}, {high:g}], but reach from {float(x.min()):g} to {float(x.max()):g}."
                )
        if labels is not None and denoiser.num_classes is not None:
            wrong = (labels < 0) | (labels >= denoiser.num_classes)
            if bool(wrong.any()):
                raise ValueError(
                    f"Labels must lie in 0 ... {denoiser.num_classes - 1}, but sample {int(numbers[wrong][0])} has "
                    f"{int(labels[wrong][0])}."
                )


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
    """
    if config is not None and settings:
        raise ValueError(f"Give the settings as config or by keyword, not both (got config and {', '.join(settings)}).")
    config = TrainingConfig.from_config(settings) if config is None else config
    if isinstance(denoiser, dict):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed_seed(config.seed, 0))
            denoiser = build_model(denoiser)
    trainer = Trainer(
        denoiser,
        as_dataset(data),
        out,
        config,
        objective=objective,
        validation=None if validation is None else as_dataset(validation),
        resume=resume,
        device=device,
    )
    return trainer.fit()


def as_dataset(data: Any) -> TrainingData:
    """`data` itself if it can be trained on, else what :func:`trueward.data.load_data` makes of it."""
    if all(hasattr(data, name) for name in ("batch", "shape", "data_range", "num_classes", "__len__")):
        return data
    from trueward.data import load_data

    return load_data(data)
