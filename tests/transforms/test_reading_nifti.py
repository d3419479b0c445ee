"""NIfTI, Analyze, MHA and NRRD files read as their headers say, or refused in a sentence."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

from transforms.limits import ReadLimits
from transforms.loading import LoadCased
from transforms.reading import file_kind, read_volume

VOXELS = np.random.default_rng(0).integers(0, 1000, (5, 6, 7)).astype(np.int16)
AFFINE = np.array([[-1.0, 0, 0, 10], [0, 1.5, 0, -20], [0, 0, 2, 5], [0, 0, 0, 1]])


def read(path: Path, **options) -> tuple[np.ndarray, np.ndarray]:
    return read_volume(path, file_kind(path), **options)


def write(
    path: Path, voxels=VOXELS, sform=AFFINE, qform=None, codes=(1, 0), unit: str | None = None, kind=nib.Nifti1Image
):
    """A file whose header says exactly this."""
    image = kind(voxels, None)
    sizes = nib.affines.voxel_sizes(qform if sform is None else sform)
    image.header.set_zooms([*sizes, *[1] * voxels.ndim][: voxels.ndim])
    image.set_sform(sform, codes[0])
    image.set_qform(qform, codes[1])
    if unit:
        image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


def by_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The independent reader: ITK's own library for NIfTI."""
    reader = itk.ImageFileReader[itk.Image[itk.F, 3]].New(FileName=str(path), ImageIO=itk.NiftiImageIO.New())
    reader.Update()
    image = reader.GetOutput()
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.asarray(image.GetSpacing())
    affine[:3, 3] = np.asarray(image.GetOrigin())
    return itk.array_from_image(image).T, np.diag([-1, -1, 1, 1]) @ affine


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000), ("mm", 1), ("micron", 0.001), ("unknown", 1)])
def test_places_are_in_millimeters_whatever_the_unit_of_the_file(tmp_path, unit, factor):
    scaled = np.diag([1 / factor] * 3 + [1]) @ AFFINE
    path = write(tmp_path / "v.nii.gz", sform=scaled, unit=unit)
    array, affine = read(path)
    assert np.array_equal(array, VOXELS)
    assert np.allclose(affine, AFFINE, atol=1e-4)
    if unit != "unknown":
        assert np.allclose(by_itk(path)[1], AFFINE, atol=1e-4)


def test_a_unit_that_cannot_be_right_is_refused(tmp_path):
    path = write(tmp_path / "v.nii", unit="meter")
    with pytest.raises(
        ValueError, match=r"v.nii says that its voxels are 1000 x 1500 x 2000 mm .*meter.; set xyzt_units"
    ):
        read(path)


@pytest.mark.parametrize(("forms", "place"), [((AFFINE, None), 10), ((None, AFFINE), 10), ((AFFINE, AFFINE), 10)])
def test_sform_or_qform_place_the_volume(tmp_path, forms, place):
    path = write(tmp_path / "v.nii", sform=forms[0], qform=forms[1], codes=tuple(int(f is not None) for f in forms))
    array, affine = read(path)
    assert affine[0, 3] == pytest.approx(place)
    assert np.allclose(affine, by_itk(path)[1], atol=1e-4)
    assert np.array_equal(array, by_itk(path)[0])


def test_the_sform_stands_where_the_qform_places_the_volume_in_another_space(tmp_path):
    scanner = AFFINE.copy()
    scanner[1, 3] += 30
    assert np.allclose(read(write(tmp_path / "v.nii", qform=scanner, codes=(4, 1)))[1], AFFINE)


def test_headers_that_contradict_themselves_are_refused(tmp_path):
    moved, mirrored = AFFINE.copy(), np.diag([-1, 1, 1, 1]) @ AFFINE
    moved[1, 3] += 30
    path = write(tmp_path / "moved.nii", qform=moved, codes=(1, 1))
    with pytest.raises(ValueError, match=r"moved.nii .* both of code 1, place its corners 30 mm apart; set the code"):
        read(path)
    path = write(tmp_path / "mirrored.nii", qform=mirrored, codes=(4, 1))
    with pytest.raises(ValueError, match=r"mirrored.nii .* axes LAS by its sform, RAS by its qform, so that left"):
        read(path)


@pytest.mark.parametrize(("shear", "taken"), [(0.04, True), (0.3, False)])
def test_a_sheared_grid_is_refused_and_rounding_is_not(tmp_path, shear, taken):
    leaning = AFFINE.copy()
    leaning[0, 1] = shear
    path = write(tmp_path / "v.nii", sform=leaning)
    if taken:
        assert np.allclose(read(path)[1], leaning)
    else:
        with pytest.raises(
            ValueError, match=r"v.nii is sheared: its axes stand 79 degrees to each other, expected 90; resa"
        ):
            read(path)


@pytest.mark.parametrize(
    ("voxels", "what"),
    [
        (np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "holds colors .*; give the gray image"),
        (np.zeros((3, 4, 5), [(c, "u1") for c in "RGBA"]), "holds colors"),
        (np.ones((3, 4, 5), np.complex64), "holds complex numbers, expected magnitudes; save the magnitude"),
        (np.ones((3, 4, 5), np.complex128), "holds complex numbers"),
        (np.ones((2, 2, 2, 2, 2), np.float32), r"has shape \(2, 2, 2, 2, 2\), expected"),
    ],
)
def test_what_are_no_gray_values_is_refused(tmp_path, voxels, what):
    path = write(tmp_path / "v.nii", voxels)
    with pytest.raises(ValueError, match=f"v.nii {what}"):
        read(path)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 6, 7, 1), (5, 6, 7)),
        ((5, 6, 7, 1, 1), (5, 6, 7)),
        ((5, 6, 7, 1, 2), (5, 6, 7, 2)),
        ((5, 6, 7, 3), (5, 6, 7, 3)),
    ],
)
def test_axes_of_one_volume_are_dropped_and_vectors_become_channels(tmp_path, shape, expected):
    voxels = np.random.default_rng(1).integers(0, 99, shape).astype(np.int16)
    array, _ = read(write(tmp_path / "v.nii.gz", voxels))
    assert array.shape == expected
    assert np.array_equal(array.reshape(-1), voxels.reshape(-1))


@pytest.mark.parametrize(
    ("slope", "inter", "expected"),
    [(0.0, 5.0, VOXELS), (2.0, -3.0, VOXELS * 2.0 - 3), (float("nan"), 0.0, VOXELS), (1.0, float("inf"), None)],
)
def test_the_scale_of_the_header_holds_and_a_slope_of_0_means_none(tmp_path, slope, inter, expected):
    content = bytearray(write(tmp_path / "v.nii").read_bytes())
    struct.pack_into("<ff", content, 112, slope, inter)
    (tmp_path / "v.nii").write_bytes(bytes(content))
    if expected is None:
        with pytest.raises(ValueError, match=r"v.nii states a scale that is no number .scl_inter inf.; set it to 0"):
            read(tmp_path / "v.nii")
    else:
        assert np.array_equal(read(tmp_path / "v.nii")[0], expected)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, np.float32, np.float64])
def test_big_endian_files_of_any_number_type(tmp_path, kind, dtype):
    header = kind.header_class(endianness=">")
    header.set_data_dtype(dtype)
    voxels = (VOXELS % 200).astype(dtype)
    nib.save(kind(voxels, AFFINE, header), tmp_path / "v.nii")
    assert (tmp_path / "v.nii").read_bytes()[:2] == b"\0\0"
    array, affine = read(tmp_path / "v.nii")
    assert np.array_equal(array, voxels)
    assert np.allclose(affine, AFFINE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_the_count(tmp_path, value):
    voxels = VOXELS.astype(np.float32)
    voxels[1, 2, 3] = value
    path = write(tmp_path / "v.nii", voxels)
    with pytest.raises(ValueError, match=r"v.nii.*: 1 values are not finite .*; replace them"):
        LoadCased(spatial_dims=3)({"image": str(path)})
    with pytest.raises(ValueError, match=r"mask .*v.nii holds values that are not finite .*; set them to 0"):
        LoadCased(spatial_dims=3)({"image": str(write(tmp_path / "i.nii")), "label": str(path)})


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair, nib.Spm2AnalyzeImage])
@pytest.mark.parametrize("suffix", [".hdr", ".img"])
def test_pairs_are_read_by_either_file(tmp_path, kind, suffix):
    nib.save(kind(VOXELS, AFFINE), tmp_path / "v.img")
    (tmp_path / "v.mat").unlink(missing_ok=True)
    array, affine = read(tmp_path / f"v{suffix}")
    assert np.array_equal(array, VOXELS)
    assert np.allclose(affine[:3, :3], AFFINE[:3, :3])
    if kind is not nib.Spm2AnalyzeImage:
        assert np.allclose(affine, AFFINE)


def test_the_header_of_a_pair_without_its_image_says_so(tmp_path):
    nib.save(nib.Nifti1Pair(VOXELS, AFFINE), tmp_path / "v.img")
    (tmp_path / "v.img").unlink()
    with pytest.raises(ValueError, match=r"v.hdr is the header of a pair .*; put the .img file there"):
        read(tmp_path / "v.hdr")


@pytest.mark.parametrize(("orientation", "codes"), [(0, "LAS"), (1, "LSA"), (2, "ASL"), (3, None), (5, None)])
def test_analyze_files_say_in_which_plane_their_slices_lie(tmp_path, orientation, codes):
    nib.save(nib.AnalyzeImage(VOXELS, np.diag([-1, 1.5, 2, 1])), tmp_path / "v.img")
    header = bytearray((tmp_path / "v.hdr").read_bytes())
    header[252] = orientation
    (tmp_path / "v.hdr").write_bytes(bytes(header))
    if codes is None:
        with pytest.raises(ValueError, match=f"v.hdr is an Analyze file of orientation {orientation} .*; convert it"):
            read(tmp_path / "v.hdr")
        return
    array, affine = read(tmp_path / "v.hdr")
    assert np.array_equal(array, VOXELS)
    assert "".join(nib.aff2axcodes(affine)) == codes
    assert nib.affines.voxel_sizes(affine).tolist() == [1, 1.5, 2]
    assert np.allclose(affine @ [2, 2.5, 3, 1], [0, 0, 0, 1])  # the middle, as no place is stated


# Cut, damaged and oversized files


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.mgz"])
def test_a_file_that_is_cut_short_says_how_much_is_missing(tmp_path, name):
    nib.save((nib.MGHImage if "mgz" in name else nib.Nifti1Image)(VOXELS.astype(np.float32), AFFINE), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    content = gzip.decompress(content) if name.endswith("z") else content
    content = content[:800]
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("z") else content)
    with pytest.raises(
        ValueError, match=rf"{name} is cut short: the header promises 1,\d\d\d bytes, there are 800; copy"
    ):
        read(tmp_path / name)


def test_a_bomb_is_refused_by_its_header_before_it_is_unpacked(tmp_path, monkeypatch):
    header = nib.Nifti1Header()
    header.set_data_shape((4096, 4096, 64))
    header.set_data_dtype(np.uint8)
    header["magic"], header["vox_offset"] = b"n+1", 352
    packer = zlib.compressobj(9, wbits=31)
    content = packer.compress(header.binaryblock + bytes(4))
    content += b"".join(packer.compress(bytes(1 << 20)) for _ in range(16)) + packer.flush()
    (tmp_path / "bomb.nii.gz").write_bytes(content)
    assert len(content) < 1 << 17
    unpacked = []
    original = zlib.decompressobj

    class Counting:
        def __init__(self, wbits):
            self.inner = original(wbits)

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def decompress(self, data, limit=0):
            unpacked.append(len(out := self.inner.decompress(data, limit)))
            return out

    monkeypatch.setattr(zlib, "decompressobj", Counting)
    with pytest.raises(
        ValueError, match=r"bomb.nii.gz holds 4096 x 4096 x 64 voxels, at most 16,777,216 and .*; cut it"
    ):
        read(tmp_path / "bomb.nii.gz", limits=ReadLimits(voxels=1 << 24))
    assert sum(unpacked) < 2000


def test_no_more_than_the_header_promises_is_unpacked(tmp_path):
    path = write(tmp_path / "v.nii")
    (tmp_path / "v.nii.gz").write_bytes(gzip.compress(path.read_bytes() + bytes(8 << 20)))
    assert np.array_equal(read(tmp_path / "v.nii.gz")[0], VOXELS)


def test_a_gzip_of_several_members_is_read_whole(tmp_path):
    content = write(tmp_path / "v.nii").read_bytes()
    (tmp_path / "v.nii.gz").write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    assert np.array_equal(read(tmp_path / "v.nii.gz")[0], VOXELS)


# MetaImage and NRRD


@pytest.mark.parametrize("name", ["v.mha", "v.mhd", "v.nrrd", "v.nhdr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_metaimage_and_nrrd_keep_values_channels_and_place(tmp_path, name, channels):
    shape = (5, 6, 7) if channels == 1 else (5, 6, 7, channels)
    voxels = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    stored = voxels.T if channels == 1 else np.moveaxis(voxels, -1, 0).T
    image = itk.image_from_array(np.ascontiguousarray(stored), is_vector=channels > 1)
    image.SetSpacing([1, 1.5, 2])
    image.SetOrigin([-10, 20, 5])
    turn = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, -1]])
    image.SetDirection(itk.matrix_from_array(turn))
    itk.imwrite(image, str(tmp_path / name))
    array, affine = read(tmp_path / name)
    assert np.array_equal(array, voxels)
    expected = np.eye(4)
    expected[:3, :3], expected[:3, 3] = turn * [1, 1.5, 2], [-10, 20, 5]
    assert np.allclose(affine, np.diag([-1, -1, 1, 1]) @ expected)


@pytest.mark.parametrize("name", ["v.mha", "v.nrrd"])
def test_cut_and_oversized_metaimage_and_nrrd_are_one_sentence(tmp_path, name):
    itk.imwrite(itk.image_from_array(VOXELS.T.copy()), str(tmp_path / name))
    with pytest.raises(ValueError, match=f"{name} holds 5 x 6 x 7 x 1 voxels, at most 100 and"):
        read(tmp_path / name, limits=ReadLimits(voxels=100))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-50])
    with pytest.raises(ValueError, match=f"{name} is cut short or damaged.*; copy or export it again"):
        read(tmp_path / name)


def test_a_header_without_its_data_file_says_so(tmp_path):
    itk.imwrite(itk.image_from_array(VOXELS.T.copy()), str(tmp_path / "v.mhd"))
    next(path for path in tmp_path.iterdir() if path.suffix != ".mhd").unlink()
    with pytest.raises(
        ValueError, match=r"v.mhd is cut short or damaged, or the data file of its MetaImage header is not"
    ):
        read(tmp_path / "v.mhd")
