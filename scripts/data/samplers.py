"""Batches with given shares of masks, classes and sources, each process its part of every batch."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from monai.transforms import Randomizable
from scipy.optimize import Bounds, LinearConstraint, milp
from torch.utils.data import Dataset, Sampler

logger = logging.getLogger(__name__)

MASK, EQUAL = "mask", "equal"
Shares = Mapping[Any, float] | str


class SampleIndex(int):
    """Index of an item, with its place in the epoch: what its augmentation is seeded with.

    Attributes:
        place: 0 for the first item of the epoch, over all batches and processes.
        filler: the item only fills the empty part of a process and must not count.
    """

    place: int
    filler: bool

    def __new__(cls, index: int, place: int, filler: bool = False) -> SampleIndex:  # noqa: D102
        draw = super().__new__(cls, index)
        draw.place, draw.filler = place, filler
        return draw

    def __reduce__(self) -> tuple[Any, ...]:
        return (SampleIndex, (int(self), self.place, self.filler))


class DrawnItems(Dataset):
    """Items as a sampler draws them: augmentation is a function of seed, epoch and place in the epoch alone.

    So neither the number of processes or loader workers nor what was drawn before changes an item. Items that are dicts
    carry their "index" in the dataset.

    Args:
        dataset: with a ``transform``; a random one is seeded again for every item.
        seed: of the run.
        change: of a prepared item, before its augmentation: from its index and a random generator; None: nothing.
    """

    def __init__(self, dataset: Any, seed: int = 0, change: Callable[[int, np.random.Generator], Any] | None = None):
        self.dataset, self.seed, self.epoch, self.change = dataset, seed, 0, change

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation the next items get."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        place = getattr(index, "place", int(index))
        state = np.random.SeedSequence((self.seed, self.epoch, place))
        if isinstance(self.dataset.transform, Randomizable):
            self.dataset.transform.set_random_state(seed=int(state.generate_state(1)[0]))
        if self.change is None:
            item = self.dataset[int(index)]
        else:
            rng = np.random.default_rng(state.spawn(1)[0])
            item = self.dataset.augmented(self.change(int(index), rng))
        if isinstance(item, Mapping):
            item = {**item, "index": int(index)}
        if getattr(index, "filler", False):
            item = {**item, "has_mask": False, "diagnosis": -1}
        return item


class ShareSampler(Sampler[int]):
    """The items of one process, in order: every ``world``-th from the ``rank``-th on, none twice, none filled up.

    Args:
        dataset: whose items are shared.
        rank, world: number of this process, and of all.

    Raises:
        ValueError: when a process would have no item.
    """

    def __init__(self, dataset: Any, rank: int = 0, world: int = 1):
        if len(dataset) < world:
            raise ValueError(f"{len(dataset)} items cannot be shared by {world} processes; start fewer")
        self.indices = range(rank, len(dataset), world)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


class MixedBatchSampler(Sampler[list[int]]):
    """Shuffled batches with given shares of items; the order depends on seed and epoch alone.

    Without any share it is a plain seeded shuffle, each item ``repeats`` times, the last batch smaller. With shares, an
    epoch has as many batches as the data fill ``repeats`` times, all full; scarce items are repeated (each is seen
    before any comes again), plentiful ones not all shown. Over the epoch each share is met to the whole item: ``share *
    items`` rounded, so that the counts sum up (largest remainders). Every batch has the same mix, exactly where one
    attribute has shares and ``share * batch_size`` are whole numbers, else to about one item a kind. Where several
    attributes have shares, all are met at once; their combinations stay as near to the data's as that allows.

    Args:
        has_mask: one bool an item.
        batch_size: items a batch.
        masked_share: share of items with a mask, or None for whatever comes.
        seed: of the shuffling.
        groups: further attributes, name to one value an item, e.g. ``{"class": [...], "source": [...]}``.
        shares: by attribute of ``groups``: the share of each of its values, summing to 1 (0 leaves a value out), or
            ``"equal"``, or None for whatever comes. Values are compared as text: YAML's 0 and "0" are the same.
        alternating: every batch has either only items with a mask or only items without; ``masked_share`` is then the
            share of batches (one half if None).
        repeats: how often an epoch goes through the items, for several patches of each volume.
        rank, world: number of this process, and of all. Each gets its part of every batch, with the same mix, so that
            together they train on the batches of one. A last batch with fewer items than processes is filled up by
            items that do not count (see `SampleIndex`).

    Raises:
        ValueError: when there are no items, a batch has fewer items than there are processes, shares do not sum to 1,
            name an unknown value or leave one unnamed, ask for items that do not exist, or contradict each other.
    """

    def __init__(
        self,
        has_mask: Sequence[bool],
        batch_size: int,
        masked_share: float | None = None,
        seed: int = 0,
        groups: Mapping[str, Sequence[Any]] | None = None,
        shares: Mapping[str, Shares | None] | None = None,
        alternating: bool = False,
        rank: int = 0,
        world: int = 1,
        repeats: int = 1,
    ):
        self.rank, self.world = rank, world
        self.batch_size, self.seed, self.epoch, self.alternating = batch_size, seed, 0, alternating
        if repeats < 1:
            raise ValueError(f"an epoch goes through the items 1 or more times, got {repeats}")
        self.items, self.total = len(has_mask), len(has_mask) * repeats
        if self.total == 0:
            raise ValueError("no items to draw batches from: the training part of the datalist is empty for this stage")
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        if batch_size < world:
            raise ValueError(
                f"batch_size {batch_size} is less than {world} processes: it counts the items of all of them"
            )
        flags = ["with" if flag else "without" for flag in has_mask]
        wanted = _mask_shares(flags, masked_share, alternating, len(self))
        values = {MASK: flags}
        for name, requested in (shares or {}).items():
            if requested is None:
                continue
            if name not in (groups or {}) or name == MASK:
                raise ValueError(f"shares are given for {name!r}, but the attributes are: {', '.join(groups or {})}")
            values[name] = [str(value) for value in (groups or {})[name]]
            if len(values[name]) != self.items:
                raise ValueError(f"{name!r} has {len(values[name])} values for {self.items} items")
            wanted[name] = checked_shares(name, requested, values[name])
        self.counts = {name: _whole(by_value, len(self) * batch_size) for name, by_value in wanted.items()}
        self._kinds = list(zip(*values.values(), strict=True))
        self._cells: dict[tuple[str, ...], np.ndarray] = {}
        self._drawn: dict[tuple[str, ...], int] = {}
        if wanted:
            self._plan(list(values), self._kinds)

    def _plan(self, names: list[str], rows: list[tuple[str, ...]]) -> None:
        self._cells = {cell: np.asarray([i for i, row in enumerate(rows) if row == cell]) for cell in sorted(set(rows))}
        sizes = {cell: len(items) for cell, items in self._cells.items()}
        self._drawn = _cell_counts(names, sizes, self.counts)
        logger.info("items an epoch, of %d: %s", len(self) * self.batch_size, self.counts)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.total // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        place = 0
        for batch in self.whole_batches():
            draws: list[int] = [SampleIndex(index, place + k) for k, index in enumerate(batch)]
            if self.world > 1:  # dealt kind by kind: a process without masks would wait for the others' decoders
                draws = sorted(draws, key=lambda draw: self._kinds[draw])[self.rank :: self.world]
            yield draws or [SampleIndex(batch[0], place, filler=True)]
            place += len(batch)

    def whole_batches(self) -> Iterator[list[int]]:
        """The batches of the epoch over all processes."""
        rng = np.random.default_rng((self.seed, self.epoch))
        if not self._cells:
            order = _repeat_shuffled(rng, np.arange(self.items), self.total)
            for start in range(0, self.total, self.batch_size):
                yield order[start : start + self.batch_size]
            return
        drawn = {cell: _repeat_shuffled(rng, self._cells[cell], count) for cell, count in self._drawn.items()}
        if not self.alternating:
            yield from self._batches(drawn)
            return
        kinds = [list(self._batches({c: d for c, d in drawn.items() if c[0] == flag})) for flag in ("with", "without")]
        yield from _spread(kinds)

    def _batches(self, drawn: Mapping[tuple[str, ...], list[int]]) -> Iterator[list[int]]:
        order = _spread(list(drawn.values()))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]


def _mask_shares(flags: list[str], share: float | None, alternating: bool, batches: int) -> dict[str, dict[str, float]]:
    """The shares of items with and without a mask; empty if nothing is asked."""
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"masked_share lies between 0 and 1, got {share}")
    if share is None and not alternating:
        return {}
    part = 0.5 if share is None else share
    if alternating:
        part = math.floor(part * batches + 0.5) / batches
    wanted = {"with": part, "without": 1 - part}
    for kind, fraction in wanted.items():
        if fraction > 0 and kind not in flags:
            asked = "alternating" if share is None else f"masked_share={share}"
            raise ValueError(f"{asked} asks for items {kind} a mask, and there are none")
    return {MASK: wanted}


def both_shares(share: float | Sequence[float]) -> tuple[float, float]:
    """``counterfactual_share`` of items with a tumor, and of items without a lesion.

    Raises:
        ValueError: when it is neither one number in [0, 1] nor two.
    """
    shares = [share, share] if isinstance(share, (int, float)) else list(share)
    if len(shares) != 2 or not all(isinstance(value, (int, float)) and 0 <= value <= 1 for value in shares):
        raise ValueError(f"counterfactual_share lies between 0 and 1, one number or two, got {share}")
    return float(shares[0]), float(shares[1])


def checked_shares(name: str, stated: Shares, values: Sequence[str]) -> dict[str, float]:
    """The share of each value of an attribute, as it is drawn.

    Args:
        name: of the attribute.
        stated: the shares by value, or "equal".
        values: of the items.

    Raises:
        ValueError: when shares do not sum to 1, name an unknown value, or leave one unnamed.
    """
    present = Counter(values)
    if isinstance(stated, str):
        if stated != EQUAL:
            raise ValueError(f"shares of {name!r} are numbers by value, or {EQUAL!r}; got {stated!r}")
        return {value: 1 / len(present) for value in sorted(present)}
    shares = {str(value): float(share) for value, share in stated.items()}
    if min(shares.values(), default=-1) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"shares of {name!r} must be 0 or more and sum to 1, got {shares}")
    missing = [value for value, share in shares.items() if share > 0 and value not in present]
    if missing:
        raise ValueError(f"shares of {name!r} ask for {missing}, and the items have only {sorted(present)}")
    unnamed = sorted(set(present) - set(shares))
    if unnamed:
        raise ValueError(f"shares of {name!r} leave {unnamed} unnamed; give 0 to leave them out")
    return shares


def _whole(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Shares of ``total`` as whole numbers that sum to it, by largest remainders."""
    counts = {value: math.floor(share * total + 1e-9) for value, share in shares.items()}
    rest = sorted(shares, key=lambda value: (counts[value] - shares[value] * total, value))
    for value in rest[: total - sum(counts.values())]:
        counts[value] += 1
    return counts


def _cell_counts(
    names: list[str], sizes: Mapping[tuple[str, ...], int], counts: Mapping[str, Mapping[str, int]]
) -> dict[tuple[str, ...], int]:
    """How often each combination of values is drawn, so that each attribute's counts are met.

    The combinations are first raked (Deming and Stephan 1940: scaled to each attribute's counts in turn), which keeps
    them as near to the data's as the counts allow; the whole numbers nearest to that are an integer program.
    """
    cells = list(sizes)
    rows = [(names.index(name), value, want) for name, by_value in counts.items() for value, want in by_value.items()]
    matrix = np.asarray([[float(cell[k] == value) for cell in cells] for k, value, _ in rows])
    wants = np.asarray([want for *_, want in rows], float)
    target = np.asarray(list(sizes.values()), float)
    for _ in range(200):
        for row, want in zip(matrix, wants, strict=True):
            have = float(row @ target)
            target = np.where(row > 0, target * (want / have if have > 0 else 0.0), target)
    n = len(cells)  # variables: n counts, then n distances to the target
    eye = np.eye(n)
    met = LinearConstraint(np.hstack([matrix, np.zeros_like(matrix)]), wants, wants)
    near = LinearConstraint(np.vstack([np.hstack([eye, -eye]), np.hstack([-eye, -eye])]), -np.inf, [*target, *-target])
    solution = milp(
        np.r_[np.zeros(n), np.ones(n)],
        constraints=[met, near],
        integrality=np.r_[np.ones(n), np.zeros(n)],
        bounds=Bounds(0, np.inf),
    )
    if not solution.success:
        seen = ", ".join("/".join(cell) for cell in cells)
        raise ValueError(
            f"the shares contradict each other: no mix of the items' kinds ({'/'.join(names)}: {seen}) gives {counts}"
        )
    return {cell: round(value) for cell, value in zip(cells, solution.x[:n], strict=True)}


def _spread(lists: Sequence[list[Any]]) -> list[Any]:
    """Join lists so that each is spread evenly over the whole."""
    timed = [((k + 0.5) / len(items), j, item) for j, items in enumerate(lists) for k, item in enumerate(items)]
    return [item for _, _, item in sorted(timed, key=lambda entry: entry[:2])]


def _repeat_shuffled(rng: np.random.Generator, items: np.ndarray, count: int) -> list[int]:
    drawn: list[int] = []
    while len(drawn) < count:
        drawn.extend(rng.permutation(items).tolist())
    return drawn[:count]


def has_mask(items: Sequence[dict[str, Any]]) -> list[bool]:
    """Of which items of a datalist the mask is known: they carry one, or are known to be free of lesions."""
    return ["label" in item or bool(item.get("lesion_free")) for item in items]


def groups(items: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The attributes of a datalist's items that may have shares: class (-1 where not given) and source."""
    return {
        "class": [item.get("diagnosis", -1) for item in items],
        "source": [item.get("source", "unknown") for item in items],
    }
