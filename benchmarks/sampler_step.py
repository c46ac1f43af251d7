"""The cost of one sampler step when the network is free, side by side with the libraries people use.

The model returns a tensor that is there already, so that all that is measured is the sampler: its arithmetic, its memory
traffic and its Python. trueward and diffusers take the same number of steps in blocks that alternate, on one thread; the
clock is the CPU time of that thread, so that other programs on the machine are not counted. Reported are the medians over
the blocks and their ratios.

    python benchmarks/sampler_step.py --out sampler_step.json
    python benchmarks/sampler_step.py --peer-python /path/to/env/bin/python   # k-diffusion and azula live there

Our step is the whole pass of the loop, the call of the (free) model included; diffusers' is `scheduler.step` alone, which
leaves the model to its caller. k-diffusion and azula own their loops; they run before the others, in a process of their own
if they live in another environment.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SHAPES = ((64, 3, 32, 32), (1000, 2))
STEPS = 50
TARGETS = {"64x3x32x32": 5.0, "1000x2": 10.0}
PEERS = ("k-diffusion", "azula")


def name_of(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def measure(contenders: dict[str, Callable[[], None]], blocks: int, repeat: int) -> dict[str, float]:
    """Microseconds of thread time per step, the median over alternating blocks of `repeat` runs."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    gc.disable()
    try:
        for _ in range(blocks):
            for name, run in contenders.items():
                start = time.thread_time()
                for _ in range(repeat):
                    run()
                times[name].append((time.thread_time() - start) / (repeat * STEPS) * 1e6)
    finally:
        gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}


def ours(shape: tuple[int, ...], view: str) -> dict[str, Callable[[], None]]:
    """trueward's DPM-Solver++(2M), step by step and as a whole call of `sample`."""
    import torch

    from trueward.denoisers import Denoiser, Posterior
    from trueward.samplers import DPMSolverMultistep
    from trueward.schedules import DiscreteSchedule

    class Free(Denoiser):
        def __init__(self) -> None:
            super().__init__(DiscreteSchedule.linear())
            self.answer = torch.randn(shape)

        def forward(self, x_t, t, **condition):
            alpha, sigma = self.schedule.coefficients(t, x_t)
            return Posterior(x_t, alpha, sigma, **{view: self.answer})

    model, solver, x_T = Free(), DPMSolverMultistep(STEPS), torch.randn(shape)

    @torch.no_grad()
    def steps() -> None:
        for _ in solver.solve(solver.start(model), x_T):
            pass

    def whole() -> None:
        solver.sample(model, x_T)

    return {"trueward": steps, "trueward, whole sample()": whole}


def diffusers_step(shape: tuple[int, ...], view: str) -> Callable[[], None] | None:
    """diffusers' DPMSolverMultistepScheduler.step, order 2, data form."""
    try:
        import torch
        from diffusers import DPMSolverMultistepScheduler
    except ImportError:
        return None
    scheduler = DPMSolverMultistepScheduler(prediction_type={"mean": "sample", "eps": "epsilon"}[view])
    answer, x_T = torch.randn(shape), torch.randn(shape)
    scheduler.set_timesteps(STEPS)
    timesteps = list(scheduler.timesteps)

    @torch.no_grad()
    def steps() -> None:
        scheduler._step_index, scheduler.lower_order_nums = None, 0  # what set_timesteps does, without its grid
        x = x_T
        for t in timesteps:
            x = scheduler.step(answer, t, x).prev_sample

    return steps


def k_diffusion_steps(shape: tuple[int, ...]) -> Callable[[], None]:
    """k-diffusion's sample_dpmpp_2m."""
    import torch
    from k_diffusion.sampling import get_sigmas_karras, sample_dpmpp_2m

    answer, x_T = torch.randn(shape), torch.randn(shape)
    sigmas = get_sigmas_karras(STEPS, 0.01, 80.0)

    def steps() -> None:
        sample_dpmpp_2m(lambda x, sigma: answer, x_T, sigmas, disable=True)

    return steps


def azula_steps(shape: tuple[int, ...]) -> Callable[[], None]:
    """azula's xEABSampler of order 2, its generalisation of DPM-Solver++(2M)."""
    import torch
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import VPSchedule
    from azula.sample import xEABSampler

    answer, x_T = torch.randn(shape), torch.randn(shape)

    class Free(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = VPSchedule()

        def forward(self, x_t, t, **kwargs):
            return DiracPosterior(answer)

    sampler = xEABSampler(Free(), order=2, steps=STEPS, stop=1e-3, silent=True)

    def steps() -> None:
        sampler(x_T)

    return steps


def peers(blocks: int) -> dict[str, dict[str, float | str]]:
    """What this interpreter can measure of the peers: for each, microseconds per step or why not."""
    found: dict[str, dict[str, float | str]] = {}
    for name, make in zip(PEERS, (k_diffusion_steps, azula_steps), strict=True):
        found[name] = {}
        for shape in SHAPES:
            try:
                run = make(shape)
                found[name][name_of(shape)] = measure({name: run}, blocks, 1 if shape[0] == 64 else 4)[name]
            except ImportError:
                found[name][name_of(shape)] = "not installed"
            except Exception as error:  # another version of a peer must not end the benchmark
                found[name][name_of(shape)] = f"failed: {type(error).__name__}: {error}"
    return found


def peers_of(python: str | None, blocks: int) -> dict[str, dict[str, float | str]]:
    """The peers, measured by this interpreter or by another one."""
    if python is None:
        return peers(blocks)
    command = [python, __file__, "--only-peers", "--blocks", str(blocks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{python} could not measure the peers:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def table(result: dict) -> str:
    """The result as text."""
    lines = [f"{'shape':>12} {'model predicts':>14} {'sampler':>26} {'us/step':>9} {'ratio':>7}"]
    for row in result["rows"]:
        time_ = f"{row['us']:9.1f}" if isinstance(row["us"], float) else f"{row['us']:>9}"
        ratio = f"{row['ratio']:6.2f}x" if row["ratio"] else ""
        lines.append(f"{row['shape']:>12} {row['view']:>14} {row['sampler']:>26} {time_} {ratio:>7}")
    for shape, target in result["targets"].items():
        reached = result["reached"].get(shape)
        if reached is not None:
            verdict = "reached" if reached >= target else "MISSED"
            lines.append(f"{shape}: diffusers takes {reached:.2f} times as long (target {target:.0f}): {verdict}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=40, help="alternating blocks to take the median of")
    parser.add_argument("--peer-python", default=None, help="interpreter with k-diffusion and azula")
    parser.add_argument("--only-peers", action="store_true", help="measure k-diffusion and azula, print JSON")
    parser.add_argument("--out", type=Path, default=None, help="where to write the JSON")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    if arguments.only_peers:
        print(json.dumps(peers(arguments.blocks)))
        return
    rows, reached = [], {}
    others = peers_of(arguments.peer_python, arguments.blocks)
    for shape in SHAPES:
        for view in ("mean", "eps"):
            contenders = ours(shape, view)
            theirs = diffusers_step(shape, view)
            if theirs is not None:
                contenders["diffusers"] = theirs
            found = measure(contenders, arguments.blocks, 1 if shape[0] == 64 else 4)
            base = found["trueward"]
            for name, us in found.items():
                rows.append({"shape": name_of(shape), "view": view, "sampler": name, "us": us, "ratio": us / base})
            if "diffusers" not in found:
                rows.append(
                    {
                        "shape": name_of(shape),
                        "view": view,
                        "sampler": "diffusers",
                        "us": "not installed",
                        "ratio": None,
                    }
                )
            elif view == "mean":
                reached[name_of(shape)] = found["diffusers"] / base
            if view == "mean":
                for peer in PEERS:
                    us = others[peer][name_of(shape)]
                    ratio = us / base if isinstance(us, float) else None
                    rows.append({"shape": name_of(shape), "view": view, "sampler": peer, "us": us, "ratio": ratio})
    result = {
        "what": "DPM-Solver++(2M), microseconds of thread time per step with a free model, one thread",
        "steps": STEPS,
        "blocks": arguments.blocks,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(),
        "rows": rows,
        "targets": TARGETS,
        "reached": reached,
    }
    print(table(result))
    if arguments.out is not None:
        part = arguments.out.with_name(arguments.out.name + ".part")
        part.write_text(json.dumps(result, indent=2) + "\n")
        part.replace(arguments.out)


if __name__ == "__main__":
    sys.exit(main())
