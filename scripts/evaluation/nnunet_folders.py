"""The verb ``explain-nnunet``: maps of a trained results folder of nnU-Net v2 for images as they lie on disk."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from scripts.command.devices import chosen_device
from scripts.command.files import write_json
from scripts.command.verbs import Outcome
from scripts.explain.nnunet import NNUNet, load_nnunet
from scripts.explain.nnunet_images import prepare
from scripts.inference.results import save_nifti
from scripts.pictures import overlays
from scripts.pictures.planes import PicturePlane
from transforms.reading import orient_lps

__all__ = ["execute", "explain_case", "find_cases", "read_case"]

logger = logging.getLogger(__name__)

PICTURES, VOLUMES = (".png", ".bmp", ".tif"), (".nii", ".nii.gz")
# nnU-Net's readers whose arrays are the file's, axes reversed. One that turns images to RAS is none of these.
READERS = ("", "SimpleITKIO", "NibabelIO", "NaturalImage2DIO")
CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


@dataclass(frozen=True)
class Case:
    """One image as nnU-Net reads it.

    Attributes:
        name: of the case.
        image: (C, Z, Y, X); a picture has Z = 1, rows and columns.
        spacing_mm: (Z, Y, X).
        affine: of the file, for (X, Y, Z); None for a picture.
    """

    name: str
    image: NDArray[np.float32]
    spacing_mm: tuple[float, ...]
    affine: NDArray[np.float64] | None


def find_cases(model: NNUNet, path: Path) -> dict[str, list[Path]]:
    """Files of each case, a file a channel: ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, as nnU-Net names them.

    Args:
        model: whose channels and file ending are expected.
        path: folder of images, or one file of a case; for one channel any name goes.

    Raises:
        FileNotFoundError: when there is nothing.
        ValueError: for a file of another kind, or a case that lacks a channel.
    """
    count, ending = len(model.channels), model.ending
    if path.is_file():
        if not path.name.endswith(ending):
            raise ValueError(f"{path}: {model.folder} was trained on files that end with {ending}")
        stem = path.name.removesuffix(ending)
        match = CHANNEL.fullmatch(stem)
        if match is None and count > 1:
            raise ValueError(
                f"{path}: expected {count} channels, as {stem}_0000{ending} to {stem}_{count - 1:04d}{ending}"
            )
        if match is None:
            return {stem: [path]}
        files = {match["case"]: sorted(path.parent.glob(f"{_literal(match['case'])}_[0-9][0-9][0-9][0-9]{ending}"))}
    else:
        if not path.is_dir():
            raise FileNotFoundError(f"{path} does not exist")
        files = {}
        for file in sorted(path.glob(f"*{ending}")):
            match = CHANNEL.fullmatch(file.name.removesuffix(ending))
            if match is not None:
                files.setdefault(match["case"], []).append(file)
        if not files:
            raise FileNotFoundError(f"{path} has no images named as nnU-Net names them, CASE_0000{ending}")
    for case, paths in files.items():
        if len(paths) != count:
            raise ValueError(
                f"{path}: case {case} has {len(paths)} file(s), expected {count}, one a channel: "
                f"{', '.join(model.channels)}"
            )
    return files


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def read_case(model: NNUNet, name: str, files: Sequence[Path]) -> Case:
    """Read the channels of a case.

    Raises:
        ValueError: for a kind of file or a reader that is not known here, and for channels that do not fit.
    """
    if model.reader not in READERS:
        raise ValueError(
            f"{model.folder}: images are read by {model.reader!r}; known here are {', '.join(READERS[1:])}"
        )
    if model.ending in PICTURES:
        planes = [np.asarray(Image.open(file), dtype=np.float32) for file in files]
        planes = [p[None] if p.ndim == 2 else p.transpose(2, 0, 1) for p in planes]
        _same([p.shape[1:] for p in planes], files, "size")
        return Case(name, np.concatenate(planes)[:, None], (999.0, 1.0, 1.0), None)
    if model.ending not in VOLUMES:
        raise ValueError(
            f"{model.folder}: images end with {model.ending}; known here are {', '.join(PICTURES + VOLUMES)}"
        )
    images: list[Any] = [nib.load(file) for file in files]
    for image, file in zip(images, files, strict=True):
        if len(image.shape) != 3:
            raise ValueError(f"{file}: expected three axes, got {len(image.shape)}")
    _same([image.shape for image in images], files, "size")
    _same([tuple(np.round(image.affine, 3).ravel()) for image in images], files, "place")
    array = np.stack([np.asarray(image.dataobj, dtype=np.float32).transpose(2, 1, 0) for image in images])
    spacing = tuple(float(n) for n in images[0].header.get_zooms()[::-1])
    return Case(name, array, spacing, np.asarray(images[0].affine, dtype=float))


def _same(values: Sequence[Any], files: Sequence[Path], what: str) -> None:
    for value, file in zip(values, files, strict=True):
        if value != values[0]:
            raise ValueError(f"{file} has another {what} than {files[0].name}")


def explain_case(
    model: NNUNet, case: Case, region: str, method: str, layer: str | None, mirrored: bool
) -> tuple[NDArray[np.float32], NDArray[np.uint8], dict[str, Any]]:
    """Map and predicted region on the image's grid, and what the summary says of them.

    Returns:
        map: (Z, Y, X), float32 in [0, 1], divided by its largest value; 0 where nothing speaks for the region.
        mask: (Z, Y, X), uint8, where the region is predicted.
        summary: figures of the case.
    """
    prepared = prepare(model, case.image, case.spacing_mm)
    device = next(model.network.parameters()).device
    explanation = model.explain(prepared.image.to(device), region, method, layer, mirrored)
    ((_, used), raw), *_ = explanation.maps.items()
    heat = prepared.restored(raw)[0].clip(min=0)
    largest = float(heat.max())
    heat = heat / largest if largest > 0 else heat
    target = model.target(region)
    mask = target.region(torch.from_numpy(prepared.restored(explanation.output))[None])[0].numpy()
    voxels, explained = int(mask.sum()), int(target.region(explanation.output).sum())
    milliliters = None if case.affine is None else voxels * float(np.prod(case.spacing_mm)) / 1000
    return (
        heat,
        mask.astype(np.uint8),
        {
            "case": case.name,
            "predicted_voxels": voxels,
            "predicted_ml": milliliters,
            "mean_logit_in_region": float(explanation.score.sum()) / explained if explained else None,
            "layer": used,
            "network_grid": list(prepared.grid),
            "empty": not largest > 0,
            "energy_in_region": float((heat * mask).sum() / heat.sum()) if largest > 0 else None,
        },
    )


def picture_of(case: Case, heat: NDArray[np.float32], mask: NDArray[np.uint8], heading: str) -> overlays.RGB:
    """Image, map, map over the image and predicted region, of the first channel; of a volume the map's axial slice."""
    arrays = [values.transpose(2, 1, 0) for values in (case.image[0] - case.image[0].min(), heat, mask)]  # (X, Y, Z)
    if case.affine is None:
        image, shown, predicted = (values[None, ..., 0] for values in arrays)
    else:
        image, shown, predicted = (orient_lps(values, case.affine)[0][None] for values in arrays)
    plane = PicturePlane.of(image, heat=shown if shown.any() else None, predicted=predicted)
    caption = ", ".join(part for part in (heading, plane.where) if part)
    titles = ("image", "map", "map over image", "predicted region")
    return overlays.panel(
        plane.map(image), plane.map(shown), titles=titles, predicted=plane.map(predicted), caption=caption
    )


def execute(arguments: argparse.Namespace) -> Outcome:
    """Explain every case of the input; write map, predicted region and picture of each, and summary.json."""
    model = load_nnunet(arguments.results, arguments.fold, arguments.checkpoint)
    region = arguments.region or next(name for name, (_, values) in model.regions.items() if set(values) != {0})
    model.channel(region)
    cases = find_cases(model, arguments.input)
    model.network.to(chosen_device(arguments.device))
    out: Path = arguments.out
    rows: list[dict[str, Any]] = []
    how = f"{arguments.method}, {region}"
    for name, files in cases.items():
        case = read_case(model, name, files)
        heat, mask, row = explain_case(
            model, case, region, arguments.method, arguments.layer, not arguments.no_mirroring
        )
        rows.append({**row, "files": [str(file) for file in files]})
        paths = [out / f"{name}_{part}.nii.gz" for part in ("map", "region")]
        affine = np.eye(4) if case.affine is None else case.affine
        arrays: list[NDArray[Any]] = [heat, mask]
        for path, array in zip(paths, arrays, strict=True):
            save_nifti(array.transpose(2, 1, 0), affine, path)
        overlays.save(picture_of(case, heat, mask, f"{name}: {how}"), out / f"{name}.png")
        logger.info("%s: %s voxels of %s", name, row["predicted_voxels"], region)
    summary = {
        "results": str(model.folder),
        "configuration": model.configuration,
        "patch_size": list(model.patch_size),
        "network_spacing_mm": list(model.spacing_mm),
        "region": region,
        "method": arguments.method,
        "mirrored": not arguments.no_mirroring,
        "cases": rows,
    }
    write_json(summary, out / "summary.json")
    return Outcome("\n".join(_sentence(row, region) for row in rows), [out])


def _sentence(row: Mapping[str, Any], region: str) -> str:
    if not row["predicted_voxels"] and row["empty"]:
        return f"{row['case']}: no {region} is predicted, and the map is empty"
    inside = "the map is empty" if row["empty"] else f"{row['energy_in_region']:.0%} of the map lies in it"
    size = f"{row['predicted_voxels']} voxels" if row["predicted_ml"] is None else f"{row['predicted_ml']:.2f} ml"
    return f"{row['case']}: {region} of {size} at layer {row['layer']}; {inside}"
