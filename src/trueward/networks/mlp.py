r"""A residual network for vectors,

    h <- h + W_2 silu(W_1 n (1 + scale) + shift),   n = layer_norm(h)

with `scale` and `shift` from the time and class. W_2 starts at zero, and so does the last layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from trueward.networks.embedding import LabelEmbedding
from trueward.networks.registry import register_network


class _Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.expand = nn.Linear(width, 2 * width)
        self.dropout = dropout
        self.contract = nn.Linear(2 * width, width)
        nn.init.zeros_(self.contract.weight)
        nn.init.zeros_(self.contract.bias)

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        scale, shift = modulation.chunk(2, dim=1)
        n = torch.addcmul(shift, self.norm(h), scale + 1.0)
        return h + self.contract(F.dropout(F.silu(self.expand(n)), self.dropout, self.training))


@register_network
class MLP(nn.Module):
    """Residual network for vectors, called as ``network(x, label, class_labels=None)``.

    Args:
        dim: length of the vector, or a shape whose entries are taken as one vector.
        width: width of the hidden layers.
        depth: number of residual blocks.
        num_classes: number of classes or None; label `num_classes` (and no label) means "no class".
        dropout: probability of dropping a hidden activation.
        label_scale: size of the range of the time input, see :class:`LabelEmbedding`.

    Attributes:
        config: the arguments, JSON-able.
        features: width of what :meth:`forward_features` returns and `out` turns into the answer.

    Raises:
        ValueError: on arguments out of range.
    """

    def __init__(
        self,
        dim: int | Sequence[int],
        width: int = 128,
        depth: int = 3,
        num_classes: int | None = None,
        dropout: float = 0.0,
        label_scale: float = 1.0,
    ) -> None:
        super().__init__()
        shape = (dim,) if isinstance(dim, int) else tuple(int(n) for n in dim)
        for name, value in {"dim": min(shape, default=0), "width": width, "depth": depth}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"MLP needs {name} to be a whole number >= 1, got {value!r}.")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}.")
        self.config: dict[str, Any] = {
            "network": "MLP",
            "dim": dim if isinstance(dim, int) else list(shape),
            "width": width,
            "depth": depth,
            "num_classes": num_classes,
            "dropout": dropout,
            "label_scale": label_scale,
        }
        self.shape, self.num_classes, self.features = shape, num_classes, width
        self.embedding = LabelEmbedding(width, num_classes, label_scale)
        self.modulation = nn.Linear(width, 2 * width * depth)
        self.stem = nn.Linear(math.prod(shape), width)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(depth))
        last = nn.Linear(width, math.prod(shape))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), last)

    def forward_features(
        self, x: Tensor, label: Float[Tensor, " batch"], class_labels: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch features"]:
        """The last hidden state, before the output block.

        Raises:
            ValueError: if `x` is not (batch, *shape).
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"MLP takes x of shape {('batch', *self.shape)}, got {tuple(x.shape)}.".replace("'", ""))
        modulations = self.modulation(self.embedding(label, class_labels)).chunk(len(self.blocks), dim=1)
        h = self.stem(x.flatten(1))
        for block, modulation in zip(self.blocks, modulations, strict=True):
            h = block(h, modulation)
        return h

    def forward(
        self, x: Tensor, label: Float[Tensor, " batch"], class_labels: Int[Tensor, " batch"] | None = None
    ) -> Tensor:
        """The answer, in the shape of `x`: (batch, *shape). `label`: (batch,); `class_labels`: (batch,) int64 or None."""
        return self.out(self.forward_features(x, label, class_labels)).view(x.shape)
