"""Every test file of pydicom and nibabel: read as an independent reader does, or refused in one sentence.

Independent are: for DICOM pixels ITK's GDCM where pydicom unpacks and pydicom where ITK does, for their place nibabel;
for NIfTI ITK. With the package `pydicom-data` installed its files are read as well.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pydicom
import pydicom.data
import pytest
from nibabel.nicom import dicomwrappers
from nibabel.nicom.dicomwrappers import WrapperError, WrapperPrecisionError
from pydicom.pixels import apply_rescale

from transforms.itk_files import without_warnings
from transforms.reading import file_kind, read_volume

RAS = np.diag([-1.0, -1, 1, 1])
LIBRARY_TEXT = re.compile(r"itk|gdcm|numpy|pydicom|nibabel|traceback|object at 0x|\.cxx|dtype|errno", re.IGNORECASE)


def files(package: Path) -> list[Path]:
    return sorted(p for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc", ".m"))


def pydicom_files() -> list[Path]:
    """The files that pydicom ships, and those of `pydicom-data` where that is installed; none is fetched."""
    found = files(Path(pydicom.data.__file__).parent)
    spec = importlib.util.find_spec("data_store")
    return found + [
        path
        for where in (spec.submodule_search_locations or [] if spec else [])
        for path in files(Path(where) / "data")
    ]


def nibabel_files() -> list[Path]:
    root = Path(nib.__file__).parent
    return [path for path in files(root) if "tests" in path.parts and "data" in path.parts]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What the independent readers warn of in these files is of no interest."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), without_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.getLogger("pydicom").setLevel(logging.WARNING)


def refusal(path: Path) -> str | None:
    """The sentence that refuses a file, None where it is read; anything but a ValueError fails the test."""
    try:
        read_volume(path, file_kind(path))
    except ValueError as error:
        return str(error)
    return None


def by_itk(path: Path, reader: Any, dims: int) -> tuple[np.ndarray, np.ndarray]:
    source = itk.ImageFileReader[itk.Image[itk.F, dims]].New(FileName=str(path), ImageIO=reader)
    source.Update()
    image = source.GetOutput()
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection())[:3, :3] * np.asarray(image.GetSpacing())[:3]
    affine[:3, 3] = np.asarray(image.GetOrigin())[:3]
    return itk.array_from_image(image).T, RAS @ affine


def compare_dicom(path: Path, array: np.ndarray, affine: np.ndarray) -> str:
    """ "pixels and place", "pixels" or "place": what an independent reader agreed on."""
    dataset = pydicom.dcmread(path, force=True)
    agreed = []
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and syntax != pydicom.uid.RLELossless:
        try:
            pixels = apply_rescale(dataset.pixel_array, dataset).astype(np.float32)
        except (RuntimeError, NotImplementedError):  # JPEG-LS and lossless JPEG need a further package there
            pixels = None
    else:
        pixels = by_itk(path, itk.GDCMImageIO.New(), 3)[0].T
    if pixels is not None:
        frames = pixels.reshape(-1, *pixels.shape[-2:])
        order = sorted(range(len(frames)), key=lambda k: -k if affine[2, 2] < 0 else k)
        assert np.allclose(array, frames[order].transpose(2, 1, 0), rtol=1e-6, atol=1e-3), path
        agreed.append("pixels")
    try:
        place = RAS @ dicomwrappers.wrapper_from_data(dataset).affine[:, [1, 0, 2, 3]]  # rows first there
    except (WrapperError, WrapperPrecisionError):
        return " and ".join(agreed)
    assert np.allclose(place[:, [0, 1, 3]], affine[:, [0, 1, 3]], atol=1e-4), path
    assert np.allclose(np.abs(place[:, 2]), np.abs(affine[:, 2]), atol=1e-4), path
    return " and ".join([*agreed, "place"])


def one_sentence(path: Path, text: str) -> None:
    assert str(path) in text
    assert "\n" not in text
    assert "; " in text, text  # what to do follows
    said = text.replace(str(path), "")
    assert not LIBRARY_TEXT.search(said), said
    assert len(said) < 300


def test_every_file_of_pydicom_is_read_rightly_or_refused_in_a_sentence(capsys):
    found, counts = pydicom_files(), Counter()
    assert len(found) > 180
    for path in found:
        text = refusal(path)
        if text is not None:
            one_sentence(path, text)
            reason = re.search(r"of modality (\w+)|is a DICOMDIR|cut short|does not say where|format is unknown", text)
            counts[f"refused: {reason.group() if reason else text.replace(str(path), '')[:60]}"] += 1
            continue
        assert file_kind(path) == "dicom", path
        counts[f"read, an independent reader agrees on {compare_dicom(path, *read_volume(path, 'dicom'))}"] += 1
    assert sum(count for name, count in counts.items() if name.startswith("read")) >= 40
    with capsys.disabled():
        print(f"\n{len(found)} files of pydicom:", *(f"  {n:4} {name}" for name, n in counts.most_common()), sep="\n")


def test_every_file_of_nibabel_is_read_rightly_or_refused_in_a_sentence(capsys):
    found, counts = nibabel_files(), Counter()
    assert len(found) > 100
    for path in found:
        text = refusal(path)
        if text is not None:
            one_sentence(path, text)
            counts["refused"] += 1
            continue
        kind = file_kind(path)
        array, affine = read_volume(path, kind)
        if kind == "dicom":
            counts[f"read, an independent reader agrees on {compare_dicom(path, array, affine)}"] += 1
            continue
        if isinstance(nib.load(path), nib.Nifti2Image):
            counts["read, no independent reader (NIfTI-2)"] += 1
            continue
        values, place = by_itk(path, itk.NiftiImageIO.New(), max(3, array.ndim))
        assert np.array_equal(np.nan_to_num(array), values), path  # ITK makes NaN 0; loading refuses it
        assert np.allclose(affine, place, atol=1e-4), path
        counts["read, an independent reader agrees on voxels and place"] += 1
    assert counts["read, an independent reader agrees on voxels and place"] >= 6
    with capsys.disabled():
        print(f"\n{len(found)} files of nibabel:", *(f"  {n:4} {name}" for name, n in counts.most_common()), sep="\n")


def test_the_files_of_pydicom_that_have_to_be_fetched_are_read_where_they_are_installed():
    if importlib.util.find_spec("data_store") is None:
        pytest.skip("the package pydicom-data is not installed: 60 of pydicom's test files are not at hand")
    assert len(pydicom_files()) > 250
