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
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trueward.denoisers import Denoiser, NetworkDenoiser
from trueward.loading import set_weights
from trueward.objectives import DSM, Objective
from trueward.training.checkpoints import Checkpoint, load_optimizer, optimizer_tensors
from trueward.training.config import TrainingConfig
from trueward.training.ema import EMA
from trueward.training.feed import Feed, TrainingData, check_data
from trueward.training.order import mixed_seed, seeded
from trueward.training.pictures import draw_samples
from trueward.training.progress import Log, Progress, duration, tensorboard_writer
from trueward.training.run_folder import RunFolder
from trueward.training.speed import Speed, adamw, choose

_ASKED = ("speed", "mixed_precision", "compile")


def default_objective(denoiser: Denoiser) -> Objective:
    """DSM weighted for what the network predicts: edm, v, x0, and eps for eps and score."""
    prediction = getattr(denoiser, "prediction", "eps")
    return DSM(prediction if prediction in ("edm", "v", "x0") else "eps")


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
        self.objective = objective or default_objective(denoiser)
        self.folder = RunFolder(out, denoiser, self.objective, self.config, data)
        assert isinstance(denoiser, NetworkDenoiser)
        self.denoiser = denoiser
        check_data(data, denoiser)
        self.feed = Feed(data, validation, self.config)
        # several processes find each other on a machine without an accelerator only if they are told that there is none
        cpu = device == "cpu" or not torch.accelerator.is_available()
        self.accelerator = Accelerator(mixed_precision="no", cpu=cpu)
        self.device = self.accelerator.device
        if device is not None and self.device.type != torch.device(device).type:
            raise ValueError(f"device={device!r} is not what accelerate was started for ({self.device}).")
        if self.config.mixed_precision == "fp16" and self.device.type != "cuda":
            raise ValueError("mixed_precision='fp16' needs a CUDA GPU; use 'bf16' or 'no' here.")
        self.feed.share(self.accelerator.process_index, self.accelerator.num_processes)
        self.warnings: list[str] = []
        taken = self.folder.look()
        self.accelerator.wait_for_everyone()  # all have looked before the first writes
        self._set_up(self.folder.open(taken, resume, self.warnings.append))

    def _set_up(self, checkpoint: Checkpoint | None) -> None:
        """Chooses how to compute, makes the optimizer and the average, and restores the checkpoint."""
        self.loss = _Loss(self.denoiser.to(self.device).train().requires_grad_(True), self.objective)
        self.ema = EMA(self.denoiser, self.config.ema)
        if checkpoint is not None:
            set_weights(self.denoiser.network, checkpoint.model, "The checkpoint")
        self.speed = Speed()
        self.speed = self._choose_speed(checkpoint)
        self.speed.arrange(self.loss)
        self.averaged = copy.deepcopy(self.denoiser).eval().requires_grad_(False)
        if self.speed.compile:
            self.denoiser.network.compile()
        self.optimizer = adamw(self.loss, self.config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.speed.precision == "fp16")
        self.wrapped = self.accelerator.prepare_model(self.loss)
        self.step, self.seconds, self.last_loss = 0, 0.0, math.nan
        self.validation_loss: float | None = None
        if checkpoint is not None:
            numbers = checkpoint.numbers
            self.step, self.seconds = checkpoint.step, numbers["seconds"]
            self.ema.load_state_dict(checkpoint.ema, numbers["ema_updates"])
            load_optimizer(self.optimizer, checkpoint.optimizer, numbers["optimizer"])
            self.scaler.load_state_dict(numbers["scaler"])
            self.last_loss = math.nan if numbers["loss"] is None else numbers["loss"]
            self.validation_loss = numbers["validation_loss"]

    def _choose_speed(self, checkpoint: Checkpoint | None) -> Speed:
        if checkpoint is not None:  # go on as before, so that the curve goes on too
            before = checkpoint.numbers
            if all(before["asked"][name] == getattr(self.config, name) for name in _ASKED):
                return Speed(**before["speed"])

        def losses(module: nn.Module) -> Tensor:
            return module(self._piece(0, 0), self.feed.order.generator(0))

        found = [choose(self.loss, losses, self.config, self.device)]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(found, from_process=0)
        return found[0]

    # --- one update ---------------------------------------------------------------------------------------------------

    def _piece(self, step: int, piece: int) -> dict[str, Any]:
        batch = self.feed.piece(step, piece, self.device)
        if self.speed.channels_last and batch["x"].ndim == 4:
            batch["x"] = batch["x"].contiguous(memory_format=torch.channels_last)
        return batch

    def _stream(self, piece: int) -> tuple[int, ...]:
        """What the dropout of a piece depends on; only it knows of processes and pieces, which share no masks."""
        return self.config.seed, 5, self.step, piece, self.accelerator.process_index

    def update(self) -> Tensor:
        """One update of the weights. Returns the loss of this process's rows, a tensor ()."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate(self.step)
        total = torch.zeros((), device=self.device)
        for piece in range(self.config.accumulation):
            last = piece == self.config.accumulation - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                generator = self.feed.order.generator(self.step)  # every piece starts from the same
                with self.speed.autocast(self.device), seeded(self.device, *self._stream(piece)):
                    losses = self.wrapped(self._piece(self.step, piece), generator)
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
        board = tensorboard_writer(self.folder.path / "tensorboard") if self.config.tensorboard and main else None
        log = Log(self.folder.path / "log.jsonl", self.step) if main else None
        for warning in self.warnings:
            progress.say(warning)
        if main and self.step == 0:
            self.folder.write(self.averaged, self._record())
        if self.step > 0:
            progress.say(f"Resuming {self.folder.path} at step {self.step}.")
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
        self.ema.copy_to(self.averaged, self.denoiser)
        progress.say(f"Trained {self.step} steps in {duration(self.seconds)}: {self.folder.path}")
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
        total = len(self.feed.validation_rows)
        if total == 0:
            return None
        self.ema.copy_to(self.averaged, self.denoiser)
        summed = torch.zeros(
            (), dtype=torch.float32 if self.device.type == "mps" else torch.float64, device=self.device
        )
        for batch in self.feed.held_out(self.device):
            generator = torch.Generator().manual_seed(mixed_seed(self.config.seed, 4))
            with self.speed.autocast(self.device):
                summed += self.objective(self.averaged, batch, generator).to(summed.dtype).sum()
        return float(self.accelerator.reduce(summed, reduction="sum")) / total

    def _draw(self, progress: Progress) -> None:
        self.ema.copy_to(self.averaged, self.denoiser)
        try:
            with self.speed.autocast(self.device):
                draw_samples(self.averaged, self.folder.path / "samples" / f"step-{self.step:08d}.png")
        except ValueError as error:  # a young model may answer nonsense; training goes on
            progress.say(f"No sample grid at step {self.step}: {error}")

    def save(self) -> None:
        """Writes a checkpoint, and the averaged weights with their record."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            tensors, numbers = optimizer_tensors(self.optimizer)
            state = {
                "seconds": self.seconds,
                "loss": self.last_loss if math.isfinite(self.last_loss) else None,
                "validation_loss": self.validation_loss,
                "ema_updates": self.ema.updates,
                "optimizer": numbers,
                "scaler": self.scaler.state_dict(),
                "speed": self.speed.to_config(),
                "asked": {name: getattr(self.config, name) for name in _ASKED},
            }
            weights = self.denoiser.network.state_dict()
            self.ema.copy_to(self.averaged, self.denoiser)
            self.folder.save(
                Checkpoint(self.step, weights, self.ema.state_dict(), tensors, state), self.averaged, self._record()
            )
        self.accelerator.wait_for_everyone()

    def _record(self) -> dict[str, Any]:
        return {
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
