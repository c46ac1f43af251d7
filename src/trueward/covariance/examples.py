"""Clean examples x_0 to average over: any data set, tensor or loader, always in the same order.

Anything with a length and ``batch(indices) -> {"x": ..., "class_labels": ...}`` (a :class:`trueward.data.Dataset`) is read as
needed; a tensor is one already; an iterable of batches (a ``DataLoader``) is read through once, in its order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Tensor]


def as_batch(batch: Any) -> Batch:
    """A minibatch as ``{"x": (batch, *shape)}``, with ``"class_labels"`` where there are labels.

    Args:
        batch: a tensor, (x, labels), or a mapping with the key x (or images, pixel_values).

    Raises:
        ValueError: for anything else.
    """
    if isinstance(batch, Tensor):
        return {"x": batch}
    if isinstance(batch, Mapping):
        for key in ("x", "images", "pixel_values"):
            if key in batch:
                labels = batch.get("class_labels", batch.get("labels"))
                return {"x": batch[key]} | ({} if labels is None else {"class_labels": labels})
    if isinstance(batch, tuple | list) and batch and isinstance(batch[0], Tensor):
        return {"x": batch[0]} | ({"class_labels": batch[1]} if len(batch) > 1 else {})
    raise ValueError(
        f"A batch must be a tensor, (x, labels) or a mapping with the key 'x', got {type(batch).__name__}."
    )


def batches(data: Any, batch_size: int) -> Iterator[tuple[Tensor, Batch]]:
    """(indices, batch) through all of `data`; a loader keeps its own batch size."""
    if isinstance(data, Tensor):
        data = Held(data)
    if hasattr(data, "batch"):
        for first in range(0, len(data), batch_size):
            indices = torch.arange(first, min(first + batch_size, len(data)))
            yield indices, as_batch(data.batch(indices))
    else:
        first = 0
        for batch in data:
            found = as_batch(batch)
            yield torch.arange(first, first + len(found["x"])), found
            first += len(found["x"])


class Held:
    """Examples in memory: `x` (n, *shape) and, where there are any, `class_labels` (n,)."""

    def __init__(self, x: Tensor, class_labels: Tensor | None = None) -> None:
        self.x, self.class_labels = x, class_labels

    @classmethod
    def of(cls, data: Any, limit: int, order: torch.Generator) -> tuple[Held, Tensor]:
        """The first `limit` examples of a random order without replacement, and their indices in `data`.

        A loader, which has an order of its own, gives its first `limit` examples.
        """
        if isinstance(data, Tensor):
            data = cls(data)
        if hasattr(data, "batch"):
            indices = torch.randperm(len(data), generator=order)[:limit]
            found = as_batch(data.batch(indices))
            return cls(found["x"], found.get("class_labels")), indices
        if not isinstance(data, Iterable):
            raise ValueError(f"data must be a data set, a tensor or a loader, got {type(data).__name__}.")
        parts: list[Batch] = []
        held = 0
        for batch in data:
            parts.append(as_batch(batch))
            held += len(parts[-1]["x"])
            if held >= limit:
                break
        if not parts:
            raise ValueError("data holds no example.")
        x = torch.cat([part["x"] for part in parts])[:limit]
        labelled = all("class_labels" in part for part in parts)
        labels = torch.cat([part["class_labels"] for part in parts])[:limit] if labelled else None
        return cls(x, labels), torch.arange(len(x))

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> Batch:
        """The examples `indices`."""
        found = {"x": self.x[indices.to(self.x.device)]}
        if self.class_labels is not None:
            found["class_labels"] = self.class_labels[indices.to(self.class_labels.device)]
        return found
