"""Samplers written as text."""

import pytest

from trueward.sampler_specs import SamplerSpec, parse_counts, parse_options, parse_samplers, parse_value

NAMES = ["ddim", "edm", "dpm-solver", "dpm-solver++", "dpm-solver++3m"]


def test_values_are_numbers_truths_nothing_or_text() -> None:
    assert [parse_value(text) for text in ("3", "0.5", "1e-3", "true", "False", "none", "karras")] == [
        3,
        0.5,
        1e-3,
        True,
        False,
        None,
        "karras",
    ]


def test_a_list_gives_every_option_to_the_sampler_before_it() -> None:
    specs = parse_samplers("ddim,dpm-solver++:order=3,grid=karras,edm:churn=0.5", NAMES)
    assert [spec.name for spec in specs] == ["ddim", "dpm-solver++", "edm"]
    assert [dict(spec.options) for spec in specs] == [{}, {"order": 3, "grid": "karras"}, {"churn": 0.5}]


@pytest.mark.parametrize(
    ("text", "name", "corrections"),
    [
        ("edm+dg", "edm", ("dg",)),
        ("dpm-solver++", "dpm-solver++", ()),
        ("dpm-solver+dg", "dpm-solver", ("dg",)),
        ("dpm-solver+++dg+diffrs", "dpm-solver++", ("dg", "diffrs")),
        ("dpm-solver++3m", "dpm-solver++3m", ()),
    ],
)
def test_plus_signs_that_belong_to_a_name_are_no_corrections(
    text: str, name: str, corrections: tuple[str, ...]
) -> None:
    spec = SamplerSpec.parse(text, NAMES)
    assert (spec.name, spec.corrections) == (name, corrections)
    assert str(spec) == text


@pytest.mark.parametrize("text", ["ddim", "dpm-solver++:order=3,grid=karras", "edm+dg:churn=0.5,clip=true,t_end=none"])
def test_reading_what_was_written_gives_the_same(text: str) -> None:
    spec = SamplerSpec.parse(text, NAMES)
    assert SamplerSpec.parse(str(spec), NAMES) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dim", "Unknown sampler 'dim'. Did you mean 'ddim'?"),
        ("ddim,,edm", "empty item"),
        ("ddim,ddim", "listed twice"),
        ("ddim:", "ends in ':'"),
        ("ddim:eta", "key=value"),
        ("ddim:eta=", "key=value"),
        ("ddim:eta=1,eta=0", "given twice"),
        ("edm+", "empty correction"),
        ("order=3", "Unknown sampler"),
        (":order=3", "written name or name:option=value"),
    ],
)
def test_malformed_samplers_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        parse_samplers(text, NAMES)


def test_an_option_said_twice_differently_is_an_error() -> None:
    spec = SamplerSpec.parse("edm:churn=0.5", NAMES)
    assert spec.with_options({"churn": 0.5, "grid": "karras"}).options == {"churn": 0.5, "grid": "karras"}
    with pytest.raises(ValueError, match=r"given twice: 0\.5 and 1"):
        spec.with_options({"churn": 1})


def test_dashes_in_keys_are_underscores() -> None:
    assert parse_options(["t-end=0.01"]) == {"t_end": 0.01}


def test_counts_are_sorted_and_each_is_kept_once() -> None:
    assert parse_counts("--steps", "20,5,10,5") == [5, 10, 20]


@pytest.mark.parametrize("text", ["5,,10", "5,ten", "", "0", "-5", "5.5"])
def test_malformed_counts_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="--steps must be whole numbers"):
        parse_counts("--steps", text)


def test_a_value_of_the_wrong_kind_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"ddim|eta"):
        SamplerSpec.parse("ddim:eta=high").build(steps=5)


def test_an_unknown_option_is_named_with_the_closest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'eta'"):
        SamplerSpec.parse("ddim:etta=1").build(steps=5)
