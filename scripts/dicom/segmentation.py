"""Mask and evidence as DICOM Segmentation, evidence as Parametric Map, on the frames of the source series."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lazy_loader
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from scripts.dicom.sources import Source
from scripts.dicom.uids import Uids, replace_random_uids

hd = lazy_loader.load("highdicom")

MAKER = "TumorLens"
# Number of a series, which viewers sort by; far from those of scanners.
SERIES_NUMBERS = {"segmentation": 9801, "evidence": 9802, "report": 9803, "segments": 9804}
NEOPLASM = Code("108369006", "SCT", "Neoplasm")
# What regions are by their names, from the lesion segmentation types of DICOM (CID 7159) and edema; others have a code
# of our own with their name.
REGION_TYPES = {
    "tumor": NEOPLASM,
    "whole_tumor": NEOPLASM,
    "tumor_core": NEOPLASM,
    "enhancing_tumor": Code("C113842", "NCIt", "Enhancing Lesion"),
    "non_enhancing_tumor": Code("C81175", "NCIt", "Non-Enhancing Lesion"),
    "necrosis": Code("6574001", "SCT", "Necrosis"),
    "edema": Code("79654002", "SCT", "Edema"),
}
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
BRAIN = Code("12738006", "SCT", "Brain")
CONCEPT = Code("309825002", "SCT", "Spatial and Relational Concept")
NO_UNITS = Code("1", "UCUM", "no units")
EVIDENCE = Code("EVIDENCE", "99TUMORLENS", "Evidence of a tumor, calibrated log-odds from 0 (none)")
# Odds that a segment of evidence begins at, and its color: two of the scale inferno, whose lightness rises evenly.
ODDS = {3: (221, 81, 58), 19: (252, 255, 164)}
_CODE, _MEANING = 16, 64  # characters of a code and of its meaning at most
WINDOW = 6.0  # log-odds that a viewer shows at first
EVIDENCE_IN_WORDS = "log-odds of a tumor: 0 none, 1.1 odds of 3 to 1, 2.9 of 19 to 1"  # at most 64 characters


@dataclass(frozen=True)
class Segment:
    """One segment of a mask: how it is called, what it is, and the label values that it consists of."""

    label: str
    kind: Code
    values: tuple[int, ...]
    tracking: str


def mask_segments(mask: np.ndarray, regions: Mapping[str, Sequence[int]] | None = None) -> list[Segment]:
    """The segments of a mask: one a region, or one a label; without any label one that is empty.

    Args:
        mask: labels, 0 is background.
        regions: label values of each region by name, the tumor first; they may lie in each other. None: labels are
            tumors by number.
    """
    if regions:
        named = {name: name.replace("_", " ") for name in regions}
        return [
            Segment(words[:_MEANING], _kind(name, words), tuple(regions[name]), f"TumorLens {words}"[:_MEANING])
            for name, words in named.items()
        ]
    numbers = range(1, max(1, int(mask.max())) + 1)
    return [
        Segment("tumor" if len(numbers) == 1 else f"tumor, region {n}", NEOPLASM, (n,), f"TumorLens tumor {n}")
        for n in numbers
    ]


def _kind(name: str, words: str) -> Code:
    code = name.upper()
    if len(code) > _CODE:  # cut, with a sum of the whole, so that two names never share a code
        code = f"{code[: _CODE - 7]}_{hashlib.sha256(name.encode()).hexdigest()[:6].upper()}"
    return REGION_TYPES.get(name, Code(code, "99TUMORLENS", words[:_MEANING]))


def common(uids: Uids, kind: str, made_by: Mapping[str, Any]) -> dict[str, Any]:
    """What highdicom asks for every object."""
    return {
        "series_instance_uid": uids(f"{kind} series"),
        "series_number": SERIES_NUMBERS[kind],
        "sop_instance_uid": uids(f"{kind} instance"),
        "instance_number": 1,
        "manufacturer": MAKER,
        "manufacturer_model_name": MAKER,
        "software_versions": made_by["version"],
        "device_serial_number": made_by["weights_sha256"][:16],
    }


def segmentation(
    source: Source, mask: np.ndarray, segments: Sequence[Segment], uids: Uids, made_by: Mapping[str, Any]
) -> Dataset:
    """A binary Segmentation of the brain with segments that may overlap.

    Args:
        source: the series.
        mask: (F, rows, columns) labels on its frames; 0 is background.
        segments: of `mask_segments`.
        uids: of this result.
        made_by: see `Uids`.
    """
    described = [
        {
            "segment_label": segment.label,
            "segmented_property_category": ABNORMAL,
            "segmented_property_type": segment.kind,
            "tracking_uid": uids(f"segment {number}"),
            "tracking_id": segment.tracking,
        }
        for number, segment in enumerate(segments, 1)
    ]
    masks = [np.isin(mask, segment.values) for segment in segments]
    return _binary(
        source, masks, described, uids, "segmentation", made_by, content_label="TUMOR",
        content_description="Mask of the tumor by TumorLens", series_description="TumorLens mask",
    )  # fmt: skip


def evidence_segments(source: Source, evidence: np.ndarray, uids: Uids, made_by: Mapping[str, Any]) -> Dataset:
    """The evidence as a binary Segmentation, a segment from each of `ODDS` up to the next, for viewers without maps.

    Args:
        source: the series.
        evidence: (F, rows, columns) on its frames, calibrated log-odds, 0 and up.
        uids: of this result.
        made_by: see `Uids`.
    """
    segments = [
        {
            "segment_label": f"evidence, odds from {odds} to 1",
            "segmented_property_category": CONCEPT,
            "segmented_property_type": Code(f"EVIDENCE_{odds}", "99TUMORLENS", f"Evidence, odds from {odds} to 1"),
            "tracking_uid": uids(f"evidence from {odds}"),
            "tracking_id": f"TumorLens evidence {odds}",
            "display_color": hd.color.CIELabColor.from_rgb(*color),
        }
        for odds, color in ODDS.items()
    ]
    steps = np.digitize(evidence, np.log(list(ODDS)))
    return _binary(
        source, [steps == number for number in range(1, len(ODDS) + 1)], segments, uids, "segments", made_by,
        content_label="EVIDENCE", content_description="Evidence of a tumor by TumorLens, in steps",
        series_description="TumorLens evidence, in steps",
    )  # fmt: skip


def _binary(
    source: Source,
    masks: Sequence[np.ndarray],
    segments: Sequence[Mapping[str, Any]],
    uids: Uids,
    kind: str,
    made_by: Mapping[str, Any],
    **about: str,
) -> Dataset:
    algorithm = hd.AlgorithmIdentificationSequence(
        name=MAKER, family=codes.cid7162.ArtificialIntelligence, version=made_by["version"],
        parameters={"weights_sha256": made_by["weights_sha256"]},
    )  # fmt: skip
    made = hd.seg.Segmentation(
        source_images=source.datasets,
        pixel_array=np.stack(list(masks), axis=-1).astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                segment_number=number, algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm, anatomic_regions=[BRAIN], **segment,
            )
            for number, segment in enumerate(segments, 1)
        ],
        omit_empty_frames=any(bool(mask.any()) for mask in masks),
        **about,
        **common(uids, kind, made_by),
    )  # fmt: skip
    made.BodyPartExamined = "BRAIN"  # not paired: no laterality is asked for
    tracking_uids = [str(segment["tracking_uid"]) for segment in segments]
    replace_random_uids(made, source.datasets, uids, kind, [*tracking_uids, *_own(made)])
    return made


def parametric_map(source: Source, evidence: np.ndarray, uids: Uids, made_by: Mapping[str, Any]) -> Dataset:
    """The evidence as a Parametric Map of 32-bit floats, its unit and range in words.

    Args:
        source: the series.
        evidence: (F, rows, columns) on its frames, calibrated log-odds, 0 and up.
        uids: of this result.
        made_by: see `Uids`.
    """
    meaning = hd.pm.RealWorldValueMapping(
        lut_label="EVIDENCE", lut_explanation=EVIDENCE_IN_WORDS, unit=NO_UNITS,
        value_range=(0.0, max(float(evidence.max()), WINDOW)), slope=1.0,
        intercept=0.0, quantity_definition=EVIDENCE,
    )  # fmt: skip
    made = hd.pm.ParametricMap(
        source_images=source.datasets,
        pixel_array=evidence.astype(np.float32),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[meaning],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=WINDOW / 2, window_width=WINDOW)],
        content_label="EVIDENCE",
        content_description="Evidence of a tumor by TumorLens",
        series_description="TumorLens evidence, log-odds",
        **common(uids, "evidence", made_by),
    )
    made.BodyPartExamined = "BRAIN"  # not paired: no laterality is asked for
    replace_random_uids(made, source.datasets, uids, "evidence", _own(made))
    return made


def _own(made: Dataset) -> list[str]:
    return [str(made.SOPInstanceUID), str(made.SeriesInstanceUID)]
