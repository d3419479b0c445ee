"""Test-time mirroring: means over mirrored images, each turned back, and one verdict of the averaged evidence."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
import torch

from scripts.inference.backends import OnnxNetwork
from scripts.inference.inferers import MultiTaskInferer
from scripts.networks import mirroring
from scripts.networks.classifiers import ImageClassifier
from scripts.networks.mirroring import applied, of_mean_probability
from scripts.networks.regions import region_probability
from scripts.training.engines import MultiTaskStep
from tests.networks.nets import heads, tiny

NESTED = {"out_channels": 3, "regions": ["whole", "core", "rim"]}
CASES = [
    (2, [0], {}),
    (2, [0, 1], {"evidence": "rectified"}),
    (3, [0, 1, 2], NESTED),
    (3, [2], {"evidence": "softplus"}),
]


def network(dims, axes, options):
    return applied(tiny(dims, **options), axes)


def probabilities(net, seg):
    return region_probability(seg, True) if net.nested else torch.softmax(seg, dim=1)


def mean_by_hand(dims, axes, options, image, turned_back=True):
    """Probabilities of the mask and evidence of every mirrored image, turned back (or not) and averaged."""
    plain, found = tiny(dims, **options), []
    for flip in chain.from_iterable(combinations([a + 2 for a in axes], n) for n in range(len(axes) + 1)):
        output = plain.multitask(image.flip(flip))
        back = flip if turned_back else ()
        found.append((probabilities(plain, output["seg"]).flip(back), output["evidence"].flip(back)))
    assert len(found) == 2 ** len(axes)
    return [torch.stack(values).mean(0) for values in zip(*found, strict=True)]


@pytest.mark.parametrize(("dims", "axes", "options"), CASES)
@torch.no_grad()
def test_mask_and_evidence_are_the_means_with_every_flip_undone(dims, axes, options):
    net, image = network(dims, axes, options), heads(dims, 12, touching=True)
    found = net.multitask(image)
    seg, evidence = mean_by_hand(dims, axes, options, image)
    torch.testing.assert_close(probabilities(net, found["seg"]), seg, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found["evidence"], evidence, atol=1e-6, rtol=1e-5)
    wrong = mean_by_hand(dims, axes, options, image, turned_back=False)
    assert float((wrong[0] - seg).abs().max()) > 0.05
    assert float((wrong[1] - evidence).abs().max()) > 0.05


@pytest.mark.parametrize(("dims", "axes", "options"), CASES)
@torch.no_grad()
def test_a_mirrored_image_has_the_mirrored_answer(dims, axes, options):
    net, image = network(dims, axes, options), heads(dims, 12, touching=True)
    flip = [axes[-1] + 2]
    found, mirrored = net.multitask(image), net.multitask(image.flip(flip))
    torch.testing.assert_close(mirrored["cls"], found["cls"], atol=1e-5, rtol=1e-5)
    for name in ("seg", "evidence"):
        torch.testing.assert_close(mirrored[name].flip(flip), found[name], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(mirrored[name], found[name], atol=1e-2)


def test_a_flip_that_is_not_undone_is_noticed(monkeypatch):
    """What the two tests above are worth: with a mechanism that forgets to turn back both would fail."""
    image, axes = heads(2, 12, touching=True), [0]
    net = network(2, axes, {})
    outputs = net.outputs
    turns = iter([(), (2,)] * 2)

    def forgetful(features, masks, *rest):
        flip = next(turns)
        return {
            name: value.flip(flip) if value.ndim > 2 else value
            for name, value in outputs(features, masks, *rest).items()
        }

    monkeypatch.setattr(net, "outputs", forgetful)  # turned once more, so that it comes out unturned
    with torch.no_grad():
        found, mirrored = net.multitask(image), net.multitask(image.flip(2))
        expected = mean_by_hand(2, axes, {}, image)[1]
    assert not torch.allclose(found["evidence"], expected, atol=1e-2)
    assert not torch.allclose(mirrored["evidence"].flip(2), found["evidence"], atol=1e-2)


@torch.no_grad()
def test_the_verdict_is_the_pooling_of_the_averaged_evidence():
    net, image = network(3, [0, 1], {"evidence": "rectified"}), heads(3, 12)
    net.temperature.fill_(1.7)
    net.fixed_part.copy_(torch.tensor([0.0, 0.3, -0.2]))
    found = net.multitask(image)
    inside = torch.nn.functional.max_pool3d((image != 0).float(), 2)
    assert torch.equal(found["cls"], net.moved(net.head.of_evidence(found["evidence"], inside)))
    assert torch.equal(net(image, output="cls"), found["cls"])
    assert not bool((found["evidence"] * (1 - inside)).any())


@torch.no_grad()
def test_a_given_foreground_is_mirrored_as_well():
    net, image = network(2, [1], {}), heads(2, 12, touching=True)
    assert torch.equal(net.multitask(image, (image != 0).float())["seg"], net.multitask(image)["seg"])


@torch.no_grad()
def test_evaluation_and_inference_say_the_same_and_training_is_not_mirrored():
    net, image = network(2, [0], {}), heads(2, 12, touching=True)
    expected = net.multitask(image)
    step = MultiTaskStep(net).eval()(image)
    scored: list = []
    inferred = MultiTaskInferer(scorer=lambda part, *_: scored.append(part) or {})(image, net)
    for name, value in expected.items():
        assert torch.equal(step[name], value)
    assert len(scored) == 1
    torch.testing.assert_close(inferred["probability"][:, 0], torch.softmax(expected["cls"], 1))
    trained = MultiTaskStep(net).train()(image)
    assert torch.equal(trained["seg"], tiny(2).train().multitask(image)["seg"])


@torch.no_grad()
def test_without_axes_nothing_changes():
    image = heads(2, 12)
    for axes in (None, []):
        net = applied(tiny(), axes)
        assert net.mirror_axes == ()
        for name, value in tiny().multitask(image).items():
            assert torch.equal(net.multitask(image)[name], value)
    assert mirroring.notes(None) == []
    assert "axes 0, 2 (mirror_axes)" in mirroring.notes([0, 2])[0]


@pytest.mark.parametrize("nested", [True, False])
def test_logits_of_a_mean_probability_are_exact_where_a_probability_is_rounded_to_one(nested):
    low, high = torch.tensor([[[-60.0]], [[60.0]]]).expand(2, 1, 2).clone().unbind(0)
    if nested:
        found = of_mean_probability([high, high, low], nested=True)
        torch.testing.assert_close(torch.sigmoid(found), torch.full((1, 2), 2 / 3))
        torch.testing.assert_close(of_mean_probability([high, high], nested=True), high)
    else:
        pairs = [torch.tensor([[0.0, 60.0]]), torch.tensor([[0.0, -60.0]])]
        torch.testing.assert_close(torch.softmax(of_mean_probability(pairs, nested=False), 1), torch.full((1, 2), 0.5))


def test_what_cannot_be_mirrored_is_refused_in_one_sentence():
    for axes in ([2], [0, 0], [-1]):
        with pytest.raises(ValueError, match="mirror_axes are spatial axes from 0 to 1, each once"):
            applied(tiny(), axes)
    with pytest.raises(ValueError, match="needs a network with an evidence head"):
        applied(tiny(head="average_pool"), [0])
    with pytest.raises(ValueError, match="needs a network with an evidence head, which ImageClassifier"):
        applied(ImageClassifier("densenet121", 2, 1, 2), [0])
    net = network(2, [0], {})
    with pytest.raises(ValueError, match="mirror_axes needs torch"):
        OnnxNetwork(net, (24, 24))
    net.bottleneck.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="explain it without mirror_axes"):
        net(heads(), output="cls")
