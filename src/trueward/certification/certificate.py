"""The result of an examination: one line for every check, tables of orders and errors, and a verdict."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group

PASS, FAIL, SKIPPED = "pass", "FAIL", "not applicable"
STOPS = "stops converging"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        check: what was checked.
        verdict: pass, FAIL or not applicable.
        line: one sentence: what was found, or why it does not apply.
        details: further numbers, JSON-able.
    """

    check: str
    verdict: str
    line: str
    details: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Cell:
    """Convergence on one grid under one schedule.

    Attributes:
        schedule, grid: names.
        target: what the samples were compared with.
        nfe: evaluations of each run.
        errors: largest error over the test points (deterministic), or distance of the laws (stochastic), data units.
        slopes: order between consecutive runs.
        order: least-squares order over the last runs, or None if there is none.
        verdict, line: as in :class:`Finding`.
        elsewhere: where convergence stops, the order at the numbers of steps that the subject may treat better, if there
            are such and it goes on there.
    """

    schedule: str
    grid: str
    target: str
    nfe: tuple[int, ...]
    errors: tuple[float, ...]
    slopes: tuple[float, ...]
    order: float | None
    verdict: str
    line: str
    elsewhere: float | None = None

    @property
    def stops(self) -> bool:
        """Do more steps stop to help?"""
        return self.line.startswith(STOPS)


@dataclass(frozen=True)
class Distance:
    """Largest error against the exact solution at a budget of evaluations; None where the subject cannot spend it."""

    schedule: str
    grid: str
    nfe: tuple[int | None, ...]
    errors: tuple[float | None, ...]


@dataclass(frozen=True)
class Certificate:
    """What :func:`~trueward.certification.certify` found.

    Attributes:
        subject: name of what was examined.
        claims: the order it claims, or None.
        findings: one for every check.
        cells: convergence on every grid under every schedule.
        budgets: the budgets of evaluations of `distances`.
        distances: errors at these budgets.
        thorough: was the long examination done?
        seconds: how long it took.
        versions: of what was involved.
    """

    subject: str
    claims: float | None
    findings: tuple[Finding, ...]
    cells: tuple[Cell, ...]
    budgets: tuple[int, ...]
    distances: tuple[Distance, ...]
    thorough: bool
    seconds: float
    versions: dict[str, str]

    @property
    def passed(self) -> bool:
        """True if no check failed."""
        return all(finding.verdict != FAIL for finding in self.findings)

    @property
    def verdict(self) -> str:
        """One sentence over all."""
        failed = [finding.check for finding in self.findings if finding.verdict == FAIL]
        if failed:
            return f"{self.subject}: FAIL ({', '.join(failed)})"
        passed = sum(finding.verdict == PASS for finding in self.findings)
        return f"{self.subject}: certified ({passed} checks passed, {len(self.findings) - passed} not applicable)"

    def __getitem__(self, check: str) -> Finding:
        """The finding of a check."""
        from trueward.naming import look_up

        return look_up("check", check, {finding.check: finding for finding in self.findings})

    def __str__(self) -> str:
        width = max(len(finding.check) for finding in self.findings)
        lines = [f"{f.check:<{width}}  {f.verdict:<14}  {f.line}" for f in self.findings]
        return "\n".join([*lines, self.verdict])

    def table(self) -> Group:
        """The certificate for a terminal, to be printed by rich."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        colour = {PASS: "green", FAIL: "bold red", SKIPPED: "dim"}
        checks = Table(title=f"Certificate of {self.subject}", title_justify="left")
        for column in ("check", "verdict", "what was found"):
            checks.add_column(column, overflow="fold")
        for f in self.findings:
            checks.add_row(f.check, Text(f.verdict, style=colour[f.verdict]), Text(f.line))
        parts: list[Any] = [checks]
        if self.cells:
            orders = Table(title="Order of convergence", title_justify="left")
            for column in ("schedule", "grid", "order", "largest error, first to last run", "verdict"):
                orders.add_column(column, overflow="fold")
            for c in self.cells:
                span = f"{c.errors[0]:.1e} → {c.errors[-1]:.1e} at {c.nfe[-1]} evaluations" if c.errors else ""
                order = "" if c.order is None else f"{c.order:.2f}"
                orders.add_row(c.schedule, c.grid, order, span, Text(c.verdict, style=colour[c.verdict]))
            parts.append(orders)
        if self.distances:
            table = Table(title="Largest error against the exact solution", title_justify="left")
            for column in ("schedule", "grid", *(f"{b} evaluations" for b in self.budgets)):
                table.add_column(column, overflow="fold")
            for d in self.distances:
                entries = [
                    "" if e is None else f"{e:.2g}" + ("" if n == b else f" ({n})")
                    for e, n, b in zip(d.errors, d.nfe, self.budgets)
                ]
                table.add_row(d.schedule, d.grid, *entries)
            parts.append(table)
        parts.append(Text(self.verdict, style="bold green" if self.passed else "bold red"))
        return Group(*parts)

    def to_json(self) -> str:
        """Everything, as JSON; numbers that are not finite become null."""
        everything = {**asdict(self), "verdict": self.verdict, "passed": self.passed}
        return json.dumps(_finite(everything), indent=2, default=str, allow_nan=False)

    def save(self, path: str | Path) -> Path:
        """Writes :meth:`to_json` to a file, which appears whole or not at all."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        part.write_text(self.to_json(), encoding="utf-8")
        os.replace(part, path)
        return path
