"""All causes of a heatmap in the background at once: which hold, and which follow from others."""

from __future__ import annotations

import matplotlib
import torch
from monai.visualize.class_activation_maps import default_normalizer

from scripts.explain.diagnosis import CAUSES, diagnose
from scripts.explain.findings import CANNOT_TELL, DOES_NOT_HOLD, FOLLOWS, HOLDS
from scripts.explain.maps import max_scaling
from scripts.explain.targets import ClassScore, TumorLogOdds
from tests.explain.nets import CLS, PooledLinear, assert_same_state, state_of, stock
from tests.networks.nets import heads, tiny


def turbo(values):
    return matplotlib.colormaps["turbo"](values)


def arguments(x):
    inside = x != 0
    tumor = torch.zeros_like(x)
    tumor[..., 9:15, 9:15] = 1
    return {
        "x": x,
        "foreground": inside,
        "labels": [0, 1],
        "tumor": tumor,
        "postprocessing": max_scaling,
        "colorize": turbo,
        "forward_kwargs": CLS,
        "pad": 4,
    }


def test_nothing_holds_on_our_network_and_the_pipeline_as_it_should_be():
    network, x = tiny(), heads()
    before, original = state_of(network), x.clone()
    found = diagnose(network, target=TumorLogOdds(), **arguments(x))
    assert_same_state(before, state_of(network))
    assert torch.equal(x, original)
    assert {f.cause: f.verdict for f in found} == {
        "inverted normalizer": DOES_NOT_HOLD,
        "swapped colors": DOES_NOT_HOLD,
        "air not zero": DOES_NOT_HOLD,
        "order of transforms": DOES_NOT_HOLD,
        "source or air shortcut": CANNOT_TELL,
        "normalization leak": DOES_NOT_HOLD,
        "pooling over air": DOES_NOT_HOLD,
        "verdict without the tumor": CANNOT_TELL,
        "gradient averaging": DOES_NOT_HOLD,
        "wrong class index": CANNOT_TELL,
        "dead or saturated gradient": DOES_NOT_HOLD,
        "unsuitable layer": DOES_NOT_HOLD,
        "coarse grid": DOES_NOT_HOLD,
    }
    assert [f.cause for f in found] == list(CAUSES)
    assert all(f.reason for f in found)
    assert all(f.advice for f in found if f.verdict != CANNOT_TELL and f.figures)


def test_the_stock_design_is_told_its_two_faults_and_no_other():
    found = diagnose(stock(), target=TumorLogOdds(), layer="bottleneck", **arguments(heads()))
    assert [f.cause for f in found if f.verdict == HOLDS] == ["normalization leak", "pooling over air"]


def test_faults_of_the_pipeline_are_told_apart_from_those_of_the_network():
    x = heads(batch=2).repeat(4, 1, 1, 1)
    given = arguments(x)
    mean = x.mean((1, 2, 3), keepdim=True)
    given |= {
        "x": (x - mean) / x.std((1, 2, 3), keepdim=True),  # over the whole image, after masking
        "postprocessing": default_normalizer,
        "colorize": lambda values: turbo(values)[..., 2::-1],
        "labels": [1, 0] * 4,  # as this network tells them
        "sources": ["tumors", "healthy"] * 4,
    }
    given["forward_kwargs"] = {**CLS, "foreground": given["foreground"].float()}
    found = diagnose(tiny(), target=TumorLogOdds(), **given)
    assert [f.cause for f in found if f.verdict == HOLDS] == [
        "inverted normalizer",
        "swapped colors",
        "order of transforms",
        "source or air shortcut",
    ]
    assert {f.cause: f.follows for f in found if f.verdict == FOLLOWS} == {"air not zero": "order of transforms"}


def test_the_reference_class_has_a_dead_gradient_and_the_layer_is_not_to_blame():
    network, x = tiny(), heads()
    found = {f.cause: f for f in diagnose(network, target=ClassScore(0), **arguments(x))}
    assert found["dead or saturated gradient"].verdict == HOLDS
    assert "exactly 0 everywhere: class_0 is a constant" in found["dead or saturated gradient"].reason
    assert found["unsuitable layer"].verdict == DOES_NOT_HOLD
    assert found["gradient averaging"].verdict == CANNOT_TELL


def test_a_logit_that_is_fixed_has_no_gradient_though_the_layer_is_sound():
    class Fixed(PooledLinear):
        def forward(self, x):
            return torch.cat([super().forward(x)[:, 1:], torch.zeros(len(x), 1)], 1)

    x = heads()
    for target, why in ((ClassScore(2), "constant"), (ConstantTarget(), "constant")):
        found = {f.cause: f for f in diagnose(Fixed(), x, x != 0, target, "relu", labels=[0, 2], pad=4)}
        assert found["dead or saturated gradient"].verdict == HOLDS
        assert why in found["dead or saturated gradient"].reason
        assert found["unsuitable layer"].verdict != HOLDS


class ConstantTarget(ClassScore):
    """A score that is cut off from the network."""

    def __call__(self, output):
        return torch.zeros(len(output), requires_grad=True)

    def take(self, index):
        return self


def test_a_layer_that_is_not_there_is_a_finding_and_the_rest_cannot_tell():
    found = {f.cause: f for f in diagnose(tiny(), target=TumorLogOdds(), layer="bottlenek", **arguments(heads()))}
    assert found["unsuitable layer"].verdict == HOLDS
    assert "nearest: 'bottleneck'" in found["unsuitable layer"].reason
    assert found["gradient averaging"].verdict == found["coarse grid"].verdict == CANNOT_TELL
    assert found["normalization leak"].verdict == DOES_NOT_HOLD
