"""Fixtures of the sampler tests."""

from __future__ import annotations

import pytest

from trueward.samplers.sampler import _plan


@pytest.fixture
def plant(monkeypatch):
    """``plant(module, name, wrong)`` puts a deliberate error into the code; no plan made with it outlives the test."""

    def put(target, name, wrong):
        monkeypatch.setattr(target, name, wrong)
        _plan.cache_clear()

    yield put
    monkeypatch.undo()
    _plan.cache_clear()
