"""Whole volumes of a datalist as a raw dataset of nnU-Net v2; `decathlon` reads one back."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scripts.command.files import whole_folder
from scripts.data.datalists.clusters import Item, images_of
from scripts.data.datalists.naming import stem_of
from scripts.data.datalists.regions import SCHEMES, own_values
from scripts.data.datalists.schema import SPLITS, Datalist
from transforms.reading import file_kind, read_volume

__all__ = ["write_raw"]

_NAME = re.compile(r"Dataset\d{3}_\w+")
SUFFIX = ".nii.gz"


def write_raw(datalist: Datalist, dataset_dir: Path | str, out: Path | str) -> dict[str, int]:
    """Write ``imagesTr``, ``labelsTr``, ``imagesTs``, ``labelsTs``, ``dataset.json`` and ``splits_final.json``.

    Training and validation are the training cases of nnU-Net; ``splits_final.json`` holds which is which, for its
    folder of preprocessed data. Label values become 1, 2, ... in their order, as nnU-Net asks; several regions are
    stated as its regions, so that both networks segment the same.

    Args:
        datalist: of whole volumes with masks.
        dataset_dir: that its paths are relative to.
        out: folder to write, ``Dataset007_Name``; one that exists is replaced.

    Returns:
        cases written by part of the datalist.

    Raises:
        ValueError: when the folder's name is none of nnU-Net's, or an item is a slice, a picture or has no mask.
    """
    out, root = Path(out), Path(dataset_dir)
    if not _NAME.fullmatch(out.name):
        raise ValueError(f"nnU-Net names a raw dataset as in Dataset007_Phantoms, got {out.name!r}")
    regions = datalist.get("regions") or SCHEMES["tumor"]
    values = sorted({value for labels in regions.values() for value in labels})
    number = {value: k for k, value in enumerate(values, start=1)}
    several = len(regions) > 1
    named: dict[str, Any] = {
        "background": 0,
        **{name: [number[value] for value in labels] if several else 1 for name, labels in regions.items()},
    }
    counts, sides = dict.fromkeys(SPLITS, 0), {}
    with whole_folder(out) as partial:
        for part in SPLITS:
            end = "Ts" if part == "test" else "Tr"
            for folder in (f"images{end}", f"labels{end}"):
                (partial / folder).mkdir(exist_ok=True)
            for item in datalist[part]:
                case = _case(item)
                if case in sides:
                    raise ValueError(f"two cases are called {case}; nnU-Net needs names of their own")
                sides[case] = part
                for channel, image in enumerate(images_of(item)):
                    _copy(root / image, partial / f"images{end}" / f"{case}_{channel:04d}{SUFFIX}")
                _relabel(root / item["label"], partial / f"labels{end}" / f"{case}{SUFFIX}", number, several)
                counts[part] += 1
        content = {
            "channel_names": datalist.get("modality", {"0": "MRI"}),
            "labels": named,
            **({"regions_class_order": [number[value] for value in own_values(regions)]} if several else {}),
            "numTraining": counts["training"] + counts["validation"],
            "file_ending": SUFFIX,
            "name": datalist.get("name", out.name),
        }
        split = {short: [c for c, part in sides.items() if part == long] for short, long in _PARTS.items()}
        for name, value in (("dataset.json", content), ("splits_final.json", [split])):
            (partial / name).write_text(json.dumps(value, indent=1), encoding="utf-8")
    return counts


_PARTS = {"train": "training", "val": "validation"}


def _case(item: Item) -> str:
    first = images_of(item)[0]
    if "slice" in item or not item.get("label"):
        lacking = "is a slice" if "slice" in item else "has no mask"
        raise ValueError(f"{first} {lacking}: nnU-Net is given whole volumes with masks (datalist --whole_volumes)")
    return str(item.get("name") or stem_of(Path(item["label"])).removesuffix("_seg"))


def _copy(source: Path, target: Path) -> None:
    if source.name.endswith(SUFFIX):
        shutil.copyfile(source, target)
        return
    data, affine = read_volume(source, file_kind(source))
    nib.save(nib.Nifti1Image(data, affine), target)


def _relabel(source: Path, target: Path, number: dict[int, int], several: bool) -> None:
    data, affine = read_volume(source, file_kind(source))
    label = np.zeros(data.shape, np.uint8)
    for value in np.unique(data[data != 0]):
        if several and int(value) not in number:
            raise ValueError(f"{source}: label value {value:g} belongs to no region of the datalist")
        label[data == value] = number[int(value)] if several else 1
    nib.save(nib.Nifti1Image(label, affine), target)
