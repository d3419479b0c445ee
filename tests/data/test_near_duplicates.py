"""Unrelated images are not put together, however many there are; real duplicates are found among them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from scripts.data import datalists
from scripts.data.datalists import near_duplicates, near_index
from scripts.data.datalists.fingerprints import packed, unlikeness, unpacked
from scripts.data.datalists.near_duplicates import COPY, FALSE_SHARE, MAX_DISTANCE, group_near_duplicates, places
from scripts.data.datalists.near_pairs import copy_pairs, indexed_pairs, near_pairs
from tests.data.picture_folders import fill

COUNT = 3000


def alike(count: int, seed: int, factors: int = 12, views: int = 1) -> NDArray[np.bool_]:
    """Hashes of unrelated pictures that have few degrees of freedom: some agree in nearly all bits by chance."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((factors, views * 256))
    return (rng.standard_normal((count, factors)) @ mixing > 0).reshape(count, views, 256)


@pytest.fixture(scope="module")
def unrelated() -> NDArray[np.bool_]:
    return alike(COUNT, 0)


def within(hashes: NDArray[np.bool_], bits: int) -> int:
    signs = hashes[:, 0].astype(np.float32) * 2 - 1
    return int(np.triu((256 - signs @ signs.T) / 2 <= bits + 0.25, 1).sum())


def test_unrelated_images_of_few_details_are_not_put_together(unrelated):
    assert within(unrelated, MAX_DISTANCE) > 100, "too easy"
    groups, _ = group_near_duplicates(unrelated)
    assert COUNT - len(set(groups.tolist())) <= max(1, FALSE_SHARE * COUNT)


def test_duplicates_are_found_among_them(unrelated):
    copies = unrelated[:60].copy()
    rng = np.random.default_rng(1)
    for k, copy in enumerate(copies):
        copy[0, rng.permutation(256)[: k % 9]] ^= True  # 0 to 8 bits: stored again, smaller
    groups, _ = group_near_duplicates(np.concatenate([unrelated, copies]))
    assert groups[COUNT:].tolist() == groups[:60].tolist()


def test_few_images_are_taken_as_near_as_asked():
    hashes = alike(100, 2, factors=200)
    hashes[1] = hashes[0]
    hashes[1, 0, :MAX_DISTANCE] ^= True
    groups, distance = group_near_duplicates(hashes)
    assert groups[0] == groups[1]
    assert distance.figures() == {
        "max_distance_bits": 40,
        "max_distance_bits_turned": 36,
        "max_distance_bits_neighbors": None,
    }


def test_mirrored_twins_are_found_among_unrelated_images():
    hashes = alike(1000, 3, factors=24, views=5)
    twins = hashes[:50].copy()
    twins[:, 0] = alike(50, 4)[:, 0]  # upright hashes of mirrored pictures are others
    twins[:, 1], twins[:, 2] = hashes[:50, 2], hashes[:50, 1]
    twins[:, 1:3, :5] ^= True
    groups, _ = group_near_duplicates(np.concatenate([hashes, twins]))
    assert groups[1000:].tolist() == groups[:50].tolist()
    assert len(set(groups.tolist())) >= 999


def test_an_order_of_names_that_says_nothing_is_not_used(caplog):
    hashes = alike(1200, 5, factors=8)
    neighbors = (hashes[1:, 0] != hashes[:-1, 0]).sum(axis=1)
    assert (neighbors <= 1.7 * MAX_DISTANCE).sum() > 20, "too easy"
    caplog.set_level("INFO")
    without, _ = group_near_duplicates(hashes)
    ordered, _ = group_near_duplicates(hashes, order=np.arange(1200))
    assert ordered.tolist() == without.tolist()
    assert "the order of names says nothing about patients" in caplog.text


def test_an_order_of_names_along_volumes_is_used():
    volumes = np.repeat(alike(200, 6, factors=200), 6, axis=0)
    rng = np.random.default_rng(7)
    for slice_ in volumes:
        slice_[0, rng.permutation(256)[:30]] ^= True  # slices of one volume differ by about 53 bits
    groups, _ = group_near_duplicates(volumes, order=np.arange(1200))
    assert [len(set(own)) for own in groups.reshape(200, 6).tolist()] == [1] * 200


def with_copies(unrelated, seed, count, upright_alone=False):
    """Fingerprints of unrelated images, behind them the first ones again: 0 to 40 bits and a gray value or so off.

    With ``upright_alone`` the turned views of the copies are those of nothing.
    """
    rng = np.random.default_rng(seed)
    views = rng.integers(0, 2, (COUNT, 5, 256)).astype(bool)
    views[:, 0] = unrelated[:, 0]
    thumbnails = rng.integers(0, 256, (COUNT, 2, 16, 16))
    copies = views[:count].copy()
    for k, copy in enumerate(copies):
        copy[0, rng.permutation(256)[: k % 41]] ^= True
    if upright_alone:
        copies[:, 1:] = rng.integers(0, 2, (count, 4, 256))
    gray = np.clip(thumbnails[:count] + rng.integers(-1, 2, (count, 2, 16, 16)), 0, 255)
    return packed(np.concatenate([views, copies]), np.concatenate([thumbnails, gray]))


def test_copies_are_found_at_any_distance_and_make_no_room_for_unrelated_pairs(unrelated):
    """So many copies within 8 bits once allowed four times as many unrelated pairs within 16."""
    every = with_copies(unrelated, 8, 300, upright_alone=True)
    groups, used = group_near_duplicates(every)
    assert groups[COUNT:].tolist() == groups[:300].tolist()
    assert COUNT - len(set(groups[:COUNT].tolist())) <= max(1, FALSE_SHARE * COUNT)
    assert used.upright <= 16
    blind, _ = group_near_duplicates(unpacked(every))  # hashes alone cannot tell
    assert COUNT - len(set(blind[:COUNT].tolist())) > 3


def sorted_pairs(pairs):
    order = np.lexsort((pairs[2], pairs[1], pairs[0]))
    return [part[order].tolist() for part in pairs]


@pytest.mark.parametrize(("limit", "new"), [(12, 0), (16, 400), (24, 0)])
def test_the_index_finds_the_pairs_that_comparing_each_with_each_finds(limit, new):
    left = alike(700, 9, factors=4)[:, 0]
    right = left ^ (np.random.default_rng(10).random(left.shape) < 0.01)
    differ = (left[:, None] != right[None]).sum(axis=2)
    for other, both in ((right, differ), (None, (left[:, None] != left[None]).sum(axis=2))):
        first, second = np.nonzero(both <= limit)
        keep = (first != second if other is right else first < second) & (np.maximum(first, second) >= new)
        low, high = np.minimum(first, second)[keep], np.maximum(first, second)[keep]
        expected = sorted_pairs((low, high, both[first, second][keep]))
        assert len(low) > 100, "too easy"
        assert sorted_pairs(near_pairs(left, other, limit, new)) == expected
        assert sorted_pairs(indexed_pairs(left, other, limit, new)) == expected
    with pytest.raises(ValueError, match="parts of more than 32 bits: 256 bits within 6"):
        indexed_pairs(left, right, 6)


def test_the_index_of_thumbnails_finds_the_copies_that_comparing_each_with_each_finds():
    rng = np.random.default_rng(11)
    gray = np.cumsum(np.cumsum(rng.normal(size=(400, 2, 16, 16)), axis=2), axis=3)
    gray[200:] = gray[:200] + rng.normal(size=(200, 2, 16, 16)) * 0.2
    gray[200:300, 1] = gray[200:300, 1, ::-1]
    gray[300:, 1] = gray[300:, 1, :, ::-1]
    gray[7] = 3  # shows nothing
    low, high = gray.min(axis=(2, 3), keepdims=True), gray.max(axis=(2, 3), keepdims=True)
    every = packed(np.zeros((400, 5, 256), bool), ((gray - low) / np.maximum(high - low, 1) * 255).astype(np.uint8))
    first, second = np.triu_indices(400, 1)
    copies = (unlikeness(every, first, second) <= COPY).any(axis=1)
    assert 20 < copies.sum() < 400
    found = copy_pairs(every, COPY)
    assert [part.tolist() for part in found] == [first[copies].tolist(), second[copies].tolist()]


def test_many_images_make_the_groups_that_comparing_each_with_each_makes(monkeypatch, unrelated):
    """By the index: unrelated ones are much alike, and copies, far by the hash too, are among them."""
    every = with_copies(unrelated, 12, 60)
    people = np.where(np.arange(COUNT + 60) % 5 == 0, np.arange(COUNT + 60) % 7, -1)
    for given in (None, people):
        each, used = group_near_duplicates(every, people=given)
        with monkeypatch.context() as few:
            few.setattr(near_duplicates, "MANY", 1000)
            few.setattr(near_duplicates, "SAMPLED", 500)
            indexed, same = group_near_duplicates(every, people=given)
        assert used.upright <= 24, "the index is not used"
        assert indexed.tolist() == each.tolist()
        assert same == used


@pytest.fixture
def indexed_from(monkeypatch):
    """Take so many images as many, that is, search them by the index of parts."""

    def set_to(count: int) -> None:
        monkeypatch.setattr(near_duplicates, "MANY", count)
        monkeypatch.setattr(near_duplicates, "SAMPLED", 500)

    return set_to


@pytest.mark.parametrize("many", [1000, 10_000])
def test_new_images_against_an_index_on_disk_make_the_groups_of_a_whole_search(
    tmp_path, monkeypatch, unrelated, indexed_from, many
):
    """Known ones in another order, some left out, some twice; new ones among them, copies of known and of new ones."""
    indexed_from(many)
    every = with_copies(unrelated, 12, 60)
    rng = np.random.default_rng(13)
    before = rng.permutation(COUNT + 60)[:2000]
    group_near_duplicates(every[before], index=tmp_path)
    asked = np.concatenate([rng.permutation(COUNT + 60)[:2900], [5, 5, before[0]]])
    whole, used = group_near_duplicates(every[asked])
    compared = []
    for name in ("near_pairs", "indexed_pairs", "copy_pairs"):
        own = getattr(near_index, name)
        monkeypatch.setattr(near_index, name, lambda *given, own=own: compared.append(given[-1]) or own(*given))
    groups, same = group_near_duplicates(every[asked], index=tmp_path)
    assert groups.tolist() == whole.tolist()
    assert same == used
    assert set(compared) == {2000}, "known pairs are looked for again"
    compared.clear()
    groups, same = group_near_duplicates(every[asked[:2500]], index=tmp_path)
    whole, used = group_near_duplicates(every[asked[:2500]])
    assert (groups.tolist(), same) == (whole.tolist(), used)
    with np.load(tmp_path / near_index.FILE) as file:
        assert len(file["fingerprints"]) == (Counter(before.tolist()) | Counter(asked.tolist())).total()


def test_an_index_of_a_smaller_distance_is_searched_anew_and_a_file_that_is_none_is_refused(tmp_path, unrelated):
    every = with_copies(unrelated, 14, 60)[-150:]
    group_near_duplicates(every[:100], 10, index=tmp_path)
    groups, _ = group_near_duplicates(every, 30, index=tmp_path)
    assert groups.tolist() == group_near_duplicates(every, 30)[0].tolist()
    with pytest.raises(ValueError, match="an index of near-duplicates holds fingerprints"):
        group_near_duplicates(unpacked(every), index=tmp_path)
    (tmp_path / near_index.FILE).write_bytes(b"PK no")
    with pytest.raises(
        ValueError, match=r"near_pairs.npz is no index of near-duplicates of this version \(.*delete it"
    ):
        group_near_duplicates(every, index=tmp_path)


def test_groups_join_over_chains_and_by_content():
    hashes = np.zeros((5, 256), dtype=bool)
    hashes[1, :40] = True  # 40 bits from 0
    hashes[2, :80] = True  # 40 bits from 1, 80 from 0
    hashes[3, 100:141] = True  # 41 bits from 0
    hashes[4, 128:] = True
    assert datalists.group_near_duplicates(hashes)[0].tolist() == [0, 0, 0, 1, 2]
    assert datalists.group_near_duplicates(hashes, 39)[0].tolist() == [0, 1, 2, 3, 4]
    same = np.array([0, 1, 2, 3, 0])
    assert datalists.group_near_duplicates(hashes, 39, same)[0].tolist() == [0, 1, 2, 3, 0]


def test_neighbors_in_the_order_of_files_may_differ_more():
    hashes = np.zeros((4, 256), dtype=bool)
    hashes[1, :68] = True  # 68 bits from 0
    hashes[2, 100:169] = True  # 69 bits from 0
    hashes[3, 32:100] = True  # 68 bits from 0, 64 from 1
    assert datalists.group_near_duplicates(hashes)[0].tolist() == [0, 1, 2, 3]
    assert datalists.group_near_duplicates(hashes, order=np.array([1, 0, 2, 9]))[0].tolist() == [0, 0, 1, 2]
    assert datalists.group_near_duplicates(hashes, order=np.array([1, 8, 7, 3]))[0].tolist() == [0, 1, 2, 0]
    assert datalists.group_near_duplicates(hashes, order=np.array([1, 4, 7, 10]))[0].tolist() == [0, 1, 2, 3]
    views = np.random.default_rng(0).integers(0, 2, (2, 5, 256)).astype(bool)
    views[1, 3] = views[0, 1]  # the turned head, mirrored
    views[1, 3, :61] ^= True  # 61 bits of 0.9 * 68
    assert datalists.group_near_duplicates(views)[0].tolist() == [0, 1]
    assert datalists.group_near_duplicates(views, order=np.array([5, 6]))[0].tolist() == [0, 0]


def test_the_order_of_names_counts_numbers_by_value(tmp_path, pool):
    folder = fill(tmp_path, {"no_tumor": pool[:12], "tumor": pool[12:]})
    tumors = folder / "images" / "tumor"
    names = [path.name for path in sorted(tumors.iterdir())]
    for k, name in enumerate(names):
        (tumors / name).rename(tumors / f"scan {k + 1}.png")
    files = [path.relative_to(folder).as_posix() for path in sorted(tumors.iterdir())]
    assert files[:2] == ["images/tumor/scan 1.png", "images/tumor/scan 10.png"]
    found = places([files, ["other.png"]])
    assert [found[f"images/tumor/scan {k + 1}.png"] for k in range(12)] == list(range(1000, 1012))
    assert found["other.png"] == 2011


def test_a_chain_through_most_images_lowers_the_distance():
    hashes = np.zeros((60, 512), dtype=bool)
    for k in range(60):
        hashes[k, : 8 * k] = True  # neighbors differ by 8 bits
    groups, distance = datalists.group_near_duplicates(hashes, 24)
    assert (distance.upright, distance.turned) == (0, 0)
    assert groups.tolist() == list(range(60))
    hashes[1] = hashes[0]
    groups, _ = datalists.group_near_duplicates(hashes, 24)
    assert groups[0] == groups[1]
    assert groups.max() == 58


def test_resized_and_recoded_copies_land_on_one_side(tmp_path, pool):
    folder = fill(tmp_path, {"no_tumor": pool[:12], "tumor": pool[12:]})
    for kind, start in (("no_tumor", 0), ("tumor", 12)):
        for k in range(0, 12, 2):
            copied = pool[start + k].resize((160, 150), Image.Resampling.BICUBIC)
            copied.save(folder / "images" / kind / f"copy{k:02d}.jpg", quality=60)
    datalist, report = datalists.image_folder(folder, progress=False)
    assert report.figures["images"] == 36
    assert report.figures["groups"] == 24
    assert report.figures["largest_group"] == 2
    where = {item["image"]: (split, item["group"]) for split in datalists.SPLITS for item in datalist[split]}
    for kind in ("no_tumor", "tumor"):
        for k in range(0, 12, 2):
            assert where[f"images/{kind}/{kind}{k:02d}.png"] == where[f"images/{kind}/copy{k:02d}.jpg"]
    datalists.assert_no_overlap(datalist)
