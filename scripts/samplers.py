"""Batches that mix items with and without masks in a given share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler


class MixedBatchSampler(Sampler[list[int]]):
    """Shuffled batches with a fixed number of items that have a mask; the order depends on seed and epoch alone.

    An epoch has as many batches as the data fill once; the scarcer kind is repeated, the other not fully shown, where
    their shares differ from the data's. Without ``masked_share`` it is a plain seeded shuffle.

    Args:
        has_mask: one bool an item.
        batch_size: items a batch; the last batch may be smaller only without ``masked_share``.
        masked_share: share of items with a mask in every batch, rounded to whole items, or None for the data's own.
        seed: of the shuffling.

    Raises:
        ValueError: when a kind of item that the share asks for does not exist.
    """

    def __init__(self, has_mask: Sequence[bool], batch_size: int, masked_share: float | None = None, seed: int = 0):
        self.with_mask = np.flatnonzero(np.asarray(has_mask, dtype=bool))
        self.without_mask = np.flatnonzero(~np.asarray(has_mask, dtype=bool))
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        self.total = len(has_mask)
        if self.total == 0:
            raise ValueError("no items to draw batches from: the training part of the datalist is empty for this stage")
        self.masked: int | None = None
        if masked_share is not None:
            if not 0 <= masked_share <= 1:
                raise ValueError(f"masked_share lies between 0 and 1, got {masked_share}")
            self.masked = round(masked_share * batch_size)
            for count, items, kind in (
                (self.masked, self.with_mask, "with"),
                (batch_size - self.masked, self.without_mask, "without"),
            ):
                if count > 0 and len(items) == 0:
                    raise ValueError(f"masked_share={masked_share} asks for items {kind} a mask, and there are none")

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.total // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.masked is None:
            order = rng.permutation(self.total)
            for start in range(0, self.total, self.batch_size):
                yield order[start : start + self.batch_size].tolist()
            return
        masked = _repeat_shuffled(rng, self.with_mask, self.masked * len(self))
        unmasked = _repeat_shuffled(rng, self.without_mask, (self.batch_size - self.masked) * len(self))
        rest = self.batch_size - self.masked
        for b in range(len(self)):
            yield masked[b * self.masked : (b + 1) * self.masked] + unmasked[b * rest : (b + 1) * rest]


def _repeat_shuffled(rng: np.random.Generator, items: np.ndarray, count: int) -> list[int]:
    drawn: list[int] = []
    while len(drawn) < count:
        drawn.extend(rng.permutation(items).tolist())
    return drawn[:count]


def has_mask(items: Sequence[dict[str, Any]]) -> list[bool]:
    """Which items of a datalist carry a mask."""
    return ["label" in item for item in items]
