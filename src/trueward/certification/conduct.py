r"""Does a sampler keep to itself? Rows, calls, threads, seeds and inputs that must not influence one another.

Every check runs the subject on an exact truth and compares tensors; "the same" means to 1e-9 in float64, which rounding in
another order stays far below and every real dependence exceeds.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueward.certification.certificate import FAIL, PASS, SKIPPED, Finding
from trueward.certification.subject import Setting, Subject, same_start
from trueward.certification.witness import TakingTurns, Trainable
from trueward.schedules import Schedule
from trueward.truth import GaussianMixture

_SAME = 1e-9
_PLANE = GaussianMixture(
    [0.3, 0.7], [[-0.8, 0.4], [0.5, -0.2]], [[[0.04, 0.01], [0.01, 0.06]], [[0.09, 0.0], [0.0, 0.05]]]
)
_OTHER = GaussianMixture([0.5, 0.5], [[1.5, 1.0], [-1.0, 2.0]], 0.2)
_IMAGE = GaussianMixture([0.3, 0.7], torch.linspace(-0.8, 0.8, 32, dtype=torch.float64).view(2, 1, 4, 4), [0.05, 0.1])


@dataclass(frozen=True)
class Bench:
    """A subject, a schedule and a number of steps to examine it with."""

    subject: Subject
    schedule: Schedule
    steps: int = 8

    def run(
        self,
        x_T: Tensor,
        *,
        truth: GaussianMixture = _PLANE,
        seed: int = 5,
        indices: Sequence[int] | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Samples from x_T."""
        model = truth.denoiser(self.schedule, covariance="diagonal")
        n = self.steps if steps is None else steps
        return self.subject.run(model, self.schedule, x_T, n, seed=seed, indices=indices, setting=Setting()).x

    @property
    def x_T(self) -> Tensor:
        """64 starts in the plane."""
        return same_start(self.schedule, (2,), 64)


def _gap(a: Tensor, b: Tensor) -> float:
    """Largest difference; infinite if the shapes differ or one of them is not finite."""
    if a.shape != b.shape:
        return float("inf")
    gap = (a.to(torch.float64) - b.to(torch.float64)).abs().max().item()
    return gap if gap == gap else float("inf")


def is_stochastic(bench: Bench) -> bool:
    """What the subject says, else whether two seeds (or two calls) lead to different samples."""
    known = bench.subject.stochastic
    if known is not None:
        return known
    first, other = (bench.run(bench.x_T[:4], seed=seed) for seed in (1, 2))
    if not bool(first.isfinite().all()):
        return False  # NaN differs from itself; that it is NaN is found elsewhere
    return _gap(first, other) > _SAME


def batch_independence(bench: Bench) -> Finding:
    """Row i of a batch of 64 is the same alone, among seven, and when all other rows are changed."""
    x_T = bench.x_T
    whole = bench.run(x_T, indices=range(64))
    worst, where = 0.0, ""
    for i in (0, 17, 63):
        alone = bench.run(x_T[i : i + 1], indices=[i])
        rows = [i, *(j for j in (3, 9, 21, 33, 45, 58))]
        seven = bench.run(x_T[rows], indices=rows)
        changed = x_T.roll(1, 0) * -0.7
        changed[i] = x_T[i]
        others = bench.run(changed, indices=range(64))
        for name, row in (("alone", alone[0]), ("in a batch of 7", seven[0]), ("beside other rows", others[i])):
            gap = _gap(row, whole[i])
            if gap > worst:
                worst, where = gap, f"row {i} {name} differs by {gap:.1e} from the same row in a batch of 64"
    check = "independence of the batch"
    if worst > _SAME:
        return Finding(check, FAIL, where)
    return Finding(
        check, PASS, f"a row is the same alone, in 7, in 64 and beside other rows (to {max(worst, 1e-16):.0e})"
    )


def statelessness(bench: Bench) -> Finding:
    """A call gives the same again after calls with another model and number of steps, and with another batch size."""
    before = bench.run(bench.x_T[:5])
    bench.run(2.0 * bench.x_T[5:10], truth=_OTHER, steps=bench.steps + 3, seed=9)
    gap = _gap(bench.run(bench.x_T[:5]), before)
    bench.run(bench.x_T[:3], truth=_OTHER, steps=bench.steps, seed=9)
    gap = max(gap, _gap(bench.run(bench.x_T[:5]), before))
    if gap > _SAME:
        return Finding(
            "no state between calls", FAIL, f"the same call gives other samples after another one (by {gap:.1e})"
        )
    return Finding("no state between calls", PASS, "the same call gives the same samples after others")


def thread_safety(bench: Bench, other: Schedule) -> Finding:
    """Two threads share the subject with different models, under one schedule and under two; both get the serial result."""
    findings = [_two_threads(bench, schedule) for schedule in (bench.schedule, other)]
    return next((finding for finding in findings if finding.verdict == FAIL), findings[0])


def _two_threads(bench: Bench, other: Schedule) -> Finding:
    """Two runs that take turns call by call, the second one under the schedule `other`."""
    check, subject, steps = "two threads at once", bench.subject, bench.steps
    jobs = [(_PLANE, bench.schedule, bench.x_T[:4]), (_OTHER, other, same_start(other, (2,), 6))]
    serial = [
        subject.run(truth.denoiser(s, covariance="diagonal"), s, x, steps, seed=i).x
        for i, (truth, s, x) in enumerate(jobs)
    ]
    results: list[Tensor | Exception] = [RuntimeError("did not finish")] * 2
    barrier = threading.Barrier(2)

    def work(i: int) -> None:
        truth, schedule, x_T = jobs[i]
        try:
            model = TakingTurns(truth.denoiser(schedule, covariance="diagonal"), barrier)
            results[i] = subject.run(model, schedule, x_T, steps, seed=i).x
        except Exception as error:
            results[i] = error
        finally:
            barrier.abort()

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60.0)
    for result, expected in zip(results, serial):
        if isinstance(result, Exception):
            return Finding(check, FAIL, f"a thread failed: {type(result).__name__}: {result}")
        if _gap(result, expected) > _SAME:
            gap = _gap(result, expected)
            return Finding(check, FAIL, f"a thread's samples differ by {gap:.1e} from those of the same call alone")
    return Finding(check, PASS, "two interleaved calls with different models and schedules give the serial results")


def seeds(bench: Bench, stochastic: bool) -> Finding:
    """The same seed repeats; another one changes the samples of a stochastic subject and only of such a one."""
    x_T = bench.x_T[:6]
    first, again, other = bench.run(x_T, seed=5), bench.run(x_T, seed=5), bench.run(x_T, seed=6)
    if _gap(first, again) > _SAME:
        return Finding("seeds", FAIL, f"two calls with the same seed differ by {_gap(first, again):.1e}")
    changes = _gap(first, other) > _SAME
    if stochastic and not changes:
        return Finding("seeds", FAIL, "draws noise, but another seed gives the same samples")
    if not stochastic and changes:
        return Finding("seeds", FAIL, "says that it is deterministic, but another seed gives other samples")
    if stochastic:
        swapped = bench.run(x_T.flip(0), indices=[5, 4, 3, 2, 1, 0]).flip(0)
        if _gap(first, swapped) > _SAME:
            return Finding(
                "seeds", FAIL, f"sample i of a seed depends on its place in the batch (by {_gap(first, swapped):.1e})"
            )
        return Finding("seeds", PASS, "the same seed and index give the same sample, another seed another one")
    return Finding("seeds", PASS, "deterministic: the same samples whatever the seed")


def global_randomness(bench: Bench) -> Finding:
    """The global generators of torch, NumPy and Python are left as they were."""
    torch_state, numpy_state, python_state = torch.get_rng_state(), _numpy_state(), random.getstate()
    bench.run(bench.x_T[:4])
    moved = [
        name
        for name, same in (
            ("torch", torch.equal(torch_state, torch.get_rng_state())),
            ("NumPy", numpy_state == _numpy_state()),
            ("Python", python_state == random.getstate()),
        )
        if not same
    ]
    if moved:
        return Finding("global random state", FAIL, f"the global generator of {' and '.join(moved)} was moved")
    return Finding("global random state", PASS, "left alone (torch, NumPy, Python)")


def _numpy_state() -> tuple[bytes, int]:
    state: Any = np.random.get_state(legacy=True)
    return state[1].tobytes(), state[2]


def inputs_unchanged(bench: Bench) -> Finding:
    """x_T is not written to, and the samples do not share its memory."""
    x_T = bench.x_T[:6]
    kept = x_T.clone()
    x = bench.run(x_T)
    if not torch.equal(x_T, kept):
        return Finding("x_T unmodified", FAIL, f"the caller's x_T was changed by up to {_gap(x_T, kept):.1e}")
    if x.untyped_storage().data_ptr() == x_T.untyped_storage().data_ptr():
        return Finding("x_T unmodified", FAIL, "the samples share memory with the caller's x_T")
    return Finding("x_T unmodified", PASS, "the caller's x_T is left as it was")


def image_shapes(bench: Bench) -> Finding:
    """Samples of shape (1, 4, 4) come out in their shape and as their flattened twins do."""
    check, x_T = "shapes", same_start(bench.schedule, (1, 4, 4), 3)
    flat = GaussianMixture(_IMAGE.weights, _IMAGE.means.view(2, 16), [0.05, 0.1])
    try:
        x = bench.run(x_T, truth=_IMAGE)
    except Exception as error:
        return Finding(check, FAIL, f"image-shaped x_T (3, 1, 4, 4) raises {type(error).__name__}: {error}")
    if x.shape != x_T.shape:
        return Finding(check, FAIL, f"x_T of shape {tuple(x_T.shape)} gives samples of shape {tuple(x.shape)}")
    gap = _gap(x.flatten(1), bench.run(x_T.flatten(1), truth=flat))
    if gap > _SAME:
        return Finding(check, FAIL, f"images differ by {gap:.1e} from the same numbers as vectors")
    return Finding(check, PASS, "images come out as the same numbers do as vectors")


def float32_agreement(bench: Bench) -> Finding:
    """float32 in, float32 out, and within 1e-4 of float64."""
    check, x_T = "float32", bench.x_T[:32].float()
    single, double = bench.run(x_T), bench.run(x_T.double())
    if single.dtype != torch.float32:
        return Finding(check, FAIL, f"float32 x_T gives {str(single.dtype).removeprefix('torch.')} samples")
    gap = _gap(single, double)
    if gap > 1e-4:
        return Finding(check, FAIL, f"float32 differs from float64 by {gap:.1e}")
    return Finding(check, PASS, f"agrees with float64 to {gap:.0e}")


def no_gradient(bench: Bench) -> Finding:
    """No graph is kept through a model with parameters."""
    model = Trainable(_PLANE.denoiser(bench.schedule, covariance="diagonal"))
    x = bench.subject.run(model, bench.schedule, bench.x_T[:4], bench.steps).x
    if x.requires_grad:
        return Finding(
            "no gradient graph",
            FAIL,
            "the samples carry the gradient graph of all steps: wrap the loop in torch.no_grad()",
        )
    return Finding("no gradient graph", PASS, "the samples carry no gradient")


def guarded(check: str, examine: Callable[[], Finding]) -> Finding:
    """The finding, or FAIL with the error if the examination itself breaks on the subject."""
    try:
        return examine()
    except ValueError as error:
        return Finding(check, FAIL, f"raises ValueError: {error}")
    except Exception as error:
        return Finding(check, FAIL, f"raises {type(error).__name__}: {error}")


def skipped(check: str, reason: str) -> Finding:
    """A check that does not apply."""
    return Finding(check, SKIPPED, reason)
