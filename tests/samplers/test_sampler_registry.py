"""Samplers by name: what the names stand for, budgets, and errors that help."""

from __future__ import annotations

import pytest

import trueward.samplers as room
from trueward.samplers import (
    DPMSolverAdaptive,
    DPMSolverFast,
    DPMSolverMultistep,
    DPMSolverSDE,
    DPMSolverSinglestep,
    Sampler,
    register_sampler,
    registry,
    sampler,
    sampler_names,
)
from trueward.schedules import VPLinear
from trueward.times import UniformLogSNR

BUDGETED = [name for name in sampler_names() if sampler(name).nfe(VPLinear()) is not None]


def test_names_stand_for_the_methods_of_the_papers():
    fast = sampler("dpm-solver", steps=10)
    assert (type(fast), fast.order, fast.algorithm) == (DPMSolverFast, 3, "noise")
    multistep = sampler("dpm-solver++", steps=10)
    assert (type(multistep), multistep.order, multistep.algorithm) == (DPMSolverMultistep, 2, "data")
    third = sampler("dpm-solver++3m", steps=10)
    assert (third.order, third.ms3) == (3, "reference")
    single = sampler("dpm-solver++2s", steps=10)
    assert (type(single), single.order, single.algorithm) == (DPMSolverSinglestep, 2, "data")
    assert isinstance(sampler("dpm-solver++sde"), DPMSolverSDE)
    assert isinstance(sampler("dpm-solver-adaptive"), DPMSolverAdaptive)


def test_defaults_are_safe():
    for name in sampler_names():
        s = sampler(name)
        assert isinstance(s, Sampler)
        if name == "dpm-solver++":
            assert s.grid == UniformLogSNR()
            assert s.order == 2


@pytest.mark.parametrize("name", BUDGETED)
def test_a_budget_is_kept(name):
    for nfe in (6, 11, 12):
        spent = sampler(name, nfe=nfe).nfe(VPLinear())
        assert nfe - 2 <= spent <= nfe


def test_presets_may_be_overridden():
    s = sampler("dpm-solver++3m", steps=9, order=2, grid="uniform", ms3="consistent")
    assert (s.steps, s.order, s.ms3) == (9, 2, "consistent")


def test_a_sampler_passes_through():
    s = DPMSolverMultistep(7)
    assert sampler(s) is s
    with pytest.raises(ValueError, match="sampler already"):
        sampler(s, steps=3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sampler("dpm-solver+++"), "Unknown sampler 'dpm-solver\\+\\+\\+'. Did you mean 'dpm-solver\\+\\+'"),
        (lambda: sampler("dpm-solver++", ordre=3), "Unknown option of dpm-solver\\+\\+ 'ordre'. Did you mean 'order'"),
        (lambda: sampler("ddim", steps=5, nfe=5), "steps or nfe, not both"),
        (lambda: sampler("ddim", nfe=0), "nfe must be a whole number >= 1, got 0"),
        (lambda: sampler("dpm-solver-adaptive", nfe=10), "chooses its own number"),
        (lambda: register_sampler("ddim", DPMSolverFast), "already"),
        (lambda: register_sampler("a,b", DPMSolverFast), "no comma"),
        (lambda: register_sampler("", DPMSolverFast), "not empty"),
    ],
)
def test_errors_help(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_your_own_sampler_gets_a_name(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    register_sampler("mine", DPMSolverMultistep, order=3, ms3="consistent")
    register_sampler("made", lambda steps=4, **options: DPMSolverFast(steps, **options))
    assert sampler("mine", steps=12).ms3 == "consistent"
    assert sampler("made", steps=9).steps == 9
    assert {"mine", "made"} <= set(sampler_names())
    with pytest.raises(ValueError, match="give steps"):
        sampler("made", nfe=5)


def test_the_front_door_names_everything_public():
    assert set(room.__all__) <= set(dir(room))
    for name in room.__all__:
        assert getattr(room, name).__doc__
