"""Read MetaImage (.mha, .mhd) and NRRD files through ITK."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import itk
import numpy as np

from transforms.limits import ReadLimits, refused

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def itk_format(head: bytes) -> str:
    """ "MetaImage", "NRRD" or "" by the first bytes of a file."""
    if head.startswith(b"NRRD000"):
        return "NRRD"
    words = head[:64].lstrip().split(b"=")[0].strip()
    return "MetaImage" if words in (b"ObjectType", b"NDims", b"Comment") else ""


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep ITK quiet: what it warns of is an error of ours."""
    shown = itk.Object.GetGlobalWarningDisplay()
    itk.Object.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        itk.Object.SetGlobalWarningDisplay(shown)


def affine_of(image: Any) -> np.ndarray:
    """4x4 affine of an ITK image, from voxel to RAS+ millimeters (ITK's own axes are LPS+)."""
    dims = min(3, image.GetImageDimension())
    affine = np.eye(4)
    direction = itk.array_from_matrix(image.GetDirection())[:dims, :dims]
    affine[:dims, :dims] = direction * np.asarray(image.GetSpacing(), np.float64)[:dims]
    affine[:dims, 3] = np.asarray(image.GetOrigin())[:dims]
    return _LPS_TO_RAS @ affine


def read_itk(path: str | os.PathLike[str], name: str, limits: ReadLimits) -> tuple[np.ndarray, np.ndarray]:
    """Read a MetaImage or NRRD file.

    Args:
        path: the file; of two (.mhd, .nhdr) the header.
        name: as `itk_format` says.
        limits: see `ReadLimits`.

    Returns:
        float32 (X, Y[, Z[, C]]) and the 4x4 affine to RAS+ millimeters.

    Raises:
        ValueError: When the file is damaged or too large, or of complex numbers. Names the file and what to do.
    """
    reader = itk.MetaImageIO.New() if name == "MetaImage" else itk.NrrdImageIO.New()
    reader.SetFileName(str(path))
    try:
        with without_warnings():
            reader.ReadImageInformation()
    except Exception as error:  # ITK raises RuntimeError with a page of C++ source lines
        raise refused(path, f"has a damaged {name} header", "export it again") from error
    dims, channels = reader.GetNumberOfDimensions(), reader.GetNumberOfComponents()
    kind = reader.GetPixelTypeAsString(reader.GetPixelType())
    shape = [int(reader.GetDimensions(axis)) for axis in range(dims)]
    if kind == "complex":
        raise refused(path, "holds complex numbers, expected magnitudes", "save the magnitude image")
    if dims not in (2, 3, 4) or (dims == 4 and channels > 1):
        raise refused(path, f"has {dims} dimensions of {channels} values, expected 2 to 4", "save its volumes alone")
    limits.check_volume(path, [*shape, channels])
    image_type = itk.Image[itk.F, dims] if channels == 1 else itk.VectorImage[itk.F, dims]
    try:
        with without_warnings():
            file = itk.ImageFileReader[image_type].New(FileName=str(path), ImageIO=reader)
            file.Update()
            image = file.GetOutput()
    except Exception as error:
        raise refused(path, f"is cut short or damaged, or the data file of its {name} header is not there",
                      "copy or export it again") from error  # fmt: skip
    array = np.asarray(itk.array_from_image(image), np.float32)
    array = np.moveaxis(array.T, 0, -1) if channels > 1 else array.T
    return array, affine_of(image)
