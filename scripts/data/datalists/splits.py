"""Deal patients, or groups where these are unknown, into training, validation and test."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np

from scripts.data.datalists.clusters import Item, clusters
from scripts.data.datalists.regions import Regions
from scripts.data.datalists.schema import DEFAULT_FRACTIONS, SPLITS, Datalist, validate

logger = logging.getLogger(__name__)


def split_clusters(
    strata: dict[str, str], fractions: Sequence[float] = DEFAULT_FRACTIONS, *, sizes=None, seed: int = 0
):
    """Deal clusters (patients, groups) into training, validation and test.

    Per stratum, the clusters are shuffled by the seed, then dealt largest first, each to the split that is least
    filled for its share of that stratum's items: sizes mix, and three clusters reach all three splits. The result does
    not depend on the order of `strata`.

    Args:
        strata: cluster name to stratum name (for instance its class).
        fractions: shares of training, validation and test; they sum to 1, and a part of 0 stays empty: (0, 0, 1) makes
            a test set of what was never trained on.
        sizes: cluster name to number of items, 1 if not given.
        seed: of the shuffle.

    Returns:
        Cluster name to split name.

    Raises:
        ValueError: when the fractions are not three numbers of at least 0 that sum to 1.
    """
    if len(fractions) != len(SPLITS) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must be three numbers from 0 that sum to 1 ({SPLITS}), got {tuple(fractions)}")
    wanted = [(k, share) for k, share in enumerate(fractions) if share]
    sizes = sizes or {}
    chosen: dict[str, str] = {}
    rng = np.random.default_rng(seed)
    for stratum in sorted(set(strata.values())):
        clusters = sorted(name for name, of_cluster in strata.items() if of_cluster == stratum)
        clusters = [clusters[k] for k in rng.permutation(len(clusters))]
        clusters.sort(key=lambda name: -sizes.get(name, 1))
        filled = np.zeros(len(SPLITS))
        for name in clusters:
            k, _ = min(wanted, key=lambda part: filled[part[0]] / part[1])
            chosen[name] = SPLITS[k]
            filled[k] += sizes.get(name, 1)
    return chosen


def with_a_share(fractions: Sequence[float]) -> list[str]:
    """The splits that are meant to hold anything."""
    return [split for split, share in zip(SPLITS, fractions, strict=True) if share]


def assemble(
    name: str,
    classes: Sequence[str],
    items: Sequence[Item],
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    *,
    modality: str | Sequence[str] = "FLAIR",
    seed: int = 0,
    strata: dict[str, str] | None = None,
    regions: Regions | None = None,
) -> Datalist:
    """Split items by `clusters` into a valid datalist.

    Args:
        name: of the datalist.
        classes: class names, no tumor first.
        items: all items, with `diagnosis`.
        fractions: shares of training, validation and test.
        modality: of the images, one name or one a channel.
        seed: of the split.
        strata: cluster to stratum; by default the most frequent diagnosis of its items.
        regions: of the masks, by name.

    With fewer patients or groups than splits, later splits stay empty: a list to be merged with others. A split whose
    share is 0 stays empty too.

    Raises:
        ValueError: as `split_clusters` and `validate`.
    """
    owners = clusters(items)
    members: dict[str, list[Item]] = {}
    for item, owner in zip(items, owners, strict=True):
        members.setdefault(owner, []).append(item)
    if strata is None:
        strata = {
            key: str(
                min(Counter(item["diagnosis"] for item in items_of).items(), key=lambda pair: (-pair[1], pair[0]))[0]
            )
            for key, items_of in members.items()
        }
    sizes = {key: len(items_of) for key, items_of in members.items()}
    sides = split_clusters(strata, fractions, sizes=sizes, seed=seed)
    wanted = with_a_share(fractions)
    if len(set(sides.values())) < len(wanted):  # small strata begin with training, each: deal them as one
        sides = split_clusters(dict.fromkeys(strata, ""), fractions, sizes=sizes, seed=seed)
    datalist: Datalist = {
        "name": name,
        "modality": {str(k): text for k, text in enumerate([modality] if isinstance(modality, str) else modality)},
        "classes": {str(k): text for k, text in enumerate(classes)},
        **({"regions": regions} if regions else {}),
        **{split: [] for split in SPLITS},
    }
    for item, owner in zip(items, owners, strict=True):
        datalist[sides[owner]].append(item)
    empty = [split for split in wanted if not datalist[split]]
    if empty:
        logger.warning(
            "%s: %d items of %d patients or groups are too few to split: nothing in %s; merge with other lists and "
            "--resplit",
            name, len(items), len(members), " and ".join(empty),
        )  # fmt: skip
    validate(datalist)
    return datalist
