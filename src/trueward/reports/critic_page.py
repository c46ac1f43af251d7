"""A critic as a page: what it sees at each noise level, how honest its probabilities are, and how it tells the two sets apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trueward import records
from trueward.critics import Calibration, Critic, CriticRecord
from trueward.critics.examples import Part, divided
from trueward.data import Dataset
from trueward.reports.charts import Series, legend_mark, line_chart, number
from trueward.reports.histograms import Sample, histogram
from trueward.reports.page import facts as fact_list
from trueward.reports.page import whole_page

LOG_2 = math.log(2.0)
LEVELS_SHOWN = 4


@torch.no_grad()
def log_ratios_at(
    critic: Critic, part: Part, log_level: float, most: int = 1000, batch_size: int = 250, seed: int = 0
) -> Tensor:
    """The critic's log ratios (rows,) of some rows noised to log(sigma / alpha) = `log_level`."""
    parameter = next(critic.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    rows = torch.linspace(0, len(part) - 1, min(most, len(part)), dtype=torch.float64).long()
    generator = torch.Generator().manual_seed(seed)
    level = torch.tensor(-2.0 * log_level, dtype=torch.float64).clamp(critic._lowest, critic._highest)
    t = critic.schedule.time_of_log_snr(level)
    found = []
    for positions in rows.split(batch_size):
        x, labels = part.read(positions)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x_t = critic.schedule.add_noise(x, t.expand(len(x)), noise).to(device)
        condition: dict[str, Any] = {} if labels is None else {"class_labels": labels.to(device)}
        found.append(critic.log_ratio(x_t, t.expand(len(x)), **condition).double().cpu())
    return torch.cat(found)


def write_report(
    path: str | Path,
    critic: Critic,
    record: CriticRecord,
    real: Dataset,
    generated: Dataset,
    *,
    model: str = "model",
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Writes one self-contained page about a trained critic.

    Args:
        path: the HTML file.
        critic: in evaluation mode.
        record: what :func:`~trueward.critics.train_critic` returned.
        real, generated: the sets it was trained on; the histograms show the part that was held out.
        model, facts: what the page says about them.
    """
    conditional = critic.num_classes is not None
    held = [divided(n, x, record.held_out, conditional, 0)[1] for n, x in (("real", real), ("generated", generated))]
    edges = record.calibration.log_levels
    shown = [edges[0] + (edges[-1] - edges[0]) * (k + 0.5) / (LEVELS_SHOWN + 1) for k in range(LEVELS_SHOWN)]
    first, second = held
    ratios = [(s, log_ratios_at(critic, first, s), log_ratios_at(critic, second, s)) for s in shown]
    records.write_text(path, page(record, ratios, model, dict(facts or {})))
    return Path(path)


def page(record: CriticRecord, ratios: list[tuple[float, Tensor, Tensor]], model: str, facts: Mapping[str, Any]) -> str:
    """The whole page as text; `ratios` are (log level, log ratios of real, of generated samples)."""
    title = f"The critic of {model}"
    calibration = record.calibration
    body = [
        f"<header><h1>{escape(title)}</h1>{_finding(record)}</header>",
        _by_level(calibration),
        _histograms(ratios),
        _reliability(calibration),
        _training(record),
        _making(record, facts),
    ]
    return whole_page(title, "\n".join(body))


def _finding(record: CriticRecord) -> str:
    c = record.calibration
    best = max(range(len(c.accuracy)), key=lambda k: c.accuracy[k] if math.isfinite(c.accuracy[k]) else -1.0)
    text = (
        f"On held-out samples it tells real from generated data best near sigma/alpha = {number(c.levels[best])}, with "
        f"{c.accuracy[best]:.0%} right. "
    )
    if c.accuracy[best] < 0.53:
        text += "That is hardly better than a coin: to this critic the model is as good as the data."
    elif c.accuracy[best] > 0.97:
        text += (
            "Nearly perfect separation often means a difference of storage (rounding, resizing, range) and not of the "
            "model: look at that first."
        )
    else:
        text += "Where it sees a difference, guidance and rejection have something to correct."
    over = record.history[-1]["held_out"] - min(h["held_out"] for h in record.history)
    if over > 0.02 and record.steps > record.best_step:
        text += (
            f" From update {record.best_step} on the held-out loss rose while the training loss fell: it had begun to "
            "memorise, and those weights were not kept."
        )
    return f'<p class="lead">{escape(text)}</p>'


def _card(title: str, note: str, chart: str) -> str:
    note = f' <span class="note">{escape(note)}</span>' if note else ""
    return f'<div class="card"><h3>{escape(title)}{note}</h3>{chart}</div>'


def _by_level(c: Calibration) -> str:
    accuracy = line_chart(
        [Series("accuracy", c.levels, c.accuracy)],
        "sigma / alpha",
        "accuracy",
        log_y=False,
        y_bounds=(min(0.45, *(a for a in c.accuracy if math.isfinite(a))), 1.0),
        floor=(0.5, "a coin"),
    )
    entropy = line_chart(
        [Series("cross-entropy", c.levels, c.cross_entropy, colour=1)],
        "sigma / alpha",
        "cross-entropy, nats",
        log_y=False,
        floor=(LOG_2, "log 2: no difference seen"),
    )
    return (
        '<section><h2>What it sees</h2><p class="note">Held-out samples, real and generated alike. Noise hides the difference: '
        "at the right end of both charts the critic must know nothing.</p>"
        f'<div class="cards">{_card("Accuracy", "", accuracy)}{_card("Cross-entropy", "lower is better", entropy)}</div></section>'
    )


def _histograms(ratios: list[tuple[float, Tensor, Tensor]]) -> str:
    cards = []
    for level, real, generated in ratios:
        samples = [Sample("real", real.numpy(), 0), Sample("generated", generated.numpy(), 1)]
        chart = histogram(samples, "log ratio, real over generated", line=0.0)
        gap = float(real.mean() - generated.mean())
        cards.append(_card(f"sigma/alpha = {number(math.exp(level))}", f"means differ by {number(gap)} nats", chart))
    legend = "".join(f"<li>{legend_mark(k)}<span>{name}</span></li>" for k, name in enumerate(("real", "generated")))
    return (
        '<section><h2>Log ratios of real and generated samples</h2><p class="note">Right of the line the critic says real. '
        "Held-out samples.</p>"
        f'<ul class="legend">{legend}</ul><div class="cards">{"".join(cards)}</div></section>'
    )


def _reliability(c: Calibration) -> str:
    bins = len(c.accuracy)
    cards = []
    for k in [round(i * (bins - 1) / 3) for i in range(4)]:
        rows = [(p, o) for p, o, n in zip(c.predicted[k], c.observed[k], c.count[k]) if n >= 20]
        series = [Series("perfect", [0.0, 1.0], [0.0, 1.0], colour=7)]
        if rows:
            series.append(Series("this critic", [p for p, _ in rows], [o for _, o in rows], colour=0))  # above
        chart = line_chart(
            series, "predicted probability of being real", "share that was real", log_x=False, log_y=False,
            y_bounds=(-0.02, 1.02), x_ticks=[0, 0.25, 0.5, 0.75, 1],
        )  # fmt: skip
        cards.append(_card(f"sigma/alpha near {number(c.levels[k])}", f"{sum(c.count[k])} samples", chart))
    names = ((0, "this critic"), (7, "honest"))
    legend = "".join(f"<li>{legend_mark(colour)}<span>{name}</span></li>" for colour, name in names)
    return (
        '<section><h2>Are its probabilities honest?</h2><p class="note">On the diagonal, of the samples it gives 70 % to be real, '
        "70 % are. Steps with fewer than 20 samples are left out.</p>"
        f'<ul class="legend">{legend}</ul><div class="cards">{"".join(cards)}</div></section>'
    )


def _training(record: CriticRecord) -> str:
    steps = [h["step"] for h in record.history]
    chart = line_chart(
        [
            Series("training", steps, [h["training"] for h in record.history], colour=2),
            Series("held out", steps, [h["held_out"] for h in record.history], colour=0),
        ],
        "updates",
        "cross-entropy, nats",
        log_x=False,
        log_y=False,
        floor=(LOG_2, "log 2"),
    )
    legend = "".join(
        f"<li>{legend_mark(colour)}<span>{name}</span></li>" for colour, name in ((2, "training"), (0, "held out"))
    )
    return (
        f'<section><h2>Training</h2><p class="note">{record.real} real and {record.generated} generated samples, '
        f"{record.held_out:.0%} of them held out; the weights of update {record.best_step} of {record.steps} are kept.</p>"
        f'<ul class="legend">{legend}</ul><div class="cards" style="max-width:570px">{_card("Cross-entropy over all noise levels", "", chart)}</div></section>'
    )


def _making(record: CriticRecord, facts: Mapping[str, Any]) -> str:
    about = {**facts, **record.settings, **records.circumstances()}
    command = about.pop("command", None)
    entries = {
        str(key).replace("_", " "): ", ".join(f"{k} {v}" for k, v in value.items())
        if isinstance(value, dict)
        else f"{value}"
        for key, value in about.items()
        if value is not None
    }
    text = "<section><h2>How this was made</h2>"
    if command:
        text += f"<pre><code>{escape(str(command))}</code></pre>"
    return text + f'<div class="card">{fact_list(entries)}</div></section>'
