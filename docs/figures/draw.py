"""Draws the pictures of the documentation with trueward's own nouns: `python docs/figures/draw.py` (`make figures`).

Every picture is computed, none is sketched: schedules and grids from their classes, posteriors and flows from the closed
forms of `trueward.truth`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

import trueward

HERE = Path(__file__).parent
INK, GREY = "#2b2d42", "#8d99ae"
COLOURS = ["#3a6ea5", "#d1495b", "#2a9d8f", "#e9a23b", "#7b5ea7", "#2b2d42"]
STYLE = {
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": "#e5e8ef",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "trueward",  # the same picture is the same file
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def picture(name: str, width: float, height: float) -> Iterator[Figure]:
    """A figure that is written under `name` (inches at 100 dpi for PNG) when the block ends."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(width, height))
        yield figure
        metadata = {"Date": None} if name.endswith(".svg") else {"Software": None}
        figure.savefig(HERE / name, dpi=100, metadata=metadata, facecolor="white")
        plt.close(figure)


def schedules() -> None:
    """alpha, sigma and log-SNR of the four continuous schedules over the fraction of their time range."""
    known = {
        "VPLinear": trueward.VPLinear(),
        "VPCosine": trueward.VPCosine(),
        "VE": trueward.VE(),
        "EDM": trueward.EDM(),
    }
    with picture("schedules.svg", 9, 2.9) as figure:
        axes = figure.subplots(1, 3)
        for name, schedule in known.items():
            u = torch.linspace(0, 1, 161, dtype=torch.float64)
            t = schedule.t_min + u * (schedule.t_max - schedule.t_min)
            axes[0].plot(u, schedule.alpha(t), label=name, linestyle="--" if name == "EDM" else "-")
            axes[1].semilogy(u, schedule.sigma(t))
            axes[2].plot(u, schedule.log_snr(t))
        for axis, title in zip(
            axes, ["alpha: what is left of the data", "sigma: how much noise", "log-SNR"], strict=True
        ):
            axis.set(title=title, xlabel="(t - t_min) / (t_max - t_min)")
        axes[0].legend(loc="lower left", bbox_to_anchor=(0, 0.05), fontsize=8)


def grids() -> None:
    """Where ten steps of every named grid lie, on the half-log-SNR axis of a linear VP process."""
    schedule = trueward.VPLinear()
    known = {
        "log-snr": trueward.UniformLogSNR(),
        "karras": trueward.Karras(),
        "quadratic": trueward.QuadraticTime(),
        "uniform": trueward.UniformTime(),
    }
    with picture("grids.svg", 9, 2.3) as figure:
        axis = figure.subplots()
        for row, (_name, grid) in enumerate(known.items()):
            level = schedule.log_snr(torch.from_numpy(grid(schedule, 10))) / 2
            axis.plot(level, np.full(11, -row), "|", markersize=16, markeredgewidth=2.2)
        axis.set(
            yticks=[-row for row in range(len(known))],
            yticklabels=list(known),
            ylim=(-3.6, 0.6),
            xlabel="log(alpha / sigma): noise on the left, data on the right",
        )
        axis.grid(axis="y", visible=False)


def posterior() -> None:
    """Posterior mean of x_0 given x_t, plus and minus one standard deviation, for a two-peaked law at three noise levels."""
    truth, schedule = trueward.truth.bimodal(), trueward.VPLinear()
    with picture("posterior.svg", 9, 2.9) as figure:
        axes = figure.subplots(1, 3, sharey=True)
        for axis, t in zip(axes, [0.05, 0.15, 0.4], strict=True):
            alpha, _ = schedule.at(t)
            marginal = truth.marginal(schedule, t)
            x = torch.linspace(-2.2, 2.2, 161, dtype=torch.float64).view(-1, *truth.shape)
            answer = truth.denoiser(schedule, covariance="diagonal")(x, t)
            line, mean, std = (v.flatten().numpy() for v in (x, answer.mean, answer.var.sqrt()))
            axis.fill_between(
                line, mean - std, mean + std, color=COLOURS[0], alpha=0.2, linewidth=0, label="± std of x_0"
            )
            axis.plot(line, mean, label="mean of x_0")
            axis.plot(line, line / alpha, color=GREY, linestyle=":", label="x_t / alpha")
            density = marginal.log_prob(x).exp().flatten().numpy()
            axis.fill_between(line, -2 + density / density.max() * 0.6, -2, color=COLOURS[3], alpha=0.5, linewidth=0)
            axis.set(title=f"t = {t}", xlabel="x_t", ylim=(-2, 2))
        axes[0].set_ylabel("x_0")
        axes[0].legend(loc="upper left", fontsize=8)


def flow() -> None:
    """The density of x_t over time, with trajectories of the probability flow and of ancestral sampling on it."""
    truth, schedule = trueward.truth.bimodal(), trueward.VPLinear()
    times = np.linspace(schedule.t_max, schedule.t_min, 160)
    line = torch.linspace(-2.6, 2.6, 240, dtype=torch.float64).view(-1, *truth.shape)
    density = np.stack([truth.marginal(schedule, t).log_prob(line).exp().flatten().numpy() for t in times], axis=1)
    model = truth.denoiser(schedule)
    samplers = {
        "DDIM: a deterministic flow": trueward.DDIM(steps=160, grid="uniform"),
        "DDPM: a noisy walk": trueward.Ancestral(steps=160, grid="uniform"),
    }
    with picture("flow.png", 9, 3.2) as figure:
        axes = figure.subplots(1, 2, sharey=True)
        for axis, (title, sampler) in zip(axes, samplers.items(), strict=True):
            axis.imshow(
                density / density.max(axis=0),
                aspect="auto",
                origin="lower",
                cmap="Blues",
                alpha=0.75,
                extent=(0, 1, -2.6, 2.6),
            )
            samples = sampler.sample(model, n=9, seed=4, trajectory=True)
            path = torch.stack(samples.trajectory).flatten(1).numpy()
            axis.plot(np.linspace(0, 1, len(path)), path, color=COLOURS[1], linewidth=1.0)
            axis.grid(visible=False)
            axis.set(title=title, xticks=[0, 1], xticklabels=["noise (t = 1)", "data (t = 0)"], ylim=(-2.6, 2.6))
            for label, side in zip(axis.get_xticklabels(), ["left", "right"], strict=True):
                label.set_horizontalalignment(side)
        axes[0].set_ylabel("x_t")


def convergence() -> None:
    """Largest error of several samplers against the exact flow of a two-peaked law, over network evaluations."""
    truth, schedule = trueward.truth.bimodal(), trueward.VPLinear()
    model = truth.denoiser(schedule)
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, *truth.shape)
    # every sampler is asked to end with the posterior mean at t_min, so that all aim at the same point
    exact = model(truth.flow(x_T, schedule, schedule.t_max, schedule.t_min), schedule.t_min).mean
    known = {
        "ddim": ("ddim", {"grid": "log-snr"}),
        "edm": ("edm", {}),
        "dpm-solver++": ("dpm-solver++", {"denoise_to_zero": True}),
        "dpm-solver++3m": ("dpm-solver++3m", {"denoise_to_zero": True}),
        "dpm-solver++3m:ms3=consistent": ("dpm-solver++3m", {"denoise_to_zero": True, "ms3": "consistent"}),
        "dpm-solver (fast, order 3)": ("dpm-solver", {"denoise_to_zero": True}),
    }
    with picture("convergence.svg", 7, 3.8) as figure:
        axis = figure.subplots()
        for label, (name, options) in known.items():
            points = []
            for budget in (6, 8, 10, 14, 20, 28, 40, 56, 80, 112, 160):
                result = trueward.sampler(name, nfe=budget, **options).sample(model, x_T)
                points.append((result.nfe, (result.x - exact).abs().max().item()))
            style = "o--" if "consistent" in label else "o-"
            axis.loglog(*zip(*points, strict=True), style, markersize=4, label=label)
        axis.set(xlabel="network evaluations", ylabel="largest error", xticks=[6, 10, 20, 40, 80, 160])
        axis.set_xticklabels(["6", "10", "20", "40", "80", "160"])
        axis.minorticks_off()
        axis.legend(loc="upper right", fontsize=8)


def main() -> None:
    for draw in (schedules, grids, posterior, flow, convergence):
        draw()
        print(f"drew {draw.__name__}: {draw.__doc__}")


if __name__ == "__main__":
    main()
