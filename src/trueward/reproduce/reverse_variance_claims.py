"""What Analytic-DPM and SN-/NPR-DPM claim, whether a table of measurements bears it out, and the pictures of both.

With their margins (Bao et al. 2022a, 2022b):

* bits per dimension in K <= 50 steps: analytic < beta < beta~ by at least 0.2; an optimal trajectory < the even one; NPR with a
  floor < analytic by at least 0.2 for K <= 25;
* Frechet distance in K <= 10 steps: analytic-DDPM < min(beta, beta~), analytic-DDIM < DDIM, and, by 3 %, SN < NPR < analytic in
  the DDPM form, SN-DDIM < analytic-DDIM < DDIM.

``beta`` is the variance of DDPM with the last noise clipped, as the papers ran it as a baseline; ``beta-unclipped`` is DDPM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueward import records
from trueward.covariance import GammaTable, variance_bounds
from trueward.samplers import Ancestral
from trueward.samplers.reverse_step import ReverseSteps

Summary = dict[str, dict[str, float]]
MARGIN_BITS, MARGIN_DISTANCE = 0.2, 0.03
STYLES = {
    "beta-tilde": ("C7", "beta~"),
    "beta": ("C1", "beta, last noise clipped"),
    "beta-unclipped": ("C5", "beta"),
    "analytic": ("C0", "analytic"),
    "analytic-residual": ("C9", "analytic, residual"),
    "npr": ("C2", "NPR"),
    "sn": ("C3", "SN"),
}


def summary(cells: dict[str, Any], steps: Sequence[int], seeds: int) -> Summary:
    """Every bound, and every distance as mean and standard error over the seeds."""
    found = {key: value for key, value in cells.items() if key.startswith("bits ")}
    kinds = sorted({key.split()[1] for key in cells if key.startswith("frechet ")})
    for kind in kinds:
        for eta in ("1", "0"):
            for k in steps:
                values = [cells.get(f"frechet {kind} {eta} {k} seed {seed}") for seed in range(seeds)]
                known = [value for value in values if value is not None]
                for space in known[0] if known else ():
                    numbers = np.array([value[space] for value in known])
                    error = numbers.std(ddof=1) / math.sqrt(len(numbers)) if len(numbers) > 1 else math.nan
                    found[f"{space} {kind} {eta} {k}"] = {
                        "value": float(numbers.mean()),
                        "error": float(error),
                        "seeds": len(numbers),
                    }
    return found


def claims(found: Summary, steps: Sequence[int]) -> dict[str, bool]:
    """Which claims hold, by their names; a claim about cells that were not measured is left out."""
    held: dict[str, bool] = {}

    def below(name: str, low: str, high: str, margin: float = 0.0, share: float = 0.0) -> None:
        if low in found and high in found:
            held[name] = found[low]["value"] < found[high]["value"] * (1.0 - share) - margin

    for k in steps:
        if k <= 50:
            below(f"bits, K={k}: analytic < beta", f"bits analytic even {k}", f"bits beta even {k}", MARGIN_BITS)
            below(f"bits, K={k}: beta < beta~", f"bits beta even {k}", f"bits beta-tilde even {k}", MARGIN_BITS)
            for kind in ("analytic", "analytic-residual"):
                below(
                    f"bits, K={k}: {kind}, optimal trajectory < even",
                    f"bits {kind} optimal {k}",
                    f"bits {kind} even {k}",
                )
            below(
                f"bits, K={k}: analytic, the paper's optimal trajectory < even",
                f"bits analytic optimal-paper {k}",
                f"bits analytic even {k}",
            )
        if k <= 25:
            npr, analytic = f"bits npr-floor even {k}", f"bits analytic even {k}"
            below(f"bits, K={k}: NPR with floor < analytic", npr, analytic, MARGIN_BITS)
        if k <= 10:
            for space in ("values", "features"):
                before = f"Frechet of {space}, K={k}:"
                for guess in ("beta-tilde", "beta-unclipped", "beta"):
                    below(f"{before} analytic-DDPM < {guess}", f"{space} analytic 1 {k}", f"{space} {guess} 1 {k}")
                below(f"{before} analytic-DDIM < DDIM", f"{space} analytic 0 {k}", f"{space} beta-tilde 0 {k}")
                for a, b, eta, form in (
                    ("sn", "npr", 1, "DDPM"),
                    ("npr", "analytic", 1, "DDPM"),
                    ("sn", "analytic", 0, "DDIM"),
                ):
                    low, high = f"{space} {a} {eta} {k}", f"{space} {b} {eta} {k}"
                    below(f"{before} {a}-{form} < {b}-{form}", low, high, share=MARGIN_DISTANCE)
    return held


def verdict(held: dict[str, bool]) -> str:
    """In words."""
    if not held or not any(held.values()):
        return "not reproduced"
    return "reproduced" if all(held.values()) else "partly reproduced"


def method_records(tables: dict[str, dict[str, Any]], date: str) -> dict[str, dict[str, Any]]:
    """The verdicts on both methods over the claims of several tables, as ``docs/reproductions/METHOD.json`` holds them.

    Args:
        tables: by name, what ``table.json`` holds.
        date: of the measurement, ISO.
    """
    found = {}
    for method, own in (("analytic-dpm", False), ("sn-npr-dpm", True)):
        held = {
            f"{name}: {claim}": holds
            for name, table in tables.items()
            for claim, holds in table["claims"].items()
            if bool({"NPR", "npr", "sn"} & set(claim.replace("-", " ").split())) is own
        }
        found[method] = {
            "verdict": verdict(held),
            "date": date,
            "held": sum(held.values()),
            "of": len(held),
            "claims": held,
            "tables": [f"analytic_dpm/{name}/table.json" for name in tables],
        }
    return found


def plot_variances(table: GammaTable, path: Path, steps: int = 25, data_range: Any = (-1.0, 1.0)) -> None:
    """The picture that explains the method: variance of every step of an even trajectory, with its bounds, against time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    times = np.sort(Ancestral(steps).levels(table.schedule).t[:-1])
    s, t = times[:-1], times[1:]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    for axis, eta in zip(axes, (1.0, 0.0)):
        step = ReverseSteps.between(table.schedule, s, t, eta)
        low, high = variance_bounds(table.schedule, s, t, eta, data_range)
        axis.fill_between(t, np.maximum(low, 1e-8), high, color="0.88", label="between both bounds")
        for kind, style in (("analytic", "-"), ("analytic-residual", "--")):
            axis.plot(t, step.lambda2 + step.kappa**2 * table.variance(t, kind, data_range), style, label=kind)
        if eta == 1.0:
            axis.plot(t, step.beta, ":", label="beta")
            axis.plot(t, step.beta_tilde, "-.", label="beta~")
        axis.set(yscale="log", xlabel="t", ylabel="variance of the step", title=f"eta = {eta:g}, {steps} steps")
        axis.legend(fontsize=8)
    with records.atomic(path) as part:
        figure.savefig(part, dpi=120, format="png")
    plt.close(figure)


def plot_distances(found: Summary, steps: Sequence[int], path: Path) -> None:
    """Frechet distance against the number of steps for every variance, DDPM and DDIM side by side; bits per dimension."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    spaces = [space for space in ("features", "values") if any(key.startswith(f"{space} ") for key in found)]
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    for axis, eta, form in ((axes[0], 1, "DDPM"), (axes[1], 0, "DDIM")):
        for kind, (colour, label) in STYLES.items():
            keys = [f"{spaces[0]} {kind} {eta} {k}" for k in steps] if spaces else []
            known = [(k, found[key]) for k, key in zip(steps, keys) if key in found]
            if known:
                x, y = [k for k, _ in known], [cell["value"] for _, cell in known]
                error = [cell["error"] for _, cell in known]
                name = label if eta == 1 or kind != "beta-tilde" else "no noise"
                axis.errorbar(x, y, error, color=colour, label=name, marker="o", markersize=3, linewidth=1.2)
        name = "the values" if spaces[:1] == ["values"] else "a classifier's features"
        axis.set(xscale="log", yscale="log", xlabel="steps", title=f"{form}: Frechet distance of {name}")
        axis.set_xticks(list(steps), [str(k) for k in steps])
        axis.minorticks_off()
        axis.legend(fontsize=7)
    for kind, (colour, label) in STYLES.items():
        for trajectory, style in (("even", "-"), ("optimal", "--")):
            asked = "npr-floor" if kind == "npr" else kind
            keys = [f"bits {asked} {trajectory} {k}" for k in steps]
            bits = [(k, found[key]["value"]) for k, key in zip(steps, keys) if key in found]
            if bits:
                name = f"{label}{' with floor' if kind == 'npr' else ''}, {trajectory}"
                axes[2].plot(*zip(*bits), style, color=colour, label=name, marker="o", markersize=3, linewidth=1.2)
    shown = [found[key]["value"] for key in found if key.startswith(("bits beta ", "bits analytic", "bits npr-floor"))]
    axes[2].set(xscale="log", xlabel="steps", title="bits per dimension (beta~ leaves the picture)")
    if shown:
        axes[2].set_ylim(0.95 * min(shown), 1.03 * max(shown))
    axes[2].set_xticks(list(steps), [str(k) for k in steps])
    axes[2].minorticks_off()
    axes[2].legend(fontsize=6)
    with records.atomic(path) as part:
        figure.savefig(part, dpi=120, format="png")
    plt.close(figure)
