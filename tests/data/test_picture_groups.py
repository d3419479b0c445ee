"""Pictures as items: patients, groups, masks, and the figures of the report."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.data.datalists.fingerprints import packed
from scripts.data.datalists.picture_groups import Picture, picture_items
from scripts.data.datalists.schema import Report

CLASSES = ("no_tumor", "glioma", "other")
RNG = np.random.default_rng(0)
PRINTS = packed(RNG.integers(0, 2, (9, 5, 256)).astype(bool), RNG.integers(0, 256, (9, 2, 16, 16)))


def picture(k: int, kind: str = "glioma", like: int | None = None, bits: int = 0, **more) -> Picture:
    """A picture of its own, or one whose upright hash differs by so many bits from that of another."""
    own = PRINTS[k].copy()
    if like is not None:
        own[:32] = PRINTS[like][:32]
        own[: bits // 8] ^= 255
    about = {"mask": None, "foreground": None, "content": f"content {k}", "mode": "L", "notes": (), **more}
    return Picture(name=f"{k}.png", kind=kind, hash=own, **about)


def made(pictures, told=None, distance=40, places=None):
    report = Report(quiet=True)
    order = {one.name: 1000 * (k + 1) if places is None else places[k] for k, one in enumerate(pictures)}
    return picture_items(pictures, order, told or {}, CLASSES, "src", distance, report), report


def groups(*arguments, **options) -> list[int]:
    return [int(item["group"].removeprefix("src-")) for item in made(*arguments, **options)[0]]


def test_an_item_holds_what_is_known_of_its_picture():
    first = picture(0, mask="m.png", foreground="f.png", mode="RGB", notes=("odd", "odder"))
    items, report = made([first, picture(1, "no_tumor")], {"0.png": "p7"})
    assert items == [
        {"image": "0.png", "diagnosis": 1, "source": "src", "label": "m.png", "foreground": "f.png", "patient": "p7",
         "group": "src-00000"},
        {"image": "1.png", "diagnosis": 0, "source": "src", "group": "src-00001"},
    ]  # fmt: skip
    assert report.notes == [("0.png", "odd"), ("0.png", "odder")]
    assert report.figures["modes"] == {"RGB": 1, "L": 1}


def test_near_pictures_equal_pixels_and_patients_are_each_a_group():
    near = [picture(0), picture(1, like=0, bits=40), picture(2)]
    assert groups(near) == [0, 0, 1]
    assert groups(near, distance=39) == [0, 1, 2]
    assert groups([picture(0), picture(1), picture(2, content="content 0")]) == [0, 1, 0]
    assert groups([picture(0), picture(1), picture(2)], {"0.png": "p", "2.png": "p"}) == [0, 1, 0]
    assert groups(near, {"0.png": "p", "1.png": "q"}) == [0, 1, 2], "two known patients"
    assert groups(near, {"0.png": "p"}) == [0, 0, 1]


def test_neighbors_in_the_order_of_names_may_be_farther_where_no_patient_is_known():
    far = [picture(0), picture(1, like=0, bits=64)]
    assert groups(far) == [0, 1]
    assert groups(far, places=[1000, 1001]) == [0, 0]
    assert groups(far, places=[1000, 1003]) == [0, 1]
    for told in ({"0.png": "p"}, {"1.png": "p"}, {"0.png": "p", "1.png": "q"}):
        assert groups(far, told, places=[1000, 1001]) == [0, 1], "what lies beside a known patient says nothing"
    assert groups([picture(0), picture(1, like=0, bits=64), picture(2)], places=[1000, 1001, 2000]) == [0, 0, 1]


def test_figures_count_pictures_groups_and_patients():
    pictures = [
        picture(0), picture(1, "other", like=0, bits=8), picture(2, content="content 0"), picture(3), picture(4),
    ]  # fmt: skip
    _, report = made(pictures, {"3.png": "p", "4.png": "q"})
    report.figures.pop("modes")
    assert report.figures == {
        "images": 5, "unusable": 0, "exact_duplicates": 1, "groups": 3, "largest_group": 3,
        "images_in_groups_of_several": 3, "groups_of_several_classes": 1, "patients": 2,
        "max_distance_bits": 40, "max_distance_bits_turned": 36, "max_distance_bits_neighbors": None,
    }  # fmt: skip
    assert made([picture(3)], {"3.png": "p"})[1].figures["patients"] == 1
    assert made([picture(3)])[1].figures["patients"] == 0


def test_a_lowered_distance_is_noted():
    chain = []
    for k in range(21):
        own = np.random.default_rng(k).integers(0, 256, PRINTS[0].shape).astype(np.uint8)  # turned heads are unlike
        own[:32] = PRINTS[0][:32]
        own[: k + 1] ^= 255  # neighbors differ by 8 bits
        chain.append(Picture(f"{k}.png", "glioma", None, None, own, f"content {k}", "L", ()))
    items, report = made(chain, distance=8)
    assert len({item["group"] for item in items}) == 21
    assert report.notes == [
        ("src", "near-duplicate distance lowered from 8 to 0 bits: farther ones chain, or unrelated images are as much "
         "alike"),
    ]  # fmt: skip
    assert not made(chain[:20], distance=8)[1].notes


def test_no_picture_makes_no_item():
    with pytest.raises(ValueError, match="N >= 1"):
        made([])
