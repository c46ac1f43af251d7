"""Training speed, measured in one run: the trainer against a plain loop, and the U-Net against diffusers' of the same size.

1. The trainer (``speed="auto"``) against a plain float32 loop on the same network and data: images per second, the two taking
   turns of a few updates; the ratio is the median over the turns.
2. Our default 28x28 U-Net against diffusers' ``UNet2DModel`` with as many parameters, both in the plain loop and both in the
   trainer.
3. The same two trained in the trainer, taking turns of equal wall time: after how many seconds does ours reach the validation
   loss that diffusers' has at the end?

    python benchmarks/training.py --out benchmarks/results      # writes training.json and training.md

MNIST is used where it is found, else digits enlarged to 28x28. With one thread, the clock is the CPU time of the process, so
other programs on the machine do not count (``--clock wall`` says otherwise); with more it is the wall clock.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trueward import records
from trueward.data import Dataset, load_data
from trueward.denoisers import Denoiser
from trueward.loading import build_denoiser, build_model
from trueward.networks import network, register_network
from trueward.training import Trainer, TrainingConfig, recipe


@register_network
class DiffusersUNet(nn.Module):
    """diffusers' UNet2DModel as a network of ours: three levels (28, 14, 7), attention at 7, class and time conditioning."""

    def __init__(self, width: int, layers: int = 2, multipliers: tuple[int, ...] = (1, 2, 2)) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.config = {"network": "DiffusersUNet", "width": width, "layers": layers, "multipliers": list(multipliers)}
        self.net = UNet2DModel(
            sample_size=28,
            in_channels=1,
            out_channels=1,
            block_out_channels=tuple(width * m for m in multipliers),
            layers_per_block=layers,
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
            num_class_embeds=11,
            resnet_time_scale_shift="scale_shift",
        )

    def forward(self, x: Tensor, label: Tensor, class_labels: Tensor) -> Tensor:
        # its sinusoids are made for time steps 0 ... 1000; the label log(sigma)/4 spans about [-1.6, 1.1]
        return self.net(x, (label + 1.6) * 370.0, class_labels=class_labels).sample


def parameters(module: nn.Module) -> int:
    """Number of weights."""
    return sum(p.numel() for p in module.parameters())


def same_size(target: int) -> dict[str, Any]:
    """The DiffusersUNet whose number of parameters is nearest to `target`."""
    options = [{"network": "DiffusersUNet", "width": width} for width in range(16, 97, 8)]
    return min(options, key=lambda config: abs(parameters(network(config)) - target))


def data() -> tuple[Dataset, Dataset]:
    """Training and validation images 28x28."""
    with contextlib.suppress(ValueError):
        return load_data("mnist", limit=20000), load_data("mnist", split="test", limit=512)
    parts = []
    for split in ("train", "test"):
        digits = load_data("digits", split=split)
        assert digits.labels is not None
        x = nn.functional.interpolate(digits.x, size=(28, 28), mode="bilinear").clamp(-1, 1)
        parts.append(load_data((x, digits.labels), data_range=(-1.0, 1.0), num_classes=10, name="digits 28x28"))
    return parts[0], parts[1]


class PlainLoop:
    """What one would write by hand: float32, torch's noise, AdamW, clipping, an average of the weights."""

    def __init__(self, denoiser: Denoiser, images: Dataset, batch_size: int) -> None:
        self.denoiser, self.images, self.batch_size = denoiser.train(), images, batch_size
        self.x, self.labels = images.x, images.labels
        self.optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-3)
        self.average = [p.detach().clone() for p in denoiser.parameters()]
        self.sd = denoiser.sigma_data  # type: ignore[attr-defined]

    def update(self) -> None:
        """One update."""
        rows = torch.randint(len(self.x), (self.batch_size,))
        x_0, labels = self.x[rows], self.labels[rows]  # type: ignore[index]
        labels = torch.where(torch.rand(len(rows)) < 0.1, 10, labels)
        sigma = torch.exp(1.2 * torch.randn(len(rows)) - 0.8).clamp(0.002, 80.0)
        x_t = x_0 + sigma.view(-1, 1, 1, 1) * torch.randn_like(x_0)
        weight = (sigma**2 + self.sd**2) / (sigma * self.sd) ** 2
        error = (self.denoiser(x_t, sigma, class_labels=labels).mean - x_0).square().flatten(1).mean(1)
        self.optimizer.zero_grad()
        (weight * error).mean().backward()
        nn.utils.clip_grad_norm_(self.denoiser.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for a, p in zip(self.average, self.denoiser.parameters(), strict=True):
                a.lerp_(p, 0.001)


clock: Callable[[], float] = time.perf_counter


def take_turns(
    contestants: dict[str, Callable[[], Any]], images: int, turns: int, seconds: float
) -> dict[str, list[float]]:
    """Images per second of every contestant in every turn; in a turn each works for about `seconds`."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for update in contestants.values():
        update()
    for _ in range(turns):
        for name, update in contestants.items():
            start, done = clock(), 0
            while done == 0 or clock() - start < seconds:
                update()
                done += 1
            rates[name].append(done * images / (clock() - start))
    return rates


def ratio(rates: dict[str, list[float]], a: str, b: str) -> float:
    """Median over the turns of a's speed over b's: what was busy in a turn was busy for both."""
    return statistics.median(x / y for x, y in zip(rates[a], rates[b], strict=True))


def medians(rates: dict[str, list[float]]) -> dict[str, float]:
    """Median images per second."""
    return {name: round(statistics.median(values), 1) for name, values in rates.items()}


def main() -> None:
    """Runs the three comparisons and writes their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each contestant in each turn")
    parser.add_argument(
        "--race", type=float, default=300.0, help="seconds that each of the two networks trains (0: no race)"
    )
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu" if torch.get_num_threads() == 1 else "wall")
    arguments = parser.parse_args()
    global clock
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    arguments.out.mkdir(parents=True, exist_ok=True)
    training, validation = data()
    ours = recipe("mnist").model
    size = parameters(build_model(ours).network)
    theirs = {"network": same_size(size), "denoiser": ours["denoiser"]}
    config = TrainingConfig(
        steps=10**6, batch_size=arguments.batch_size, schedule="constant", ema=0.99, progress=False, warmup=50
    )
    result: dict[str, Any] = {
        **records.circumstances(),
        "batch_size": arguments.batch_size,
        "clock": arguments.clock,
        "data": training.name,
        "parameters": {"trueward": size, "diffusers": parameters(network(theirs["network"]))},
        "networks": {"trueward": ours["network"], "diffusers": theirs["network"]},
    }
    with tempfile.TemporaryDirectory() as folder:

        def trainer(name: str, model: dict[str, Any], images: Dataset, held_out: Dataset | None) -> Trainer:
            objective = recipe("mnist").objective
            denoiser = build_denoiser(network(model["network"]), model["denoiser"])
            return Trainer(
                denoiser, images, Path(folder) / name, config, objective=objective, validation=held_out, device="cpu"
            )

        digits = load_data("digits")
        small = recipe("digits").model
        small_trainer = trainer("small", small, digits, None)
        rates = take_turns(
            {
                "trainer": small_trainer.update,
                "plain loop": PlainLoop(build_model(small), digits, arguments.batch_size).update,
            },
            arguments.batch_size,
            arguments.turns,
            arguments.seconds,
        )
        result["digits"] = {
            "images_per_second": medians(rates),
            "trainer_over_plain": round(ratio(rates, "trainer", "plain loop"), 3),
            "chosen": small_trainer.speed.name,
        }
        a, b = trainer("ours", ours, training, validation), trainer("theirs", theirs, training, validation)
        rates = take_turns(
            {
                "trueward, trainer": a.update,
                "diffusers, trainer": b.update,
                "trueward, plain loop": PlainLoop(build_model(ours), training, arguments.batch_size).update,
                "diffusers, plain loop": PlainLoop(build_model(theirs), training, arguments.batch_size).update,
            },
            arguments.batch_size,
            arguments.turns,
            arguments.seconds,
        )
        result["28x28"] = {
            "images_per_second": medians(rates),
            "trainer_over_plain": round(ratio(rates, "trueward, trainer", "trueward, plain loop"), 3),
            "unet_over_diffusers_both_in_plain_loop": round(
                ratio(rates, "trueward, plain loop", "diffusers, plain loop"), 3
            ),
            "unet_over_diffusers_both_in_trainer": round(ratio(rates, "trueward, trainer", "diffusers, trainer"), 3),
            "chosen": {"trueward": a.speed.name, "diffusers": b.speed.name},
        }
        records.write_json(arguments.out / "training.json", result)
        if arguments.race:
            result["race"] = race(
                {
                    "trueward": trainer("race-ours", ours, training, validation),
                    "diffusers": trainer("race-theirs", theirs, training, validation),
                },
                arguments.race,
            )
    records.write_json(arguments.out / "training.json", result)
    records.write_text(arguments.out / "training.md", table(result))
    print(table(result))


def race(trainers: dict[str, Trainer], seconds: float, turns: int = 20) -> dict[str, Any]:
    """Both train for `seconds` in alternating turns; their validation losses after every turn."""
    curves: dict[str, list[tuple[float, int, float]]] = {name: [] for name in trainers}
    spent = dict.fromkeys(trainers, 0.0)
    for turn in range(1, turns + 1):
        for name, trainer in trainers.items():
            start = clock()
            while spent[name] + clock() - start < seconds * turn / turns:
                trainer.update()
            spent[name] += clock() - start
            loss = trainer.validate()
            assert loss is not None
            curves[name].append((round(spent[name], 1), trainer.step, round(loss, 5)))
    target = curves["diffusers"][-1][2]
    reached = next((t for t, _, loss in curves["trueward"] if loss <= target), math.inf)
    return {
        "seconds": seconds,
        "curves": {
            k: [dict(zip(("seconds", "step", "validation_loss"), row, strict=True)) for row in v]
            for k, v in curves.items()
        },
        "diffusers_final_loss": target,
        "trueward_final_loss": curves["trueward"][-1][2],
        "trueward_reached_it_after_seconds": reached if math.isfinite(reached) else None,
    }


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        f"Batch {result['batch_size']}, {result.get('threads')} thread(s), {result['machine']}, {result['clock']} time.",
        f"Parameters: {result['parameters']['trueward']:,} (trueward), {result['parameters']['diffusers']:,} (diffusers).",
        "",
        "| network | loop | images/s |",
        "|---|---|---|",
    ]
    for name, rate in result["digits"]["images_per_second"].items():
        lines.append(f"| digits 8x8 | {name} | {rate} |")
    for name, rate in result["28x28"]["images_per_second"].items():
        lines.append(f"| {name.split(', ')[0]} 28x28 | {name.split(', ')[1]} | {rate} |")
    wide = result["28x28"]
    lines += [
        "",
        f"* trainer over plain loop: {result['digits']['trainer_over_plain']} (digits; chose {result['digits']['chosen']}), "
        f"{wide['trainer_over_plain']} (28x28; chose {wide['chosen']['trueward']})",
        f"* U-Net over diffusers' of the same size: {wide['unet_over_diffusers_both_in_plain_loop']} in the plain loop, "
        f"{wide['unet_over_diffusers_both_in_trainer']} in the trainer",
    ]
    if "race" in result:
        r = result["race"]
        lines.append(
            f"* after {r['seconds']:g} s of training each: validation loss {r['trueward_final_loss']} against diffusers' "
            f"{r['diffusers_final_loss']}, which ours reached after {r['trueward_reached_it_after_seconds']} s"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
