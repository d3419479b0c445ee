"""From the network's outputs back to the file's own grid: mask, evidence, and the verdict in words and numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd, Transform
from torch import Tensor

from scripts.data.datalists.regions import own_values
from scripts.explain.maps import upsample
from scripts.inference.answer import Raw, join, overlaps
from scripts.inference.result_names import RESULT, check_free, result_name
from scripts.inference.results import EVIDENCE, save_nifti
from scripts.inference.scans import Scan, to_slice_grid
from scripts.inference.volume_rule import VolumeRule, evidence_places, strongest_run
from scripts.measures.metrics import temperature_at_bound
from scripts.measures.prevalence import prevalence_in_use
from scripts.networks.regions import named_thresholds
from scripts.runs.tasks import TASKS, UNTRAINED, untrained_flags

# Further scores of a scan, for the result, and flags.
Score = Callable[[Tensor, Mapping[str, Tensor], Scan], tuple[dict[str, float], list[dict[str, Any]]]]


def like_image(value: torch.Tensor, image: MetaTensor) -> MetaTensor:
    """``value`` with the metadata and applied operations of the preprocessed image, so that it can be inverted."""
    return MetaTensor(value, meta=dict(image.meta), applied_operations=list(image.applied_operations))


def shown_evidence(log_odds: Tensor) -> Tensor:
    """Evidence as pictures show it, on one scale for all images: ``2 sigmoid(e) - 1``, and 0 below 0.

    Args:
        log_odds: calibrated, as `RestoreScand` gives them: of the class logit, divided by the temperature.

    Returns:
        in [0, 1): 0 is none, 0.5 odds of 3 to 1, 0.9 odds of 19 to 1 that a place alone speaks for a tumor. Nothing is
        stretched to the image's own maximum, so a map of nothing stays dark.

    >>> [round(float(v), 3) for v in shown_evidence(torch.tensor([-1.0, 0.0, 1.0986, 2.9444]))]
    [0.0, 0.0, 0.5, 0.9]
    """
    return torch.tanh(log_odds.clamp(min=0) / 2)


def labels_of(tumor: Tensor, threshold: float = 0.5) -> Tensor:
    """Most probable class of each voxel, uint8 (*shape); where nothing was predicted all is 0, and so is the class.

    Args:
        tumor: (K - 1, *shape), probability of each class but the background.
        threshold: of the tumor, where it is the one class.
    """
    if len(tumor) == 1:
        return (tumor[0] > threshold).to(torch.uint8)
    best, label = tumor.max(dim=0)
    return torch.where(best > 1 - tumor.sum(dim=0), label + 1, 0).to(torch.uint8)


def region_masks_of(output: Mapping[str, Tensor]) -> Tensor:
    """Mask (S, R, *size), bool, of each region of the inferer's outputs, on the network's grid."""
    thresholds = output.get("mask_threshold", torch.tensor([0.5]))
    if "regions" in output:
        return output["regions"] > thresholds.view(1, -1, *[1] * (output["regions"].ndim - 2))
    tumor, background = output["seg"][:, 1:], output["seg"][:, :1]
    # The maximum takes a tenth of the time of argmax.
    return tumor > thresholds[0] if tumor.shape[1] == 1 else tumor.amax(dim=1, keepdim=True) > background


def paint(
    probability: Iterable[Tensor], regions: Mapping[str, Sequence[int]], thresholds: Sequence[float] | None = None
) -> Tensor:
    """Label values of the regions whose probability is above their threshold, uint8 (*shape); the last of them counts.

    A region is painted in the smallest of its values that no later one has: in "whole_tumor: [1, 2, 4]" before
    "tumor_core: [1, 4]" in 2, the edema. Values that only together make a region, such as necrosis and non-enhancing
    tumor of BraTS 2012, cannot be separated again.

    Args:
        probability: (*shape) of each region, in their order; taken one after the other.
        regions: label values by name.
        thresholds: of each region; None: one half.

    >>> paint(torch.tensor([[0.9, 0.9, 0.9, 0.1], [0.1, 0.9, 0.9, 0.1], [0.1, 0.2, 0.8, 0.1]]),
    ...       {"whole_tumor": [1, 2, 4], "tumor_core": [1, 4], "enhancing_tumor": [4]}).tolist()
    [2, 1, 4, 0]
    """
    label = torch.zeros(0, dtype=torch.uint8)
    for number, (value, of_region) in enumerate(zip(own_values(regions), probability, strict=True)):
        label = label if number else label.new_zeros(of_region.shape)
        label[of_region > (0.5 if thresholds is None else thresholds[number])] = value
    return label


class RestoreScand(Transform):
    """Splits the inferer's dictionary: mask and evidence on the file's own grid, the verdict under "result".

    After it, "pred" is uint8 (1, X, Y[, Z]), the most probable class of each voxel; "evidence" float32 (1, X, Y[, Z])
    in calibrated log-odds, 0 and up: what localization is measured on, divided by the temperature (absent without an
    evidence head); both with the file's affine. Segmentation
    probabilities and evidence are interpolated linearly, the mask is taken after that; outside the crop it is 0.

    Mask, evidence and "result" are those of the joined answer, see `scripts.inference.answer`: both maps are empty
    where the verdict is no tumor or not assessed. "raw_pred" and "raw_evidence" are the network's own.

    "result" holds plain numbers and words: ``verdict`` and its ``reasons``; ``tumor_detected`` and ``predicted_class``
    (class 0 if not detected, else the most probable tumor class), None where the verdict is neither yes nor no;
    ``tumor_probability``, ``threshold``, ``temperature``, ``mask_thresholds`` by region, ``class_probabilities`` by
    name, ``slice_probabilities`` (of any tumor, a slice of the plane each, None where the slice was not read; None for
    a picture), ``plane``, ``run`` (first and last slice of the run that a volume is scored by),
    ``tumor_voxels``, ``evidence_maximum``, ``flags``; ``prevalence`` that the probabilities are for, by class (None:
    that of the training); and under ``raw`` what the network says alone:
    ``tumor_detected`` (probability at least the threshold), ``predicted_class``, ``tumor_voxels``,
    ``evidence_maximum``, ``contradictions``.

    Args:
        classes: class names by index, class 0 "no tumor"; without them the classes are called by number.
        volume_share, min_foreground, volume_threshold: share, min_foreground and threshold of
            `scripts.inference.volume_rule.VolumeRule`.
        scores: further scorers, each called with the prepared slices (S, C, *size), the inferer's outputs and the
            scan; their numbers go under ``scores``, their flags to the others.
        regions: of a network of several, label values by name, the tumor first; "pred" then holds these values, see
            `paint`, and ``regions`` of the result the voxels and milliliters of each.
        trained: what the network was trained for, of `scripts.runs.tasks.TASKS`; what comes of the rest is flagged.
        assess_anyway: answer images outside the scope too, instead of "not assessed"; they stay flagged. An
            item's own "assess_anyway" comes first.
        training_prevalence: share of each class in the training, by name; None: not known.
        image_key: the prepared image.
    """

    def __init__(
        self,
        classes: Mapping[str, str] | None = None,
        volume_share: float = 0.1,
        min_foreground: float = 0.1,
        scores: Sequence[Score] = (),
        regions: Mapping[str, Sequence[int]] | None = None,
        trained: Sequence[str] = TASKS,
        assess_anyway: bool = False,
        training_prevalence: Mapping[str, float] | None = None,
        volume_threshold: float | None = None,
        image_key: str = "image",
    ) -> None:
        self.classes, self.image_key, self.scores = dict(classes or {}), image_key, tuple(scores)
        self.rule = VolumeRule(volume_share, min_foreground, volume_threshold)
        self.training_prevalence = training_prevalence
        self.regions = {name: list(values) for name, values in (regions or {}).items()}
        self.trained, self.untrained, self.assess_anyway = tuple(trained), untrained_flags(trained), assess_anyway

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Restore one item, whose "pred" is the inferer's dictionary without the batch axis."""
        item = dict(data)
        image, output = item[self.image_key], {k: v.cpu() for k, v in item["pred"].items()}
        scan = Scan.of(image)
        size = image.shape[1 : 1 + len(scan.slice_shape)]
        masks, maps = [], []
        raw = output.get("evidence")
        least = [float(t) for t in output["mask_threshold"]] if "mask_threshold" in output else None
        for i, placement in enumerate(scan.placements):
            if "regions" in output:
                # One at a time: on the file's grid each may be large.
                regions = (to_slice_grid(one[None], placement, scan.slice_shape)[0] for one in output["regions"][i])
                masks.append(paint(regions, self._named(output), least))
            else:
                tumor = to_slice_grid(output["seg"][i, 1:], placement, scan.slice_shape)
                masks.append(labels_of(tumor, 0.5 if least is None else least[0]))
            if raw is not None:
                on_size = upsample(raw[i : i + 1].clamp(min=0), size)[0]
                maps.append(to_slice_grid(on_size, placement, scan.slice_shape)[0])
        meta = {key: value for key, value in image.meta.items() if key != "scan"}
        item["raw_pred"] = MetaTensor(scan.restore(masks, torch.uint8)[None], meta=dict(meta))
        if raw is not None:
            calibrated = [value / output["temperature"] for value in maps]
            item["raw_evidence"] = MetaTensor(scan.restore(calibrated)[None], meta=dict(meta))
        result = self.verdict(output, scan)
        for score in self.scores:
            stack = image.as_tensor().movedim(-1, 0) if scan.plane else image.as_tensor()[None]
            numbers, flags = score(stack, output, scan)
            result.setdefault("scores", {}).update(numbers)
            result["flags"] += flags
        item["result"] = self.join(item, result, scan)
        return item

    def _named(self, output: Mapping[str, Tensor]) -> dict[str, list[int]]:
        """The regions of the outputs.

        Raises:
            ValueError: when they are not those that the config names.
        """
        count = output["regions"].shape[1]
        if count != len(self.regions):
            raise ValueError(
                f"the network segments {count} regions, the config names {len(self.regions)}; give the network.yaml of "
                "the run"
            )
        return self.regions

    def mask_thresholds(self, output: Mapping[str, Tensor]) -> dict[str, float]:
        """Threshold of each region by name; {} where the network does not say."""
        names = list(self.regions) if "regions" in output else ["tumor"]
        return named_thresholds(output["mask_threshold"], names) if "mask_threshold" in output else {}

    def tumor(self, mask: np.ndarray) -> np.ndarray:
        """Where a mask of class numbers, or of the label values of regions, says tumor: bool."""
        return np.isin(mask, next(iter(self.regions.values()))) if self.regions else mask > 0

    def sizes(self, mask: np.ndarray, scan: Scan) -> dict[str, Any]:
        """Voxels and milliliters of each of several regions, with the values that stand for it in the mask."""
        voxel_ml = abs(float(np.linalg.det(np.asarray(scan.affine)[:3, :3]))) / 1000
        voxels = {name: int(np.isin(mask, values).sum()) for name, values in self.regions.items()}
        return {
            name: {"voxels": voxels[name], "ml": voxels[name] * voxel_ml, "labels": values}
            for name, values in self.regions.items()
        }

    def join(self, item: dict[Hashable, Any], result: dict[str, Any], scan: Scan) -> dict[str, Any]:
        """Put mask and evidence of the joined answer into the item; the result with its verdict."""
        mask, evidence = item["raw_pred"], item.get("raw_evidence")
        segments, classifies = ("segmentation" in self.trained), ("classification" in self.trained)
        tumor = self.tumor(mask.numpy())
        voxels, strongest = int(tumor.sum()), None if evidence is None else float(evidence.max())
        raw = Raw(
            probability=result["tumor_probability"],
            threshold=result["threshold"],
            mask_voxels=voxels if segments else None,
            head_voxels=round(sum(p.share for p in scan.placements) * math.prod(scan.slice_shape)),
            evidence_maximum=strongest,
            overlap=None if evidence is None else overlaps(tumor, evidence.numpy()),
        )
        objections = [] if classifies else [UNTRAINED["classification"]]
        if not item.get("assess_anyway", self.assess_anyway):
            objections += [flag["message"] for flag in result["flags"] if flag["code"] == "outside_scope"]
        answer = join(raw, objections)
        # Of a network that only segments the mask is all there is.
        empty = answer.empty and (classifies or len(objections) > 1)
        item["pred"] = torch.zeros_like(mask) if empty else mask
        if evidence is not None:
            item["evidence"] = torch.zeros_like(evidence) if empty else evidence
        names = list(result["class_probabilities"])
        said = names[int(np.argmax(list(result["class_probabilities"].values())[1:])) + 1 if raw.detected else 0]
        return {
            "verdict": answer.verdict,
            "reasons": list(answer.reasons),
            "tumor_detected": answer.detected,
            "predicted_class": None if answer.detected is None else said,
            **result,
            "tumor_voxels": 0 if empty else voxels,
            **({"regions": self.sizes(item["pred"].numpy(), scan)} if self.regions else {}),
            **({} if strongest is None else {"evidence_maximum": 0.0 if empty else strongest}),
            "raw": {
                "tumor_detected": raw.detected,
                "predicted_class": said,
                "tumor_voxels": voxels,
                "evidence_maximum": strongest,
                "contradictions": raw.contradictions,
            },
        }

    def probability(
        self, per_slice: Tensor, scan: Scan, evidence: Tensor | None = None
    ) -> tuple[Tensor, list[int] | None]:
        """Class probabilities (K,) of the whole image from those of its slices, (S, K); and first and last of the run.

        Args:
            per_slice: of each placement.
            scan: of the image.
            evidence: (S, 1, *grid), which says where neighbors agree; None: there is none.
        """
        if not scan.plane:
            return per_slice[0], None
        votes = torch.tensor([p.share >= self.rule.min_foreground for p in scan.placements])
        places = None if evidence is None else evidence_places(evidence)
        probabilities, run = strongest_run(per_slice, votes, self.rule.share, places)
        return probabilities, [scan.placements[k].index for k in (run[0], run[-1])]

    def verdict(self, output: Mapping[str, Tensor], scan: Scan) -> dict[str, Any]:
        """Numbers of the classification, and flags."""
        per_slice = output["probability"]
        by_class, run = self.probability(per_slice, scan, output.get("evidence"))
        probability = [float(p) for p in by_class]
        threshold = float(output["threshold"])
        flags = [*scan.flags, *(dict(flag) for flag in self.untrained)]
        if temperature_at_bound(float(output["temperature"])):
            flags.append(
                {
                    "code": "not_calibrated",
                    "message": f"the fitted temperature ({float(output['temperature']):.3g}) stands at an end of its "
                    "range: the probabilities are not calibrated; train with more validation cases",
                }
            )
        names = [self.classes.get(str(i), f"class {i}") for i in range(len(probability))]
        slices: list[float | None] | None = None
        if scan.plane:
            slices = [None] * scan.count
            for placement, value in zip(scan.placements, per_slice, strict=True):
                slices[placement.index] = 1.0 - float(value[0])
        return {
            "tumor_probability": 1.0 - probability[0],
            "threshold": self.rule.threshold_of(threshold) if scan.plane else threshold,
            "temperature": float(output["temperature"]),
            "mask_thresholds": self.mask_thresholds(output),
            "class_probabilities": dict(zip(names, probability, strict=True)),
            "prevalence": prevalence_in_use(output.get("class_shift"), self.training_prevalence, names),
            "slice_probabilities": slices,
            "plane": scan.plane or None,
            "run": run,
            "flags": flags,
        }


class SaveEvidenced(Transform):
    """Writes "evidence" as NIfTI on the file's grid and puts the path under "evidence" into "result".

    Args:
        output_dir: made if absent; None: nothing is written.
    """

    def __init__(self, output_dir: str | Path | None) -> None:
        self.output_dir = None if output_dir is None else Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the map of one item."""
        item = dict(data)
        if self.output_dir is None or "evidence" not in item:
            return item
        evidence = item["evidence"]
        source = str(evidence.meta["filename_or_obj"])
        name = result_name(item, source)
        check_free(self.output_dir / f"{name}{RESULT}", source)
        path = self.output_dir / f"{name}_evidence.nii.gz"
        save_nifti(evidence[0].numpy(), np.asarray(evidence.affine, dtype=float), path, EVIDENCE)
        item["result"] = {**item["result"], "evidence": str(path)}
        return item


class LabelPictured(Transform):
    """Gives MONAI Label the mask of a picture as (X, Y); leaves every other item, and other programs', as it is.

    MONAI Label, known by the ``image_path`` that it puts into each item, takes the channel axis off volumes alone: a
    mask of (1, X, Y) it would write as a picture of X rows and one column.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Take the axis off "pred"."""
        item = dict(data)
        if "image_path" in item and item["pred"].ndim == 3:
            item["pred"] = item["pred"][0]
        return item


def to_original_grid(value: torch.Tensor, image: MetaTensor, preprocessing: Any, nearest: bool = False) -> MetaTensor:
    """Undo the preprocessing's geometry for an array on the network's grid; 0 outside the crop.

    Args:
        value: (C, H, W[, D]) on the grid of ``image``.
        image: the preprocessed image with its applied operations.
        preprocessing: the pipeline that made ``image``.
        nearest: interpolate by nearest neighbor (labels) instead of linearly.
    """
    invert = Invertd(
        keys="value", transform=preprocessing, orig_keys="image", nearest_interp=nearest, to_tensor=True, device="cpu"
    )
    return invert({"image": image, "value": like_image(value, image)})["value"]
