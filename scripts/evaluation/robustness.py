"""robustness.json of a run: its figures under noise, blur, contrast, rotation, motion, compression and the like."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from scripts.command.files import write_bytes, write_json
from scripts.data.preprocessing import collate
from scripts.evaluation.corruptions import CORRUPTIONS, corrupt
from scripts.evaluation.evaluation import decided, identity
from scripts.evaluation.items import ClassComparison, EvaluationDataset
from scripts.evaluation.uncertainty_evaluation import draw
from scripts.explain.evidence import evidence_map
from scripts.explain.measures import case_measures
from scripts.explain.targets import TumorLogOdds
from scripts.inference.inferers import spatial_dims
from scripts.measures.intervals import case_summary
from scripts.measures.mask_measures import mask_measures
from scripts.measures.metrics import diagnosis_metrics
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.networks.regions import tumor_mask
from scripts.pictures.evaluation_figures import robustness_sheet
from scripts.runs.tasks import is_trained

logger = logging.getLogger(__name__)

# Why whole volumes are left out: what is written in place of the figures.
NOT_IN_3D = (
    "robustness is not measured of whole volumes: the corruptions are of 2D images (JPEG has no third axis, ghosting "
    "and rotation lie in the plane)"
)

NOT_OF_PATCHES = "scope is not measured: what it compares are features of whole images, and this network sees patches"


def left_out(extras: Sequence[str], spatial_dims: int, patches: bool = False) -> list[str]:
    """Notes for metrics.json: which of the extras asked for are not measured, and why.

    Args:
        extras: of ``configs/evaluate.yaml``.
        spatial_dims: of the network.
        patches: it was trained on patches.
    """
    notes = [NOT_IN_3D] if spatial_dims == 3 and "robustness" in extras else []
    return [*notes, NOT_OF_PATCHES] if patches and "scope" in extras else notes


def corrupted_items(
    dataset: EvaluationDataset,
    loaded: Sequence[tuple[Mapping[str, Any], Any, float]],
    name: str | None,
    strength: float,
) -> Iterator[tuple[dict[str, Any] | None, str]]:
    """Prepared items of corrupted images, or None with the reason where the pipeline refuses one.

    Args:
        dataset: of the run's pipeline.
        loaded: items, of its `load`.
        name, strength: of the corruption; None: as they are.
    """
    for item, spacing, between in loaded:
        changed = item if name is None else corrupt(item, name, strength)
        try:
            yield dataset.prepare(changed, item, spacing, between), ""
        except ValueError as error:
            yield None, str(error)


@torch.no_grad()
def measure(
    network: MultiTaskDynUNet,
    items: Sequence[Mapping[str, Any]],
    classes: ClassComparison | None = None,
    batch_size: int = 16,
) -> list[dict[str, Any]]:
    """Rows of cases: those of `scripts.evaluation.evaluation.decided`, and tumor_energy of the evidence map (NaN
    without one).

    What the network was not trained for is not measured: no mask without a decoder, no diagnosis (-1) without a head.
    """
    device, rows = next(network.parameters()).device, []
    segments, diagnoses = (is_trained(network, task) for task in ("segmentation", "classification"))
    for start in range(0, len(items), batch_size):
        batch = collate(items[start : start + batch_size])
        output = network.multitask(batch["image"].to(device), segmentation=segments)
        segmented = tumor_mask(output["seg"], network).float().cpu() if segments else None
        energy = torch.full((len(batch["name"]),), torch.nan)
        if network.has_evidence and diagnoses:
            maps = evidence_map(output["evidence"], output["cls"], TumorLogOdds.of(network)).cpu()
            energy = case_measures(maps, batch["label"], batch["foreground"])["tumor_energy"]
        for i in range(len(energy)):
            masked = bool(batch["has_mask"][i])
            label = batch["label"][i].float() if masked else None
            tumor = masked and bool(batch["label"][i].any())
            head = batch["foreground"][i] != 0
            rows.append(
                {
                    **identity(batch, i),
                    "diagnosis": int(batch["diagnosis"][i]) if diagnoses else -1,
                    "logits": output["cls"][i].float().tolist(),
                    **mask_measures(
                        None if segmented is None else segmented[i], label, head, batch["pixel_mm"][i], batch["name"][i]
                    ),
                    "tumor_energy": float(energy[i]) if tumor else float("nan"),
                }
            )
    return decided(rows, float(network.threshold), float(network.temperature), classes)


def summarize(rows: Sequence[Mapping[str, Any]], classes: int, refused: Sequence[str]) -> dict[str, Any]:
    """Figures of one corruption at one strength.

    A refused image (no head is found in it, say) is no prediction: it is counted, and left out of the rest.

    Returns:
        n, refused, reasons; summaries of dice and tumor_energy; balanced_accuracy, sensitivity, specificity and
        roc_auc, each with its interval; None where no case defines it.
    """
    clusters = [row["cluster"] for row in rows]
    summary: dict[str, Any] = {
        "n": len(rows),
        "refused": len(refused),
        "reasons": sorted(set(refused))[:3],
        "dice": case_summary(np.array([row["dice"] for row in rows], dtype=float), clusters),
        "tumor_energy": case_summary(np.array([row["tumor_energy"] for row in rows], dtype=float), clusters),
    }
    known = [row for row in rows if row["diagnosis"] >= 0]
    names = ("balanced_accuracy", "sensitivity", "specificity", "roc_auc")
    figures: Mapping[str, Any] = {}
    if known:
        figures = diagnosis_metrics(
            np.array([row["diagnosis"] for row in known]),
            np.array([row["predicted"] for row in known]),
            np.array([row["tumor_probability"] for row in known]),
            classes,
            [row["cluster"] for row in known],
        )
    for name in names:
        summary[name] = figures.get(name)
        summary[f"{name}_ci95"] = figures.get(f"{name}_ci95", [None, None])
    return summary


def write_robustness(
    network: MultiTaskDynUNet,
    dataset: EvaluationDataset,
    folder: str | Path,
    cases: int | None = 100,
    classes: ClassComparison | None = None,
    corruptions: Sequence[str] = tuple(CORRUPTIONS),
    batch_size: int = 16,
) -> dict[str, Any]:
    """Write robustness.json and figures/robustness.png; of a 3D network the reason alone, under "unavailable".

    Args:
        network: in evaluation mode; what it was not trained for is not measured, see `measure`.
        dataset: of the test part.
        folder: ``runs/<run>/evaluation``.
        cases: at most so many, drawn by a fixed seed, the same for every corruption; None: all.
        classes: how the datalist's classes meet the network's; None: they are the same.
        corruptions: of `CORRUPTIONS`.
        batch_size: cases at once.

    Returns:
        the content of robustness.json: {n, of, clean, corruptions: [{name, unit, levels: [{strength, ...}]}]}.

    Raises:
        ValueError: when a corruption is unknown.
    """
    unknown = sorted(set(corruptions) - set(CORRUPTIONS))
    if unknown:
        raise ValueError(f"corruptions are of {', '.join(CORRUPTIONS)}, got {', '.join(unknown)}")
    if spatial_dims(network) == 3:
        logger.warning("%s", NOT_IN_3D)
        unavailable = {"unavailable": NOT_IN_3D}
        write_json(unavailable, Path(folder) / "robustness.json")
        return unavailable
    chosen = draw(dataset, cases)
    count = len(classes.names) if classes else network.num_classes
    plan: list[tuple[str | None, float]] = [(None, 0.0)]
    plan += [(name, strength) for name in corruptions for strength in CORRUPTIONS[name].strengths]
    summaries: dict[tuple[str | None, float], dict[str, Any]] = {}
    loaded = [dataset.load(dataset.data[i]) for i in chosen]
    for name, strength in tqdm(plan, desc="robustness"):
        pairs = list(corrupted_items(dataset, loaded, name, strength))
        kept = [item for item, _ in pairs if item is not None]
        refused = [reason for item, reason in pairs if item is None]
        rows = measure(network, kept, classes, batch_size) if kept else []
        summaries[name, strength] = summarize(rows, count, refused)
    result = {
        "n": len(chosen),
        "of": len(dataset),
        "applied": "to the values of the file, before the pipeline",
        "clean": summaries[None, 0.0],
        "corruptions": [
            {
                "name": name,
                "unit": CORRUPTIONS[name].unit,
                "levels": [{"strength": s, **summaries[name, s]} for s in CORRUPTIONS[name].strengths],
            }
            for name in corruptions
        ],
    }
    write_json(result, Path(folder) / "robustness.json")
    write_bytes(robustness_sheet(result), Path(folder) / "figures" / "robustness.png")
    return result
