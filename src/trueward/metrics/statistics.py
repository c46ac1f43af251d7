"""Mean and covariance of features, gathered batch by batch in float64; parts merge exactly (Chan et al. 1983),

    scatter = scatter_1 + scatter_2 + (m_2 - m_1)(m_2 - m_1)^T n_1 n_2 / (n_1 + n_2),

so neither many samples nor many processes are a limit, and a mean far from zero costs no digits.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from trueward import records
from trueward.metrics.features import FeatureSpec, Samples, batches, feature_extractor

citation = ("heusel2017gans",)


class FrechetStatistics:
    """Mean and covariance of features, gathered batch by batch; parts made by several processes or machines merge.

    Attributes:
        n: samples so far.
        mean: (d,) float64.
        scatter: (d, d) float64, the sum of (f - mean)(f - mean)^T.
        features: name of the feature map; only statistics of one map are compared.
    """

    citation = citation

    def __init__(self, features: str = "values") -> None:
        self.features = features
        self.n = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)

    @classmethod
    def of(
        cls,
        samples: Samples,
        features: FeatureSpec = None,
        *,
        batch_size: int = 500,
        data_range: tuple[float, float] | None = None,
    ) -> FrechetStatistics:
        """The statistics of all samples (n, *shape), or of a dataset, which is read batch by batch."""
        extractor = feature_extractor(features)
        known = getattr(samples, "data_range", data_range)
        found = cls(extractor.name)
        for part in batches(samples, batch_size):
            found.update(extractor(part, known))
        return found

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """The unbiased covariance, scatter / (n - 1)."""
        if self.n < 2:
            raise ValueError(f"A covariance needs at least two samples, got {self.n}.")
        return self.scatter / (self.n - 1)

    def update(self, features: Float[Tensor, "batch d"]) -> FrechetStatistics:
        """Adds a batch of features. Returns self.

        Raises:
            ValueError: not (batch, d), another d than before, NaN or infinity.
        """
        if features.ndim != 2:
            raise ValueError(f"features must have shape (batch, d), got {tuple(features.shape)}.")
        if len(features) == 0:
            return self
        f = features.detach().cpu().double()
        if not torch.isfinite(f).all():
            raise ValueError("features must be finite, but hold NaN or infinity.")
        part = FrechetStatistics(self.features)
        part.n = len(f)
        part.mean = f.mean(0)
        f = f - part.mean
        part.scatter = f.T @ f
        return self.merge(part)

    def merge(self, other: FrechetStatistics) -> FrechetStatistics:
        """Adds what `other` gathered (Chan et al. 1983). Returns self."""
        if self.features != other.features:
            raise ValueError(f"Statistics of features {self.features!r} and {other.features!r} do not mix.")
        if other.n == 0:
            return self
        if self.n == 0:
            self.n, self.mean, self.scatter = other.n, other.mean.clone(), other.scatter.clone()
            return self
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"features have {len(other.mean)} dimensions, but those before had {len(self.mean)}.")
        n = self.n + other.n
        gap = other.mean - self.mean
        self.scatter += other.scatter + torch.outer(gap, gap) * (self.n * other.n / n)
        self.mean = self.mean + gap * (other.n / n)
        self.n = n
        return self

    def all_reduce(self) -> FrechetStatistics:
        """Merges the statistics of all processes of ``torch.distributed``, in each of them; alone it changes nothing. Returns self."""
        from torch import distributed

        if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
            return self
        # nccl sends from the GPU only
        device = torch.device("cuda") if distributed.get_backend() == "nccl" else torch.device("cpu")
        size = torch.tensor([self.n, len(self.mean)], dtype=torch.int64, device=device)
        sizes = [torch.zeros_like(size) for _ in range(distributed.get_world_size())]
        distributed.all_gather(sizes, size)
        dims = {int(s[1]) for s in sizes if int(s[0]) > 0}
        if len(dims) > 1:
            raise ValueError(f"The processes gathered features of different dimensions: {sorted(dims)}.")
        if not dims:
            return self
        d = dims.pop()
        total = sum(int(s[0]) for s in sizes)
        own = self.mean if self.n else torch.zeros(d, dtype=torch.float64)
        mean = (own * self.n).to(device)
        distributed.all_reduce(mean)
        mean = mean / total
        gap = own.to(device) - mean
        scatter = torch.outer(gap, gap) * self.n
        if self.n:
            scatter += self.scatter.to(device)
        distributed.all_reduce(scatter)
        self.n, self.mean, self.scatter = total, mean.cpu(), scatter.cpu()
        return self

    def save(self, path: str | Path) -> Path:
        """Writes ``path`` (.safetensors, mean and scatter in float64; n and the features' name in its header)."""
        from safetensors.torch import save

        path = Path(path).with_suffix(".safetensors")
        note = json.dumps({"format": "trueward frechet statistics", "n": self.n, "features": self.features})
        with records.atomic(path) as part:
            part.write_bytes(save({"mean": self.mean, "scatter": self.scatter.contiguous()}, {"trueward": note}))
        return path

    @classmethod
    def load(cls, path: str | Path) -> FrechetStatistics:
        """Reads what :meth:`save` wrote.

        Raises:
            ValueError: a file that is missing, damaged or something else.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path).with_suffix(".safetensors")
        if not path.is_file():
            raise ValueError(f"There are no statistics at {path}.")
        try:
            with safe_open(path, "pt") as file:
                note = json.loads((file.metadata() or {})["trueward"])
                found = cls(note["features"])
                found.n = int(note["n"])
                found.mean, found.scatter = file.get_tensor("mean"), file.get_tensor("scatter")
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} does not hold Frechet statistics ({error}).") from None
        return found
