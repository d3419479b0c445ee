"""From one volume to the 2D slices of it that go into a datalist, by one stated rule for all sources of volumes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from scripts.data.datalists.clusters import Item, cluster
from scripts.data.datalists.regions import Regions
from scripts.data.datalists.schema import PLANES
from transforms.foreground import air_level
from transforms.grids import off_grid, uncropped
from transforms.loading import view_plane
from transforms.masks import check_tumor, region_masks, unknown_labels
from transforms.reading import CROPPED, file_kind, orient_lps, read_volume

T = TypeVar("T")

# Labels of BRATS, whichever year: 1 necrosis, 2 edema, 3 non-enhancing, 4 enhancing tumor.
LABELS = (0, 1, 2, 3, 4)
# Pixels of coronal and sagittal planes may be so much longer than wide.
MAX_ANISOTROPY = 1.5
MIN_SIDE = 16
# A mask of more than this share of the head is none of a tumor.
MAX_TUMOR = 0.6


@dataclass(frozen=True)
class SliceRule:
    """Which slices of a volume are taken.

    A tumor slice has at least `min_tumor_area` of tumor; a normal one has no tumor, nor has the slice before or behind.
    Both show at least `min_foreground` of head. Of those, at most so many a patient are taken, shared out among the
    volumes (time points) and planes, and spread evenly over each.

    Attributes:
        planes: of "axial", "coronal", "sagittal". Empty: no slices, whole volumes (3D).
        tumor_slices: at most so many with tumor per patient, over all volumes and planes.
        normal_slices: at most so many without tumor per patient, over all volumes and planes.
        min_tumor_area: share of the slice's pixels, more than 0.
        min_foreground: share of the slice's pixels in the given brain mask, else brighter than Otsu's threshold.
        regions: of the masks, by name; None: any label is tumor.
        shifted_air: take volumes whose air is not 0 (normalized before) without a brain mask too.
    """

    planes: tuple[str, ...] = ("axial",)
    tumor_slices: int = 5
    normal_slices: int = 3
    min_tumor_area: float = 0.003
    min_foreground: float = 0.10
    shifted_air: bool = False
    regions: Regions | None = None

    def __post_init__(self) -> None:
        unknown = [plane for plane in self.planes if plane not in PLANES]
        if unknown:
            raise ValueError(f"unknown plane {unknown[0]!r}; expected some of {', '.join(PLANES)}")
        if min(self.tumor_slices, self.normal_slices) < 0 or not 0 < self.min_tumor_area < 1:
            raise ValueError("slice counts must be 0 or more and min_tumor_area between 0 and 1")


@dataclass
class Case:
    """One volume to be looked at: its files, and what is known of it.

    Attributes:
        patient: who it is.
        images: one file (or folder of a DICOM series) a channel.
        label: tumor mask, or None.
        foreground: mask of the brain or head, or None.
        diagnosis: of a volume without label: 0 or -1 (unknown).
        stacked: one file of four dimensions may hold the channels.
    """

    patient: str
    images: list[Path]
    label: Path | None = None
    foreground: Path | None = None
    diagnosis: int = -1
    stacked: bool = False


@dataclass
class Findings:
    """What was found in the volumes: labels, tumor or none, content of each for the search for duplicates.

    `left_out` counts slices that do not qualify, by reason; `beyond_limit` names the cases of which no slice was taken,
    as others of their patient gave enough.
    """

    labels: set[int] = field(default_factory=set)
    contents: dict[str, str] = field(default_factory=dict)
    strata: dict[str, str] = field(default_factory=dict)
    normalized: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    beyond_limit: set[str] = field(default_factory=set)


def load_oriented(path: Path | str) -> tuple[NDArray, NDArray[np.float64]]:
    """Read a volume with its axes permuted and flipped to LPS, without interpolation.

    The indices then rise to the patient's left, to posterior and to superior, as with MONAI's
    `Orientation(axcodes="LPS")`.

    Returns:
        The array (X, Y, Z), float32, scaled by the header, and the 4 x 4 affine (mm, RAS world) that goes with it.

    Raises:
        ValueError: when the file cannot be read or is no image of three dimensions.
    """
    channels, affine = load_channels(path)
    if len(channels) > 1:
        shape = (*channels[0].shape, len(channels))
        raise ValueError(f"{Path(path).name} has 4 dimensions {shape}, expected 3: save its volumes one by one")
    return channels[0], affine


def load_channels(path: Path | str) -> tuple[list[NDArray], NDArray[np.float64]]:
    """Read a volume of one or more channels as `load_oriented` does: a list of (X, Y, Z), and the affine.

    Raises:
        ValueError: when the file cannot be read, or has fewer than three or more than four dimensions.
    """
    kind = file_kind(path)
    if kind == "picture":
        raise ValueError(f"{Path(path).name} is a picture, expected a volume")
    data, affine = read_volume(path, kind)
    if data.ndim not in (3, 4) or 0 in data.shape:
        raise ValueError(f"{Path(path).name} has {data.ndim} dimensions {data.shape}, expected 3")
    data, affine = orient_lps(data, affine)
    return ([data] if data.ndim == 3 else [data[..., k] for k in range(data.shape[3])]), affine


def qualifying_slices(
    tumor_area: NDArray[np.float64],
    foreground_share: NDArray[np.float64],
    min_tumor_area: float,
    min_foreground: float,
    margin: int = 1,
) -> tuple[list[int], list[int]]:
    """Slices of one volume that may be taken.

    A tumor slice has at least `min_tumor_area`; a normal one has no tumor pixel, nor has a slice up to `margin` away.
    Both have at least `min_foreground`. Slices with less tumor than the minimum are neither.

    Args:
        tumor_area: (Z,) share of tumor pixels of each slice.
        foreground_share: (Z,) share of pixels of the head of each slice.
        min_tumor_area: share of the slice, more than 0.
        min_foreground: share of the slice.
        margin: slices between tumor and a normal slice.

    Returns:
        Indices of tumor slices, and of normal slices, each rising.
    """
    head = foreground_share >= min_foreground
    touched = np.convolve(tumor_area > 0, np.ones(2 * margin + 1), mode="same") > 0.5
    if 2 * margin + 1 > len(tumor_area):  # numpy would return the kernel's length
        touched = np.full(len(tumor_area), bool((tumor_area > 0).any()))
    return np.nonzero(head & (tumor_area >= min_tumor_area))[0].tolist(), np.nonzero(head & ~touched)[0].tolist()


def spread(candidates: Sequence[T], count: int) -> list[T]:
    """At most `count` of the candidates, at even steps: the middles of stretches, so that the ends are not favored.

    >>> spread(range(10), 3), spread("ab", 3)
    ([1, 5, 8], ['a', 'b'])
    """
    if len(candidates) <= count:
        return list(candidates)
    return [candidates[int((k + 0.5) * len(candidates) / count)] for k in range(count)]


def share_out(sizes: Sequence[int], count: int) -> list[int]:
    """How many each of several lists gives so that together they give at most `count`, as evenly as their sizes allow.

    >>> share_out([9, 1, 9], 6), share_out([9, 9, 9], 1), share_out([2, 1], 5)
    ([2, 1, 3], [0, 1, 0], [2, 1])
    """
    shares = [0] * len(sizes)
    left = min(count, sum(sizes))
    while left:
        able = [k for k, size in enumerate(sizes) if shares[k] < size]
        for k in spread(able, left):
            shares[k] += 1
            left -= 1
    return shares


def limit_slices(items: Sequence[Item], rule: SliceRule) -> list[Item]:
    """At most as many slices with and without tumor of one patient as the rule says; whole volumes are all kept.

    Args:
        items: all qualifying slices of one patient, as `case_candidates` lists them.
        rule: says how many.

    Returns:
        The items that are taken, in the order given.
    """
    lists: dict[bool, dict[Any, list[int]]] = {True: {}, False: {}}
    for k, item in enumerate(items):
        if "slice" in item:
            view = str(item["image"]), item.get("plane")
            lists[item["diagnosis"] > 0].setdefault(view, []).append(k)
    taken = {k for k, item in enumerate(items) if "slice" not in item}
    for tumor, count in ((True, rule.tumor_slices), (False, rule.normal_slices)):
        per_view = list(lists[tumor].values())
        for numbers, share in zip(per_view, share_out([len(numbers) for numbers in per_view], count), strict=True):
            taken.update(spread(numbers, share))
    return [item for k, item in enumerate(items) if k in taken]


def _few_values(scan: NDArray) -> str | None:
    """The values of a volume that holds at most four, as masks do; None for an image."""
    if len(np.unique(scan[::8, ::8, ::4])) > 4:
        return None
    values = np.unique(scan)
    return ", ".join(f"{value:g}" for value in values) if len(values) <= 4 else None


def _check_channel(scan: NDArray, name: str) -> None:
    if not np.isfinite(scan).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(scan)).sum())} values that are not finite")
    if scan.min() == scan.max():
        raise ValueError(f"{name} is constant: every voxel is {scan.flat[0]:g}")
    if (values := _few_values(scan)) is not None:
        raise ValueError(f"{name} holds only the values {values}: a mask, no image")
    if min(scan.shape[:2]) < MIN_SIDE:
        raise ValueError(f"{name} has {scan.shape[0]} x {scan.shape[1]} pixels a slice, at least {MIN_SIDE} are needed")


def _read_images(case: Case, rule: SliceRule, findings: Findings) -> tuple[NDArray, NDArray, str]:
    """First channel, affine and content hash; every channel is checked."""
    scans: list[NDArray] = []
    affine, digest, shifted = np.eye(4), hashlib.sha256(), None
    for path in case.images:
        if case.stacked:
            channels, here = load_channels(path)
        else:
            one, here = load_oriented(path)
            channels = [one]
        for scan in channels:
            _check_channel(scan, path.name)
            air = air_level(scan)
            if air is not None:
                shifted = shifted or f"the air of {path.name} is {air:.3g}, not 0: it was normalized before"
            if scans:
                _same_grid(case.images[0], scans[0], affine, path, scan, here)
            digest.update(f"{scan.shape}".encode() + np.ascontiguousarray(scan).tobytes())
            affine = affine if scans else here
            scans = [*scans, scan][:1]
    if not scans:
        raise ValueError("names no image")
    if shifted and case.foreground is None and not rule.shifted_air:
        raise ValueError(
            f"{shifted}; take the original file, put a brain mask beside it (a file with 'brainmask' in its name), or "
            "pass --shifted_air to have the head found without one"
        )
    findings.normalized += shifted is not None
    return scans[0], affine, digest.hexdigest()


def _same_grid(one: Path, scan: NDArray, affine: NDArray, other: Path, array: NDArray, other_affine: NDArray) -> None:
    if scan.shape != array.shape:
        raise ValueError(f"{one.name} {scan.shape} and {other.name} {array.shape} are not on the same grid")
    if apart := off_grid(scan.shape, affine, other_affine):
        raise ValueError(f"{one.name} and {other.name} are not on the same grid: {apart}; resample one to the other")


def _on_grid(path: Path, scan: NDArray, affine: NDArray, image: Path) -> NDArray:
    mask, mask_affine = load_oriented(path)
    if file_kind(path) in CROPPED:
        mask, mask_affine = uncropped(mask, mask_affine, scan.shape, affine)
    _same_grid(image, scan, affine, path, mask, mask_affine)
    if not np.isfinite(mask).all():
        raise ValueError(f"{path.name} holds values that are not finite")
    return mask


def _tumor(
    case: Case, scan: NDArray, affine: NDArray, findings: Findings, regions: Regions | None
) -> NDArray[np.bool_]:
    """Tumor mask (all False without a label): the first region, or any label of 0 to 4; others are refused."""
    if case.label is None:
        return np.zeros(scan.shape, bool)
    mask = _on_grid(case.label, scan, affine, case.images[0])
    if regions is None:
        if odd := unknown_labels(mask, LABELS):
            raise ValueError(
                f"{case.label.name} holds the labels {odd}; expected some of {LABELS}, any from 1 up is tumor"
            )
        tumor = mask > 0.5
    else:
        tumor = region_masks(mask, case.label.name, regions)[0] != 0
    findings.labels.update(int(value) for value in np.unique(np.rint(mask)))
    check_tumor(tumor, case.label.name)
    return tumor


def _head(case: Case, scan: NDArray, affine: NDArray) -> NDArray[np.bool_]:
    if case.foreground is None:
        return scan > threshold_otsu(scan[::2, ::2])
    mask = _on_grid(case.foreground, scan, affine, case.images[0]) > 0.5
    if not mask.any():
        raise ValueError(f"{case.foreground.name} is empty")
    return mask


def case_items(case: Case, rule: SliceRule, root: Path, source: str, findings: Findings) -> list[Item]:
    """Items of a case that is all there is of its patient; as `case_candidates`, limited by the rule."""
    return limit_slices(case_candidates(case, rule, root, source, findings), rule)


def case_candidates(case: Case, rule: SliceRule, root: Path, source: str, findings: Findings) -> list[Item]:
    """Read the volumes of a case once and make items of all slices that qualify.

    Args:
        case: the files.
        rule: which slices.
        root: `dataset_dir`.
        source: name of the source.
        findings: what is noted over all cases.

    Raises:
        ValueError: saying why the case cannot be used.
        OSError: when a file cannot be opened.
    """
    scan, affine, content = _read_images(case, rule, findings)
    if content in findings.contents:
        raise ValueError(f"the same voxels as {findings.contents[content]}")
    tumor, head = _tumor(case, scan, affine, findings, rule.regions), _head(case, scan, affine)
    if (outside := tumor & ~head).sum() > 0.5 * max(1, tumor.sum()) and case.foreground is not None:
        raise ValueError(f"{outside.sum() / tumor.sum():.0%} of the tumor lies outside {case.foreground.name}")
    if case.label is not None and tumor.sum() > MAX_TUMOR * head.sum():
        share = tumor.sum() / max(1, head.sum())
        raise ValueError(
            f"{case.label.name} covers {share:.0%} of the head: a mask of the brain, or inverted, no tumor"
        )
    images = [path.relative_to(root).as_posix() for path in case.images]
    base: Item = {"image": images[0] if len(images) == 1 else images}
    for key, path in (("label", case.label), ("foreground", case.foreground)):
        if path is not None:
            base[key] = path.relative_to(root).as_posix()
    about = {"patient": case.patient, "source": source}
    items: list[Item] = []
    if not rule.planes:
        diagnosis = int(tumor.any()) if case.label is not None else case.diagnosis
        items.append({**base, "diagnosis": diagnosis, **about})
    for plane in rule.planes:
        for index, diagnosis in _plane_slices(plane, case, rule, scan, affine, tumor, head, findings):
            item = {**base, "diagnosis": diagnosis, **about, "slice": index}
            items.append(item if plane == "axial" else {**item, "plane": plane})
    findings.contents[content] = images[0]
    if tumor.any() or cluster(dict(about)) not in findings.strata:
        findings.strata[cluster(dict(about))] = "tumor" if tumor.any() else "healthy"
    return items


def _plane_slices(
    plane: str,
    case: Case,
    rule: SliceRule,
    scan: NDArray,
    affine: NDArray,
    tumor: NDArray,
    head: NDArray,
    findings: Findings,
) -> list[tuple[int, int]]:
    """(slice, diagnosis) of the slices of one plane."""
    turn = view_plane(scan, plane)[1]
    sides = nib.affines.voxel_sizes(affine @ turn)[:2]
    if plane != "axial" and max(sides) > MAX_ANISOTROPY * min(sides):
        raise ValueError(
            f"{plane} planes of {case.images[0].name} have pixels of {sides[0]:.2f} x {sides[1]:.2f} mm; "
            f"at most {MAX_ANISOTROPY} times as long as wide are taken: leave this plane out"
        )
    area, share = (view_plane(mask, plane)[0].mean(axis=(0, 1)) for mask in (tumor, head))
    with_tumor, without = qualifying_slices(area, share, rule.min_tumor_area, rule.min_foreground)
    enough = share >= rule.min_foreground
    faint = enough & (area > 0) & (area < rule.min_tumor_area)
    findings.left_out[f"{plane} slices with less than {rule.min_foreground:g} of head"] += int((~enough).sum())
    findings.left_out[f"{plane} slices with less than {rule.min_tumor_area:g} of tumor"] += int(faint.sum())
    beside = int((enough & (area == 0)).sum()) - len(without)
    findings.left_out[f"{plane} slices without tumor beside one with"] += beside
    if not with_tumor and not without:
        raise ValueError(
            f"no {plane} slice has {rule.min_foreground:g} of head with {rule.min_tumor_area:g} of tumor or none "
            f"at all (most head {share.max():.3f}, most tumor {area.max():.4f})"
        )
    healthy = 0 if case.label is not None else case.diagnosis
    return [*((k, 1) for k in with_tumor), *((k, healthy) for k in without)]
