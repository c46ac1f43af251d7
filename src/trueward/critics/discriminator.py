r"""A discriminator in time, trained to tell noised real from noised generated data.

With both classes equally frequent and x_t = alpha x_0 + sigma eps for either, the minimiser over phi of

    L = integral lambda(t) { E_q[ -log d(x_t, t) ] + E_p[ -log(1 - d(x_t, t)) ] } dt,     lambda = g^2 / sigma^2

is d = q_t / (q_t + p_t), so its logit is log q_t / p_t (Kim et al. 2023, eq. 8). The weight is realised by the times: drawn
with density proportional to lambda, which is uniform in log-SNR, the loss is a plain mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from trueward import records
from trueward.critics.critic import Critic
from trueward.critics.description import described_in
from trueward.loading import read_weights, save_tensors, set_weights
from trueward.networks import network, network_config
from trueward.schedules import Schedule, VPLinear

FORMAT = 1


class Discriminator(Critic):
    """A network as a critic.

    The network is called as ``network(c_in x_t, log(sigma / alpha) / 4, class_labels=...)`` with c_in = 1 / sqrt(alpha^2
    sigma_data^2 + sigma^2), the input of a preconditioned denoiser, so the trunk of one may serve.

    Args:
        network: answers one logit per row, (batch,) or (batch, 1); e.g. :class:`~trueward.networks.LogitHead`.
        schedule: where it lives; the default is the process of the paper, cut at 1e-5.
        sigma_data: standard deviation of the data.
        shape, num_classes: see :class:`Critic`.
    """

    citation: ClassVar[tuple[str, ...]] = ("kim2023refining",)

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule | None = None,
        *,
        sigma_data: float = 0.5,
        shape: tuple[int, ...] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(schedule or VPLinear(t_min=1e-5), shape=shape, num_classes=num_classes)
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}.")
        self.network, self.sigma_data = network, sigma_data

    def logit(self, x_t: Tensor, t: Tensor, **condition: Any) -> Tensor:
        log_alpha, log_sigma = self.schedule.log_alpha(t), self.schedule.log_sigma(t)
        c_in = ((2.0 * log_alpha).exp() * self.sigma_data**2 + (2.0 * log_sigma).exp()) ** -0.5
        label = (log_sigma - log_alpha) / 4.0
        parameter = next(self.network.parameters(), x_t)
        x = x_t * c_in.to(x_t.device, x_t.dtype).view((-1,) + (1,) * (x_t.ndim - 1))
        return self.network(x.to(parameter.dtype), label.to(parameter.device, parameter.dtype), **condition)

    def save(self, folder: str | Path, record: Mapping[str, Any] | None = None) -> None:
        """Writes ``critic.json`` and ``critic.safetensors`` into `folder`.

        Raises:
            ValueError: if the network cannot be described in JSON.
        """
        folder = Path(folder)
        description = {
            "format": FORMAT,
            "kind": "trueward-critic",
            "network": network_config(self.network),
            "schedule": self.schedule.to_config(),
            "sigma_data": self.sigma_data,
            "shape": None if self.shape is None else list(self.shape),
            "num_classes": self.num_classes,
            **(record or {}),
        }
        with records.atomic(folder / "critic.safetensors") as part:
            save_tensors(self.network.state_dict(), part)
        records.write_json(folder / "critic.json", description)

    @classmethod
    def load(cls, folder: str | Path) -> Discriminator:
        """The critic that :meth:`save` wrote, in evaluation mode; its description is the attribute ``record``.

        Raises:
            ValueError: if there is none, or it is damaged.
        """
        folder = Path(folder)
        if not (folder / "critic.json").is_file():
            raise ValueError(f"{folder} has no critic: train one with `trueward fit-critic {folder}`.")
        described = records.read_json(folder / "critic.json")
        if (
            not isinstance(described, dict)
            or described.get("kind") != "trueward-critic"
            or described.get("format") != FORMAT
        ):
            raise ValueError(f"{folder / 'critic.json'} does not describe a critic that this version reads.")
        with described_in(folder / "critic.json"):
            critic = cls(
                network(described["network"]),
                Schedule.from_config(described["schedule"]),
                sigma_data=described["sigma_data"],
                shape=None if described["shape"] is None else tuple(described["shape"]),
                num_classes=described["num_classes"],
            )
        set_weights(critic.network, read_weights(folder / "critic.safetensors"), str(folder / "critic.safetensors"))
        critic.requires_grad_(False).eval()
        critic.record = described  # type: ignore[assignment]
        return critic
