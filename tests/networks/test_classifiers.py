"""Stand-alone classifiers: unchanged inside, the bundle's interface outside, and maps equal to the closed form."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.nets import DenseNet121, EfficientNetBN

from scripts.evaluation.explanation_plan import main_map, main_plan, make_plan, maps_of
from scripts.explain.methods import explain
from scripts.explain.recording import default_layer
from scripts.explain.targets import ClassScore
from scripts.networks.classifiers import ARCHITECTURES, ClassifierEnsemble, ImageClassifier
from scripts.training.engines import MultiTaskStep, parameter_groups
from tests.networks.nets import heads


def classifier(architecture: str = "efficientnet-b0", num_classes: int = 3, seed: int = 0) -> ImageClassifier:
    torch.manual_seed(seed)
    return ImageClassifier(architecture, 2, 1, num_classes).eval()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def net(request) -> ImageClassifier:
    return classifier(request.param)


def image() -> torch.Tensor:
    return torch.nn.functional.interpolate(heads(), size=(64, 64))[:2]


def test_logits_are_those_of_monais_network_with_its_weights(net):
    if net.architecture == "densenet121":
        stock = DenseNet121(2, 1, 3)
    else:
        stock = EfficientNetBN(net.architecture, pretrained=False, spatial_dims=2, in_channels=1, num_classes=3)
    stock.load_state_dict(net.net.state_dict())
    with torch.no_grad():
        assert torch.equal(stock.eval()(image()), net(image()))


def test_it_gives_class_logits_and_says_that_it_segments_nothing(net):
    output = net.multitask(image())
    assert set(output) == {"cls"}
    assert output["cls"].shape == (2, 3)
    assert not net.has_segmentation
    assert not net.has_evidence
    with pytest.raises(ValueError, match="no segmentation to give"):
        net.multitask(image(), segmentation=True)
    with pytest.raises(ValueError, match="'cls' alone, got 'seg'"):
        net(image(), output="seg")


def test_every_parameter_belongs_to_encoder_or_head(net):
    owned = [p for part in ("encoder", "decoder", "head") for p in net.parameters_of(part)]
    assert {id(p) for p in owned} == {id(p) for p in net.parameters()}
    assert len(owned) == len(list(net.parameters()))
    groups = parameter_groups(net, 0.01, 0.5)
    assert [(g["name"], g["lr"]) for g in groups] == [("encoder", 0.005), ("head", 0.01)]
    with pytest.raises(ValueError, match="part is one of"):
        net.modules_of("neck")


def test_the_step_leaves_the_segmentation_out_and_trains_the_rest(net):
    step = MultiTaskStep(net)
    assert set(step.eval()(image(), torch.tensor([True, False]))) == {"cls"}
    trained = MultiTaskStep(classifier(net.architecture), segmentation=False).train()
    trained(image())["cls"].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in trained.network.parameters_of("head"))
    first = next(trained.network.parameters_of("encoder"))
    assert bool(first.grad.any())


def test_the_named_layer_is_the_one_in_front_of_the_pooling(net):
    name, net.default_cam_layer = net.default_cam_layer, None
    try:
        assert default_layer(net, image()) == name
    finally:
        net.default_cam_layer = name


def test_grad_cam_at_that_layer_is_the_class_activation_map(net):
    """Average pooling and a linear layer follow: the map is sum_c w_c A_c / cells, by hand."""
    features = []
    layer = net.get_submodule(net.default_cam_layer)
    handle = layer.register_forward_hook(lambda _m, _a, out: features.append(out.detach().clone()))
    net(image())
    handle.remove()
    linear = net.net.class_layers.out if net.architecture == "densenet121" else net.net._fc
    cells = features[0].shape[2] * features[0].shape[3]
    expected = torch.einsum("c,bchw->bhw", linear.weight[2], features[0]).clamp(min=0) / cells
    found = explain(net, image(), "gradcam", target=ClassScore(2))
    assert list(found.maps) == [("gradcam", net.default_cam_layer)]
    torch.testing.assert_close(found.maps["gradcam", net.default_cam_layer][:, 0], expected, rtol=1e-4, atol=1e-6)


def test_a_plan_for_it_has_no_segmentation_and_no_evidence(net):
    plan = make_plan(net)
    assert plan.targets == ("tumor_log_odds",)
    assert plan.methods == ("gradcam", "hirescam", "layercam_frozen")
    assert main_map(net) == ("gradcam", net.default_cam_layer)


def test_unknown_architecture_and_too_few_classes_are_refused():
    with pytest.raises(ValueError, match="densenet121, efficientnet-b0, got 'resnet'"):
        ImageClassifier("resnet")
    with pytest.raises(ValueError, match="at least 2, got 1"):
        ImageClassifier("densenet121", num_classes=1)


@pytest.fixture(scope="module")
def ensemble() -> ClassifierEnsemble:
    members = [classifier(seed=0), classifier(seed=1)]
    members[1].temperature.fill_(2.0)
    return ClassifierEnsemble(members).eval()


def test_an_ensemble_averages_calibrated_probabilities(ensemble):
    with torch.no_grad():
        first, second = (member(image()) for member in ensemble.members)
        mean = (first.softmax(1) + (second / 2).softmax(1)) / 2
        torch.testing.assert_close(ensemble(image()).softmax(1), mean)


def test_an_ensemble_is_explained_by_the_mean_of_its_members_maps(ensemble):
    foreground = (image() != 0).float()
    method, layer = main_map(ensemble)
    assert layer == "mean(members.0.net._avg_pooling.features, members.1.net._avg_pooling.features)"
    plan = main_plan(ensemble)
    result = maps_of(ensemble, image(), foreground, ClassScore(1), plan)
    own = [result.maps[method, name] for name in ensemble.cam_layers]
    scaled = [torch.nn.functional.interpolate(m, (64, 64), mode="bilinear") for m in own]
    tops = [m.flatten(1).amax(1).clamp(min=1e-30).view(-1, 1, 1, 1) for m in scaled]
    by_hand = sum(m / top for m, top in zip(scaled, tops, strict=True)) / 2
    assert bool((by_hand.flatten(1).amax(1) > 0).all())
    torch.testing.assert_close(result.maps[method, layer], by_hand, rtol=1e-4, atol=1e-5)
    assert make_plan(ensemble).aggregate == "mean"


def test_ensembles_of_one_or_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="two members or more, got 1"):
        ClassifierEnsemble([classifier()])
    with pytest.raises(ValueError, match=r"same classes; got \[3, 2\]"):
        ClassifierEnsemble([classifier(), classifier(num_classes=2)])


@pytest.mark.parametrize("kind", [*ARCHITECTURES, "ensemble"])
@torch.no_grad()
def test_a_prevalence_is_added_to_the_calibrated_log_probabilities(kind, ensemble):
    network = copy.deepcopy(ensemble) if kind == "ensemble" else classifier(kind)
    network.temperature.fill_(2.0)
    before, shift = network(image()), torch.tensor([0.0, 1.5, -0.5])
    network.shift_classes(shift)
    torch.testing.assert_close(network(image()) / 2.0, before / 2.0 + shift)
    assert not any("class_shift" in name for name in network.state_dict()), "of the place, not of the weights"


def test_a_classifier_begins_with_one_half_uncalibrated_and_unmoved():
    network = ImageClassifier("efficientnet-b0").eval()  # one channel, two dimensions, two classes
    assert (float(network.threshold), float(network.temperature)) == (0.5, 1.0)
    assert network.class_shift.tolist() == [0.0, 0.0]
    assert set(network.state_dict()) - {f"net.{name}" for name in network.net.state_dict()} == {
        "threshold", "temperature",
    }  # fmt: skip
    assert network(torch.rand(1, 1, 64, 64)).shape == (1, 2)
    assert network.multitask(torch.rand(1, 1, 64, 64), classification=False) == {}


def test_features_are_a_list_of_one_a_member(net, ensemble):
    for network, count in ((net, 1), (ensemble, 2)):
        features, masks = network.encode(image())
        assert (len(features), masks) == (count, [])
        logits, evidence = network.classify(features, masks)
        torch.testing.assert_close(logits, network(image()))
        assert evidence.numel() == 0


def test_the_parts_of_an_ensemble_are_those_of_its_members(ensemble):
    for part in ("encoder", "decoder", "head"):
        assert ensemble.modules_of(part) == [m for member in ensemble.members for m in member.modules_of(part)]
    assert len(ensemble.modules_of("head")) == 2
