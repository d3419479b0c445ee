"""What is written of files that are not one gray picture each."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from scripts.data.datalists import unpacking
from scripts.data.datalists.picture_plans import PictureFiles
from scripts.data.datalists.unpacking import is_matlab, is_tcga_slice, unpack_channel, unpack_folder


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_1.tif", True),
        ("tcga_du_5849_19950405_12.TIFF", True),
        ("a/b/TCGA_FG_A4MT_20020606_3.tif", True),
        ("TCGA_CS_4941_19960909_1_mask.tif", False),
        ("TCGA_CS_4941_1996_1.tif", False),
        ("xTCGA_CS_4941_19960909_1.tif", False),
        ("TCGA_CS_4941_19960909_1.png", False),
    ],
)
def test_slices_of_tcga_are_known_by_their_names(path, known):
    assert is_tcga_slice(path) == known


def test_pictures_are_written_outside_of_the_images(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    assert unpack_folder(out, None, folder) == unpack_folder(str(out), out, folder) == out
    with pytest.raises(ValueError, match="give the folder for them as unpack"):
        unpack_folder(None, None, folder)
    with pytest.raises(ValueError, match="leave --root out"):
        unpack_folder(out, tmp_path, folder)
    for inside in (folder, folder / "x", folder / ".." / "in" / "y"):
        with pytest.raises(ValueError, match="give an --out outside"):
            unpack_folder(inside, None, folder)


@pytest.mark.parametrize(
    ("low", "high", "suffix", "kind"),
    [(0, 255, ".png", np.uint8), (0, 256, ".png", np.uint16), (0, 65535, ".png", np.uint16),
     (0, 65536, ".tif", np.float32), (-1, 9, ".tif", np.float32), (0, 0.5, ".tif", np.float32)],
)  # fmt: skip
def test_values_are_kept_whatever_they_are(tmp_path, low, high, suffix, kind):
    pixels = np.array([[low, high], [3, 4]], np.float64)
    written = unpacking._write(pixels, tmp_path / "a" / "x.png")
    assert written == tmp_path / "a" / f"x{suffix}"
    found = np.asarray(Image.open(written))
    assert np.array_equal(found, pixels)
    assert found.dtype == kind or found.dtype == np.int32  # as Pillow reads 16 bits


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_one_color_is_written_and_its_mask_beside_it(tmp_path, channel):
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "p").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "p" / "a.tif")
    Image.fromarray(pixels[..., 0]).save(folder / "p" / "a_mask.tif")
    prepare = unpack_channel(folder, out, channel)
    found = prepare(PictureFiles(folder / "p" / "a.tif", "glioma", folder / "p" / "a_mask.tif"))
    assert (found.path, found.mask, found.kind) == (out / "p/a.png", out / "p/a_mask.png", "glioma")
    assert np.array_equal(np.asarray(Image.open(found.path)), pixels[..., channel])
    assert np.array_equal(np.asarray(Image.open(found.mask)), pixels[..., 0])
    assert prepare(PictureFiles(folder / "p" / "a.tif", None)).mask is None
    with pytest.raises(ValueError, match=r"has shape \(5, 6\), expected three colors"):
        prepare(PictureFiles(folder / "p" / "a_mask.tif", None))
    Image.fromarray(np.dstack([pixels, pixels[..., :1]])).save(folder / "p" / "rgba.png")
    with pytest.raises(ValueError, match=r"has shape \(5, 6, 4\)"):
        prepare(PictureFiles(folder / "p" / "rgba.png", None))


def test_a_file_of_matlab_is_known_by_its_first_words(tmp_path):
    first = b"MATLAB 7.3 MAT-file"
    for name, content in {
        "a.mat": first + b", x",
        "b.MAT": first,
        "c.mat": b"MATLAB 5.0 MAT-file",
        "d.png": first,
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "e.mat").mkdir()
    assert [name for name in ("a.mat", "b.MAT") if is_matlab(tmp_path / name)] == ["a.mat", "b.MAT"]
    assert not any(is_matlab(tmp_path / name) for name in ("c.mat", "d.png", "e.mat", "f.mat"))


def slice_of(path, **changes):
    """A file of Cheng's, HDF5 behind the words of MATLAB."""
    h5py = pytest.importorskip("h5py")
    image = np.arange(30, dtype=np.int16).reshape(5, 6)
    content = {"image": image, "tumorMask": (image > 20).astype(np.uint8), "label": np.array([[2.0]])}
    content |= {"PID": np.array([[ord(letter)] for letter in " 12A "], np.uint16), **changes}
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in content.items():
            if value is not None:
                file[f"cjdata/{name}"] = value
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124))
    return path


def test_a_slice_of_matlab_says_kind_and_patient(tmp_path):
    assert unpacking._read_about(slice_of(tmp_path / "a.mat")) == unpacking._Slice(2, "12A")
    number = unpacking._read_about(slice_of(tmp_path / "b.mat", PID=np.array([[104637.0]])))
    assert number.patient == "104637"
    for label in (1.0, 3.0):
        assert unpacking._read_about(slice_of(tmp_path / "c.mat", label=np.array([[label]]))).label == label
    for changes, reason in (
        ({"label": np.array([[0.0]])}, "has the label 0, expected 1 to 3"),
        ({"label": np.array([[4.0]])}, "has the label 4, expected 1 to 3"),
        ({"PID": np.array([[32]], np.uint16)}, "has an empty patient number"),
        ({"label": None}, r"holds no cjdata\.label"),
    ):
        with pytest.raises(ValueError, match=reason):
            unpacking._read_about(slice_of(tmp_path / "d.mat", **changes))
    (tmp_path / "e.mat").write_bytes(b"MATLAB 7.3 MAT-file")
    with pytest.raises(ValueError, match=r"e\.mat is damaged"):
        unpacking._read_about(tmp_path / "e.mat")


def test_image_and_mask_of_matlab_are_written_by_kind(tmp_path):
    path = slice_of(tmp_path / "s1.mat")
    found = unpacking._unpack_slice(tmp_path, tmp_path / "out")(PictureFiles(path, "glioma", path))
    assert found.path == tmp_path / "out/glioma/s1.png"
    assert found.mask == tmp_path / "out/glioma/s1_mask.png"
    image = np.arange(30).reshape(5, 6).T
    assert np.array_equal(np.asarray(Image.open(found.path)), image)
    assert np.array_equal(np.asarray(Image.open(found.mask)), 255 * (image > 20))
    wrong = slice_of(tmp_path / "s2.mat", tumorMask=np.zeros((6, 5), np.uint8))
    with pytest.raises(ValueError, match=r"the image has shape \(6, 5\), the mask \(5, 6\)"):
        unpacking._unpack_slice(tmp_path, tmp_path / "out")(PictureFiles(wrong, "glioma", wrong))
