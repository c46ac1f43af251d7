r"""A critic on the features of a classifier of noisy data: a frozen extractor, and a shallow head that learns.

    l(x_t, t) = head(extractor(x_t, time_scale t), log-SNR, class)

This is how the discriminators of Kim et al. (2023) and Na et al. (2024) are made: a classifier that was trained on noisy
images knows what matters at every noise level, so a small head learns fast and does not memorise. The critic lives on the
schedule that the extractor was trained on, so x_t and t arrive as the extractor knows them, whatever schedule the model has.

The extractor's weights never learn. In training nothing is differentiated through it; where a gradient with respect to x_t is
asked for, it is part of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trueward import records
from trueward.critics.critic import Critic
from trueward.critics.description import described_in
from trueward.critics.features import FeatureHead
from trueward.loading import read_weights, save_tensors, set_weights
from trueward.networks import network, network_config
from trueward.schedules import Schedule, VPLinear

FORMAT = 1
KIND = "trueward-extractor-critic"


class ExtractorCritic(Critic):
    """A head on a frozen extractor of features.

    Args:
        extractor: any module called as ``extractor(x_t, time)`` that answers features (batch, channels, *positions), e.g. a
            noisy-image classifier up to its middle block. It is frozen and put into evaluation mode.
        shape: shape of one sample.
        schedule: the process that the extractor was trained on; the default is the linear one of the paper, cut at 1e-5.
            A classifier trained with the cosine process gets :class:`~trueward.schedules.VPCosine`.
        head: called as ``head(features, log_snr, class_labels)``, answers (batch,); default: a
            :class:`~trueward.critics.features.FeatureHead` that fits.
        time_scale: what the times of `schedule` are multiplied with for the extractor, e.g. 1000.
        num_classes: of a class-conditional head, or None.
        **options: of the default head.

    Raises:
        ValueError: if the extractor's answer is not a tensor (batch, channels, *positions).
    """

    citation: ClassVar[tuple[str, ...]] = ("kim2023refining", "dhariwal2021diffusion")

    def __init__(
        self,
        extractor: nn.Module,
        shape: tuple[int, ...],
        schedule: Schedule | None = None,
        *,
        head: nn.Module | None = None,
        time_scale: float = 1.0,
        num_classes: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(schedule or VPLinear(t_min=1e-5), shape=tuple(shape), num_classes=num_classes)
        self.extractor = extractor.requires_grad_(False).eval()
        self.time_scale = float(time_scale)
        if head is None:
            with torch.no_grad():
                t = torch.tensor([self.schedule.t_max], dtype=torch.float64)
                features = self.features(torch.zeros(1, *self.shape), t)  # type: ignore[misc]
            head = FeatureHead(features.shape[1], features.ndim - 2, num_classes=num_classes, **options)
        self.head = head

    def train(self, mode: bool = True) -> ExtractorCritic:
        """The extractor stays in evaluation mode."""
        super().train(mode)
        self.extractor.eval()
        return self

    def features(self, x_t: Tensor, t: Tensor) -> Tensor:
        """What the extractor says of x_t (batch, *shape) at the times t (batch,) of the critic's schedule."""
        parameter = next(self.extractor.parameters(), None)
        x = x_t if parameter is None else x_t.to(parameter.device, parameter.dtype)
        with torch.set_grad_enabled(x.requires_grad and torch.is_grad_enabled()):
            features = self.extractor(x, (self.time_scale * t).to(x.device, x.dtype))
        if not isinstance(features, Tensor) or features.ndim < 2 or features.shape[0] != x.shape[0]:
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"The extractor must answer features ({x.shape[0]}, channels, ...), got {found}.")
        return features

    def logit(self, x_t: Tensor, t: Tensor, **condition: Any) -> Tensor:
        features = self.features(x_t, t)
        dtype = next(self.head.parameters()).dtype
        log_snr = self.schedule.log_snr(t).to(features.device, dtype)
        return self.head(features.to(dtype), log_snr, condition.get("class_labels"))

    def save(self, folder: str | Path, record: Mapping[str, Any] | None = None) -> None:
        """Writes ``critic.json`` and ``critic.safetensors``, extractor and head, into `folder`.

        An extractor of a class that is not registered (:func:`~trueward.networks.register_network`) is stored as weights
        alone, and has to be given to :meth:`load`.

        Raises:
            ValueError: if the head cannot be described in JSON.
        """
        folder = Path(folder)
        try:
            described: dict[str, Any] | None = network_config(self.extractor)
        except ValueError:
            described = None
        description = {
            "format": FORMAT,
            "kind": KIND,
            "extractor": described,
            "network": network_config(self.head),
            "schedule": self.schedule.to_config(),
            "time_scale": self.time_scale,
            "shape": list(self.shape or ()),
            "num_classes": self.num_classes,
            **(record or {}),
        }
        with records.atomic(folder / "critic.safetensors") as part:
            save_tensors(self.state_dict(), part)
        records.write_json(folder / "critic.json", description)

    @classmethod
    def load(cls, folder: str | Path, extractor: nn.Module | None = None) -> ExtractorCritic:
        """The critic that :meth:`save` wrote, in evaluation mode; its description is the attribute ``record``.

        Args:
            folder: where it is.
            extractor: a module of the extractor's class, where that is not registered; its weights are overwritten.

        Raises:
            ValueError: if there is none, it is damaged, or the extractor is needed and not given.
        """
        path = Path(folder) / "critic.json"
        described = records.read_json(path) if path.is_file() else None
        if not isinstance(described, dict) or described.get("kind") != KIND or described.get("format") != FORMAT:
            raise ValueError(f"{folder} has no critic on an extractor's features that this version reads.")
        with described_in(path):
            if extractor is None:
                if described["extractor"] is None:
                    raise ValueError(f"The extractor of the critic in {folder} is of a foreign class: give extractor=.")
                extractor = network(described["extractor"])
            critic = cls(
                extractor,
                tuple(described["shape"]),
                Schedule.from_config(described["schedule"]),
                head=network(described["network"]),
                time_scale=described["time_scale"],
                num_classes=described["num_classes"],
            )
        weights = Path(folder) / "critic.safetensors"
        set_weights(critic, read_weights(weights), str(weights))
        critic.requires_grad_(False).eval()
        critic.record = described  # type: ignore[assignment]
        return critic
