"""What ``import trueward`` costs beside ``import torch``: fresh interpreters, alternated, medians.

    python benchmarks/import_time.py [--repeats 9]

Three things are timed: torch alone, trueward alone (which imports no torch until it is used), and trueward up to a sampler
that is ready to run. The target is that the last takes at most 0.5 s more than torch alone.
"""

import argparse
import statistics
import subprocess
import sys

STATEMENTS = {
    "import torch": "import torch",
    "import trueward": "import trueward",
    "trueward, ready to sample": "import trueward; trueward.sampler('dpm-solver++'); trueward.Denoiser; trueward.load",
}
OPTIONAL = ("diffusers", "transformers", "datasets", "gradio", "matplotlib")


def seconds(statement: str) -> float:
    """Time of a statement in an interpreter of its own, measured inside it (starting Python is not counted)."""
    code = f"import time; t = time.perf_counter(); {statement}\nprint(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def loaded(statement: str) -> list[str]:
    """Which of the optional libraries a statement imports."""
    code = f"import sys; {statement}\nprint(*(m for m in {OPTIONAL!r} if m in sys.modules))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    for statement in STATEMENTS.values():
        seconds(statement)  # warms the disk cache and writes byte code
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(repeats):
        for name, statement in STATEMENTS.items():
            times[name].append(seconds(statement))
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"| statement | median of {repeats}, s | fastest, s | beyond torch, s | optional libraries loaded |")
    print("|---|---|---|---|---|")
    for name, statement in STATEMENTS.items():
        beyond = median[name] - median["import torch"]
        extra = ", ".join(loaded(statement)) or "none"
        print(f"| {name} | {median[name]:.3f} | {min(times[name]):.3f} | {beyond:+.3f} | {extra} |")
    ready = median["trueward, ready to sample"] - median["import torch"]
    print(
        f"\n{'met' if ready <= 0.5 else 'MISSED'}: ready to sample {ready:+.3f} s beyond torch (target: at most +0.5 s)"
    )


if __name__ == "__main__":
    main()
