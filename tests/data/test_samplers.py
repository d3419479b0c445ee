from __future__ import annotations

from collections import Counter

import pytest

from scripts.data.samplers import MixedBatchSampler, groups, has_mask

MASKED = [i % 5 == 0 for i in range(50)]  # 10 with a mask, 40 without


def batches(sampler: MixedBatchSampler, epoch: int = 1) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_without_share_every_item_comes_once():
    found = batches(MixedBatchSampler(MASKED, batch_size=8))
    assert [len(b) for b in found] == [8] * 6 + [2]
    assert sorted(i for b in found for i in b) == list(range(50))
    assert [i for b in found for i in b] != list(range(50)), "shuffled"


def test_an_epoch_may_go_through_the_items_several_times_each_seen_before_any_again():
    sampler = MixedBatchSampler(MASKED, batch_size=8, repeats=3)
    found = batches(sampler)
    assert [len(b) for b in found] == [8] * 18 + [6]
    assert len(found) == len(sampler)
    drawn = [i for b in found for i in b]
    assert all(sorted(drawn[k : k + 50]) == list(range(50)) for k in (0, 50, 100))
    assert [draw.place for b in found for draw in b] == list(range(150)), "each is augmented on its own"
    shared = batches(MixedBatchSampler(MASKED, batch_size=8, masked_share=0.5, repeats=3))
    assert len(shared) == 19
    assert sum(MASKED[i] for b in shared for i in b) == 76


def test_an_epoch_of_no_pass_is_refused():
    with pytest.raises(ValueError, match="1 or more times, got 0"):
        MixedBatchSampler(MASKED, batch_size=8, repeats=0)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 2), (0.5, 4), (0.75, 6), (1.0, 8)])
def test_whole_numbers_are_exact_in_every_batch(share, expected):
    sampler = MixedBatchSampler(MASKED, batch_size=8, masked_share=share)
    found = batches(sampler)
    assert len(found) == len(sampler) == 7
    for batch in found:
        assert len(batch) == 8
        assert sum(MASKED[i] for i in batch) == expected


@pytest.mark.parametrize(("share", "epoch", "batch"), [(0.3, 17, {2, 3}), (0.1, 6, {0, 1}), (0.97, 54, {7, 8})])
def test_other_shares_are_met_over_the_epoch_to_the_whole_item(share, epoch, batch):
    found = batches(MixedBatchSampler(MASKED, batch_size=8, masked_share=share))
    per_batch = [sum(MASKED[i] for i in b) for b in found]
    assert [len(b) for b in found] == [8] * 7
    assert sum(per_batch) == epoch == round(share * 56)
    assert set(per_batch) == batch


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


# 60 items: source a has masks (glioma 16, none 4), source b has none (glioma 10, meningioma 10, none 20).
KINDS = [("a", 1, True)] * 16 + [("a", 0, True)] * 4 + [("b", 1, False)] * 10 + [("b", 2, False)] * 10
KINDS += [("b", 0, False)] * 20
FLAGS = [mask for *_, mask in KINDS]
GROUPS = {"class": [k for _, k, _ in KINDS], "source": [s for s, *_ in KINDS]}


def mixed(batch_size: int = 12, masked_share: float | None = None, **options) -> MixedBatchSampler:
    return MixedBatchSampler(FLAGS, batch_size, masked_share, groups=GROUPS, **options)


def measured(found: list[list[int]], place: int) -> dict:
    return dict(Counter(KINDS[i][place] for batch in found for i in batch))


def test_class_shares_are_exact_in_every_batch():
    found = batches(mixed(shares={"class": {0: 0.5, "1": 0.25, 2: 0.25}}))
    assert len(found) == 5
    for batch in found:
        assert measured([batch], 1) == {0: 6, 1: 3, 2: 3}
    within = Counter(KINDS[i] for batch in found for i in batch if KINDS[i][1] == 0)
    assert within == {("a", 0, True): 5, ("b", 0, False): 25}, "within a class as in the data, 4 to 20"


def test_shares_of_class_source_and_mask_are_met_at_once():
    sampler = mixed(10, 0.4, shares={"class": {0: 0.3, 1: 0.5, 2: 0.2}, "source": {"a": 0.4, "b": 0.6}})
    found = batches(sampler)
    assert [len(batch) for batch in found] == [10] * 6
    assert measured(found, 0) == {"a": 24, "b": 36}
    assert measured(found, 1) == {0: 18, 1: 30, 2: 12}
    assert measured(found, 2) == {True: 24, False: 36}
    assert sampler.counts["class"] == {"0": 18, "1": 30, "2": 12}
    for batch in found:  # spread evenly: each batch about the mix of all
        assert abs(sum(KINDS[i][2] for i in batch) - 4) <= 1


def test_equal_shares_and_shares_that_are_no_whole_numbers():
    assert measured(batches(mixed(12, shares={"class": "equal"})), 1) == {0: 20, 1: 20, 2: 20}
    found = batches(MixedBatchSampler(FLAGS, 7, groups=GROUPS, shares={"class": "equal", "source": None}))
    assert sorted(measured(found, 1).values()) == [21, 21, 21]  # 9 batches of 7
    found = batches(mixed(8, shares={"source": {"a": 0.3, "b": 0.7}}))
    assert measured(found, 0) == {"a": 19, "b": 45}  # of 64: 19.2 and 44.8
    assert {sum(KINDS[i][0] == "a" for i in batch) for batch in found} == {2, 3}


def test_a_share_of_zero_leaves_a_value_out():
    assert measured(batches(mixed(shares={"class": {0: 0, 1: 0.5, 2: 0.5}})), 1) == {1: 30, 2: 30}


@pytest.mark.parametrize(("share", "masked"), [(None, 3), (0.2, 1), (0.6, 4)])
def test_alternating_batches_are_all_with_or_all_without_masks(share, masked):
    found = batches(mixed(10, share, alternating=True))
    kinds = [{FLAGS[i] for i in batch} for batch in found]
    assert all(len(kind) == 1 for kind in kinds)
    assert [len(batch) for batch in found] == [10] * 6
    assert kinds.count({True}) == masked
    if share is None:
        assert kinds == [{True}, {False}] * 3


def test_alternating_keeps_the_class_shares():
    found = batches(mixed(10, alternating=True, shares={"class": {0: 0.3, 1: 0.5, 2: 0.2}}))
    assert measured(found, 1) == {0: 18, 1: 30, 2: 12}
    assert all(len({FLAGS[i] for i in batch}) == 1 for batch in found)


def test_drawing_with_shares_depends_on_seed_and_epoch_alone():
    shares = {"class": "equal"}
    assert batches(mixed(shares=shares, seed=1), 2) == batches(mixed(shares=shares, seed=1), 2)
    assert batches(mixed(shares=shares, seed=1), 2) != batches(mixed(shares=shares, seed=1), 3)
    assert batches(mixed(shares=shares, seed=1), 2) != batches(mixed(shares=shares, seed=2), 2)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"shares": {"class": {0: 0.5, 1: 0.4, 2: 0.2}}}, "must be 0 or more and sum to 1"),
        ({"shares": {"class": {0: 0.5, 1: 0.5}}}, r"leave \['2'\] unnamed; give 0 to leave them out"),
        ({"shares": {"source": {"a": 0.5, "c": 0.5}}}, r"ask for \['c'\], and the items have only \['a', 'b'\]"),
        ({"shares": {"class": "even"}}, "numbers by value, or 'equal'; got 'even'"),
        ({"shares": {"plane": "equal"}}, "shares are given for 'plane', but the attributes are: class, source"),
        ({"masked_share": 0.5, "shares": {"source": {"a": 0.2, "b": 0.8}}}, "the shares contradict each other"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
    ],
)
def test_shares_that_cannot_be_met_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        mixed(**options)
    with pytest.raises(ValueError, match="alternating asks for items with a mask, and there are none"):
        MixedBatchSampler([False] * 4, 2, alternating=True)


def test_attributes_of_items():
    items = [{"image": "a", "diagnosis": 2, "source": "x"}, {"image": "b", "label": "m"}]
    assert groups(items) == {"class": [2, -1], "source": ["x", "unknown"]}
