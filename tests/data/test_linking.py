"""Which items show the same person: by what they say, by their content, and by likeness."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from scripts.data.datalists.fingerprints import SIZE, fingerprint, packed
from scripts.data.datalists.linking import file_order, hashes_of, linked, picture_of


def unlike(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return packed(rng.integers(0, 2, (count, 5, 256)).astype(bool), rng.integers(0, 256, (count, 2, 16, 16)))


def groups(items, contents=None, prints=None, **options) -> list[int]:
    contents = contents or [f"content {k}" for k in range(len(items))]
    found, _ = linked(items, unlike(len(items)) if prints is None else prints, contents, **options)
    return found.tolist()


def test_patients_groups_files_and_contents_link_each_for_itself():
    items = [
        {"image": "a", "patient": "1", "source": "s"},
        {"image": "b", "patient": "1", "source": "s"},
        {"image": "c", "patient": "1", "source": "t"},
        {"image": "d", "group": "g"},
        {"image": "e", "group": "g"},
        {"image": ["f", "b"]},
        {"image": "h"},
        {"image": "i"},
    ]
    assert groups(items) == [0, 0, 1, 2, 2, 0, 3, 4]
    assert groups(items, same_patients=True) == [0, 0, 0, 1, 1, 0, 2, 3]
    assert groups(items, contents=["a", "b", "c", "d", "e", "f", "x", "x"]) == [0, 0, 1, 2, 2, 0, 3, 3]
    nobody = [{"image": "a"}, {"image": "b"}]
    assert groups(nobody) == groups(nobody, same_patients=True) == [0, 1], "no patient is not one patient"


def test_likeness_links_strangers_and_counts_less_of_two_known_patients():
    prints = unlike(4)
    prints[1:] = prints[0]
    prints[1, :2] ^= 255  # 16 bits of the upright hash
    prints[2, :5] ^= 255  # 40 bits
    prints[3, :10] ^= 255  # 80
    prints[1:, 32:] = unlike(4)[1:, 32:]
    items = [{"image": name} for name in "abcd"]
    assert groups(items, prints=prints) == [0, 0, 0, 0], "d is 40 from c"
    assert groups(items, prints=prints, max_distance=20) == [0, 0, 1, 2]
    people = [{"image": name, "patient": name} for name in "abcd"]
    assert groups(people, prints=prints) == [0, 1, 2, 3]
    _, used = linked(items, prints, list("abcd"), max_distance=20)
    assert used.upright == 20


def test_pictures_without_a_patient_have_places_in_their_folder_and_others_stand_alone(tmp_path):
    for name in ("x/p1.png", "x/p2.png", "x/p10.png", "x/.p3.png", "x/p3.txt", "y/q.png", "v.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    items = [
        {"image": "x/p10.png"},
        {"image": "x/p1.png"},
        {"image": "y/q.png"},
        {"image": "x/p2.png", "patient": "1"},
        {"image": "v.nii.gz", "slice": 3},
        {"image": ["x/p1.png", "x/p2.png"]},
    ]
    found = file_order(items, tmp_path).tolist()
    assert found[0] == found[1] + 2, "p2 is between them, whoever it shows"
    assert found[2] >= found[0] + 1000
    assert len(set(found)) == len(items)
    assert np.diff(sorted(found[2:])).min() >= 1000


def test_a_picture_and_its_values_have_one_fingerprint(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50)).astype(np.uint8)  # rows
    Image.fromarray(pixels).save(tmp_path / "a.png")
    bits, content = picture_of({"image": "a.png"}, tmp_path)
    same, alike = hashes_of(pixels.T.astype(np.float32))
    assert np.array_equal(bits, same)
    assert content == alike
    assert bits.shape == (SIZE,)
    assert np.array_equal(bits, fingerprint(Image.fromarray(pixels.astype(np.float32))))
    assert picture_of({"image": ["a.png", "gone.png"], "diagnosis": 1}, str(tmp_path))[1] == content
    assert hashes_of(pixels.T[::-1].astype(np.float32))[1] != content
    with pytest.raises(ValueError, match="gone"):
        picture_of({"image": "gone.png"}, tmp_path)
