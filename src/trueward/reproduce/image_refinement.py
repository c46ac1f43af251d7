r"""Discriminator Guidance and DiffRS on a trained image model, with critics learned for the occasion.

For every base sampler, with every number of steps: samples are generated, a class-conditional critic learns to tell them from
the training data, and over several seeds

    base, DG, DiffRS, DG + DiffRS

are measured by the Frechet distance and the precision and recall of a classifier's features, by the share of samples that the
classifier takes for the class asked for, and by what they cost in evaluations of the network (abandoned paths included) and
of the critic. Under both corrections the critic of the unguided sampler is a heuristic; with ``--second-critic`` another one
is trained on guided samples.

    python -m trueward.reproduce.image_refinement MODEL --out FOLDER --work FOLDER

WORK keeps the generated samples and critics. The measurement stops and continues cell by cell.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trueward import records
from trueward.critics import Critic, with_critic
from trueward.data import Dataset
from trueward.denoisers import Denoiser
from trueward.drawing import Drawing
from trueward.fitting import fit_critic
from trueward.loading import load
from trueward.metrics import FrechetStatistics, class_accuracy, feature_extractor, frechet_distance, precision_recall
from trueward.refinement import RefinedSampler
from trueward.reports.reference import reference_of
from trueward.reproduce.half_precision import in_half_precision
from trueward.reproduce.image_refinement_claims import METHODS, claims, plot, summary, verdict
from trueward.sampler_specs import SamplerSpec
from trueward.samplers import Sampler

REFERENCE = 2000
SETTINGS: dict[str, dict[str, Any]] = {
    "DG": {"guidance": {"weight": 1.0}},
    "DiffRS": {"rejection": {"percentile": 0.75}},
    "DG + DiffRS": {"guidance": {"weight": 1.0}, "rejection": {"percentile": 0.75}},
}
BUDGET = 3
HEUN = {"weight": 2.0, "second_weight": 0.0}


@dataclass
class Experiment:
    """A model, its data, and what has been measured so far.

    Args:
        name: of the model or its folder.
        out: the folder of ``table.json``.
        work: the folder of generated samples and critics.
        generated: samples to generate for a critic.
        updates, critic_batch, width: of a critic: updates, samples in one, channels of its first level.
        batch_size: rows in one call of the model, slots of rejection.
        half: compute the network in bfloat16.
        second: train a critic of guided samples for DG + DiffRS.
    """

    name: str
    out: Path
    work: Path
    generated: int = 10_000
    updates: int = 3000
    critic_batch: int = 256
    width: int | None = None
    batch_size: int = 100
    half: bool = False
    second: bool = False
    cells: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = load(self.name)
        reference = reference_of(self.model)
        if reference.held_out is None or reference.features is None:
            raise ValueError("The experiment needs data with a test split and a classifier for them: digits or mnist.")
        self.train, self.test = reference.train, reference.held_out
        self.features = feature_extractor(reference.features)
        self.statistics = FrechetStatistics.of(self.train, self.features)
        self.labels = None if self.model.num_classes is None else tuple(range(self.model.num_classes))
        path = self.out / "table.json"
        self.cells = records.read_json(path)["cells"] if path.is_file() else {}

    def critic(self, spec: str, sampler: Sampler | RefinedSampler, folder: str) -> Critic:
        """The critic of a sampler, trained if it is not there."""
        if (self.work / folder / "critic" / "critic.json").is_file():
            return with_critic(self.model, self.work / folder)
        critic, record, _ = fit_critic(
            self.model,
            self.train,
            self.work / folder,
            drawing=Drawing(self.model, sampler, seed=100, labels=self.labels),
            n=min(self.generated, len(self.train)),
            conditional=self.labels is not None,
            updates=self.updates,
            batch_size=self.critic_batch,
            width=self.width,
            sample_batch=self.batch_size,
            facts={"sampler": spec},
        )
        self.cells.setdefault(
            f"critic {folder}",
            {
                "held_out_cross_entropy": record.calibration.mean_cross_entropy,
                "best_step": float(record.best_step),
                "steps": float(record.steps),
            },
        )
        return critic

    def samplers(self, spec: str, steps: int) -> Iterator[tuple[str, Sampler | RefinedSampler]]:
        """The base sampler and every correction of it, critics trained on the way."""
        name = spec.partition(":")[0]
        base = SamplerSpec.parse(spec).build(steps=steps)
        yield "base", base
        place = f"{name}-{steps}"
        critic = self.critic(spec, base, place)
        for method, settings in SETTINGS.items():
            given = {key: dict(value) for key, value in settings.items()}
            if name == "edm" and "guidance" in given:
                given["guidance"] = dict(HEUN)
            if "rejection" in given:  # the budget of the paper: three times the base sampler
                given["rejection"]["max_nfe"] = BUDGET * (base.nfe(self.model.schedule) or base.steps)
            judge = critic
            if self.second and len(given) == 2:
                guided = RefinedSampler(base, critic, guidance=given["guidance"])
                judge = self.critic(f"{spec}+dg", guided, f"{place}-guided")
                yield method, _Both(guided, judge, given, self.labels)
                continue
            yield method, RefinedSampler(base, judge, **given, labels=self.labels, folder=self.work / place / "critic")

    def measure(self, sampler: Any, seed: int, samples: int) -> dict[str, float]:
        """Quality and cost of samples."""
        x, nfe, judged = self.draw(sampler, seed, samples)
        quality = self.quality(x, self.labels)
        return {**quality, "nfe": nfe, "critic": judged}

    def draw(self, sampler: Any, seed: int, samples: int) -> tuple[Tensor, float, float]:
        """(samples, network evaluations per sample, critic evaluations per sample)."""
        indices = torch.arange(samples)
        drawing = Drawing(self.model, sampler, seed, self.labels)
        if isinstance(sampler, RefinedSampler):
            labels = drawing.labels_of(indices)
            condition: dict[str, Any] = {} if labels is None else {"class_labels": labels}
            drawn = sampler.draw(self.model, indices, seed, batch_size=self.batch_size, **condition)
            return drawn.x, drawn.cost.nfe_per_sample, drawn.cost.critic_per_sample
        batches = list(drawing.batches(0, samples, self.batch_size))
        nfe = sum(batch.nfe * len(batch.indices) for batch in batches) / samples
        return torch.cat([batch.x for batch in batches]), nfe, 0.0

    def quality(self, x: Tensor, labels: Sequence[int] | None) -> dict[str, float]:
        """Frechet distance, precision, recall and, for classes that were asked for, accuracy."""
        bounds = self.train.data_range
        some = self.train.batch(torch.linspace(0, len(self.train) - 1, min(REFERENCE, len(self.train))).long())["x"]
        manifolds = precision_recall(x, some, features=self.features, groups=0, data_range=bounds)
        found = {
            "frechet": float(frechet_distance(x, self.statistics, self.features, data_range=bounds)),
            "precision": float(manifolds.precision.value),
            "recall": float(manifolds.recall.value),
        }
        if labels is not None:
            wanted = torch.tensor(labels)[torch.arange(len(x)) % len(labels)]
            found["accuracy"] = float(class_accuracy(x, wanted, self.features, data_range=bounds).value)
        return found

    def cell(self, key: str, measure: Callable[[], dict[str, float]]) -> None:
        """Measures the cell `key` and writes it down, if it is not there yet."""
        if key not in self.cells:
            self.cells[key] = measure()
            print(key, {name: round(value, 4) for name, value in self.cells[key].items()}, flush=True)
            self.save()

    def save(self, **more: Any) -> None:
        """Writes the table."""
        records.write_json(self.out / "table.json", {"cells": self.cells, **more, **records.circumstances()})


class _Both(RefinedSampler):
    """Rejection by one critic around guidance by another."""

    def __init__(
        self, guided: RefinedSampler, judge: Critic, settings: dict[str, Any], labels: tuple[int, ...] | None
    ) -> None:
        super().__init__(guided.inner, judge, guidance=None, rejection=settings["rejection"], labels=labels)
        object.__setattr__(self, "guided", guided)

    def model(self, denoiser: Denoiser) -> Denoiser:
        return self.guided.model(denoiser)  # type: ignore[attr-defined,no-any-return]


def _held_out(experiment: Experiment, samples: int) -> dict[str, float]:
    test: Dataset = experiment.test
    return experiment.quality(test.batch(torch.arange(min(samples, len(test))))["x"], None)


def run(
    name: str, out: Path, work: Path, bases: Sequence[tuple[str, int]], seeds: int, samples: int, **options: Any
) -> dict[str, Any]:
    """Measures the table into `out`; returns what is written to ``table.json``.

    Args:
        name: of the model or its folder.
        bases: base samplers with their numbers of steps, e.g. ("edm", 9).
        seeds, samples: repetitions, and samples in each.
        **options: of :class:`Experiment`.
    """
    experiment = Experiment(name, out, work, **options)
    with in_half_precision(experiment.model, experiment.half):
        experiment.cell("held-out", lambda: _held_out(experiment, samples))
        for spec, steps in bases:
            for method, sampler in experiment.samplers(spec, steps):
                for seed in range(seeds):
                    key = f"{spec} {steps} {method} seed {seed}"
                    experiment.cell(key, lambda: experiment.measure(sampler, seed, samples))  # noqa: B023
    found = summary(experiment.cells, bases, seeds)
    held = claims(found, bases)
    about = {"model": Path(name).name, "bases": [list(base) for base in bases], "seeds": seeds, "samples": samples}
    about |= {"generated": experiment.generated, "updates": experiment.updates}
    about |= {
        "critic_batch": experiment.critic_batch,
        "critic_width": experiment.width,
        "second_critic": experiment.second,
    }
    about |= {
        "precision": "bfloat16 network" if experiment.half else "float32",
        "settings": {**SETTINGS, "Heun": HEUN, "budget": BUDGET},
    }
    experiment.save(**about, summary=found, claims=held, verdict=verdict(held))
    plot(found, bases, experiment.cells["held-out"], out / "refinement.png")
    return records.read_json(out / "table.json")


def main() -> None:
    """The command line of the experiment."""
    parser = argparse.ArgumentParser(
        prog="python -m trueward.reproduce.image_refinement", description=__doc__.split("\n")[0]
    )
    parser.add_argument("model", help="a run folder or the name of a model")
    parser.add_argument("--out", type=Path, required=True, help="folder for table.json and the picture")
    parser.add_argument("--work", type=Path, required=True, help="folder for generated samples and critics")
    parser.add_argument("--bases", default="edm:5,edm:9,ddim:10,ddim:20", help="base samplers as NAME:STEPS")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions")
    parser.add_argument("--samples", type=int, default=1000, help="samples per seed")
    parser.add_argument("--generated", type=int, default=10_000, help="generated samples behind a critic")
    parser.add_argument("--updates", type=int, default=3000, help="updates of a critic, at most")
    parser.add_argument("--critic-batch", type=int, default=256, help="samples in an update of a critic")
    parser.add_argument("--width", type=int, help="channels of the first level of a critic")
    parser.add_argument("--half", action="store_true", help="compute the network in bfloat16")
    parser.add_argument("--second-critic", action="store_true", help="train a critic of guided samples")
    given = parser.parse_args()
    bases = [(name, int(steps)) for name, _, steps in (text.partition(":") for text in given.bases.split(","))]
    result = run(
        given.model, given.out, given.work, bases, given.seeds, given.samples,
        generated=given.generated, updates=given.updates, critic_batch=given.critic_batch, width=given.width, half=given.half, second=given.second_critic,
    )  # fmt: skip
    for method in METHODS:
        for claim, holds in result["claims"].items():
            if claim.startswith(f"{method}:"):
                print("yes" if holds else "NO ", claim)
    print(result["verdict"])


if __name__ == "__main__":
    main()
