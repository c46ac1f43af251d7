r"""Diffusion rejection sampling: is the network's batch full, and does a sample cost what its evaluations cost?

The digits model is sampled with a learned critic, on two base samplers and with batches of several sizes. Four numbers are
measured for each:

1. Occupancy: the share of the batch's rows that network calls worked on while samples were waiting for a slot (>= 0.95).
2. Overhead: time per sample over (evaluations per sample) x (time of a full batch's evaluation) / batch (<= 1.15). It holds the
   critic, the random numbers, the bookkeeping and the drain at the end. Both are measured in turn; the median of the ratios.
3. The loop that waits: batches of the same size in which every sample is carried along until the slowest is finished. Its
   steps per batch are predicted from the acceptance rates alone: they and the climbs make a Markov chain on the levels; with
   F(k) the chance to be finished after k steps, a batch of B takes E[max] = sum_k (1 - F(k)^B) steps, and a sample in a full
   batch takes E = sum_k (1 - F(k)).
4. The naive loop: one sample after the other. It loses what a batch gains per row, measured on the network alone.

    python benchmarks/diffrs.py --out benchmarks/results      # writes diffrs.json and diffrs.md

The clock is the CPU time of the process, on one thread, so other programs on the machine do not count.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import trueward
from trueward import records
from trueward.critics import Discriminator, train_critic
from trueward.data import load_data
from trueward.networks import MLP, LogitHead
from trueward.noise import Noise
from trueward.refinement import Constants, DiffRS, Refined, SamplerChain, calibrate
from trueward.samplers import DDIM, EDMHeun, Sampler

BASES: dict[str, Sampler] = {"ddim, 20 steps": DDIM(20), "edm, 18 steps": EDMHeun(18)}
OCCUPANCY, OVERHEAD = 0.95, 1.15
REPEATS = 5
clock = time.process_time


def labels(rows: Tensor) -> dict[str, Tensor]:
    """The classes in turn."""
    return {"class_labels": rows % 10}


def learned_critic(base: Sampler, folder: Path, batch: int) -> Discriminator:
    """A critic of the digits model under `base`, trained if `folder` has none."""
    if not (folder / "critic.json").is_file():
        model, real = trueward.load("digits"), load_data("digits").x
        rows = torch.arange(1000).split(batch)
        generated = torch.cat([base.sample(model, indices=r, seed=9, **labels(r)).x for r in rows])
        torch.manual_seed(0)
        critic = Discriminator(
            LogitHead(MLP((1, 8, 8), width=128, depth=2, dropout=0.2)), sigma_data=0.75, shape=(1, 8, 8)
        )
        record = train_critic(critic, real, generated, steps=2000, batch_size=128, evaluate_every=250)
        critic.save(folder, {"record": record.to_json()})
    return Discriminator.load(folder)


def median_time(run: Callable[[], object], repeat: int) -> float:
    """Seconds of one run."""
    run()
    times = []
    for _ in range(repeat):
        start = clock()
        run()
        times.append(clock() - start)
    return statistics.median(times)


# --- the two loops that one would write by hand -----------------------------------------------------------------------


@torch.no_grad()
def carried_along(chain: SamplerChain, constants: Constants, rows: Tensor, seed: int) -> tuple[Tensor, int, Tensor]:
    """A batch in which every sample is stepped until the slowest is finished.

    Returns:
        the samples, the number of steps that the batch took, and (rows,) the steps that each sample would have taken.
    """
    noise, condition = Noise(seed, rows), labels(rows)
    draws = torch.zeros(len(rows), dtype=torch.int64)
    level, own = torch.zeros_like(draws), torch.zeros_like(draws)

    def draw() -> Tensor:
        draws.add_(1)
        return draws.clone()

    def verdict(threshold: Tensor) -> tuple[Tensor, Tensor]:
        logit = chain.log_ratio(x, level, condition)
        return noise.uniform(draw()).log() <= logit - threshold, logit

    x, parent = chain.prior(noise, draw()), torch.zeros(len(rows), dtype=torch.float64)
    waiting = torch.ones(len(rows), dtype=torch.bool)
    while True:  # the prior's test
        passed, logit = verdict(constants.log_m_marginal[level])
        parent = torch.where(waiting & passed, logit, parent)
        waiting = waiting & ~passed
        if not waiting.any():
            break
        x = torch.where(waiting.view(-1, 1, 1, 1), chain.prior(noise, draw()), x)
    steps = 0
    while bool((level < chain.steps).any()):
        running = level < chain.steps
        view = running.view(-1, 1, 1, 1)
        moved = chain.step(x, level.clamp(max=chain.steps - 1), noise, draw(), condition)
        x, level, steps, own = torch.where(view, moved, x), level + running, steps + 1, own + running
        todo, threshold = running, constants.log_m_transition[level] + parent
        while bool(todo.any()):
            passed, logit = verdict(threshold)
            parent = torch.where(todo & passed, logit, parent)
            todo = todo & ~passed
            to = torch.where(todo & (level > 0), level - 1, level)
            climbed = chain.forward(x, level, to, noise, draw())
            fresh = torch.where((todo & (level == 0)).view(-1, 1, 1, 1), chain.prior(noise, draw()), climbed)
            x, level = torch.where(todo.view(-1, 1, 1, 1), fresh, x), to
            threshold = constants.log_m_marginal[level]
    return x, steps, own


def predicted_steps(refined: Refined, batch: int) -> tuple[float, float]:
    """(E, E[max of a batch]) of the steps of a sample, from acceptance rates and climbs alone."""
    n = refined.tested.shape[1] - 1
    after = torch.zeros(n + 1, n + 1, dtype=torch.float64)  # from the level a step leaves to the one it ends at
    marginal = torch.nan_to_num(refined.acceptance[1].double(), nan=1.0)
    for level in range(n):
        passed = refined.accepted[0, level + 1] / refined.tested[0, level + 1]
        here = 1.0 - passed
        after[level, level + 1] = passed
        for to in range(level, 0, -1):
            after[level, to] += here * marginal[to]
            here = here * (1.0 - marginal[to])
        after[level, 0] += here
    after[n, n] = 1.0
    state = torch.zeros(n + 1, dtype=torch.float64)
    state[0], mean, slowest = 1.0, 0.0, 0.0
    while 1.0 - state[n] > 1e-12:
        mean += float(1.0 - state[n])
        slowest += 1.0 - float(state[n]) ** batch
        state = state @ after
    return mean, slowest


# --- one base sampler ---------------------------------------------------------------------------------------------------


def measure(base: Sampler, work: Path, batch: int, batches: int, percentile: float) -> dict[str, Any]:
    """All numbers for one base sampler."""
    model, critic = trueward.load("digits"), learned_critic(base, work, batch)
    chain = SamplerChain(base, model, critic)
    warm_up = torch.arange(1000)
    constants = calibrate(chain, len(warm_up), batch_size=batch, condition=labels(warm_up)).constants(percentile)
    rows = torch.arange(batch * batches)
    rule = DiffRS(chain, constants)

    x = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.rand(batch, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.9 + 0.05
    evaluation, runs, refined = [], [], None
    for seed in range(REPEATS):  # in turn, because the speed of a machine wanders
        with torch.no_grad():
            evaluation.append(median_time(lambda: model(x, t, **labels(rows[:batch])).mean, 15))
        start = clock()
        refined = rule.sample(seed=seed, indices=rows, batch_size=batch, condition=labels(rows))
        runs.append((clock() - start) / len(rows) / refined.nfe_per_sample)
    assert refined is not None
    full, per_evaluation = statistics.median(evaluation), statistics.median(runs)
    overhead = statistics.median(r / e for r, e in zip(runs, evaluation)) * batch
    ours = per_evaluation * refined.nfe_per_sample
    with torch.no_grad():
        single = median_time(lambda: model(x[:1], t[:1], **labels(rows[:1])).mean, 40)
        judged = median_time(lambda: critic.log_ratio(x, t, schedule=model.schedule), 15)

    start, steps, own = clock(), [], []
    for part in rows.split(batch):
        _, taken, each = carried_along(chain, constants, part, seed=1)
        steps.append(taken)
        own.append(each)
    waits = (clock() - start) / len(rows)
    few = rows[: max(4, batch // 10)]
    start, alone = clock(), []
    for row in few:
        alone.append(carried_along(chain, constants, row[None], seed=1)[1])
    naive = (clock() - start) / len(few)

    mean, slowest = predicted_steps(refined, batch)
    per_step = refined.nfe_per_sample / float(torch.cat(own).double().mean())
    return {
        "evaluations per sample": refined.nfe_per_sample,
        "base evaluations": sum(base.cost(i) for i in range(chain.steps)),
        "critic rows per sample": refined.critic_evaluations / len(rows),
        "acceptance of transitions": [round(float(v), 4) for v in refined.acceptance[0, 1:]],
        "occupancy": refined.occupancy,
        "milliseconds per evaluation of a full batch": 1e3 * full,
        "milliseconds per evaluation of one row": 1e3 * single,
        "critic over network": judged / full,
        "milliseconds per sample": 1e3 * ours,
        "overhead": overhead,
        "steps per sample": {"predicted": mean, "measured": float(torch.cat(own).double().mean())},
        "steps per waiting batch": {"predicted": slowest, "measured": statistics.mean(steps)},
        "waiting loop": {
            "milliseconds per sample": 1e3 * waits,
            "times slower": waits / ours,
            "predicted": slowest / mean,
        },
        "naive loop": {
            "milliseconds per sample": 1e3 * naive,
            "times slower": naive / ours,
            "predicted": single * batch / full * statistics.mean(alone) * per_step / refined.nfe_per_sample,
        },
        "reached": {
            "occupancy": refined.occupancy >= OCCUPANCY,
            "overhead": overhead <= OVERHEAD,
        },
    }


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [
        f"Digits, percentile {result['percentile']:g}, {result['batches']} batches of samples; CPU time, one thread.",
        "",
        "| | " + " | ".join(result["bases"]) + " |",
        "|---|" + "---|" * len(result["bases"]),
    ]

    def row(name: str, text: Callable[[dict[str, Any]], str]) -> None:
        lines.append(f"| {name} | " + " | ".join(text(r) for r in result["bases"].values()) + " |")

    row("evaluations per sample (base)", lambda r: f"{r['evaluations per sample']:.1f} ({r['base evaluations']})")
    row("critic rows per sample", lambda r: f"{r['critic rows per sample']:.1f}")
    row(f"occupancy until the drain (>= {OCCUPANCY})", lambda r: f"{r['occupancy']:.3f}")
    row(f"time over that of the evaluations alone (<= {OVERHEAD})", lambda r: f"{r['overhead']:.3f}")
    for name in ("waiting loop", "naive loop"):
        row(
            f"{name}: times slower (predicted)",
            lambda r: f"{r[name]['times slower']:.2f} ({r[name]['predicted']:.2f})",  # noqa: B023
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 128], help="slots")
    parser.add_argument("--batches", type=int, default=8, help="samples, in batches")
    parser.add_argument("--percentile", type=float, default=0.97, help="strictness of the constants")
    parser.add_argument("--work", type=Path, default=None, help="folder that keeps the trained critics")
    parser.add_argument("--out", type=Path, default=None, help="folder for diffrs.json and diffrs.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        bases = {
            f"{name}, batch {batch}": measure(base, work / name.split(",")[0], batch, given.batches, given.percentile)
            for name, base in BASES.items()
            for batch in given.batch
        }
    result = {
        "batches": given.batches,
        "percentile": given.percentile,
        "bases": bases,
        "clock": "CPU time of the process, one thread",
        **records.circumstances(),
    }
    print(table(result))
    if given.out is not None:
        records.write_json(given.out / "diffrs.json", result)
        records.write_text(given.out / "diffrs.md", table(result) + "\n")


if __name__ == "__main__":
    main()
