from __future__ import annotations

from collections import Counter

import pytest

from scripts.samplers import MixedBatchSampler, has_mask

MASKED = [i % 5 == 0 for i in range(50)]  # 10 with a mask, 40 without


def batches(sampler: MixedBatchSampler, epoch: int = 1) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_without_share_every_item_comes_once():
    found = batches(MixedBatchSampler(MASKED, batch_size=8))
    assert [len(b) for b in found] == [8] * 6 + [2]
    assert sorted(i for b in found for i in b) == list(range(50))
    assert [i for b in found for i in b] != list(range(50)), "shuffled"


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 2), (0.5, 4), (0.75, 6), (1.0, 8), (0.3, 2)])
def test_share_is_exact_in_every_batch(share, expected):
    sampler = MixedBatchSampler(MASKED, batch_size=8, masked_share=share)
    found = batches(sampler)
    assert len(found) == len(sampler) == 7
    for batch in found:
        assert len(batch) == 8
        assert sum(MASKED[i] for i in batch) == expected


def test_scarce_items_repeat_evenly_and_each_is_seen_before_any_again():
    found = batches(MixedBatchSampler(MASKED, batch_size=8, masked_share=0.5))
    masked = [i for b in found for i in b if MASKED[i]]
    assert len(masked) == 28
    assert sorted(masked[:10]) == sorted(masked[10:20]) == [i for i in range(50) if MASKED[i]]
    assert set(Counter(masked).values()) == {2, 3}
    unmasked = [i for b in found for i in b if not MASKED[i]]
    assert len(set(unmasked)) == len(unmasked) == 28


@pytest.mark.parametrize("share", [None, 0.5])
def test_order_depends_on_seed_and_epoch_alone(share):
    def order(seed: int, epoch: int) -> list[list[int]]:
        return batches(MixedBatchSampler(MASKED, 8, share, seed=seed), epoch)

    sampler = MixedBatchSampler(MASKED, 8, share, seed=3)
    for epoch in (4, 1, 2):
        batches(sampler, epoch)
    assert batches(sampler, 2) == order(3, 2), "whatever was drawn before"
    assert list(sampler) == list(sampler), "asking twice does not advance it"
    assert order(3, 2) != order(3, 3)
    assert order(3, 2) != order(4, 2)
    assert order(1, 2) != order(2, 1), "seed and epoch do not trade places"


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="no items to draw batches from"):
        MixedBatchSampler([], 4)
    with pytest.raises(ValueError, match=r"masked_share lies between 0 and 1, got 1\.5"):
        MixedBatchSampler(MASKED, 4, 1.5)
    with pytest.raises(ValueError, match=r"masked_share=0\.5 asks for items with a mask, and there are none"):
        MixedBatchSampler([False] * 8, 4, 0.5)
    with pytest.raises(ValueError, match=r"masked_share=0\.5 asks for items without a mask, and there are none"):
        MixedBatchSampler([True] * 8, 4, 0.5)
    MixedBatchSampler([True] * 8, 4, 1.0)


def test_items_with_a_mask_are_those_with_a_label():
    assert has_mask([{"image": "a"}, {"image": "b", "label": "m"}]) == [False, True]
