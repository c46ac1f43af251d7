r"""What is fastest on this machine: memory format and precision, measured on the first batch.

Which of the usual advice holds depends on the machine and the network: on a CPU with bfloat16 matrix units, bf16 with
channels last is several times as fast as float32 for convolutions of some width, without them it is slower than float32, and
for narrow networks or vectors all of it can lose. So a few updates of every candidate are timed in turn, on a copy of the
network, and one replaces the plain form (float32, memory as it is) only if it is clearly faster.

The fused optimizer is taken wherever torch has one for the device; ``torch.compile`` where a GPU and a long run make it pay
(on CPUs the generated code was slower than the library's, and compiling takes longer than a small training).
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trueward.training.config import TrainingConfig

MARGIN = 0.97  # a candidate must take less than this share of the plain form's time


@dataclass(frozen=True)
class Speed:
    """How updates are computed.

    Attributes:
        channels_last: memory format of the network and the images.
        precision: no, bf16 or fp16.
        compile: whether the network is compiled.
        seconds: measured seconds per forward and backward pass of the candidates, by name.
    """

    channels_last: bool = False
    precision: str = "no"
    compile: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """E.g. ``bf16, channels last``."""
        precision = "float32" if self.precision == "no" else self.precision
        return precision + (", channels last" if self.channels_last else "") + (", compiled" if self.compile else "")

    def to_config(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """The context in which losses are computed."""
        if self.precision == "no":
            return contextlib.nullcontext()
        return torch.autocast(device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)

    def arrange(self, module: nn.Module) -> nn.Module:
        """The module in the chosen memory format."""
        return module.to(memory_format=torch.channels_last) if self.channels_last else module  # type: ignore[call-overload]


def has_images(module: nn.Module) -> bool:
    """Whether the network convolves over two dimensions, which is what a memory format is about."""
    return any(isinstance(m, nn.Conv2d) for m in module.modules())


def knows_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 at all."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu"


def candidates(module: nn.Module, config: TrainingConfig, device: torch.device) -> list[Speed]:
    """What to choose from; the first is the plain form within the precision that was asked for."""
    if config.mixed_precision == "auto":
        precisions = ["no", "bf16"] if knows_bf16(device) else ["no"]
    else:
        precisions = [config.mixed_precision]
    formats = [False, True] if has_images(module) else [False]
    return [Speed(last, precision) for precision in precisions for last in formats]


def wants_compile(config: TrainingConfig, device: torch.device) -> bool:
    """Whether to compile: as asked, else on a GPU with Triton when there are updates enough to pay for it."""
    if config.compile is not None:
        return config.compile
    if config.speed == "plain" or device.type != "cuda" or config.steps < 2000:
        return False
    return importlib.util.find_spec("triton") is not None


def choose(
    module: nn.Module, losses: Callable[[nn.Module], Tensor], config: TrainingConfig, device: torch.device
) -> Speed:
    """The fastest candidate.

    Args:
        module: what computes losses; it is copied, not changed.
        losses: calls a copy on a typical batch and returns its losses.
        config: may fix the precision, or ask for ``speed="plain"``.
        device: where the module is.
    """
    compiled = wants_compile(config, device)
    if config.speed == "plain":
        precision = "no" if config.mixed_precision == "auto" else config.mixed_precision
        return Speed(False, precision, compiled)
    options = candidates(module, config, device)
    if len(options) == 1:
        return Speed(options[0].channels_last, options[0].precision, compiled)

    # one thread on the CPU is timed by what it computed, so that other programs on a busy machine do not decide
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def run(copied: nn.Module, speed: Speed) -> float:
        start = clock()
        with speed.autocast(device):
            loss = losses(copied).mean()
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - start

    copies = [speed.arrange(copy.deepcopy(module)) for speed in options]
    taken: list[list[float]] = [[] for _ in options]
    for repetition in range(4):  # in turn, so that a busy moment of the machine hits all of them
        for index, (copied, speed) in enumerate(zip(copies, options, strict=True)):
            if repetition > 1 and min(taken[index]) > 2.0 * min(min(t) for t in taken if t):
                continue  # out of the race
            seconds = run(copied, speed)
            if repetition > 0:
                taken[index].append(seconds)
    median = {speed.name: statistics.median(t) for speed, t in zip(options, taken, strict=True)}
    best = min(options, key=lambda speed: median[speed.name])
    if median[best.name] > MARGIN * median[options[0].name]:
        best = options[0]
    return Speed(best.channels_last, best.precision, compiled, {k: round(v, 6) for k, v in median.items()})


def adamw(module: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that need a gradient, fused where the device has it."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("The network has no parameters to train.")
    options: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}
    try:
        return torch.optim.AdamW(parameters, fused=True, **options)
    except (RuntimeError, ValueError):
        return torch.optim.AdamW(parameters, **options)
