from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.training.engines import KeptFeatures, MultiTaskStep, parameter_groups, prepare_batch
from scripts.training.losses import MultiTaskLoss
from tests.networks.nets import gradients, heads, tiny

PARTS = ("encoder", "decoder", "head")


def batch(has_mask: list[bool]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    count = len(has_mask)
    x = torch.cat([heads(), heads(touching=True)])[:count]
    masked = torch.tensor(has_mask)
    return x, {
        "label": (x > 1).to(torch.uint8) * masked.view(-1, 1, 1, 1),
        "foreground": (x != 0).to(torch.uint8),
        "has_mask": masked,
        "diagnosis": torch.tensor([0, 1, 2, 1])[:count],
    }


def tensors_of(network: MultiTaskDynUNet, part: str) -> list[torch.Tensor]:
    return [t.clone() for module in network.modules_of(part) for t in module.state_dict().values()]


def train(step: MultiTaskStep, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    x, target = batch([True, False, True, False])
    loss = MultiTaskLoss()
    step.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(step(x, target["has_mask"]), target).backward()
        optimizer.step()


@pytest.mark.parametrize("frozen", [["encoder"], ["encoder", "decoder"], ["head"]])
@pytest.mark.parametrize("everything", [False, True], ids=["parameter groups", "all parameters"])
def test_frozen_parts_stay_bit_identical_through_weight_decay(frozen, everything):
    network = tiny(dropout=0.2)
    step = MultiTaskStep(network, frozen=frozen)
    # Handing the frozen parameters to the optimizer as well must not let weight decay at them.
    params = list(network.parameters()) if everything else parameter_groups(network, 1e-2)
    optimizer = torch.optim.AdamW(params, lr=1e-2, weight_decay=0.5)
    before = {part: tensors_of(network, part) for part in PARTS}
    train(step, optimizer)
    for part in PARTS:
        same = [torch.equal(a, b) for a, b in zip(before[part], tensors_of(network, part), strict=True)]
        assert all(same) if part in frozen else not any(same), part


def test_frozen_parts_stay_in_evaluation_mode():
    network = tiny(dropout=0.5)
    step = MultiTaskStep(network, segmentation=False, frozen=["encoder", "decoder"]).train()
    for part in PARTS:
        assert {m.training for top in network.modules_of(part) for m in top.modules()} == {part == "head"}
    assert step.training
    assert network.training
    x = heads()
    features = []
    network.bottleneck.register_forward_hook(lambda _, __, out: features.append(out))
    step(x)
    step(x)
    assert torch.equal(*features), "no dropout in the frozen encoder"
    step.eval()
    assert not any(m.training for m in step.modules())


def test_freezing_leaves_the_rest_trainable():
    network = tiny()
    MultiTaskStep(network, frozen=["encoder"])
    for part in PARTS:
        assert {p.requires_grad for p in network.parameters_of(part)} == {part != "encoder"}


def test_wrong_part_or_precision_is_refused():
    with pytest.raises(ValueError, match="part is one of encoder, decoder, head, got 'backbone'"):
        MultiTaskStep(tiny(), frozen=["backbone"])
    with pytest.raises(ValueError, match="precision is one of auto, float32, bfloat16, float16, got 'half'"):
        MultiTaskStep(tiny(), precision="half")
    with pytest.raises(ValueError, match="float16 needs a GPU: its gradients underflow without loss scaling"):
        MultiTaskStep(tiny(), precision="float16")
    with pytest.raises(ValueError, match="accumulation_steps is 1 or more, got 0"):
        MultiTaskStep(tiny(), accumulation_steps=0)


class Seen:
    """How many items pass a module, call by call."""

    def __init__(self, network: MultiTaskDynUNet, name: str):
        self.items: list[int] = []
        network.get_submodule(name).register_forward_hook(lambda _, __, out: self.items.append(len(out)))


@pytest.mark.parametrize(
    ("masks", "training", "decoded"),
    [
        ([True, False, True, False], True, [2]),
        ([False, False, False, True], True, [1]),
        ([True] * 4, True, [4]),
        ([False] * 4, True, []),
        ([True, False, True, False], False, [4]),
        ([False] * 4, False, [4]),
    ],
)
def test_decoder_runs_for_the_items_with_a_mask_in_training(masks, training, decoded):
    network = tiny()
    step = MultiTaskStep(network).train(training)
    seen = {name: Seen(network, name) for name in ("bottleneck", "upsamples.1", "head.features")}
    x, target = batch(masks)
    pred = step(x, target["has_mask"])
    assert seen["upsamples.1"].items == decoded
    assert seen["bottleneck"].items == seen["head.features"].items == [4]
    assert ("seg" in pred) == bool(decoded)
    assert pred["cls"].shape == (4, 3)
    assert pred["evidence"].shape == (4, 3, 12, 12)


@pytest.mark.parametrize(("asked", "ran"), [((True, False), [1, 0]), ((False, True), [0, 1]), ((True, True), [1, 1])])
def test_only_the_outputs_asked_for_are_computed(asked, ran):
    network = tiny()
    step = MultiTaskStep(network, *asked).train()
    seen = [Seen(network, "upsamples.0"), Seen(network, "head.features")]
    x, target = batch([True] * 4)
    pred = step(x, target["has_mask"])
    assert [len(s.items) for s in seen] == ran
    assert sorted(pred) == sorted(["seg"] * ran[0] + ["cells", "cls", "evidence"] * ran[1])


@pytest.mark.parametrize("masks", [[True, False, True, False], [False, True, True, True]])
def test_outputs_and_gradients_equal_those_of_the_full_computation(masks):
    x, target = batch(masks)
    partial, full = tiny(), tiny()
    pred = MultiTaskStep(partial).train()(x, target["has_mask"])
    every = full.train().multitask(x)
    torch.testing.assert_close(pred["seg"], every["seg"][target["has_mask"]], atol=1e-5, rtol=0)
    every["seg"] = every["seg"][target["has_mask"]]
    every["cells"] = every["evidence"]  # the same in the signed head
    MultiTaskLoss()(pred, target).backward()
    MultiTaskLoss()(every, target).backward()
    expected = gradients(full)
    assert max(float(g.abs().max()) for g in expected.values()) > 0.01
    for name, gradient in gradients(partial).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_evaluation_equals_the_network():
    network, x = tiny(), heads()
    with torch.no_grad():
        found, expected = MultiTaskStep(network).eval()(x), network.multitask(x)
    assert sorted(found) == ["cells", "cls", "evidence", "seg"]
    for name, value in expected.items():
        assert torch.equal(found[name], value)


def test_stock_design_gives_no_evidence():
    network = tiny(normalization="instance", head="average_pool")
    assert sorted(MultiTaskStep(network)(heads())) == ["cls", "seg"]


def test_bfloat16_computes_in_bfloat16_and_returns_float32():
    network, x = tiny(), heads()
    dtypes = []
    network.bottleneck.conv1.register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
    exact = MultiTaskStep(network).eval()(x)
    rough = MultiTaskStep(network, precision="bfloat16").eval()(x)
    assert dtypes == [torch.float32, torch.bfloat16]
    for name, value in exact.items():
        assert rough[name].dtype == torch.float32
        assert 0 < (rough[name] - value).abs().max() < 0.1 * value.abs().max()


def test_batch_is_split_for_the_engines():
    data = {
        "image": np.ones((2, 1, 4, 4), dtype=np.float32),
        "label": torch.zeros(2, 1, 4, 4),
        "foreground": torch.ones(2, 1, 4, 4),
        "has_mask": [True, False],
        "diagnosis": torch.tensor([1, -1]),
        "name": ["a", "b"],
    }
    image, target, args, kwargs = prepare_batch(data, "cpu", non_blocking=True, unused=1)
    assert torch.equal(image, torch.ones(2, 1, 4, 4))
    assert list(target) == ["label", "foreground", "has_mask", "diagnosis"]
    assert target["has_mask"].tolist() == kwargs["has_mask"].tolist() == [True, False]
    assert target["diagnosis"].tolist() == [1, -1]
    assert args == ()
    assert prepare_batch({**data, "index": torch.tensor([5, 3])}, "cpu")[3]["index"].tolist() == [5, 3]


def test_parameter_groups_by_part():
    network = tiny()
    groups = parameter_groups(network, 0.01, encoder_factor=0.25)
    assert [(g["name"], g["lr"]) for g in groups] == [("encoder", 0.0025), ("decoder", 0.01), ("head", 0.01)]
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(map(id, network.parameters()))


def test_frozen_parts_are_in_no_group():
    network = tiny()
    MultiTaskStep(network, frozen=["encoder", "decoder"])
    groups = parameter_groups(network, 0.01, encoder_factor=0.25)
    assert [(g["name"], g["lr"]) for g in groups] == [("head", 0.01)]
    MultiTaskStep(network, frozen=PARTS)
    with pytest.raises(ValueError, match="all parameters are frozen; nothing to train"):
        parameter_groups(network, 0.01)


@pytest.mark.parametrize("steps", [2, 3, 4, 9])
@pytest.mark.parametrize("masks", [[True, False, True, False], [False, False, False, True], [False] * 4, [True] * 4])
def test_accumulated_parts_have_the_loss_and_gradients_of_the_whole_batch(masks, steps):
    x, target = batch(masks)
    x, whole, parts = x.double(), tiny().double(), tiny().double()  # so that rounding hides nothing
    losses = [MultiTaskLoss(label_smoothing=0.1, class_weights=[1.0, 2.0, 0.5]).double() for _ in range(2)]
    one = losses[0](MultiTaskStep(whole).train()(x, target["has_mask"]), target)
    two = losses[1](MultiTaskStep(parts, accumulation_steps=steps).train()(x, target["has_mask"]), target)
    one.backward()
    two.backward()
    assert float(two.detach()) == pytest.approx(float(one.detach()), abs=1e-9)
    assert losses[1].parts.keys() == losses[0].parts.keys()
    expected = gradients(whole)
    assert max(float(g.abs().max()) for g in expected.values() if g is not None) > 0.01
    for name, gradient in gradients(parts).items():
        if expected[name] is None:
            assert gradient is None, name
        else:
            torch.testing.assert_close(gradient, expected[name], atol=1e-9, rtol=0, msg=name)


def kept_for_backward(accumulation_steps: int) -> int:
    """Bytes that a training forward pass keeps for the backward pass, the parameters aside."""
    network = tiny()
    x, target = batch([True] * 4)
    own = {p.data_ptr() for p in network.parameters()} | {x.data_ptr()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    step = MultiTaskStep(network, accumulation_steps=accumulation_steps).train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = step(x, target["has_mask"])
    assert result["seg"].requires_grad
    return sum(kept.values())


def test_accumulation_keeps_the_activations_of_one_part():
    assert kept_for_backward(4) < 0.35 * kept_for_backward(1)


def test_dropout_is_the_same_when_a_part_is_computed_again():
    x, target = batch([True] * 4)
    network = tiny(dropout=0.5)
    step = MultiTaskStep(network, accumulation_steps=2).train()
    torch.manual_seed(1)
    result = step(x, target["has_mask"])
    value = result["cls"].square().sum()
    value.backward()
    # Along its own gradient the value falls as fast as the gradient says, with the dropout of the first pass.
    weight = network.head.bias
    size, slope = 1e-2, float(weight.grad.square().sum())
    with torch.no_grad():
        weight -= size * weight.grad
    torch.manual_seed(1)
    after = step(x, target["has_mask"])["cls"].square().sum()
    assert float((value - after).detach()) == pytest.approx(size * slope, rel=0.1)


def test_evidence_alone_comes_without_class_logits():
    x, target = batch([True] * 4)
    step = MultiTaskStep(tiny(), segmentation=False, classification=False, evidence=True).train()
    assert sorted(step(x, target["has_mask"])) == ["cells", "evidence"]


class TestKeptFeatures:
    def steps(self, **options) -> tuple[MultiTaskStep, MultiTaskStep]:
        """The same network with and without kept features, as stage 2 trains it."""
        stage2 = {"segmentation": False, "frozen": ["encoder", "decoder"]}
        plain, kept = (MultiTaskStep(tiny(dropout=0.2), **stage2, **options) for _ in range(2))
        kept.kept = KeptFeatures(4)
        return plain.train(), kept.train()

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    @pytest.mark.parametrize("accumulation_steps", [1, 2])
    def test_outputs_and_gradients_are_those_without_and_the_encoder_runs_once_an_item(
        self, precision, accumulation_steps
    ):
        x, target = batch([True, False, True, False])
        plain, kept = self.steps(precision=precision, accumulation_steps=accumulation_steps)
        seen = Seen(kept.network, "bottleneck")
        for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 2, 1, 3]):
            found = []
            for step in (plain, kept):
                step.zero_grad()
                part = {key: value[order] for key, value in target.items()}
                outputs = step(x[order], part["has_mask"], torch.tensor(order))
                MultiTaskLoss(seg_weight=0.0)(outputs, part).backward()
                found.append(({k: v.detach() for k, v in outputs.items()}, gradients(step.network)))
            tolerance = 2e-5 if precision == "float32" else 1e-2  # one by one, not in one batch: rounding
            for name, value in found[0][0].items():
                torch.testing.assert_close(found[1][0][name], value, atol=tolerance, rtol=tolerance, msg=name)
            for name, gradient in found[0][1].items():
                assert (gradient is None) == (not name.startswith("head")) == (found[1][1][name] is None), name
                if gradient is not None:
                    torch.testing.assert_close(found[1][1][name], gradient, atol=tolerance, rtol=tolerance, msg=name)
        assert seen.items == [1, 1, 1, 1]

    def test_features_do_not_depend_on_the_batch_in_which_an_item_comes_first(self):
        x, target = batch([True] * 4)
        results = []
        for first in ([0, 1, 2, 3], [3], [2, 0]):
            _, step = self.steps()
            step(x[first], target["has_mask"][first], torch.tensor(first))
            results.append(step(x, target["has_mask"], torch.arange(4)))
        for result in results[1:]:
            assert all(torch.equal(result[name], results[0][name]) for name in results[0])

    def test_validation_does_not_use_them(self):
        x, target = batch([True] * 4)
        _, step = self.steps()
        step(x, target["has_mask"], torch.arange(4))
        shifted = 2 * x
        found = step.eval()(shifted, target["has_mask"], torch.arange(4))
        assert torch.equal(found["cls"], step.network.multitask(shifted)["cls"])

    def test_an_encoder_that_learns_or_too_little_memory_is_refused(self, monkeypatch):
        with pytest.raises(ValueError, match="cache_features needs a frozen encoder and no segmentation"):
            MultiTaskStep(tiny(), segmentation=False, cache_features=True)
        with pytest.raises(ValueError, match="cache_features needs a frozen encoder and no segmentation"):
            MultiTaskStep(tiny(), frozen=["encoder"], cache_features=True)
        step = MultiTaskStep(tiny(), segmentation=False, frozen=["encoder"], cache_features=True, items=1000).train()
        monkeypatch.setattr("scripts.training.engines.memory", lambda: 1000)
        with pytest.raises(
            ValueError, match=r"GB for 1000 items, this machine has 0\.0 GB of memory; set cache_features"
        ):
            step(heads(), None, torch.arange(2))
