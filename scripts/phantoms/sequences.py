"""Phantom cases in 3D: FLAIR, T1, T1ce and T2 of one head with the parts of its tumor, and the same head without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from scripts.phantoms.acquisition import acquire, axis_mm
from scripts.phantoms.head import Head, Rendered, draw_head, render, with_tumor

__all__ = ["FIELD_MM", "SEQUENCES", "Case", "as_sequence", "part_labels", "phantom_case", "write_pair"]

SEQUENCES = ("flair", "t1", "t1ce", "t2")
# Left-right, front-back and bottom-top: holds every head but for the neck.
FIELD_MM = (192.0, 222.0, 150.0)
CENTER_MM = 8.0  # of the field, above the middle of the head
# Labels as in BraTS 2012: necrosis, edema, core that does not enhance, core that does.
NECROSIS, EDEMA, NON_ENHANCING, ENHANCING = 1, 2, 3, 4
# Signal of edema, core, enhancing core and necrosis relative to white matter, minus 1.
_TUMOR = {"t1": (-0.15, -0.25, -0.25, -0.45), "t1ce": (-0.15, -0.25, 0.8, -0.45), "t2": (0.8, 0.6, 0.5, 1.2)}
_FEWEST = 20  # voxels of tumor on a coarse grid


@dataclass(frozen=True)
class Case:
    """A scan in LPS order: `images` int16 (X, Y, Z) by sequence, `label` uint8 with the parts, `spacing_mm` by axis."""

    images: dict[str, NDArray[np.int16]]
    label: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]


def as_sequence(head: Head, name: str) -> Head:
    """The same anatomy with the signals of another sequence than FLAIR, in which heads are drawn.

    Raises:
        ValueError: when there is no such sequence.
    """
    if name not in SEQUENCES:
        raise ValueError(f"no sequence {name!r}; there are {', '.join(SEQUENCES)}")
    if name == "flair":
        return head
    edema, core, enhancing, necrosis = _TUMOR[name]
    tumors = tuple(
        replace(
            tumor,
            edema_contrast=edema,
            core_contrast=enhancing if tumor.necrosis_share > 0 else core,
            necrosis_contrast=necrosis,
        )
        for tumor in head.tumors
    )
    bright = name == "t2"
    lesions = tuple(
        replace(blob, contrast=-1.5 * blob.contrast if blob.contrast < 0 else blob.contrast)
        if bright
        else replace(blob, contrast=blob.contrast if blob.contrast < 0 else -0.2 * blob.contrast)
        for blob in head.lesions
    )
    return replace(
        head,
        gray=1 + 1.2 * (head.gray - 1) if bright else 1 - 0.6 * (head.gray - 1),
        csf=2.2 + head.csf if bright else 0.8 * head.csf,
        rim_contrast=0.0,
        tumors=tumors,
        lesions=lesions,
    )


def part_labels(head: Head, picture: Rendered) -> NDArray[np.uint8]:
    """The parts of the tumor as labels of BraTS 2012, uint8 (X, Y, Z).

    A core with a necrosis enhances around it; one without does not.
    """
    label = np.zeros(picture.tumor.shape, np.uint8)
    for tumor, distance in zip(head.tumors, picture.distances, strict=True):
        radius = float(np.cbrt(np.prod(tumor.radii)))
        enhances = tumor.necrosis_share > 0
        part = np.where(distance + radius * (1 - tumor.core_share) < 0, ENHANCING if enhances else NON_ENHANCING, EDEMA)
        part[distance + radius * (1 - tumor.core_share * tumor.necrosis_share) < 0] = NECROSIS
        inside = (distance < 0) & (label == 0)
        label[inside] = part[inside]
    return label * picture.tumor


def phantom_case(stream: Sequence[int], tumor: bool, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)) -> Case:
    """One phantom case.

    Args:
        stream: non-negative integers that seed everything; the same stream gives bit-identical arrays, and the same
            head, scanner and noise with and without the tumor.
        tumor: with the tumor of this stream, or without.
        spacing_mm: distance of the voxels, left-right, front-back and bottom-top.
    """
    sides = [float(side) for side in spacing_mm]
    shape = [max(8, round(field / side)) for field, side in zip(FIELD_MM, sides, strict=True)]
    centers = (0.0, 0.0, CENTER_MM)
    x, y, z = (axis_mm(n, side, center) for n, side, center in zip(shape, sides, centers, strict=True))
    head = draw_head(np.random.default_rng([*stream, 0]))
    label = np.zeros(shape, np.uint8)
    for attempt in range(100 if tumor else 0):
        rng = np.random.default_rng([*stream, 1, attempt])
        sick = with_tumor(head, rng, rng.uniform(-20, 45), float(np.exp(rng.uniform(np.log(14), np.log(30)))))
        label = part_labels(sick, render(sick, x, y, z))
        if np.count_nonzero(label) >= _FEWEST:
            head = sick
            break
    images = {}
    for number, name in enumerate(SEQUENCES):
        rng = np.random.default_rng([*stream, 2, number])
        scan = acquire(render(as_sequence(head, name), x, y, z).signal, (x, y, z), rng) * rng.uniform(150, 1500)
        images[name] = np.clip(np.rint(scan), 0, 32767).astype(np.int16)
    return Case(images, label, (sides[0], sides[1], sides[2]))


def write_pair(folder: Path, stream: Sequence[int], name: str, spacing_mm: Sequence[float]) -> list[dict[str, Any]]:
    """Write `<name>-with/` and `<name>-without/`: four sequences and a mask of one head with and without its tumor."""
    written = []
    for tumor in (True, False):
        case = phantom_case(stream, tumor, spacing_mm)
        case_name = f"{name}-{'with' if tumor else 'without'}"
        (folder / case_name).mkdir(parents=True)
        # nibabel's world is RAS: the two first LPS axes run against it.
        affine = np.diag([-case.spacing_mm[0], -case.spacing_mm[1], case.spacing_mm[2], 1.0])
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(case.label.shape) - 1) / 2)
        for suffix, array in {**case.images, "seg": case.label}.items():
            nifti = nib.Nifti1Image(array, affine)
            nifti.header.set_xyzt_units("mm")
            nib.save(nifti, folder / case_name / f"{case_name}_{suffix}.nii.gz")
        written.append({"case": case_name, "diagnosis": int(tumor), "tumor_voxels": int(np.count_nonzero(case.label))})
    return written
