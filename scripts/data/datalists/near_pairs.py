"""Pairs of hashes that differ in few bits, and of thumbnails that are copies: each with each, or by an index.

The index is that of several tables by the pigeonhole principle: of two hashes that differ in at most as many bits as
there are parts, less one, one part is the same; of twice as many parts and more, one part differs in a bit at most. It
finds every pair, and pays where the distance is small. Measured on 25,000 drawn heads of one view, upright: 0.2 CPU
seconds within 12 bits by 13 parts looked up as they are (by 7 parts with a free bit there are 220 tables in place of
13, and by 17 parts within 16 bits twice as many candidates as by 9 with one); 0.8 within 16 bits. At 40 bits
IndexBinaryMultiHash of faiss is slower than each with each (1.8 s against .04 on 5,000).

Source: Norouzi, Punjani, Fleet: Fast search in Hamming space with multi-index hashing, CVPR 2012.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from scripts.data.datalists.fingerprints import standardized, thumbnails, unlikeness

__all__ = [
    "INDEXED",
    "Pairs",
    "chosen",
    "copy_pairs",
    "distances",
    "indexed_pairs",
    "joined",
    "near_pairs",
    "near_rows",
]

Pairs = tuple[NDArray, NDArray, NDArray]  # first, second, distance in bits

INDEXED = (8, 24)  # bits, within which the index is used: those that it is fit for
PLAIN = 13  # bits, up to which all parts are looked up as they are
_BLOCK = 512
_AT_ONCE = 1 << 22  # pairs that are looked at together
_COMPONENTS = 6  # of the thumbnails, in which their neighbors are looked for
_FITTED = 5000  # thumbnails that the components are of, at most


def chosen(pairs: Pairs, keep: NDArray[np.bool_]) -> Pairs:
    """Some of the pairs."""
    return pairs[0][keep], pairs[1][keep], pairs[2][keep]


def joined(*pairs: Pairs) -> Pairs:
    """All pairs, one after the other."""
    first, second, distance = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return first, second, distance


def near_pairs(left: NDArray[np.bool_], right: NDArray[np.bool_] | None, limit: float, new: int = 0) -> Pairs:
    """All pairs (first, second, distance in bits), first < second, with ``left`` of one near ``right`` of the other.

    Args:
        left: (N, bits).
        right: (N, bits), and a pair that is near both ways round is there twice; None: ``left`` itself.
        limit: most bits that differ.
        new: least ``second``; pairs of those before are known.
    """
    same, one = right is None, _signs(left)
    two = one if right is None else _signs(right)
    parts = []
    for start in range(0, len(one), _BLOCK):
        begin = max(start, new) if same else 0 if start + _BLOCK > new else new
        first, second, bits = _near(one[start : start + _BLOCK], two[begin:], limit)
        parts.append(_ordered(first + start, second + begin, bits, same, new))
    return joined(*parts)


def _ordered(first: NDArray, second: NDArray, bits: NDArray, same: bool, new: int) -> Pairs:
    """Pairs with the smaller number first, each but once where both come from the same hashes."""
    keep = first < second if same else first != second
    keep &= np.maximum(first, second) >= new
    return chosen((np.minimum(first, second), np.maximum(first, second), bits), keep)


def near_rows(left: NDArray[np.bool_], right: NDArray[np.bool_], rows: NDArray[np.int64], limit: float) -> Pairs:
    """The pairs of some rows of ``left`` with all others of ``right``."""
    one, two = _signs(left[rows]), _signs(right)
    parts = []
    for start in range(0, len(one), _BLOCK):
        first, second, bits = _near(one[start : start + _BLOCK], two, limit)
        left_rows = rows[first + start]
        parts.append(chosen((left_rows, second, bits), left_rows != second))
    return joined(*parts)


def _signs(bits: NDArray[np.bool_]) -> NDArray[np.float32]:
    return bits.astype(np.float32) * 2 - 1


def _near(one: NDArray[np.float32], two: NDArray[np.float32], limit: float) -> Pairs:
    agreement = one @ two.T  # bits alike less bits unlike
    first, second = np.divmod(np.flatnonzero(agreement >= one.shape[1] - 2 * (limit + 0.25)), agreement.shape[1])
    return first, second, (one.shape[1] - agreement[first, second]) / 2


def distances(left: NDArray[np.bool_], right: NDArray[np.bool_], first: NDArray, second: NDArray) -> NDArray:
    """Bits in which ``left[first]`` and ``right[second]`` differ, float64 (P,)."""
    return _unlike(_words(left), _words(right), first, second)


def _words(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(np.packbits(bits, axis=-1)).view(np.uint64)


def _unlike(one: NDArray[np.uint64], two: NDArray[np.uint64], first: NDArray, second: NDArray) -> NDArray:
    return np.bitwise_count(one[first] ^ two[second]).sum(axis=1).astype(np.float64)


def indexed_pairs(left: NDArray[np.bool_], right: NDArray[np.bool_] | None, limit: int, new: int = 0) -> Pairs:
    """What `near_pairs` finds, in less than quadratic time where hashes are unlike.

    Args:
        left: (N, bits), a multiple of 64 bits; N below 2**31.
        right: as there.
        limit: most bits that differ, so that a part has at most 32 bits (from 7 up for 256 bits).
        new: least second of a pair.

    Raises:
        ValueError: when a part would have more.
    """
    (count, bits), same = left.shape, right is None
    right = left if right is None else right
    # With one part more than bits that differ one is the same; of fewer and longer parts, one differs in a bit at most.
    parts = limit + 1 if limit <= PLAIN else limit // 2 + 1
    if -(-bits // parts) > 32:
        raise ValueError(f"parts of more than 32 bits: {bits} bits within {limit}")
    one, two = _words(left), _words(right)
    joins = [(slice(0, count), slice(new, count)), (slice(new, count), slice(0, new))][: 1 if same or not new else 2]
    codes = [np.zeros(0, np.int64)]
    for part in range(parts):
        left_keys, other = _keys(left[:, part::parts]), _keys(right[:, part::parts])
        # As many parts may differ in one bit as are left over once each other part differs in one.
        for free in range(len(range(part, bits, parts))) if part < limit - parts + 1 else [-1]:
            kept = np.uint64(0xFFFFFFFF if free < 0 else 0xFFFFFFFF ^ (1 << free))
            for mine, others in joins:
                for first, second in _equal(left_keys[mine] & kept, other[others] & kept):
                    first, second = first + mine.start, second + others.start
                    keep = first < second if same else first != second
                    first, second = first[keep], second[keep]
                    near = _unlike(one, two, first, second) <= limit
                    codes.append(np.unique(first[near] * count + second[near]))
    first, second = np.divmod(np.unique(np.concatenate(codes)), count)
    return _ordered(first, second, _unlike(one, two, first, second), same, new)


def _keys(part: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Bits (N, 32 at most) as a number each."""
    bits = np.zeros((len(part), 32), bool)
    bits[:, 32 - part.shape[1] :] = part
    return np.packbits(bits, axis=1).view(">u4")[:, 0].astype(np.uint64)


def _equal(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> Iterator[tuple[NDArray, NDArray]]:
    """Pairs of equal keys of 32 bits, some million at a time."""
    count, every = len(left), len(left) + len(right)
    order = np.concatenate([left, right]) << np.uint64(32) | np.arange(every, dtype=np.uint64)
    order.sort()
    place = (order & np.uint64(0xFFFFFFFF)).astype(np.int64)
    key = order >> np.uint64(32)
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    lefts = np.add.reduceat((place < count).astype(np.int64), starts)  # they come first
    rights = np.diff(starts, append=every) - lefts
    both = (lefts > 0) & (rights > 0)
    starts, lefts, rights = starts[both], lefts[both], rights[both]
    total = lefts * rights
    ends = np.cumsum(total)
    for begin in range(0, int(ends[-1]) if len(ends) else 0, _AT_ONCE):
        number = np.arange(begin, min(begin + _AT_ONCE, int(ends[-1])))
        group = np.searchsorted(ends, number, side="right")
        within = number - (ends[group] - total[group])
        yield (
            place[starts[group] + within // rights[group]],
            place[starts[group] + lefts[group] + within % rights[group]] - count,
        )


def copy_pairs(fingerprints: NDArray[np.uint8], most: tuple[float, float], new: int = 0) -> tuple[NDArray, NDArray]:
    """All pairs, first < second, whose thumbnails are so much `unlikeness` at most, upright or turned.

    Args:
        fingerprints: uint8 (N, 672).
        most: of the pictures, and of the turned heads.
        new: least second of a pair.
    """
    codes = [np.zeros(0, np.int64)]
    for kind, limit in enumerate(most):
        flat = standardized(thumbnails(fingerprints)[:, kind])
        usable = np.flatnonzero(~np.isnan(flat).any(axis=(1, 2)))
        flat = flat[usable]
        if not len(flat):
            continue
        fitted = flat[:: -(-len(flat) // _FITTED)].reshape(-1, flat[0].size)
        axes = np.linalg.eigh(fitted.T.astype(np.float64) @ fitted)[1][:, -_COMPONENTS:]
        reach = np.sqrt(2 * limit) * 1.01  # of vectors of length 1; the rest is rounding
        tree, later = cKDTree(flat.reshape(-1, len(axes)) @ axes), np.flatnonzero(usable >= new)
        for down, along in ((1, 1), (1, -1), (-1, 1), (-1, -1))[: 4 if kind else 1]:
            mirrored = cKDTree(flat[later, ::down, ::along].reshape(-1, len(axes)) @ axes)
            both = tree.sparse_distance_matrix(mirrored, reach, output_type="ndarray")
            first, second = usable[both["i"]], usable[later[both["j"]]]
            codes.append((first * len(fingerprints) + second)[first < second])
    first, second = np.divmod(np.unique(np.concatenate(codes)), len(fingerprints))
    copies = (unlikeness(fingerprints, first, second) <= most).any(axis=1)
    return first[copies], second[copies]
