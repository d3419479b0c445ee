"""MONAI Label trains with ``configs/train.yaml`` alone: what it does not say, and where it reads the result.

It passes images with labels (whole volumes among them), a device and a number of epochs, splits them unshuffled, loads
``models/model.pt`` and reads back only that file. All of this applies where no ``datalist_file`` is given.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.transforms import Compose
from torch import nn

from scripts.command.files import write_bytes, write_json
from scripts.data.caching import CachedDataset, describe_item
from scripts.data.datalists.slices import Case, Findings, SliceRule, case_items
from scripts.data.planes import is_flat
from scripts.data.preprocessing import resolve_items
from scripts.runs import parallel
from scripts.runs.checkpoint_files import WEIGHTS, load_weights
from transforms.labels import REGIONS_KEY

logger = logging.getLogger(__name__)

PREVIOUS_WEIGHTS, ABOUT = "model_previous.pt", "model.json"


def run_folder(bundle_root: str, datalist_file: str | None, items: Sequence[Mapping[str, Any]], max_epochs: int) -> str:
    """Default folder of a run: ``runs/train``, or one of its own for each training of MONAI Label.

    The latter is named by the items, the state of their files and the weights to start from: an interrupted training
    continues there when it is asked for again, another one starts from the beginning.
    """
    runs = Path(bundle_root) / "runs"
    if datalist_file is not None:
        return str(runs / "train")
    weights = Path(bundle_root) / "models" / WEIGHTS
    start = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else "none"
    facts = json.dumps([[describe_item(item) for item in items], start, max_epochs])
    return str(runs / f"label-{hashlib.sha256(facts.encode()).hexdigest()[:10]}")


class CaseDataset(CachedDataset):
    """A cached dataset that also takes MONAI Label's items, ``{"image": file, "label": file}``.

    Args:
        data: items with absolute paths.
        transform, cache_dir, num_workers, progress: as in `CachedDataset`.
        slices: `SliceRule` arguments, e.g. ``{"tumor_slices": 32, "normal_slices": 16}``, where the items are MONAI
            Label's: whole volumes then become slices for a 2D network. None: items of a datalist, taken as they are.
        spatial_dims: 2 for a network that takes slices, 3 for volumes.
        num_classes: with more than two, the class of MONAI Label's items is unknown: a label tells tumor from none, and
            teaching "no tumor" alone would make every tumor one of no class.
        regions: label values by name, where the items are MONAI Label's; None: one, the tumor.
        append: what follows the items, made of the dataset; every item then has the key "intervention", "" for those of
            the data. None: nothing follows.

    Raises:
        ValueError: when no item is left.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Compose,
        cache_dir: str | os.PathLike[str] | None = None,
        num_workers: int = 1,
        progress: bool = True,
        slices: Mapping[str, Any] | None = None,
        spatial_dims: int = 2,
        num_classes: int = 2,
        regions: Mapping[str, Sequence[int]] | None = None,
        append: Callable[[CachedDataset], list[dict[str, Any]]] | None = None,
    ) -> None:
        items: list[Any] = list(data)
        if slices is not None:
            if not items:
                raise ValueError(
                    "no items for a dataset: of the labeled images, val_split gives validation too few or all; label "
                    "more images or change it"
                )
            if spatial_dims == 2:
                items = expand_volumes(items, SliceRule(**slices))
            if num_classes > 2:
                items = [{**item, "diagnosis": -1} for item in items]
            if regions:
                items = [{**item, REGIONS_KEY: regions} for item in items]
        super().__init__(items, transform, cache_dir, num_workers=num_workers, progress=progress)
        self.appended: list[dict[str, Any]] | None = None if append is None else append(self)

    def __len__(self) -> int:
        return len(self.data) + len(getattr(self, "appended", None) or ())

    def __getitem__(self, index: Any) -> Any:
        if self.appended is None:
            return super().__getitem__(index)
        if index >= len(self.data):
            return self.appended[index - len(self.data)]
        return {**super().__getitem__(index), "intervention": ""}


def expand_volumes(data: Sequence[Mapping[str, Any]], rule: SliceRule) -> list[dict[str, Any]]:
    """Slices in place of whole volumes; pictures, and slices that are already named, stay as they are.

    Args:
        data: items with absolute paths.
        rule: which slices.

    Returns:
        items; one that cannot be used is named in a warning with its reason.

    Raises:
        ValueError: when none is left.
    """
    result, findings, reasons = [], Findings(), []
    for item in data:
        path = Path(item["image"]).absolute()
        root = Path(path.anchor)
        label = Path(item["label"]).absolute() if item.get("label") else None
        try:
            if is_flat({**item, "image": path}):
                result.append(dict(item))
                continue
            made = case_items(Case(str(path), [path], label), rule, root, "label", findings)
        except (ValueError, OSError) as error:
            reasons.append(f"{path}: {error}")
            logger.warning("not used: %s", reasons[-1])
            continue
        # The class is left to follow from the mask of each slice.
        keep = [
            {k: v for k, v in slice_.items() if k in ("image", "label", "slice", "patient", "source")}
            for slice_ in made
        ]
        result += resolve_items(keep, root)
    if not result:
        raise ValueError(f"none of {len(data)} items can be used; {reasons[0]}")
    return result


def check_weights(bundle_root: str, datalist_file: str | None, network: nn.Module) -> None:
    """See that the weights which MONAI Label loads, without checking, are of this network.

    Raises:
        ValueError: when they are not, with the keys that differ.
    """
    path = Path(bundle_root) / "models" / WEIGHTS
    if datalist_file is None and path.is_file():
        before = {name: value.clone() for name, value in network.state_dict().items()}
        load_weights(network, path)
        network.load_state_dict(before)


def publish(
    stage_dir: str | Path, bundle_root: str, datalist_file: str | None, calibration: str, mask_thresholds: str
) -> None:
    """Put the selected weights where MONAI Label reads them, ``models/model.pt``; the old: ``model_previous.pt``.

    ``models/model.json`` says where they come from and whether threshold and temperature were fitted or are stale,
    and what the thresholds of the masks are and why.
    Only where no datalist is given; nothing is done when they are already there.
    """
    if datalist_file is not None or not parallel.first():
        return
    new, old = Path(stage_dir) / WEIGHTS, Path(bundle_root) / "models" / WEIGHTS
    old.parent.mkdir(parents=True, exist_ok=True)
    if not (old.is_file() and old.read_bytes() == new.read_bytes()):
        if old.is_file():
            write_bytes(old.read_bytes(), old.with_name(PREVIOUS_WEIGHTS))
        write_bytes(new.read_bytes(), old)
    about = {"from": str(new), "written": time.strftime("%Y-%m-%dT%H:%M:%S"), "calibration": calibration}
    about["mask_thresholds"] = mask_thresholds
    write_json(about, old.with_name(ABOUT))
    (logger.warning if calibration.startswith("stale") else logger.info)(
        "weights in %s, the old ones in %s; threshold and temperature: %s", old, PREVIOUS_WEIGHTS, calibration
    )
