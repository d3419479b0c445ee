"""UIDs that are the same for the same series, weights and options, so that a rerun replaces what it wrote before."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID

__all__ = ["Uids", "replace_random_uids"]


class Uids:
    """UIDs by name.

    Args:
        sources: the series.
        made_by: what decides about the result beside it: version, hashes of weights and config, options.

    >>> one = Dataset()
    >>> one.SOPInstanceUID = "1.2.3"
    >>> Uids([one], {"weights_sha256": "ab"})("report") == Uids([one], {"weights_sha256": "ab"})("report")
    True
    >>> Uids([one], {"weights_sha256": "ab"})("report") == Uids([one], {"weights_sha256": "cd"})("report")
    False
    """

    def __init__(self, sources: Sequence[Dataset], made_by: Mapping[str, Any]) -> None:
        self._sources = [str(dataset.SOPInstanceUID) for dataset in sources]
        self._made_by = json.dumps(made_by, sort_keys=True, default=str)

    def __call__(self, name: str) -> UID:
        """The UID of something that is made, under the root of UUIDs (2.25)."""
        text = json.dumps(["TumorLens", name, self._made_by, *sorted(self._sources)])
        return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, text).int}")  # pydicom's own are random under this root


def replace_random_uids(made: Dataset, sources: Sequence[Dataset], uids: Uids, kind: str, kept: Sequence[str]) -> None:
    """Give what highdicom draws at random (organization of dimensions) a UID that stays.

    Args:
        made: changed in place.
        sources: whose UIDs are kept, as those of the standard are.
        uids: makes the new ones.
        kind: name of the object.
        kept: further UIDs that are kept.
    """
    known = {str(uid) for uid in kept}
    for dataset in sources:
        dataset.walk(lambda _, element: known.update(_values(element)))
    new: dict[str, UID] = {}

    def change(_: Dataset, element: Any) -> None:
        for uid in _values(element):
            if uid not in known and not uid.startswith("1.2.840.10008."):
                element.value = new.setdefault(uid, uids(f"{kind} {len(new)}"))

    made.walk(change)


def _values(element: Any) -> list[str]:
    if element.VR != "UI" or not element.value:
        return []
    return [str(element.value)] if isinstance(element.value, str) else [str(uid) for uid in element.value]
