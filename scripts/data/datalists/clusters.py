"""Who the items of a datalist show: patients within their source, groups of near-duplicates, and both together."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

logger = logging.getLogger(__name__)

Item = dict[str, Any]


def patient_key(item: Item) -> str | None:
    """Who an item shows, the source before the number, as numbers count within their source; None where unknown.

    >>> patient_key({"patient": "sub-00", "source": "site_a"}), patient_key({"patient": "p1"}), patient_key({})
    ('site_a: sub-00', 'p1', None)
    """
    if "patient" not in item:
        return None
    return f"{item['source']}: {item['patient']}" if item.get("source") else str(item["patient"])


def shared_numbers(items: Sequence[Item]) -> dict[str, list[str]]:
    """Patient numbers that stand in several sources, each with these sources: two people, or one who was seen twice."""
    sources: dict[str, set[str]] = {}
    for item in items:
        if "patient" in item:
            sources.setdefault(str(item["patient"]), set()).add(str(item.get("source") or "(no source)"))
    return {number: sorted(names) for number, names in sorted(sources.items()) if len(names) > 1}


def warn_shared(shared: Mapping[str, Sequence[str]], advice: str) -> None:
    """Log that the numbers of `shared_numbers`, if there are any, are taken for different people, and what to do."""
    if shared:
        number, sources = next(iter(shared.items()))
        logger.warning(
            "%d patient numbers stand in several sources (first: %r in %s) and are taken for different people; %s",
            len(shared), number, " and ".join(sources), advice,
        )  # fmt: skip


def components(keys: Sequence[Sequence[Hashable]]) -> NDArray[np.int64]:
    """Number of the component of each element, in order of first appearance; those that share a key are in one.

    >>> components([["a"], ["b"], ["a", "c"], [], ["c"]]).tolist()
    [0, 1, 0, 2, 0]
    """
    first: dict[Hashable, int] = {}
    links = [(k, first.setdefault(key, k)) for k, shared in enumerate(keys) for key in (("", k), *shared)]
    rows, columns = np.array(links, dtype=np.int64).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(len(keys), len(keys)))
    labels = connected_components(graph, directed=False)[1]
    numbers = {label: k for k, label in enumerate(dict.fromkeys(labels.tolist()))}
    return np.array([numbers[label] for label in labels.tolist()], dtype=np.int64)


def clusters(items: Sequence[Item]) -> list[str]:
    """What must stay on one side of a split, for each item: all that shares a patient or a near-duplicate group.

    It is called after the first of its items: the patient, else the group, else the image itself.

    >>> clusters([{"image": "a", "patient": "p1", "group": "g"}, {"image": "b", "group": "g"}, {"image": "c"}])
    ['patient p1', 'patient p1', 'image c']
    """
    names = [_names(item) for item in items]
    component_ids = components(names)
    called: dict[int, str] = {}
    for k, component in enumerate(component_ids.tolist()):
        called.setdefault(component, names[k][0])
    return [called[component] for component in component_ids.tolist()]


def cluster(item: Item) -> str:
    """The cluster of an item alone: the patient, else the near-duplicate group, else the image; see `clusters`."""
    return _names(item)[0]


def contradictions(contents: Sequence[str], classes: Sequence[Hashable]) -> dict[str, list[int]]:
    """Pixels that stand in two classes, whichever is right: their content and the first item of each class.

    Args:
        contents: of each item, a hash of its pixels.
        classes: of each item; None where unknown, which contradicts none.

    >>> contradictions(["x", "y", "x", "x"], [0, 1, 1, None])
    {'x': [0, 2, 3]}
    """
    first: dict[str, dict[Hashable, int]] = {}
    for k, (content, kind) in enumerate(zip(contents, classes, strict=True)):
        first.setdefault(content, {}).setdefault(kind, k)
    return {content: list(of.values()) for content, of in first.items() if len(of.keys() - {None}) > 1}


def _names(item: Item) -> list[str]:
    named = [f"patient {patient_key(item)}"] if "patient" in item else []
    named += [f"group {item['group']}"] if "group" in item else []
    return named or [f"image {images_of(item)[0]}"]


def images_of(item: Item) -> list[str]:
    """The image files of an item, one or one a channel."""
    return [item["image"]] if isinstance(item["image"], str) else list(item["image"])


def paths(item: Item) -> list[str]:
    """Every file that an item names: images, label, foreground mask."""
    return [*images_of(item), *(item[key] for key in ("label", "foreground") if key in item)]
