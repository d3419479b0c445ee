"""Items as they are drawn: each with a place that seeds its augmentation, shared out among processes."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from monai.transforms import Randomizable

from scripts.data.samplers import (
    DrawnItems,
    MixedBatchSampler,
    SampleIndex,
    ShareSampler,
    both_shares,
    checked_shares,
    has_mask,
)


class Noise(Randomizable):
    """A random transform: a number of its own state."""

    def __call__(self, item):
        return {**item, "drawn": float(self.R.random())}


class Items:
    def __init__(self, count: int, random: bool = True):
        self.items = [{"name": f"c{k}", "has_mask": True, "diagnosis": 1} for k in range(count)]
        self.transform = Noise() if random else None

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.augmented(self.items[index])

    def augmented(self, item):
        return self.transform(item) if self.transform else item


def drawn(index, seed=0, epoch=0, **options) -> float:
    items = DrawnItems(Items(9), seed, **options)
    items.set_epoch(epoch)
    return items[index]["drawn"]


def test_an_item_is_a_function_of_seed_epoch_and_place_alone():
    first = drawn(SampleIndex(3, 7), 1, 2)
    items = DrawnItems(Items(9), 1)
    items.set_epoch(2)
    for k in range(4):
        items[k]
    assert items[SampleIndex(3, 7)]["drawn"] == first, "whatever was drawn before"
    others = [drawn(SampleIndex(3, 8), 1, 2), drawn(SampleIndex(3, 7), 2, 2), drawn(SampleIndex(3, 7), 1, 3)]
    others.append(drawn(SampleIndex(3, 7), 2, 1))
    assert len({first, *others}) == 5
    assert drawn(SampleIndex(5, 7), 1, 2) == first, "the place seeds it, not the item"
    assert drawn(5) == drawn(SampleIndex(5, 5)), "a plain index is its own place"
    assert DrawnItems(Items(9)).seed == DrawnItems(Items(9)).epoch == 0


def test_items_carry_their_index_and_fillers_do_not_count():
    items = DrawnItems(Items(9, random=False))
    assert len(items) == 9
    assert items[SampleIndex(4, 0)] == {"name": "c4", "has_mask": True, "diagnosis": 1, "index": 4}
    assert items[SampleIndex(4, 0, filler=True)] == {"name": "c4", "has_mask": False, "diagnosis": -1, "index": 4}
    assert DrawnItems(SimpleNamespace(transform=None, __getitem__=None)).change is None


def test_a_change_is_made_before_the_augmentation_with_random_numbers_of_its_own():
    data = Items(9)
    seen = []

    def change(index, rng):
        seen.append((index, float(rng.random())))
        return {**data.items[index], "name": "changed"}

    items = DrawnItems(data, 3, change)
    plain = DrawnItems(Items(9), 3)[SampleIndex(2, 6)]
    found = items[SampleIndex(2, 6)]
    assert found == {**plain, "name": "changed"}, "the augmentation is the same"
    items[SampleIndex(2, 6)], items[SampleIndex(2, 7)]
    assert seen[0] == seen[1] != seen[2]
    assert seen[0][0] == 2
    assert seen[0][1] != found["drawn"]


def test_a_draw_is_a_number_with_a_place_also_in_another_process():
    draw = pickle.loads(pickle.dumps(SampleIndex(3, 7, filler=True)))
    assert (draw, draw.place, draw.filler) == (3, 7, True)
    assert (SampleIndex(3, 7).filler, SampleIndex(3, 7) + 1) == (False, 4)


def test_processes_share_the_items_without_a_rest():
    shares = [ShareSampler(range(10), rank, 3) for rank in range(3)]
    assert [list(share) for share in shares] == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert [len(share) for share in shares] == [4, 3, 3]
    assert list(ShareSampler(range(4))) == [0, 1, 2, 3]
    assert [list(ShareSampler(range(3), rank, 3)) for rank in range(3)] == [[0], [1], [2]]
    with pytest.raises(ValueError, match="2 items cannot be shared by 3 processes"):
        ShareSampler(range(2), 0, 3)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_draw_the_batches_of_one_with_the_same_mix(world):
    flags = [k % 2 == 0 for k in range(26)]
    options = {"masked_share": 0.5, "seed": 4}
    whole = list(MixedBatchSampler(flags, 6, **options))
    parts = [list(MixedBatchSampler(flags, 6, rank=rank, world=world, **options)) for rank in range(world)]
    for k, batch in enumerate(whole):
        draws = [(int(d), d.place) for part in parts for d in part[k]]
        assert sorted(draws) == sorted((int(d), d.place) for d in batch)
        masked = [sum(flags[d] for d in part[k]) for part in parts]
        assert max(masked) - min(masked) <= 1
        assert not any(d.filler for part in parts for d in part[k])
    assert [d.place for batch in whole for d in batch] == list(range(30))


def test_a_process_without_an_item_of_the_last_batch_gets_one_that_does_not_count():
    parts = [list(MixedBatchSampler([True] * 5, 4, rank=rank, world=2)) for rank in range(2)]
    assert [[d.filler for d in batch] for batch in parts[0]] == [[False, False], [False]]
    assert [[d.filler for d in batch] for batch in parts[1]] == [[False, False], [True]]
    assert parts[1][1] == parts[0][1]
    MixedBatchSampler([True] * 5, 2, world=2)
    with pytest.raises(ValueError, match="batch_size 1 is less than 2 processes"):
        MixedBatchSampler([True] * 5, 1, world=2)
    with pytest.raises(ValueError, match="'class' has 3 values for 5 items"):
        MixedBatchSampler([True] * 5, 2, groups={"class": [0, 1, 2]}, shares={"class": "equal"})


def test_a_share_is_one_number_for_both_or_two():
    assert both_shares(0.25) == (0.25, 0.25)
    assert both_shares(0) == (0.0, 0.0)
    assert both_shares(1) == (1.0, 1.0)
    assert both_shares([0.5, 1]) == (0.5, 1.0)
    for wrong in ([0.5], [0.1, 0.2, 0.3], [-0.1, 0.5], [0.5, 1.1], -0.1, 1.5, ["a", 0.5]):
        with pytest.raises(ValueError, match="between 0 and 1, one number or two"):
            both_shares(wrong)


def test_shares_are_checked_to_rounding():
    assert checked_shares("class", "equal", ["b", "a", "b", "c"]) == {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}
    assert checked_shares("class", {0: 0.3, 1: 0.7}, ["0", "1"]) == {"0": 0.3, "1": 0.7}
    thirds = {"a": 0.3333333, "b": 0.3333333, "c": 0.3333333}
    assert checked_shares("class", thirds, ["a", "b", "c"]) == thirds
    assert checked_shares("class", {"a": 1, "z": 0}, ["a"]) == {"a": 1.0, "z": 0.0}, "of none nothing is asked"
    for wrong in ({"a": 0.333, "b": 0.333, "c": 0.333}, {"a": -0.5, "b": 0.5, "c": 1.0}, {}):
        with pytest.raises(ValueError, match="0 or more and sum to 1"):
            checked_shares("class", wrong, ["a", "b", "c"])


def test_a_mask_is_known_of_items_that_carry_one_or_are_free_of_lesions():
    items = [{"label": "m"}, {"lesion_free": True}, {"lesion_free": False}, {}]
    assert has_mask(items) == [True, True, False, False]


def test_largest_remainders_get_the_rest_and_ties_go_by_name():
    flags, values = [True] * 30, ["a", "b", "c"] * 10
    sampler = MixedBatchSampler(flags, 10, groups={"kind": values}, shares={"kind": {"a": 0.25, "b": 0.25, "c": 0.5}})
    assert sampler.counts["kind"] == {"a": 8, "b": 7, "c": 15}  # of 30: 7.5, 7.5 and 15
    tenths = {"a": 0.1, "b": 0.2, "c": 0.7}
    assert MixedBatchSampler(flags, 10, groups={"kind": values}, shares={"kind": tenths}).counts["kind"] == {
        "a": 3, "b": 6, "c": 21,
    }  # fmt: skip


def test_each_share_of_batches_is_rounded_where_masks_alternate():
    flags = [True, False] * 10
    for share, masked in ((0.12, 0), (0.13, 1), (0.5, 2), (0.37, 1), (0.38, 2), (1.0, 4)):
        batches = list(MixedBatchSampler(flags, 5, share, alternating=True))
        assert sum(all(flags[i] for i in batch) for batch in batches) == masked, share
    rng = np.random.default_rng(0)
    assert len(list(MixedBatchSampler(rng.random(7) < 2, 3))) == 3
