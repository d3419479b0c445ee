"""Mask and evidence as DICOM images on the frames of the source series, written by highdicom."""

from __future__ import annotations

from collections.abc import Mapping
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
SERIES_NUMBERS = {"segmentation": 9801, "evidence": 9802, "report": 9803}
NEOPLASM = Code("108369006", "SCT", "Neoplasm")
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
BRAIN = Code("12738006", "SCT", "Brain")
NO_UNITS = Code("1", "UCUM", "no units")
EVIDENCE = Code("EVIDENCE", "99TUMORLENS", "Evidence of a tumor, calibrated log-odds from 0 (none)")
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
    algorithm = hd.AlgorithmIdentificationSequence(
        name=MAKER, family=codes.cid7162.ArtificialIntelligence, version=made_by["version"],
        parameters={"weights_sha256": made_by["weights_sha256"]},
    )  # fmt: skip
    numbers = range(1, max(1, int(mask.max())) + 1)
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label="tumor" if len(numbers) == 1 else f"tumor, region {number}",
            segmented_property_category=ABNORMAL,
            segmented_property_type=NEOPLASM,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=uids(f"segment {number}"),
            tracking_id=f"TumorLens tumor {number}",
            anatomic_regions=[BRAIN],
        )
        for number in numbers
    ]
    made = hd.seg.Segmentation(
        source_images=source.datasets,
        pixel_array=np.stack([mask == number for number in numbers], axis=-1).astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        content_label="TUMOR",
        content_description="Mask of the tumor by TumorLens",
        omit_empty_frames=bool(mask.any()),
        series_description="TumorLens mask",
        **common(uids, "segmentation", made_by),
    )
    made.BodyPartExamined = "BRAIN"  # not paired: no laterality is asked for
    own = [str(uids(f"segment {number}")) for number in numbers]
    replace_random_uids(made, source.datasets, uids, "segmentation", [*own, *_own(made)])
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
