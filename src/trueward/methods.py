"""The twenty published methods of trueward: paper, place in the package, and where each one stands.

Titles, venues and years come from `references.bib`; whether a method is available is read off the package itself, and the
verdict of its last reproduction off the JSON file that `trueward reproduce` leaves in `docs/reproductions`.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from trueward.citations import citations, entries, fields
from trueward.naming import look_up

_PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Method:
    """One published method.

    Attributes:
        name: how the command line calls it.
        purpose: what it does for you, in one line.
        keys: citation keys, the paper first.
        home: the module that holds it, relative to the package, e.g. "samplers.dpm_solver".
    """

    name: str
    purpose: str
    keys: tuple[str, ...]
    home: str

    @property
    def citation(self) -> tuple[str, ...]:
        """The citation keys, so that :func:`trueward.citations` takes methods too."""
        return self.keys

    @property
    def room(self) -> str:
        """The room of the package it lives in."""
        return self.home.partition(".")[0]

    @property
    def title(self) -> str:
        """Title of the paper."""
        return fields(self.keys[0])["title"]

    @property
    def authors(self) -> list[str]:
        """Authors of the paper, "Family, Given"."""
        return fields(self.keys[0])["author"].split(" and ")

    @property
    def venue(self) -> str:
        """Where it was published, in short: the venue's acronym, its name, or "arXiv"."""
        paper = fields(self.keys[0])
        name = paper.get("booktitle") or paper.get("journal") or "arXiv"
        return name[name.rindex("(") + 1 : -1] if name.endswith(")") else name

    @property
    def year(self) -> int:
        """Year of publication."""
        return int(fields(self.keys[0])["year"])

    @property
    def arxiv(self) -> str | None:
        """arXiv identifier, if it has one."""
        return fields(self.keys[0]).get("eprint")

    @property
    def status(self) -> str:
        """ "available" if its module is in this version, else "planned"."""
        path = _PACKAGE.joinpath(*self.home.split("."))
        return "available" if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file() else "planned"

    def last_reproduction(self, folder: str | Path | None = None) -> str | None:
        """Verdict and date of the last reproduction, e.g. "reproduced (2026-01-31)"; None if there is no record.

        Args:
            folder: where `NAME.json` lies; default `docs/reproductions` of a source checkout.

        Raises:
            ValueError: a record that is not JSON or holds no "verdict".
        """
        folder = _PACKAGE.parents[1] / "docs" / "reproductions" if folder is None else Path(folder)
        path = folder / f"{self.name}.json"
        if not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return f"{record['verdict']} ({record['date']})" if "date" in record else str(record["verdict"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not the record of a reproduction: it must be JSON with a 'verdict'."
            ) from error

    @property
    def bibtex(self) -> str:
        """BibTeX of its papers."""
        return "\n\n".join(entries()[key] for key in self.keys)


_METHODS = (
    Method("dpm-solver", "samples in 10-20 network calls, order 1-3", ("lu2022dpmsolver",), "samplers.dpm_solver"),
    Method("dpm-solver++", "the same for guided models", ("lu2022dpmsolverpp",), "samplers.dpm_solver"),
    Method("analytic-dpm", "the optimal reverse variance, no training", ("bao2022analytic",), "covariance.analytic"),
    Method("sn-npr-dpm", "a learned covariance, one per pixel", ("bao2022estimating",), "covariance.learned"),
    Method(
        "discriminator-guidance",
        "a discriminator's gradient corrects a trained score",
        ("kim2023refining",),
        "refinement.discriminator_guidance",
    ),
    Method("diffrs", "rejects bad steps while sampling", ("na2024diffusion",), "refinement.rejection"),
    Method("tiw-dsm", "unbiased models from biased data", ("kim2024training",), "objectives.reweighted"),
    Method("tdsm", "conditional models from noisy labels", ("na2024label",), "objectives.transition_aware"),
    Method("uncsn", "scores that diverge, soft truncation", ("kim2022soft",), "objectives.unbounded"),
    Method("indm", "diffusion in a learned, invertible space", ("kim2022maximum",), "flows.indm"),
    Method("bism", "energy-based latent variable models", ("bao2020bilevel",), "energy.score_matching"),
    Method("vages", "variational estimates of their scores", ("bao2021variational",), "energy.score_matching"),
    Method("boosting", "a strong model from weak ones", ("bao2019boosting",), "energy.boosting"),
    Method("par", "simulation-based inference that keeps modes", ("kim2021posterior",), "simulation"),
    Method("dcevae", "counterfactual fairness", ("kim2021counterfactual",), "causal"),
    Method("mixout", "stable fine-tuning of large models", ("lee2020mixout",), "finetuning.mixout"),
    Method("sgd-vmf", "how random gradients' directions are", ("lee2018directional",), "finetuning.directions"),
    Method("bilevel", "hyperparameters by gradient, with bounds", ("bao2021stability",), "hyperopt"),
    Method(
        "neuron-consistency",
        "what neurons mean under adversarial examples",
        ("dong2017towards", "dong2019towards"),
        "interpretability",
    ),
    Method("network-design", "street and floor layouts by integer programme", ("peng2016computational",), "layout"),
)


def methods() -> list[Method]:
    """All twenty methods, the diffusion methods first."""
    return list(_METHODS)


def method(name: str) -> Method:
    """A method by its name; an unknown one raises a `ValueError` with the closest match."""
    return look_up("method", name.replace("_", "-"), {m.name: m for m in _METHODS})


@functools.cache
def bibtex() -> str:
    """BibTeX of all twenty methods: what `trueward methods --bibtex` prints."""
    return citations(*_METHODS)
