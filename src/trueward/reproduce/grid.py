r"""Discriminator Guidance and DiffRS with learned critics on a law whose density is known: twenty-five Gaussians on a grid.

A small preconditioned network is trained too briefly on the law of :mod:`trueward.reproduce.grid_law`, many of its samples
are drawn, and a critic learns to tell them from data. Then the off-mode mass, the divergence of the modes' shares and
the total variation of ten thousand samples are measured for the base sampler (Heun, 18 steps), Discriminator Guidance at
several weights, DiffRS at several percentiles, both together (with a second critic, trained on guided samples), the base
sampler with twice and four times the steps, so that a gain is not merely one of more evaluations, and a critic that learnt
shuffled labels, which must change nothing. Everything is repeated from fresh weights for every seed. What is claimed of it is
in :mod:`trueward.reproduce.grid_claims`.

    python -m trueward.reproduce.grid --out docs/reproductions

writes ``grid/cells.json`` with every measurement, two pictures beside it, and ``discriminator-guidance.json`` and
``diffrs.json`` with the verdicts. Cells that are there already are not measured again.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trueward import records
from trueward.critics import Discriminator, train_critic
from trueward.denoisers import Denoiser, EDMDenoiser
from trueward.loading import load, save_run
from trueward.networks import register_network
from trueward.objectives import DSM
from trueward.refinement import DiffRS, DiscriminatorGuidance, SamplerChain, calibrate
from trueward.reproduce.grid_claims import METHODS, judge
from trueward.reproduce.grid_law import SIGMA_DATA, measures, truth
from trueward.reproduce.grid_pictures import SHOWN, plot_bars, plot_samples
from trueward.samplers import EDMHeun
from trueward.schedules import EDM

GUIDED = {"dg (1,0)": (1, 0), "dg (2,0)": (2, 0), "dg (1,1)": (1, 1), "dg (2,2)": (2, 2), "dg (-2,0)": (-2, 0)}
PERCENTILES = (0.5, 0.75, 0.9)

Drawn = tuple[Tensor, dict[str, float]]  # samples, and what each of them cost


@dataclass(frozen=True)
class Settings:
    """How large the experiment is.

    Attributes:
        model_steps, critic_steps: updates of the base model and of each critic. The model is meant to be left imperfect; the
            critic is not, since guidance uses its gradient.
        generated: samples of the model that a critic learns from, and as many of the data.
        samples: samples that every cell is measured on.
        warm_up: samples that the constants of rejection are estimated from.
        steps: of the base sampler.
    """

    model_steps: int = 2500
    critic_steps: int = 10_000
    generated: int = 150_000
    samples: int = 10_000
    warm_up: int = 2000
    steps: int = 18


@register_network
class PlaneNetwork(nn.Module):
    """A perceptron for points of the plane, shown waves of the period of the grid and of the time input.

    Args:
        outputs: 2 for a denoiser, 1 for a critic.
        width, depth: of its hidden layers.
        scale: standard deviation of the data, which turns preconditioned inputs back into units of the grid.
    """

    frequencies: Tensor

    def __init__(self, outputs: int = 2, width: int = 64, depth: int = 2, scale: float = SIGMA_DATA) -> None:
        super().__init__()
        self.config = {"network": "PlaneNetwork", "outputs": outputs, "width": width, "depth": depth, "scale": scale}
        self.scale = scale
        self.register_buffer("frequencies", 0.25 * 64.0 ** torch.linspace(0.0, 1.0, 16), persistent=False)
        sizes = [42] + [width] * depth
        layers = [nn.Sequential(nn.Linear(a, b), nn.SiLU()) for a, b in itertools.pairwise(sizes)]
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))

    def forward(self, x: Tensor, label: Tensor, class_labels: None = None) -> Tensor:
        """x: (batch, 2); label: (batch,). Returns (batch, outputs)."""
        y, angle = torch.pi * self.scale * x, label[:, None] * self.frequencies
        waves = (y.sin(), y.cos(), (2 * y).sin(), (2 * y).cos(), angle.sin(), angle.cos())
        return self.layers(torch.cat([x, *waves], dim=1))


def train_model(settings: Settings, seed: int) -> EDMDenoiser:
    """The base model: 512 fresh data points per update, Adam with a rate that falls linearly to zero."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = EDMDenoiser(PlaneNetwork(), EDM(), sigma_data=SIGMA_DATA, shape=(2,))
    objective = DSM("edm")
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1.0 - k / settings.model_steps)
    for _ in range(settings.model_steps):
        loss = objective(model, {"x": truth().sample(512, generator).float()}, generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return model.requires_grad_(False).eval()


def draw(model: Denoiser, steps: int, n: int, seed: int) -> Tensor:
    """n samples of Heun's method."""
    parts = torch.arange(n).split(10_000)
    return torch.cat([EDMHeun(steps).sample(model, indices=rows, seed=seed).x for rows in parts])


class Experiment:
    """One seed: its model, its critics (trained when they are first asked for, and kept in a folder) and its cells."""

    def __init__(self, settings: Settings, seed: int, folder: Path) -> None:
        self.settings, self.seed, self.folder = settings, seed, folder / f"seed-{seed}"
        self._model: EDMDenoiser | None = None
        self._critics: dict[str, Discriminator] = {}
        self.asked = 0

    @property
    def model(self) -> EDMDenoiser:
        """The base model."""
        if self._model is None:
            folder = self.folder / "model"
            if not (folder / "run.json").is_file():
                save_run(folder, train_model(self.settings, self.seed))
            self._model = load(folder)  # type: ignore[assignment]
        assert self._model is not None
        return self._model

    def guided(self, first: float, second: float, critic: str = "critic") -> Denoiser:
        """The model under Discriminator Guidance with the weights of Heun's first and second evaluation."""
        return DiscriminatorGuidance(self.model, self.critic(critic), float(first), second_weight=float(second))

    def critic(self, name: str) -> Discriminator:
        """`critic`: data against samples of the model; `second`: against samples of DG (2,0); `shuffled`: label noise."""
        if name in self._critics:
            return self._critics[name]
        folder = self.folder / name
        if not (folder / "critic.json").is_file():
            n, seed = self.settings.generated, self.seed
            real = truth().sample(n, torch.Generator().manual_seed(1000 + seed)).float()
            source = self.guided(2, 0) if name == "second" else self.model
            generated = draw(source, self.settings.steps, n, 1000 + seed)
            if name == "shuffled":
                both = torch.cat([real, generated])
                order = torch.randperm(2 * n, generator=torch.Generator().manual_seed(seed))
                real, generated = both[order[:n]], both[order[n:]]
            torch.manual_seed(seed)
            critic = Discriminator(PlaneNetwork(1, 128, 3), sigma_data=SIGMA_DATA, shape=(2,))
            steps = self.settings.critic_steps
            record = train_critic(
                critic,
                real,
                generated,
                steps=steps,
                batch_size=1024,
                lr=3e-3,
                held_out=0.02,
                evaluate_every=max(10, steps // 20),
                patience=6,
                seed=seed,
            )
            critic.save(folder, {"record": record.to_json()})
        self._critics[name] = Discriminator.load(folder)
        return self._critics[name]

    # --- cells --------------------------------------------------------------------------------------------------------

    def base(self, steps: int) -> Drawn:
        """The base sampler with `steps` steps."""
        return self.heun(self.model, steps)

    def guidance(self, first: float, second: float, critic: str = "critic") -> Drawn:
        """Discriminator Guidance."""
        return self.heun(self.guided(first, second, critic), self.settings.steps)

    def heun(self, model: Denoiser, steps: int) -> Drawn:
        """Samples of a model by Heun's method."""
        return draw(model, steps, self.settings.samples, self.seed), {"nfe": float(2 * steps - 1)}

    def rejection(self, percentile: float, critic: str, guided: bool = False) -> Drawn:
        """DiffRS, with a budget of three times the base sampler's evaluations per sample."""
        n, steps = self.settings.samples, self.settings.steps
        model = self.guided(2, 0) if guided else self.model
        chain = SamplerChain(EDMHeun(steps), model, self.critic(critic))
        warm_up = calibrate(chain, self.settings.warm_up, seed=2000 + self.seed, batch_size=1000)
        self.asked = 0  # the warm-up is made once for any number of samples
        rule = DiffRS(chain, warm_up.constants(percentile), max_nfe=3 * (2 * steps - 1))
        found = rule.sample(n, seed=self.seed, batch_size=min(2000, n))
        return found.x, {"nfe": found.nfe_per_sample, "restarts": found.restarts / n, "occupancy": found.occupancy}

    def cells(self) -> dict[str, Callable[[], Drawn]]:
        """How the samples of each cell are drawn, by its name."""
        n, steps = self.settings.samples, self.settings.steps
        found: dict[str, Callable[[], Drawn]] = {
            "data": lambda: (truth().sample(n, torch.Generator().manual_seed(3000 + self.seed)), {})
        }
        for name, k in (("base", 1), ("base, twice the steps", 2), ("base, four times the steps", 4)):
            found[name] = partial(self.base, k * steps)
        for name, weights in GUIDED.items():
            found[name] = partial(self.guidance, *weights)
        for p in PERCENTILES:
            found[f"diffrs {p:g}"] = partial(self.rejection, p, "critic")
        found["dg (2,0) + diffrs 0.9"] = partial(self.rejection, 0.9, "second", guided=True)
        found["shuffled dg (2,0)"] = partial(self.guidance, 2, 0, "shuffled")
        found["shuffled diffrs 0.9"] = partial(self.rejection, 0.9, "shuffled")
        return found

    def measure(self, draw_samples: Callable[[], Drawn]) -> dict[str, float]:
        """Measures and cost of a cell; the cost includes the rows per sample that any critic is asked about."""
        for name in ("critic", "second", "shuffled"):
            self.critic(name)
        handles = [c.network.register_forward_pre_hook(self._count) for c in self._critics.values()]
        self.asked = 0
        x, cost = draw_samples()
        for handle in handles:
            handle.remove()
        return {**measures(x), **cost, "critic calls": self.asked / self.settings.samples}

    def _count(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self.asked += len(arguments[0])


def run(out: Path, work: Path, seeds: int, settings: Settings | None = None) -> dict[str, Any]:
    """Measures what is missing under `out`, and judges; returns what is written to ``grid/cells.json``.

    Args:
        out: folder of the two verdicts; the measurements and pictures go to its folder ``grid``.
        work: where the trained models and critics are kept.
        seeds: number of repetitions, at least 2.
        settings: size of the experiment.

    Raises:
        ValueError: if `seeds` is less than 2, or the measurements under `out` were made with other settings.
    """
    if seeds < 2:
        raise ValueError(f"seeds must be at least 2 to know how far a mean may be off, got {seeds}.")
    settings = settings or Settings()
    path = out / "grid" / "cells.json"
    record: dict[str, Any] = records.read_json(path) if path.is_file() else {"settings": asdict(settings), "cells": {}}
    if record["settings"] != asdict(settings):
        raise ValueError(f"{path} holds measurements with other settings, {record['settings']}: give another folder.")
    for seed in range(seeds):
        experiment = Experiment(settings, seed, work)
        for name, samples in experiment.cells().items():
            values = record["cells"].setdefault(name, {})
            if str(seed) not in values:
                start = time.perf_counter()
                values[str(seed)] = experiment.measure(samples)
                numbers = {key: round(value, 4) for key, value in values[str(seed)].items()}
                print(f"seed {seed}, {name}: {numbers} ({time.perf_counter() - start:.0f} s)", flush=True)
                records.write_json(path, record)
    record = {**record, **records.circumstances()}
    records.write_json(path, record)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    for method in METHODS:
        records.write_json(out / f"{method}.json", {"date": date, **judge(record["cells"], method)})
    plot_bars(record["cells"], out / "grid" / "measures.png")
    drawn = Experiment(replace(settings, samples=min(4000, settings.samples)), 0, work).cells()
    plot_samples({name: drawn[name]()[0] for name in SHOWN}, out / "grid" / "samples.png")
    return record


def main() -> None:
    """The command line of the experiment."""
    parser = argparse.ArgumentParser(prog="python -m trueward.reproduce.grid", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the verdicts and the folder grid")
    parser.add_argument("--work", type=Path, default=Path("runs/grid"), help="where models and critics are kept")
    parser.add_argument("--seeds", type=int, default=5, help="repetitions, each from fresh weights")
    given = parser.parse_args()
    run(given.out, given.work, given.seeds)
    for method in METHODS:
        verdict = records.read_json(given.out / f"{method}.json")
        print(f"{method}: {verdict['verdict']}")
        for name, claim in verdict["claims"].items():
            print("  yes" if claim["holds"] else "  NO ", name, claim["measured"])


if __name__ == "__main__":
    main()
