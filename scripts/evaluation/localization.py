"""Every map of a plan measured against the masks of the cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.evaluation.explanation_plan import EVIDENCE, MAIN_TARGET, Plan, main_map, maps_of
from scripts.explain.evidence import evidence_map
from scripts.explain.layers import evaluating
from scripts.explain.measures import (
    case_measures,
    case_rows,
    oracle_map,
    random_baseline,
    uniform_baseline,
)
from scripts.explain.methods import SLOW, Explanation
from scripts.explain.targets import LogitTarget, SegmentationRegion, Target, named_target
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.networks.regions import is_nested, mask_threshold, region_masks
from scripts.runs.tasks import is_trained
from transforms.labels import MASKS_KEY

BASELINES = ("uniform", "random", "oracle")
COMPLETENESS = "completeness_error"


def draw_cases(dataset: Iterable[Mapping[str, Any]], count: int | None, seed: int) -> set[str]:
    """Names of `count` cases with a tumor in the mask, drawn by `seed`; all for None, or where there are fewer."""
    names = sorted(str(case["name"]) for case in dataset if bool(case["has_mask"]) and bool(case["label"].any()))
    if count is None or count >= len(names):
        return set(names)
    return set(np.random.default_rng(seed).choice(names, count, replace=False).tolist())


def measure(
    network: MultiTaskDynUNet,
    batches: Iterable[Mapping[str, Any]],
    plan: Plan,
    classes: Mapping[str, str],
    slow_names: set[str],
    device: torch.device | str = "cpu",
    regions: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Measures of every map on every case with a tumor in its mask: one row a case, map and mask.

    The quick methods also run on the cases without a tumor, for `MAIN_TARGET`: whether a map finds nothing there.

    Args:
        network: in evaluation mode, on ``device``.
        batches: collated items of the bundle's pipeline; with ``pixel_mm`` (B, D), of
            `scripts.evaluation.items.EvaluationDataset`, distances stand in the rows.
        plan: what is explained.
        classes: names by index.
        slow_names: cases that the methods of `SLOW` run on.
        device: where the network is.
        regions: names of those that the items hold, see `scripts.evaluation.items.explained_regions`; none: the tumor
            alone.

    Returns:
        rows of `case_rows` with ``mask``: "true", or "predicted" where the network's own segmentation stands in for
        it, and ``class``, the case's true one.

    Raises:
        ValueError: when no case has a tumor mask.
    """
    rows: list[dict[str, Any]] = []
    quick = [name for name in plan.methods if name not in SLOW]
    slow = [name for name in plan.methods if name in SLOW]
    for batch in batches:
        tumor = batch["label"].flatten(1).amax(dim=1) > 0
        keep = torch.as_tensor(batch["has_mask"]) & tumor
        free = (torch.as_tensor(batch["diagnosis"]) == 0) & ~tumor
        if bool(free.any()) and quick and MAIN_TARGET in plan.targets:
            healthy = _Part(network, batch, torch.nonzero(free).flatten(), classes, device, regions, segment=False)
            result = healthy.maps(network, MAIN_TARGET, plan, quick)
            rows += [] if result is None else healthy.rows(result, MAIN_TARGET)
        if not bool(keep.any()):
            continue
        part = _Part(network, batch, torch.nonzero(keep).flatten(), classes, device, regions)
        slow_indices = [i for i, case in enumerate(part.cases) if case["name"] in slow_names]
        sizes: dict[tuple[str, str], Sequence[int]] = {}
        for name in plan.targets:
            for methods, chosen in ((quick, part), (slow, part.take(slow_indices))):
                if methods and chosen.cases:
                    result = chosen.maps(network, name, plan, methods)
                    if result is not None:
                        rows += chosen.rows(result, name)
                        sizes |= {key: value.shape[2:] for key, value in result.maps.items()}
        size = next((s for key in (main_map(network), *sizes) if (s := sizes.get(key))), part.label.shape[2:])
        rows += part.baselines(size, MAIN_TARGET if MAIN_TARGET in plan.targets else plan.targets[0])
    if not any(row["tumor_area"] > 0 for row in rows):
        raise ValueError("no case with a tumor mask: localization can not be measured; add masks to this part")
    return rows


def _by_name(masks: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Masks (B, R, *spatial) as (B, 1, *spatial) each."""
    return {name: masks[:, k : k + 1] for k, name in enumerate(names)}


class _Part:
    """Cases of one batch, with the masks they are measured against."""

    def __init__(
        self,
        network: MultiTaskDynUNet,
        batch: Mapping[str, Any],
        index: Tensor,
        classes: Mapping[str, str],
        device: torch.device | str,
        regions: Sequence[str] = (),
        segment: bool = True,
    ) -> None:
        self.image, self.foreground = batch["image"][index].to(device), batch["foreground"][index].to(device)
        self.label, self.diagnosis = batch["label"][index], torch.as_tensor(batch["diagnosis"])[index]
        self.cases = [{key: batch[key][i] for key in ("name", "patient", "group", "source")} for i in index.tolist()]
        for case, diagnosis in zip(self.cases, self.diagnosis.tolist(), strict=True):
            case["class"] = classes.get(str(diagnosis), "unknown")
        self.temperature = float(network.temperature)
        self.pixel_mm = torch.as_tensor(batch["pixel_mm"])[index] if "pixel_mm" in batch else None
        self.masks = {"true": self.label}
        self.regions: dict[str, dict[str, Tensor]] = {"true": {}}
        if regions and MASKS_KEY in batch:
            self.regions["true"] = _by_name(batch[MASKS_KEY][index], regions)
        self.output: dict[str, Tensor] = {}
        if segment and is_trained(network, "segmentation"):
            with torch.no_grad(), evaluating(network):
                self.output = network.multitask(self.image, self.foreground)
            masks = region_masks(self.output["seg"], is_nested(network), mask_threshold(network))
            predicted = masks.to(self.label.dtype).cpu()
            self.predicted = predicted
            self.masks["predicted"] = predicted[:, :1]
            self.regions["predicted"] = _by_name(predicted, regions) if list(regions) == network.regions else {}

    def take(self, index: Sequence[int]) -> _Part:
        part = object.__new__(_Part)
        for name in ("image", "foreground", "label", "diagnosis"):
            setattr(part, name, getattr(self, name)[list(index)])
        part.temperature = self.temperature
        part.output = {name: value[list(index)] for name, value in self.output.items()}
        if self.output:
            part.predicted = self.predicted[list(index)]
        part.masks = {name: mask[list(index)] for name, mask in self.masks.items()}
        part.pixel_mm = None if self.pixel_mm is None else self.pixel_mm[list(index)]
        part.regions = {
            kind: {name: mask[list(index)] for name, mask in masks.items()} for kind, masks in self.regions.items()
        }
        part.cases = [self.cases[i] for i in index]
        return part

    def target(self, name: str) -> Target:
        target = named_target(name, self.diagnosis, self.label, self.temperature)
        if isinstance(target, SegmentationRegion) and target.mask is None and "seg" in self.output:
            # The predicted mask is the one that is measured against and drawn, of the region's own threshold.
            region = target.channel - (self.output["seg"].shape[1] - self.predicted.shape[1])
            if 0 <= region < self.predicted.shape[1]:
                mask = self.predicted[:, region : region + 1]
                return SegmentationRegion(mask, target.channel, target.reduction, "predicted")
        return target

    def maps(self, network: MultiTaskDynUNet, name: str, plan: Plan, methods: Sequence[str]) -> Explanation | None:
        """`maps_of` the cases; the evidence alone is taken from the pass that segmented them."""
        target = self.target(name)
        if list(methods) == ["evidence"] and "evidence" in self.output and isinstance(target, LogitTarget):
            logits = self.output["cls"]
            evidence_maps = {EVIDENCE: evidence_map(self.output["evidence"], logits, target)}
            return Explanation(logits, target(logits), target.name, evidence_maps, size=tuple(self.image.shape[2:]))
        return maps_of(network, self.image, self.foreground, target, plan, methods)

    def rows(self, result: Explanation, target: str) -> list[dict[str, Any]]:
        records = []
        for (method, layer), maps in result.maps.items():
            keys = {"method": method, "layer": layer, "target": target}
            relative = result.figures.get(f"{method}_relative_error")
            for mask, truth in self.masks.items():
                cancelled = result.cancelled.get((method, layer))
                none = None if cancelled is None else cancelled.cpu()
                region: dict[str, Any] = {"pixel_mm": self.pixel_mm, "regions": self.regions[mask]}
                measures = case_measures(maps.cpu(), truth, self.foreground.cpu(), none, **region)
                measures[COMPLETENESS] = torch.full((len(truth),), torch.nan) if relative is None else relative.cpu()
                records += case_rows(measures, self.cases, **keys, mask=mask)
        return records

    def baselines(self, layer_size: Sequence[int], target: str) -> list[dict[str, Any]]:
        """Rows of a uniform map, random maps, and the best map that a grid could draw of the mask, under a target."""
        rows, foreground = [], self.foreground.cpu()
        names = [case["name"] for case in self.cases]
        for mask, truth in self.masks.items():
            region: dict[str, Any] = {"pixel_mm": self.pixel_mm, "regions": self.regions[mask]}
            for name, measures in (
                ("uniform", uniform_baseline(truth, foreground, layer_size, **region)),
                ("random", random_baseline(truth, foreground, layer_size, names, **region)),
                ("oracle", case_measures(oracle_map(truth, layer_size), truth, foreground, **region)),
            ):
                measures[COMPLETENESS] = torch.full((len(truth),), torch.nan)
                rows += case_rows(measures, self.cases, method=name, layer="none", target=target, mask=mask)
        return rows
