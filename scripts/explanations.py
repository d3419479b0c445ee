"""localization.json, cases.csv, overlays and maps of a trained run: every map measured against the tumor masks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import DataLoader
from tqdm import tqdm

from scripts import overlays
from scripts.evaluation import write_csv
from scripts.explain.cam import cam_maps
from scripts.explain.evidence import evidence_map
from scripts.explain.maps import scale_maps, upsample
from scripts.explain.measures import aggregate, case_measures, case_rows, random_baseline, uniform_baseline
from scripts.explain.targets import SegmentationRegion, TumorLogOdds
from scripts.networks import MultiTaskDynUNet
from scripts.postprocessing import to_original_grid
from scripts.preprocessing import collate, make_preprocessing
from scripts.runs import write_json

logger = logging.getLogger(__name__)

METHODS = ("gradcam", "hirescam")
EVIDENCE = ("evidence", "evidence")


def encoder_layers(network: MultiTaskDynUNet) -> list[str]:
    """Layers below the classifier, finest first, the evidence features last if there are any."""
    layers = [f"downsamples.{i}" for i in range(len(network.downsamples))] + ["bottleneck"]
    return [*layers, network.default_cam_layer] if network.has_evidence else layers


def decoder_layers(network: MultiTaskDynUNet) -> list[str]:
    """Layers of the decoder, coarsest first."""
    return [f"upsamples.{i}" for i in range(len(network.upsamples))]


def main_map(network: MultiTaskDynUNet) -> tuple[str, str]:
    """(method, layer) a network is explained by when nothing is asked: evidence, or Grad-CAM at the bottleneck."""
    return EVIDENCE if network.has_evidence else ("gradcam", "bottleneck")


def maps_of(
    network: MultiTaskDynUNet, image: torch.Tensor, methods: Sequence[str] = METHODS
) -> dict[tuple[str, str, str], torch.Tensor]:
    """All maps of a batch.

    Args:
        network: in evaluation mode.
        image: (B, C, X, Y).
        methods: of `scripts.explain.cam.METHODS`.

    Returns:
        (method, layer, target): (B, 1, h, w) on the layer's grid, non-negative. Encoder layers explain the log-odds of
        any tumor, decoder layers the tumor logit in the predicted mask. Where the gradients of a layer cancel to
        rounding noise, which is what an instance norm behind it does to plain Grad-CAM, the map is empty.
    """
    tumor, region = TumorLogOdds(), SegmentationRegion()
    result: dict[tuple[str, str, str], torch.Tensor] = {}
    if network.has_evidence:
        with torch.no_grad():
            output = network.multitask(image, segmentation=False)
        method, layer = EVIDENCE
        result[method, layer, tumor.name] = evidence_map(output["evidence"], output["cls"], tumor)
    for layers, target, name in (
        (encoder_layers(network), tumor, "cls"),
        (decoder_layers(network), region, "seg"),
    ):
        maps = cam_maps(network, image, layers, target, methods, {"output": name}, cancelled="empty")
        result |= {(method, layer, target.name): value for (method, layer), value in maps.items()}
    return result


def measure(
    network: MultiTaskDynUNet,
    batches: Iterable[Mapping[str, Any]],
    device: torch.device | str = "cpu",
    methods: Sequence[str] = METHODS,
) -> list[dict[str, Any]]:
    """Measures of every map on every case with a tumor in its mask, one row a case and map.

    Args:
        network: in evaluation mode, on ``device``.
        batches: collated items of the bundle's pipeline.
        device: where the network is.
        methods: of `scripts.explain.cam.METHODS`.

    Raises:
        ValueError: when no case has a tumor mask.
    """
    rows: list[dict[str, Any]] = []
    for batch in batches:
        keep = torch.as_tensor(batch["has_mask"]) & (batch["label"].flatten(1).amax(dim=1) > 0)
        if not bool(keep.any()):
            continue
        index = torch.nonzero(keep).flatten().tolist()
        label, foreground = batch["label"][keep], batch["foreground"][keep]
        cases = [{key: batch[key][i] for key in ("name", "patient", "group", "source")} for i in index]
        names = [case["name"] for case in cases]
        layer_size: Sequence[int] = label.shape[2:]
        target = TumorLogOdds().name
        for (method, layer, aim), value in maps_of(network, batch["image"][keep].to(device), methods).items():
            if (method, layer) == main_map(network):
                layer_size, target = value.shape[2:], aim
            rows += case_rows(
                case_measures(value.cpu(), label, foreground), cases, method=method, layer=layer, target=aim
            )
        baselines = {
            "uniform": uniform_baseline(label, foreground, layer_size),
            "random": random_baseline(label, foreground, layer_size, names),
        }
        for name, measures in baselines.items():
            rows += case_rows(measures, cases, method=name, layer="none", target=target)
    if not rows:
        raise ValueError("no case with a tumor mask: localization can not be measured; add masks to this part")
    return rows


def choose_cases(dataset: Iterable[Mapping[str, Any]], tumors: int = 6, free: int = 2) -> list[str]:
    """Names of cases to show, chosen by tumor area alone: evenly from small to large, then cases without a tumor.

    No patient is shown twice as long as there are others.

    Args:
        dataset: preprocessed items.
        tumors: at most so many cases with a tumor in the mask.
        free: at most so many cases without a tumor.
    """
    cases = [
        {
            "name": c["name"],
            "unit": c["patient"] or c["group"] or c["name"],
            "area": int(c["label"].sum()),
            "healthy": int(c["diagnosis"]) == 0,
        }
        for c in dataset
    ]
    by_area = sorted((c for c in cases if c["area"]), key=lambda c: (c["area"], c["name"]))
    by_name = sorted((c for c in cases if c["healthy"]), key=lambda c: c["name"])
    return _spread(by_area, tumors) + _spread(by_name, free)


def _spread(cases: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    """Names of ``count`` cases at even steps through the list, of as many patients as there are."""
    picked: list[Mapping[str, Any]] = []
    count = min(count, len(cases))
    for i in range(count):
        middle = (i + 0.5) * len(cases) / count - 0.5
        units = {case["unit"] for case in picked}
        nearest = sorted((c for c in cases if c not in picked), key=lambda c: abs(cases.index(c) - middle))
        picked.append(next((c for c in nearest if c["unit"] not in units), nearest[0]))
    return [case["name"] for case in sorted(picked, key=cases.index)]


def show_cases(
    network: MultiTaskDynUNet,
    dataset: Sequence[Mapping[str, Any]],
    items: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    spatial_size: Sequence[int],
    folder: Path,
) -> list[dict[str, Any]]:
    """Overlays on the network's grid and NIfTI maps on the original grid of some cases.

    Args:
        network: in evaluation mode, on the CPU.
        dataset: preprocessed items.
        items: the same items of the datalist, with absolute paths.
        names: of the cases to show.
        spatial_size: of the preprocessing.
        folder: ``explanations``; overlays/ and maps/ are made in it.

    Returns:
        one entry a case: files, method, layer, tumor probability, whether the map is empty.
    """
    (folder / "overlays").mkdir(parents=True, exist_ok=True)
    (folder / "maps").mkdir(parents=True, exist_ok=True)
    pipeline = make_preprocessing(spatial_size=spatial_size)
    method, layer = main_map(network)
    target = TumorLogOdds()
    entries = []
    for item, case in zip(items, dataset, strict=True):
        if case["name"] not in names:
            continue
        image, label = case["image"][None], case["label"]
        with torch.no_grad():
            output = network.multitask(image)
        probability = 1 - float(torch.softmax(output["cls"] / network.temperature, dim=1)[0, 0])
        if network.has_evidence:
            raw = evidence_map(output["evidence"], output["cls"], target)
        else:
            raw = cam_maps(network, image, layer, target, method, {"output": "cls"}, cancelled="empty")[method, layer]
        shown = upsample(raw, image.shape[2:])
        scaled, empty = scale_maps(shown)
        predicted = (output["seg"][0].argmax(dim=0, keepdim=True) > 0).numpy()
        mask = label.numpy() if bool(case["has_mask"]) else None
        stem = str(case["name"])
        arrays = (image[0].numpy(), scaled[0].numpy())
        scale = overlays.legible_scale(arrays[0].shape)
        plain = (arrays[0], np.zeros_like(arrays[1]))
        overlays.save(overlays.overlay(*arrays, mask=mask, scale=scale), folder / "overlays" / f"{stem}_overlay.png")
        overlays.save(
            overlays.overlay(*plain, mask=mask, predicted=predicted, scale=scale),
            folder / "overlays" / f"{stem}_image.png",
        )
        given = {key: item[key] for key in ("image", "slice", "plane", "foreground") if key in item}
        original = pipeline(given)["image"]
        on_grid = to_original_grid(shown[0], original, pipeline)
        nib.save(
            nib.Nifti1Image(on_grid[0].numpy().astype(np.float32)[..., None], np.asarray(on_grid.affine, dtype=float)),
            folder / "maps" / f"{stem}_{method}_{layer}.nii.gz",
        )
        measures = case_measures(raw, label[None], case["foreground"][None])
        entries.append(
            {
                "name": stem,
                "source": case["source"],
                "diagnosis": int(case["diagnosis"]),
                "method": method,
                "layer": layer,
                "target": target.name,
                "tumor_probability": probability,
                "threshold": float(network.threshold),
                "empty": bool(empty[0]),
                "tumor_energy": _number(measures["tumor_energy"]),
                "background_energy": _number(measures["background_energy"]),
                "overlay": f"overlays/{stem}_overlay.png",
                "image": f"overlays/{stem}_image.png",
            }
        )
    return sorted(entries, key=lambda entry: names.index(entry["name"]))


def _number(value: torch.Tensor) -> float | None:
    return float(value[0]) if bool(torch.isfinite(value[0])) else None


def write_explanations(
    network: MultiTaskDynUNet,
    dataset: Any,
    items: Sequence[Mapping[str, Any]],
    names: Sequence[str] | None,
    spatial_size: Sequence[int],
    folder: str | Path,
    batch_size: int = 16,
    methods: Sequence[str] = METHODS,
) -> list[dict[str, Any]]:
    """Write localization.json, cases.csv, gallery.json, overlays and maps.

    Args:
        network, dataset, items, spatial_size: see `show_cases`.
        names: of the cases to show; None: `choose_cases`.
        folder: ``runs/<run>/explanations``.
        batch_size: cases explained at once.
        methods: of `scripts.explain.cam.METHODS`.

    Returns:
        the rows of localization.json.
    """
    folder = Path(folder)
    dataset = [dataset[i] for i in range(len(dataset))]
    if names is None:
        names = choose_cases(dataset)
    missing = set(names) - {case["name"] for case in dataset}
    if missing:
        raise ValueError(f"no case named {', '.join(sorted(missing))} in this part of the datalist")
    device = next(network.parameters()).device
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=0, collate_fn=collate)
    rows = measure(network, tqdm(loader, desc="explaining", unit="batch"), device, methods)
    table = aggregate(rows)
    write_json(table, folder / "localization.json")
    write_csv(rows, folder / "cases.csv")
    gallery = show_cases(network.cpu(), dataset, items, names, spatial_size, folder)
    network.to(device)
    write_json(gallery, folder / "gallery.json")
    logger.info("%d maps measured, %d cases shown, in %s", len(rows), len(gallery), folder)
    return table
