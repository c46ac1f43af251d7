"""Networks to denoise with: plain ``nn.Module``s called as ``network(x, label, class_labels=None)``, without training code.

Each carries its constructor's arguments as JSON in ``config``, so that a checkpoint is a description and a file of numbers;
:func:`network` builds from the description and :func:`register_network` lets your own class do the same.
"""

from trueward.networks.edm_dhariwal import DhariwalUNet
from trueward.networks.edm_song import SongUNet
from trueward.networks.embedding import LabelEmbedding
from trueward.networks.half_unet import HalfUNet
from trueward.networks.logit_head import LogitHead
from trueward.networks.mlp import MLP
from trueward.networks.normalization import NormSiLU
from trueward.networks.registry import network, network_config, network_names, register_network
from trueward.networks.unet import UNet

__all__ = [
    "MLP",
    "DhariwalUNet",
    "HalfUNet",
    "LabelEmbedding",
    "LogitHead",
    "NormSiLU",
    "SongUNet",
    "UNet",
    "network",
    "network_config",
    "network_names",
    "register_network",
]
