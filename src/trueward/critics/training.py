r"""Training a critic from a real and a generated set.

Every update takes as many real as generated samples, noised at times drawn uniformly in log-SNR, and minimises the binary
cross-entropy of the logit. A part of both sets is kept out: the weights that are kept are those with the smallest held-out
cross-entropy, and training stops when that has not fallen for `patience` evaluations.

Several processes train one critic: the batch of an update is cut into pieces with random masks (dropout) of their own, every
process works on its pieces and the gradients are added. The same batch in the same pieces gives the same critic, up to the
rounding of the sums, whatever the number of processes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trueward import processes, records
from trueward.critics.calibration import Calibration, measured
from trueward.critics.critic import Critic
from trueward.critics.examples import Part, as_examples, check_classes, divided, pair
from trueward.fingerprints import weights_fingerprint
from trueward.objectives.times import ImportanceTimes

PIECES = 4


@dataclass(frozen=True)
class CriticRecord:
    """What the training of a critic did; JSON-able by :meth:`to_json`."""

    steps: int
    best_step: int
    real: int
    generated: int
    held_out: float
    history: list[dict[str, float]]
    calibration: Calibration
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> CriticRecord:
        """The inverse of :meth:`to_json`, also after a file turned nan into null."""
        found = dict(record)
        known = dict(found["calibration"])
        for name in ("predicted", "observed"):
            known[name] = [[math.nan if v is None else v for v in row] for row in known[name]]
        return cls(**{**found, "calibration": Calibration(**known)})


def train_critic(
    critic: Critic,
    real: Any,
    generated: Any,
    *,
    real_labels: Tensor | None = None,
    generated_labels: Tensor | None = None,
    steps: int = 5000,
    batch_size: int = 256,
    lr: float = 1e-3,
    weight_decay: float = 1e-7,
    held_out: float = 0.1,
    evaluate_every: int = 250,
    patience: int = 8,
    seed: int = 0,
    progress: bool = False,
    callback: Callable[[int, float, float], None] | None = None,
    checkpoint: str | Path | None = None,
) -> CriticRecord:
    """Trains `critic` in place and leaves it in evaluation mode, with the weights that did best on held-out samples.

    Args:
        critic: e.g. a :class:`~trueward.critics.Discriminator`; only parameters that require gradients are trained.
        real, generated: (n, *shape) tensors or data sets in the same value range; `generated` by the very sampler that is
            to be corrected.
        real_labels, generated_labels: (n,), for a conditional critic on tensors.
        steps, batch_size: updates, and samples per update (half of them real), over all processes.
        lr, weight_decay: of Adam with decoupled decay; the rate falls linearly to 0 over `steps`.
        held_out: share of both sets kept out of training.
        evaluate_every, patience: check the held-out cross-entropy this often, stop after so many checks without a new best.
        seed: of times, noise, dropout and the order of the data.
        callback: ``callback(step, training cross-entropy, held-out cross-entropy)`` at every check.
        checkpoint: a file that remembers the training at every check; if it is there, of the same critic, sets and settings,
            training goes on from it.

    Raises:
        ValueError: on shapes that differ, NaN, labels missing, too few samples, or a loss that is no number.
    """
    whole = {"steps": (steps, 1), "evaluate_every": (evaluate_every, 1), "patience": (patience, 1)}
    for name, (value, least) in (whole | {"batch_size": (batch_size, 2)}).items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}.")
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be a positive number, got {lr}.")
    first, second = _sets(critic, real, generated, real_labels, generated_labels, held_out, batch_size)
    (train_real, held_real), (train_generated, held_generated) = first, second
    rank, _ = processes.here()
    parameters = [p for p in critic.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            "The critic has no parameter that requires gradients, so there is nothing to train; one that was trained before "
            "is frozen, critic.requires_grad_() frees all of it."
        )
    settings = {"steps": steps, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay}
    settings |= {"evaluate_every": evaluate_every, "patience": patience, "seed": seed}
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    state = _State(
        critic, optimizer, torch.Generator().manual_seed(seed), None if checkpoint is None else Path(checkpoint)
    )
    identity = settings if checkpoint is None else {**settings, "sets": _identity(critic, first, second)}
    state.resume(identity)
    counter: Any = range(state.step + 1, steps + 1)
    if progress and rank == 0:
        from tqdm.auto import tqdm

        counter = tqdm(counter, desc="critic", unit="step", leave=False, initial=state.step, total=steps)

    def held() -> Calibration:
        return measured(critic, held_real, held_generated, repeats=None, batch_size=500, seed=seed + 1)

    critic.train()
    running: list[Tensor] = []
    for step in counter:
        if state.since >= patience:
            break
        optimizer.param_groups[0]["lr"] = lr * (1.0 - (step - 1) / steps)
        running.append(
            _update(critic, parameters, optimizer, train_real, train_generated, batch_size, state, seed, step)
        )
        state.step = step
        if step % evaluate_every == 0 or step == steps:
            trained = processes.sum_over_processes(torch.stack(running).double().sum()).item() / len(running)
            running.clear()
            if not math.isfinite(trained):
                raise ValueError(
                    f"The critic's loss became {trained} by step {step}: lower the learning rate (lr={lr:g})."
                )
            state.judge(trained, held().mean_cross_entropy)
            state.save(identity)
            if callback is not None:
                callback(step, trained, state.history[-1]["held_out"])
    critic.load_state_dict(state.kept)
    critic.requires_grad_(False).eval()
    found = held()
    _warn_of_probabilities(found)
    return CriticRecord(
        state.step, state.best_step, len(train_real) + len(held_real), len(train_generated) + len(held_generated),
        held_out, state.history, found, settings,
    )  # fmt: skip


def _identity(critic: Critic, *sets: tuple[Part, Part], rows: int = 64) -> str:
    """A short hash of the critic's layers and of some rows of every part: a checkpoint of other ones is of no use."""
    found: dict[str, Tensor] = {}
    for k, part in enumerate(part for pair_of_parts in sets for part in pair_of_parts):
        x, labels = part.read(torch.linspace(0, len(part) - 1, min(rows, len(part)), dtype=torch.float64).long())
        found[f"{k} {len(part)}"] = x
        if labels is not None:
            found[f"{k} labels"] = labels
    return weights_fingerprint(repr(critic), found)


def _warn_of_probabilities(found: Calibration) -> None:
    """A critic whose every answer, for real and generated alike, lies in [0, 1] gives probabilities instead of logits.

    Logits in [0, 1] are probabilities in the sixth to eighth tenth; a critic that sees nothing stays in the sixth.
    """
    by_tenth = [sum(row[k] for row in found.count) for k in range(10)]
    if not any(by_tenth[:5] + by_tenth[8:]) and by_tenth[6] + by_tenth[7]:
        warnings.warn(
            "All answers of the critic on held-out samples lie between 0 and 1: it seems to give probabilities, where "
            "logits are wanted; leave out a sigmoid at the end of its network.",
            stacklevel=4,
        )


def _update(
    critic: Critic,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    real: Part,
    generated: Part,
    batch_size: int,
    state: _State,
    seed: int,
    step: int,
) -> Tensor:
    """One update; returns this process's share of the mean loss, ()."""
    half, device = batch_size // 2, parameters[0].device
    first, second = pair(real, generated, half, state.generator)
    u = torch.rand(2, half, generator=state.generator, dtype=torch.float64)
    times = ImportanceTimes().quantile(u.flatten(), critic.schedule).view(2, half)
    noise = torch.randn(2, half, *_shape(real), generator=state.generator)
    rank, world = processes.here()
    pieces = min(half, max(PIECES, world))
    total = torch.zeros((), device=device)
    for k in range(rank, pieces, world):
        rows = torch.arange(k, half, pieces)
        parts = [part.read(positions[rows]) for part, positions in ((real, first), (generated, second))]
        x, t = torch.cat([p[0] for p in parts]), torch.cat([times[0, rows], times[1, rows]])
        x_t = critic.schedule.add_noise(x, t, torch.cat([noise[0, rows], noise[1, rows]]).to(x.dtype))
        condition: dict[str, Any] = {}
        if critic.num_classes is not None:
            condition = {"class_labels": torch.cat([p[1] for p in parts]).to(device)}  # type: ignore[misc]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(hash((seed, step, k)) & (2**63 - 1))
            logit = critic.log_ratio(x_t.to(device), t, **condition).float()
        sign = torch.cat([-torch.ones(len(rows)), torch.ones(len(rows))]).to(device)
        loss = F.softplus(sign * logit).sum() / batch_size
        loss.backward()
        total += loss.detach()
    if world > 1:
        flat = processes.sum_over_processes(
            torch.cat(
                [torch.zeros(p.numel(), device=device) if p.grad is None else p.grad.flatten() for p in parameters]
            )
        )
        for p, g in zip(parameters, flat.split([p.numel() for p in parameters])):
            p.grad = g.view_as(p).to(p.dtype)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def _shape(part: Part) -> tuple[int, ...]:
    """Shape of one sample of a part."""
    shape = getattr(part.data, "shape", None)
    return tuple(part.data.x.shape[1:]) if shape is None else tuple(shape)


class _State:
    """Where a training stands: what a checkpoint holds."""

    def __init__(
        self, critic: Critic, optimizer: torch.optim.Optimizer, generator: torch.Generator, path: Path | None
    ) -> None:
        self.critic, self.optimizer, self.generator, self.path = critic, optimizer, generator, path
        self.step, self.best_step, self.since, self.best = 0, 0, 0, math.inf
        self.history: list[dict[str, float]] = []
        self.kept = self._weights()

    def _weights(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.critic.state_dict().items()}

    def judge(self, trained: float, held: float) -> None:
        """Takes note of a check of the held-out cross-entropy."""
        self.history.append({"step": self.step, "training": trained, "held_out": held})
        if held < self.best:
            self.best, self.best_step, self.since, self.kept = held, self.step, 0, self._weights()
        else:
            self.since += 1

    def save(self, settings: dict[str, Any]) -> None:
        """Writes the checkpoint, if there is to be one."""
        if self.path is None or processes.here()[0] > 0:
            return
        numbers = {"step": self.step, "best_step": self.best_step, "since": self.since, "best": self.best}
        with records.atomic(self.path) as part:
            torch.save(
                {
                    "settings": settings,
                    "numbers": numbers,
                    "history": self.history,
                    "weights": self._weights(),
                    "kept": self.kept,
                    "optimizer": self.optimizer.state_dict(),
                    "generator": self.generator.get_state(),
                },
                part,
            )

    def resume(self, settings: dict[str, Any]) -> None:
        """Goes on from the checkpoint, if there is one of the same settings."""
        if self.path is None or not self.path.is_file():
            return
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{self.path} cannot be read as a checkpoint; delete it to start anew.") from error
        own = self.critic.state_dict()
        if found["settings"] != settings or {k: v.shape for k, v in own.items()} != {
            k: v.shape for k, v in found["weights"].items()
        }:
            return
        self.critic.load_state_dict(found["weights"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.generator.set_state(found["generator"])
        self.kept = {k: v.to(own[k].device) for k, v in found["kept"].items()}
        self.history = found["history"]
        for name, value in found["numbers"].items():
            setattr(self, name, value)


def _sets(
    critic: Critic,
    real: Any,
    generated: Any,
    real_labels: Tensor | None,
    generated_labels: Tensor | None,
    held_out: float,
    batch_size: int,
) -> tuple[tuple[Part, Part], tuple[Part, Part]]:
    """(training, held-out) of the real and of the generated set."""
    if not 0.0 < held_out < 1.0:
        raise ValueError(f"held_out must lie between 0 and 1, got {held_out}.")
    if batch_size < 2 or batch_size % 2:
        raise ValueError(f"batch_size must be even (half real, half generated), got {batch_size}.")
    conditional = critic.num_classes is not None
    first = as_examples("real", real, real_labels, critic)
    second = as_examples("generated", generated, generated_labels, critic)
    sets = tuple(divided(n, x, held_out, conditional, 0) for n, x in (("real", first), ("generated", second)))
    a, b = _shape(sets[0][0]), _shape(sets[1][0])
    if a != b:
        raise ValueError(f"Real samples have shape {a}, generated ones {b}.")
    check_classes(sets[0][0], sets[1][0])
    return sets[0], sets[1]
