from __future__ import annotations

import math

import pytest
import torch

from scripts.explain.targets import (
    ClassMargin,
    ClassScore,
    SegmentationRegion,
    Target,
    TumorLogOdds,
    named_target,
)

LOGITS = torch.tensor([[1.0, 2.0, 0.5], [3.0, -1.0, 0.0]])


def test_class_score_takes_one_class_one_per_sample_or_the_top_one():
    assert ClassScore(2)(LOGITS).tolist() == [0.5, 0.0]
    assert ClassScore(torch.tensor([0, 1]))(LOGITS).tolist() == [1.0, -1.0]
    assert ClassScore([0, 1])(LOGITS).tolist() == [1.0, -1.0]
    assert ClassScore()(LOGITS).tolist() == [2.0, 3.0]
    assert ClassScore(torch.tensor([1]))(LOGITS).tolist() == [2.0, -1.0]


def test_names():
    targets = [ClassScore(2), ClassScore(), ClassScore([0, 1]), ClassMargin(1, 0), TumorLogOdds(), SegmentationRegion()]
    assert [t.name for t in targets] == [
        "class_2",
        "top_class",
        "given_class",
        "class_1_minus_class_0",
        "tumor_log_odds",
        "segmentation_1_predicted",
    ]
    assert SegmentationRegion(torch.ones(1, 2, 2), 0, mask_name="true_mask").name == "segmentation_0_true_mask"
    assert all(isinstance(t, Target) for t in targets)
    assert not isinstance(1, Target)
    assert not isinstance(torch.tensor([1]), Target)


@pytest.mark.parametrize("index", [3, -1, torch.tensor([0, 3]), torch.tensor([-1, 0])])
def test_wrong_class_is_an_error(index):
    with pytest.raises(ValueError, match=r"class index -?\d is not in 0\.\.2: the network has 3 classes"):
        ClassScore(index)(LOGITS)


def test_wrong_number_or_type_of_classes_is_an_error():
    with pytest.raises(ValueError, match="3 class indices for a batch of 2"):
        ClassScore(torch.tensor([0, 1, 2]))(LOGITS)
    for index in (torch.tensor([0.0, 1.0]), True, torch.tensor([True, False])):
        with pytest.raises(TypeError, match="expected an integer"):
            ClassScore(index)


def test_margin_and_log_odds_by_hand():
    assert ClassMargin(1, 0)(LOGITS).tolist() == [1.0, -4.0]
    expected = [math.log(math.exp(2) + math.exp(0.5)) - 1, math.log(math.exp(-1) + 1) - 3]
    torch.testing.assert_close(TumorLogOdds()(LOGITS), torch.tensor(expected))
    probability = LOGITS.softmax(1)[:, 1:].sum(1)
    torch.testing.assert_close(TumorLogOdds()(LOGITS).sigmoid(), probability)


def test_margin_takes_a_class_per_sample():
    margin = ClassMargin([1, 2], 0)
    assert margin(LOGITS).tolist() == [1.0, -3.0]
    assert margin.name == "given_class_minus_class_0"
    assert margin.take(torch.tensor([1, 1, 0]))(LOGITS[[1, 1, 0]]).tolist() == [-3.0, -3.0, 1.0]
    assert margin.weights(LOGITS).tolist() == [[-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]
    for positive, negative in ((1, 1), ([1, 2], [0, 2]), (torch.tensor([0, 1]), 1)):
        with pytest.raises(ValueError, match="the margin of a class to itself is always 0"):
            ClassMargin(positive, negative)
    with pytest.raises(TypeError, match="expected two classes"):
        ClassMargin(None, 0)


def test_targets_by_name_carry_the_name_and_score_what_it_says():
    classes, mask = torch.tensor([2, 1]), torch.tensor([[[0, 1]], [[1, 1]]])
    dense = torch.tensor([[[[1.0, 2.0]], [[3.0, 5.0]]], [[[0.0, 0.0]], [[7.0, 9.0]]]])
    expected = {
        "tumor_log_odds": TumorLogOdds()(LOGITS).tolist(),
        "top_class": [2.0, 3.0],
        "class_1": [2.0, -1.0],
        "true_class": [0.5, -1.0],
        "class_1_minus_class_0": [1.0, -4.0],
        "true_class_minus_class_0": [-0.5, -4.0],
        "segmentation_1_true_mask": [5.0, 8.0],
        "segmentation_1_predicted": [4.0, 8.0],
        "segmentation_0_true_mask": [2.0, 0.0],
    }
    for name, scores in expected.items():
        target = named_target(name, classes, mask)
        output = dense if name.startswith("segmentation") else LOGITS
        assert target(output).tolist() == scores, name
        assert target.name == name
        bound = target.bind(output)
        assert bound.name == name
        assert bound.take(torch.tensor([1]))(output[1:]).tolist() == scores[1:]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tumor", "unknown target 'tumor'; expected tumor_log_odds, top_class"),
        ("segmentation_1", "unknown target"),
        ("true_class", "needs the true classes of the cases"),
        ("true_class_minus_class_0", "needs the true classes of the cases"),
        ("segmentation_1_true_mask", "needs the true masks of the cases"),
        ("class_1_minus_class_1", "the margin of a class to itself"),
    ],
)
def test_a_name_that_says_nothing_or_needs_more_is_an_error(name, message):
    with pytest.raises(ValueError, match=message):
        named_target(name)


@pytest.mark.parametrize(
    "target",
    [ClassScore(1), ClassScore(), ClassScore([2, 0]), ClassMargin(2, 1), ClassMargin([2, 0], 1), TumorLogOdds()],
)
def test_weights_are_the_gradient_by_the_logits(target):
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(target(logits).sum(), logits)
    torch.testing.assert_close(target.weights(LOGITS), gradient)


def test_targets_refuse_outputs_that_they_do_not_fit():
    for target, output in (
        (TumorLogOdds(), torch.zeros(2, 1)),
        (ClassScore(0), torch.zeros(2, 3, 4, 4)),
        (ClassMargin(3, 0), LOGITS),
        (SegmentationRegion(), LOGITS),
        (SegmentationRegion(channel=2), torch.zeros(2, 2, 4, 4)),
        (SegmentationRegion(torch.ones(2, 1, 3, 3)), torch.zeros(2, 2, 4, 4)),
    ):
        with pytest.raises(ValueError, match=r"expects|is not in|does not fit"):
            target(output)
    with pytest.raises(ValueError, match="two different classes"):
        ClassMargin(1, 1)


def test_segmentation_region_predicted_and_given_by_hand():
    logits = torch.zeros(2, 2, 2, 2)
    logits[0, 1] = torch.tensor([[1.0, 3.0], [-1.0, -5.0]])
    logits[1, 1] = -1.0
    # Sample 0 predicts two pixels; sample 1 none: nothing to explain, score 0.
    assert SegmentationRegion()(logits).tolist() == [2.0, 0.0]
    assert SegmentationRegion(reduction="sum")(logits).tolist() == [4.0, 0.0]
    mask = torch.tensor([[[0, 1], [0, 1]], [[1, 0], [0, 0]]])
    assert SegmentationRegion(mask)(logits).tolist() == [-1.0, -1.0]
    assert SegmentationRegion(mask[:, None])(logits).tolist() == [-1.0, -1.0]
    assert SegmentationRegion(channel=0)(logits[:, 1:]).tolist() == [2.0, 0.0]  # one channel: above 0 is predicted


def test_values_outside_the_region_do_not_matter_even_if_not_finite():
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 1] = torch.tensor([[2.0, -torch.inf]])
    assert SegmentationRegion()(logits).tolist() == [2.0]


def test_bound_targets_keep_their_choice_and_name():
    bound = ClassScore().bind(LOGITS)
    assert bound.name == "top_class"
    assert bound(-LOGITS).tolist() == [-2.0, -3.0]
    assert bound.take(torch.tensor([1, 1, 0]))(LOGITS[[1, 1, 0]] * 2).tolist() == [6.0, 6.0, 4.0]
    dense = torch.stack([torch.zeros(2, 2), torch.tensor([[1.0, 3.0], [-1.0, -5.0]])])[None]
    region = SegmentationRegion().bind(dense)
    assert region.name == "segmentation_1_predicted"
    assert region(-dense).tolist() == [-2.0]
    assert region.take(torch.tensor([0, 0]))(-dense.repeat(2, 1, 1, 1)).tolist() == [-2.0, -2.0]


def test_half_precision_scores_are_float32():
    assert TumorLogOdds()(LOGITS.bfloat16()).dtype == torch.float32
    assert TumorLogOdds()(LOGITS.double()).dtype == torch.float64


def test_weights_of_a_temperature_are_the_gradient_and_the_score_is_in_units_of_the_logits():
    logits = LOGITS.clone().requires_grad_()
    hot = TumorLogOdds(2.0)
    (gradient,) = torch.autograd.grad(hot(logits).sum(), logits)
    torch.testing.assert_close(hot.weights(LOGITS), gradient)
    expected = [2 * math.log(math.exp(1) + math.exp(0.25)) - 1, 2 * math.log(math.exp(-0.5) + 1) - 3]
    torch.testing.assert_close(hot(LOGITS), torch.tensor(expected))
    assert torch.equal(named_target("tumor_log_odds", temperature=2.0)(LOGITS), hot(LOGITS))
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature is more than 0"):
            TumorLogOdds(wrong)


def test_the_temperature_of_a_network_is_the_one_that_it_carries():
    class Network:
        temperature = torch.tensor(3.0)

    assert TumorLogOdds.of(Network()).temperature == 3.0
    assert TumorLogOdds.of(object()).temperature == 1.0
    assert torch.equal(named_target("tumor_log_odds")(LOGITS), TumorLogOdds()(LOGITS))


def test_targets_of_all_samples_alike_are_taken_and_bound_as_they_are():
    for target in (TumorLogOdds(), ClassScore(1), ClassMargin(1, 0)):
        assert torch.equal(target.take(torch.tensor([1]))(LOGITS[1:]), target(LOGITS)[1:])
        assert torch.equal(target.bind(LOGITS)(-LOGITS), target(-LOGITS))
        assert target.bind(LOGITS).name == target.name
    bound = ClassScore().bind(LOGITS)
    assert bound.weights(LOGITS).tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    assert ClassScore([0, 1]).take(torch.tensor([1, 1])).class_idx.tolist() == [1, 1]


@pytest.mark.parametrize("index", [torch.zeros(2, 2, dtype=torch.long), torch.tensor([1j]), [0.5, 1.0], "1"])
def test_what_is_no_class_is_refused(index):
    with pytest.raises((TypeError, ValueError)):
        ClassScore(index)


def test_outputs_of_too_few_classes_or_axes_are_refused():
    for target, output, least in ((ClassScore(0), torch.zeros(2), 1), (ClassMargin(0, 1), torch.zeros(2, 1), 2)):
        with pytest.raises(ValueError, match=rf"expects class logits \(B, K\) with K >= {least}"):
            target(output)
        with pytest.raises(ValueError, match="expects class logits"):
            target.weights(output)
    with pytest.raises(ValueError, match="got list"):
        ClassScore(0)([1.0])
    with pytest.raises(ValueError, match=r"expects class logits .* got \(2, 0\)"):
        ClassScore()(torch.zeros(2, 0))
    assert ClassScore(0)(torch.zeros(2, 1)).tolist() == [0.0, 0.0]
    for index in (1, 0):
        assert TumorLogOdds().weights(torch.zeros(1, 2)).tolist()[0][index] == (1.0 if index else -1.0)


def test_regions_are_above_zero_and_of_their_own_grid():
    dense = torch.tensor([[[[0.0, 1.0, -1.0]]]])
    assert SegmentationRegion(channel=0).region(dense).tolist() == [[[False, True, False]]]
    soft = SegmentationRegion(torch.tensor([[[0.5, 0.0, -1.0]]]), channel=0)
    assert soft.region(dense).tolist() == [[[True, False, False]]]
    volume = torch.zeros(1, 2, 2, 1, 3)
    for mask in (torch.ones(1, 1, 2, 1, 3), torch.ones(1, 2, 1, 3)):
        assert SegmentationRegion(mask).region(volume).shape == (1, 2, 1, 3)
    for mask in (torch.ones(1, 1, 1, 3), torch.ones(2, 1, 2, 1, 3), torch.ones(1, 2, 2, 1, 3)):
        with pytest.raises(ValueError, match=r"does not fit the output \(1, 2, 2, 1, 3\); expected \(1, 1, 2, 1, 3\)"):
            SegmentationRegion(mask).region(volume)
    with pytest.raises(ValueError, match="got dict"):
        SegmentationRegion().region({})
    with pytest.raises(ValueError, match="expected 'mean' or 'sum', got 'max'"):
        SegmentationRegion(reduction="max")
    for channel in (-1, 2):
        with pytest.raises(ValueError, match=rf"class index {channel} is not in 0\.\.1"):
            SegmentationRegion(channel=channel).region(volume)


def test_bound_and_taken_regions_keep_reduction_and_name():
    dense = torch.tensor([[[[0.0, 0.0]], [[1.0, 3.0]]], [[[0.0, 9.0]], [[5.0, 2.0]]]])
    total = SegmentationRegion(reduction="sum")
    assert total(dense).tolist() == [4.0, 5.0]
    assert total.bind(dense)(2 * dense).tolist() == [8.0, 10.0]
    assert total.take(torch.tensor([1]))(dense[1:]).tolist() == [5.0]
    given = SegmentationRegion(torch.tensor([[[1, 0]], [[1, 1]]]), 0, "sum", "mine")
    assert (given.name, given.bind(dense).name, given.take(torch.tensor([1])).name) == ("segmentation_0_mine",) * 3
    assert given.take(torch.tensor([1, 0]))(dense.flip(0)).tolist() == [9.0, 0.0]
    assert SegmentationRegion(torch.ones(1, 1, 2)).name == "segmentation_1_given_mask"
    assert given(dense.half()).dtype == torch.float32
