"""How often the 95 % intervals hold the truth, and how often "better" is said where there is no difference.

    python -m benchmarks.intervals [--repeats 2000] [--seed 0]

Figures are drawn from distributions whose mean is known: Dice with missed tumors, energies, rates, several slices a
patient. Beside ours stands the percentile bootstrap of patients, which was used until version 0.2.0.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from scripts.explain.intervals import auc, mean_interval
from scripts.measures import claims
from scripts.measures.intervals import auc_interval

SIZES = (5, 10, 20, 50, 200)
RESAMPLES = 500
Draw = Callable[[np.random.Generator, int], tuple[NDArray, NDArray]]


def missed_and_found(rng: np.random.Generator, n: int) -> tuple[NDArray, NDArray]:
    """Dice: an eighth of the tumors is missed or nearly so."""
    missed = rng.random(n) < 0.125
    return np.where(missed, 0.2 * rng.random(n), rng.beta(9, 1.6, n)), np.arange(n)


def skewed(rng: np.random.Generator, n: int) -> tuple[NDArray, NDArray]:
    """Energy in the tumor: most of it, with a long tail."""
    return rng.beta(6, 1.2, n), np.arange(n)


def slices(rng: np.random.Generator, n: int) -> tuple[NDArray, NDArray]:
    """Dice of three slices a patient, alike within one."""
    patient = rng.beta(6, 1.2, n)
    values = np.clip(np.repeat(patient, 3) + rng.normal(0, 0.02, 3 * n), 0, 1)
    return values, np.repeat(np.arange(n), 3)


def rate(p: float) -> Draw:
    """A rate of 0 and 1."""

    def draw(rng: np.random.Generator, n: int) -> tuple[NDArray, NDArray]:
        return (rng.random(n) < p).astype(float), np.arange(n)

    draw.__doc__ = f"rate of {p:g}"
    return draw


def percentile_bootstrap(values: NDArray, groups: NDArray, rng: np.random.Generator) -> tuple[float, float]:
    """The interval of version 0.2.0."""
    index = np.unique(groups, return_inverse=True)[1]
    sums, counts = np.bincount(index, values), np.bincount(index)
    times = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    low, high = np.percentile((times @ sums) / (times @ counts), [2.5, 97.5])
    return float(low), float(high)


def coverage(draw: Draw, n: int, repeats: int, rng: np.random.Generator, bootstrap: bool = True) -> tuple[float, float]:
    """How often our interval and the percentile bootstrap's hold the mean of a distribution."""
    truth = float(draw(rng, 400_000)[0].mean())
    hits = np.zeros(2)
    for _ in range(repeats):
        values, groups = draw(rng, n)
        ends = np.asarray(mean_interval(values, list(groups)), dtype=float)
        hits[0] += ends[0] <= truth + 1e-3 and truth - 1e-3 <= ends[1]
        if bootstrap:
            low, high = percentile_bootstrap(values, groups, rng)
            hits[1] += low <= truth + 1e-3 and truth - 1e-3 <= high
    return float(hits[0] / repeats), float(hits[1] / repeats)


def auc_coverage(n: int, repeats: int, rng: np.random.Generator) -> float:
    """How often the AUC's interval holds the true one (0.921) with a third of the cases positive."""
    big = rng.normal(0, 1, 200_000)
    sign = np.arange(200_000) % 3 == 0
    truth, hits = auc(sign, big + 2 * sign), 0
    positive = np.arange(n) % 3 == 0
    for _ in range(repeats):
        low, high = auc_interval(positive, rng.normal(0, 1, n) + 2 * positive, list(range(n)))
        hits += low is not None and high is not None and low <= truth <= high
    return hits / repeats


def said(n: int, gain: float, repeats: int, rng: np.random.Generator, measures: int = 7, seeds: int = 1) -> float:
    """How often "better" is said of any of several measures of two models.

    Cases are hard or easy for both; seeds of one model differ by 0.01 in the mean. `gain` is added to the second model.
    """
    found = 0
    for _ in range(repeats):
        results = []
        for _ in range(measures):
            hardness = rng.beta(6, 1.2, n)
            a, b = (
                np.clip(
                    hardness + rng.normal(0, 0.08, (seeds, n)) + rng.normal(0, 0.01, (seeds, 1)) * (seeds > 1), 0, 1
                )
                for _ in range(2)
            )
            results.append(claims.difference_of(a + gain, b, range(n)))
        verdicts = claims.verdicts(results, [True] * measures, [None] * measures)
        found += any(verdict["claim"] == "better" for verdict in verdicts)
    return found / repeats


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000, help="samples of each kind and size")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    print("share of 95 % intervals that hold the truth: ours (percentile bootstrap), by number of patients")
    print(f"{'':28}" + "".join(f"{n:>14}" for n in SIZES))
    draws: dict[str, Draw] = {"Dice, an eighth missed": missed_and_found, "energy": skewed, "three slices each": slices}
    for name, draw in {**draws, **{f"rate of {p:g}": rate(p) for p in (0.5, 0.9, 0.98, 1.0)}}.items():
        cells = [coverage(draw, n, arguments.repeats, rng) for n in SIZES]
        print(f"{name:28}" + "".join(f"{a:>6.3f} ({b:.3f})" for a, b in cells), flush=True)
    print(f"{'ROC-AUC of .92':28}" + "".join(f"{auc_coverage(n, arguments.repeats, rng):>6.3f}        " for n in SIZES))
    print("\nshare of comparisons of seven measures in which any is called better, by number of patients")
    print(f"{'':28}" + "".join(f"{n:>10}" for n in SIZES[1:]))
    for seeds in (1, 3):
        for gain in (0.0, 0.02, 0.05):
            rates = [said(n, gain, arguments.repeats, rng, seeds=seeds) for n in SIZES[1:]]
            label = f"{seeds} seed{'s' if seeds > 1 else ''}, true gain {gain:g}"
            print(f"{label:28}" + "".join(f"{v:>10.3f}" for v in rates), flush=True)


if __name__ == "__main__":
    main()
