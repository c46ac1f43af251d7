r"""What a network is told beside x: the time and the class,

    e(l) = [sin(w_k l / scale), cos(w_k l / scale)]_k,   w_k geometric from 1/4 to 64

for a time input l of the size of `scale`. With the label log(sigma)/4 or a time in [0, 1] (`scale` = 1) and with DDPM's
0 ... 999 (`scale` = 1000) the slowest feature sees the whole range as one monotone arc and the fastest tells neighbours
apart.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LabelEmbedding(nn.Module):
    """Time input and class to one vector.

    Args:
        width: length of the vector.
        num_classes: number of classes or None; row `num_classes` of the table means "no class".
        label_scale: size of the range of the time input: 1 for log(sigma)/4 or t in [0, 1], 1000 for DDPM's labels.
        features: number of frequencies.
    """

    frequencies: Tensor

    def __init__(
        self, width: int, num_classes: int | None = None, label_scale: float = 1.0, features: int = 32
    ) -> None:
        super().__init__()
        if not (math.isfinite(label_scale) and label_scale > 0):
            raise ValueError(f"label_scale must be positive, got {label_scale}.")
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes must be at least 1 or None, got {num_classes}.")
        self.num_classes = num_classes
        frequencies = 0.25 * 256.0 ** torch.linspace(0.0, 1.0, features, dtype=torch.float64) / label_scale
        self.register_buffer("frequencies", frequencies.float(), persistent=False)
        self.hidden = nn.Linear(2 * features, width)
        self.output = nn.Linear(width, width)
        self.classes = None if num_classes is None else nn.Embedding(num_classes + 1, width)
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=0.5)

    def forward(self, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """label: (batch,); class_labels: (batch,) int64 or None for "no class". Returns (batch, width) after a SiLU.

        Raises:
            ValueError: if classes are given to an unconditional network.
        """
        angle = label.to(self.frequencies.dtype)[:, None] * self.frequencies
        e = torch.cat([angle.sin(), angle.cos()], dim=1).to(self.hidden.weight.dtype)
        e = self.output(nn.functional.silu(self.hidden(e)))
        if self.classes is not None:
            if class_labels is None:
                class_labels = torch.full(
                    label.shape, self.classes.num_embeddings - 1, dtype=torch.int64, device=label.device
                )
            e = e + self.classes(class_labels)
        elif class_labels is not None:
            raise ValueError("class_labels were given to a network that was made with num_classes=None.")
        return nn.functional.silu(e)
