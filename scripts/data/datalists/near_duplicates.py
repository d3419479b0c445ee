"""Near-duplicate groups by perceptual hash: the only guard where patient numbers are missing.

Measured on the 5,000 slices of brisc2025 (256-bit phash, single linkage): pairs up to a distance of 34 bits are nearly
all the same picture or a neighboring slice of the same patient, and copies that were resized or JPEG-coded again (down
to 100 px, quality 60) stay within 8 bits, with another gamma within 22. Up to 40 bits groups stay small (3,755 groups,
the largest of 14); at 56 bits chains run through 401 images, and at 64 through 2,097. With the usual 64-bit hash chains
start earlier than neighboring slices are found (103 images at 6 bits, 1,542 at 8), so it is not used.

Mirrored, rotated and differently cropped copies are common (data were augmented before they were published) and have
other hashes. They are found by a second hash, of the head cut out, turned to its principal axes and compared in four
mirrorings. On brisc2025 (5,000 pictures), of 24 pairs each with 24 to 30 and 30 to 40 turned bits nearly all were
the same patient to the eye; in 1 % of those with 34 to 40 bits the classes differ, against 11 % at 40 to 48.

Slices of one patient that are some millimeters apart are no near-duplicates, but leak as much. Where patients are
unknown the order of the files is the only trace of them: published pictures are mostly numbered along the volume. So
neighbors in the order of names (one or two places apart) may differ by 1.7 times as many bits. On brisc2025 46 % of the
next neighbors do so, and 0.5 % of the pairs of one class that are more than 60 places apart; of 60 neighbors looked at,
with 56 to 76 bits, about 5 were two patients. Together 5,000 pictures make 1,750 groups, the largest of 57 (eight
patients or so, chained). Groups that join patients cost nothing but freedom in splitting. What remains to be feared is
a patient in two groups, above all one who is seen in several planes: every report says how many test images have an
image of the training part within 48 bits (`close_to_training`).

The more images, the nearer are the nearest of unrelated ones, above all of pictures of few details: of 20,000 drawn
heads some 42,000 pairs lie within 40 bits. So the distance is lowered until at most one pair in 10,000 images lies
within the last 8 bits of it, or the pairs grow with distance as those of real duplicates do (`MAX_GROWTH`). Beyond it
pairs are linked where the gray values of their thumbnails say that they are copies (`COPY`); copies do not count where
the distance is looked for, as they once made room for four unrelated pairs each. The order of names counts only where
neighbors are more alike than images far apart. On brisc2025 none of this changes a group. `COPY` was chosen on those
drawn heads (seed 0 of `benchmarks.duplicates`): copies stored again at half the size are unlike by 0.0004 at most,
unrelated ones by 0.0015 and, turned, by 0.0006 at least. That no group of brisc2025 changes was checked on all of its
pictures, whatever part they are in now; no label and no result had a part in it.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from scripts.data.datalists.fingerprints import unlikeness, unpacked
from scripts.data.datalists.near_index import NearSearch
from scripts.data.datalists.near_pairs import INDEXED, Pairs, chosen, distances, joined, near_rows

logger = logging.getLogger(__name__)

MAX_DISTANCE = 40
# Of the turned hash, as a share of the distance of the upright one.
TURNED_SHARE = 0.9
# Pictures so many places apart in the order of their names may differ by so much more.
ORDER_STEPS, ORDER_SHARE = 2, 1.7
# Pictures of people known to be two are copies only if they agree to so many bits: brains in one space look alike.
MAX_DISTANCE_PATIENTS = 8
# What is within so many bits is not linked, but looked for between test and training part, as a figure of the split.
CLOSE_DISTANCE = 48
# A group may hold this many images, or this share of all, whatever is more; beyond it the images are chained.
MAX_GROUP, MAX_GROUP_SHARE = 20, 0.1
# At most this many pairs of unrelated images, per image, may be linked.
FALSE_SHARE = 1e-4
# In a step of 8 bits lie at most so many times as many real duplicates as in the step before (1.6 on brisc2025);
# unrelated images multiply faster (7 to 12 times on drawn ones).
MAX_GROWTH = 4.0
# Fewer images cannot chain by chance.
MIN_IMAGES = 200
# Neighbors in the order of names count where so many times more of them are alike than of images that far apart.
ORDER_GAIN, STRANGER_STEPS = 5.0, (50, 101)
# Thumbnails of copies are so much unlike at most (`unlikeness`), upright and turned; see above.
COPY = (6e-4, 3e-4)
# More images are not compared each with each where unrelated ones are as much alike as that (`INDEXED`); so
# many of them say whether it is so.
MANY, SAMPLED = 10_000, 2_000
_STEP = 8
_BLOCK = 512


@dataclass(frozen=True)
class Distances:
    """Within how many of 256 bits images were linked, after every lowering.

    Attributes:
        upright: of the picture's hash.
        turned: of the turned head's.
        neighbors: of neighbors in the order of names; None where no order was given or it says nothing.
    """

    upright: float
    turned: float
    neighbors: float | None

    def figures(self) -> dict[str, float | None]:
        """For a report, by the names of its keys."""
        return {
            "max_distance_bits": self.upright,
            "max_distance_bits_turned": self.turned,
            "max_distance_bits_neighbors": self.neighbors,
        }


def places(folders: Iterable[Iterable[str]]) -> dict[str, int]:
    """Place of every file in the order of names within its folder, numbers by value, with gaps between folders.

    >>> places([["a/p10.png", "a/p9.png"], ["b/x.png"]])
    {'a/p9.png': 1000, 'a/p10.png': 1001, 'b/x.png': 2001}

    Args:
        folders: the paths of the files of each folder.
    """
    positions: dict[str, int] = {}
    for paths in folders:
        start = max(positions.values(), default=0) + 1000
        positions |= {path: start + k for k, path in enumerate(sorted(paths, key=_natural))}
    return positions


def _natural(path: str) -> list[str | int]:
    """Sort key by which `p9` comes before `p10`."""
    return [int(part) if k % 2 else part for k, part in enumerate(re.split("([0-9]+)", PurePosixPath(path).name))]


def _views(hashes: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Views of the turned head to compare, both ways round: a mirrored picture has not exactly the mirrored hash."""
    return [(1, view) for view in range(1, hashes.shape[1])]


def _ways(views: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The views, and those that differ the other way round too."""
    return list(dict.fromkeys([*views, *((right, left) for left, right in views)]))


def _safe_limit(bits: NDArray, limit: float, tolerated: float) -> float:
    """The largest distance up to `limit` with few pairs of unrelated images, see `FALSE_SHARE` and `MAX_GROWTH`."""
    bits = np.sort(bits)
    while limit > 0:
        steps = np.searchsorted(bits, [limit - k * _STEP + 0.25 for k in range(3)])
        here, before = steps[0] - steps[1], steps[1] - steps[2]
        if here <= max(tolerated, MAX_GROWTH * before):
            break
        limit -= _STEP / 2
    return max(limit, 0)


def _pairs(
    search: NearSearch,
    hashes: NDArray[np.bool_],
    fingerprints: NDArray[np.uint8] | None,
    limit: int,
    people: NDArray[np.int64] | None,
) -> tuple[Pairs, float, float]:
    """Near pairs by upright and turned hashes, and the limits of both in bits.

    A turned distance counts as if it were an upright one, that of copies as 0.
    """

    def allowed(pairs: Pairs, copies_too: bool) -> Pairs:
        """Without those of two known patients, or with those that are copies by the upright hash."""
        if people is None:
            return pairs
        known, strangers = _known(people, *pairs[:2])
        drop = known & strangers & (pairs[2] > MAX_DISTANCE_PATIENTS) if copies_too else known
        return chosen(pairs, ~drop)

    copies = None
    if len(hashes) > MANY and hashes.shape[2] % 64 == 0:
        copies = search.copies(COPY)
    pairs, upright_limit = _linked(
        search, hashes, fingerprints, [(0, 0)], float(limit), partial(allowed, copies_too=True), copies
    )
    views = _views(hashes)
    if not views:
        return pairs, upright_limit, limit * TURNED_SHARE
    (first, second, bits), turned_limit = _linked(
        search, hashes, fingerprints, views, limit * TURNED_SHARE, partial(allowed, copies_too=False), copies
    )
    return joined(pairs, (first, second, bits / TURNED_SHARE)), upright_limit, turned_limit


def _linked(
    search: NearSearch,
    hashes: NDArray[np.bool_],
    fingerprints: NDArray[np.uint8] | None,
    views: Sequence[tuple[int, int]],
    limit: float,
    allowed: Callable[[Pairs], Pairs],
    known: tuple[NDArray, NDArray] | None,
) -> tuple[Pairs, float]:
    """Of near pairs the copies, as pairs of distance 0, and those within the distance that is safe, which is returned.

    Copies are not counted where the distance is looked for: they are as near in any collection, however near its
    unrelated images are.

    Args:
        search: for near pairs.
        hashes: (N, views, bits).
        fingerprints: that the hashes are of.
        views: to compare.
        limit: that is asked for.
        allowed: pairs that may be linked.
        known: copies, of more than `MANY` images, that have to be within the limit too; None: each pair is looked at.
    """
    count, asked = len(hashes), limit
    max_false_pairs = max(0.5, FALSE_SHARE * count / 2)
    reaches: list[float] = [asked]
    if known is not None:
        sampled = _sampled_limit(hashes, fingerprints, views, asked, allowed, max_false_pairs)
        if sampled <= INDEXED[1]:
            least = min(max(INDEXED[0], int(sampled) + _STEP // 2), INDEXED[1])
            reaches = [*range(least, INDEXED[1] + 1, _STEP), asked]
    for reach in reaches:  # the sample may err: where all is safe that was looked at, more is
        indexed = known is not None and reach < asked
        both = search.within(views, reach, indexed)
        if known is not None and indexed:
            far = [(*known, distances(hashes[:, left], hashes[:, right], *known)) for left, right in _ways(views)]
            both = joined(both, *(chosen(pairs, pairs[2] > reach) for pairs in far))
        first, second, bits = allowed(chosen(both, both[2] <= asked + 0.25))
        if count < MIN_IMAGES:
            return (first, second, bits), limit
        copies = _are_copies(fingerprints, first, second)
        most = asked - math.ceil((asked - reach) / (_STEP / 2)) * _STEP / 2
        limit = _safe_limit(bits[~copies], most, max_false_pairs)
        if limit < most:
            break
    if limit < asked:
        logger.warning(
            "near-duplicates are taken within %.0f bits in place of %.0f: unrelated images of this collection are as "
            "much alike as that; farther ones only where the gray values say that they are copies",
            limit, asked,
        )  # fmt: skip
    return chosen((first, second, np.where(copies, 0, bits)), copies | (bits <= limit + 0.25)), limit


def _are_copies(fingerprints: NDArray[np.uint8] | None, first: NDArray, second: NDArray) -> NDArray[np.bool_]:
    if fingerprints is None:
        return np.zeros(len(first), bool)
    return np.asarray((unlikeness(fingerprints, first, second) <= COPY).any(axis=1))


def _sampled_limit(
    hashes: NDArray[np.bool_],
    fingerprints: NDArray[np.uint8] | None,
    views: Sequence[tuple[int, int]],
    limit: float,
    allowed: Callable[[Pairs], Pairs],
    tolerated: float,
) -> float:
    """The distance that is safe, as the pairs of a seeded sample of the images say; what is near is not decided by it.

    It only says whether the distance is so small that the index finds all pairs; then they are all counted.
    """
    count = len(hashes)
    rows = np.sort(np.random.default_rng(0).choice(count, SAMPLED, replace=False))
    near = [near_rows(hashes[:, left], hashes[:, right], rows, limit) for left, right in _ways(views)]
    first, second, bits = allowed(joined(*near))
    # Every pair of the sample with another image: two of `count` rows hold it.
    return _safe_limit(bits[~_are_copies(fingerprints, first, second)], limit, tolerated * 2 * SAMPLED / count)


def _known(people: NDArray[np.int64], first: NDArray, second: NDArray) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of which pairs both patients are known, and which are of two patients."""
    return (people[first] >= 0) & (people[second] >= 0), people[first] != people[second]


def _neighbors(hashes: NDArray[np.bool_], order: NDArray[np.int64], limit: int) -> Pairs:
    """Pairs one or two places apart; their distance counts less than that of others, by `ORDER_SHARE`.

    None where the order says nothing: where neighbors are hardly more often alike than images far apart.
    """
    near = _apart(hashes, order, range(1, ORDER_STEPS + 1))
    far = _apart(hashes, order, STRANGER_STEPS)
    alike, strangers = (int((pairs[2] <= limit + 0.25).sum()) for pairs in (near, far))
    if len(near[0]) and len(far[0]) and alike / len(near[0]) < ORDER_GAIN * (strangers + 1) / len(far[0]):
        logger.info(
            "the order of names says nothing about patients: %d of %d neighbors are alike, %d of %d images far apart",
            alike, len(near[0]), strangers, len(far[0]),
        )  # fmt: skip
        return near[0][:0], near[1][:0], near[2][:0]
    return near


def _apart(hashes: NDArray[np.bool_], order: NDArray[np.int64], steps: Sequence[int]) -> Pairs:
    """Pairs so many places apart; their distance in bits counts less than that of others, by `ORDER_SHARE`."""
    place = {value: k for k, value in enumerate(order.tolist())}
    pairs = [(k, place[value + step]) for value, k in place.items() for step in steps if value + step in place]
    first, second = np.array(pairs, np.int64).reshape(-1, 2).T
    distance = (hashes[first, 0] != hashes[second, 0]).sum(axis=1).astype(np.float64)
    for left, right in _ways(_views(hashes)):
        turned = (hashes[first, left] != hashes[second, right]).sum(axis=1)
        distance = np.minimum(distance, turned / TURNED_SHARE)
    return first, second, distance / ORDER_SHARE


def close_to_training(hashes: NDArray, sides: Sequence[str], known: Sequence[bool] | None = None) -> float | None:
    """Share of the test images with an image of the training part within `CLOSE_DISTANCE` bits, as a sign of leaks.

    Args:
        hashes: fingerprints, or hashes alone, as for `group_near_duplicates`; turned heads count as there.
        sides: (N) split of each.
        known: (N) whether its patient is known: two of them are known to be strangers, and do not count.

    Returns:
        the share, rounded to 4 digits; None without a test or a training image.
    """
    hashes = unpacked(hashes) if hashes.dtype == np.uint8 else hashes
    part, of_known_patient = np.array(sides), np.zeros(len(sides), bool) if known is None else np.array(known)
    tested, trained = hashes[part == "test"], hashes[part == "training"]
    known_tested, known_trained = of_known_patient[part == "test"], of_known_patient[part == "training"]
    if not len(tested) or not len(trained):
        return None
    close = np.zeros(len(tested), bool)
    for left, right in [(0, 0), *_ways(_views(hashes))]:
        limit = CLOSE_DISTANCE * (1 if left == 0 else TURNED_SHARE)
        other = trained[:, right].astype(np.float32) * 2 - 1
        for start in range(0, len(tested), _BLOCK):
            block = tested[start : start + _BLOCK, left].astype(np.float32) * 2 - 1
            agreement = block @ other.T  # bits alike less bits unlike
            agreement[np.outer(known_tested[start : start + _BLOCK], known_trained)] = -np.inf
            close[start : start + _BLOCK] |= agreement.max(axis=1) >= hashes.shape[2] - 2 * (limit + 0.25)
    return round(float(close.mean()), 4)


def group_near_duplicates(
    hashes: NDArray,
    max_distance: int = MAX_DISTANCE,
    same: NDArray[np.int64] | None = None,
    people: NDArray[np.int64] | None = None,
    order: NDArray[np.int64] | None = None,
    index: Path | None = None,
) -> tuple[NDArray[np.int64], Distances]:
    """Join images whose hashes differ by at most `max_distance` bits, directly or over others (single linkage).

    Where that chains more than 20 images and more than a tenth of all into one group, the distance is lowered by
    8 bits until it does not; exact duplicates stay together whatever the distance.

    Args:
        hashes: fingerprints, uint8 (N, 672); or hashes alone, bool (N, bits) or (N, 5, bits), with no thumbnails to
            tell copies by. N >= 1. Turned heads may differ by 0.9 as many bits.
        max_distance: in bits, from 0 to `bits`.
        same: (N,) content numbers: images of one number are duplicates.
        people: (N,) patient numbers, -1 where unknown: images of two known patients are joined at 8 bits at most, and
            by the upright hash only.
        order: (N,) places in the order of the files, each but once: images one or two places apart may differ by 1.7
            times as many bits. Leave gaps between folders.
        index: folder of what earlier searches found, which images that it has not are compared with and added to.

    Returns:
        Group number of every image, int64 (N,), counted from 0 in order of first appearance, and the distances used.

    Raises:
        ValueError: when there is no hash, or the distance is out of range.
    """
    if hashes.ndim not in (2, 3) or len(hashes) == 0:
        raise ValueError(f"expected hashes of shape (N, bits) or (N, 5, bits) with N >= 1, got {hashes.shape}")
    fingerprints = hashes if hashes.dtype == np.uint8 else None
    hashes = hashes if fingerprints is None else unpacked(fingerprints)
    hashes = hashes[:, None] if hashes.ndim == 2 else hashes
    if not 0 <= max_distance <= hashes.shape[2]:
        raise ValueError(f"max_distance must be from 0 to {hashes.shape[2]} bits, got {max_distance}")
    count = len(hashes)
    search = NearSearch(hashes, fingerprints, index)
    (first, second, distance), upright, turned = _pairs(search, hashes, fingerprints, max_distance, people)
    search.keep()
    ordered = False
    if order is not None:
        nearby = _neighbors(hashes, order, max_distance)
        ordered = len(nearby[0]) > 0
        first, second, distance = (np.concatenate(both) for both in zip((first, second, distance), nearby, strict=True))
    links = (
        np.arange(count)
        if same is None
        else np.unique(same, return_index=True)[1][np.unique(same, return_inverse=True)[1]]
    )
    allowed = max(MAX_GROUP, math.ceil(MAX_GROUP_SHARE * count))
    while True:
        near = distance <= max_distance + 0.25
        rows, columns = np.concatenate([first[near], np.arange(count)]), np.concatenate([second[near], links])
        graph = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(count, count))
        labels = connected_components(graph, directed=False)[1]
        largest = int(np.bincount(labels).max())
        if largest <= allowed or max_distance == 0:
            break
        lower = max(0, max_distance - _STEP)
        logger.warning(
            "%d of %d images chained into one near-duplicate group at %d bits; trying %d bits",
            largest, count, max_distance, lower,
        )  # fmt: skip
        max_distance = lower
    numbers = {label: k for k, label in enumerate(dict.fromkeys(labels.tolist()))}
    used = Distances(
        upright=min(upright, max_distance),
        turned=min(turned, round(max_distance * TURNED_SHARE, 1)),
        neighbors=round(max_distance * ORDER_SHARE, 1) if ordered else None,
    )
    return np.array([numbers[label] for label in labels.tolist()], dtype=np.int64), used
