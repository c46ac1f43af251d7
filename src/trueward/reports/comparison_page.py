"""A comparison of samplers as a page: the finding, pictures from the same noise, curves, a table, and how it was made."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import numpy as np

from trueward.reports.charts import Series, legend_mark, line_chart, number
from trueward.reports.comparison import Comparison, Quality, Row, value_and_spread
from trueward.reports.page import facts, whole_page
from trueward.reports.pictures import data_uri, scatter, tiles

_ABOUT_CRITICS = (
    "Evaluations are all that were made per returned sample, abandoned paths of rejection included, so a row may exceed its "
    "budget: compare it with the rows of other samplers at its own number (the curves do). Judgements of the critic are counted "
    "beside them. "
)


def page(comparison: Comparison) -> str:
    """The whole page as text."""
    about = comparison.about
    how = "compared" if _overspent(comparison) else "at equal cost"
    title = f"{about.get('model', 'model')}: {len(comparison.samplers)} samplers {how}"
    return whole_page(
        title,
        "\n".join(
            [
                f"<header><h1>{escape(title)}</h1>{_finding(comparison)}</header>",
                _pictures(comparison),
                _curves(comparison),
                _table(comparison),
                _making(comparison),
            ]
        ),
    )


def _overspent(c: Comparison) -> bool:
    """Did a sampler spend more than its budget, as rejection may?"""
    return any(row.nfe > row.budget for row in c.rows)


def _finding(c: Comparison) -> str:
    """Who comes closest to the data at each budget, and which samplers cannot be told from the winner."""
    quality = c.qualities[0]
    cards = []
    for budget in c.budgets:
        row = c.best(budget)
        if row is None:
            continue
        others = ", ".join(
            r.sampler
            for r in c.rows
            if r.budget == budget and r.nfe <= budget and r != row and not told_apart(r, row, quality.name)
        )
        rest = f'<p class="note">not told apart: {escape(others)}</p>' if others else ""
        cards.append(
            f'<div class="card tile"><p class="note">{budget} evaluations</p>'
            f'<p class="winner">{legend_mark(c.samplers.index(row.sampler))}{_breakable(row.sampler)}</p>'
            f"<p>{_with_spread(row, quality.name)}</p>{rest}</div>"
        )
    if not cards:
        return '<p class="lead">No sampler gave finite samples.</p>'
    word = "lowest" if quality.better == "lower" else "highest"
    text = f"The {word} {escape(quality.title)} at each number of network evaluations."
    if quality.name in c.floor:
        floor = c.floor[quality.name]
        scores = [r.metrics[quality.name] for r in c.rows if math.isfinite(r.metrics.get(quality.name, math.nan))]
        beaten = min(scores) < floor if quality.better == "lower" else max(scores) > floor
        text += f" Held-out data in place of samples score {number(floor)}"
        text += (
            "; samples that come nearer to the reference than that may repeat what the model was trained on."
            if beaten
            else ": no model is expected to do better."
        )
    return f'<p class="lead">{text}</p><div class="tiles">{"".join(cards)}</div>'


def told_apart(a: Row, b: Row, quality: str) -> bool:
    """Do two rows differ by more than twice the standard error of the difference of their means? Without seeds: always."""
    difference = abs(a.metrics.get(quality, math.nan) - b.metrics.get(quality, math.nan))
    error = math.sqrt((a.spread.get(quality, 0.0) ** 2 / a.seeds) + (b.spread.get(quality, 0.0) ** 2 / b.seeds))
    return not difference <= 2.0 * error if error > 0 else True


def _with_spread(row: Row, quality: str) -> str:
    """A value and the spread between seeds, as HTML."""
    text, spread = value_and_spread(row, quality)
    return text if spread is None else f"{text} <small>± {spread}</small>"


def _legend(c: Comparison) -> str:
    items = "".join(f"<li>{legend_mark(k)}<span>{escape(name)}</span></li>" for k, name in enumerate(c.samplers))
    return f'<ul class="legend" aria-label="Samplers">{items}</ul>'


def _pictures(c: Comparison) -> str:
    if not c.pictures:
        return ""
    columns = len(c.budgets) + (c.data is not None)
    cells = ['<div class="head name"></div>']
    cells += [f'<div class="head">{budget} evaluations</div>' for budget in c.budgets]
    cells += ['<div class="head">data</div>'] if c.data is not None else []
    rows = {(row.sampler, row.budget): row for row in c.rows}
    quality = c.qualities[0]
    limits = _limits(c)
    for k, sampler in enumerate(c.samplers):
        cells.append(f'<div class="name">{legend_mark(k)}{_breakable(sampler)}</div>')
        for budget in c.budgets:
            picture, row = c.pictures.get((sampler, budget)), rows.get((sampler, budget))
            if picture is None or row is None:
                cells.append('<div class="note">no finite samples</div>' if row is not None else "<div></div>")
                continue
            caption = f"{escape(quality.title)} {number(row.metrics.get(quality.name, math.nan))}"
            if row.nfe != budget:
                caption += f" · {row.nfe:.4g} made"
            alt = f"{len(picture)} samples of {sampler} with {row.nfe:.4g} network evaluations"
            cells.append(_figure(picture, alt, caption, limits))
        if c.data is not None:
            cells.append(_figure(c.data, "samples of the data", "", limits) if k == 0 else "<div></div>")
    grid = f"grid-template-columns:var(--names) repeat({columns},minmax(var(--tile),1fr));min-width:calc(var(--names) + {columns}*(var(--tile) + 14px))"
    note = "Every sampler starts from the same noise: equal places show what the solver changes, nothing else."
    if _overspent(c):
        note += " Rejection goes back to more noise, and sometimes begins anew; what spent more than allowed does not compete above."
    return (
        "<section><h2>The same noise, other samplers</h2>"
        f'<p class="note">{note}</p>'
        f'<div class="card scroll"><div class="pictures" style="{grid}">{"".join(cells)}</div></div></section>'
    )


def _breakable(name: str) -> str:
    """A name that may be broken after its punctuation."""
    text = escape(name)
    for sign in (":", ",", "="):
        text = text.replace(sign, sign + "<wbr>")
    return f"<span>{text}</span>"


def _figure(picture: np.ndarray, alt: str, caption: str, limits: tuple[float, float, float, float]) -> str:
    if picture.ndim == 2:
        shown = scatter(picture, limits)
    else:
        sheet = tiles(picture, columns=math.ceil(math.sqrt(len(picture))), gap=max(1, picture.shape[1] // 14))
        height, width = sheet.shape[:2]
        shown = f'<img src="{data_uri(sheet)}" alt="{escape(alt)}" width="{width}" height="{height}">'
    return f"<figure>{shown}" + (f"<figcaption>{caption}</figcaption>" if caption else "") + "</figure>"


def _limits(c: Comparison) -> tuple[float, float, float, float]:
    """The part of the plane that the data fill, with a margin."""
    points = c.data if c.data is not None and c.data.ndim == 2 else next(iter(c.pictures.values()))
    if points.ndim != 2:
        return (0.0, 1.0, 0.0, 1.0)
    (x_low, y_low), (x_high, y_high) = points.min(0), points.max(0)
    middle_x, middle_y, half = (
        (x_low + x_high) / 2,
        (y_low + y_high) / 2,
        0.6 * max(x_high - x_low, y_high - y_low, 1e-6),
    )
    return (middle_x - half, middle_x + half, middle_y - half, middle_y + half)


def _series(c: Comparison, quality: str | None) -> list[Series]:
    series = []
    for k, name in enumerate(c.samplers):
        rows = [row for row in c.rows if row.sampler == name]
        if quality is None:
            series.append(Series(name, [r.nfe for r in rows], [1000 * r.seconds for r in rows], colour=k))
            continue
        y = [row.metrics.get(quality, math.nan) for row in rows]
        spread = [row.spread.get(quality, math.nan) for row in rows]
        series.append(Series(name, [row.nfe for row in rows], y, spread, colour=k))
    return series


def _curves(c: Comparison) -> str:
    cards = []
    for quality in c.qualities:
        floor = (c.floor[quality.name], "held-out data") if quality.name in c.floor else None
        chart = line_chart(
            _series(c, quality.name),
            "network evaluations",
            quality.title,
            x_ticks=c.budgets,
            floor=floor,
            log_y=None if quality.better == "lower" else False,
        )
        cards.append(
            f'<div class="card"><h3>{escape(quality.title)} <span class="note">{quality.better} is better</span></h3>{chart}</div>'
        )
    chart = line_chart(_series(c, None), "network evaluations", "milliseconds per sample", x_ticks=c.budgets)
    cards.append(
        f'<div class="card"><h3>Wall time per sample <span class="note">milliseconds, fastest seed</span></h3>{chart}</div>'
    )
    seeds = len({cell.seed for cell in c.cells})
    bars = f" Bars: standard deviation over {seeds} seeds." if seeds > 1 else " One seed, so no error bars."
    return (
        f'<section><h2>Quality against cost</h2><p class="note">Horizontal axes are logarithmic.{bars}</p>{_legend(c)}'
        f'<div class="cards">{"".join(cards)}</div></section>'
    )


def _table(c: Comparison) -> str:
    critic = ["of the critic"] if c.asks_critic else []
    head = ["sampler", "evaluations", *critic, *(q.title for q in c.qualities), "ms per sample"]
    body = []
    best = {
        (b, q.name): q.best([r.metrics.get(q.name, math.nan) for r in c.rows if r.budget == b])
        for b in c.budgets
        for q in c.qualities
    }
    for budget in c.budgets:
        for position, row in enumerate(r for r in c.rows if r.budget == budget):
            made = f"{budget}" if row.nfe == budget else f"{_made(row)}"
            if c.asks_critic:
                made += f"</td><td>{number(row.critic) if row.critic else '–'}"
            values = "".join(_value(row, q, best[budget, q.name]) for q in c.qualities)
            first = ' class="first"' if position == 0 and budget != c.budgets[0] else ""
            body.append(
                f"<tr{first}><td>{escape(row.sampler)}</td><td>{made}</td>{values}<td>{number(1000 * row.seconds)}</td></tr>"
            )
    titles = "".join(f"<th>{escape(h)}</th>" for h in head)
    return (
        '<section><h2>All numbers</h2><p class="note">The best of each budget is marked. '
        + (_ABOUT_CRITICS if c.asks_critic else "")
        + "The same numbers are in the CSV and JSON files beside this page.</p>"
        f'<div class="card scroll"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(body)}</tbody></table></div></section>'
    )


def _made(row: Row) -> str:
    """Evaluations that were made of a budget, or beyond it."""
    return f"{row.nfe:.4g} <small>{'of' if row.nfe < row.budget else 'for'} {row.budget}</small>"


def _value(row: Row, quality: Quality, best: float) -> str:
    mark = ' class="best"' if row.metrics.get(quality.name) == best else ""
    return f"<td{mark}>{_with_spread(row, quality.name)}</td>"


def _making(c: Comparison) -> str:
    about = dict(c.about)
    command = about.pop("command", None)
    entries = {str(key).replace("_", " "): _said(value) for key, value in about.items() if value not in (None, {}, [])}
    text = "<section><h2>How this was made</h2>"
    if command:
        text += f"<pre><code>{escape(str(command))}</code></pre>"
    return text + f'<div class="card">{facts(entries)}</div></section>'


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_said(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_said(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
