from __future__ import annotations

import json
import os
import time
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, Lambdad
from PIL import Image

from scripts.command.locations import CONFIGS
from scripts.data import caching
from scripts.data.caching import CachedDataset, describe_item, describe_setting, fingerprint
from scripts.data.preprocessing import make_preprocessing, make_training_pipeline
from scripts.runs import folder as runs
from tests.transforms.images import head


@pytest.fixture
def items(tmp_path):
    found = []
    for k in range(3):
        image, _ = head((90, 80), 30, seed=k)
        Image.fromarray(image.T.astype(np.uint8)).save(tmp_path / f"case{k}.png")
        found.append({"image": str(tmp_path / f"case{k}.png"), "diagnosis": 0, "name": f"case{k}"})
    return found


def cached(items, folder, size=48, **options) -> CachedDataset:
    pipeline = make_training_pipeline(size, options.pop("augment", False), **options)
    return CachedDataset(items, pipeline, folder / "cache", progress=False)


def entries(folder) -> list[Path]:
    return sorted((folder / "cache").rglob("*.item"))


def test_the_next_run_finds_every_item_as_it_was(items, tmp_path):
    first = cached(items, tmp_path)
    assert (first.made, first.found) == (3, 0)
    second = cached(items, tmp_path)
    assert (second.made, second.found) == (0, 3)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert type(b[key]) is type(value)
            assert torch.equal(b[key], value) if isinstance(value, torch.Tensor) else b[key] == value
    assert b["image"].dtype == torch.float32
    assert b["foreground"].dtype == torch.uint8
    assert len(entries(tmp_path)) == 3


def test_training_and_validation_share_the_deterministic_part(items, tmp_path):
    plain = cached(items, tmp_path)
    augmented = cached(items, tmp_path, augment=True)
    assert augmented.found == 3
    before = plain[0]["image"].clone()
    assert not torch.equal(augmented[0]["image"], augmented[0]["image"])
    assert torch.equal(augmented._cache[0]["image"], before), "augmentation leaves the cached item alone"


@pytest.mark.parametrize("change", [{"size": 40}, {"margin": 5}, {"num_classes": 2}])
def test_another_setting_makes_other_items(items, tmp_path, change):
    cached(items, tmp_path)
    assert cached(items, tmp_path, **change).made == 3
    assert cached(items, tmp_path).found == 3, "and the first ones are still there"


def test_a_changed_file_or_item_is_made_again(items, tmp_path):
    cached(items, tmp_path)
    brighter = np.asarray(Image.open(items[1]["image"])) // 2
    status = os.stat(items[1]["image"])
    time.sleep(0.02)  # file systems keep times in steps of some milliseconds
    Image.fromarray(brighter).save(items[1]["image"])
    os.utime(items[1]["image"], ns=(status.st_atime_ns, status.st_mtime_ns))  # as if it were the old one
    assert cached(items, tmp_path).made == 1
    items[2]["diagnosis"] = 1
    items[0]["foreground"] = str(tmp_path / "mine.png")
    Image.fromarray(np.pad(np.full((50, 60), 255, np.uint8), 15)).save(items[0]["foreground"])
    again = cached(items, tmp_path)
    assert again.made == 2
    assert again[2]["diagnosis"] == 1
    Path(items[0]["foreground"]).unlink()
    with pytest.raises(ValueError, match=r"mine\.png cannot be read: No such file"):
        cached(items, tmp_path)


def test_another_version_of_the_code_or_a_library_makes_other_items(items, tmp_path, monkeypatch):
    steps = make_preprocessing(48, trace=False).transforms
    before = fingerprint(steps)
    assert fingerprint(make_preprocessing(48, trace=False).transforms) == before
    monkeypatch.setattr(caching, "_file_hash", lambda path, _: "other" if path.endswith("masking.py") else "same")
    other = fingerprint(steps)
    monkeypatch.setattr(caching, "_file_hash", lambda path, _: "same")
    assert len({before, other, fingerprint(steps)}) == 3
    monkeypatch.undo()
    monkeypatch.setattr(caching.metadata, "version", lambda name: "0")
    assert fingerprint(steps) != before


@pytest.mark.parametrize("keep", [0, 20, 4000])
def test_a_damaged_entry_is_reported_and_replaced(items, tmp_path, caplog, keep):
    good = cached(items, tmp_path)[0]["image"]
    for path in entries(tmp_path):
        path.write_bytes(path.read_bytes()[:keep])
    again = cached(items, tmp_path)
    assert again.made == 3
    assert torch.equal(again[0]["image"], good)
    assert caplog.text.count("is damaged and will be made again") == 3
    assert cached(items, tmp_path).found == 3


def test_a_flipped_byte_is_noticed(items, tmp_path):
    good = cached(items, tmp_path)[0]["image"]
    for path in entries(tmp_path):
        content = bytearray(path.read_bytes())
        place = len(content) // 2  # in the pixels
        content[place] ^= 0xFF
        path.write_bytes(content)
    assert torch.equal(cached(items, tmp_path)[0]["image"], good)


def test_an_interrupted_write_leaves_nothing_to_be_taken_for_whole(items, tmp_path, monkeypatch):
    def stop(source, target):
        assert source.stat().st_size > 0
        raise KeyboardInterrupt

    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        caching.write_entry({}, tmp_path / "cache" / "aa" / "x.item")
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []
    monkeypatch.undo()
    leftover = tmp_path / "cache" / "aa" / ".1.killed.partial"
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    assert cached(items, tmp_path).made == 3
    assert not leftover.exists()


def test_what_cannot_be_cached_is_refused(items, tmp_path):
    with pytest.raises(ValueError, match="cannot be distinguished from another by name"):
        CachedDataset(items, Compose([Lambdad("image", lambda x: x)]), tmp_path / "cache", progress=False)
    with pytest.raises(ValueError, match="holds a MetaTensor under 'image'"):
        CachedDataset(items, make_preprocessing(48), tmp_path / "cache", progress=False)
    with pytest.raises(ValueError, match="no items for a dataset"):
        CachedDataset([], make_preprocessing(48), None)


def test_an_entry_gives_back_every_kind_of_value(tmp_path):
    item = {
        "image": torch.arange(6, dtype=torch.float32).reshape(1, 2, 3).transpose(1, 2) / 7,
        "empty": torch.zeros(0, 3, dtype=torch.int64),
        "number": torch.tensor(True),
        "name": 'a "b"\nc \u00fc',
        "share": 0.1,
        "class": -1,
        "mask": False,
        "nothing": None,
    }
    caching.write_entry(item, tmp_path / "aa" / "x.item")
    back = caching.read_entry(tmp_path / "aa" / "x.item")
    assert back is not None
    assert back.keys() == item.keys()
    for key, value in item.items():
        assert type(back[key]) is type(value)
        assert torch.equal(back[key], value) if isinstance(value, torch.Tensor) else back[key] == value
        assert not isinstance(value, torch.Tensor) or back[key].dtype == value.dtype
    assert caching.read_entry(tmp_path / "aa" / "y.item") is None


def test_without_a_folder_nothing_is_written(items, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    data = CachedDataset(items, make_training_pipeline(48, False), progress=False)
    assert torch.equal(data[1]["image"], make_training_pipeline(48, False)(items[1])["image"])
    assert sorted(tmp_path.rglob("*")) == before


def test_the_dataset_of_the_config_takes_the_folder(items, tmp_path):
    config = runs.merged_config(
        [CONFIGS / "train.yaml"],
        {
            "train#dataset#data": items,
            "train#dataset#slices": None,
            "train#dataset#progress": False,
            "num_classes": 2,
            "spatial_size": [48, 48],
            "cache_dir": str(tmp_path / "cache"),
        },
    )
    data = [ConfigParser(config).get_parsed_content("train#dataset") for _ in range(2)]
    assert [(d.made, d.found) for d in data] == [(3, 0), (0, 3)]


def test_descriptions_tell_settings_apart(tmp_path):
    assert describe_setting({"b": 1, "a": (2, None)}) == describe_setting({"a": [2, None], "b": 1})
    different = [0, "0", None, [0], {"0": 0}, np.zeros(2), np.zeros(3), torch.float32, print, int, Path("0"), {0}]
    assert len({json.dumps(describe_setting(value)) for value in different}) == len(different)
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").write_bytes(b"1")
    before = describe_item({"image": tmp_path / "series"})
    (tmp_path / "series" / "2.dcm").write_bytes(b"2")
    assert describe_item({"image": tmp_path / "series"}) != before


def test_checksum_notices_bytes_that_changed_places():
    words = np.arange(1, 70_001, dtype=np.uint64)
    whole = caching._checksum(words.tobytes() + b"abc")
    assert len(whole) == caching.CHECKSUM
    for first, second in ((0, 1), (3, 3 + 2**15), (0, 65_536), (17, 69_999)):
        swapped = words.copy()
        swapped[[first, second]] = swapped[[second, first]]
        assert caching._checksum(swapped.tobytes() + b"abc") != whole
    assert caching._checksum(words.tobytes() + b"acb") != whole
    floats = np.zeros(4096, dtype=np.float32)
    floats[2] = 1.0  # words whose low bytes are all 0
    moved = np.roll(floats, 2048)
    assert caching._checksum(floats.tobytes()) != caching._checksum(moved.tobytes())


def test_an_entry_whose_parts_changed_places_is_made_again(tmp_path, caplog):
    path = tmp_path / "aa" / "x.item"
    caching.write_entry({"image": torch.arange(64, dtype=torch.float32)}, path)
    content = path.read_bytes()
    path.write_bytes(content[:-16] + content[-8:] + content[-16:-8])
    assert caching.read_entry(path) is None
    assert "is damaged" in caplog.text


class Fixed:
    """An object whose attributes describe it."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


class Color(Enum):
    RED = 1
    BLUE = 2


def test_descriptions_are_equal_exactly_where_settings_are():
    for equal in (
        ((1, 2), [1, 2]),
        ({1, 2, 3}, frozenset({3, 2, 1})),
        ({"a": 1, "b": [2.5]}, {"b": (2.5,), "a": 1}),
        (torch.tensor([1.0, 2.0]), np.array([1.0, 2.0], np.float32)),
        (np.arange(6).reshape(2, 3).T, np.ascontiguousarray(np.arange(6).reshape(2, 3).T)),
        (Fixed(a=1, b=2), Fixed(b=2, a=1)),
        (np.random.RandomState(0), np.random.RandomState(1)),
        (len, len),
    ):
        assert json.dumps(describe_setting(equal[0])) == json.dumps(describe_setting(equal[1]))
    different = [
        True, 1, 1.5, "1", None, [1], {1}, {"1": 1}, np.float32(1), np.float64(1), np.array([1]), np.array([[1]]),
        np.array([1.0]), np.array([2]), Color.RED, Color.BLUE, Path("a"), Path("b"), torch.float16, torch.float32,
        np.dtype("f4"), slice(1), slice(2), torch.device("cpu"), len, Fixed, Color, Fixed(), Fixed(a=1), Fixed(a=2),
    ]  # fmt: skip
    assert len({json.dumps(describe_setting(value)) for value in different}) == len(different)
    for nameless in (lambda x: x, object()):
        with pytest.raises(ValueError, match=r"cannot be distinguished|no lasting description"):
            describe_setting(nameless)


def test_an_item_counts_with_the_state_of_every_file_that_it_names(tmp_path):
    for name in ("a", "b", "m", "f"):
        (tmp_path / name).write_bytes(b"12")
    item = {"image": [tmp_path / "a", str(tmp_path / "b")], "label": str(tmp_path / "m"), "diagnosis": 1}
    item["foreground"] = tmp_path / "f"
    first = describe_item(item)
    assert describe_item(dict(reversed(item.items()))) == first
    assert describe_item({**item, "diagnosis": 0}) != first
    for name in ("a", "b", "m", "f"):
        before = describe_item(item)
        os.utime(tmp_path / name, ns=(5, 7))
        assert describe_item(item) != before, name
    with pytest.raises(ValueError, match="gone cannot be read: No such file"):
        describe_item({"image": str(tmp_path / "gone")})


def test_prepared_items_are_augmented_from_the_first_random_transform_on(items, tmp_path):
    data = cached(items, tmp_path, augment=True)
    prepared = data.prepared(1)
    plain = make_training_pipeline(48, False)(items[1])
    assert torch.equal(prepared["image"], plain["image"])
    data.transform.set_random_state(3)
    once = data.augmented(prepared)["image"]
    data.transform.set_random_state(3)
    assert torch.equal(data[1]["image"], once)
    assert not torch.equal(once, prepared["image"])
    assert len(caching.deterministic(data.transform)) == len(make_training_pipeline(48, False).transforms)


def test_other_items_fill_the_cache_anew_and_counts_are_of_them(items, tmp_path, caplog):
    caplog.set_level("INFO")
    data = cached(items[:1], tmp_path)
    data.set_data(items)
    assert (data.found, data.made, len(data)) == (1, 2, 3)
    assert "1 items found, 2 made" in caplog.text
    folder = tmp_path / "cache"
    assert all(path.parent.parent == folder and path.name.startswith(path.parent.name) for path in entries(tmp_path))
    young = folder / "aa"
    young.mkdir(exist_ok=True)
    (young / ".1.x.partial").write_bytes(b"half")
    cached(items, tmp_path)
    assert (young / ".1.x.partial").exists(), "another process may be writing it"


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 16, 23])
def test_a_checksum_is_of_the_length_and_of_every_byte(size):
    content = bytes(range(1, size + 1))
    found = caching._checksum(content)
    assert len(found) == caching.CHECKSUM
    assert found == caching._checksum(memoryview(content))
    assert int(found[:8], 16) == size
    others = {caching._checksum(content + b"\0")}
    others |= {caching._checksum(content[:k] + b"\xff" + content[k + 1 :]) for k in range(size)}
    assert found not in others
    assert len(others) == size + 1


def test_only_plain_values_are_kept_on_disk(tmp_path):
    for item in ([1], {"a": [1]}, {1: "a"}, {"a": np.zeros(2)}):
        with pytest.raises(ValueError, match=r"expected an item that is a dict|only plain tensors"):
            caching.write_entry(item, tmp_path / "x.item")
    assert not (tmp_path / "x.item").exists()


def test_weights_are_odd_numbers_of_which_fewer_are_the_first():
    weights = caching._weights(6)
    assert (weights % 2 == 1).all()
    assert len(weights) == len(set(weights.tolist())) == 64
    assert int(weights.max()) > 2**63, "of all 64 bits"
    assert np.array_equal(caching._weights(3), weights[:8])
