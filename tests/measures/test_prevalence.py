"""Probabilities moved to another prevalence by Bayes' rule."""

from __future__ import annotations

import pytest
import torch

from scripts.measures.prevalence import applied, given_prevalence, in_words, log_ratios, prevalence_in_use
from scripts.networks.classifiers import ImageClassifier
from tests.networks.nets import tiny

TRAINING = {"no_tumor": 0.5, "glioma": 0.3, "meningioma": 0.2}


def by_hand(probability, given):
    moved = [p * share / known for p, share, known in zip(probability, given.values(), TRAINING.values(), strict=True)]
    return [value / sum(moved) for value in moved]


def test_bayes_by_hand():
    # p(tumor) .8 at 50 %: odds 4; at 10 % odds 4 / 9.
    two = {"no_tumor": 0.5, "tumor": 0.5}
    shift = torch.tensor(log_ratios({"no_tumor": 0.9, "tumor": 0.1}, two), dtype=torch.float64)
    moved = torch.softmax(torch.log(torch.tensor([0.2, 0.8], dtype=torch.float64)) + shift, dim=0)
    assert moved[1].item() == pytest.approx((4 / 9) / (1 + 4 / 9))


@pytest.mark.parametrize("kind", ["evidence", "average_pool", "classifier"])
def test_the_probabilities_of_a_network_move_and_its_weights_do_not(kind):
    torch.manual_seed(0)
    if kind == "classifier":
        network = ImageClassifier("efficientnet-b0", 2, 1, 3).eval()
    else:
        network = tiny(head=kind)
    network.temperature.fill_(2.5)
    image = torch.rand(2, 1, 32, 32) + 0.1
    with torch.no_grad():
        before = torch.softmax(network(image, output="cls") / network.temperature, dim=1)
        state = {name: value.clone() for name, value in network.state_dict().items()}
        assert applied(network, None, TRAINING, list(TRAINING)) is network
        torch.testing.assert_close(before, torch.softmax(network(image, output="cls") / 2.5, dim=1), rtol=0, atol=0)
        applied(network, 0.1, dict(sorted(TRAINING.items())), list(TRAINING))  # YAML may sort the names
        after = torch.softmax(network(image, output="cls") / network.temperature, dim=1)
    given = {"no_tumor": 0.9, "glioma": 0.06, "meningioma": 0.04}
    for old, new in zip(before, after, strict=True):
        assert new.tolist() == pytest.approx(by_hand(old.tolist(), given), abs=1e-6)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert prevalence_in_use(network.class_shift, TRAINING, list(TRAINING)) == pytest.approx(given, abs=1e-6)


def test_shares_are_given_as_a_number_a_mapping_or_text():
    whole = {"no_tumor": 0.9, "glioma": 0.06, "meningioma": 0.04}
    for given in (0.1, "0.1", "glioma=0.06,meningioma=0.04", "no_tumor=0.9 glioma=0.06", {**whole}):
        assert given_prevalence(given, TRAINING) == pytest.approx(whole), given
    assert given_prevalence(None, None) is None
    assert in_words(whole).endswith("no tumor 90 %, glioma 6 %, meningioma 4 %")
    assert prevalence_in_use(torch.zeros(3), TRAINING, list(TRAINING)) is None
    assert prevalence_in_use(torch.ones(3), None, list(TRAINING)) is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (1.0, "sum to 1"),
        (0, "sum to 1"),
        ("often", "expected the share of any tumor"),
        ("glioma=x", "expected the share of any tumor"),
        ("glioma=0.1", "no_tumor, meningioma are missing"),
        ("lymphoma=0.1", "no class lymphoma"),
        ({"no_tumor": 0.5, "glioma": 0.1, "meningioma": 0.1}, "sum to 1"),
    ],
)
def test_shares_that_are_none_are_refused(given, reason):
    with pytest.raises(ValueError, match=reason):
        given_prevalence(given, TRAINING)


def test_what_is_not_known_of_the_training_is_said():
    with pytest.raises(ValueError, match="in the training of these weights are not known"):
        given_prevalence(0.1, None)
    with pytest.raises(ValueError, match="the training had no meningioma"):
        log_ratios({"no_tumor": 0.8, "glioma": 0.1, "meningioma": 0.1}, {**TRAINING, "meningioma": 0.0})
    with pytest.raises(ValueError, match="the network knows no_tumor, tumor"):
        applied(tiny(num_classes=2), 0.1, TRAINING, ["no_tumor", "tumor"])
