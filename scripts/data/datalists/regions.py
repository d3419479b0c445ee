"""Regions of a tumor as named sets of label values: the ready schemes, and the checks of a datalist's own.

The order of a scheme is that of the network's output channels. The first region is the tumor: class, evidence and
verdict are about it; the others lie in it, or beside it, as a resection cavity does. A scheme is chosen by name and
never read off the values: 1, 2, 3 and 4 mean other tissue in other years, and most sets of values fit several schemes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Regions = dict[str, list[int]]

MAX_VALUE = 255
_WHOLE, _CORE, _ENHANCING = "whole_tumor", "tumor_core", "enhancing_tumor"
# brats2012: 1 necrosis, 2 edema, 3 non-enhancing, 4 enhancing. brats2017: 1 necrosis and non-enhancing, 2 edema,
# 4 enhancing. brats2023: 3 enhancing. brats2024: also 4 resection cavity. msd_task01: 1 edema, 2 non-enhancing,
# 3 enhancing.
SCHEMES: dict[str, Regions] = {
    "tumor": {"tumor": [1, 2, 3, 4]},
    "brats2012": {_WHOLE: [1, 2, 3, 4], _CORE: [1, 3, 4], _ENHANCING: [4]},
    "brats2017": {_WHOLE: [1, 2, 4], _CORE: [1, 4], _ENHANCING: [4]},
    "brats2023": {_WHOLE: [1, 2, 3], _CORE: [1, 3], _ENHANCING: [3]},
    "brats2024": {_WHOLE: [1, 2, 3], _CORE: [1, 3], _ENHANCING: [3], "resection_cavity": [4]},
    "msd_task01": {_WHOLE: [1, 2, 3], _CORE: [2, 3], _ENHANCING: [3]},
}


def check_regions(regions: Any, origin: str) -> None:
    """See that regions are names with label values of their own.

    Raises:
        ValueError: when they are not; says where.
    """
    if not isinstance(regions, Mapping) or not regions:
        raise ValueError(f'{origin}: regions are {{"name": [label values], ...}}, the tumor first; got {regions!r}')
    sets: dict[frozenset[int], str] = {}
    for name, values in regions.items():
        whole = isinstance(values, list) and values and all(type(v) is int and 1 <= v <= MAX_VALUE for v in values)
        if not (isinstance(name, str) and name.isidentifier()) or not whole or len(set(values)) < len(values):
            raise ValueError(
                f"{origin}: a region is a name of letters, digits and _ with different label values from 1 to "
                f"{MAX_VALUE}; got {name!r}: {values!r}"
            )
        if (other := sets.setdefault(frozenset(values), name)) != name:
            raise ValueError(f"{origin}: the regions {other!r} and {name!r} are of the same label values {values}")


def fitting(values: Iterable[int]) -> list[str]:
    """Names of the schemes with several regions that know all of these label values.

    >>> fitting([1, 2, 4]), fitting([1, 2, 3])
    (['brats2012', 'brats2017', 'brats2024'], ['brats2012', 'brats2023', 'brats2024', 'msd_task01'])
    """
    labels = set(values) - {0}
    return [
        name
        for name, regions in SCHEMES.items()
        if len(regions) > 1 and labels <= {v for vs in regions.values() for v in vs}
    ]


def own_values(regions: Mapping[str, Sequence[int]]) -> list[int]:
    """The label value that stands for each region alone: the smallest of its values that no later one has.

    >>> own_values({"whole_tumor": [1, 2, 4], "tumor_core": [1, 4], "enhancing_tumor": [4]})
    [2, 1, 4]
    """
    sets = [list(values) for values in regions.values()]
    later = [{v for values in sets[k + 1 :] for v in values} for k in range(len(sets))]
    return [
        min([v for v in of_region if v not in rest] or of_region) for of_region, rest in zip(sets, later, strict=True)
    ]
