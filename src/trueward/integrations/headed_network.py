r"""A pipeline's network together with a covariance head: it answers (prediction, h) in one call, as doubled channels.

The head reads the features of the frozen network and the noise level (:mod:`trueward.covariance.learned`); a scheduler with
``variance_type="sn"`` or ``"npr"`` takes the second half of the channels, any other scheduler of ours and most of diffusers'
read the first half alone. The pair saves and loads as one component of a pipeline, as safetensors and JSON.

In a pipeline with classifier-free guidance both halves are extrapolated by the guidance, h like the prediction; the variance is
clipped to its range afterwards.

diffusers loads classes of other libraries only from modules that are imported: ``import trueward.integrations.headed_network``
before opening a folder that holds one. This module needs diffusers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from trueward.covariance.learned import LearnedCovariance
from trueward.covariance.stored import HEADS
from trueward.covariance.trunk import Trunk
from trueward.denoisers import Denoiser, Posterior
from trueward.integrations.exported_network import TruewardNetworkOutput
from trueward.integrations.peers import peer
from trueward.naming import check_name
from trueward.networks import network as build
from trueward.networks import network_config
from trueward.schedules import DiscreteSchedule

peer("diffusers")
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config  # noqa: E402
from diffusers.models.modeling_utils import ModelMixin  # noqa: E402

NETWORKS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel", "TruewardNetwork")


class _Asked(Denoiser):
    """The network as it is asked by a pipeline: the `time` is the timestep and `eps` whatever it answers."""

    def __init__(self, network: nn.Module, schedule: DiscreteSchedule) -> None:
        super().__init__(schedule)
        self.network = network

    def forward(self, x_t: Tensor, t: Any, **condition: Any) -> Posterior:
        return Posterior(x_t, 1.0, 1.0, eps=self.network(x_t, t, **condition, return_dict=False)[0])


class HeadedNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A diffusers network with a covariance head of kind sn or npr, called like the network alone.

    Args:
        network_description: configuration of the network, with its class under ``_class_name``.
        head_description: of the head, see :func:`trueward.networks.network`.
        kind: sn or npr.
        betas: the table of the noise levels, which the head is told.
        feature_layer: see :mod:`trueward.covariance.trunk`.

    What is asked of it beyond this (``config``, ``add_embedding``, ...) is answered by the network.
    """

    _internal_dict: Any  # what diffusers registered

    @register_to_config
    def __init__(
        self,
        network_description: dict[str, Any],
        head_description: dict[str, Any],
        kind: str,
        betas: list[float],
        feature_layer: str = "auto",
    ) -> None:
        super().__init__()
        check_name("covariance head", kind, ("sn", "npr"))
        self._schedule = DiscreteSchedule(tuple(betas), half_log_snr_clip=-math.inf)
        network = _network_class(str(network_description.get("_class_name"))).from_config(network_description)
        self._join(network, build(head_description), feature_layer)

    def _join(self, network: nn.Module, head: nn.Module, feature_layer: str) -> None:
        self.network, self.head = network, head
        asked = _Asked(network, self._schedule)
        object.__setattr__(self, "_asked", asked)  # it shares the network, and must not list its weights twice
        self._trunk = Trunk.of(asked, feature_layer)

    @classmethod
    def of(cls, network: nn.Module, covariance: LearnedCovariance, betas: list[float]) -> HeadedNetwork:
        """The network with the head of a fitted covariance; the weights of both are shared, not copied.

        Raises:
            ValueError: if the network predicts variances already, or the head's network is not a registered one.
        """
        config: Any = network.config
        channels, answers = int(config.in_channels), getattr(config, "out_channels", None)
        if answers is not None and int(answers) == 2 * channels:
            raise ValueError(
                f"This {type(network).__name__} predicts variances of its own (doubled channels); a covariance head cannot be put beside them."
            )
        made = cls(
            network_description={
                "_class_name": type(network).__name__,
                **{k: v for k, v in dict(config).items() if k[0] != "_"},
            },
            head_description=network_config(covariance.head),
            kind=covariance.covariance_kind,
            betas=betas,
            feature_layer=covariance.feature_layer,
        )
        made._join(network, covariance.head, covariance.feature_layer)
        return made.eval()

    @property
    def config(self) -> Any:
        """The network's configuration with what was registered here."""
        own = self._internal_dict
        network = self.__dict__.get("_modules", {}).get("network")
        return own if network is None else FrozenDict({**network.config, **own})

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            network = self.__dict__.get("_modules", {}).get("network")
            if network is None or name == "network":
                raise
            return getattr(network, name)

    def on_denoiser(self, denoiser: Denoiser) -> LearnedCovariance:
        """`denoiser`, which is made of this network, with the head as its covariance."""
        return HEADS[self.config.kind](denoiser, self.head, feature_layer=self.config.feature_layer)

    def forward(
        self, sample: Tensor, timestep: Tensor | float, *inputs: Any, return_dict: bool = True, **condition: Any
    ) -> TruewardNetworkOutput | tuple[Tensor]:
        """(batch, 2 channels, ...): the network's prediction, then h.

        Args:
            sample: (batch, channels, height, width).
            timestep: () or (batch,), node of the table; fractional ones are between nodes.
            *inputs: one at most: the encoded prompt, as pipelines pass it.
            return_dict: False returns a tuple.
            **condition: passed to the network.
        """
        if inputs:
            condition["encoder_hidden_states"] = inputs[0]
        posterior, features = self._trunk(self._asked, sample, timestep, condition)  # type: ignore[arg-type]
        node = torch.as_tensor(timestep, dtype=torch.float64, device="cpu").flatten().expand(sample.shape[0])
        weight = next(self.head.parameters())
        log_snr = self._schedule.log_snr((node + 1.0) / self._schedule.nodes).to(weight)
        h = self.head(features.to(weight.dtype), log_snr)
        answer = torch.cat([posterior.eps, h.to(posterior.eps.dtype)], dim=1)
        return TruewardNetworkOutput(answer) if return_dict else (answer,)


def _network_class(name: str) -> Any:
    check_name("network of a pipeline", name, NETWORKS)
    if name == "TruewardNetwork":
        from trueward.integrations.exported_network import TruewardNetwork

        return TruewardNetwork
    return getattr(peer("diffusers"), name)
