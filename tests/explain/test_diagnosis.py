"""All causes of a heatmap in the background at once: which hold, and which follow from others."""

from __future__ import annotations

import matplotlib
import torch
from monai.visualize.class_activation_maps import default_normalizer

from scripts.explain.diagnosis import CAUSES, diagnose
from scripts.explain.findings import CANNOT_TELL, DOES_NOT_HOLD, FOLLOWS, HOLDS, Finding
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


def pooled(**options):
    """Findings by cause of a small network on images whose air is one column in four."""
    x = (torch.rand(2, 1, 16, 16) + 0.5) * torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1)
    inside = torch.ones_like(x)
    inside[..., :4] = 0
    x, net = options.pop("x", x * inside), PooledLinear()
    with torch.no_grad():  # what is bright speaks for class 1
        net.conv.weight.fill_(0.1)
        net.conv.bias.fill_(0.1)
        net.fc.weight.copy_(torch.tensor([-1.0, 1.0, 0.0])[:, None].expand(3, 4))
    found = diagnose(net, x, inside, ClassScore(1), **{"layer": "relu", "pad": 2, **options})
    return {finding.cause: finding for finding in found}


def test_what_was_not_given_is_named_and_asked_for():
    found = pooled()
    for cause, what in (
        ("inverted normalizer", "the normalizer of your maps was not given"),
        ("swapped colors", "the color map was not given"),
        ("source or air shortcut", "the source or the label of each image was not given"),
        ("coarse grid", "tumor masks were not given"),
        ("wrong class index", "the labels of the images were not given"),
    ):
        assert (found[cause].verdict, found[cause].reason) == (CANNOT_TELL, what)
        assert found[cause].advice
    assert found["coarse grid"].figures == {"cells": 256.0}
    for options in ({"sources": ["a", "b"]}, {"labels": [0, 1]}):
        assert pooled(**options)["source or air shortcut"].verdict == CANNOT_TELL, "it takes both"


def test_sources_are_held_against_labels_unless_more_is_known_of_them():
    options = {"sources": ["a", "b"], "labels": [0, 1]}
    assert "shuffled labels" in pooled(**options)["source or air shortcut"].reason
    known = Finding("source or air shortcut", DOES_NOT_HOLD, {}, "looked at elsewhere")
    assert pooled(**options, shortcut=known)["source or air shortcut"] == known


def test_an_estimated_foreground_may_miss_a_few_pixels():
    x = torch.rand(2, 1, 16, 16) + 0.5
    x[..., :4] = 0
    for count, strict, estimated in ((0, DOES_NOT_HOLD, DOES_NOT_HOLD), (1, HOLDS, HOLDS)):
        x[0, 0, 0, :count] = 0.5  # of 128: more than the half percent that may be
        assert pooled(x=x)["air not zero"].verdict == strict
        assert pooled(x=x, estimated=True)["air not zero"].verdict == estimated
    large, inside = torch.zeros(1, 1, 20, 20), torch.zeros(1, 1, 20, 20)
    inside[..., 10:, 10:], large[..., 10:, 10:] = 1, torch.rand(10, 10) + 0.5
    large[0, 0, 0, 0] = 0.5  # one of 300
    for estimated, verdict in ((False, HOLDS), (True, DOES_NOT_HOLD)):
        found = diagnose(PooledLinear(), large, inside, ClassScore(1), "relu", pad=2, estimated=estimated)
        assert {f.cause: f.verdict for f in found}["air not zero"] == verdict


def test_objection_and_method_reach_their_findings():
    found = pooled(objection="a norm behind the mask", method="hirescam")
    assert found["order of transforms"].reason.endswith("but the air came out as it should")
    assert found["gradient averaging"].reason.startswith("hirescam averages no gradient")
    assert pooled()["gradient averaging"].reason.startswith("Grad-CAM at 'relu'")
    assert "'relu'" in pooled(layer=None)["gradient averaging"].reason


def test_arguments_of_each_sample_are_cut_with_the_samples():
    class Scaled(PooledLinear):
        def forward(self, x, scale):
            assert len(scale) == len(x)
            return super().forward(x) * scale

    x = torch.rand(3, 1, 8, 8) + 0.5
    inside = torch.ones_like(x)
    inside[..., :2] = 0
    scale = torch.tensor([[1.0], [2.0], [3.0]])
    found = diagnose(
        Scaled(), x * inside, inside, ClassScore([0, 1, 2]), "relu", forward_kwargs={"scale": scale}, pad=2
    )
    verdicts = {f.cause: f.verdict for f in found}
    assert verdicts["unsuitable layer"] == verdicts["dead or saturated gradient"] == DOES_NOT_HOLD
