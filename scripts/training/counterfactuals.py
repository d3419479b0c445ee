"""Counterfactual items, drawn on the fly: heads whose tumor was taken out, tumors in heads without one, and controls.

Where the pictures with and without a tumor come from different collections, a network can answer by the collection and
never look at the tumor. Here the same head comes with and without its tumor, so that nothing else distinguishes them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from scripts.data.caching import CachedDataset
from scripts.data.planes import plane_of
from scripts.data.samplers import both_shares
from scripts.interventions.infills import TRAINING_INFILLS
from scripts.interventions.insertion import TRAINING_BLENDS, Donor
from scripts.interventions.interventions import Outcome, remove, swap, transplant
from scripts.interventions.likeness import Look, Looks, Turn
from scripts.interventions.regions import NoRoom
from transforms.intensity import normalize_foreground
from transforms.masking import mask_background

logger = logging.getLogger(__name__)

KINDS = ("removed", "moved", "removal_control", "move_control", "swapped", "swap_control")
# Heads compared with each host at most, and those kept to draw from: the nearest, turned and mirrored as they fit.
_CANDIDATES, _ALIKE = 4096, 32
# Donors tried for a host before it stays as it is.
_TRIES = 3


class Counterfactuals:
    """Changes an item by chance; what it is then is true by construction.

    With a tumor: ``removed`` (class 0, empty mask) or ``removal_control`` (healthy tissue replaced elsewhere, all
    else as it was); or ``swapped`` (its own tumor taken out, that of a donor with its class and mask put in, so that
    the kind does not follow from the head either) or ``swap_control`` (its own taken out and put back). Without, where
    "no tumor" means no lesion: ``moved`` (the tumor of a donor from the items, with its class and mask) or
    ``move_control`` (healthy tissue of a donor, all else as it was), so that seams tell nothing. Infills and blends are
    drawn from those for training; what `scripts.interventions` holds out is never used. The
    image is normalized over the head again: a file changed so would have come out of the pipeline like this.

    Args:
        dataset: the items, prepared.
        share: of the items that are changed: one number, or two, of those with a tumor and of those without a lesion;
            0: none. Where no tumor comes from a head of the same view, a head without one stays as it is.
        control_share: of these, controls.
        swap_share: of the changed items with a tumor, those that get another's; 0: none.
        infills, blends: of `scripts.interventions`, without the held out.

    Raises:
        ValueError: when a share is not in [0, 1], or a method is unknown or held out.
    """

    def __init__(
        self,
        dataset: CachedDataset,
        share: float | Sequence[float] = 0.5,
        control_share: float = 0.3,
        swap_share: float = 0.0,
        infills: Sequence[str] = TRAINING_INFILLS,
        blends: Sequence[str] = TRAINING_BLENDS,
    ):
        self.shares = both_shares(share)
        for name, part in (("control_share", control_share), ("swap_share", swap_share)):
            if not 0 <= part <= 1:
                raise ValueError(f"{name} lies between 0 and 1, got {part}")
        for requested, allowed in ((infills, TRAINING_INFILLS), (blends, TRAINING_BLENDS)):
            if not requested or set(requested) - set(allowed):
                raise ValueError(f"training draws from {', '.join(allowed)}; the others are held out; got {requested}")
        self.dataset, self.control_share, self.swap_share = dataset, control_share, swap_share
        self.infills, self.blends = tuple(infills), tuple(blends)
        self.donors = np.empty(0, int)
        self.alike: dict[int, list[tuple[int, Turn]]] = {}
        if any(self.shares):
            items = [dataset.prepared(i) for i in range(len(dataset.data))]
            if any("region_masks" in item for item in items):
                raise ValueError("counterfactual items are made of one region, these have several: set the share to 0")
            self.donors = np.asarray([i for i, item in enumerate(items) if has_tumor(item)], int)
            hosts = [i for i, item in enumerate(items) if lesion_free(item)]
            drawn = np.random.default_rng(0).permutation(self.donors)[:_CANDIDATES]
            if len(drawn):
                looks = Looks([look(items[i], dataset.data[i]) for i in drawn])
                for i in [*hosts, *(self.donors.tolist() if swap_share else [])]:
                    near = looks.nearest(look(items[i], dataset.data[i]), _ALIKE)
                    self.alike[i] = [(int(drawn[n.place]), n.turn) for n in near if drawn[n.place] != i]
            fitting = sum(bool(self.alike.get(i)) for i in hosts)
            logger.info(
                "counterfactual items: shares %g and %g; %d tumors, some of the same view for %d of %d heads without",
                *self.shares,
                len(self.donors),
                fitting,
                len(hosts),
            )
            if swap_share:
                swapped = sum(bool(self.alike.get(int(i))) for i in self.donors)
                logger.info("swapped heads: some of the same view for %d of %d tumors", swapped, len(self.donors))

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The item, changed or not, prepared and not yet augmented; key "intervention": of `KINDS`, or ""."""
        item = self.dataset.prepared(index)
        kind = ""
        tumor = has_tumor(item)
        if rng.random() < self.shares[not tumor]:
            control = rng.random() < self.control_share
            if tumor:
                kind = "removal_control" if control else "removed"
                if self.swap_share and self.alike.get(index) and rng.random() < self.swap_share:
                    kind = "swap_control" if control else "swapped"
            elif self.alike.get(index):
                kind = "move_control" if control else "moved"
        return self.changed(index, kind, rng)

    def changed(self, index: int, kind: str, rng: np.random.Generator) -> dict[str, Any]:
        """An item changed as asked; as it is where its head leaves no room for that (key "intervention" is "" then)."""
        item = {**self.dataset.prepared(index), "intervention": ""}
        if not kind:
            return item
        if kind.startswith("remov"):
            try:
                outcome = remove(*arrays(item), rng, str(rng.choice(self.infills)), _margin(rng), kind != "removed")
            except NoRoom:
                return item
            return {**item, **answer(item, item, outcome), "intervention": kind}
        image, mask, foreground = arrays(item)
        alike = self.alike.get(index, [])
        for choice in rng.permutation(len(alike))[:_TRIES]:
            place, turn = alike[choice]
            donor = self.dataset.prepared(place)
            turned_donor, blend = Donor(*arrays(donor)).turned(turn), str(rng.choice(self.blends))
            control = kind.endswith("control")
            try:
                if kind.startswith("swap"):
                    how = str(rng.choice(self.infills))
                    outcome = swap(image, mask, foreground, turned_donor, rng, how, blend, _margin(rng), control)
                else:
                    outcome = transplant(image, foreground, turned_donor, rng, blend, _margin(rng), control)
            except NoRoom:
                continue
            return {**item, **answer(item, donor, outcome), "intervention": kind}
        return item


def has_tumor(item: Mapping[str, Any]) -> bool:
    """Whether an item has a known class of tumor and its mask."""
    return item["diagnosis"] > 0 and item["has_mask"] and bool(item["label"].any())


def lesion_free(item: Mapping[str, Any]) -> bool:
    """Whether an item is known to show no lesion."""
    return item["diagnosis"] == 0 and item["has_mask"]


def look(item: Mapping[str, Any], source: Mapping[str, Any]) -> Look:
    """Of a prepared item; ``source`` is its entry in the datalist."""
    image, _, foreground = arrays(item)
    return Look.of(image, foreground, plane_of(source))


def _margin(rng: np.random.Generator) -> int:
    return int(rng.integers(2, 6))


def arrays(item: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image (C, X, Y[, Z]), tumor and head (X, Y[, Z]) of a prepared item."""
    return item["image"].numpy(), item["label"][0].numpy() != 0, item["foreground"][0].numpy() != 0


def answer(item: Mapping[str, Any], donor: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
    """What an outcome changes of its item: image, mask and class."""
    image = normalize_foreground(torch.from_numpy(outcome.image), item["foreground"])
    diagnosis = {"none": 0, "host": item["diagnosis"], "donor": donor["diagnosis"]}[outcome.answer]
    label = torch.from_numpy(outcome.mask[None].astype(np.uint8))
    return {"image": mask_background(image, item["foreground"]), "label": label, "diagnosis": diagnosis}


class Changed:
    """Changed items of a dataset, the same at every call: for a validation, after the items as they are.

    Args:
        count: how many of each of ``kinds`` at most; 0: none.
        seed: of the changes.
        kinds: of `KINDS`.

    Raises:
        ValueError: when ``count`` is less than 0.
    """

    def __init__(self, count: int, seed: int = 0, kinds: Sequence[str] = ("removed", "moved")):
        if count < 0:
            raise ValueError(f"validation_counterfactuals is 0 or more, got {count}")
        self.count, self.seed, self.kinds = count, seed, tuple(kinds)

    def __call__(self, dataset: CachedDataset) -> list[dict[str, Any]]:
        """The changed items.

        Raises:
            ValueError: when the dataset has no item that could be changed so.
        """
        if not self.count:
            return []
        made = Counterfactuals(dataset, 1.0, swap_share=float(any(kind.startswith("swap") for kind in self.kinds)))
        items: list[dict[str, Any]] = []
        for kind in self.kinds:
            fitting: Callable[[Mapping[str, Any]], bool] = lesion_free if kind.startswith("move") else has_tumor
            indices = [i for i in range(len(dataset.data)) if fitting(dataset.prepared(i))]
            if not indices or not len(made.donors):
                raise ValueError(f"validation_counterfactuals: no item of the validation can be {kind!r}; set it to 0")
            rng = np.random.default_rng((self.seed, KINDS.index(kind)))
            drawn = (made.changed(int(i), kind, rng) for i in rng.permutation(indices))
            items += islice((item for item in drawn if item["intervention"]), self.count)
        return items
