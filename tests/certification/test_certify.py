"""The certificates of trueward's own samplers, and what a certificate is."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import euler, multistep, stops_converging
from torch import Tensor

from trueward.certification import Certificate, Outcome, Setting, Subject, certify, subject
from trueward.certification.convergence import exact, fitted_order
from trueward.certification.safety import nan_safety
from trueward.denoisers import Denoiser
from trueward.samplers import DDIM, sampler, sampler_names
from trueward.schedules import EDM, DiscreteSchedule, Schedule, VPCosine, VPLinear

ONE = {"vp-linear": VPLinear()}
OWN = Setting()


@pytest.fixture(scope="module")
def ddim() -> Certificate:
    return certify(DDIM, claims=1, grids=["log-snr", "quadratic"])


def _failed(certificate: Certificate) -> set[str]:
    return {finding.check for finding in certificate.findings if finding.verdict == "FAIL"}


def test_ddim_is_certified_with_order_one(ddim: Certificate) -> None:
    assert _failed(ddim) == set()
    assert len(ddim.cells) == 8
    assert all(cell.order is not None and 0.8 < cell.order < 1.1 for cell in ddim.cells)
    assert all(cell.target.startswith("posterior mean at t=") for cell in ddim.cells)


@functools.cache
def certificate_of(name: str) -> Certificate:
    return certify(name, schedules=ONE, grids=["log-snr"], steps=[20, 40, 80])


LEARNED = {"sn-ddpm", "sn-ddim", "npr-ddpm", "npr-ddim"}


# those of LEARNED are given the exact covariance as analytic-ddpm and analytic-ddim are, so one pair stands for all
@pytest.mark.parametrize("name", [n for n in sampler_names() if n not in LEARNED])
def test_every_sampler_of_the_registry_conducts_itself(name: str) -> None:
    """All checks on one schedule and grid; the whole examination is `trueward certify NAME`."""
    certificate = certificate_of(name)
    assert _failed(certificate) <= ({"independence of the batch"} if _shares_its_step_size(name) else set()), str(
        certificate
    )


def _shares_its_step_size(name: str) -> bool:
    """An adaptive sampler may choose one step size for the whole batch, if it says so."""
    return getattr(sampler(name), "per_sample", True) is False


def test_ddpm_is_judged_by_the_law_of_its_samples() -> None:
    certificate = certificate_of("ddpm")
    assert certificate.passed, str(certificate)
    (cell,) = certificate.cells
    assert cell.target == "law of the data"
    assert cell.order is not None
    assert 0.8 < cell.order < 1.4
    assert cell.errors[-1] < 0.03
    assert certificate["moments of the law"].verdict == "pass"


def test_an_adaptive_sampler_is_judged_by_its_tolerance() -> None:
    certificate = certificate_of("ode")
    assert certificate.passed, str(certificate)
    assert certificate.cells[0].errors[-1] < 1e-5
    assert certificate["distance at few evaluations"].verdict == "not applicable"


def test_the_end_of_the_levels_decides_what_is_the_exact_solution() -> None:
    """The same solver with and without a last step to the data keeps its order against its own target."""
    plain = certify("dpm-solver++", schedules=ONE, grids=["log-snr"])
    denoised = certify("dpm-solver++", options={"denoise_to_zero": True}, schedules=ONE, grids=["log-snr"])
    assert plain.cells[0].target == "flow to t=0.001"
    assert denoised.cells[0].target == "posterior mean at t=0.001"
    for certificate in (plain, denoised):
        assert certificate.cells[0].order == pytest.approx(2.0, abs=0.15)


def test_the_two_targets_differ_by_far_more_than_the_errors_measured() -> None:
    ends = [exact(VPLinear(), 1.0, 1e-3, clean) for clean in (False, True)]
    assert (ends[0] - ends[1]).abs().max() > 5e-4


def test_third_order_multistep_is_of_second_order_unless_consistent() -> None:
    options = {"order": 3, "ms3": "consistent", "algorithm": "data"}
    consistent = certify("dpm-solver++", options=options, schedules=ONE, grids=["log-snr"])
    assert consistent.claims == 3
    assert consistent["convergence"].verdict == "pass"
    pretends = certify(
        "dpm-solver++", options={**options, "ms3": "reference"}, schedules=ONE, grids=["log-snr"], claims=3
    )
    assert pretends["convergence"].verdict == "FAIL"


def test_a_grid_that_is_not_asymptotic_is_not_judged() -> None:
    certificate = certify(DDIM, schedules={"edm": EDM()}, grids=["uniform"], claims=1)
    assert certificate.cells[0].verdict == "not applicable"
    assert "largest step in half-log-SNR" in certificate.cells[0].line
    assert certificate["convergence"].verdict == "not applicable"


def test_errors_fall_with_the_budget_and_budgets_are_evaluations(ddim: Certificate) -> None:
    assert ddim.budgets == (5, 10, 20, 50)
    for distance in ddim.distances:
        assert distance.nfe == ddim.budgets
    heun = certify("edm", schedules=ONE, grids=["karras"])
    assert heun.distances[0].nfe == (5, 9, 19, 49)


def test_fitted_order_uses_the_runs_above_round_off() -> None:
    nfe = [10, 20, 40, 80, 160]
    assert fitted_order(nfe, [n**-2.0 for n in nfe]) == pytest.approx(2.0)
    assert fitted_order(nfe, [1e-1, 1e-4, 1e-7, 1e-10, 1e-13]) == pytest.approx(9.97, abs=0.01)
    assert fitted_order(nfe, [1e-9, 1e-13, 1e-13, 1e-13, 1e-13]) is None
    assert fitted_order([20, 40, 40, 40], [0.1, 0.05, 0.05, 0.05]) == 0.0


def test_thorough_visits_the_whole_option_space_and_finds_the_one_bad_combination() -> None:
    def switches(
        denoiser: Denoiser,
        schedule: Schedule,
        x_T: Tensor,
        steps: int,
        a: bool = False,
        b: bool = False,
        c: bool = True,
    ) -> Tensor:
        x = euler(denoiser, schedule, x_T, steps)
        return x * float("nan") if a and b and not c and steps == 4 else x

    quick, _ = nan_safety(subject(switches), ONE, budget=0)
    whole, _ = nan_safety(subject(switches), ONE, thorough=True)
    assert quick.verdict == "pass"
    assert whole.line.startswith("2 of 96 combinations")
    assert whole.details == [
        {
            "what": "NaN or infinite samples",
            "setting": "a=True, b=True, c=False",
            "where": ["vp-linear, 4 steps, float64", "vp-linear, 4 steps, float32"],
        }
    ]


def test_the_order_claimed_is_the_lowest_over_the_numbers_of_steps() -> None:
    """The composition of DPM-Solver-fast ends with a first-order step for two remainders by 3 out of three."""
    assert subject("dpm-solver", options={"steps": 20}).claims == 2
    assert subject("dpm-solver-3").claims == 3


def test_options_worth_trying_are_read_from_the_sampler() -> None:
    sweep = subject("dpm-solver++").sweep()
    assert set(sweep["algorithm"]) == {"data", "noise"}
    assert sweep["order"] == (2, 1, 3)
    assert sweep["denoise_to_zero"] == (False, True)
    assert set(sweep["thresholding"]) >= {None, "dynamic", "static"}
    assert 0.0 in sweep["t_end"]


def test_certificate_prints_saves_and_reads_as_json(ddim: Certificate, tmp_path: Path) -> None:
    from rich.console import Console

    page = io.StringIO()
    Console(file=page, width=160).print(ddim.table())
    for finding in ddim.findings:
        assert finding.check in page.getvalue()
        assert finding.check in str(ddim)
    assert ddim.verdict in page.getvalue()
    path = ddim.save(tmp_path / "ddim.json")
    stored = json.loads(path.read_text())
    assert stored["passed"] is ddim.passed
    assert stored["verdict"] == ddim.verdict
    assert [cell["order"] for cell in stored["cells"]] == [cell.order for cell in ddim.cells]
    assert stored["versions"]["torch"] == torch.__version__
    assert [p.name for p in tmp_path.iterdir()] == ["ddim.json"]


def test_certificate_of_a_subject_that_stalls_is_valid_json() -> None:
    """Slopes between runs of equal cost are no numbers."""
    certificate = certify(stops_converging, schedules=ONE, claims=1)
    assert None in json.loads(certificate.to_json())["cells"][0]["slopes"]


def test_a_user_subject_is_examined_through_the_contract() -> None:
    class Adapter(Subject):
        name, claims = "adapter", 2.0

        def run(
            self,
            denoiser: Denoiser,
            schedule: Schedule,
            x_T: Tensor,
            steps: int,
            *,
            seed: int = 0,
            indices: Sequence[int] | None = None,
            setting: Setting = OWN,
        ) -> Outcome:
            return Outcome(multistep(0.5)(denoiser, schedule, x_T, steps), steps)

    certificate = certify(Adapter(), schedules=ONE)
    assert certificate.passed
    assert certificate["network evaluations"].verdict == "pass"


def test_options_of_a_function_are_handed_to_it() -> None:
    seen: list[float] = []

    def configurable(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, steps: int, eta: float = 0.0) -> Tensor:
        seen.append(eta)
        return euler(denoiser, schedule, x_T, steps)

    assert certify(configurable, options={"eta": 0.5}, schedules=ONE).subject == "configurable"
    assert set(seen) == {0.5}


def test_every_default_schedule_is_examined(ddim: Certificate) -> None:
    assert [distance.schedule for distance in ddim.distances] == ["vp-linear", "edm", "ddpm-linear", "vp-cosine"]
    other: dict[str, Schedule] = {"cosine": VPCosine(), "table": DiscreteSchedule.cosine(200)}
    certificate = certify(euler, schedules=other, claims=1)
    assert [cell.schedule for cell in certificate.cells] == ["cosine", "table"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: certify("dpm-solvr++"), "Did you mean 'dpm-solver"),
        (lambda: certify(3.0), "Cannot certify a float"),
        (lambda: certify("elsewhere:Euler"), "Unknown source of samplers 'elsewhere'"),
        (lambda: certify(DDIM, steps=[20, 10, 40]), "three rising numbers"),
        (lambda: certify(DDIM, steps=[20, 40]), "three rising numbers"),
        (lambda: certify(DDIM, schedules={}), "at least one schedule"),
        (lambda: certify(subject("ddim"), options={"eta": 0.5}), "made with its options already"),
        (lambda: certify(DDIM, grids=["log-snrr"]), "Did you mean 'log-snr'"),
    ],
)
def test_wrong_calls_are_refused_with_one_sentence(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
