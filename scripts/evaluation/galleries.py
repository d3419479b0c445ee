"""Pictures of a run's maps: chosen cases, galleries by class and outcome, methods x layers of one case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import DataLoader
from torch import Tensor

from scripts.data.preprocessing import collate, make_preprocessing
from scripts.evaluation.explanation_plan import EVIDENCE, MAIN_TARGET, Plan, main_map, main_plan, maps_of
from scripts.explain.clusters import clusters
from scripts.explain.evidence import evidence_map
from scripts.explain.maps import scale_maps, upsample
from scripts.explain.measures import case_measures
from scripts.explain.methods import METHODS
from scripts.explain.targets import TumorLogOdds, named_target
from scripts.inference.postprocessing import to_original_grid
from scripts.measures.metrics import decide
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.networks.regions import is_nested, mask_threshold, region_masks
from scripts.pictures import overlays
from scripts.pictures.parts import Part, parts_of
from scripts.pictures.planes import PicturePlane
from scripts.pictures.sheets import Cell, stack, tile_grid
from transforms.labels import MASKS_KEY

DIM = 0.5  # of the image under the maps of methods/: those by pixel are thin


@dataclass
class Shown:
    """A case with its prediction and the map it is explained by.

    Attributes:
        case: the preprocessed item.
        probability: (K,), calibrated probabilities of the classes.
        predicted_class: by the run's threshold.
        raw: (1, 1, *layer grid), the map as it comes.
        heat: (1, *image grid) in [0, 1], 1 = strongest.
        empty: whether the map has no positive value.
        regions: (R, *image grid), bool, the predicted regions, the tumor first; None where nothing is segmented.
        names: of the regions, where there are several.
        channel: of the image, that pictures show.
    """

    case: Mapping[str, Any]
    probability: np.ndarray
    predicted_class: int
    raw: Tensor
    heat: Tensor
    empty: bool
    regions: np.ndarray | None
    names: Sequence[str] = ()
    channel: int = 0

    @property
    def segmented(self) -> np.ndarray | None:
        """The predicted tumor (1, *image grid), bool, or None."""
        return None if self.regions is None else self.regions[:1]

    @property
    def tumor(self) -> str:
        """Name of the first region in words."""
        return self.names[0].replace("_", " ") if self.names else "tumor"

    def parts(self, predicted: bool = True) -> list[Part]:
        """The other regions in the plane that is shown, with their predicted masks or without."""
        truth = self.case[MASKS_KEY].numpy() if bool(self.case["has_mask"]) and MASKS_KEY in self.case else None
        return parts_of(self.names, truth, self.regions if predicted else None, self.plane)

    @property
    def mask(self) -> np.ndarray | None:
        """The true tumor (1, *image grid), or None where the item has no mask."""
        return self.case["label"].numpy() if bool(self.case["has_mask"]) else None

    @property
    def plane(self) -> PicturePlane:
        """What pictures show of it."""
        return PicturePlane.of(self.case["image"], self.mask, self.heat, self.segmented, self.channel)

    @property
    def tumor_probability(self) -> float:
        """Probability of any tumor."""
        return float(1 - self.probability[0])


def explain_case(network: MultiTaskDynUNet, case: Mapping[str, Any], channel: int = 0) -> Shown:
    """Prediction and main map of one case, on the CPU.

    Args:
        network: in evaluation mode, on the CPU.
        case: preprocessed item.
        channel: of the image, that pictures show.
    """
    image, foreground = case["image"][None], case["foreground"][None]
    with torch.no_grad():
        output = network.multitask(image)
    logits = output["cls"]
    method, layer = main_map(network)
    if (method, layer) == EVIDENCE:
        raw = evidence_map(output["evidence"], logits, TumorLogOdds.of(network))
    else:
        result = maps_of(network, image, foreground, TumorLogOdds.of(network), main_plan(network))
        assert result is not None
        raw = result.maps[method, layer]
    heat, empty = scale_maps(upsample(raw, image.shape[2:]))
    probability = torch.softmax(logits / network.temperature, dim=1)[0].numpy()
    predicted = int(decide(logits.numpy(), float(network.threshold), float(network.temperature))[0])
    nested, regions = is_nested(network), None
    if "seg" in output:
        regions = region_masks(output["seg"], nested, mask_threshold(network))[0].numpy()
    names = network.regions if nested else []
    return Shown(case, probability, predicted, raw, heat[0], bool(empty[0]), regions, names, channel)


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
            "cluster": cluster,
            "area": int(c["label"].sum()),
            "healthy": int(c["diagnosis"]) == 0,
        }
        for c, (_, cluster) in zip(dataset, clusters(list(dataset)), strict=True)
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
        seen = {case["cluster"] for case in picked}
        nearest = sorted((c for c in cases if c not in picked), key=lambda c: abs(cases.index(c) - middle))
        picked.append(next((c for c in nearest if c["cluster"] not in seen), nearest[0]))
    return [case["name"] for case in sorted(picked, key=cases.index)]


def show_cases(
    network: MultiTaskDynUNet,
    dataset: Sequence[Mapping[str, Any]],
    items: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    spatial_size: Sequence[int],
    folder: Path,
    channel: int = 0,
    spacing_mm: float | Sequence[float] | str | None = None,
) -> list[dict[str, Any]]:
    """Overlays on the network's grid and NIfTI maps on the original grid of some cases.

    Args:
        network: in evaluation mode, on the CPU.
        dataset: preprocessed items.
        items: the same items of the datalist, with absolute paths.
        names: of the cases to show.
        spatial_size, spacing_mm: of the preprocessing.
        folder: ``explanations``; overlays/ and maps/ are made in it.
        channel: of the image, that pictures show.

    Returns:
        one entry a case: files, method, layer, tumor probability, whether the map is empty, and `where`: which channel
        and slice are shown.
    """
    (folder / "maps").mkdir(parents=True, exist_ok=True)
    pipeline = make_preprocessing(spatial_size=spatial_size, spacing_mm=spacing_mm)
    method, layer = main_map(network)
    entries = []
    for item, case in zip(items, dataset, strict=True):
        if case["name"] not in names:
            continue
        shown = explain_case(network, case, channel)
        plane = shown.plane
        stem, image, mask = str(case["name"]), plane.image(case["image"]), plane.mask(shown.mask)
        scale = overlays.legible_scale(image.shape)
        for ending, heat, said in (("overlay", plane.map(shown.heat), False), ("image", np.zeros_like(image), True)):
            parts = shown.parts(predicted=said)
            predicted = plane.mask(shown.segmented) if said else None
            picture = overlays.overlay(image, heat, mask=mask, predicted=predicted, scale=scale, parts=parts)
            named = overlays.with_legend(picture, shown.tumor, parts, predicted=said)
            overlays.save(named, folder / "overlays" / f"{stem}_{ending}.png")
        write_map(shown.raw, item, pipeline, folder / "maps" / f"{stem}_{method}_{layer}.nii.gz")
        measures = case_measures(shown.raw, case["label"][None], case["foreground"][None])
        entries.append(
            {
                "name": stem,
                "source": case["source"],
                "diagnosis": int(case["diagnosis"]),
                "method": method,
                "layer": layer,
                "target": MAIN_TARGET,
                "tumor_probability": shown.tumor_probability,
                "threshold": float(network.threshold),
                "empty": shown.empty,
                "tumor_energy": _number(measures["tumor_energy"]),
                "background_energy": _number(measures["background_energy"]),
                "overlay": f"overlays/{stem}_overlay.png",
                "image": f"overlays/{stem}_image.png",
                "where": plane.where,
            }
        )
    return sorted(entries, key=lambda entry: names.index(entry["name"]))


def write_map(raw: Tensor, item: Mapping[str, Any], pipeline: Any, path: Path) -> Path:
    """Write a map (1, 1, *layer grid), not rescaled, as NIfTI on the grid of its file, with the affine of that grid.

    Args:
        raw: the map.
        item: of the datalist, with absolute paths.
        pipeline: of `make_preprocessing`.
        path: file to write.
    """
    data = {key: item[key] for key in ("image", "slice", "plane", "foreground") if key in item}
    original = pipeline(data)["image"]
    on_grid = to_original_grid(upsample(raw, original.shape[1:])[0], original, pipeline)
    array = on_grid[0].numpy().astype(np.float32)
    nib.save(
        nib.Nifti1Image(array[..., None] if array.ndim == 2 else array, np.asarray(on_grid.affine, dtype=float)), path
    )
    return path


def _number(value: Tensor) -> float | None:
    return float(value[0]) if bool(torch.isfinite(value[0])) else None


def write_class_galleries(
    network: MultiTaskDynUNet,
    dataset: Sequence[Mapping[str, Any]],
    classes: Mapping[str, str],
    folder: Path,
    count: int = 3,
    batch_size: int = 16,
    channel: int = 0,
) -> list[dict[str, Any]]:
    """Write ``galleries/<class>_correct.png`` and ``..._incorrect.png``: image, heatmap, overlay, masks of each case.

    Cases are taken evenly from the least to the most probable true class, of different patients where possible.

    Args:
        network: in evaluation mode, on the CPU.
        dataset: preprocessed items; those of unknown class are left out.
        classes: names by index.
        folder: ``explanations``.
        count: cases a picture.
        batch_size: cases predicted at once.
        channel: of the image, that is shown.

    Returns:
        one entry a picture: class, outcome, file, asked, found (how many such cases there are), cases (names shown).
    """
    loader = DataLoader(dataset, batch_size=batch_size, collate_fn=collate)
    with torch.no_grad():
        logits = torch.cat([network.multitask(batch["image"], segmentation=False)["cls"] for batch in loader])
    probability = torch.softmax(logits / network.temperature, 1)
    predicted = decide(logits.numpy(), float(network.threshold), float(network.temperature))
    entries = []
    for index, name in sorted((int(k), v) for k, v in classes.items()):
        for outcome in ("correct", "incorrect"):
            candidates = [
                {"name": c["name"], "cluster": cluster, "p": float(p[index]), "case": c}
                for c, (_, cluster), p, decided in zip(dataset, clusters(dataset), probability, predicted, strict=True)
                if int(c["diagnosis"]) == index and (int(decided) == index) == (outcome == "correct")
            ]
            candidates.sort(key=lambda c: (c["p"], c["name"]))
            chosen = _spread(candidates, count)
            cases = [c["case"] for c in candidates if c["name"] in chosen]
            what = f"{name}, classified {'correctly' if outcome == 'correct' else 'wrongly'}"
            panels = [_panel(explain_case(network, case, channel), classes) for case in cases]
            file = f"galleries/{name}_{outcome}.png".replace(" ", "_")
            overlays.save(stack(f"{what}: {_count(len(chosen), len(candidates), count)}", panels), folder / file)
            entries.append(
                {
                    "class": name,
                    "outcome": outcome,
                    "file": file,
                    "asked": count,
                    "found": len(candidates),
                    "cases": [str(case["name"]) for case in cases],
                }
            )
    return entries


def _count(shown: int, available: int, asked: int) -> str:
    if available == 0:
        return f"there is no such case ({asked} asked for)"
    if available < asked:
        return f"there {'is' if available == 1 else 'are'} only {available} ({asked} asked for)"
    return f"{shown} of {available}"


def _panel(shown: Shown, classes: Mapping[str, str]) -> overlays.RGB:
    true, predicted = (classes[str(k)] for k in (int(shown.case["diagnosis"]), shown.predicted_class))
    caption = (
        f"{shown.case['name']}: true {true}, predicted {predicted} "
        f"(p = {shown.probability[shown.predicted_class]:.2f}; tumor {shown.tumor_probability:.2f})"
    )
    if shown.empty and shown.predicted_class > 0:
        caption += "; a tumor without evidence"  # the bias of the classes decided, or the gradients cancel
    plane = shown.plane
    caption += f"; {plane.where}" if plane.where else ""
    image, heat = plane.image(shown.case["image"]), plane.map(shown.heat)
    mask, segmented = plane.mask(shown.mask), plane.mask(shown.segmented)
    words = overlays.EMPTY if shown.empty else f"{overlays.EMPTY} in this slice"
    return overlays.panel(
        image, heat, mask, predicted=segmented, caption=caption, empty=words, tumor=shown.tumor, parts=shown.parts()
    )


def methods_picture(
    network: MultiTaskDynUNet, case: Mapping[str, Any], plan: Plan, target_name: str, channel: int = 0
) -> overlays.RGB:
    """All methods at all layers for one case and target: layer-free maps first, then one row a method.

    Args:
        network: in evaluation mode, on the CPU.
        case: preprocessed item with a tumor in its mask.
        plan: what is explained; slow methods run too.
        target_name: see `scripts.explain.targets.named_target`.
        channel: of the image, that is shown; of a volume, the slice with the most tumor.

    Raises:
        ValueError: when no method of the plan explains the target.
    """
    image, foreground, label = case["image"][None], case["foreground"][None], case["label"][None]
    diagnosis = torch.as_tensor([int(case["diagnosis"])])
    target = named_target(target_name, diagnosis, label, float(network.temperature))
    result = maps_of(network, image, foreground, target, plan)
    if result is None:
        raise ValueError(f"none of the methods {', '.join(plan.methods)} explains the target {target_name}")
    plane = PicturePlane.of(image[0], label[0], channel=channel)
    mask = plane.map(label[0]) if bool(case["has_mask"]) else None
    seen = plane.image(image[0])
    scale = overlays.legible_scale(seen.shape)

    def tile(method: str, layer: str) -> Cell:
        heat, empty = result.on_image(method, layer)
        picture = overlays.overlay(seen, plane.map(heat[0]), mask=mask, alpha=1.0, scale=scale, brightness=DIM)
        measures = case_measures(result.maps[method, layer], label, foreground)
        title = layer if METHODS[method] == "layer" else method.replace("_", " ")
        if bool(empty[0]):
            gone = (method, layer) in result.cancelled and bool(result.cancelled[method, layer][0])
            return overlays.say_empty(picture), title, "gradients cancel" if gone else "empty map"
        tumor, air = (100 * float(measures[name][0]) for name in ("tumor_energy", "background_energy"))
        return picture, title, f"in tumor {tumor:.0f} %, in air {air:.0f} %"

    plain = overlays.overlay(seen, np.zeros_like(seen), mask=mask, scale=scale)
    free = [key for key in result.maps if METHODS[key[0]] != "layer"]
    rows: list[tuple[str, Sequence[Cell]]] = [
        ("no layer", [(plain, "image and true mask", ""), *(tile(*key) for key in free)])
    ]
    for method in plan.methods:
        cells = [tile(*key) for key in result.maps if key[0] == method]
        if METHODS[method] == "layer" and cells:
            rows.append((method, cells))
    suffix = f"; {plane.where}" if plane.where else ""
    return tile_grid(f"{case['name']}: target {target_name}, score {float(result.score[0]):.2f}{suffix}", rows)
