r"""In which order the data are seen: a pure function of (seed, step), so that a resumed run sees what the unbroken one would.

The samples form one endless sequence: epoch e is the permutation of the n samples drawn with the seed (seed, e). Update k
takes the places k B ... (k+1) B - 1 of the sequence, whoever computes it: each process takes its own rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


def mixed_seed(*numbers: int) -> int:
    """One 63-bit seed from several whole numbers (splitmix64 steps, Steele et al. 2014): close inputs, unrelated seeds."""
    mask = (1 << 64) - 1
    state = 0
    for number in numbers:
        state = (state ^ (number & mask)) + 0x9E3779B97F4A7C15 & mask
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
        state = (state ^ state >> 27) * 0x94D049BB133111EB & mask
        state ^= state >> 31
    return state >> 1


@contextlib.contextmanager
def seeded(device: torch.device, *numbers: int) -> Iterator[None]:
    """The global generators, which dropout draws from, seeded by these numbers inside and as they were afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(mixed_seed(*numbers))
        yield


class DataOrder:
    """The sequence of sample numbers.

    Args:
        n: number of samples.
        batch_size: B, samples per update.
        seed: of the order.
    """

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        if batch_size > n:
            raise ValueError(f"batch_size={batch_size} is larger than the {n} samples to train on.")
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self._epochs: dict[int, Tensor] = {}

    def permutation(self, epoch: int) -> Tensor:
        """The order of one epoch, (n,) int64."""
        if epoch not in self._epochs:
            self._epochs = {e: order for e, order in self._epochs.items() if e >= epoch - 1}
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, 1, epoch))
            self._epochs[epoch] = torch.randperm(self.n, generator=generator)
        return self._epochs[epoch]

    def batch(self, step: int, rows: slice = slice(None)) -> Tensor:
        """The sample numbers of some rows of update `step` (0, 1, ...), int64."""
        places = step * self.batch_size + torch.arange(self.batch_size)[rows]
        epochs = places // self.n
        return torch.cat([self.permutation(int(e))[places[epochs == e] % self.n] for e in epochs.unique().tolist()])

    def generator(self, step: int, device: torch.device | str = "cpu") -> torch.Generator:
        """The generator of the times and noise of update `step`."""
        return torch.Generator(device).manual_seed(mixed_seed(self.seed, 2, step))
