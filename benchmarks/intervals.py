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
from scipy.stats import binom

from scripts.explain.intervals import AT_LEAST_0, SHARES, Bounds, auc, mean_interval
from scripts.measures import claims
from scripts.measures.intervals import auc_interval

SIZES = (5, 10, 20, 50, 200)
RESAMPLES = 500
# What is near enough to the truth, which is itself a mean of draws.
NEAR = 1e-3
Draw = Callable[[np.random.Generator, int], tuple[NDArray, NDArray]]


def mixture(missed: float, worst: float, a: float, b: float) -> Draw:
    """Dice: a share of the tumors is missed or nearly so (up to `worst`), of the others it is beta(a, b)."""

    def draw(rng: np.random.Generator, n: int) -> tuple[NDArray, NDArray]:
        return np.where(rng.random(n) < missed, worst * rng.random(n), rng.beta(a, b, n)), np.arange(n)

    return draw


def skewed(rng: np.random.Generator, n: int) -> tuple[NDArray, NDArray]:
    """Energy in the tumor: most of it, with a long tail."""
    return rng.beta(6, 1.2, n), np.arange(n)


def in_air(rng: np.random.Generator, n: int) -> tuple[NDArray, NDArray]:
    """Energy in air: next to nothing, but up to 60 % in a twentieth."""
    return np.where(rng.random(n) < 0.05, 0.6 * rng.random(n), rng.beta(0.5, 500, n)), np.arange(n)


def slices(rng: np.random.Generator, n: int) -> tuple[NDArray, NDArray]:
    """Dice of one to eight slices a patient, alike within one."""
    patient = np.repeat(np.arange(n), rng.integers(1, 9, n))
    return np.clip(rng.beta(6, 1.2, n)[patient] + rng.normal(0, 0.05, len(patient)), 0, 1), patient


def clustered_rate(rng: np.random.Generator, n: int) -> tuple[NDArray, NDArray]:
    """Right diagnoses of five slices a patient: nearly all of nine patients in ten, none of the tenth."""
    patient = np.repeat(np.arange(n), 5)
    return ((rng.random(n) < 0.9)[patient] & (rng.random(len(patient)) < 0.98)).astype(float), patient


def rate(p: float) -> Draw:
    """A rate of 0 and 1."""

    def draw(rng: np.random.Generator, n: int) -> tuple[NDArray, NDArray]:
        return (rng.random(n) < p).astype(float), np.arange(n)

    return draw


def distances(often: float, spread: float, times: float) -> Draw:
    """HD95: lognormal, and so many times as far in a share of the cases."""

    def draw(rng: np.random.Generator, n: int) -> tuple[NDArray, NDArray]:
        return rng.lognormal(1, spread, n) * np.where(rng.random(n) < often, times, 1), np.arange(n)

    return draw


SHARES_OF: dict[str, Draw] = {
    "Dice, an eighth missed": mixture(1 / 8, 0.2, 9, 1.6),
    "Dice, an eighth at 0": mixture(1 / 8, 0, 9, 1.6),
    "Dice .9, an eighth at 0": mixture(1 / 8, 0, 90, 10),
    "Dice .9, a twentieth at 0": mixture(1 / 20, 0, 90, 10),
    "energy in tumor": skewed,
    "energy in air": in_air,
    "one to eight slices each": slices,
    "rate, five slices each": clustered_rate,
    **{f"rate of {p:g}": rate(p) for p in (0.5, 0.9, 0.98, 1.0)},
}
DISTANCES: dict[str, Draw] = {
    "HD95": distances(0, 0.5, 1),
    "HD95, a long tail": distances(0, 0.8, 1),
    "HD95, a tenth 8 times": distances(0.1, 0.4, 8),
}
# Change of each case from one model to another, without a difference in the mean.
CHANGES: dict[str, Draw] = {
    "Dice, alike": lambda rng, n: (_two(rng, n, 0.0), np.arange(n)),
    "Dice, each misses a twelfth": lambda rng, n: (_two(rng, n, 1 / 12), np.arange(n)),
    "right or wrong": lambda rng, n: ((rng.random(n) < 0.9) - (rng.random(n) < 0.9).astype(float), np.arange(n)),
    "many gain, a few lose": lambda rng, n: (0.05 * (1 - rng.exponential(1, n)), np.arange(n)),
    "a tenth lose 0.3": lambda rng, n: (rng.normal(0.03, 0.03, n) - 0.3 * (rng.random(n) < 0.1), np.arange(n)),
}


def _two(rng: np.random.Generator, n: int, missed: float) -> NDArray:
    hardness = rng.beta(6, 1.2, n)
    a, b = (np.clip(hardness + rng.normal(0, 0.08, n), 0, 1) * (rng.random(n) >= missed) for _ in range(2))
    return a - b


def percentile_bootstrap(values: NDArray, groups: NDArray, rng: np.random.Generator) -> tuple[float, float]:
    """The interval of version 0.2.0."""
    index = np.unique(groups, return_inverse=True)[1]
    sums, counts = np.bincount(index, values), np.bincount(index)
    times = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    low, high = np.percentile((times @ sums) / (times @ counts), [2.5, 97.5])
    return float(low), float(high)


def coverage(
    draw: Draw, n: int, repeats: int, rng: np.random.Generator, bounds: Bounds = SHARES, bootstrap: bool = True
) -> tuple[float, float]:
    """How often our interval and the percentile bootstrap's hold the mean of a distribution."""
    truth = float(draw(rng, 400_000)[0].mean())
    near = NEAR if bounds == SHARES else NEAR * truth
    hits = np.zeros(2)
    for _ in range(repeats):
        values, groups = draw(rng, n)
        ends = np.asarray(mean_interval(values, list(groups), bounds), dtype=float)
        hits[0] += ends[0] <= truth + near and truth - near <= ends[1]
        if bootstrap:
            low, high = percentile_bootstrap(values, groups, rng)
            hits[1] += low <= truth + near and truth - near <= high
    return float(hits[0] / repeats), float(hits[1] / repeats)


def held(ends: NDArray, p: float) -> float:
    """How often the intervals of a rate hold it, exactly.

    Args:
        ends: (n + 1, 2) of 0, 1, ... n of n.
        p: true rate.
    """
    n = len(ends) - 1
    return float(binom.pmf(np.arange(n + 1), n, p)[(ends[:, 0] <= p) & (p <= ends[:, 1])].sum())


def of_changes(draw: Draw, n: int, repeats: int, rng: np.random.Generator) -> tuple[float, float]:
    """How often the interval of a difference of 0 holds it, and how often the difference is called "better"."""
    hits, better = 0, 0
    for _ in range(repeats):
        values, groups = draw(rng, n)
        measured = claims.difference_of(values[None], np.zeros((1, len(values))), groups)
        low, high = measured.ci95
        hits += low is None or high is None or low <= 0 <= high  # without an interval nothing false is said
        better += measured.false_if_higher <= claims.ALLOWED
    return hits / repeats, better / repeats


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
    count = 0
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
        count += any(verdict["claim"] == "better" for verdict in verdicts)
    return count / repeats


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000, help="samples of each kind and size")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    print("share of 95 % intervals that hold the truth: ours (percentile bootstrap), by number of patients")
    print(f"{'':28}" + "".join(f"{n:>14}" for n in SIZES))
    for draws, bounds in ((SHARES_OF, SHARES), (DISTANCES, AT_LEAST_0)):
        for name, draw in draws.items():
            cells = [coverage(draw, n, arguments.repeats, rng, bounds) for n in SIZES]
            print(f"{name:28}" + "".join(f"{a:>6.3f} ({b:.3f})" for a, b in cells), flush=True)
    print(f"{'ROC-AUC of .92':28}" + "".join(f"{auc_coverage(n, arguments.repeats, rng):>6.3f}        " for n in SIZES))
    print("\nof differences of two models whose mean is 0, and (how often one such is called better)")
    for name, draw in CHANGES.items():
        cells = [of_changes(draw, n, arguments.repeats, rng) for n in SIZES]
        print(f"{name:28}" + "".join(f"{a:>6.3f} ({b:.3f})" for a, b in cells), flush=True)
    print("\nshare of comparisons of seven measures in which any is called better, by number of patients")
    print(f"{'':28}" + "".join(f"{n:>10}" for n in SIZES[1:]))
    for seeds in (1, 3):
        for gain in (0.0, 0.02, 0.05):
            rates = [said(n, gain, arguments.repeats, rng, seeds=seeds) for n in SIZES[1:]]
            label = f"{seeds} seed{'s' if seeds > 1 else ''}, true gain {gain:g}"
            print(f"{label:28}" + "".join(f"{v:>10.3f}" for v in rates), flush=True)


if __name__ == "__main__":
    main()
