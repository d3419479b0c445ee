"""All near pairs of some images: those that an index on disk knows are not looked for again.

A whole search is one with an index of no images. Kept are the fingerprints and the pairs of each kind, with the
distance within which all of them are known, and of how many images; a farther distance makes a whole search.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.command.files import whole
from scripts.data.datalists.fingerprints import SIZE, unpacked
from scripts.data.datalists.near_pairs import Pairs, chosen, copy_pairs, indexed_pairs, joined, near_pairs

__all__ = ["FILE", "NearSearch"]

logger = logging.getLogger(__name__)

FILE = "near_pairs.npz"
VERSION = 1  # of the file, of the fingerprints, and of what counts as a copy
UPRIGHT, TURNED, COPIES = "upright", "turned", "copies"


@dataclass(frozen=True)
class NearPairs:
    """All pairs of the first ``rows`` images within a distance."""

    pairs: Pairs
    reach: float
    rows: int


NOTHING = NearPairs((np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)), -1.0, 0)


class NearSearch:
    """The near pairs of images, by one kind of hash and distance at a time.

    Args:
        hashes: bool (N, views, bits).
        fingerprints: that they are of, uint8 (N, 672); None: there are only hashes.
        folder: of an index that these images are compared with, and that `keep` adds them to; needs fingerprints.

    Raises:
        ValueError: when what lies there is no index, or there are only hashes.
    """

    def __init__(
        self, hashes: NDArray[np.bool_], fingerprints: NDArray[np.uint8] | None, folder: Path | None = None
    ) -> None:
        self._folder, self._hashes, self._fingerprints = folder, hashes, fingerprints
        self._found: dict[str, NearPairs] = {}
        self._place: NDArray[np.int64] | None = None  # of each row of the index among the images; -1: not asked for
        if folder is not None:
            if fingerprints is None:
                raise ValueError("an index of near-duplicates holds fingerprints, and there are only hashes")
            self._join(fingerprints, folder / FILE)

    def _join(self, fingerprints: NDArray[np.uint8], path: Path) -> None:
        """Rows of the index first, then the images that it has not."""
        before = self._read(path) if path.exists() else np.zeros((0, SIZE), np.uint8)
        free: dict[bytes, list[int]] = {}
        for row in range(len(before) - 1, -1, -1):
            free.setdefault(before[row].tobytes(), []).append(row)
        rows: list[int] = []
        new: list[int] = []
        for k, fingerprint in enumerate(fingerprints):
            same = free.get(fingerprint.tobytes())
            rows.append(same.pop() if same else len(before) + len(new))
            if rows[-1] >= len(before):
                new.append(k)
        self._fingerprints = np.concatenate([before, fingerprints[new]])
        self._hashes = unpacked(self._fingerprints)
        self._place = np.full(len(self._fingerprints), -1)
        self._place[rows] = np.arange(len(fingerprints))
        logger.info("%s: %d images known, %d of %d are new", path.parent, len(before), len(new), len(fingerprints))

    def _read(self, path: Path) -> NDArray[np.uint8]:
        try:
            with np.load(path, allow_pickle=False) as file:
                content = dict(file)
            if int(content["version"]) != VERSION:
                raise KeyError("version")
            for kind in {UPRIGHT, TURNED, COPIES} & content.keys():
                first, second, bits = content[kind]
                reach, rows = content[f"{kind}_within"]
                pairs = (first.astype(np.int64), second.astype(np.int64), bits.astype(np.float64))
                self._found[kind] = NearPairs(pairs, float(reach), int(rows))
            return np.asarray(content["fingerprints"], np.uint8)
        except (ValueError, KeyError, OSError, EOFError) as error:
            raise ValueError(f"{path} is no index of near-duplicates of this version ({error}); delete it") from error

    def within(self, views: Sequence[tuple[int, int]], reach: float, indexed: bool) -> Pairs:
        """All pairs of images within a distance, first < second; a pair once for each two views that are near.

        Args:
            views: to compare, both ways round: the upright hash with itself, or those of the turned head.
            reach: bits.
            indexed: by `indexed_pairs`, else by `near_pairs`; both find the same.
        """

        def search(new: int) -> Pairs:
            both = ((self._hashes[:, left], None if left == right else self._hashes[:, right]) for left, right in views)
            if indexed:
                return joined(*(indexed_pairs(left, right, int(reach), new) for left, right in both))
            return joined(*(near_pairs(left, right, reach, new) for left, right in both))

        return self._with_new(UPRIGHT if list(views) == [(0, 0)] else TURNED, reach, search)

    def copies(self, most: tuple[float, float]) -> tuple[NDArray, NDArray]:
        """All pairs of images that are copies by their thumbnails, see `copy_pairs`; none of hashes alone."""
        fingerprints = self._fingerprints
        if fingerprints is None:
            return NOTHING.pairs[:2]

        def search(new: int) -> Pairs:
            first, second = copy_pairs(fingerprints, most, new)
            return first, second, np.zeros(len(first))

        return self._with_new(COPIES, 0.0, search)[:2]

    def _with_new(self, kind: str, reach: float, search: Callable[[int], Pairs]) -> Pairs:
        """Known pairs within a distance, and those with images that are new to the index; as pairs of the images."""
        known = self._found.get(kind, NOTHING)
        if known.reach < reach:
            known = NOTHING
        pairs = joined(chosen(known.pairs, known.pairs[2] <= reach + 0.25), search(known.rows))
        self._found[kind] = NearPairs(pairs, reach, len(self._hashes))
        if self._place is None:
            return pairs
        one, two = self._place[pairs[0]], self._place[pairs[1]]
        return chosen((np.minimum(one, two), np.maximum(one, two), pairs[2]), (one >= 0) & (two >= 0))

    def keep(self) -> None:
        """Write the index, with these images; without a folder nothing."""
        if self._folder is None or self._fingerprints is None:
            return
        content: dict[str, Any] = {"version": VERSION, "fingerprints": self._fingerprints}
        for kind, near in self._found.items():
            content |= {kind: np.stack(near.pairs).astype(np.int32), f"{kind}_within": [near.reach, near.rows]}
        with whole(self._folder / FILE) as place, open(place, "wb") as file:
            np.savez(file, **content)
