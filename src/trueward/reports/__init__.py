"""Measurements as reports: samplers of one model compared at equal cost, as one self-contained page, CSV and JSON.

:func:`compare` draws, measures and returns a :class:`Comparison`; ``comparison.write("report.html")`` writes it.
"""

from trueward.reports.compare import CellStep, compare
from trueward.reports.comparison import Cell, Comparison, Quality, Row
from trueward.reports.judge import Judge
from trueward.reports.reference import Reference, reference_of

__all__ = ["Cell", "CellStep", "Comparison", "Judge", "Quality", "Reference", "Row", "compare", "reference_of"]
