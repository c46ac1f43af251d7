r"""Randomness with an identity: (seed, index of the sample, number of the draw) gives the same numbers, always.

A sampler that draws from one stream for the whole batch gives a sample that depends on its neighbours. Here every value is
a pure function of a key and a counter (Philox-4x32-10, Salmon et al. 2011), so a sample is the same whatever the batch
size, the process, the thread or an interruption, rows of one batch may stand at different draws, and no state is kept
anywhere. The integers are exact on every device; the normals (Box-Muller) agree across devices to the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

citation = ("salmon2011parallel",)

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


Words = TypeVar("Words", Tensor, np.ndarray)


def _multiply(a: Words, b: int) -> tuple[Words, Words]:
    """High and low 32 bits of a * b for 32-bit values in int64 (the product may wrap: its bits are right all the same)."""
    product = a * b
    return (product >> 32) & _MASK, product & _MASK


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Philox-4x32 with ten rounds: four 32-bit words and a key of two to four random words.

    The words are int64 tensors or arrays that broadcast.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, _M0)
        high1, low1 = _multiply(c2, _M1)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def _open_unit(bits: Tensor) -> Tensor:
    """32 random bits to a float64 in (0, 1), never an end point."""
    return (bits.to(torch.float64) + 0.5) * 2.0**-32


@dataclass(frozen=True)
class Noise:
    """The random numbers of some samples: one row for each index.

    Args:
        seed: any integer; samples of different seeds are independent.
        indices: (batch,) int64, which sample each row is. Rows may be picked and put together freely.
    """

    seed: int
    indices: Tensor

    @classmethod
    def rows(cls, seed: int, indices: int | Sequence[int] | Tensor, device: torch.device | str = "cpu") -> Noise:
        """Noise for the samples 0 ... indices-1, or for the given indices."""
        if isinstance(indices, int):
            return cls(seed, torch.arange(indices, device=device))
        return cls(seed, torch.as_tensor(indices, dtype=torch.int64, device=device))

    def __len__(self) -> int:
        return self.indices.numel()

    def __getitem__(self, rows: Tensor | slice) -> Noise:
        """The noise of some of the rows."""
        return Noise(self.seed, self.indices[rows])

    def _words(self, draw: int | Tensor, blocks: int, stream: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        index = self.indices.view(-1, 1)
        position = torch.arange(blocks, device=index.device).view(1, -1)
        if isinstance(draw, Tensor):
            draws = draw.to(index.device, torch.int64).view(-1, 1).expand(-1, blocks)
        else:
            draws = torch.full((1, 1), draw, dtype=torch.int64, device=index.device)
        # the stream occupies the top bit of the draw, so uniforms and normals of one draw are independent
        c0, c1, c2, c3 = torch.broadcast_tensors(
            position, (draws + (stream << 31)) & _MASK, index & _MASK, (index >> 32) & _MASK
        )
        key = self.seed & _MASK, (self.seed >> 32) & _MASK
        if index.device.type != "cpu":
            return philox((c0, c1, c2, c3), key)
        # many small operations: on the CPU they take NumPy less than half the time
        w0, w1, w2, w3 = philox((c0.numpy(), c1.numpy(), c2.numpy(), c3.numpy()), key)
        return torch.from_numpy(w0), torch.from_numpy(w1), torch.from_numpy(w2), torch.from_numpy(w3)

    def normal(
        self,
        draw: int | Tensor,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Standard normals (batch, *shape).

        Args:
            draw: number of the draw, below 2^31; a tensor (batch,) gives every row a draw of its own.
            shape: shape of one sample.
        """
        size = math.prod(shape)
        words = self._words(draw, -(-size // 4), 0)
        work = torch.float64 if dtype == torch.float64 else torch.float32
        values = []
        for a, b in ((words[0], words[1]), (words[2], words[3])):
            radius = torch.sqrt(-2.0 * torch.log(_open_unit(a))).to(work)
            angle = (_open_unit(b) * (2.0 * math.pi)).to(work)
            values += [radius * torch.cos(angle), radius * torch.sin(angle)]
        flat = torch.stack(values, dim=-1).reshape(len(self), -1)[:, :size]
        return flat.reshape(len(self), *shape).to(device if device is not None else flat.device, dtype)

    def uniform(self, draw: int | Tensor) -> Tensor:
        """One uniform number in (0, 1) for each row, (batch,) float64."""
        return _open_unit(self._words(draw, 1, 1)[0][:, 0])
