"""All objects of one result, written beside each other, each whole or not at all."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from scripts.command.files import write_bytes
from scripts.command.optional import needed
from scripts.dicom.report import report
from scripts.dicom.segmentation import evidence_segments, mask_segments, parametric_map, segmentation
from scripts.dicom.sources import Source
from scripts.dicom.uids import Uids
from transforms.reading import file_kind

__all__ = ["ENDINGS", "ObjectWriter", "check_available", "object_kind", "only_series", "write_objects"]

# It names every group of elements that it copies.
logging.getLogger("highdicom").setLevel(logging.WARNING)

ENDINGS = ("_segmentation.dcm", "_evidence.dcm", "_report.dcm", "_segments.dcm")


def object_kind(path: Path) -> str:
    """What a written object is: the last word of its file name, as in "case_segmentation.dcm"."""
    return path.stem.rpartition("_")[2]


def check_available() -> None:
    """Look whether highdicom is installed.

    Raises:
        ValueError: when it is not.
    """
    needed("highdicom", "DICOM objects are written by highdicom, which is not installed; pip install highdicom")


def only_series(images: Iterable[Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The DICOM series among images, and the others with the reason why nothing is written of them."""
    series, others = [], []
    for image in images:
        try:
            kind = file_kind(image)
        except ValueError as error:
            others.append((image, str(error)))
            continue
        if kind == "dicom":
            series.append(image)
        else:
            others.append((image, f"file {image} is no DICOM, so no object can refer to it; leave out --dicom for it"))
    return series, others


@dataclass(frozen=True)
class ObjectWriter:
    """Writes the objects of each result of a prediction.

    Attributes:
        made_by: version, hashes and options of the prediction; the UIDs follow from them and from the series.
        intended_use: one sentence.
        anonymous: leave out what the series says of the patient.
        in_segments: write the evidence as a Segmentation too.
    """

    made_by: Mapping[str, Any]
    intended_use: str
    anonymous: bool = False
    in_segments: bool = False

    def __call__(self, image: Path, done: Mapping[Any, Any], target: Path) -> list[Path]:
        """Write the objects of one finished item ("pred", "evidence", "result"); see `write_objects`."""
        mask = done["pred"]
        return write_objects(
            image,
            mask.as_tensor()[0].numpy(),
            done["evidence"].as_tensor()[0].numpy() if "evidence" in done else None,
            np.asarray(mask.affine, dtype=float),
            done["result"],
            self.made_by,
            target,
            self.intended_use,
            self.anonymous,
            self.in_segments,
        )


def write_objects(
    image: Path,
    mask: np.ndarray,
    evidence: np.ndarray | None,
    affine: np.ndarray,
    result: Mapping[str, Any],
    made_by: Mapping[str, Any],
    target: Path,
    intended_use: str,
    anonymous: bool = False,
    in_segments: bool = False,
) -> list[Path]:
    """Write ``<target>_segmentation.dcm``, ``_evidence.dcm``, ``_report.dcm`` and, where asked for, ``_segments.dcm``.

    Args:
        image: folder of the source series, or its one file.
        mask: (X, Y[, Z]) labels.
        evidence: the same shape, calibrated log-odds; None: there is none, and no map is written.
        affine: of both, 4x4 to RAS+ mm.
        result: see `scripts.inference.postprocessing.RestoreScand`.
        made_by: version and hashes; the UIDs follow from them and from the series.
        target: path without the endings.
        intended_use: one sentence.
        anonymous: leave out what the series says of the patient.
        in_segments: write the evidence as a Segmentation too.

    Raises:
        ValueError: when the series lacks what a reference needs, or the grid is not that of the series.
    """
    source = Source.read(image, anonymous)
    uids = Uids(source.datasets, {**made_by, "anonymous": anonymous})
    frames = source.frames(mask, affine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values of the source that break the standard are copied, not checked here
        regions = {name: about["labels"] for name, about in result.get("regions", {}).items()}
        segments = mask_segments(mask, regions)
        seg = segmentation(source, frames, segments, uids, made_by)
        values = None if evidence is None else source.frames(evidence, affine)
        evidence_map = None if values is None else parametric_map(source, values, uids, made_by)
        voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
        volumes = [float(np.isin(mask, segment.values).sum()) * voxel_ml for segment in segments]
        measured = list(zip(segments, volumes, strict=True))
        text = report(source, seg, evidence_map, result, measured, uids, made_by, intended_use)
        steps = None
        if in_segments and values is not None:
            steps = evidence_segments(source, values, uids, made_by)
        made = zip(ENDINGS, (seg, evidence_map, text, steps), strict=True)
        return [_write(what, target.parent / f"{target.name}{ending}") for ending, what in made if what is not None]


def _write(dataset: Dataset, path: Path) -> Path:
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return write_bytes(content.getvalue(), path)
