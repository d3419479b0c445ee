"""Pictures are drawn by class, read and refused one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.data.datalists import picture_plans
from scripts.data.datalists.picture_plans import MIN_SIDE, PictureFiles, Settings

CLASSES = ("none", "glioma", "other")


def drawn(sizes: dict[str, int], limit: int, seed: int = 0) -> dict[str, list[str]]:
    files = {name: [PictureFiles(Path(f"{name}{k}"), name) for k in range(count)] for name, count in sizes.items()}
    found = picture_plans._draw(files, limit, seed)
    return {name: [one.path.name for one in pictures] for name, pictures in found.items()}


def test_classes_are_drawn_by_largest_remainders_in_the_order_of_names():
    assert {name: len(own) for name, own in drawn({"a": 10, "b": 5, "c": 5}, 7).items()} == {"a": 3, "b": 2, "c": 2}
    assert {name: len(own) for name, own in drawn({"a": 9, "b": 1}, 4).items()} == {"a": 4, "b": 0}
    assert {name: len(own) for name, own in drawn({"a": 5, "b": 5}, 3).items()} == {"a": 2, "b": 1}
    assert sum(map(len, drawn({"a": 7, "b": 3}, 9).values())) == 9
    every = {"a": ["a0", "a1"], "b": ["b0"]}
    assert drawn({"a": 2, "b": 1}, 3) == drawn({"a": 2, "b": 1}, 99) == every
    few = drawn({"a": 50, "b": 50}, 20)
    assert all([int(name[1:]) for name in own] == sorted({int(name[1:]) for name in own}) for own in few.values())
    assert few == drawn({"b": 50, "a": 50}, 20)
    assert few != drawn({"a": 50, "b": 50}, 20, seed=1)


def test_a_limit_is_of_one_at_least():
    settings = Settings(Path("a"), Path("a"), "x", limit=1)
    assert settings.where(Path("a/b/c.png")) == "b/c.png"
    assert (settings.seed, settings.modality, settings.progress) == (0, "MRI", True)
    for limit in (0, -1):
        with pytest.raises(ValueError, match=f"limit must be 1 or more, got {limit}"):
            Settings(Path("a"), Path("a"), "x", limit=limit)


def inspected(folder: Path, pixels, kind="glioma", mask=None, foreground=None, name="a.png", **save):
    paths = {}
    for stem, content in (("image", pixels), ("mask", mask), ("foreground", foreground)):
        if content is not None:
            paths[stem] = folder / (name if stem == "image" else f"{stem}.png")
            Image.fromarray(content).save(paths[stem], **(save if stem == "image" else {}))
    one = PictureFiles(paths["image"], kind, paths.get("mask"), paths.get("foreground"))
    return picture_plans._inspect(one, folder, CLASSES)


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 250, shape).astype(dtype)


def spot(*shape: int) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[3:6, 4:9] = 255
    return mask


def test_a_picture_is_read_with_its_masks(tmp_path):
    found = inspected(tmp_path, noise(32, 40), mask=spot(32, 40), foreground=spot(32, 40))
    assert (found.name, found.kind, found.mask, found.foreground) == ("a.png", "glioma", "mask.png", "foreground.png")
    assert (found.mode, found.notes) == ("L", ())
    again = inspected(tmp_path, noise(32, 40), kind="other", name="b.bmp")
    assert (again.content, again.mask, again.foreground) == (found.content, None, None)
    assert inspected(tmp_path, noise(32, 40)[::-1].copy()).content != found.content
    assert inspected(tmp_path, noise(40, 32).reshape(40, 32)).content != found.content


def test_the_mask_says_the_class_where_no_folder_does(tmp_path):
    assert inspected(tmp_path, noise(32, 40), None, spot(32, 40)).kind == "glioma"
    assert inspected(tmp_path, noise(32, 40), None, 0 * spot(32, 40)).kind == "none"
    assert inspected(tmp_path, noise(32, 40), "none", 0 * spot(32, 40)).kind == "none"
    assert inspected(tmp_path, noise(32, 40), "other", spot(32, 40)).kind == "other"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pixels": noise(MIN_SIDE - 1, 40)}, "40 x 31 pixels, at least 32 on each side"),
        ({"pixels": noise(40, MIN_SIDE - 1)}, "31 x 40 pixels"),
        ({"pixels": np.full((40, 40), 7, np.uint8)}, "every pixel is 7"),
        ({"pixels": np.where(noise(40, 40) > 200, np.nan, 1).astype(np.float32), "name": "a.tif"}, "not finite"),
        ({"pixels": noise(40, 40), "mask": spot(40, 41)}, r"mask mask\.png is 41 x 40, image 40 x 40"),
        (
            {"pixels": noise(40, 40), "kind": "none", "mask": spot(40, 40)},
            "shows a tumor, the class says there is none",
        ),
        ({"pixels": noise(40, 40), "mask": 0 * spot(40, 40)}, "is empty, the class says there is a tumor"),
        ({"pixels": noise(40, 40), "kind": None}, "has no mask, and no folder says its class"),
        ({"pixels": noise(40, 40), "foreground": 0 * spot(40, 40)}, r"foreground mask foreground\.png is empty"),
    ],
)
def test_a_picture_that_cannot_be_used_says_why(tmp_path, options, reason):
    with pytest.raises(ValueError, match=reason):
        inspected(tmp_path, **options)


def test_what_is_unusual_is_noted(tmp_path):
    rgba = np.dstack([noise(40, 40)] * 3 + [np.full((40, 40), 255, np.uint8)])
    assert inspected(tmp_path, rgba).notes == ("mode RGBA, read as one gray channel",)
    assert inspected(tmp_path, rgba[..., :3].copy()).notes == ()
    assert inspected(tmp_path, noise(40, 40), name="a.jpg", format="PNG").notes == (
        "a PNG file by its content, whatever its name says",
    )
    unusual = "its name holds spaces or letters beyond ASCII; used as it is"
    for name in ("a b.png", "caf\u00e9.png"):
        assert inspected(tmp_path, noise(40, 40), name=name).notes == (unusual,)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="a symbolic link that leads nowhere"):
        picture_plans._inspect(PictureFiles(tmp_path / "gone.png", "glioma"), tmp_path, CLASSES)
