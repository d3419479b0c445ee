"""What a file is by its first bytes, whether it says where it lies, and how long a volume is kept."""

from __future__ import annotations

import gzip
import os

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.transforms.dicom_files import enhanced, save, write_slice
from tests.transforms.images import nrrd
from transforms.limits import ReadLimits, TooLarge
from transforms.pictures import is_gray, is_picture, is_transparent, read_picture
from transforms.reading import _VolumeCache, file_kind, is_located, read_volume

VOXELS = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
NIFTI = nib.Nifti1Image(VOXELS, np.diag([-1.0, -1, 2, 1])).to_bytes()
DICOM = bytes(128) + b"DICM" + bytes(60)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "picture"), (b"\xff\xd8\xff\xe0", "picture"), (b"BM\0\0", "picture"),
        (b"GIF89a", "picture"),
        (b"II*\0", "picture"), (b"MM\0*", "picture"), (b"II+\0", "picture"), (b"MM\0+", "picture"),
        (b"\0\0\0\x0cjP  \r\n", "picture"), (b"\xff\x4f\xff\x51", "picture"), (b"RIFF\0\0\0\0WEBP", "picture"),
        (b"RIFF\0\0\0\0WAVE", "other"), (b"\0\0\0\0\0\0\0\0WEBP", "other"), (b"\x89PNG", "other"),
        (NIFTI, "nifti"), (gzip.compress(NIFTI), "nifti"), (b"\0\0\0\1" + bytes(600), "nifti"),
        (gzip.compress(b"\0\0\0\1" + bytes(600)), "nifti"), (DICOM, "dicom"), (b"II*\0" + DICOM[4:], "dicom"),
        (gzip.compress(DICOM), "other"), (gzip.compress(b"text"), "other"), (b"NRRD0004\n", "NRRD"),
        (b"NDims = 3\n", "MetaImage"), (b"text", "other"),
    ],
)  # fmt: skip
def test_the_first_bytes_say_what_a_file_is(tmp_path, content, kind):
    (tmp_path / "a").write_bytes(content)
    assert file_kind(tmp_path / "a") == kind
    assert is_picture(content) == (kind == "picture" or content.startswith(b"II*\0"))


def test_a_folder_is_dicom_and_the_image_of_a_pair_is_known_by_its_header(tmp_path):
    assert file_kind(tmp_path) == "dicom"
    (tmp_path / "a.img").write_bytes(b"voxels")
    assert file_kind(tmp_path / "a.img") == "other"
    (tmp_path / "a.hdr").write_bytes(NIFTI[:348])
    assert file_kind(tmp_path / "a.img") == "nifti"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist; look at its name"),
        (b"", "is empty; copy"),
        (b"\x1f\x8b" + bytes(50), "is damaged: its gzip"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=rf"file .*a {reason}"):
        file_kind(tmp_path / "a")


@pytest.mark.parametrize(
    ("head", "what"), [(b"BZh9", "a bzip2 file"), (b"%PDF-1.4", "a PDF"), (b"??", "its format is unknown")]
)
def test_what_is_not_read_is_named(tmp_path, head, what):
    (tmp_path / "a").write_bytes(head + bytes(50))
    with pytest.raises(ValueError, match=f"cannot be read as an image: .*{what}; save it as one of PNG"):
        read_volume(tmp_path / "a", "other")


# Where a volume lies


def patched(path, place: int, value: bytes):
    content = bytearray(path.read_bytes())
    content[place : place + len(value)] = value
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize(("kind", "place"), [(nib.Nifti1Image, 252), (nib.Nifti2Image, 344)])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_nifti_file_lies_somewhere_where_one_of_its_codes_says_so(tmp_path, kind, place, zipped):
    size = 2 if kind is nib.Nifti1Image else 4
    for qform, sform in ((0, 0), (1, 0), (0, 1), (3, 4)):
        path = tmp_path / "a.nii"
        path.write_bytes(kind(VOXELS, np.eye(4)).to_bytes())
        patched(path, place, qform.to_bytes(size, "little") + sform.to_bytes(size, "little"))
        patched(path, place - 4, b"\0\0\0\0")
        patched(path, place + 2 * size, bytes(4))
        if zipped:
            path.write_bytes(gzip.compress(path.read_bytes()))
        assert is_located(path) == bool(qform or sform)


def test_mgh_nrrd_and_dicom_lie_somewhere_where_they_say_so(tmp_path):
    nib.save(nib.MGHImage(VOXELS.astype(np.float32), np.eye(4)), tmp_path / "a.mgh")
    assert is_located(tmp_path / "a.mgh")
    assert not is_located(patched(tmp_path / "a.mgh", 28, b"\0\0"))
    nrrd(VOXELS, np.eye(4), tmp_path / "a.nrrd")
    assert is_located(tmp_path / "a.nrrd")
    bare = b"NRRD0004\r\ntype: uchar\r\ndimension: 3\r\nsizes: 2 2 2\r\nencoding: raw\r\n\r\nspace directions"
    (tmp_path / "b.nrrd").write_bytes(bare)
    assert not is_located(tmp_path / "b.nrrd"), "what follows the header is no part of it"
    pixels = np.zeros((2, 4, 4), np.uint16)
    assert is_located(write_slice(tmp_path / "in" / "a.dcm", pixels[0]))
    assert not is_located(write_slice(tmp_path / "b.dcm", pixels[0], ImageOrientationPatient=None))
    assert is_located(save(enhanced(pixels, [(0, 0, 0), (0, 0, 1)]), tmp_path / "c.dcm"))
    assert is_located(tmp_path / "in")
    Image.new("L", (3, 3)).save(tmp_path / "a.png")
    assert is_located(tmp_path / "a.png")


@pytest.mark.parametrize(("lean", "taken"), [(0.0499, True), (0.0511, False), (-0.0499, True), (-0.0511, False)])
def test_axes_stand_at_right_angles_to_three_degrees(tmp_path, lean, taken):
    affine = np.diag([2.0, 2, 2, 1])
    affine[0, 1] = 2 * lean
    nib.save(nib.Nifti1Image(VOXELS, affine), tmp_path / "a.nii")
    if taken:
        assert np.allclose(read_volume(tmp_path / "a.nii", "nifti")[1], affine)
    else:
        with pytest.raises(ValueError, match=r"a.nii is sheared: its axes stand 87 degrees to each other, expected 90"):
            read_volume(tmp_path / "a.nii", "nifti")


@pytest.mark.parametrize("form", [np.diag([1.0, 1, 0, 1]), np.diag([np.nan, 1, 1, 1]), np.ones((4, 4))])
def test_an_affine_without_size_or_direction_is_refused(tmp_path, form):
    image = nib.Nifti1Image(VOXELS, None)
    image.header["sform_code"] = 1
    for k, key in enumerate(("srow_x", "srow_y", "srow_z")):
        image.header[key] = form[k]
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    patched(tmp_path / "a.nii", 252, b"\0\0\1\0")
    for k in range(3):
        patched(tmp_path / "a.nii", 280 + 16 * k, form[k].astype("<f4").tobytes())
    with pytest.raises(ValueError, match=r"a.nii has no usable affine"):
        read_volume(tmp_path / "a.nii", "nifti")


def test_small_voxels_are_as_usable_as_large_ones(tmp_path):
    nib.save(nib.Nifti1Image(VOXELS, np.diag([0.01, 0.02, 0.01, 1])), tmp_path / "a.nii")
    assert np.allclose(np.diag(read_volume(tmp_path / "a.nii", "nifti")[1]), [0.01, 0.02, 0.01, 1])


def test_the_limits_hold_for_each_kind(tmp_path):
    nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "a.nii")
    nrrd(VOXELS, np.eye(4), tmp_path / "a.nrrd")
    write_slice(tmp_path / "in" / "a.dcm", np.zeros((6, 10), np.uint16))
    for path in (tmp_path / "a.nii", tmp_path / "a.nrrd", tmp_path / "in", tmp_path / "in" / "a.dcm"):
        kind = file_kind(path)
        assert read_volume(path, kind, ReadLimits(voxels=60))[0].size == 60
        with pytest.raises(TooLarge, match="at most 59"):
            read_volume(path, kind, ReadLimits(voxels=59))


# Volumes that are kept


def test_the_volumes_used_last_are_kept_in_lps_and_nobody_writes_into_them(tmp_path):
    paths = [tmp_path / f"{k}.nii" for k in range(3)]
    for k, path in enumerate(paths):
        nib.save(nib.Nifti1Image(VOXELS + np.int16(k), np.eye(4)), path)
    cache = _VolumeCache(2)
    first = cache.get(paths[0], "nifti")
    assert np.array_equal(first[0], VOXELS[::-1, ::-1]), "the file is RAS"
    assert np.allclose(first[1], [[-1, 0, 0, 2], [0, -1, 0, 3], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(ValueError, match="read-only"):
        first[0][0, 0, 0] = 1
    second = cache.get(paths[1], "nifti")
    assert cache.get(paths[0], "nifti") is first
    assert cache.get(paths[1], "nifti") is second
    assert cache.get(paths[0], "nifti") is first
    cache.get(paths[2], "nifti")
    assert cache.get(paths[0], "nifti") is first, "it was used after the second"
    assert cache.get(paths[1], "nifti") is not second
    assert len(cache._volumes) == 2


def test_a_file_that_changed_is_read_again_and_a_plane_becomes_a_volume(tmp_path):
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(VOXELS[..., 0], np.diag([-1.0, -1, 1, 1])), path)
    cache = _VolumeCache(2)
    assert cache.get(path, "nifti")[0].shape == (3, 4, 1)
    nib.save(nib.Nifti1Image(VOXELS[..., 1], np.diag([-1.0, -1, 1, 1])), path)
    os.utime(path, ns=(1, 1))
    assert np.array_equal(cache.get(path, "nifti")[0][..., 0], VOXELS[..., 1])


# Pictures


@pytest.mark.parametrize(
    ("mode", "gray", "transparent"),
    [
        ("1", True, False), ("L", True, False), ("F", True, False), ("I", True, False), ("I;16", True, False),
        ("RGB", False, False), ("P", False, False), ("CMYK", False, False), ("LA", False, True), ("RGBA", False, True),
        ("PA", False, True), ("RGBa", False, True), ("La", False, True),
    ],
)  # fmt: skip
def test_modes_are_gray_or_colored_and_some_say_how_opaque_they_are(mode, gray, transparent):
    image = Image.new(mode, (2, 2))
    assert (is_gray(image), is_transparent(image)) == (gray, transparent)


def test_a_transparent_gray_is_no_plain_gray():
    image = Image.new("L", (2, 2))
    image.info["transparency"] = 0
    assert not is_gray(image)
    assert is_transparent(image)


def test_what_is_transparent_shows_black_and_opaque_colors_their_luminance(tmp_path):
    pixels = np.array([[[200, 200, 200, 255], [200, 200, 200, 51], [200, 200, 200, 0], [0, 255, 0, 255]]], np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png")[:, 0].tolist() == [200, 40, 0, 150]
    assert read_picture(tmp_path / "a.png", ReadLimits(pixels=4)).shape == (4, 1)
    with pytest.raises(TooLarge):
        read_picture(tmp_path / "a.png", ReadLimits(pixels=3))


def test_a_picture_that_pillow_takes_for_a_bomb_is_too_large(tmp_path, monkeypatch):
    Image.new("L", (20, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(TooLarge, match=r"a.png is a picture of more than 1,000 pixels; make it smaller"):
        read_picture(tmp_path / "a.png", ReadLimits(pixels=1000))
