"""What the header of a NIfTI, Analyze or MGH file must say, each rule on both sides of its limit."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from transforms import nifti
from transforms.limits import DEFAULT_LIMITS, ReadLimits, Refused, TooLarge
from transforms.nifti import header_size, pair_header, read_nifti, unpacked

VOXELS = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
AFFINE = np.array([[-1.0, 0, 0, 10], [0, 1.5, 0, -20], [0, 0, 2, 5], [0, 0, 0, 1]])


def read(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> tuple[np.ndarray, np.ndarray]:
    return read_nifti(path, limits)


def write(path: Path, voxels=VOXELS, kind=nib.Nifti1Image, sform=AFFINE, qform=None, codes=(1, 0)) -> Path:
    image = kind(voxels, None)
    image.set_sform(sform, codes[0])
    image.set_qform(qform, codes[1])
    nib.save(image, path)
    return path


def patch(path: Path, place: int, value: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[place : place + len(value)] = value
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize("size", [348, 540])
@pytest.mark.parametrize("order", ["little", "big"])
def test_a_header_begins_with_its_size_in_either_order_of_bytes(size, order):
    assert header_size(size.to_bytes(4, order) + b"abc") == size


def test_anything_else_is_no_header():
    for head in (b"", b"\x5c", (349).to_bytes(4, "little"), b"\x1f\x8b\x08\0", (348).to_bytes(3, "little") + b"\1"):
        assert header_size(head) == 0


# Bytes of files


def gzipped(*members: bytes, padding: bytes = b"") -> bytes:
    return padding.join(gzip.compress(member, mtime=0) for member in members)


CONTENT = bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8))


@pytest.mark.parametrize(
    "stored",
    [
        CONTENT, gzipped(CONTENT), gzipped(CONTENT[:10], CONTENT[10:]), gzipped(CONTENT[:2000], CONTENT[2000:3000], b"",
        CONTENT[3000:], padding=bytes(7)), gzipped(CONTENT) + bytes(12),
    ],
    ids=["plain", "gzip", "two members", "four padded members", "padded"],
)  # fmt: skip
@pytest.mark.parametrize("chunk", [100, 1 << 20])
def test_the_first_bytes_of_a_file_are_those_asked_for(tmp_path, monkeypatch, stored, chunk):
    monkeypatch.setattr(nifti, "_CHUNK", chunk)
    (tmp_path / "a").write_bytes(stored)
    for count in (0, 1, 9, 10, 11, 2500, 4999, 5000):
        assert unpacked(tmp_path / "a", count) == CONTENT[:count], count
    assert unpacked(tmp_path / "a", 6000) == CONTENT


def test_a_gzipped_file_that_is_cut_gives_what_there_is_and_a_damaged_one_is_refused(tmp_path):
    whole = gzipped(CONTENT)
    (tmp_path / "a").write_bytes(whole[:3000])
    part = unpacked(tmp_path / "a", 6000)
    assert 2000 < len(part) < 5000
    assert CONTENT.startswith(part)
    (tmp_path / "a").write_bytes(whole[:20] + b"\xff" * 50 + whole[70:])
    with pytest.raises(Refused, match="is damaged: its gzip stream cannot be unpacked"):
        unpacked(tmp_path / "a", 6000)
    with pytest.raises(FileNotFoundError):
        unpacked(tmp_path / "gone", 1)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_file_is_read_to_its_last_voxel_and_no_further(tmp_path, suffix, kind):
    path = write(tmp_path / f"v{suffix}", kind=kind)
    whole = path.read_bytes()
    content = gzip.decompress(whole) if suffix.endswith("gz") else whole
    array, affine = read(path)
    assert array.dtype == np.float32
    assert np.array_equal(array, VOXELS)
    assert np.allclose(affine, AFFINE)
    short = content[:-1]
    path.write_bytes(gzip.compress(short) if suffix.endswith("gz") else short)
    with pytest.raises(
        Refused, match=f"is cut short: the header promises {len(content):,} bytes, there are {len(short):,}"
    ):
        read(path)
    header = content[:200]
    path.write_bytes(gzip.compress(header) if suffix.endswith("gz") else header)
    size = 348 if kind is nib.Nifti1Image else 540
    with pytest.raises(Refused, match=f"is cut short: 200 bytes, its header alone has {size}"):
        read(path)


def test_a_volume_beyond_the_limit_is_refused_by_its_header(tmp_path):
    path = write(tmp_path / "v.nii")
    assert read(path, ReadLimits(voxels=60))[0].shape == (3, 4, 5)
    with pytest.raises(TooLarge, match="holds 3 x 4 x 5 voxels, at most 59"):
        read(path, ReadLimits(voxels=59))


@pytest.mark.parametrize(("code", "taken"), [(2999, True), (3000, False), (3099, False), (3100, True)])
def test_surfaces_and_regions_of_cifti_are_no_images(tmp_path, code, taken):
    path = patch(write(tmp_path / "v.nii"), 68, struct.pack("<h", code))
    if taken:
        assert read(path)[0].shape == (3, 4, 5)
    else:
        with pytest.raises(Refused, match="is a CIFTI file of surfaces and regions"):
            read(path)


@pytest.mark.parametrize(
    ("slope", "inter", "expected"),
    [
        (2.0, 3.0, VOXELS * 2.0 + 3), (0.0, np.inf, VOXELS), (np.nan, np.nan, VOXELS), (np.inf, np.nan, VOXELS),
        (2.0, np.nan, None), (1.0, -np.inf, None),
    ],
)  # fmt: skip
def test_a_scale_is_refused_where_a_slope_is_meant_and_the_rest_is_no_number(tmp_path, slope, inter, expected):
    path = patch(write(tmp_path / "v.nii"), 112, struct.pack("<ff", slope, inter))
    if expected is None:
        with pytest.raises(Refused, match="states a scale that is no number"):
            read(path)
    else:
        assert np.array_equal(read(path)[0], expected)


def test_types_and_shapes_that_are_none_are_damage(tmp_path):
    with pytest.raises(Refused, match=r"damaged header \(shape or type of voxels\)"):
        read(patch(write(tmp_path / "v.nii"), 70, struct.pack("<h", 9999)))
    path = patch(write(tmp_path / "w.nii"), 42, struct.pack("<h", 0))
    with pytest.raises(Refused, match=r"says that its shape is \(0, 4, 5\)|damaged header"):
        read(path)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 4), (3, 4)), ((3, 4, 1), (3, 4, 1)), ((3, 4, 5, 1), (3, 4, 5)), ((3, 4, 5, 2), (3, 4, 5, 2)),
        ((3, 4, 5, 1, 2), (3, 4, 5, 2)), ((3, 4, 5, 1, 1, 1), (3, 4, 5)), ((3, 4, 5, 2, 1), (3, 4, 5, 2)), ((3,), None),
        ((3, 4, 5, 2, 2), None), ((3, 4, 5, 1, 1, 2), None),
    ],
)  # fmt: skip
def test_axes_of_length_one_go_and_two_to_four_are_left(tmp_path, shape, expected):
    voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    path = write(tmp_path / "v.nii", voxels)
    if expected is None:
        with pytest.raises(Refused, match=r"has shape .*, expected \(X, Y, Z\) or \(X, Y, Z, C\)"):
            read(path)
    else:
        assert np.array_equal(read(path)[0], voxels.reshape(expected))


# Places


@pytest.mark.parametrize(("unit", "factor"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001)])
def test_units_are_meters_millimeters_and_micrometers(tmp_path, unit, factor):
    path = write(tmp_path / "v.nii", sform=np.diag([1 / factor] * 3 + [1]) @ AFFINE)
    assert np.allclose(read(patch(path, 123, bytes([unit | 8])))[1], AFFINE, rtol=1e-5)  # 8: seconds


@pytest.mark.parametrize("unit", [4, 5, 7])
def test_an_unknown_unit_is_refused(tmp_path, unit):
    with pytest.raises(Refused, match=f"states the unknown unit {unit} of length"):
        read(patch(write(tmp_path / "v.nii"), 123, bytes([unit])))


@pytest.mark.parametrize(
    ("unit", "mm", "shape", "taken"),
    [
        (1, 100, (3, 4, 5), True), (1, 100.1, (3, 4, 5), False), (3, 0.001, (3, 4, 5), True),
        (3, 0.000999, (3, 4, 5), False), (2, 500, (3, 4, 5), True), (0, 500, (3, 4, 5), True),
        (1, 500, (3, 4, 1), True),  # a single slice may be as thick as it says
        (1, 500, (3, 4, 2), False), (1, 500, (3, 4), True),
    ],
)  # fmt: skip
def test_voxels_whose_unit_was_stated_are_a_micrometer_to_ten_centimeters_wide(tmp_path, unit, mm, shape, taken):
    factor = {0: 1, 1: 1000, 2: 1, 3: 0.001}[unit]
    form = np.diag([1 / factor, 1 / factor, mm / factor * (1 - 1e-7 if mm == 100 else 1 + 1e-6), 1])
    if unit == 3:
        form = np.diag([1 / factor, 1 / factor, mm / factor * (1 + 1e-6), 1])
    path = patch(write(tmp_path / "v.nii", np.zeros(shape, np.int16), sform=form), 123, bytes([unit]))
    if taken:
        assert read(path)[1][2, 2] == pytest.approx(mm, rel=1e-4)
    else:
        with pytest.raises(Refused, match=r"says that its voxels are .*; set xyzt_units to 2"):
            read(path)


def moved(mm: float) -> np.ndarray:
    form = AFFINE.copy()
    form[1, 3] += mm
    return form


@pytest.mark.parametrize(
    ("qform", "codes", "taken"),
    [
        (moved(1.99), (1, 1), True),  # the largest voxel distance is 2 mm
        (moved(2.01), (1, 1), False),
        (moved(2.01), (2, 1), True),  # in another space
        (moved(2.01), (1, 0), True),  # not stated
        (moved(2.01), (0, 1), True),
        (np.diag([-1, 1, 1, 1]) @ AFFINE, (2, 1), False),  # left is right
        (np.diag([-1, 1, 1, 1]) @ AFFINE, (1, 0), True),
        (np.diag([-1, 1, 1, 1]) @ AFFINE, (0, 1), True),
    ],
)
def test_forms_of_one_space_agree_to_a_voxel_and_those_of_two_in_their_axes(tmp_path, qform, codes, taken):
    path = write(tmp_path / "v.nii", qform=qform, codes=codes)
    if taken:
        assert np.allclose(read(path)[1], qform if codes[0] == 0 else AFFINE, atol=1e-4)
    else:
        with pytest.raises(Refused, match="has a header that contradicts itself"):
            read(path)


def test_where_the_quaternion_is_none_the_sform_stands(tmp_path):
    path = patch(write(tmp_path / "v.nii", qform=AFFINE, codes=(1, 1)), 256, struct.pack("<3f", 2.0, 0, 0))
    assert np.allclose(read(path)[1], AFFINE)


# Pairs


@pytest.mark.parametrize(
    "names", [("v.hdr", "v.img"), ("v.HDR", "v.IMG"), ("v.hdr.gz", "v.img.gz"), ("v.hdr", "v.img.gz")]
)
@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
def test_the_files_of_a_pair_find_each_other(tmp_path, names, kind):
    nib.save(kind(VOXELS, AFFINE), tmp_path / "made.img")
    for name, made in zip(names, ("made.hdr", "made.img"), strict=True):
        content = (tmp_path / made).read_bytes()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    header, image = (tmp_path / name for name in names)
    assert pair_header(image) == header
    assert pair_header(header) is None
    array, affine = read(header)
    assert np.array_equal(array, VOXELS)
    assert np.allclose(affine, AFFINE)
    image.unlink()
    with pytest.raises(Refused, match=r"is the header of a pair \(.hdr and .img\), and no image file"):
        read(header)


def test_an_image_without_a_header_and_other_files_have_none(tmp_path):
    for name in ("v.img", "v.nii.gz", "v.png", "v.img.bz2"):
        assert pair_header(tmp_path / name) is None
    (tmp_path / "v.hdr").touch()
    assert pair_header(tmp_path / "v.img") == tmp_path / "v.hdr"
    assert pair_header(tmp_path / "v.nii") is None


def test_540_bytes_that_are_no_nifti_2_are_refused(tmp_path):
    path = patch(write(tmp_path / "v.nii", kind=nib.Nifti2Image), 4, b"xxx")
    with pytest.raises(Refused, match="has the size of a NIfTI-2 header, but is none"):
        read(path)


def analyze(folder: Path, kind=nib.AnalyzeImage, orient: int = 0) -> Path:
    nib.save(kind(VOXELS, np.diag([-1.0, 1.5, 2, 1])), folder / "v.img")
    (folder / "v.mat").unlink(missing_ok=True)
    return patch(patch(folder / "v.hdr", 252, bytes([orient])), 253, bytes(10))


@pytest.mark.parametrize(
    ("orient", "turn"),
    [
        (0, [[-1, 0, 0], [0, 1.5, 0], [0, 0, 2]]),  # transverse: left, anterior, superior
        (1, [[-1, 0, 0], [0, 0, 2], [0, 1.5, 0]]),  # coronal: left, superior, anterior
        (2, [[0, 0, -2], [1, 0, 0], [0, 1.5, 0]]),  # sagittal: anterior, superior, left
    ],
)
def test_analyze_says_in_which_plane_its_slices_lie_and_no_place(tmp_path, orient, turn):
    affine = read(analyze(tmp_path, orient=orient))[1]
    assert np.allclose(affine[:3, :3], turn)
    assert np.allclose(affine[:3, 3], -np.array(turn) @ [1, 1.5, 2])  # the middle of 3 x 4 x 5 voxels lies at 0
    assert affine[3].tolist() == [0, 0, 0, 1]


def test_analyze_that_is_flipped_is_refused(tmp_path):
    with pytest.raises(Refused, match="is an Analyze file of orientation 3"):
        read(analyze(tmp_path, orient=3))


@pytest.mark.parametrize("axis", range(3))
def test_the_origin_or_the_matrix_of_spm_place_an_analyze_file(tmp_path, axis):
    path = analyze(tmp_path, nib.Spm2AnalyzeImage, orient=5)
    origin = [0, 0, 0]
    origin[axis] = 2
    patch(path, 253, struct.pack("<3h", *origin))
    place = read(path)[1] @ [*(n - 1 if n else m for n, m in zip(origin, (1, 1.5, 2), strict=True)), 1]
    assert np.allclose(place[axis], 0), "voxels of SPM are counted from 1"
    nib.save(nib.Spm2AnalyzeImage(VOXELS, AFFINE), tmp_path / "m.img")
    patch(patch(tmp_path / "m.hdr", 252, b"\5"), 253, bytes(10))
    assert np.allclose(read(tmp_path / "m.hdr")[1], AFFINE)


# MGH


@pytest.mark.parametrize("name", ["v.mgh", "v.mgz"])
def test_mgh_is_read_to_its_last_voxel(tmp_path, name):
    nib.save(nib.MGHImage(VOXELS.astype(np.float32), AFFINE), tmp_path / name)
    array, affine = read(tmp_path / name)
    assert np.array_equal(array, VOXELS)
    assert np.allclose(affine, AFFINE, atol=1e-5)
    content = (tmp_path / name).read_bytes()
    content = gzip.decompress(content) if name.endswith("z") else content
    needed = 284 + 60 * 4
    for size, reason in (
        (needed, None),
        (needed - 1, f"promises {needed} bytes, there are {needed - 1}"),
        (284, f"promises {needed} bytes, there are 284"),
        (283, "283 bytes, its header alone has 284"),
    ):
        part = content[:size]
        (tmp_path / name).write_bytes(gzip.compress(part) if name.endswith("z") else part)
        if reason is None:
            assert np.array_equal(read(tmp_path / name)[0], VOXELS)
        else:
            with pytest.raises(Refused, match=f"is cut short: .*{reason}"):
                read(tmp_path / name)


def test_mgh_beyond_the_limit_is_refused_by_its_header(tmp_path):
    nib.save(nib.MGHImage(VOXELS.astype(np.float32), AFFINE), tmp_path / "v.mgh")
    assert read(tmp_path / "v.mgh", ReadLimits(voxels=60))[0].shape == (3, 4, 5)
    with pytest.raises(TooLarge):
        read(tmp_path / "v.mgh", ReadLimits(voxels=59))
