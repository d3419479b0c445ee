"""Mask and evidence as DICOM images on the frames of the source series, written by highdicom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
BRAIN = Code("12738006", "SCT", "Brain")
CONCEPT = Code("309825002", "SCT", "Spatial and Relational Concept")
NO_UNITS = Code("1", "UCUM", "no units")
EVIDENCE = Code("EVIDENCE", "99TUMORLENS", "Evidence of a tumor, calibrated log-odds from 0 (none)")
# Odds that a segment of evidence begins at, and its color: two of the scale inferno, whose lightness rises evenly.
ODDS = {3: (221, 81, 58), 19: (252, 255, 164)}
WINDOW = 6.0  # log-odds that a viewer shows at first
EVIDENCE_IN_WORDS = "log-odds of a tumor: 0 none, 1.1 odds of 3 to 1, 2.9 of 19 to 1"  # at most 64 characters


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


def segmentation(source: Source, mask: np.ndarray, uids: Uids, made_by: Mapping[str, Any]) -> Dataset:
    """A binary Segmentation: one segment for each label of the mask, a neoplasm of the brain.

    Args:
        source: the series.
        mask: (F, rows, columns) labels on its frames; 0 is background. Without any label there is one empty segment.
        uids: of this result.
        made_by: see `Uids`.
    """
    numbers = range(1, max(1, int(mask.max())) + 1)
    segments = [
        {
            "segment_label": "tumor" if len(numbers) == 1 else f"tumor, region {number}",
            "segmented_property_category": ABNORMAL,
            "segmented_property_type": NEOPLASM,
            "tracking_uid": uids(f"segment {number}"),
            "tracking_id": f"TumorLens tumor {number}",
        }
        for number in numbers
    ]
    return _binary(
        source, mask, segments, uids, "segmentation", made_by, content_label="TUMOR",
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
    return _binary(
        source, np.digitize(evidence, np.log(list(ODDS))), segments, uids, "segments", made_by,
        content_label="EVIDENCE", content_description="Evidence of a tumor by TumorLens, in steps",
        series_description="TumorLens evidence, in steps",
    )  # fmt: skip


def _binary(
    source: Source,
    labels: np.ndarray,
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
        pixel_array=np.stack([labels == number + 1 for number in range(len(segments))], axis=-1).astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                segment_number=number, algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm, anatomic_regions=[BRAIN], **segment,
            )
            for number, segment in enumerate(segments, 1)
        ],
        omit_empty_frames=bool(labels.any()),
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
