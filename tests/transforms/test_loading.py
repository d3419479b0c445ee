from __future__ import annotations

import gzip
import re
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Orientationd
from PIL import Image

from tests.transforms.images import nrrd
from transforms.loading import LoadCased
from transforms.masks import binary_mask, read_mask_picture
from transforms.pictures import read_picture
from transforms.reading import file_kind, read_volume, volumes

GRAY = np.array([[0, 50, 100], [150, 200, 255]], np.uint8)  # 2 rows (y), 3 columns (x)


def save(image, path, **kwargs):
    image.save(path, **kwargs)
    return path


def nifti(array, path, affine=None):
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1, 1, 1]) if affine is None else affine), path)
    return str(path)


def picture(mode):
    image = Image.fromarray(GRAY)
    if mode == "1":
        return Image.fromarray(GRAY > 127)
    if mode == "I;16":
        return Image.fromarray(GRAY.astype(np.uint16) * 200)
    if mode == "P":
        return image.convert("RGB").quantize(16)
    if mode == "RGBA":  # half transparent everywhere: composited on black, half as bright
        rgba = image.convert("RGBA")
        rgba.putalpha(128)
        return rgba
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("L", GRAY),
        ("RGB", GRAY),
        ("P", GRAY),
        ("LA", GRAY),
        ("RGBA", np.round(GRAY * (128 / 255))),
        ("1", GRAY > 127),
        ("I;16", GRAY.astype(np.int64) * 200),
    ],
)
def test_every_mode_becomes_one_gray_channel(tmp_path, mode, expected):
    pixels = read_picture(save(picture(mode), tmp_path / "a.png"))
    assert pixels.dtype == np.float32
    assert pixels.shape == (3, 2)  # x along the width
    assert np.abs(pixels - np.asarray(expected, np.float32).T).max() <= (1 if mode == "RGBA" else 0)


def test_color_becomes_luminance_for_images_and_the_brightest_channel_for_masks(tmp_path):
    red = Image.new("RGB", (3, 2))
    red.putpixel((1, 0), (255, 0, 0))
    path = save(red, tmp_path / "red.png")
    assert read_picture(path)[1, 0] == 76  # 0.299 * 255
    assert read_mask_picture(path)[1, 0] == 255
    item = LoadCased()({"image": save(Image.fromarray(GRAY), tmp_path / "i.png"), "label": path})
    assert item["label"].nonzero().tolist() == [[0, 1, 0]]


def test_content_and_not_the_name_decides(tmp_path):
    path = tmp_path / "a.jpg"
    save(picture("L"), path, format="PNG")
    assert file_kind(path) == "picture"
    assert torch.equal(LoadCased()({"image": str(path)})["image"][0], torch.from_numpy(GRAY.T.astype(np.float32)))
    volume = nifti(np.arange(24, dtype=np.float32).reshape(2, 3, 4), tmp_path / "v.nii.gz")
    renamed = tmp_path / "v.png"
    renamed.write_bytes(gzip.decompress((tmp_path / "v.nii.gz").read_bytes()))
    loaded = [LoadCased()({"image": p, "slice": 1})["image"] for p in (volume, str(renamed))]
    assert torch.equal(loaded[0], loaded[1])


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jp2", "a.j2k", "a.tif"])
def test_lossless_pictures_of_every_format_give_their_values(tmp_path, name):
    pixels = np.arange(48 * 40, dtype=np.uint8).reshape(48, 40)
    Image.fromarray(pixels).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    assert np.array_equal(read_picture(tmp_path / name), pixels.T)
    (tmp_path / name).rename(tmp_path / "other.dat")
    assert np.array_equal(LoadCased()({"image": str(tmp_path / "other.dat")})["image"][0].numpy(), pixels.T)


@pytest.mark.parametrize("name", ["v.mgz", "v.mgh", "v.nii.gz"])
def test_volumes_of_freesurfer_are_read_with_their_place(tmp_path, name):
    voxels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    affine = np.array([[-1.0, 0, 0, 9], [0, 0, 2, -7], [0, -1.5, 0, 3], [0, 0, 0, 1]])
    kind = nib.Nifti1Image if name == "v.nii.gz" else nib.MGHImage
    nib.save(kind(voxels, affine), tmp_path / name)
    array, own = read_volume(tmp_path / name, file_kind(tmp_path / name))
    assert np.array_equal(array, voxels)
    assert np.allclose(own, affine, atol=1e-5)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "LAS", "PIR"])
def test_slices_of_any_orientation_show_the_same_picture(tmp_path, codes):
    array = np.random.default_rng(0).normal(size=(5, 6, 4)).astype(np.float32)  # as it is in LPS
    affine = np.diag([-2.0, -3, 4, 1])
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("LPS"), nib.orientations.axcodes2ornt(codes))
    stored = nib.orientations.apply_orientation(array, turn)
    path = nifti(stored, tmp_path / "v.nii.gz", affine @ nib.orientations.inv_ornt_aff(turn, array.shape))
    image = LoadCased()({"image": path, "slice": 2})["image"]
    assert np.array_equal(image[0].numpy(), array[:, :, 2])
    assert np.allclose(image.affine.numpy() @ [1, 2, 0, 1], affine @ [1, 2, 2, 1])  # the plane's place in the patient
    assert image.meta["slice"] == 2


def test_a_volume_is_read_once_for_many_slices(tmp_path, monkeypatch):
    path = nifti(np.zeros((4, 4, 5), np.float32), tmp_path / "v.nii.gz")
    reads = []
    import transforms.reading as reading

    original = reading.read_volume
    monkeypatch.setattr(reading, "read_volume", lambda *a: reads.append(a) or original(*a))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda k: LoadCased()({"image": path, "slice": k % 5}), range(20)))
    assert len(reads) == 1
    assert len(volumes._volumes) <= volumes.size


def test_several_files_and_a_4d_file_become_channels(tmp_path):
    a, b = np.full((4, 4, 3), 1.0, np.float32), np.full((4, 4, 3), 2.0, np.float32)
    paths = [nifti(a, tmp_path / "a.nii.gz"), nifti(b, tmp_path / "b.nii")]
    both = nifti(np.stack([a, b], -1), tmp_path / "ab.nii.gz")
    for value in (paths, both):
        image = LoadCased()({"image": value, "slice": 0})["image"]
        assert image.shape == (2, 4, 4)
        assert image.amax((1, 2)).tolist() == [1, 2]
    small = nifti(a[:3], tmp_path / "small.nii")
    with pytest.raises(ValueError, match=r"a.nii.gz has \(4, 4\), .*small.nii has \(3, 4\)"):
        LoadCased()({"image": [paths[0], small], "slice": 0})


def test_masks_become_zero_and_one():
    drawn = np.array([[0, 127, 128, 255]], np.float32)
    assert binary_mask(drawn, "m.png", picture=True).tolist() == [[0, 0, 1, 1]]
    assert binary_mask(drawn * 257, "m.png", picture=True).tolist() == [[0, 0, 1, 1]]
    assert binary_mask(np.array([[0, 1]]), "m.png", picture=True).tolist() == [[0, 1]]
    labels = np.array([0, 1e-9, 0.99999997, 1, 2, 4])
    assert binary_mask(labels, "m.nii", picture=False).tolist() == [0, 0, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="brightest value of 60"):
        binary_mask(np.array([[0, 60]]), "m.png", picture=True)


def test_sizes_must_agree_and_both_are_named(tmp_path):
    image = save(Image.new("L", (30, 20)), tmp_path / "scan.png")
    mask = save(Image.new("1", (20, 30)), tmp_path / "mask.png")
    with pytest.raises(
        ValueError, match=r"label .*mask.png has size \(20, 30\), but the image .*scan.png has \(30, 20\)"
    ):
        LoadCased()({"image": image, "label": mask})


def test_volumes_keep_their_orientation_in_3d_and_masks_may_have_another(tmp_path):
    array = np.zeros((4, 5, 6), np.float32)
    image = nifti(array, tmp_path / "v.nii")
    label = nifti(
        np.zeros((5, 4, 6), np.uint8),
        tmp_path / "l.nii",
        np.array([[0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    )
    item = LoadCased(spatial_dims=3)({"image": image, "label": label})
    assert item["image"].shape == (1, 4, 5, 6)
    assert item["label"].shape == (1, 5, 4, 6)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: {"image": str(p / "gone.png")}, "gone.png does not exist"),
        (lambda p: {"image": str(p / "empty.png")}, "empty.png is empty"),
        (lambda p: {"image": str(p / "cut.png")}, "cut.png cannot be read as a picture"),
        (lambda p: {"image": str(p / "cut.nii.gz"), "slice": 0}, "cut.nii.gz is cut short: the header promises"),
        (lambda p: {"image": str(p / "text.png")}, "text.png cannot be read as an image"),
        (lambda p: {"image": str(p / "v.nii")}, "volume of 3 slices and this is a 2D pipeline; give 'slice'"),
        (lambda p: {"image": str(p / "v.nii"), "slice": 3}, "slices 0 to 2, not 3"),
        (lambda p: {"image": str(p / "a.png"), "slice": 3}, "has no slice 3"),
        (lambda p: {"image": str(p / "nan.nii"), "slice": 0}, "2 values are not finite"),
        (lambda p: {"picture": 1}, "no 'image'; keys: \\['picture'\\]"),
    ],
)
def test_each_fault_is_one_clear_sentence(tmp_path, make, reason):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    save(noise, tmp_path / "a.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
    (tmp_path / "text.png").write_text("no picture at all")
    nifti(np.zeros((4, 4, 3), np.float32), tmp_path / "v.nii")
    nifti(np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32), tmp_path / "w.nii.gz")
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "w.nii.gz").read_bytes()[:1500])
    bad = np.zeros((4, 4, 1), np.float32)
    bad[0, :2] = np.nan
    nifti(bad, tmp_path / "nan.nii")
    with pytest.raises(ValueError, match=reason) as caught:
        LoadCased()(make(tmp_path))
    assert "\n" not in str(caught.value)
    assert re.search(r"; (give|copy|save|replace|look|correct|drop|keys)", str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    ("plane", "index", "pixel", "voxel"),
    [
        ("axial", 4, (1, 2), (1, 2, 4)),
        ("coronal", 2, (1, 1), (1, 2, 5)),  # rows count down from superior: 6 - 1
        ("sagittal", 1, (2, 1), (1, 2, 5)),
    ],
)
def test_planes_of_a_volume_and_their_place_in_the_patient(tmp_path, plane, index, pixel, voxel):
    array = np.random.default_rng(0).normal(size=(4, 5, 7)).astype(np.float32)  # as it is in LPS
    affine = np.diag([-2.0, -3, 4, 1])
    path = nifti(array, tmp_path / "v.nii", affine)
    image = LoadCased()({"image": path, "slice": index, "plane": plane})["image"]
    assert float(image[0][pixel]) == array[voxel]
    assert np.allclose(image.affine.numpy() @ [*pixel, 0, 1], affine @ [*voxel, 1])
    assert image.meta["plane"] == plane
    with pytest.raises(ValueError, match=f"has {plane} slices 0 to .*, not 9"):
        LoadCased()({"image": path, "slice": 9, "plane": plane})


def test_an_unknown_plane_is_named(tmp_path):
    path = nifti(np.zeros((4, 4, 3), np.float32), tmp_path / "v.nii")
    with pytest.raises(ValueError, match=r"v.nii, slice 1: unknown plane 'frontal'; expected one of axial"):
        LoadCased()({"image": path, "slice": 1, "plane": "frontal"})


def test_several_frames_are_not_one_picture(tmp_path):
    picture("L").save(tmp_path / "f.tif", save_all=True, append_images=[picture("L"), picture("L")])
    with pytest.raises(ValueError, match=r"f.tif cannot be read as a picture: it holds 3 frames"):
        read_picture(tmp_path / "f.tif")


def test_a_singular_affine_is_refused(tmp_path):
    path = tmp_path / "v.nii"
    nifti(np.zeros((4, 4, 3), np.float32), path)
    content = bytearray(path.read_bytes())
    content[252:256] = (0).to_bytes(2, "little") + (1).to_bytes(2, "little")  # qform_code 0, sform_code 1
    content[280:328] = bytes(48)
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"v.nii has no usable affine: its voxels have no size or direction"):
        read_volume(path, "nifti")


def test_a_damaged_gzip_is_one_sentence(tmp_path):
    (tmp_path / "v.nii.gz").write_bytes(b"\x1f\x8b" + bytes(range(100)))
    with pytest.raises(ValueError, match=r"v.nii.gz is damaged"):
        file_kind(tmp_path / "v.nii.gz")


def test_a_folder_without_a_series_says_so(tmp_path):
    with pytest.raises(
        ValueError, match="holds 0 DICOM series, expected one; give its UID, or each a folder of its own"
    ):
        LoadCased()({"image": str(tmp_path), "slice": 0})


LPS = np.diag([-1.0, -1, 3, 1])


def moved(by_mm: float, axis: int = 0) -> np.ndarray:
    affine = LPS.copy()
    affine[axis, 3] += by_mm
    return affine


@pytest.mark.parametrize("key", ["label", "foreground"])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_mask_of_the_same_size_elsewhere_is_refused(tmp_path, key, dims):
    image = nifti(np.ones((6, 6, 4), np.float32), tmp_path / "image.nii", LPS)
    about = {"slice": 2} if dims == 2 else {}
    spot = np.zeros((6, 6, 4), np.uint8)
    spot[2:4, 2:4, 2] = 1
    load = LoadCased(spatial_dims=dims)
    for axis in range(3):
        mask = nifti(spot, tmp_path / f"moved{axis}.nii", moved(40, axis))
        with pytest.raises(
            ValueError,
            match=rf"{key} .*moved{axis}.nii and image .*image.nii have the same size, but are not on the same grid: "
            r"their corners lie up to 40 mm apart, at most 0.1 mm .*; resample",
        ):
            load({"image": image, key: mask, **about})
    thick = nifti(spot, tmp_path / "thick.nii", LPS @ np.diag([1, 1.5, 1, 1]))
    with pytest.raises(ValueError, match=r"their corners lie up to 2\.5 mm apart"):
        load({"image": image, key: thick, **about})
    near = nifti(spot, tmp_path / "near.nii", moved(0.09))  # headers are rounded
    assert load({"image": image, key: near, **about})[key].sum() > 0


@pytest.mark.parametrize("dims", [2, 3])
def test_a_mask_of_another_orientation_on_the_same_grid_is_taken(tmp_path, dims):
    array = np.zeros((5, 6, 4), np.uint8)
    array[1, 2, 3] = 1
    image = nifti(np.ones((5, 6, 4), np.float32), tmp_path / "image.nii", moved(7))
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("LPS"), nib.orientations.axcodes2ornt("RAS"))
    label = nifti(
        nib.orientations.apply_orientation(array, turn),
        tmp_path / "label.nii",
        moved(7) @ nib.orientations.inv_ornt_aff(turn, array.shape),
    )
    loaded = LoadCased(spatial_dims=dims)({"image": image, "label": label, **({"slice": 3} if dims == 2 else {})})
    if dims == 2:
        assert np.argwhere(loaded["label"][0].numpy()).tolist() == [[1, 2]]
    place = loaded["label"].affine.numpy() @ [*np.argwhere(loaded["label"][0].numpy())[0], *[0] * (3 - dims), 1]
    assert np.allclose(place, moved(7) @ [1, 2, 3, 1])


@pytest.mark.parametrize("about", [{"slice": 2}, {"slice": 3, "plane": "coronal"}, {}], ids=["axial", "coronal", "3D"])
@pytest.mark.parametrize("key", ["label", "foreground"])
def test_a_mask_of_nrrd_that_is_cropped_to_what_it_marks_is_the_whole_mask(tmp_path, key, about):
    """As 3D Slicer writes them, and MONAI Label of what lies in an archive; others of another size are refused."""
    turn = nib.affines.from_matvec(np.linalg.qr(np.array([[9, 1, 2], [1, -9, 1], [2, 0, 9.0]]))[0] * [1, 1.5, 3])
    image = nifti(np.ones((6, 7, 5), np.float32), tmp_path / "image.nii", turn)
    whole = np.zeros((6, 7, 5), np.uint8)
    whole[2:5, 1:4, 1:3] = 1
    whole[3, 3, 2] = 0
    start = turn.copy()
    start[:3, 3] = turn[:3] @ [2, 1, 1, 1]
    load = LoadCased(spatial_dims=2 if about else 3)

    def loaded(path):
        item = load({"image": image, key: path, **about})
        if not about:
            item = Orientationd(["image", key], axcodes="LPS", labels=None)(item)
        assert item["image"].shape == item[key].shape
        return item[key].numpy()

    expected = loaded(nrrd(whole, turn, tmp_path / "whole.nrrd"))
    assert expected.any()
    assert np.array_equal(loaded(nrrd(whole[2:5, 1:4, 1:3], start, tmp_path / "part.nrrd")), expected)
    between = start.copy()
    between[:3, 3] += turn[:3, 0] / 2
    outside = start.copy()
    outside[:3, 3] += turn[:3, 0] * 3
    for affine in (between, outside):
        with pytest.raises(ValueError, match=r"both must be the same; give the mask|slices 0 to .*; correct 'slice'"):
            loaded(nrrd(whole[2:5, 1:4, 1:3], affine, tmp_path / "elsewhere.nrrd"))
    with pytest.raises(ValueError, match=r"both must be the same; give the mask|slices 0 to .*; correct 'slice'"):
        loaded(nifti(whole[2:5, 1:4, 1:3], tmp_path / "part.nii", start))


def test_a_drawn_mask_of_a_slice_has_no_place_and_is_taken_by_its_size(tmp_path):
    image = nifti(np.ones((6, 5, 4), np.float32), tmp_path / "image.nii", moved(40))
    drawn = Image.new("L", (6, 5))
    drawn.paste(255, (1, 1, 4, 3))
    mask = save(drawn, tmp_path / "mask.png")
    assert LoadCased()({"image": image, "label": str(mask), "slice": 1})["label"].sum() == 6


def test_channels_on_two_grids_are_refused(tmp_path):
    paths = [
        nifti(np.ones((6, 6, 4), np.float32), tmp_path / f"{k}.nii", moved(by)) for k, by in enumerate((0, 0.001, 40))
    ]
    assert LoadCased()({"image": paths[:2], "slice": 0})["image"].shape == (2, 6, 6)
    with pytest.raises(ValueError, match=r"channels .*2.nii and .*0.nii are not on the same grid: .* 40 mm apart"):
        LoadCased()({"image": paths, "slice": 0})


def test_of_an_array_more_than_one_half_is_mask_in_any_channel():
    label = np.array([[[0, 0.5, 0.51, 0]], [[0, 0, 0, 1]]], np.float32)
    image = np.arange(4, dtype=np.float32).reshape(1, 1, 4)
    assert LoadCased()({"image": image, "label": label})["label"].tolist() == [[[0, 0, 1, 1]]]
