"""Diffusion rejection sampling as a page: what was rejected at which noise level, where it went, and what that cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueward import records
from trueward.critics.examples import Part
from trueward.data import Dataset
from trueward.drawing import Drawing
from trueward.refinement import Constants, Cost, RefinedSampler
from trueward.reports.charts import Series, legend_mark, line_chart, number
from trueward.reports.critic_page import log_ratios_at
from trueward.reports.histograms import Sample, heat_map, histogram
from trueward.reports.page import facts, whole_page
from trueward.reports.witness import Witness, figure, watch
from trueward.shards import ShardFolder

WITNESSES = 128


@dataclass(frozen=True)
class Account:
    """What a finished call of `sample` noted.

    Attributes:
        cost: of all samples.
        nfe_kept: (n,) network evaluations on each sample's own path.
    """

    cost: Cost
    nfe_kept: Tensor


def account_of(out: str | Path, n: int) -> Account | None:
    """The account beside what `sample` wrote: a folder of shards, or the JSON of one file; None while it is not finished."""
    out = Path(out)
    if ShardFolder.is_one(out):
        folder = ShardFolder(out)
        if not folder.record.get("complete") or folder.record["n"] < n:
            return None
        return Account(folder.cost(), torch.cat([shard["nfe"] for shard in folder]))
    record = records.read_json(out.with_suffix(".json"))
    return Account(Cost(**record["cost"]), torch.tensor(record["nfe_kept"]))


def write_report(
    path: str | Path,
    drawing: Drawing,
    account: Account,
    real: Dataset | None = None,
    *,
    batch_size: int = Drawing.default_batch,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Writes one self-contained page about samples of rejection.

    The first samples are drawn again under observation, for the pictures and the log ratios, which no record holds.

    Args:
        path: the HTML file.
        drawing: what was drawn; its sampler is a :class:`~trueward.refinement.RefinedSampler` with rejection.
        account: what it cost, see :func:`account_of`.
        real: real samples to compare the log ratios with; without them the page shows those of the samples alone.
        about: what the page says about the model and the sampler.
    """
    if not isinstance(drawing.sampler, RefinedSampler) or drawing.sampler.rejection is None:
        raise ValueError("A report about rejection needs samples of rejection.")
    sampler = drawing.refined
    witness = watch(drawing, min(WITNESSES, len(account.nfe_kept)), batch_size)
    levels = sampler.chain(drawing.model).noise_levels
    constants = sampler.rule(drawing.model).constants
    ratios = _ratios(sampler, witness, real, levels)
    base = sampler.inner.nfe(drawing.denoiser.schedule) or 0
    name = str((about or {}).get("model", "model"))
    title = f"{name}: what rejection did"
    body = [
        f"<header><h1>{escape(title)}</h1>{_finding(account, base)}</header>",
        _acceptance(account.cost, levels, constants),
        _work(account, base),
        _pictures(witness, levels, drawing.denoiser.data_range),
        _histograms(ratios),
        _making(about or {}, account, witness),
    ]
    records.write_text(path, whole_page(title, "\n".join(part for part in body if part)))
    return Path(path)


def _finding(account: Account, base: int) -> str:
    cost = account.cost
    tested = int(np.array(cost.tested[0]).sum())
    share = 1.0 - np.array(cost.accepted[0]).sum() / max(1, tested)
    ratio = cost.nfe_per_sample / base if base else math.nan
    compared = f"{ratio:.3g} times" if ratio >= 2.0 else f"{ratio - 1.0:+.0%} over"
    untouched = float((account.nfe_kept == base).double().mean()) if base else math.nan
    tiles = [
        (
            f"{cost.nfe_per_sample:.4g}",
            f"network evaluations per sample, {compared} the {base} of the plain sampler",
        ),
        (f"{cost.critic_per_sample:.4g}", "judgements of the critic per sample"),
        (f"{share:.1%}", "of all steps were rejected"),
        (f"{untouched:.0%}", "of the samples cost no more than the plain sampler"),
    ]
    if cost.restarts:
        tiles.append((f"{cost.restarts}", "samples given up and started anew"))
    cards = "".join(
        f'<div class="card tile"><p class="winner"><span>{value}</span></p><p class="note">{escape(text)}</p></div>'
        for value, text in tiles
    )
    return (
        '<p class="lead">After every step the critic compares a sample with its parent. A step that makes it look less real '
        "may be taken back: the sample climbs to more noise and comes down again.</p>"
        f'<div class="tiles">{cards}</div>'
    )


def _at(levels: list[float]) -> list[float]:
    """Places on a logarithmic axis; the data themselves stand half a decade left of the last noise level."""
    least = min((level for level in levels if level > 0), default=1.0)
    return [level if level > 0 else least / math.sqrt(10.0) for level in levels]


def _acceptance(cost: Cost, levels: list[float], constants: Constants) -> str:
    places = _at(levels)
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = np.array(cost.accepted, dtype=float) / np.array(cost.tested, dtype=float)
    series = [
        Series(name, places, rates[kind].tolist(), colour=kind)
        for kind, name in enumerate(("after a step", "after a climb"))
    ]
    least = float(np.nanmin(rates))
    chart = line_chart(series, "sigma / alpha", "share accepted", log_y=False, y_bounds=(min(0.5, least - 0.05), 1.02))
    transition = constants.log_m_transition.tolist()
    strictness = [
        Series("log M, after a step", places[1:], transition[1:], colour=0),
        Series("log M', after a climb", places, constants.log_m_marginal.tolist(), colour=1),
    ]
    strict = line_chart(strictness, "sigma / alpha", "constant, nats", log_y=False)
    names = ("test of a step against its parent", "test of a noised sample, and of the prior")
    legend = "".join(f"<li>{legend_mark(k)}<span>{name}</span></li>" for k, name in enumerate(names))
    return (
        "<section><h2>Where samples were rejected</h2>"
        '<p class="note">Sampling runs from right to left; the leftmost point is the finished sample, without noise.</p>'
        f'<ul class="legend">{legend}</ul><div class="cards">'
        f'<div class="card"><h3>Acceptance</h3>{chart}</div>'
        f'<div class="card"><h3>What a test asks for <span class="note">larger is stricter</span></h3>{strict}</div></div></section>'
    )


def _work(account: Account, base: int) -> str:
    values = account.nfe_kept.double().numpy()
    chart = histogram(
        [Sample("samples", values)],
        "network evaluations of a sample",
        whole=True,
        bounds=(min(base, float(values.min())), float(np.quantile(values, 0.995))),
        line=float(base),
    )
    moves = heat_map(np.array(account.cost.moves, dtype=float), "to level", "rejected at level", "moves")
    quantiles = [f"{q:.0%}: {np.quantile(values, q):.0f}" for q in (0.5, 0.9, 0.99)]
    return (
        '<section><h2>What it cost</h2><p class="note">Levels are numbered from the noise (0) to the finished sample. '
        f"Evaluations on a sample's own path, quantiles: {', '.join(quantiles)}; the most: {values.max():.0f}.</p>"
        '<div class="cards">'
        f'<div class="card"><h3>Work per sample <span class="note">line: the plain sampler</span></h3>{chart}</div>'
        f'<div class="card"><h3>Moves up <span class="note">the stronger, the more often; logarithmic</span></h3>{moves}</div>'
        "</div></section>"
    )


def _pictures(witness: Witness, levels: list[float], data_range: tuple[float, float] | None) -> str:
    rows = []
    for level in witness.shown:
        pair = []
        for passed in (False, True):
            shown = figure(witness, level, passed, data_range)
            if shown is None:
                continue
            count, picture = shown
            word = "accepted" if passed else "rejected"
            pair.append(f"<figure>{picture}<figcaption>{word} · {count} of them</figcaption></figure>")
        if len(pair) == 2:
            at = "the finished sample" if levels[level] == 0 else f"sigma/alpha {number(levels[level])}"
            rows.append(f'<div class="name"><span>level {level}</span><br><small>{at}</small></div>{"".join(pair)}')
    if not rows:
        return ""
    columns = "var(--names) repeat(2,minmax(var(--tile),1fr))"  # two levels in a row
    grid = f"grid-template-columns:{columns} {columns};--names:100px;min-width:760px"
    return (
        "<section><h2>Rejected and accepted</h2>"
        '<p class="note">What the model makes of a sample (its expected clean picture) when it was judged after a step: left, the '
        "least real of those that were sent back; right, as many of those that passed, at random.</p>"
        f'<div class="card scroll"><div class="pictures" style="{grid}">{"".join(rows)}</div></div></section>'
    )


def _ratios(
    sampler: RefinedSampler, witness: Witness, real: Dataset | None, levels: list[float]
) -> list[tuple[float, dict[str, Tensor]]]:
    """(log level, log ratios by set) at three levels where there is something to see."""
    conditional = sampler.critic.num_classes is not None and witness.labels is not None
    labels = witness.labels if conditional else None
    sets: dict[str, Any] = {} if real is None else {"real": real}
    for name, x in (("plain sampler", witness.plain), ("refined", witness.x)):
        sets[name] = Dataset(x.float(), labels, num_classes=sampler.critic.num_classes if conditional else None)
    noisy = [level for level in levels if level > 0]
    low, high = math.log(max(min(noisy), 0.02)), math.log(min(max(noisy), 3.0))
    shown = [low + (high - low) * k / 2 for k in range(3)]
    parts = {name: Part(x, torch.arange(len(x))) for name, x in sets.items()}
    return [(s, {name: log_ratios_at(sampler.critic, part, s) for name, part in parts.items()}) for s in shown]


def _histograms(ratios: list[tuple[float, dict[str, Tensor]]]) -> str:
    names = list(ratios[0][1])
    colours = {"real": 0, "plain sampler": 1, "refined": 2}
    cards = []
    for level, found in ratios:
        samples = [Sample(name, found[name].numpy(), colours[name]) for name in names]
        chart = histogram(samples, "log ratio, real over generated", line=0.0)
        means = ", ".join(f"{name} {number(float(found[name].mean()))}" for name in names)
        cards.append(
            f'<div class="card"><h3>sigma/alpha = {number(math.exp(level))}</h3>{chart}<p class="note">means: {escape(means)}</p></div>'
        )
    legend = "".join(f"<li>{legend_mark(colours[name])}<span>{name}</span></li>" for name in names)
    missing = "" if "real" in names else " There were no real samples to show beside them: name some with --data."
    return (
        '<section><h2>What the critic says of the results</h2><p class="note">Finished samples, noised to three levels. Rejection '
        f"should move the samples of the plain sampler towards the real ones; it is judged by its own judge here.{missing}</p>"
        f'<ul class="legend">{legend}</ul><div class="cards">{"".join(cards)}</div></section>'
    )


def _making(about: Mapping[str, Any], account: Account, witness: Witness) -> str:
    said = {**about, "samples": len(account.nfe_kept), "watched again": len(witness.x), **account.cost.summary()}
    said |= records.circumstances()
    command = said.pop("command", None)
    entries = {
        str(k).replace("_", " "): ", ".join(f"{a} {b}" for a, b in v.items())
        if isinstance(v, dict)
        else f"{v:.5g}"
        if isinstance(v, float)
        else str(v)
        for k, v in said.items()
        if v is not None
    }
    text = "<section><h2>How this was made</h2>"
    if command:
        text += f"<pre><code>{escape(str(command))}</code></pre>"
    return text + f'<div class="card">{facts(entries)}</div></section>'
