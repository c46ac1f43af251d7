"""Line charts: the places of marks, gaps, error bars and the numbers on the axes."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from trueward.reports.charts import Series, line_chart, marker, number, ticks


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def circles(svg: str) -> list[tuple[float, float]]:
    return [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in parsed(svg).iter("circle")]


def test_equal_ratios_are_equally_far_apart_on_a_logarithmic_axis() -> None:
    (a, _), (b, _), (c, _) = circles(line_chart([Series("s", [5, 10, 20], [1, 2, 3])], "x", "y"))
    assert b - a == pytest.approx(c - b, abs=0.11)


def test_a_larger_value_is_higher() -> None:
    (_, low), (_, high) = circles(line_chart([Series("s", [1, 2], [1.0, 5.0])], "x", "y"))
    assert high < low


def test_values_over_more_than_a_factor_eight_get_a_logarithmic_axis() -> None:
    (_, a), (_, b), (_, c) = circles(line_chart([Series("s", [1, 2, 3], [1.0, 10.0, 100.0])], "x", "y"))
    assert a - b == pytest.approx(b - c, abs=0.11)


def test_a_value_that_is_not_finite_is_a_gap_not_a_line() -> None:
    svg = line_chart([Series("s", [1, 2, 3, 4], [1.0, math.nan, 2.0, 3.0])], "x", "y")
    path = next(p.attrib["d"] for p in parsed(svg).iter("path") if p.attrib["class"] == "line")
    assert path.count("M") == 2
    assert "nan" not in svg


def test_error_bars_reach_as_far_as_the_spread() -> None:
    svg = line_chart([Series("s", [1, 2], [1.0, 2.0], [0.0, 0.5])], "x", "y", y_bounds=(0.0, 3.0))
    (_, one), (_, two) = circles(svg)
    bars = [p.attrib["d"] for p in parsed(svg).iter("path") if p.attrib["class"] == "bar"]
    assert len(bars) == 1
    top, bottom = float(bars[0].split("V")[0].split()[1]), float(bars[0].split("V")[1].split("M")[0])
    assert bottom - top == pytest.approx(one - two, abs=0.2)


def test_names_cannot_break_out_of_the_chart() -> None:
    svg = line_chart([Series("<script>&", [1, 2], [1.0, 2.0])], "a < b", "y")
    assert "<script>" not in svg
    assert any(title.text and "<script>&" in title.text for title in parsed(svg).iter("title"))


def test_nothing_finite_is_said_in_words() -> None:
    assert "No finite values" in line_chart([Series("s", [1], [math.nan])], "x", "y")


def test_one_point_is_drawn() -> None:
    assert len(circles(line_chart([Series("s", [10], [1.0])], "x", "y"))) == 1


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0.3, 4.0, True), (0.9, 1.3, True), (5, 50, True), (0, 1, False), (0.71, 0.93, False)]
)
def test_ticks_are_few_and_inside(low: float, high: float, log: bool) -> None:
    found = ticks(low, high, log)
    assert 2 <= len(found) <= 7
    assert all(low * 0.99 <= value <= high * 1.01 for value in found)
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5, "1234"), (12.345, "12.3"), (0.012345, "0.0123"), (1e-7, "1.00e-07"), (math.nan, "–")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_every_series_has_a_shape_of_its_own() -> None:
    assert len({marker(shape, 0, 0) for shape in range(8)}) == 8
