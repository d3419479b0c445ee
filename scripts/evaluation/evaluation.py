"""metrics.json and the tables of a trained run: one row a case, figures over cases, thresholds from validation."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from scipy.special import softmax

from scripts.command.files import write_json
from scripts.evaluation.answers import RULE, answer_summary, evidence_of_case, joined_columns
from scripts.evaluation.items import ClassComparison
from scripts.evaluation.notes import gaps, not_segmented, task_notes
from scripts.evaluation.overview import overview
from scripts.explain.clusters import clusters
from scripts.inference.volume_rule import VolumeRule
from scripts.inference.volumes import group_rows, own_threshold, patient_summary, volume_summary
from scripts.measures.intervals import METHOD, case_summary, column_summary
from scripts.measures.lesions import lesion_summary
from scripts.measures.mask_measures import NAN, SEGMENTATION, mask_measures
from scripts.measures.metrics import classification_metrics, decide, one_class_metrics
from scripts.measures.prevalence import in_words
from scripts.measures.region_measures import region_measures, region_summary
from scripts.networks.regions import region_masks
from scripts.runs.folder import write_csv
from scripts.training.engines import check_outputs
from transforms.labels import MASKS_KEY

logger = logging.getLogger(__name__)

# Tumor area as a share of the head's in the same slice.
AREAS = (0.0, 0.005, 0.01, 0.02, 0.05, 1.0)
AREA_WORDS = {
    2: "tumor area as a share of the head's area in the same slice",
    3: "tumor volume as a share of the head's volume",
}
GRID_WORDS = (
    "the network's; HD95 in its {}, and in millimeters where the file knows its spacing, both over tumors with a "
    "predicted {}; Dice over cases with a tumor in the mask"
)
# Columns of cases.csv that are not lists.
HIDDEN = ("logits", "uncalibrated", "probability", "evidence_place")


class CaseResults:
    """Collects one row a case from an evaluator whose step computes segmentation and classification.

    A row: name, patient (or near-duplicate group, or the name), cluster (the same, a patient with its source before it:
    what is resampled), source, volume, slice, diagnosis (-1 unknown), logits, has_mask, pixels of head, tumor,
    prediction and their overlap on the network's grid, pixel_area (pixels of the image in one of them), head_share
    (of the whole image), tumor and predicted area in mm2 and slice_mm (NaN where the file does not say), of a 3D case
    tumor and predicted volume in ml in their place, label_coverage, and with a tumor in the mask dice, iou, hd95
    (pixels of the network's grid), hd95_mm, lesions, lesions_found, false_lesions, dice_whole_head and dice_random
    (what these masks would score), else NaN. Of several regions the columns of `region_measures` stand beside.

    Args:
        temperature: of the network.
        regions: that are measured one by one; None: the tumor alone.
        lift: (K,) that the network adds to its class logits for its temperature; None: nothing.
        mask_threshold: (R,) of the network, see `scripts.networks.regions`; None: one half.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        regions: Sequence[str] | None = None,
        lift: torch.Tensor | None = None,
        mask_threshold: torch.Tensor | None = None,
    ) -> None:
        self.temperature, self.regions = temperature, list(regions or [])
        self.mask_threshold = mask_threshold
        self.lift = 0.0 if lift is None else lift.detach().cpu().double()
        self.rows: list[dict[str, Any]] = []
        self.people: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Collect at every iteration."""
        engine.add_event_handler(Events.STARTED, lambda _: self._start())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, lambda _: self.join())

    def _start(self) -> None:
        self.rows.clear()
        self.people.clear()

    def join(self) -> None:
        """Assign each row its cluster; call after the last case, as a near-duplicate group may join patients."""
        for row, (_, cluster) in zip(self.rows, clusters(self.people), strict=True):
            row["cluster"] = cluster

    def collect(self, engine: Any) -> None:
        """Add the cases of a batch."""
        batch, pred, target = engine.state.batch, engine.state.output["pred"], engine.state.output["label"]
        check_outputs(pred, batch["name"])
        label = target["label"].float().cpu()
        nested = len(self.regions) > 1
        masks = region_masks(pred["seg"], nested, self.mask_threshold).cpu() if "seg" in pred else None
        segmented = None if masks is None else masks[:, :1].float()
        for i in range(len(label)):
            self.people.append(_who(batch, i))
            self.rows.append(
                {
                    **identity(batch, i),
                    "diagnosis": int(target["diagnosis"][i]),
                    "logits": [float(v) for v in pred["cls"][i]],
                    "uncalibrated": (pred["cls"][i].cpu().double() - self.lift).tolist(),
                    "label_coverage": float(batch["label_coverage"][i]),
                    **evidence_of_case(
                        None if segmented is None else segmented[i],
                        pred["cls"][i],
                        pred["evidence"][i] if "evidence" in pred else None,
                        self.temperature,
                    ),
                    **mask_measures(
                        None if segmented is None else segmented[i],
                        label[i] if bool(target["has_mask"][i]) else None,
                        torch.as_tensor(target["foreground"][i]).cpu() != 0,
                        batch["pixel_mm"][i],
                        batch["name"][i],
                    ),
                    **self._by_region(None if masks is None else masks[i], batch, i),
                }
            )

    def _by_region(self, masks: torch.Tensor | None, batch: Mapping[str, Any], i: int) -> dict[str, float]:
        """Columns of each region, of a network and a datalist of several."""
        if len(self.regions) < 2 or MASKS_KEY not in batch:
            return {}
        truth = batch[MASKS_KEY][i].cpu() != 0 if bool(batch["has_mask"][i]) else None
        return region_measures(masks, truth, self.regions, batch["pixel_mm"][i])


def _who(batch: Mapping[str, Any], i: int) -> dict[str, Any]:
    return {key: batch[key][i] for key in ("source", "patient", "group", "name")}


def identity(batch: Mapping[str, Any], i: int) -> dict[str, Any]:
    """Who and where a case is, of a collated batch."""
    who = _who(batch, i)
    return {
        "name": who["name"],
        "patient": who["patient"] or who["group"] or who["name"],
        "cluster": clusters([who])[0][1],
        "source": who["source"],
        "volume": batch["volume"][i],
        "slice": int(batch["slice"][i]),
        "pixel_area": float(batch["pixel_area"][i]),
        "head_share": float(batch["head_share"][i]),
        "pixel_mm2": float(torch.as_tensor(batch["pixel_mm"][i]).prod()) if len(batch["pixel_mm"][i]) == 2 else NAN,
        "slice_mm": float(batch["slice_mm"][i]),
    }


def is_free(row: Mapping[str, Any]) -> bool:
    """Whether a case has no tumor: by its mask, or without one by its diagnosis."""
    return row["diagnosis"] == 0 if row["tumor_pixels"] is None else row["tumor_pixels"] == 0


def segmentation_summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The block "segmentation": summary (n, mean, ci95) of each measure, and the number of
    tumors without a predicted pixel (so without HD95)."""
    free = [row for row in rows if is_free(row) and row["predicted_pixels"] is not None]
    tumors = [row for row in rows if row["tumor_pixels"]]
    return {
        **{name: column_summary(rows, name) for name in SEGMENTATION},
        "hd95_missed": None if not_segmented(rows) else sum(row["predicted_pixels"] == 0 for row in tumors),
        "false_positive_pixels": column_summary(free, "predicted_pixels"),
        "false_positive_mm2": column_summary(free, "predicted_mm2"),
        "false_positive_ml": column_summary(free, "predicted_ml"),
        "false_positive_rate": case_summary(
            np.array([float(row["predicted_pixels"] > 0) for row in free]), [row["cluster"] for row in free]
        ),
        "label_coverage": column_summary(tumors, "label_coverage"),
    }


def summarize(rows: Sequence[dict[str, Any]], threshold: float, temperature: float) -> dict[str, Any]:
    """M of metrics.json for a set of cases.

    Args:
        rows: of `CaseResults`; only those of `decided` have a joined answer.
        threshold, temperature: from validation.
    """
    known = [row for row in rows if row["diagnosis"] >= 0]
    result: dict[str, Any] = {"n": len(rows)}
    if known:
        result["classification"] = classification_metrics(
            np.array([row["logits"] for row in known]),
            np.array([row["diagnosis"] for row in known]),
            threshold,
            temperature,
            [row["cluster"] for row in known],
            np.array([row.get("uncalibrated", row["logits"]) for row in known]),
        )
        if all("verdict" in row for row in rows):
            result["answers"] = answer_summary(rows)
    result["segmentation"] = segmentation_summary(rows)
    if regions := regions_of(rows):
        result["regions"] = region_summary(rows, regions)
    return result


def regions_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the regions that rows have columns of, in their order."""
    return [key.removeprefix("region_") for key in rows[0] if key.startswith("region_")]


def by_class(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """{class: {classification: that class against all others, segmentation: of its cases}} of the classes present.

    Args:
        rows: of `decided`.
        names: of the classes.
    """
    known = [row for row in rows if row["diagnosis"] >= 0]
    metrics: dict[str, Any] = {}
    for k, name in enumerate(names):
        cases = [row for row in known if row["diagnosis"] == k]
        if cases:
            diagnosis, predicted = (np.array([row[key] for row in known]) for key in ("diagnosis", "predicted"))
            score = np.array([row["probability"][k] for row in known])
            metrics[name] = {
                "n": len(cases),
                "classification": one_class_metrics(diagnosis, predicted, score, k, [row["cluster"] for row in known]),
                "segmentation": segmentation_summary(cases),
            }
    return metrics


def by_area(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Performance by tumor area as a share of the head's, in the bins of `AREAS`, over cases with a tumor in the mask.

    Returns:
        entries {low, high, n} with summaries of dice, detected (called tumor) and segmented (any overlap).
    """
    tumors = [row for row in rows if row["tumor_pixels"]]
    bins = []
    for low, high in pairwise(AREAS):
        sub = [row for row in tumors if low < row["tumor_pixels"] / row["head_pixels"] <= high]
        owners = [row["cluster"] for row in sub]
        bins.append(
            {
                "low": low,
                "high": high,
                "n": len(sub),
                "dice": column_summary(sub, "dice"),
                "detected": case_summary(np.array([float(row["predicted"] > 0) for row in sub]), owners),
                "segmented": case_summary(
                    np.array([NAN if row["shared_pixels"] is None else float(row["shared_pixels"] > 0) for row in sub]),
                    owners,
                ),
            }
        )
    return bins


def baselines(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """What is scored without looking: the most frequent class for all, the whole head and a random map as mask."""
    diagnosis = np.array([row["diagnosis"] for row in rows if row["diagnosis"] >= 0], dtype=int)
    metrics: dict[str, Any] = {
        "whole_head": {"dice": column_summary(rows, "dice_whole_head")},
        "random_map": {"dice": column_summary(rows, "dice_random")},
    }
    if len(diagnosis):
        count = np.bincount(diagnosis)
        metrics["majority"] = {
            "class": names[int(count.argmax())],
            "accuracy": float(count.max() / len(diagnosis)),
            "balanced_accuracy": 1 / int((count > 0).sum()),
        }
    return metrics


def decided(
    rows: Sequence[dict[str, Any]], threshold: float, temperature: float, classes: ClassComparison | None = None
) -> list[dict[str, Any]]:
    """Rows with the classes that are compared, ``probability`` by class, ``tumor_probability``, ``predicted``
    and the columns of `joined_columns`.
    """
    decisions = []
    for row in rows:
        logits = np.array([row["logits"]], dtype=float)
        before = np.array([row.get("uncalibrated", row["logits"])], dtype=float)
        diagnosis = row["diagnosis"]
        if classes is not None:
            logits, diagnosis = classes.logits(logits, temperature), classes.diagnosis(diagnosis)
            before = classes.logits(before, 1.0)
        probability = softmax(logits[0] / temperature)
        now = {
            **row,
            "logits": logits[0].tolist(),
            "uncalibrated": before[0].tolist(),
            "diagnosis": diagnosis,
            "probability": probability.tolist(),
            "tumor_probability": float(1 - probability[0]),
            "predicted": int(decide(logits, threshold, temperature)[0]),
        }
        decisions.append({**now, **joined_columns(now, threshold)})
    return decisions


def write_evaluation(
    rows: Sequence[dict[str, Any]],
    folder: str | Path,
    threshold: float,
    temperature: float,
    part: str = "test",
    clustered_by: str = "patient",
    classes: ClassComparison | None = None,
    provenance: Mapping[str, Any] | None = None,
    spatial_dims: int = 2,
    notes: Sequence[str] = (),
    rule: VolumeRule | None = None,
    prevalence: Mapping[str, float] | None = None,
    mask_thresholds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Write metrics.json, cases.csv, patients.csv and, of volumes (as slices or whole), volumes.csv.

    Args:
        rows: of `CaseResults`.
        folder: ``runs/<run>/evaluation``.
        threshold, temperature: from validation.
        part: name of the datalist's part.
        clustered_by: what ``patient`` of the rows really is: "patient" or "near-duplicate group".
        classes: how the datalist's classes meet the network's; None: they are the same, called by number.
        provenance: of the cases, see `scripts.evaluation.items.provenance`.
        spatial_dims: 3 of whole volumes, each of which is one case.
        notes: further ones, such as what is not measured.
        rule: how a volume is diagnosed from its slices, as at inference; None: the default.
        prevalence: share of each class that the logits are for, where it is not that of the training.
        mask_thresholds: probability above which a place is in the mask, by region.

    Returns:
        the content of metrics.json.
    """
    rows, rule = decided(rows, threshold, temperature, classes), rule or VolumeRule()
    names = classes.names if classes else [f"class {k}" for k in range(len(rows[0]["logits"]))]
    sources = sorted({row["source"] for row in rows})
    patients, volumes = (group_rows(rows, key, threshold, rule) for key in ("cluster", "volume"))
    result: dict[str, Any] = {
        part: {
            "overall": summarize(rows, threshold, temperature),
            "by_source": {s: summarize([r for r in rows if r["source"] == s], threshold, temperature) for s in sources},
            "by_class": by_class(rows, names),
            "by_patient": patient_summary(patients, spatial_dims == 3),
            "by_area": by_area(rows),
            "lesions": lesion_summary(rows),
            "baselines": baselines(rows, names),
        },
        "classes": names,
        "prevalence": None if prevalence is None else dict(prevalence),
        "mask_thresholds": dict(mask_thresholds or {}),
        "notes": [
            *(classes.notes if classes else []),
            *task_notes(rows, provenance or {}),
            *gaps(rows, names, clustered_by),
            *([in_words(prevalence)] if prevalence else []),
            *notes,
        ],
        "provenance": dict(provenance or {}),
        "intervals": f"{METHOD} by {clustered_by}",
        "grid": GRID_WORDS.format(*(("pixels", "pixel") if spatial_dims == 2 else ("voxels", "voxel"))),
        "areas": AREA_WORDS[spatial_dims],
        "answers": RULE,
    }
    if volumes:
        result[part]["volumes"] = volume_summary(volumes, len(names), rule, whole=spatial_dims == 3)
        at = rule.threshold_of(threshold)
        volumes = [{**row, **joined_columns({**row, "tumor_probability": row["score"]}, at)} for row in volumes]
        result[part]["volumes"]["answers"] = answer_summary(volumes)
        if part == "validation" and spatial_dims == 2 and prevalence is None:
            result[part]["volumes"]["own_threshold"], words = own_threshold(volumes)
            result["notes"].append(words)
        write_csv([_shown(row) for row in volumes], Path(folder) / "volumes.csv")
    write_csv([_shown(row) for row in patients], Path(folder) / "patients.csv")
    write_csv([_shown(row) for row in rows], Path(folder) / "cases.csv")
    write_json(result, Path(folder) / "metrics.json")
    logger.info("%d cases evaluated, figures in %s", len(rows), folder)
    print(overview(result, part, folder))
    return result


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    by_class = {f"probability_{k}": p for k, p in enumerate(row.get("probability", ()))}
    return {k: v for k, v in row.items() if k not in HIDDEN} | by_class
