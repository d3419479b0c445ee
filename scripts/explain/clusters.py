"""What counts as one draw: all cases that share a patient or a group of near-duplicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["clusters"]


def clusters(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(kind, name) of the cluster of each case; kind is "patient", "group" or "case", of the cluster's first case.

    Patients are identified by source and number. A group may span sources, and join patients of several numbers: the
    same person may stand in two collections. `scripts.data.datalists.clusters` joins the items of a datalist in the
    same way; a test holds them to each other, as neither package may import the other.

    >>> clusters([{"source": "a", "patient": "p1"}, {"source": "b", "patient": "p1", "group": "g"}, {"group": "g"}])
    [('patient', 'a: p1'), ('patient', 'b: p1'), ('patient', 'b: p1')]

    Args:
        rows: with patient, group, source and name, any of them absent, None or "".

    Raises:
        ValueError: when a row has neither patient nor group nor name.
    """
    names: list[tuple[str, str]] = []
    called: dict[tuple[str, str], tuple[str, str]] = {}
    for row in rows:
        keys = _keys(row)
        known = list(dict.fromkeys(called[key] for key in keys if key in called))
        name = min(known, key=names.index) if len(known) > 1 else (known or keys)[0]
        if len(known) > 1:  # this case joins what was apart
            names = [name if one in known else one for one in names]
            called = {key: name if one in known else one for key, one in called.items()}
        called |= dict.fromkeys(keys, name)
        names.append(name)
    return names


def _keys(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    source = f"{row['source']}: " if row.get("source") else ""
    keys = [("patient", f"{source}{row['patient']}")] if row.get("patient") not in (None, "") else []
    keys += [("group", str(row["group"]))] if row.get("group") not in (None, "") else []
    if keys:
        return keys
    if row.get("name") in (None, ""):
        raise ValueError(f"row without patient, group and name cannot be resampled: {dict(row)}")
    return [("case", f"{source}{row['name']}")]
