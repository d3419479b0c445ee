"""What is wrong with a datalist's images, item by item, against stated rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scripts.data.datalists.clusters import Item, paths
from scripts.data.datalists.linking import file_order, hashes_of, linked
from scripts.data.datalists.schema import SPLITS, Datalist
from scripts.data.preprocessing import check_network_input, make_preprocessing
from transforms.borders import head_mask
from transforms.foreground import air_level, foreground_warnings, mask_depth
from transforms.intensity import different_values, quantile, scale_robust
from transforms.labels import label_coverage
from transforms.loading import LoadCased
from transforms.masks import read_mask_picture
from transforms.reading import file_kind

FAIL, NOTE = "fail", "note"


@dataclass(frozen=True)
class Rule:
    """One rule: `limit` says when it holds, `advice` what to do where it does not; `level` "fail" or "note"."""

    level: str
    limit: str
    advice: str


MIN_SIDE, MAX_ASPECT = 32, 2.5
MAX_CORNER, MIN_VALUES, MIN_COVERAGE, MAX_COLOR = 0.15, 16, 0.98, 12.0
MIN_HEAD, MAX_HEAD = 0.05, 0.97
# The largest tumor of brisc2025 is 0.25 of the head in its picture.
MAX_TUMOR = 0.6
# CT: bone saturates a good part of the head's rim, no dark layer lies between it and brain, and brain is darker, varies
# little and holds next to nothing as bright. On brisc2025 all 56 pictures found so are CT to the eye; without the signs
# of bone and of bright tissue 7 MR pictures with bright fat and an enhancing tumor are found as well.
CT_RIM, CT_SPREAD, CT_BRAIN, CT_BONE, CT_BRIGHT = 0.15, 0.35, 0.55, 0.85, 0.02
# Corners are squares of a sixteenth of the shorter side.
_CORNER = 16

RULES: dict[str, Rule] = {
    "readable": Rule(FAIL, "the files can be loaded, masks on the image's grid",
                     "fix or leave out the file; the reason says what is wrong"),
    "size": Rule(FAIL, f"sides >= {MIN_SIDE} pixels, aspect <= {MAX_ASPECT}", "leave out, or crop to the head"),
    "mode": Rule(FAIL, f"gray: color channels differ by <= {MAX_COLOR:g} of 255 in the mean",
                 "export without color map or drawings"),
    "intensity_range": Rule(FAIL, f"at least {MIN_VALUES} different values", "a mask or drawing? leave out"),
    "normalized": Rule(FAIL, "air is 0, or a foreground mask is given",
                       "take the original file, or give the brain mask as 'foreground'"),
    "foreground": Rule(FAIL, "a head is found", "give a mask of the head as 'foreground', or leave out"),
    "foreground_share": Rule(FAIL, f"{MIN_HEAD:g} to {MAX_HEAD:g} of the picture is head",
                             "look at the contact sheet; give a mask of the head as 'foreground'"),
    "corner_mean": Rule(FAIL, f"at most 2 corners taken for head have a mean above {MAX_CORNER:g} (0 to 1)",
                        "background taken for head: give a mask of the head as 'foreground'"),
    "zero_share": Rule(FAIL, "the network's input is exactly 0 in air and nowhere else", "report this case: a defect"),
    "mask_inside": Rule(FAIL, f"at least {MIN_COVERAGE:g} of the tumor inside the foreground",
                        "the network cannot see the rest: give a mask of the head as 'foreground'"),
    "mask_share": Rule(FAIL, f"the tumor is at most {MAX_TUMOR:g} of the foreground",
                       "a mask of the head or of another object? give the mask of the tumor"),
    "label_values": Rule(FAIL, "0 and 255 (anti-aliased), or labels 0 to 4", "redraw or recode the mask"),
    "label_class": Rule(FAIL, "mask and class agree on whether there is a tumor", "fix the class or the mask"),
    "modality": Rule(FAIL, f"no CT (rim saturated over {CT_RIM:g}, no dark bone, even brain)",
                     "CT among MRI is a shortcut where it goes along with a class: leave out"),
    "duplicate": Rule(FAIL, "no picture in two splits or two classes", "merge the list with --dataset_dir"),
    "near_duplicate": Rule(FAIL, "no near-duplicates, patient or group in two splits",
                           "merge the list with --dataset_dir"),
    "background": Rule(NOTE, f"corners have a mean of <= {MAX_CORNER:g} (0 to 1)", "bright background, masked: look"),
    "cut_head": Rule(NOTE, f"no corner taken for head has a mean above {MAX_CORNER:g} (0 to 1)",
                     "the field of view cuts the head or neck: look"),
    "doubtful_foreground": Rule(NOTE, "one piece, not in most corners", "look at the contact sheet"),
    "copies": Rule(NOTE, "no picture twice within a split", "copies weigh more than others in training"),
}  # fmt: skip

COLUMNS = (
    "split", "name", "image", "slice", "plane", "source", "diagnosis", "patient", "group", "mode", "width", "height",
    "minimum", "maximum", "values", "zero_share", "corner_mean", "corner_mean_head", "foreground_share", "given_mask",
    "foreground_mean", "foreground_std", "rim_saturated", "brain_level", "brain_spread",
    "has_label", "tumor_share", "mask_inside",
    "label_values", "network_zero_share", "failed", "noted", "reasons",
)  # fmt: skip


@dataclass
class Result:
    """What was measured on one item, and the rules that do not hold: rule name to reason."""

    item: Item
    split: str
    measures: dict[str, Any] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    hash: NDArray[np.uint8] | None = None
    content: str = ""

    def to_plain(self) -> dict[str, Any]:
        """What JSON holds of it, without the split."""
        packed = None if self.hash is None else self.hash.tobytes().hex()
        return {"item": self.item, "measures": self.measures, "broken": self.broken, "hash": packed,
                "content": self.content}  # fmt: skip

    @classmethod
    def from_plain(cls, values: Mapping[str, Any], split: str) -> Result:
        """Read `to_plain`."""
        packed = None if values["hash"] is None else np.frombuffer(bytes.fromhex(values["hash"]), np.uint8)
        return cls(**{**values, "hash": packed, "split": split})

    def breaks(self, rule: str, reason: str) -> None:
        """Record a rule that does not hold."""
        if rule not in RULES:
            raise ValueError(f"unknown rule {rule!r}; known: {', '.join(RULES)}")
        self.broken[rule] = f"{self.broken[rule]}; {reason}" if rule in self.broken else reason

    def level(self, allowed: Sequence[str] = ()) -> str:
        """ "fail", "note" or "pass", rules that are allowed counting as notes."""
        levels = {NOTE if rule in allowed else RULES[rule].level for rule in self.broken}
        return FAIL if FAIL in levels else NOTE if levels else "pass"

    def row(self) -> dict[str, Any]:
        """One line of the table, with every column."""
        about = {key: self.item.get(key, "") for key in COLUMNS if key in self.item}
        about["image"] = paths(self.item)[0]
        about |= {"split": self.split, **self.measures}
        about["failed"] = " ".join(rule for rule in self.broken if RULES[rule].level == FAIL)
        about["noted"] = " ".join(rule for rule in self.broken if RULES[rule].level == NOTE)
        about["reasons"] = "; ".join(f"{rule}: {reason}" for rule, reason in self.broken.items())
        return {key: about.get(key, "") for key in COLUMNS}


class Verifier:
    """Verify items one by one.

    Args:
        dataset_dir: to which the items' paths are relative.
        spatial_size: of the network's input.
    """

    def __init__(self, dataset_dir: Path | str, spatial_size: int = 256) -> None:
        self.root = Path(dataset_dir)
        self.pipeline = make_preprocessing(spatial_size, trace=False)

    def __call__(self, item: Item, split: str) -> Result:
        """Measure one item; every fault is in the result, none is raised."""
        result = Result(item, split)
        missing = [path for path in paths(item) if not (self.root / path).exists()]
        if missing:
            result.breaks("readable", f"{missing[0]} does not exist")
            return result
        try:
            loaded = LoadCased()(self.resolved(item))
        except ValueError as error:
            result.breaks("readable", self._short(error))
            return result
        result.measures |= {"has_label": "label" in item, "given_mask": "foreground" in item}
        image = loaded["image"].as_tensor()
        pixels = image[0].numpy()
        result.hash, result.content = hashes_of(pixels)
        self._file(result, pixels)
        scaled = scale_robust(image)[0].numpy()
        mask = self._foreground(result, loaded, image)
        if mask is None:
            return result
        _corners(result, scaled, mask)
        _contrast(result, scaled, mask)
        if "label" in loaded:
            self._label(result, loaded["label"], mask)
        loaded["foreground"] = mask[None].astype(np.uint8)
        self._network_input(result, loaded)
        return result

    def resolved(self, item: Item) -> dict[Any, Any]:
        """The item with paths below `dataset_dir`."""
        new: dict[Any, Any] = dict(item)
        for key in ("image", "label", "foreground"):
            if key in new:
                value = new[key]
                new[key] = str(self.root / value) if isinstance(value, str) else [str(self.root / v) for v in value]
        return new

    def _short(self, error: Exception) -> str:
        return str(error).replace(f"{self.root}/", "")

    def _file(self, result: Result, pixels: NDArray) -> None:
        width, height = pixels.shape
        values = len(different_values(pixels))
        path = self.root / paths(result.item)[0]
        mode, color = "volume", 0.0
        if path.is_file() and file_kind(path) == "picture":
            with Image.open(path) as opened:
                mode = opened.mode
                if mode not in ("1", "L", "LA", "F") and not mode.startswith("I"):
                    small = opened.convert("RGB")
                    small.thumbnail((128, 128))
                    rgb = np.asarray(small, np.float32)
                    color = float((rgb.max(axis=2) - rgb.min(axis=2)).mean())
        result.measures |= {
            "mode": mode, "width": width, "height": height, "minimum": float(pixels.min()),
            "maximum": float(pixels.max()), "values": values, "zero_share": float((pixels == 0).mean()),
        }  # fmt: skip
        if min(pixels.shape) < MIN_SIDE:
            result.breaks("size", f"{width} x {height} pixels")
        elif max(pixels.shape) > MAX_ASPECT * min(pixels.shape):
            result.breaks("size", f"{width} x {height} pixels, aspect {max(pixels.shape) / min(pixels.shape):.1f}")
        if color > MAX_COLOR:
            result.breaks("mode", f"{mode}, color channels differ by {color:.0f}")
        if values < MIN_VALUES:
            result.breaks("intensity_range", f"{values} different values")
        air = air_level(pixels)
        if air is not None and "foreground" not in result.item:
            result.breaks("normalized", f"air is {air:.3g}")

    def _foreground(self, result: Result, loaded: dict[Any, Any], image: Any) -> NDArray[np.bool_] | None:
        if "foreground" in loaded:
            mask = loaded["foreground"][0].numpy() != 0
            if not mask.any():
                result.breaks("foreground", "the given mask is empty")
                return None
        else:
            try:
                mask = head_mask(np.asarray(image))
            except ValueError as error:
                result.breaks("foreground", str(error))
                return None
        share = float(mask.mean())
        result.measures["foreground_share"] = share
        if not MIN_HEAD <= share <= MAX_HEAD:
            result.breaks("foreground_share", f"{share:.3f}")
        for reason in foreground_warnings(mask, 0.0, 1.0):
            result.breaks("doubtful_foreground", reason)
        return mask

    def _label(self, result: Result, label: Any, mask: NDArray[np.bool_]) -> None:
        tumor = label[0].numpy() != 0
        coverage = label_coverage(label.as_tensor(), _tensor_like(label, mask))
        result.measures |= {"tumor_share": float(tumor.mean()), "mask_inside": coverage}
        if coverage < MIN_COVERAGE:
            result.breaks("mask_inside", f"{coverage:.3f}")
        share = float(tumor.sum() / mask.sum())
        if share > MAX_TUMOR:
            result.breaks("mask_share", f"{share:.2f} of the foreground")
        diagnosis = result.item.get("diagnosis", -1)
        if diagnosis == 0 and tumor.any():
            result.breaks("label_class", f"class 0 (no tumor), but {int(tumor.sum())} tumor pixels")
        if diagnosis > 0 and not tumor.any():
            result.breaks("label_class", f"class {diagnosis}, but an empty mask")
        path = self.root / result.item["label"]
        if path.is_file() and file_kind(path) == "picture":
            values = different_values(read_mask_picture(path))
            between = float(((values > 64) & (values < 192)).sum()) / len(values) if values.max() > 4 else 0.0
            result.measures["label_values"] = f"{len(values)} from {values[0]:g} to {values[-1]:g}"
            if len(values) > 4 and between > 0.5:
                result.breaks("label_values", f"{between:.0%} of the mask's gray values lie between 64 and 192")
            return
        original = LoadCased()({**self.resolved({**result.item, "image": result.item["label"]}), "label": None})
        values = np.unique(original["image"].numpy())
        result.measures["label_values"] = " ".join(f"{value:g}" for value in values[:8])
        odd = values[(np.abs(values - np.rint(values)) > 1e-3) | (values > 4.5) | (values < -0.5)]
        if len(odd):
            result.breaks("label_values", f"labels {', '.join(f'{value:g}' for value in odd[:5])}")

    def _network_input(self, result: Result, loaded: dict[Any, Any]) -> None:
        keep = {key: loaded[key] for key in ("image", "label", "foreground") if key in loaded}
        try:
            ready = self.pipeline(keep)
            image, inside = ready["image"], ready["foreground"]
            check_network_input(image[None], inside[None])
        except (ValueError, RuntimeError) as error:
            result.breaks("zero_share", self._short(error))
            return
        result.measures["network_zero_share"] = float((image == 0).float().mean())


def _tensor_like(label: Any, mask: NDArray[np.bool_]) -> Any:
    return label.as_tensor().new_tensor(mask[None])


def _corners(result: Result, scaled: NDArray, mask: NDArray[np.bool_]) -> None:
    side = max(2, min(scaled.shape) // _CORNER)
    parts = [(slice(x, x + side if x == 0 else None), slice(y, y + side if y == 0 else None))
             for x in (0, -side) for y in (0, -side)]  # fmt: skip
    whole = [float(scaled[part].mean()) for part in parts]
    head = [float((scaled[part] * mask[part]).mean()) for part in parts]
    result.measures |= {"corner_mean": float(np.mean(whole)), "corner_mean_head": float(np.mean(head))}
    bright = sum(value > MAX_CORNER for value in head)
    if bright >= 3:
        result.breaks("corner_mean", f"{bright} corners taken for head, mean {np.mean(head):.2f}")
    elif bright:
        result.breaks("cut_head", f"{bright} corner{'s' if bright > 1 else ''} of mean {max(head):.2f}")
    elif np.mean(whole) > MAX_CORNER:
        result.breaks("background", f"corner mean {np.mean(whole):.2f}, outside the mask")


def _contrast(result: Result, scaled: NDArray, mask: NDArray[np.bool_]) -> None:
    """Statistics of the foreground, and the signs of CT."""
    inside = scaled[mask]
    depth = mask_depth(np.pad(mask, 1))[1:-1, 1:-1][mask]
    deepest = depth.max()
    rim, brain = inside[depth < 0.3 * deepest], inside[depth > 0.35 * deepest]
    low, middle, high = (float(quantile(brain, share)) for share in (0.25, 0.5, 0.75))
    bands = [inside[(depth > a * deepest) & (depth <= (a + 0.06) * deepest)] for a in (0.12, 0.18, 0.24)]
    bone = min((float(np.median(band)) for band in bands if band.size), default=0.0)
    saturated, spread = float((rim > 0.9).mean()), float((high - low) / max(middle, 0.05))
    result.measures |= {
        "foreground_mean": float(inside.mean()), "foreground_std": float(inside.std()),
        "rim_saturated": saturated, "brain_level": float(middle), "brain_spread": spread,
    }  # fmt: skip
    bright = float((brain > 0.9).mean())
    signs = (saturated > CT_RIM, spread < CT_SPREAD, middle < CT_BRAIN, bone > CT_BONE * middle, bright < CT_BRIGHT)
    if all(signs):
        result.breaks("modality", f"looks like CT (rim {saturated:.2f} saturated, brain {middle:.2f} +- {spread:.2f})")


def compare(results: Sequence[Result], dataset_dir: Path | str) -> None:
    """Add what only shows between items: duplicates, near-duplicates, patients and groups in two splits.

    Args:
        results: of all items; what is found is added to them.
        dataset_dir: folder of the images; without patients, their order in it counts (see `linking.file_order`).
    """
    read = [result for result in results if result.hash is not None]
    if not read:
        return
    same: dict[str, list[Result]] = {}
    for result in read:
        same.setdefault(result.content, []).append(result)
    for copies in same.values():
        _compare_copies(copies)
    hashes = np.array([result.hash for result in read])
    items = [result.item for result in read]
    groups, _ = linked(items, hashes, [result.content for result in read], order=file_order(items, dataset_dir))
    members: dict[int, list[Result]] = {}
    for group, result in zip(groups.tolist(), read, strict=True):
        members.setdefault(group, []).append(result)
    for cluster in members.values():
        sides = {result.split for result in cluster}
        if len(sides) > 1:
            for result in cluster:
                other = next(one for one in cluster if one.split != result.split)
                result.breaks("near_duplicate", f"linked to {paths(other.item)[0]} in {other.split}")


def _compare_copies(copies: Sequence[Result]) -> None:
    for result in copies:
        for other in copies:
            if other is result:
                continue
            known = {result.item.get("diagnosis", -1), other.item.get("diagnosis", -1)} - {-1}
            if other.split != result.split or len(known) > 1:
                result.breaks("duplicate", f"same pixels as {paths(other.item)[0]} ({other.split})")
            else:
                result.breaks("copies", f"same pixels as {paths(other.item)[0]}")
            break


def every_item(datalist: Datalist) -> list[tuple[Item, str]]:
    """All items with their splits."""
    return [(item, split) for split in SPLITS for item in datalist[split]]
