"""MetaImage and NRRD: known by their first bytes, placed in RAS, and refused before they are read."""

from __future__ import annotations

import itk
import numpy as np
import pytest

from transforms.itk_files import affine_of, itk_format, read_itk, without_warnings
from transforms.limits import DEFAULT_LIMITS, ReadLimits, Refused, TooLarge

VOXELS = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"NRRD0004\n# Complete", "NRRD"),
        (b"NRRD00", ""),
        (b"ObjectType = Image\nNDims = 3", "MetaImage"),
        (b"  \nNDims=3", "MetaImage"),
        (b"Comment = of a program\n", "MetaImage"),
        (b"Comment on something", ""),
        (b"ObjectTypes = Image", ""),
        (b" " * 54 + b"NDims = 3", "MetaImage"),
        (b" " * 64 + b"NDims = 3", ""),  # only the first 64 bytes are looked at
        (b"", ""),
    ],
)
def test_files_are_known_by_their_first_bytes(head, name):
    assert itk_format(head) == name


@pytest.mark.parametrize("shown", [True, False])
def test_itk_is_quiet_within_and_as_it_was_after(shown):
    before = itk.Object.GetGlobalWarningDisplay()
    itk.Object.SetGlobalWarningDisplay(shown)
    try:
        with without_warnings():
            assert not itk.Object.GetGlobalWarningDisplay()
        assert bool(itk.Object.GetGlobalWarningDisplay()) == shown
        with pytest.raises(RuntimeError), without_warnings():
            raise RuntimeError
        assert bool(itk.Object.GetGlobalWarningDisplay()) == shown
    finally:
        itk.Object.SetGlobalWarningDisplay(before)


TURN = np.array([[0.0, 1, 0], [0, 0, -1], [1, 0, 0]])


def image(array: np.ndarray, vector: bool = False):
    made = itk.image_from_array(np.ascontiguousarray(array), is_vector=vector)
    dims = made.GetImageDimension()
    made.SetSpacing([1.0, 2.0, 3.0, 4.0][:dims])
    made.SetOrigin([10.0, 20.0, 30.0, 40.0][:dims])
    if dims == 3:
        made.SetDirection(itk.matrix_from_array(TURN))
    return made


def test_the_affine_turns_lps_to_ras():
    expected = np.eye(4)
    expected[:3, :3], expected[:3, 3] = TURN * [1, 2, 3], [10, 20, 30]
    assert np.allclose(affine_of(image(VOXELS.T)), np.diag([-1, -1, 1, 1]) @ expected)
    picture = affine_of(image(VOXELS[..., 0].T))
    assert np.allclose(picture, [[-1, 0, 0, -10], [0, -2, 0, -20], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert np.allclose(
        affine_of(image(np.zeros((2, 2, 2, 2), np.float32))),
        [[-1, 0, 0, -10], [0, -2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]],
    )


@pytest.mark.parametrize("name", ["MetaImage", "NRRD"])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5)])
def test_two_to_four_axes_keep_their_order(tmp_path, name, shape):
    path = tmp_path / ("v.mha" if name == "MetaImage" else "v.nrrd")
    voxels = np.random.default_rng(0).integers(0, 99, shape).astype(np.int16)
    itk.imwrite(image(voxels.T), str(path))
    array, affine = read_itk(path, name, DEFAULT_LIMITS)
    assert array.dtype == np.float32
    assert np.array_equal(array, voxels)
    assert np.allclose(affine, affine_of(image(voxels.T)))
    count = int(np.prod(shape))
    assert read_itk(path, name, ReadLimits(voxels=count))[0].shape == shape
    with pytest.raises(TooLarge, match=f"at most {count - 1:,} and"):
        read_itk(path, name, ReadLimits(voxels=count - 1))


def test_channels_come_last_and_count_for_the_limit(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype(np.float32)
    itk.imwrite(image(np.moveaxis(voxels, -1, 0).T, vector=True), str(tmp_path / "v.mha"))
    assert np.array_equal(read_itk(tmp_path / "v.mha", "MetaImage", ReadLimits(voxels=48))[0], voxels)
    with pytest.raises(TooLarge, match="holds 2 x 3 x 4 x 2 voxels, at most 47"):
        read_itk(tmp_path / "v.mha", "MetaImage", ReadLimits(voxels=47))


def header(path, dims: int, channels: int = 1, kind: str = "MET_UCHAR", **lines: str):
    shape = " ".join(["2"] * dims)
    text = f"ObjectType = Image\nNDims = {dims}\nDimSize = {shape}\nElementNumberOfChannels = {channels}\n"
    path.write_bytes(f"{text}ElementType = {kind}\nElementDataFile = LOCAL\n".encode() + bytes(2**dims * channels))
    return path


@pytest.mark.parametrize(
    ("dims", "channels", "taken"), [(1, 1, False), (2, 2, True), (4, 1, True), (4, 2, False), (5, 1, False)]
)
def test_other_numbers_of_axes_are_refused(tmp_path, dims, channels, taken):
    path = header(tmp_path / "v.mha", dims, channels)
    if taken:
        assert read_itk(path, "MetaImage", DEFAULT_LIMITS)[0].size == 2**dims * channels
    else:
        with pytest.raises(Refused, match=f"has {dims} dimensions of {channels} values, expected 2 to 4"):
            read_itk(path, "MetaImage", DEFAULT_LIMITS)


def test_complex_numbers_and_damaged_headers_are_refused(tmp_path):
    (tmp_path / "c.nrrd").write_bytes(
        b"NRRD0004\ntype: float\ndimension: 4\nsizes: 2 2 2 2\nkinds: complex domain domain domain\nendian: little\n"
        b"encoding: raw\n\n" + bytes(64)
    )
    (tmp_path / "d.nrrd").write_bytes(b"NRRD0004\ntype: nothing\n\n")
    (tmp_path / "e.mha").write_bytes(b"NDims = 3\nDimSize = 2 2 2\n")
    for file, name, reason in (
        ("c.nrrd", "NRRD", "holds complex numbers, expected magnitudes"),
        ("d.nrrd", "NRRD", "has a damaged NRRD header"),
        ("e.mha", "MetaImage", "damaged"),
    ):
        with pytest.raises(Refused, match=reason):
            read_itk(tmp_path / file, name, DEFAULT_LIMITS)
