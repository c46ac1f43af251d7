r"""The claims of Analytic-DPM and of SN-/NPR-DPM, measured on a trained model.

For every number of steps K: bits per dimension on held-out data for beta~, beta, analytic, analytic-residual and NPR, on even and
optimal trajectories; and the Frechet distance of samples to the training data for the DDPM and DDIM forms of every variance,
over several seeds. What is claimed (Bao et al. 2022a, 2022b), each with its margin:

* bits per dimension: analytic < beta < beta~, an optimal trajectory < an even one, NPR with a floor < analytic;
* Frechet distance in few steps: analytic-DDPM < min(beta, beta~), analytic-DDIM < DDIM, SN and NPR < analytic.

    python -m trueward.reproduce.reverse_variance MODEL --out FOLDER

MODEL is a run folder or a model's name whose covariances were fitted with ``trueward fit-covariance``; missing heads are left
out of the table. A model trained under another schedule is asked under the thousand-step linear table of DDPM.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trueward import records
from trueward.covariance import (
    AnalyticCovariance,
    GammaTable,
    estimate_gamma,
    load_table,
    optimal_trajectory,
    save_table,
    variance_bounds,
    with_covariance,
)
from trueward.covariance.stored import HEADS, covariance_folder
from trueward.data import Dataset
from trueward.denoisers import Denoiser
from trueward.likelihood import DiscretizedGaussian, elbo
from trueward.loading import find, load
from trueward.metrics import frechet_distance
from trueward.reports.reference import reference_of
from trueward.samplers import DDIM, Ancestral
from trueward.samplers.reverse_step import ReverseSteps
from trueward.schedules import DiscreteSchedule

FLOOR = 0.05


@dataclasses.dataclass
class Experiment:
    """What is measured on: the model under its discrete schedule, its covariances, the data, and the cells measured so far."""

    models: dict[str, Denoiser]
    table: GammaTable
    train: Dataset
    test: Dataset
    path: Path
    cells: dict[str, Any]

    @classmethod
    def open(cls, name: str, out: Path, covariance: Path | None) -> Experiment:
        """Loads the model and its covariances; measures the table if it is not there."""
        model = load(name)
        if not isinstance(model.schedule, DiscreteSchedule):
            model = model.on(DiscreteSchedule.linear()).eval()
        folder = covariance if covariance is not None else find(name)
        reference = reference_of(load(name))
        if reference.held_out is None or reference.train.levels is None:
            raise ValueError("The experiment needs quantised data with a test split.")
        try:
            table = load_table(folder)
            table.check(model.schedule)
        except ValueError:
            table = estimate_gamma(model, reference.train, progress=True)
            save_table(table, out, model)
        models: dict[str, Denoiser] = {"beta-tilde": model, "beta": model}
        for kind in ("analytic", "analytic-residual"):
            models[kind] = AnalyticCovariance(model, table, kind)
        for kind in ("npr", "sn"):
            if kind in HEADS and (covariance_folder(folder) / kind / "covariance.json").is_file():
                models[kind] = with_covariance(model, kind, folder)
        path = out / "table.json"
        cells = records.read_json(path)["cells"] if path.is_file() else {}
        return cls(models, table, reference.train, reference.held_out, path, cells)

    def cell(self, key: str, measure: Any) -> dict[str, float]:
        """The cell `key`, measured and written down if it is not there yet."""
        if key not in self.cells:
            self.cells[key] = measure()
            print(key, {name: round(value, 4) for name, value in self.cells[key].items()}, flush=True)
            self.save()
        return self.cells[key]

    def save(self, **more: Any) -> None:
        """Writes the table."""
        records.write_json(
            self.path, {"cells": self.cells, "gamma": self.table.about, **more, **records.circumstances()}
        )

    # --- cells --------------------------------------------------------------------------------------------------------

    def bits(self, kind: str, steps: int, trajectory: str) -> dict[str, float]:
        """Bits per dimension on the test data."""
        bounds = self.models["beta"].data_range
        grid = "even" if trajectory == "even" else optimal_trajectory(self.table, steps, "analytic-residual", bounds)
        model = self.models[kind]
        if kind == "npr":
            model = _with_floor(model, self.table)
        decoder = DiscretizedGaussian(int(self.test.levels or 256), self.test.data_range or (-1.0, 1.0))
        bound = elbo(model, self.test, Ancestral(steps, variance=kind, grid=grid), decoder=decoder)
        return {"value": bound.bits_per_dim, "error": bound.standard_error, "decoder": bound.bits(bound.decoder)}

    def frechet(self, kind: str, steps: int, eta: float, seeds: int, samples: int) -> dict[str, float]:
        """Frechet distance of the pixels of `samples` samples to the training data: mean and standard error over seeds."""
        form = Ancestral if eta == 1.0 else DDIM
        sampler = form(steps, variance=kind, clip_levels=int(self.train.levels or 256))
        values = []
        for seed in range(seeds):
            parts = [
                sampler.sample(self.models[kind], indices=torch.arange(i, min(i + 500, samples)), seed=seed).x
                for i in range(0, samples, 500)
            ]
            values.append(float(frechet_distance(torch.cat(parts), self.train.x)))
        error = np.std(values, ddof=1) / math.sqrt(seeds) if seeds > 1 else math.nan
        return {"value": float(np.mean(values)), "error": float(error)}


def _with_floor(model: Denoiser, table: GammaTable) -> Denoiser:
    """A learned covariance kept above a share of the expected residual."""
    model.floor, model.table = FLOOR, table  # type: ignore[assignment]
    return model


def verdicts(cells: dict[str, Any], steps: list[int]) -> dict[str, bool]:
    """Which claims hold, by their names."""

    def value(key: str) -> float:
        return cells[key]["value"] if key in cells else math.nan

    found: dict[str, bool] = {}
    for k in steps:
        a, b, c = (value(f"bits {kind} even {k}") for kind in ("analytic", "beta", "beta-tilde"))
        if k <= 50:
            found[f"bits, K={k}: analytic < beta < beta~"] = a < b < c
        found[f"bits, K={k}: optimal trajectory < even"] = value(f"bits analytic-residual optimal {k}") < value(
            f"bits analytic-residual even {k}"
        )
        if f"bits npr even {k}" in cells and k <= 25:
            found[f"bits, K={k}: npr < analytic"] = value(f"bits npr even {k}") < a
        if k <= 10:
            ddpm, ddim = (value(f"frechet analytic {eta} {k}") for eta in (1.0, 0.0))
            guessed = min(value(f"frechet {kind} 1.0 {k}") for kind in ("beta", "beta-tilde"))
            found[f"Frechet, K={k}: analytic-DDPM < beta, beta~"] = ddpm < guessed
            found[f"Frechet, K={k}: analytic-DDIM < DDIM"] = ddim < value(f"frechet beta-tilde 0.0 {k}")
            if f"frechet sn 1.0 {k}" in cells:
                found[f"Frechet, K={k}: sn-DDPM < analytic-DDPM"] = value(f"frechet sn 1.0 {k}") < ddpm
                found[f"Frechet, K={k}: sn-DDIM < analytic-DDIM"] = value(f"frechet sn 0.0 {k}") < ddim
    return found


def plot_variances(table: GammaTable, path: Path, steps: int = 25, data_range: Any = (-1.0, 1.0)) -> None:
    """The picture that explains the method: variance of every step of an even trajectory, with its bounds, against time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    times = np.sort(Ancestral(steps).levels(table.schedule).t[:-1])
    s, t = times[:-1], times[1:]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    for axis, eta in zip(axes, (1.0, 0.0)):
        step = ReverseSteps.between(table.schedule, s, t, eta)
        low, high = variance_bounds(table.schedule, s, t, eta, data_range)
        axis.fill_between(t, np.maximum(low, 1e-8), high, color="0.88", label="between both bounds")
        for kind, style in (("analytic", "-"), ("analytic-residual", "--")):
            axis.plot(t, step.lambda2 + step.kappa**2 * table.variance(t, kind, data_range), style, label=kind)
        if eta == 1.0:
            axis.plot(t, step.beta, ":", label="beta")
            axis.plot(t, step.beta_tilde, "-.", label="beta~")
        axis.set(yscale="log", xlabel="t", ylabel="variance of the step", title=f"eta = {eta:g}, {steps} steps")
        axis.legend(fontsize=8)
    with records.atomic(path) as part:
        figure.savefig(part, dpi=120, format="png")
    plt.close(figure)


def run(
    name: str, out: Path, steps: list[int], seeds: int, samples: int, covariance: Path | None = None
) -> dict[str, Any]:
    """Measures the whole table into `out`; returns what is written to ``table.json``."""
    experiment = Experiment.open(name, out, covariance)
    plot_variances(experiment.table, out / "variances.png", data_range=experiment.models["beta"].data_range)
    for k in steps:
        for kind in experiment.models:
            for trajectory in ("even", "optimal"):
                if kind != "sn":  # its clipped variances make the bound explode
                    experiment.cell(f"bits {kind} {trajectory} {k}", lambda: experiment.bits(kind, k, trajectory))  # noqa: B023
            for eta in (1.0, 0.0):
                if kind != "beta" or eta == 1.0:
                    experiment.cell(
                        f"frechet {kind} {eta} {k}",
                        lambda: experiment.frechet(kind, k, eta, seeds, samples),  # noqa: B023
                    )
    floor = float(frechet_distance(experiment.test.x, experiment.train.x))
    found = verdicts(experiment.cells, steps)
    verdict = (
        "reproduced" if all(found.values()) else "not reproduced" if not any(found.values()) else "partly reproduced"
    )
    experiment.save(
        model=name, steps=steps, seeds=seeds, samples=samples, frechet_of_test_data=floor, claims=found, verdict=verdict
    )
    return records.read_json(experiment.path)


def main() -> None:
    """The command line of the experiment."""
    parser = argparse.ArgumentParser(
        prog="python -m trueward.reproduce.reverse_variance", description=__doc__.split("\n")[0]
    )
    parser.add_argument("model", help="a run folder or the name of a model")
    parser.add_argument("--out", type=Path, required=True, help="folder for table.json and variances.png")
    parser.add_argument(
        "--covariance", type=Path, help="the --out of trueward fit-covariance; default: the model's folder"
    )
    parser.add_argument("--steps", default="5,10,25,50", help="numbers of steps")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions of the samples")
    parser.add_argument("--samples", type=int, default=2000, help="samples per seed")
    given = parser.parse_args()
    steps = [int(k) for k in given.steps.split(",")]
    result = run(given.model, given.out, steps, given.seeds, given.samples, given.covariance)
    for claim, holds in result["claims"].items():
        print("yes" if holds else "NO ", claim)
    print(result["verdict"])


if __name__ == "__main__":
    main()
