"""Pictures and drawn masks of every mode: upright, gray, and the tumor that was meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw

from scripts.checks.verification import Verifier
from scripts.data import datalists
from tests.transforms.images import disc, head
from transforms.limits import ReadLimits
from transforms.loading import LoadCased
from transforms.masks import binary_mask, check_tumor, read_mask_picture
from transforms.pictures import read_picture

RAMP = (np.arange(12 * 16).reshape(12, 16) % 256).astype(np.uint8)  # 12 rows, 16 columns
TUMOR = np.zeros((40, 60), bool)  # rows, columns
TUMOR[8:20, 30:50] = True


def label(path: Path) -> np.ndarray:
    """The mask as loading reads it, rows and columns, on an image of its size."""
    size = Image.open(path).size
    scan = path.with_name("scan.png")
    Image.new("L", size, 7).save(scan)
    return LoadCased()({"image": str(scan), "label": str(path)})["label"][0].numpy().T > 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_exif_turns_image_and_mask_upright(tmp_path, orientation, suffix):
    upright = Image.fromarray(np.kron(TUMOR, np.ones((8, 8))).astype(np.uint8) * 255)
    step = Image.Transpose
    turn = {  # what the camera stores: the inverse of the turn that the number asks for
        2: step.FLIP_LEFT_RIGHT, 3: step.ROTATE_180, 4: step.FLIP_TOP_BOTTOM, 5: step.TRANSPOSE, 6: step.ROTATE_90,
        7: step.TRANSVERSE, 8: step.ROTATE_270,
    }.get(orientation)  # fmt: skip
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"m{suffix}"
    stored.save(path, exif=exif.tobytes())
    expected = np.asarray(upright).T
    assert np.abs(read_picture(path) - expected).max() <= (40 if suffix == ".jpg" else 0)
    assert np.array_equal(binary_mask(read_mask_picture(path), path, picture=True) > 0, expected > 0)


def test_a_folder_of_turned_pictures_and_upright_masks_fits(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for k, kind in enumerate(["no_tumor"] * 6 + ["tumor"] * 6):
        folder = tmp_path / "images" / kind
        folder.mkdir(parents=True, exist_ok=True)
        scan = np.clip(head((96, 120), 40, k)[0], 0, 255).astype(np.uint8)
        scan[disc(scan.shape, 5 + k, (40 + 3 * k, 60))] = 240 - 9 * k
        Image.fromarray(scan.T).transpose(Image.Transpose.ROTATE_90).save(folder / f"{k}.png", exif=exif.tobytes())
        if kind == "tumor":
            (tmp_path / "masks").mkdir(exist_ok=True)
            Image.fromarray((disc(scan.shape, 9) * 255).astype(np.uint8).T).save(tmp_path / "masks" / f"{k}.png")
    datalist, report = datalists.image_folder(tmp_path, progress=False)
    assert report.unusable == []
    item = next(item for split in datalists.SPLITS for item in datalist[split] if "label" in item)
    loaded = LoadCased()({key: str(tmp_path / item[key]) for key in ("image", "label")})
    assert loaded["image"].shape == loaded["label"].shape == (1, 96, 120)


def test_cmyk_and_deep_pictures_keep_their_grays(tmp_path):
    gray = Image.fromarray(RAMP)
    gray.convert("RGB").convert("CMYK").save(tmp_path / "c.jpg", quality=100)
    assert np.abs(read_picture(tmp_path / "c.jpg") - RAMP.T).max() <= 3
    gray.convert("RGB").convert("CMYK").save(tmp_path / "c.tif")
    assert np.abs(read_picture(tmp_path / "c.tif") - RAMP.T).max() <= 1
    gray.convert("RGB").convert("YCbCr").save(tmp_path / "y.jpg", quality=100)
    assert np.abs(read_picture(tmp_path / "y.jpg") - RAMP.T).max() <= 3
    deep = RAMP.astype(np.uint16) * 250 + 17
    Image.fromarray(deep).save(tmp_path / "d.png")
    assert np.array_equal(read_picture(tmp_path / "d.png"), deep.T)
    for k, stored in enumerate((deep, deep.astype(">u2"), RAMP.astype(np.int32) - 90, RAMP.astype(np.float32) / 7)):
        tifffile.imwrite(tmp_path / f"{k}.tif", stored)
        assert np.array_equal(read_picture(tmp_path / f"{k}.tif"), stored.T.astype(np.float32)), k
    tifffile.imwrite(tmp_path / "white.tif", RAMP, photometric="miniswhite")
    assert np.array_equal(read_picture(tmp_path / "white.tif"), 255 - RAMP.T)


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.png", "a.webp", "a.mpo"])
def test_several_frames_are_refused_whatever_the_format(tmp_path, name):
    frames = [Image.fromarray(RAMP), Image.fromarray(RAMP[::-1].copy())]
    frames[0].convert("RGB").save(tmp_path / name, save_all=True, append_images=[f.convert("RGB") for f in frames[1:]])
    with pytest.raises(
        ValueError, match=f"{name} cannot be read as a picture: it holds 2 frames, expected one; save the"
    ):
        read_picture(tmp_path / name)
    with pytest.raises(ValueError, match=r"it holds 2 frames"):
        read_mask_picture(tmp_path / name)


def test_one_frame_of_an_animation_format_is_a_picture(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.gif")
    Image.fromarray(RAMP).convert("RGB").save(tmp_path / "a.mpo", format="MPO", quality=100)
    assert np.array_equal(read_picture(tmp_path / "a.gif"), RAMP.T)
    assert np.abs(read_picture(tmp_path / "a.mpo") - RAMP.T).max() <= 3


def test_a_picture_beyond_the_limit_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("L", (400, 300)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"a.png holds 400 x 300 pixels, at most 100,000 and .*; make it small"):
        read_picture(tmp_path / "a.png", ReadLimits(pixels=100_000))


# Masks: each of these means the same tumor


def palette(colors: list[tuple[int, int, int]], indices: np.ndarray) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8), mode="P")
    image.putpalette([value for color in colors for value in color])
    return image


def layer(background: tuple[int, ...], paint: tuple[int, ...]) -> Image.Image:
    values = np.empty((*TUMOR.shape, 4), np.uint8)
    values[:], values[TUMOR] = background, paint
    return Image.fromarray(values, "RGBA")


def colored(**areas: tuple[int, int, int]) -> Image.Image:
    values = np.zeros((*TUMOR.shape, 3), np.uint8)
    values[TUMOR] = areas["tumor"]
    if "core" in areas:
        values[10:16, 34:44] = areas["core"]
    return Image.fromarray(values)


def smooth() -> Image.Image:
    """Drawn at eight times the size and made smaller: soft edges."""
    large = Image.fromarray(np.kron(TUMOR, np.ones((8, 8))).astype(np.uint8) * 255)
    ImageDraw.Draw(large).rectangle((0, 0, 7, 7), fill=0)
    return large.resize((60, 40), Image.Resampling.BOX)


MASKS = {
    "white": Image.fromarray(TUMOR.astype(np.uint8) * 255),
    "bits": Image.fromarray(TUMOR),
    "labels 0 1 2": Image.fromarray((TUMOR * (1 + (np.arange(60) > 40))).astype(np.uint8)),
    "16 bits": Image.fromarray(TUMOR.astype(np.uint16) * 65535),
    "palette of labels": palette([(0, 0, 0), (128, 0, 0), (0, 128, 0)], TUMOR * (1 + (np.arange(60) > 40))),
    "palette, background last": palette([(255, 255, 255), (0, 0, 0)], ~TUMOR),
    "gray palette": palette([(0, 0, 0), (255, 255, 255)], TUMOR),
    "red": colored(tumor=(255, 0, 0)),
    "one-hot": colored(tumor=(0, 255, 0), core=(0, 0, 255)),
    "yellow with a blue core": colored(tumor=(255, 255, 0), core=(0, 0, 255)),
    "soft edges": smooth(),
    "white on transparent": layer((0, 0, 0, 0), (255, 255, 255, 255)),
    "black on transparent": layer((0, 0, 0, 0), (0, 0, 0, 255)),
    "black on transparent white": layer((255, 255, 255, 0), (0, 0, 0, 255)),
    "red on transparent": layer((0, 0, 0, 0), (255, 0, 0, 255)),
    "white on opaque black": layer((0, 0, 0, 255), (255, 255, 255, 255)),
}


@pytest.mark.parametrize("name", MASKS)
def test_every_way_to_draw_a_mask_gives_the_same_tumor(tmp_path, name):
    MASKS[name].save(tmp_path / "m.png")
    assert np.array_equal(label(tmp_path / "m.png"), TUMOR)


def test_gray_with_alpha_and_a_transparent_palette_color(tmp_path):
    gray = Image.merge("LA", [Image.new("L", (60, 40), 0), Image.fromarray(TUMOR.astype(np.uint8) * 255)])
    gray.save(tmp_path / "la.png")
    assert np.array_equal(label(tmp_path / "la.png"), TUMOR)
    palette([(0, 0, 0), (255, 0, 0)], TUMOR).save(tmp_path / "p.png", transparency=0)
    assert np.array_equal(label(tmp_path / "p.png"), TUMOR)


def test_soft_edges_are_cut_in_the_middle_and_the_area_is_kept(tmp_path):
    y, x = np.mgrid[:512, :512]
    fine = np.hypot(y - 250, x - 270) < 131
    small = Image.fromarray(fine.astype(np.uint8) * 255).resize((64, 64), Image.Resampling.BOX)
    small.save(tmp_path / "m.png")
    assert label(tmp_path / "m.png").sum() == pytest.approx(fine.mean() * 64 * 64, rel=0.01)


@pytest.mark.parametrize(
    ("drawn", "reason"),
    [
        (Image.fromarray((~TUMOR).astype(np.uint8) * 255), "marks 90% of the image as tumor and 100% of its rim: inv"),
        (Image.new("L", (60, 40), 255), "marks 100% of the image as tumor and 100% of its rim"),
        (Image.new("1", (60, 40), 1), "marks 100% of the image"),
        (palette([(255, 255, 255), (255, 0, 0)], TUMOR), "marks 100% of the image"),
        (layer((255, 255, 255, 255), (0, 0, 0, 255)), "marks 90% of the image"),
        (Image.fromarray(np.where(TUMOR, 85, 0).astype(np.uint8)), "has a brightest value of 85"),
        (colored(tumor=(100, 0, 0), core=(255, 0, 0)), "holds areas of gray or color 100 beside 255, .*; save it"),
        (colored(tumor=(85, 85, 85), core=(255, 255, 255)), "holds areas of gray or color 85 beside 255"),
        (palette([(0, 0, 0), (0, 0, 90), (200, 0, 0)], TUMOR * (1 + (np.arange(60) > 40))), "holds areas of gray"),
    ],
)  # fmt: skip
def test_masks_that_cannot_be_meant_are_errors_of_the_datalist(tmp_path, drawn, reason):
    drawn.save(tmp_path / "m.png")
    with pytest.raises(ValueError, match=rf"mask .*m.png {reason}"):
        label(tmp_path / "m.png")
    Image.fromarray(np.clip(head((60, 40), 15)[0], 0, 255).astype(np.uint8).T).save(tmp_path / "scan.png")
    result = Verifier(tmp_path, 32)({"image": "scan.png", "label": "m.png", "diagnosis": 1}, "test")
    assert "m.png" in result.broken["readable"]


def test_inverted_volumes_and_one_hot_volumes_with_a_background_are_refused():
    tumor = disc((30, 30, 12), 6).astype(np.uint8)
    check_tumor(tumor, "m.nii")
    for bad in (1 - tumor, np.ones_like(tumor)):
        with pytest.raises(ValueError, match=r"mask m.nii marks \d+% of the image as tumor and \d+% of its rim"):
            check_tumor(bad, "m.nii")
    check_tumor(disc((30, 30), 14), "large.png")  # three quarters of the picture, but not its rim


def test_a_foreground_may_cover_the_whole_picture(tmp_path):
    Image.new("L", (60, 40), 255).save(tmp_path / "f.png")
    Image.fromarray(TUMOR.astype(np.uint8) * 200).save(tmp_path / "scan.png")
    loaded = LoadCased()({"image": str(tmp_path / "scan.png"), "foreground": str(tmp_path / "f.png")})
    assert bool(loaded["foreground"].all())
