"""uncertainty.json of a run: does the spread of predictions tell where they are wrong?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader
from scipy.stats import spearmanr
from tqdm import tqdm

from scripts.command.files import write_json
from scripts.data.preprocessing import collate
from scripts.evaluation.evaluation import identity
from scripts.evaluation.items import ClassComparison
from scripts.inference.inferers import VIEWS
from scripts.inference.uncertainty import (
    PredictiveUncertainty,
    has_dropout,
    mc_dropout,
    predict,
    test_time_augmentation,
    tumor_threshold,
)
from scripts.measures.intervals import auc, auc_interval, case_summary
from scripts.measures.metrics import decide
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.pictures import overlays
from scripts.pictures.planes import PicturePlane
from scripts.runs.folder import write_csv
from scripts.runs.tasks import NO_SEGMENTATION, UNTRAINED, is_trained

logger = logging.getLogger(__name__)

POOR_DICE = 0.7  # a mask below it is counted as an error
LARGEST_STD = 0.5  # of a number in [0, 1]: half of them 0, half 1
PICTURES = 4
NAN = float("nan")
PIXELS = ("dice", "mask_disagreement", "mean_std", "pixel_auroc", "single_pixel_auroc")
NO_DROPOUT = "the network was trained without dropout, so MC dropout would give the same prediction every time"


def draw(dataset: Any, count: int | None, seed: int = 0) -> list[int]:
    """Indices of at most ``count`` items, drawn by the seed; all for None or where there are fewer."""
    total = len(dataset)
    if count is None or count >= total:
        return list(range(total))
    return sorted(np.random.default_rng(seed).permutation(total)[:count].tolist())


def measure(
    network: MultiTaskDynUNet,
    batches: Iterable[Mapping[str, Any]],
    spread: Callable[[torch.Tensor, torch.Tensor], PredictiveUncertainty],
    device: torch.device | str,
    classes: ClassComparison | None = None,
    channel: int = 0,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Uncertainty and error of every case.

    Args:
        network: in evaluation mode, on ``device``.
        batches: collated items of the bundle's pipeline.
        spread: of (image, foreground).
        device: where the network is.
        classes: how the datalist's classes meet the network's; None: they are the same.
        channel: of the image, for the pictures.

    Returns:
        rows of a table, and for each the pictures: image, std and the masks, (1, X, Y), of a volume the slice that
        `PicturePlane` chooses (whole volumes would fill the memory), and "where". A row: name,
        cluster, source, wrong (the single prediction's class; None unknown), probability_std, entropy, single_entropy
        (of the single prediction), dice (NaN without a tumor in the mask), mask_disagreement, mean_std (of the head's
        pixels), pixel_auroc and single_pixel_auroc: of the pixels' standard deviation, and of the single prediction's
        entropy, against being wrong, over the head (NaN where no pixel is wrong, or without a mask).
    """
    rows: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    diagnoses = is_trained(network, "classification")
    for batch in batches:
        image, foreground = batch["image"].to(device), batch["foreground"].to(device)
        uncertainty = spread(image, foreground)
        probability, seg = predict(network, image, foreground)
        logits = torch.log(probability.double().clamp_min(1e-300)).cpu().numpy()  # calibrated, so of temperature 1
        predicted = decide(logits if classes is None else classes.logits(logits, 1.0), float(network.threshold))
        single = torch.special.entr(probability).sum(dim=1)
        for i in range(len(image)):
            true = int(batch["diagnosis"][i])
            true = true if classes is None else classes.diagnosis(true)
            scores = {
                "probability_std": float(uncertainty.probability_std[i]),
                "entropy": float(uncertainty.entropy[i]),
                "single_entropy": float(single[i]),
            }
            rows.append(
                {
                    **{key: value for key, value in identity(batch, i).items() if key in ("name", "cluster", "source")},
                    "wrong": None if true < 0 or not diagnoses else bool(predicted[i] != true),
                    **(scores if diagnoses else dict.fromkeys(scores, NAN)),
                    **dict.fromkeys(PIXELS, NAN),
                }
            )
            if seg is None or uncertainty.seg_std is None:
                continue
            head, label = batch["foreground"][i] != 0, batch["label"][i] != 0
            mask, masked = (seg[i] > tumor_threshold(network)).cpu(), bool(batch["has_mask"][i])
            std = uncertainty.seg_std[i].cpu()
            rows[-1] |= _of_mask(mask, label if masked else None, head, std, seg[i].cpu())
            rows[-1]["mask_disagreement"] = float(uncertainty.mask_disagreement[i])
            true_mask, said = label.to(torch.uint8) if masked else None, mask.to(torch.uint8)
            plane = PicturePlane.of(batch["image"][i], true_mask, std, said, channel)
            shown.append(
                {
                    "image": plane.image(batch["image"][i]),
                    "std": plane.map(std),
                    "predicted": plane.map(said),
                    "label": plane.mask(true_mask),
                    "where": plane.where,
                }
            )
    return rows, shown


def _of_mask(
    mask: torch.Tensor, label: torch.Tensor | None, head: torch.Tensor, std: torch.Tensor, seg: torch.Tensor
) -> dict[str, float]:
    """Dice of a predicted mask, the mean deviation over the head, and how well deviation and entropy tell its errors.

    Args:
        mask, label, head: (1, H, W[, D]), bool; label None without a true mask.
        std, seg: deviation and value of each pixel's tumor probability.
    """
    metrics = {"mean_std": float(std[head].mean())}
    if label is None:
        return metrics
    total = int(label.sum()) + int(mask.sum())
    if bool(label.any()):
        metrics["dice"] = 2 * int((mask & label).sum()) / total
    doubt = torch.special.entr(seg) + torch.special.entr(1 - seg)
    wrong = ((mask != label) & head)[head].numpy()
    metrics["pixel_auroc"] = auc(wrong, std[head].numpy())
    metrics["single_pixel_auroc"] = auc(wrong, doubt[head].numpy())
    return metrics


def _against(rows: Sequence[Mapping[str, Any]], score: str, wrong: Callable[[Mapping[str, Any]], bool]) -> dict:
    """AUROC of a score against error over cases, with its interval; None where all are right or all wrong."""
    error = np.array([wrong(row) for row in rows], dtype=bool)
    values = np.array([row[score] for row in rows], dtype=float)
    if not 0 < error.sum() < len(error):
        return {"auroc": None, "auroc_ci95": [None, None]}
    return {"auroc": auc(error, values), "auroc_ci95": auc_interval(error, values, [row["cluster"] for row in rows])}


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of one method over the rows of `measure`.

    Returns:
        "diagnosis": n, errors and by score (probability_std, entropy, single_entropy) AUROC against a wrong class;
        "pixels": summaries of pixel_auroc and single_pixel_auroc over cases; "mask": n, poor (Dice below 0.7), Spearman
        correlation of mask_disagreement with Dice and its AUROC against a poor mask; "spread": summaries of
        probability_std and mean_std, and the share of cases whose predictions are all the same.
    """
    clusters = [row["cluster"] for row in rows]

    def column(name: str) -> dict[str, Any]:
        return case_summary(np.array([row[name] for row in rows], dtype=float), clusters)

    known = [row for row in rows if row["wrong"] is not None]
    masks = [row for row in rows if row["dice"] == row["dice"]]
    scores = ("probability_std", "entropy", "single_entropy")
    rank = None
    if len(masks) > 2 and len({row["dice"] for row in masks}) > 1 and len({r["mask_disagreement"] for r in masks}) > 1:
        rank = float(spearmanr([row["mask_disagreement"] for row in masks], [row["dice"] for row in masks])[0])
    return {
        "diagnosis": {
            "n": len(known),
            "errors": sum(row["wrong"] for row in known),
            **{score: _against(known, score, lambda row: row["wrong"]) for score in scores},
        },
        "pixels": {name: column(name) for name in ("pixel_auroc", "single_pixel_auroc")},
        "mask": {
            "n": len(masks),
            "poor": sum(row["dice"] < POOR_DICE for row in masks),
            "spearman": rank,
            **_against(masks, "mask_disagreement", lambda row: row["dice"] < POOR_DICE),
        },
        "spread": {
            **{name: column(name) for name in ("probability_std", "mean_std")},
            # NaN, of a part that was not trained, is no deviation either.
            "none": float(np.mean([not row["probability_std"] > 0 and not row["mean_std"] > 0 for row in rows])),
        },
    }


def write_uncertainty(
    network: MultiTaskDynUNet,
    dataset: Any,
    folder: str | Path,
    cases: int | None = 100,
    samples: int = 16,
    classes: ClassComparison | None = None,
    batch_size: int = 16,
    channel: int = 0,
) -> dict[str, Any]:
    """Write uncertainty.json, uncertainty_cases.csv and pictures of the most uncertain masks.

    Args:
        network: in evaluation mode; of one that does not segment, or whose head was not trained, the other part alone
            is measured, and "unavailable" says so.
        dataset: of `scripts.evaluation.items.EvaluationDataset`.
        folder: ``runs/<run>/evaluation``.
        cases: at most so many, drawn by a fixed seed; None: all.
        samples: of MC dropout, where the network has dropout.
        classes: how the datalist's classes meet the network's; None: they are the same.
        batch_size: cases at once.
        channel: of the image, that pictures show.

    Returns:
        the content of uncertainty.json.
    """
    folder, device = Path(folder), next(network.parameters()).device
    chosen = torch.utils.data.Subset(dataset, draw(dataset, cases))
    loader = DataLoader(chosen, batch_size=batch_size, num_workers=0, collate_fn=collate)
    methods: dict[str, Callable[[torch.Tensor, torch.Tensor], PredictiveUncertainty]] = {
        "test_time_augmentation": lambda image, foreground: test_time_augmentation(network, image, foreground)
    }
    if has_dropout(network):
        methods["mc_dropout"] = lambda image, foreground: mc_dropout(network, image, foreground, samples)
    result: dict[str, Any] = {
        "n": len(chosen),
        "of": len(dataset),
        "views": list(VIEWS),
        "samples": samples,
        "poor_dice": POOR_DICE,
        "methods": {},
        "unavailable": {} if has_dropout(network) else {"mc_dropout": NO_DROPOUT},
        "pictures": [],
    }
    if not is_trained(network, "segmentation"):
        result["unavailable"]["segmentation"] = NO_SEGMENTATION
    if not is_trained(network, "classification"):
        result["unavailable"]["classification"] = UNTRAINED["classification"]
    for name, reason in result["unavailable"].items():
        logger.warning("uncertainty, %s: not measured, %s", name, reason)
    table: list[dict[str, Any]] = []
    for name, spread in methods.items():
        rows, shown = measure(network, tqdm(loader, desc=f"uncertainty, {name}"), spread, device, classes, channel)
        result["methods"][name] = summarize(rows)
        table += [{"method": name, **{k: v for k, v in row.items() if k != "cluster"}} for row in rows]
        if name == "test_time_augmentation" and shown:
            result["pictures"] = _draw(rows, shown, folder / "uncertainty")
    write_csv(table, folder / "uncertainty_cases.csv")
    write_json(result, folder / "uncertainty.json")
    return result


def _draw(rows: Sequence[Mapping[str, Any]], shown: Sequence[Mapping[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The masks on which the predictions disagree most: the image with the masks, and the deviation of each pixel."""
    order = sorted(range(len(rows)), key=lambda i: (-rows[i]["mask_disagreement"], rows[i]["name"]))[:PICTURES]
    entries = []
    for i in order:
        case, row = shown[i], rows[i]
        image, heat = case["image"], np.clip(case["std"] / LARGEST_STD, 0, 1)
        scale = overlays.legible_scale(image.shape)
        lines = {"mask": case["label"], "predicted": case["predicted"], "scale": scale}
        folder.mkdir(parents=True, exist_ok=True)
        overlays.save(overlays.overlay(image, np.zeros_like(heat), **lines), folder / f"{row['name']}_image.png")
        overlays.save(overlays.overlay(image, heat, **lines), folder / f"{row['name']}_std.png")
        entries.append(
            {
                "name": row["name"],
                "mask_disagreement": row["mask_disagreement"],
                "probability_std": None if row["probability_std"] != row["probability_std"] else row["probability_std"],
                "dice": None if row["dice"] != row["dice"] else row["dice"],
                "image": f"uncertainty/{row['name']}_image.png",
                "std": f"uncertainty/{row['name']}_std.png",
                "where": case["where"],
            }
        )
    return entries
