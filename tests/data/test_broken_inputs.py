"""Twenty kinds of broken or odd input: each is named with its reason, the rest is processed, and the counts agree."""

from __future__ import annotations

import builtins
import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scripts.checks.verify_data import summarize, verify
from scripts.data import datalists
from scripts.phantoms.dataset import phantom_slice
from tests.transforms.images import disc, head

LOCKED = "locked.png"


@pytest.fixture
def without_permission(monkeypatch):
    """Opening LOCKED fails, for the superuser as well."""
    if os.geteuid() != 0:
        return
    original = builtins.open

    def guarded(file, mode="r", *args, **kwargs):
        if mode.startswith("r") and isinstance(file, (str, Path)) and Path(file).name == LOCKED:
            raise PermissionError(13, "Permission denied", str(file))
        return original(file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", guarded)


def picture(index: int) -> Image.Image:
    image, _ = phantom_slice([79, index], False, (96, 96), level_mm=-20 + 17 * (index % 5))
    return Image.fromarray(np.rint(image.T * 255).astype(np.uint8))


def pictures(folder: Path) -> tuple[set[str], dict[str, str], set[str]]:
    """Fill an image folder; returns good files, reasons of refused ones, and odd ones that are used and noted."""
    images, masks = folder / "images", folder / "masks"
    for kind in ("no_tumor", "tumor"):
        (images / kind).mkdir(parents=True)
    masks.mkdir()
    good = set()
    for k in range(12):
        name = f"{'no_tumor' if k < 6 else 'tumor'}/good{k:02d}.png"
        picture(k).save(images / name)
        good.add(f"images/{name}")
    tumor = images / "tumor"
    whole = (images / "no_tumor" / "good00.png").read_bytes()
    (tumor / "zero_byte.png").touch()
    (tumor / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tumor / "text.jpg").write_text("no picture")
    nib.save(nib.Nifti1Image(np.ones((40, 40, 4), np.float32), np.eye(4)), folder / "v.nii")
    (folder / "v.nii").rename(tumor / "volume.png")
    noise = np.random.default_rng(0).uniform(0, 1, (64, 64)).astype(np.float32)
    noise[3, 5] = np.nan
    Image.fromarray(noise).save(tumor / "nan.tif")
    Image.new("L", (64, 64), 9).save(tumor / "constant.png")
    Image.new("L", (1, 1), 9).save(tumor / "one_pixel.png")
    picture(20).save(tumor / "frames.gif", save_all=True, append_images=[picture(21)])
    mask = Image.new("L", (96, 96))
    mask.paste(255, (40, 40, 50, 50))
    mask.save(masks / "without_image.png")
    picture(22).save(images / "without_class.png")
    (tumor / "loop.png").symlink_to(tumor / "loop.png")
    picture(23).save(tumor / LOCKED)
    (tumor / LOCKED).chmod(0)
    (tumor / "notes.docx").write_text("x")
    reasons = {
        "images/tumor/zero_byte.png": "is empty",
        "images/tumor/truncated.png": "cannot be read as a picture",
        "images/tumor/text.jpg": "cannot be read as a picture: its content is none",
        "images/tumor/volume.png": "a volume by its content (nifti); build the list with nifti_cases",
        "images/tumor/nan.tif": "1 pixels are not finite",
        "images/tumor/constant.png": "every pixel is 9",
        "images/tumor/one_pixel.png": "1 x 1 pixels, at least 32",
        "images/tumor/frames.gif": "it holds 2 frames",
        "masks/without_image.png": "no image has the stem 'without_image'",
        "images/without_class.png": "not in a class folder",
        "images/tumor/loop.png": "a symbolic link that leads nowhere",
        f"images/tumor/{LOCKED}": "cannot be opened: Permission denied",
        "images/tumor/notes.docx": "not one of .png",
    }
    gray = picture(30)
    Image.fromarray(np.asarray(gray).astype(np.uint16) * 257).save(tumor / "deep.png")
    picture(31).convert("RGBA").save(tumor / "rgba.png")
    picture(32).convert("RGB").convert("CMYK").save(tumor / "cmyk.jpg")
    picture(33).convert("RGB").quantize(64).save(tumor / "palette.png")
    picture(34).save(tumor / "gliome épendymaire 膠.png")
    picture(35).save(tumor / "really_png.jpg", format="PNG")
    odd = {"deep.png", "rgba.png", "cmyk.jpg", "palette.png", "gliome épendymaire 膠.png", "really_png.jpg"}
    return good, reasons, {f"images/tumor/{name}" for name in odd}


def all_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def test_broken_pictures_are_named_and_the_rest_is_used(tmp_path, without_permission):
    good, reasons, odd = pictures(tmp_path)
    datalist, report = datalists.image_folder(tmp_path, progress=False)
    refused = dict(report.unusable)
    assert set(refused) == set(reasons)
    for name, part in reasons.items():
        assert part in refused[name], (name, refused[name])
    assert {item["image"] for split in datalists.SPLITS for item in datalist[split]} == good | odd
    noted = dict(report.notes)
    assert odd <= set(noted)
    assert noted["images/tumor/cmyk.jpg"] == "mode CMYK, read as one gray channel"
    assert noted["images/tumor/really_png.jpg"] == "a PNG file by its content, whatever its name says"
    assert "letters beyond ASCII" in noted["images/tumor/gliome épendymaire 膠.png"]
    figures = report.figures
    assert figures["found"] == all_files(tmp_path) == 12 + 6 + 13
    assert figures["used"] + figures["refused"] == figures["found"]
    assert (figures["used"], figures["refused"]) == (18, 13)


def volumes(folder: Path) -> dict[str, str]:
    """Cases as volumes; returns the reasons of those that cannot be used."""
    shape = (48, 48, 16)
    affine = np.diag([-1.0, -1, 3, 1])
    ball = disc(shape, 5, (20, 24, 7)).astype(np.float32)

    def save(case: str, scan: np.ndarray, seg: np.ndarray | None = ball, other=affine) -> None:
        (folder / case).mkdir(parents=True)
        nib.save(nib.Nifti1Image(scan.astype(np.float32), affine), folder / case / "flair.nii.gz")
        if seg is not None:
            nib.save(nib.Nifti1Image(seg.astype(np.float32), other), folder / case / "seg.nii.gz")

    for k in range(3):
        save(f"good{k}", head(shape, 20, k)[0])
    scan = head(shape, 20, 50)[0]
    bad = scan.copy()
    bad[20, 20, 7] = np.inf
    save("notfinite", bad)
    save("constant", np.full(shape, 3.0))
    save("onepixel", np.ones((1, 1, 1)), np.ones((1, 1, 1)))
    save("four", np.stack([scan, scan + 1], axis=-1))
    save("noaffine", scan + 1)
    _zero_affine(folder / "noaffine" / "flair.nii.gz")
    save("turned", scan + 2, other=np.diag([1.0, -1, 3, 1]))
    save("nomask", scan + 3, seg=None)
    save("labels", scan + 4, seg=ball * 7)
    save("emptyfile", scan + 5)
    (folder / "emptyfile" / "flair.nii.gz").write_bytes(b"")
    save("torn", scan + 6)
    content = (folder / "torn" / "flair.nii.gz").read_bytes()
    (folder / "torn" / "flair.nii.gz").write_bytes(content[: len(content) // 2])
    save("unicode név 1", scan + 7)
    return {
        "notfinite": "holds 1 values that are not finite",
        "constant": "is constant: every voxel is 3",
        "onepixel": "flair.nii.gz is constant: every voxel is 1",
        "four": "has 4 dimensions (48, 48, 16, 2), expected 3",
        "noaffine": "has no usable affine",
        "turned": "are not on the same grid",
        "nomask": "expected one mask (seg) file, found 0",
        "labels": "holds the labels 7",
        "emptyfile": "is empty",
        "torn": "flair.nii.gz",
    }


def _zero_affine(path: Path) -> None:
    """Overwrite the affine in the file itself: nibabel writes none that is zero."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[252:256] = (0).to_bytes(2, "little") + (1).to_bytes(2, "little")  # qform_code 0, sform_code 1
    content[280:328] = bytes(48)
    path.write_bytes(gzip.compress(bytes(content)))


def test_broken_volumes_are_named_and_the_rest_is_used(tmp_path):
    reasons = volumes(tmp_path)
    datalist, report = datalists.nifti_cases(tmp_path, progress=False)
    refused = dict(report.unusable)
    assert set(refused) == set(reasons)
    for name, part in reasons.items():
        assert part in refused[name], (name, refused[name])
        assert str(tmp_path) not in refused[name]
    patients = {item["patient"] for split in datalists.SPLITS for item in datalist[split]}
    assert patients == {"good0", "good1", "good2", "unicode név 1"}
    assert [report.figures[key] for key in ("found", "used", "refused")] == [14, 4, 10]
    files = report.figures["files"]
    assert (
        files["found"] == all_files(tmp_path) == files["used"] + files["beside_used_ones"] + files["in_refused_cases"]
    )


def test_a_bad_list_is_verified_to_its_end(tmp_path, without_permission):
    good, reasons, odd = pictures(tmp_path)
    items = [{"image": name, "diagnosis": int("/tumor/" in name)} for name in sorted(good | odd)]
    broken = [
        *({"image": name, "diagnosis": 1} for name in sorted(reasons) if name.startswith("images/tumor")),
        {"image": "images/tumor/gone.png", "diagnosis": 1},
        {"image": "images/no_tumor/good00.png", "diagnosis": 9},
        {"picture": "x"},
        "images/no_tumor/good01.png",
        {"image": "images/no_tumor/good02.png", "diagnosis": 0, "slice": 3},
        {"image": "images/tumor/good06.png", "label": "masks/without_image.png", "diagnosis": 0},
    ]
    datalist = {"classes": {"0": "no_tumor", "1": "tumor"}, "training": items + broken, "validation": [], "test": []}
    results = verify(datalist, tmp_path, spatial_size=64, progress=False)
    assert len(results) == len(items) + len(broken)
    unread = {
        str(result.item.get("image")): result.broken["readable"] for result in results if "readable" in result.broken
    }
    for name in ("zero_byte.png", "truncated.png", "text.jpg", "nan.tif", "frames.gif", "loop.png", LOCKED, "gone.png"):
        assert f"images/tumor/{name}" in unread, name
    assert "frames" in unread["images/tumor/frames.gif"]
    assert unread["images/tumor/gone.png"] == "images/tumor/gone.png does not exist"
    assert "'diagnosis' must be a whole number from -1 to 1, got 9" in unread["images/no_tumor/good00.png"]
    assert "unknown key 'picture'" in unread["{'picture': 'x'}"]
    assert "has no slice 3" in unread["images/no_tumor/good02.png"]
    contradiction = next(r for r in results if r.item.get("label"))
    assert "class 0 (no tumor), but" in contradiction.broken["label_class"]
    summary = summarize(results)
    count = summary["items"]
    assert count["found"] == count["pass"] + count["note"] + count["fail"] == len(items) + len(broken)
    assert not summary["passed"]
    fails = {str(r.item.get("image")) for r in results if r.level() == "fail"}
    assert not fails & (odd | {f"images/no_tumor/good{k:02d}.png" for k in (3, 4, 5)})
