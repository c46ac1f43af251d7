r"""The claims of Analytic-DPM and of SN-/NPR-DPM, measured on a trained model.

For every number of steps K

* bits per dimension on held-out data: beta~, beta, analytic, analytic-residual, NPR and NPR with a floor, on the even trajectory
  and on the one with the least bound;
* Frechet distance of samples to the training data, of the values themselves and of a classifier's features, in the DDPM and
  in the DDIM form of every variance, over several seeds.

    python -m trueward.reproduce.reverse_variance MODEL --out FOLDER

MODEL is a run folder or a model's name whose covariances were fitted with ``trueward fit-covariance``; heads that are not there
are left out. A model that knows classes is asked for them everywhere (fit its table with ``--conditional``). Without MODEL, the small network of the experiment is trained on the digits first (a few minutes) and its
covariances are fitted. A model trained under another schedule is asked under the thousand-step linear table of DDPM. The
measurement stops and continues cell by cell.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trueward import records
from trueward.covariance import (
    AnalyticCovariance,
    GammaTable,
    estimate_gamma,
    load_table,
    optimal_trajectory,
    save_head,
    save_table,
    trainable,
    with_covariance,
)
from trueward.covariance.stored import HEADS, covariance_folder
from trueward.data import Dataset, load_data
from trueward.denoisers import Denoiser
from trueward.designs import design
from trueward.likelihood import DiscretizedGaussian, elbo
from trueward.loading import find, load
from trueward.metrics import FrechetStatistics, feature_extractor, frechet_distance
from trueward.objectives.moments import MomentMatching
from trueward.reports.reference import reference_of
from trueward.reproduce.half_precision import in_half_precision
from trueward.reproduce.reverse_variance_claims import (
    claims,
    method_records,
    plot_distances,
    plot_variances,
    summary,
    verdict,
)
from trueward.samplers import DDIM, Ancestral
from trueward.schedules import DiscreteSchedule
from trueward.training import Trainer, TrainingConfig, train

FLOOR = 0.05
BATCH = 100


@dataclasses.dataclass
class Experiment:
    """What is measured on: the model under its discrete schedule, its covariances, the data, and the cells measured so far."""

    models: dict[str, Denoiser]
    table: GammaTable
    train: Dataset
    test: Dataset
    features: str | None
    clip_levels: int
    path: Path
    cells: dict[str, Any]

    def __post_init__(self) -> None:
        self.maps = {"values": feature_extractor(None)}
        if self.features is not None:
            self.maps["features"] = feature_extractor(self.features)
        self.reference = {name: FrechetStatistics.of(self.train, found) for name, found in self.maps.items()}

    @classmethod
    def open(cls, name: str, out: Path, covariance: Path | None = None, clip_levels: int = 256) -> Experiment:
        """Loads the model and its covariances; measures the table if it is not there."""
        model = load(name)
        reference = reference_of(model)
        if not isinstance(model.schedule, DiscreteSchedule):
            model = model.on(DiscreteSchedule.linear()).eval()
        folder = covariance if covariance is not None else find(name)
        if reference.held_out is None or reference.train.levels is None:
            raise ValueError("The experiment needs quantised data with a test split.")
        try:
            table = load_table(folder)
            table.check(model.schedule)
        except ValueError:
            table = estimate_gamma(model, reference.train, conditional=model.num_classes is not None, progress=True)
            save_table(table, out, model)
        models: dict[str, Denoiser] = {"beta-tilde": model, "beta": model, "beta-unclipped": model}
        for kind in ("analytic", "analytic-residual"):
            models[kind] = AnalyticCovariance(model, table, kind)
        for kind in ("npr", "sn"):
            if kind in HEADS and (covariance_folder(folder) / kind / "covariance.json").is_file():
                models[kind] = with_covariance(model, kind, folder)
        if "npr" in models:
            models["npr-floor"] = with_covariance(model, "npr", folder, floor=FLOOR, table=table)
        path = out / "table.json"
        cells = records.read_json(path)["cells"] if path.is_file() else {}
        return cls(models, table, reference.train, reference.held_out, reference.features, clip_levels, path, cells)

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

    def bits(self, kind: str, steps: int, trajectory: str, most: int) -> dict[str, float]:
        """Bits per dimension on (the first `most` of) the test data."""
        model = self.models[kind]
        grid: Any = "even"
        if trajectory != "even":
            cost = "analytic" if trajectory == "optimal-paper" else "analytic-residual"
            grid = optimal_trajectory(self.table, steps, cost, model.data_range)
        decoder = DiscretizedGaussian(int(self.test.levels or 256), self.test.data_range or (-1.0, 1.0))
        sampler = Ancestral(steps, variance=kind.removesuffix("-floor"), grid=grid)
        data: Any = self.test if len(self.test) <= most else [self.test.batch(torch.arange(most))]
        bound = elbo(model, data, sampler, decoder=decoder, batch_size=BATCH, conditional=model.num_classes is not None)
        return {"value": bound.bits_per_dim, "error": bound.standard_error, "decoder": bound.bits(bound.decoder)}

    def distances(self, kind: str, steps: int, eta: float, seed: int, samples: int) -> dict[str, float]:
        """Frechet distances of `samples` samples to the training data."""
        sampler = (Ancestral if eta == 1.0 else DDIM)(
            steps,
            variance=kind.removesuffix("-unclipped"),
            clip_levels=self.clip_levels,
            clip_pixel=2.0 if eta == 1.0 and kind != "beta" else 1.0,  # the published choices on this schedule
            clip_sigma_steps=0 if kind.endswith("-unclipped") else 1,
        )
        model, parts = self.models[kind], []
        for indices in torch.arange(samples).split(BATCH):
            condition = {} if model.num_classes is None else {"class_labels": indices % model.num_classes}
            parts.append(sampler.sample(model, indices=indices, seed=seed, **condition).x)
        return self.distances_of(torch.cat(parts))

    def distances_of(self, x: Tensor) -> dict[str, float]:
        """Frechet distances of samples or of other data to the training data, in every space."""
        return {
            name: float(frechet_distance(x, self.reference[name], found, data_range=self.train.data_range))
            for name, found in self.maps.items()
        }


def digits_model(folder: Path, updates: int = 6000, head_updates: int = 4000, gamma_samples: int | None = None) -> Path:
    """Trains the network of the published small experiment on the digits and fits its covariances.

    A residual network of 4 blocks of width 256 that predicts the noise, N = 1000, linear; heads on its last hidden layer.

    Returns:
        the run folder.
    """
    data = load_data("digits")
    network = design(
        data, network="MLP", schedule="ddpm-linear", prediction="eps", conditional=False, width=256, blocks=4
    )
    config = TrainingConfig(updates, 128, 1e-3, warmup=50, weight_decay=0.02, ema=0.998, held_out=0, sample_every=0)
    train(network, data, folder, config=config, resume=True)  # makes nothing anew that is there
    model = load(str(folder))
    if not (covariance_folder(folder) / "analytic.json").is_file():
        save_table(estimate_gamma(model, data, num_samples=gamma_samples, progress=True), folder, model)
    for kind in ("npr", "sn"):
        place = covariance_folder(folder) / kind
        if not (place / "covariance.json").is_file():
            covariance = HEADS[kind](model, mode="complex")
            config = TrainingConfig(
                head_updates, 128, 1e-3, "constant", 0, speed="plain", mixed_precision="no", sample_every=0
            )
            fitted = Trainer(trainable(covariance), data, place, config, objective=MomentMatching(), resume=True).fit()
            covariance.head.load_state_dict(fitted.network.state_dict())  # type: ignore[union-attr,operator]
            save_head(covariance, folder)
    return folder


def run(
    name: str,
    out: Path,
    steps: list[int],
    seeds: int,
    samples: int,
    covariance: Path | None = None,
    *,
    clip_levels: int = 256,
    half: bool = False,
    test_samples: int = 10_000,
    sampled: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measures the whole table into `out`; returns what is written to ``table.json``.

    Args:
        name: of the model or its folder.
        steps, seeds, samples: numbers of steps; repetitions of the samples, and samples in each.
        covariance: where the covariances are, if not beside the model.
        clip_levels: grey levels of the clip of the last noise.
        half: compute the network in bfloat16.
        test_samples: test data for the bounds, at most.
        sampled: variances to draw samples with; default all.
    """
    experiment = Experiment.open(name, out, covariance, clip_levels)
    plot_variances(experiment.table, out / "variances.png", data_range=experiment.models["beta"].data_range)
    with in_half_precision(experiment.models["beta"], half):
        _measure(experiment, steps, seeds, samples, test_samples, sampled)
    found = summary(experiment.cells, steps, seeds)
    held = claims(found, steps)
    about = {"model": Path(name).name, "steps": steps, "seeds": seeds, "samples": samples, "test_samples": test_samples}
    about |= {"features": experiment.features, "clip_levels": clip_levels}
    about |= {"precision": "bfloat16 network" if half else "float32"}
    experiment.save(**about, summary=found, claims=held, verdict=verdict(held))
    plot_distances(found, steps, out / "distances.png")
    return records.read_json(experiment.path)


def _measure(
    experiment: Experiment,
    steps: list[int],
    seeds: int,
    samples: int,
    test_samples: int,
    sampled: Sequence[str] | None,
) -> None:
    """Every cell that is not there yet."""
    experiment.cell(
        "held-out",
        lambda: experiment.distances_of(experiment.test.batch(torch.arange(min(samples, len(experiment.test))))["x"]),
    )
    for k in steps:
        for kind in experiment.models:
            if kind not in ("sn", "beta-unclipped"):  # the clipped variances of SN make the bound explode
                for trajectory in ("even", "optimal", *(("optimal-paper",) if kind == "analytic" else ())):
                    key = f"bits {kind} {trajectory} {k}"
                    experiment.cell(key, lambda: experiment.bits(kind, k, trajectory, test_samples))  # noqa: B023
    for seed in range(seeds):
        for k in steps:
            for kind in [kind for kind in experiment.models if sampled is None or kind in sampled]:
                for eta in (1.0, 0.0):
                    if kind == "npr-floor" or (kind.startswith("beta") and kind != "beta-tilde" and eta == 0.0):
                        continue
                    key = f"frechet {kind} {eta:g} {k} seed {seed}"
                    experiment.cell(key, lambda: experiment.distances(kind, k, eta, seed, samples))  # noqa: B023


def conclude(tables: Path, out: Path) -> None:
    """Writes the verdicts on both methods, from every finished table below `tables`, into `out`."""
    found = {path.parent.name: records.read_json(path) for path in sorted(tables.glob("*/table.json"))}
    finished = {name: table for name, table in found.items() if "claims" in table}
    if not finished:
        raise ValueError(f"There is no finished table below {tables}.")
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    for method, record in method_records(finished, date).items():
        records.write_json(out / f"{method}.json", record)
        print(f"{method}: {record['verdict']} ({record['held']} of {record['of']} claims)")


def main() -> None:
    """The command line of the experiment."""
    parser = argparse.ArgumentParser(
        prog="python -m trueward.reproduce.reverse_variance", description=__doc__.split("\n")[0]
    )
    parser.add_argument("model", nargs="?", help="a run folder or the name of a model; default: train one on digits")
    parser.add_argument("--out", type=Path, required=True, help="folder for table.json and the pictures")
    parser.add_argument(
        "--conclude",
        type=Path,
        help="measure nothing: write the verdicts on the tables in OUT's subfolders into this folder",
    )
    parser.add_argument(
        "--covariance", type=Path, help="the --out of trueward fit-covariance; default: the model's folder"
    )
    parser.add_argument("--work", type=Path, help="folder of the model that is trained; default: OUT/model")
    parser.add_argument("--steps", default="5,10,25,50", help="numbers of steps")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions of the samples")
    parser.add_argument("--samples", type=int, default=2000, help="samples per seed")
    parser.add_argument("--test-samples", type=int, default=10_000, help="test data for bits per dimension, at most")
    parser.add_argument("--clip-levels", type=int, default=256, help="grey levels of the clip of the last noise")
    parser.add_argument("--half", action="store_true", help="compute the network in bfloat16")
    parser.add_argument("--sampled", help="variances to draw samples with, comma separated; default all")
    given = parser.parse_args()
    if given.conclude is not None:
        conclude(given.out, given.conclude)
        return
    name = given.model or str(digits_model(given.work or given.out / "model"))
    result = run(
        name,
        given.out,
        [int(k) for k in given.steps.split(",")],
        given.seeds,
        given.samples,
        given.covariance,
        clip_levels=given.clip_levels,
        half=given.half,
        test_samples=given.test_samples,
        sampled=given.sampled.split(",") if given.sampled else None,
    )
    for claim, holds in result["claims"].items():
        print("yes" if holds else "NO ", claim)
    print(result["verdict"])


if __name__ == "__main__":
    main()
