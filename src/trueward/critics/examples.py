r"""The two sets a critic learns from: real and generated samples, each with a part kept out of training.

Examples are anything with a length and ``batch(indices)`` (a :class:`trueward.data.Dataset`, read as needed) or a tensor. A
pair of minibatches holds as many real as generated rows; for a conditional critic every generated row has the label of its
real partner, so that a critic cannot mistake how often a class was drawn for how it looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueward.covariance.examples import Held, as_batch
from trueward.critics.critic import Critic
from trueward.objectives.times import ImportanceTimes


@dataclass(frozen=True)
class Part:
    """Some rows of a set.

    Attributes:
        data: has ``batch(indices)``.
        rows: (n,) int64, which of its rows belong to the part.
        by_label: positions in `rows` of every label, None for an unconditional critic.
    """

    data: Any
    rows: Tensor
    by_label: dict[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """(x, labels) at positions of the part."""
        found = as_batch(self.data.batch(self.rows[positions]))
        return found["x"], found.get("class_labels")

    def labels(self, positions: Tensor) -> Tensor:
        """Labels at positions of the part, without reading x."""
        assert self.by_label is not None
        labels = torch.empty(len(self.rows), dtype=torch.int64)
        for label, where in self.by_label.items():
            labels[where] = label
        return labels[positions]


def as_examples(name: str, x: Any, labels: Tensor | None, critic: Critic) -> Any:
    """`x` as something with ``batch(indices)``, checked.

    Raises:
        ValueError: NaN, another shape than the critic's, labels missing, of another length or out of range.
    """
    x = torch.from_numpy(x) if isinstance(x, np.ndarray) else x
    labels = torch.as_tensor(labels) if isinstance(labels, np.ndarray | list | tuple) else labels
    if isinstance(x, Tensor):
        if not x.is_floating_point():
            raise ValueError(
                f"The {name} samples must be floating-point numbers in data units, got {str(x.dtype)[6:]}: bring them to "
                "the range of the model, or give a data set."
            )
        if not bool(x.isfinite().all()):
            raise ValueError(f"The {name} samples hold NaN or infinity.")
        x = Held(x, labels)
    elif labels is not None:
        raise ValueError(f"{name}_labels goes with a tensor; a data set has its own labels.")
    if not hasattr(x, "batch") or not hasattr(x, "__len__"):
        raise ValueError(f"The {name} samples must be a tensor or a data set, got {type(x).__name__}.")
    first = as_batch(x.batch(torch.arange(min(1, len(x)))))
    shape = tuple(first["x"].shape[1:])
    if critic.shape is not None and shape != tuple(critic.shape):
        raise ValueError(f"The {name} samples have shape {shape}, the critic takes {tuple(critic.shape)}.")
    found = labels_of(x)
    if found is not None and (found.ndim != 1 or found.is_floating_point()):
        raise ValueError(
            f"{name}_labels must be whole numbers, one per sample, got shape {tuple(found.shape)} of {str(found.dtype)[6:]}."
        )
    if critic.num_classes is not None:
        if found is None:
            raise ValueError(f"This critic is class-conditional: give {name}_labels.")
        if bool(((found < 0) | (found >= critic.num_classes)).any()):
            raise ValueError(f"{name}_labels must lie in 0 ... {critic.num_classes - 1}.")
    if found is not None and len(found) != len(x):
        raise ValueError(f"{name}_labels has {len(found)} entries for {len(x)} samples.")
    return x


def labels_of(data: Any) -> Tensor | None:
    """All labels of a set, or None."""
    labels = data.class_labels if isinstance(data, Held) else getattr(data, "labels", None)
    return None if labels is None else labels.cpu()


def divided(name: str, data: Any, held_out: float, conditional: bool, seed: int) -> tuple[Part, Part]:
    """(training, held-out) rows of a set.

    Raises:
        ValueError: if too few samples are left, in all or of one class.
    """
    kept_out = max(1, round(held_out * len(data)))
    if len(data) - kept_out < 1:
        raise ValueError(f"{len(data)} {name} samples are too few to train on and hold out {held_out:g} of.")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    labels = labels_of(data) if conditional else None

    def part(rows: Tensor) -> Part:
        if labels is None:
            return Part(data, rows)
        own = labels[rows]
        return Part(data, rows, {int(c): (own == c).nonzero()[:, 0] for c in own.unique()})

    return part(order[kept_out:]), part(order[:kept_out])


def check_classes(real: Part, generated: Part) -> None:
    """For a conditional critic: every class of the real samples must have been generated."""
    if real.by_label is None or generated.by_label is None:
        return
    missing = sorted(set(real.by_label) - set(generated.by_label))
    if missing:
        raise ValueError(
            f"The generated samples for training hold none of class {missing[0]}, which the real samples do: generate "
            "more, of all classes."
        )


def pair(real: Part, generated: Part, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions of `count` real and `count` generated samples, drawn with replacement; labels agree row by row."""
    first = torch.randint(len(real), (count,), generator=generator)
    if real.by_label is None or generated.by_label is None:
        return first, torch.randint(len(generated), (count,), generator=generator)
    u = torch.rand(count, generator=generator, dtype=torch.float64)
    wanted, second = real.labels(first), torch.empty(count, dtype=torch.int64)
    for label in wanted.unique().tolist():
        rows = wanted == label
        choice = generated.by_label[label]
        second[rows] = choice[(u[rows] * len(choice)).long().clamp(max=len(choice) - 1)]
    return first, second


def noised(critic: Critic, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(x_t, t): samples at times drawn uniformly in log-SNR."""
    u = torch.rand(len(x), generator=generator, dtype=torch.float64)
    t = ImportanceTimes().quantile(u, critic.schedule)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return critic.schedule.add_noise(x, t, noise), t
