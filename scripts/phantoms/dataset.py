"""Phantom scans and the two folders made of them: patients as NIfTI volumes with masks, single images without masks."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from scripts.command.files import whole_folder
from scripts.command.verbs import Outcome
from scripts.phantoms.acquisition import acquire, axis_mm
from scripts.phantoms.head import Array, Head, draw_head, render, with_tumor
from scripts.phantoms.sequences import write_pair

logger = logging.getLogger(__name__)

# Raised whenever the same seed would give other pictures.
VERSION = 3
MANIFEST = "phantoms.json"
CLASSES = ("no_tumor", "tumor")
AXIS_CODES = ("LPS", "RAS", "LAS", "PIR")
# In-plane matrix of the volumes; the number of slices is 16 to 24.
MATRICES = ((160, 160), (152, 168), (168, 160))
# File type and mode of single images.
FORMATS = (
    (".png", "L"),
    (".jpg", "L"),
    (".png", "RGB"),
    (".jpg", "RGB"),
    (".png", "RGBA"),
    (".png", "P"),
    (".png", "I;16"),
)
# Smallest field of view that holds every head, left-right and front-back, in mm.
FIELD_OF_VIEW_MM = (192.0, 222.0)
# Tumor area as a share of the image: of the single slice, or of the slice of a volume where it is largest.
AREA_RANGE = (0.003, 0.08)
_PATIENTS, _SINGLES, _VOLUMES = 1, 2, 3
_ATTEMPTS = 100


@dataclass(frozen=True)
class Volume:
    """A scan in LPS order: `image` int16 and `label` uint8 0/1, both (X, Y, Z); `spacing_mm` of the three axes."""

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]

    def save(self, path: Path) -> None:
        """Write the image as NIfTI, its axes straight."""
        # nibabel's world is RAS: the two first LPS axes run against it.
        affine = np.diag([-self.spacing_mm[0], -self.spacing_mm[1], self.spacing_mm[2], 1.0])
        nib.save(nib.Nifti1Image(self.image, affine), path)


def _pixel_mm(size: tuple[int, int], zoom: float) -> float:
    return zoom * max(FIELD_OF_VIEW_MM[0] / size[0], FIELD_OF_VIEW_MM[1] / size[1])


def _tumor_fits(head: Head, grid_mm: tuple[Array, Array, Array]) -> bool:
    """Whether the largest tumor area in any slice lies in `AREA_RANGE`; every second pixel is looked at."""
    area = render(head, grid_mm[0][::2], grid_mm[1][::2], grid_mm[2]).tumor.mean(axis=(0, 1)).max()
    return bool(AREA_RANGE[0] * 1.1 < area < AREA_RANGE[1] * 0.95)


def _person(stream: list[int], tumor: bool, level_mm: float, grid_mm: tuple[Array, Array, Array]) -> Head:
    """The head of one random stream; a tumor is redrawn until its area is in range, the head itself never is."""
    head = draw_head(np.random.default_rng([*stream, 0]))
    if not tumor:
        return head
    near = np.sort(np.argsort(np.abs(grid_mm[2] - level_mm))[:3])
    for attempt in range(_ATTEMPTS):
        sick = with_tumor(head, np.random.default_rng([*stream, 1, attempt]), level_mm)
        if _tumor_fits(sick, (grid_mm[0], grid_mm[1], grid_mm[2][near])):
            return sick
    raise RuntimeError(f"no tumor of {AREA_RANGE} of the image found in {_ATTEMPTS} attempts for stream {stream}")


def phantom_volume(
    stream: list[int], tumor: bool, matrix: tuple[int, int] = (160, 160), slices: int = 20, level_mm: float = 10.0
) -> Volume:
    """One phantom patient.

    Args:
        stream: non-negative integers that seed everything; the same stream gives bit-identical arrays.
        tumor: with a tumor or without; the head is the same either way.
        matrix: pixels left-right and front-back.
        slices: number of slices, which cover 90 to 104 mm.
        level_mm: height of the tumor's center above the middle of the head, in mm.
    """
    rng = np.random.default_rng([*stream, 2])
    pixel_mm = _pixel_mm(matrix, rng.uniform(1.0, 1.08))
    slice_mm = rng.uniform(90, 104) / slices
    grid_mm = (
        axis_mm(matrix[0], pixel_mm),
        axis_mm(matrix[1], pixel_mm),
        axis_mm(slices, slice_mm, rng.uniform(11, 15)),
    )
    picture = render(_person(stream, tumor, level_mm, grid_mm), *grid_mm)
    scan = acquire(picture.signal, grid_mm, rng) * rng.uniform(150, 1500)
    image = np.clip(np.rint(scan), 0, 32767).astype(np.int16)
    return Volume(image, picture.tumor.astype(np.uint8), (float(pixel_mm), float(pixel_mm), float(slice_mm)))


def phantom_slice(
    stream: list[int], tumor: bool, size: tuple[int, int] = (256, 256), level_mm: float = 10.0, again: int = 0
) -> tuple[Array, NDArray[np.uint8]]:
    """One phantom slice as (image, mask), axis 0 to the patient's left and axis 1 to posterior.

    Args:
        stream: non-negative integers that seed everything; the same stream gives bit-identical arrays.
        tumor: with a tumor or without; the head is the same either way.
        size: pixels left-right and front-back.
        level_mm: height of the slice above the middle of the head, in mm; a tumor has its center near it.
        again: which scan of that head: another number has other noise, zoom and brightness, and its tumor elsewhere by
            some mm.

    Returns:
        Image float32 in [0, 1], and mask uint8 0/1, both of shape `size`.
    """
    scan, mask, rng = _scanned(stream, tumor, size, level_mm, again)
    return np.clip(scan / np.percentile(scan, rng.uniform(99.3, 99.9)), 0, 1), mask


def phantom_pair(
    stream: list[int], size: tuple[int, int] = (256, 256), level_mm: float = 10.0
) -> tuple[Array, Array, NDArray[np.uint8]]:
    """A slice with a tumor, the same without at the gain of the first, and the mask: they differ by it alone."""
    sick, mask, rng = _scanned(stream, True, size, level_mm)
    healthy, _, _ = _scanned(stream, False, size, level_mm)
    gain = np.percentile(sick, rng.uniform(99.3, 99.9))
    return np.clip(sick / gain, 0, 1), np.clip(healthy / gain, 0, 1), mask


def _scanned(
    stream: list[int], tumor: bool, size: tuple[int, int], level_mm: float, again: int = 0
) -> tuple[Array, NDArray[np.uint8], np.random.Generator]:
    """A slice as scanned, its mask, and the state that the scan leaves."""
    rng = np.random.default_rng([*stream, 2, again] if again else [*stream, 2])
    pixel_mm = _pixel_mm(size, rng.uniform(1.0, 1.08))
    grid_mm = (axis_mm(size[0], pixel_mm), axis_mm(size[1], pixel_mm), np.array([level_mm], dtype=np.float32))
    picture = render(_person(stream, tumor, level_mm + rng.uniform(-4, 4), grid_mm), *grid_mm)
    scan = acquire(picture.signal, grid_mm, rng)
    return scan[..., 0], picture.tumor[..., 0].astype(np.uint8), rng


def _write_patient(folder: Path, seed: int, index: int) -> dict[str, Any]:
    # Two of five patients are healthy. Geometry follows the rank within a diagnosis, so that it predicts neither.
    tumor = index % 5 not in (1, 3)
    rank = 2 * (index // 5) + (index % 5) // 2 if not tumor else 3 * (index // 5) + (index % 5) // 2
    matrix, codes, slices = MATRICES[rank % 3], AXIS_CODES[rank % 4], 16 + (rank * 5) % 9
    stream = [seed, _PATIENTS, index]
    rng = np.random.default_rng([*stream, 3])
    volume = phantom_volume(stream, tumor, matrix, slices, level_mm=rng.uniform(-20, 48))

    # nibabel's world is RAS: the two first LPS axes run against it. Heads lie up to 3 degrees obliquely.
    angle = np.deg2rad(rng.uniform(-3, 3))
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.diag(np.array([-1.0, -1.0, 1.0]) * volume.spacing_mm)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(volume.image.shape) - 1) / 2) + rng.uniform(-15, 15, 3)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("LPS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    affine = affine @ nib.orientations.inv_ornt_aff(turn, volume.image.shape)

    name = f"p{index:03d}"
    (folder / name).mkdir(parents=True)
    for array, suffix in ((volume.image, "flair"), (volume.label, "seg")):
        nifti = nib.Nifti1Image(np.ascontiguousarray(nib.orientations.apply_orientation(array, turn)), affine)
        nifti.set_qform(affine, code=1)
        nifti.set_sform(affine, code=1)
        nifti.header.set_xyzt_units("mm")
        nib.save(nifti, folder / name / f"{name}_{suffix}.nii.gz")
    return {"patient": name, "diagnosis": int(tumor), "tumor_voxels": int(volume.label.sum()), "axis_codes": codes}


def _as_mode(image: Array, mode: str) -> Image.Image:
    """A picture of the given mode from float (X, Y) in [0, 1]; rows of the picture are axis 1."""
    if mode == "I;16":
        return Image.fromarray(np.rint(image.T * 65535).astype(np.uint16))
    gray = Image.fromarray(np.rint(image.T * 255).astype(np.uint8))
    return gray if mode == "L" else gray.convert(mode)


def _write_single(folder: Path, seed: int, index: int) -> dict[str, Any]:
    # Two neighbors in the count, one of each class, share level, size, type and mode: geometry does not separate them.
    pair, tumor = index // 2, bool(index % 2)
    rng = np.random.default_rng([seed, _SINGLES, pair, 4])
    longest, aspect = int(rng.integers(200, 361)), rng.uniform(0.82, 1.1)
    size = (round(longest * min(1.0, aspect)), round(longest / max(1.0, aspect)))
    level_mm, quality = rng.uniform(-22, 52), int(rng.integers(70, 96))
    suffix, mode = FORMATS[pair % len(FORMATS)]
    image, _ = phantom_slice([seed, _SINGLES, index], tumor, size, level_mm)
    name = f"{CLASSES[tumor]}/s{index:04d}{suffix}"
    options: dict[str, Any] = {"quality": quality} if suffix == ".jpg" else {"compress_level": 3}
    _as_mode(image, mode).save(folder / name, **options)
    return {"image": name, "diagnosis": int(tumor), "size": list(size), "mode": mode}


def make_phantoms(
    folder: Path | str,
    seed: int,
    patients: int = 60,
    singles: int = 160,
    overwrite: bool = False,
    progress: bool = True,
    volumes: int = 0,
    spacing_mm: float | Sequence[float] = 1.0,
) -> None:
    """Write a folder of phantoms, or keep the one that is there if it was made with the same arguments.

    `folder/patients/<pid>/<pid>_flair.nii.gz` and `_seg.nii.gz`: volumes, two of five patients healthy.
    `folder/singles/images/<no_tumor|tumor>/*`: single slices of other people, half of them with a tumor, no masks.
    `folder/volumes/<vid>-with/*` and `<vid>-without/*`: FLAIR, T1, T1ce, T2 and a mask of one head with and without its
    tumor, in 3D; the mask holds its parts as labels of BraTS 2012.
    `folder/phantoms.json`: what was made. The folder appears under its name only when it is whole.

    Args:
        folder: where to.
        seed: 0 or more; the same seed gives bit-identical arrays, and patient k is the same whatever the counts.
        patients: number of patients.
        singles: number of single images, even, for two classes of one size.
        overwrite: replace a finished phantom folder that was made with other arguments.
        progress: show a progress bar.
        volumes: number of heads in 3D.
        spacing_mm: of their voxels, one number or three.

    Raises:
        ValueError: when a count is negative or odd, all are 0, or the folder was made with other arguments.
        FileExistsError: when the folder holds something else.
    """
    folder = Path(folder)
    if min(seed, patients, singles, volumes) < 0 or singles % 2 or patients + singles + volumes == 0:
        raise ValueError(
            "phantoms need seed, patients, singles and volumes of 0 or more, singles even, and not all counts 0; "
            f"got seed={seed}, patients={patients}, singles={singles}, volumes={volumes}"
        )
    sides = [float(spacing_mm)] * 3 if isinstance(spacing_mm, (int, float)) else [float(side) for side in spacing_mm]
    if len(sides) != 3 or not all(0.5 <= side <= 12 for side in sides):
        raise ValueError(f"spacing_mm is one number or three from 0.5 to 12, got {spacing_mm}")
    arguments: dict[str, Any] = {"version": VERSION, "seed": seed, "patients": patients, "singles": singles}
    if volumes:
        arguments |= {"volumes": volumes, "spacing_mm": sides}
    if _is_made(folder, arguments, overwrite):
        logger.info("phantoms in %s are up to date", folder)
        return

    contents: dict[str, list[dict[str, Any]]] = {"patients": [], "singles": []}
    bar = tqdm(total=patients + singles + volumes, desc="phantoms", unit="case", disable=not progress)
    with whole_folder(folder) as partial, bar:
        for index in range(patients):
            contents["patients"].append(_write_patient(partial / "patients", seed, index))
            bar.update()
        for name in CLASSES if singles else ():
            (partial / "singles" / "images" / name).mkdir(parents=True)
        for index in range(singles):
            contents["singles"].append(_write_single(partial / "singles" / "images", seed, index))
            bar.update()
        for index in range(volumes):
            made = write_pair(partial / "volumes", [seed, _VOLUMES, index], f"v{index:03d}", sides)
            contents["volumes"] = contents.get("volumes", []) + made
            bar.update()
        (partial / MANIFEST).write_text(
            json.dumps({"arguments": arguments, "contents": contents}, indent=1), encoding="utf-8"
        )
    logger.info("wrote %d patients, %d single images and %d volumes to %s", patients, singles, volumes, folder)


def _is_made(folder: Path, arguments: dict[str, Any], overwrite: bool) -> bool:
    """True if the folder holds these phantoms, False if it is free to be written."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise FileExistsError(
            f"{folder} exists and holds no {MANIFEST}, so it was not made here; choose another folder"
        )
    made = json.loads(manifest.read_text(encoding="utf-8")).get("arguments")
    if made == arguments:
        return True
    if not overwrite:
        raise ValueError(f"{folder} was made with {made}, asked for {arguments}; choose another folder or overwrite it")
    return False


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``phantoms``."""
    spacing = arguments.spacing_mm[0] if len(arguments.spacing_mm) == 1 else arguments.spacing_mm
    make_phantoms(
        arguments.out, arguments.seed, arguments.n_patients, arguments.n_singles, arguments.overwrite,
        volumes=arguments.n_volumes, spacing_mm=spacing,
    )  # fmt: skip
    return Outcome(written=[arguments.out])
