"""Verdict, probabilities, volume and flags as a Structured Report (TID 1500), written by highdicom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lazy_loader
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from scripts.dicom.segmentation import BRAIN, MAKER, NEOPLASM, NO_UNITS, Segment, common
from scripts.dicom.sources import Source
from scripts.dicom.uids import Uids, replace_random_uids

hd = lazy_loader.load("highdicom")

SCHEME = "99TUMORLENS"
_MEANING = 64  # characters of the meaning of a code at most
_VERDICTS = {
    "tumor": Code("52101004", "SCT", "Present"),
    "no tumor": Code("2667000", "SCT", "Absent"),
    "uncertain": Code("UNCERTAIN", SCHEME, "Uncertain"),
    "not assessed": Code("NOT_ASSESSED", SCHEME, "Not assessed"),
}


def report(
    source: Source,
    seg: Dataset,
    evidence: Dataset | None,
    result: Mapping[str, Any],
    segments: Sequence[tuple[Segment, float]],
    uids: Uids,
    made_by: Mapping[str, Any],
    intended_use: str,
) -> Dataset:
    """Write the report.

    Args:
        source: the series.
        seg: Segmentation of the same result.
        evidence: Parametric Map of the same result; None: there is none.
        result: see `scripts.inference.postprocessing.RestoreScand`.
        segments: of the mask, and the volume of each in ml.
        uids: of this result.
        made_by: see `Uids`.
        intended_use: one sentence.
    """
    algorithm = hd.sr.AlgorithmIdentification(
        name=MAKER, version=made_by["version"],
        parameters=[f"{key} {made_by[key]}" for key in ("weights_sha256", "config_sha256") if made_by.get(key)],
    )  # fmt: skip
    common_group = {"algorithm_id": algorithm, "finding_sites": [hd.sr.FindingSite(BRAIN)]}
    groups = [
        hd.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(uids("verdict"), "TumorLens verdict"),
            measurements=_probabilities(result),
            qualitative_evaluations=_evaluations(result),
            source_images=[
                hd.sr.SourceImageForMeasurementGroup(dataset.SOPClassUID, dataset.SOPInstanceUID)
                for dataset in source.datasets
            ],
            finding_type=NEOPLASM,
            **common_group,
        )
    ]
    series = hd.sr.SourceSeriesForSegmentation(source.datasets[0].SeriesInstanceUID)
    for number, (about, volume) in enumerate(segments, 1):
        segment = hd.sr.ReferencedSegment(seg.SOPClassUID, seg.SOPInstanceUID, number, source_series=series)
        groups.append(
            hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=hd.sr.TrackingIdentifier(uids(f"segment {number}"), about.tracking),
                referenced_segment=segment,
                finding_type=about.kind,
                measurements=[hd.sr.Measurement(codes.SCT.Volume, round(volume, 4), Code("mL", "UCUM", "milliliter"))],
                **common_group,
            )
        )
    device = hd.sr.ObserverContext(
        codes.DCM.Device,
        hd.sr.DeviceObserverIdentifyingAttributes(
            uids("device"), name=MAKER, manufacturer_name=MAKER, model_name=MAKER,
            serial_number=made_by["weights_sha256"][:16],
        ),
    )  # fmt: skip
    content = hd.sr.MeasurementReport(
        hd.sr.ObservationContext(observer_device_context=device),
        Code("816077007", "SCT", "MRI of brain"),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    texts = [f"Intended use: {intended_use}", *(f"{result['verdict']}: {reason}" for reason in result["reasons"])]
    if result.get("prevalence"):
        shares = ", ".join(f"{name} {share:g}" for name, share in result["prevalence"].items())
        texts.append(f"Prevalence that the probabilities are for: {shares}")
    # A flag that is the reason of the verdict is said once; its code stands among the evaluations.
    said = set(result["reasons"])
    texts += [f"{flag['code']}: {flag['message']}" for flag in result["flags"] if flag["message"] not in said]
    for text in texts:
        content[0].ContentSequence.append(
            hd.sr.TextContentItem(codes.DCM.Comment, text, hd.sr.RelationshipTypeValues.CONTAINS)
        )
    settings = common(uids, "report", made_by)
    made = hd.sr.EnhancedSR(
        evidence=[*source.datasets, seg, *([] if evidence is None else [evidence])],
        content=content[0],
        is_complete=True,
        series_description="TumorLens report",
        **settings,
    )
    kept_uids = [uids(f"segment {number}") for number in range(1, len(segments) + 1)]
    kept_uids += [uids("verdict"), uids("device"), made.SOPInstanceUID, made.SeriesInstanceUID]
    others = [*source.datasets, seg, *([] if evidence is None else [evidence])]
    replace_random_uids(made, others, uids, "report", kept_uids)
    return made


def _probabilities(result: Mapping[str, Any]) -> list[Any]:
    named = {
        "P_TUMOR": ("Probability of a tumor", result["tumor_probability"]),
        "THRESHOLD": ("Threshold of the probability of a tumor", result["threshold"]),
    }
    for number, (name, value) in enumerate(result["class_probabilities"].items()):
        named[f"P_CLASS_{number}"] = (f"Probability of class {str(name).replace('_', ' ')}", value)
    return [
        hd.sr.Measurement(Code(key, SCHEME, name[:_MEANING]), round(float(value), 6), NO_UNITS)
        for key, (name, value) in named.items()
    ]


def _evaluations(result: Mapping[str, Any]) -> list[Any]:
    pairs = [(Code("VERDICT", SCHEME, "Tumor"), _VERDICTS[result["verdict"]])]
    if result["predicted_class"] is not None:
        best = str(result["predicted_class"]).replace("_", " ")[:_MEANING]
        value = Code(f"CLASS_{_number(result)}", SCHEME, best)
        pairs.append((Code("CLASS", SCHEME, "Most probable class"), value))
    for code in dict.fromkeys(str(flag["code"]) for flag in result["flags"]):
        pairs.append((Code("FLAG", SCHEME, "Flag"), Code(code.upper(), SCHEME, code.replace("_", " ")[:_MEANING])))
    return [hd.sr.QualitativeEvaluation(name, value) for name, value in pairs]


def _number(result: Mapping[str, Any]) -> int:
    return list(result["class_probabilities"]).index(result["predicted_class"])
