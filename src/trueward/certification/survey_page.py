"""A survey as a page of documentation (Markdown)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from trueward.certification.breakdowns import STEPS, Breakdown
from trueward.certification.certificate import Cell
from trueward.certification.survey import BUDGETS, LAW_STEPS, Row, Survey

# How schedules are introduced on the page; others stand there with their name alone.
_SCHEDULES: dict[str, str] = {
    "fine-linear": "a table of 20000 training steps, where rounding to one of them hardly matters: the order of the solver itself",
    "ddpm-linear": "the table of DDPM, 1000 training steps",
    "scaled-linear": "the table of latent diffusion, 1000 training steps",
    "ddpm-cosine": "the squared-cosine table, 1000 training steps",
    "edm": "sigma from 80 to 0.002",
    "flow": "straight lines from noise to data",
}


def page(survey: Survey, record: str | None = None) -> str:
    """The page, ending in a newline; `record` is the name of the JSON file beside it, to link to."""
    determined = [row for row in survey.rows if not row.stochastic]
    noisy = [row for row in survey.rows if row.stochastic]
    known = {cell.schedule for row in determined for cell in row.cells}
    schedules = [name for name in _SCHEDULES if name in known] + sorted(known - _SCHEDULES.keys())
    parts = [_introduction(survey, record), _how_to_read()]
    for name in schedules:
        title = name if name not in _SCHEDULES else f"{name}: {_SCHEDULES[name]}"
        parts.append(f"### {title}\n\n{_orders(determined, name)}")
    parts.append(f"## Error at few evaluations\n\n{_errors(determined)}")
    if noisy:
        parts.append(f"## Schedulers that draw noise\n\n{_laws(noisy)}")
    parts.append(f"## Options that break\n\n{_breakdowns(survey)}")
    if survey.left_out:
        reasons = _table(("scheduler", "why"), ((f"`{n}`", why) for n, why in survey.left_out.items()))
        parts.append(f"## Not measured\n\n{reasons}")
    return "\n\n".join(parts) + "\n"


def _introduction(survey: Survey, record: str | None) -> str:
    numbers = "" if record is None else f" [All numbers as JSON]({record})."
    versions = ", ".join(f"{name} {number}" for name, number in survey.versions.items())
    return (
        f"# Schedulers of {survey.library}, measured\n\n"
        "A scheduler is run as a pipeline runs it, with the network replaced by the exact model of a known mixture, and its\n"
        "samples are compared with the exact solution. This page is made by one command and says what was measured, for the\n"
        f"versions named here; nothing on it is about the networks or pipelines of {survey.library}.\n\n"
        f"```bash\n{survey.command}\n```\n\n"
        f"Measured with {versions} in {survey.seconds / 60:.0f} minutes.{numbers}\n"
        "For a verdict on one scheduler with your own options, and the further checks (independence of the batch, threads,\n"
        f"seeds): `trueward certify {survey.library}:NAME --option KEY=VALUE`, see Certify a sampler."
    )


def _how_to_read() -> str:
    return (
        "## Order of convergence\n\n"
        "The order is the slope of the largest error over nine trajectories against the number of network evaluations, on the\n"
        "last three of four or five runs that double from 20 steps. The coefficients of most schedulers are float32, so errors\n"
        "below 1e-5 are not used.\n\n"
        "* **2.0**: the order measured. *Nominal* is what the name or the option `solver_order` stands for; where a grid leaves\n"
        "  a large last step, or near the data, the measured order approaches the nominal one from below.\n"
        "* **(0.96)**: the grid is still coarse on the finest run (a step of more than one half in half-log-SNR), so the slope is\n"
        "  not an order yet.\n"
        "* **stops at 3e-03**: more steps have stopped to help; the number is the smallest error reached. Reasons are timesteps\n"
        "  rounded to training steps, at which the network is asked, or float32 coefficients.\n"
        "* **stops at 2e-02; 0.94 †**: it goes on, with this order, at numbers of steps that divide the training steps.\n"
        "* **NaN** or the name of an error: at the first of the runs (20 steps), or at the number of steps given.\n\n"
        "*NFE* is the number of network evaluations at 20 steps. Only options that differ from the defaults are named."
    )


def _label(row: Row) -> str:
    options = ", ".join(f"{name}={value}" for name, value in row.options.items())
    short = row.name.removesuffix("Scheduler")
    return f"`{short}`" + (f" {options}" if options else "")


def _orders(rows: Sequence[Row], schedule: str) -> str:
    here = [(row, {c.grid: c for c in row.cells if c.schedule == schedule}) for row in rows]
    here = [(row, cells) for row, cells in here if cells]
    grids = list(dict.fromkeys(grid for _, cells in here for grid in cells))
    lines = []
    for row, cells in here:
        nominal = "" if row.nominal is None else f"{row.nominal:g}"
        nfe = "" if row.evaluations is None else str(row.evaluations)
        lines.append((_label(row), nominal, nfe, *(_entry(cells[g]) if g in cells else "" for g in grids)))
    return _table(("scheduler", "nominal", "NFE", *grids), lines)


def _entry(cell: Cell) -> str:
    if cell.stops:
        rest = "" if cell.elsewhere is None else f"; {cell.elsewhere:.2f} †"
        return f"stops at {min(cell.errors):.0e}{rest}"
    if cell.line.startswith("NaN") or "became NaN" in cell.line:
        return f"NaN{_at(cell.line)}"
    if cell.line.startswith("raises "):
        return f"{cell.line.split()[1]}{_at(cell.line)}"
    if cell.order is None:
        return f"error {cell.errors[-1]:.0e}" if cell.errors else "–"
    return f"({cell.order:.2f})" if cell.line.startswith("not asymptotic") else f"{cell.order:.2f}"


def _at(line: str) -> str:
    """ " at 160 steps", unless it is the first number of steps already."""
    words = line.split()
    steps = words[words.index("at") + 1] if "at" in words else "20"
    return "" if steps == "20" else f" at {steps} steps"


def _errors(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        if row.distances:
            first = next((d for d in row.distances if d.schedule != "fine-linear"), row.distances[0])
            spent = [
                "–" if e is None else f"{e:.1e}" + ("" if n == b else f" ({n})")
                for e, n, b in zip(first.errors, first.nfe, BUDGETS)
            ]
            lines.append((_label(row), f"{first.schedule}, {first.grid}", *spent))
    told = (
        "The largest error over the nine trajectories on the scheduler's own grid. The data have scale one. In brackets the\n"
        "evaluations really spent, where the budget cannot be spent exactly."
    )
    return f"{told}\n\n{_table(('scheduler', 'schedule, grid', *(f'{b} evaluations' for b in BUDGETS)), lines)}"


def _laws(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        for cell in row.cells:
            values = [f"{error:.1e} ({nfe})" for error, nfe in zip(cell.errors, cell.nfe)]
            if not cell.errors or not all(map(_is_finite, cell.errors)):
                values = [_entry(cell)]
            filled = [*values, *[""] * len(LAW_STEPS)][: len(LAW_STEPS)]
            lines.append((_label(row), f"{cell.schedule}, {cell.grid}", *filled))
    told = (
        "The Wasserstein-1 distance between the law of 4096 samples and the truth, on a line. Exact samples would show about\n"
        "0.01. In brackets the evaluations spent."
    )
    return f"{told}\n\n{_table(('scheduler', 'schedule, grid', *(f'{n} steps' for n in LAW_STEPS)), lines)}"


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")


def _breakdowns(survey: Survey) -> str:
    first = ", ".join(map(str, STEPS[:-1]))
    told = (
        f"Every combination of table, grid and options of each class at {first} and {STEPS[-1]} steps: {_total(survey)}. A\n"
        "combination *breaks* if it gives NaN, infinite or exploding samples, or raises another error than a refusal\n"
        "(`ValueError`, `NotImplementedError`, `ImportError`). What breaks is described by as few conditions as possible:\n"
        "under each, every combination that runs at all breaks, in this way or another. Some classes are finite everywhere."
    )
    parts, sound = [told], []
    for name, sweep in survey.sweeps.items():
        if not sweep.breakdowns:
            sound.append(f"`{name.removesuffix('Scheduler')}` ({sweep.combinations})")
            continue
        lines = [(_condition(b), _code(b.what), str(b.combinations), _steps(b)) for b in sweep.breakdowns[:_MOST]]
        more = len(sweep.breakdowns) - len(lines)
        rest = f"\n\nand {more} more conditions, in the JSON." if more > 0 else ""
        parts.append(
            f"### {name.removesuffix('Scheduler')}\n\n{sweep.broken} of {sweep.combinations} combinations break "
            f"({sweep.refused} of {sweep.runs} runs are refused).\n\n"
            f"{_table(('where', 'what', 'combinations', 'steps'), lines)}{rest}"
        )
    if sound:
        parts.append(f"### Finite everywhere\n\nWith the number of combinations: {', '.join(sound)}.")
    return "\n\n".join(parts)


_MOST = 25


def _total(survey: Survey) -> str:
    runs = sum(sweep.runs for sweep in survey.sweeps.values())
    return f"{runs} runs of {sum(sweep.combinations for sweep in survey.sweeps.values())} combinations"


def _condition(breakdown: Breakdown) -> str:
    return ", ".join(f"{name}={value}" for name, value in breakdown.where.items()) or "always"


def _steps(breakdown: Breakdown) -> str:
    if breakdown.always == STEPS:
        return "all"
    some = ", ".join(map(str, breakdown.steps))
    if breakdown.always == breakdown.steps:
        return some
    return f"some of {some}"


def _code(text: str) -> str:
    return f"`{text}`" if ": " in text or text.endswith("Error") else text


def _table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(str(entry).replace('|', '/') for entry in row)} |" for row in rows)
