"""Networks that return several things are explained as the same network that returns one."""

from __future__ import annotations

import dataclasses
import threading
from typing import NamedTuple

import pytest
import torch
from torch import nn

from scripts.explain.cam import GradCAM
from scripts.explain.methods import METHODS, explain
from scripts.explain.outputs import one_of, selecting, target_of, tensors_of, unwrapped
from scripts.explain.recording import default_layer
from scripts.explain.targets import ClassMargin, ClassScore, SegmentationRegion, TumorLogOdds
from tests.explain.nets import assert_same_state, state_of


@dataclasses.dataclass
class Answer:
    seg: torch.Tensor
    cls: torch.Tensor
    note: str = "not a tensor"


class Pair(NamedTuple):
    seg: torch.Tensor
    cls: torch.Tensor


FORMS = {
    "dict": (lambda seg, cls: {"seg": seg, "cls": cls}, "cls", "seg"),
    "tuple": (lambda seg, cls: (seg, cls), "1", "0"),
    "list of a list": (lambda seg, cls: [seg, [cls]], "1.0", "0"),
    "dataclass": (Answer, "cls", "seg"),
    "named tuple": (Pair, "cls", "seg"),
    "nested": (lambda seg, cls: {"heads": {"cls": cls}, "seg": [seg]}, "heads.cls", "seg.0"),
}


class MultiTask(nn.Module):
    """Encoder, class head on it, and a decoder that runs afterwards."""

    def __init__(self, form=None, only=None):
        super().__init__()
        self.form, self.only = form, only
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.LeakyReLU(0.1))
        self.fc = nn.Linear(4, 3)
        self.decoder = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.ReLU())
        self.out = nn.Conv2d(5, 2, 1)

    def forward(self, x):
        features = self.encoder(x)
        cls = self.fc(features.square().flatten(2).mean(2))
        seg = self.out(self.decoder(features))
        return {"cls": cls, "seg": seg}[self.only] if self.only else self.form(seg, cls)


def networks(form):
    torch.manual_seed(0)
    several, cls, seg = MultiTask(form), MultiTask(only="cls"), MultiTask(only="seg")
    for other in (cls, seg):
        other.load_state_dict(several.state_dict())
    return several, cls, seg, torch.randn(2, 1, 8, 8)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_output_is_explained_without_a_wrapper(name):
    form, cls_name, seg_name = FORMS[name]
    several, cls, seg, x = networks(form)
    before = state_of(several)
    methods = [m for m in METHODS if m not in ("evidence", "scorecam")]
    options = {key: {"window": 4} if key == "occlusion" else {} for key in ("occlusion",)}
    options |= {"smoothgrad": {"n_samples": 2}, "integrated_gradients": {"n_steps": 2}}
    found = explain(several, x, methods, "encoder", ClassScore(1), head=cls_name, options=options)
    expected = explain(cls, x, methods, "encoder", ClassScore(1), options=options)
    assert list(found.maps) == list(expected.maps)
    for key, value in expected.maps.items():
        torch.testing.assert_close(found.maps[key], value)
    assert torch.equal(found.output, expected.output)
    dense = explain(several, x, "hirescam", "decoder", f"{seg_name}:0")
    alone = explain(seg, x, "hirescam", "decoder", 0)
    torch.testing.assert_close(dense.maps["hirescam", "decoder"], alone.maps["hirescam", "decoder"])
    assert_same_state(before, state_of(several))


def test_default_layer_is_one_that_the_explained_output_depends_on():
    several, _, _, x = networks(FORMS["dict"][0])
    assert list(explain(several, x, "hirescam", target=1, head="cls").maps) == [("hirescam", "encoder")]
    assert list(explain(several, x, "hirescam", target=1, head="seg").maps) == [("hirescam", "decoder")]
    cam = GradCAM(several, head="cls")
    maps = cam(x, class_idx=1)
    assert cam.target_layers == ("encoder",)
    assert torch.equal(maps, GradCAM(networks(None)[1], "encoder")(x, class_idx=1))
    assert cam.feature_map_size((1, 1, 8, 8)) == torch.Size((1, 1, 8, 8))
    with selecting(several, "cls"):
        assert default_layer(several, x) == "encoder"


def test_targets_by_text():
    classes = {"cls": ["no tumor", "glioma", "other"], "seg": ["background", "tumor"]}
    assert target_of("cls:glioma", classes) == ("cls", 1)
    assert target_of("seg:tumor", classes) == ("seg", 1)
    assert target_of("cls:2") == ("cls", 2)
    assert target_of("glioma", ["no tumor", "glioma"]) == (None, 1)
    head, odds = target_of("cls:tumor_log_odds")
    assert (head, type(odds)) == ("cls", TumorLogOdds)
    several, cls, _, x = networks(FORMS["dict"][0])
    found = explain(several, x, "gradcam", "encoder", "cls:class_1_minus_class_0")
    expected = explain(cls, x, "gradcam", "encoder", ClassMargin(1, 0))
    assert torch.equal(found.maps["gradcam", "encoder"], expected.maps["gradcam", "encoder"])
    assert found.target == "class_1_minus_class_0"
    with pytest.raises(ValueError, match="'gliom' is no class; nearest class: 'glioma'"):
        target_of("cls:gliom", classes)
    with pytest.raises(ValueError, match="the names of the classes are not given"):
        target_of("cls:glioma")
    with pytest.raises(ValueError, match="head 'seg' is given, but the target names 'cls'"):
        explain(several, x, "gradcam", "encoder", "cls:1", head="seg")


def test_a_network_of_one_output_in_a_dictionary_needs_no_name():
    torch.manual_seed(0)
    net = MultiTask(lambda seg, cls: {"logits": cls, "loss": None})
    found = explain(net, torch.randn(1, 1, 8, 8), "gradcam", "encoder", 1)
    assert found.output.shape == (1, 3)


def test_errors_name_the_outputs_and_leave_no_hook():
    several, cls, _, x = networks(FORMS["dict"][0])
    before = state_of(several)
    with pytest.raises(ValueError, match=r"MultiTask returned several outputs: seg \(2, 2, 8, 8\), cls \(2, 3\); name"):
        explain(several, x, "gradcam", "encoder", 1)
    with pytest.raises(ValueError, match=r"head .csl. is none of the outputs of MultiTask: .*; nearest: .cls."):
        explain(several, x, "gradcam", "encoder", "csl:1")
    with pytest.raises(ValueError, match="leave head out"):
        explain(cls, x, "gradcam", "encoder", 1, head="cls")
    nothing = MultiTask(lambda seg, cls: {"n": 3})
    with pytest.raises(ValueError, match="returned dict without a tensor"):
        explain(nothing, x, "gradcam", "encoder", SegmentationRegion())
    assert_same_state(before, state_of(several))
    assert tensors_of(3) == {}


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "how", ["compiled", "compiled in place", "a part compiled in place", "parallel", "distributed"]
)
def test_wrapped_networks_are_explained_by_their_own_layers(how, request):
    several, cls, _, x = networks(FORMS["dict"][0])
    methods = ["gradcam", "hirescam_frozen", "lrp", "saliency"]
    expected = explain(cls, x, methods, "encoder", 1)
    network: nn.Module = several
    if how == "compiled":
        network = torch.compile(several, backend="eager")
    elif how == "compiled in place":
        several.compile(backend="eager")
    elif how == "a part compiled in place":
        several.encoder.compile(backend="eager")
    elif how == "parallel":
        network = nn.DataParallel(several)
    else:
        request.getfixturevalue("process_group")
        network = nn.parallel.DistributedDataParallel(several)
    if "part" in how:
        network(x)
    found = explain(network, x, methods, "encoder", 1, head="cls")
    for key, value in expected.maps.items():
        torch.testing.assert_close(found.maps[key], value)
    assert torch.equal(GradCAM(network, "encoder", head="cls")(x, class_idx=1), GradCAM(cls, "encoder")(x, class_idx=1))


def test_integers_and_outputs_without_gradient_are_refused_in_one_sentence():
    several, _, _, x = networks(lambda seg, cls: {"cls": cls.detach(), "mask": seg.argmax(1, keepdim=True)})
    for head, message in (("mask", "no gradient reaches 'encoder'"), ("cls", "no gradient reaches 'encoder'")):
        with pytest.raises(ValueError, match=message):
            explain(several, x, "hirescam", "encoder", 0, head=head)


def test_the_explained_tensor_of_an_output():
    one, two = torch.zeros(1, 2), torch.ones(1, 3)
    assert one_of(one, None) is one
    assert one_of({"a": [one], "n": 3}, None) is one
    assert one_of({"a": one, "b": two}, "b") is two
    for output, head, message in (
        ([one, two], None, r"the network returned several outputs: 0 \(1, 2\), 1 \(1, 3\); name one by head"),
        ([], None, "the network returned list without a tensor"),
        (one, "cls", r"head 'cls' is none of the outputs of the network: one tensor \(1, 2\); leave head out"),
        ({"cls": one, "seg": two}, "csl", "nearest: 'cls'"),
        (Answer, None, "returned type without a tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            one_of(output, head)


def test_texts_of_targets_without_and_with_outputs():
    classes = {"cls": ["no tumor", "glioma"]}
    assert target_of("a.b:glioma", {"a.b": ["x", "glioma"]}) == ("a.b", 1)
    assert target_of("0") == (None, 0)
    assert target_of(":1") == ("", 1)
    assert target_of("1", ["2", "1"]) == (None, 1), "a class of that name"
    assert target_of("0", ["1", "0"]) == (None, 1)
    with pytest.raises(ValueError, match=r"target 'seg:glioma': 'glioma' is no class; the names of the classes"):
        target_of("seg:glioma", classes)
    with pytest.raises(ValueError, match="nearest class: 'no tumor'"):
        target_of("cls:no_tumor", classes)


def test_the_hook_of_a_selection_is_gone_and_other_threads_get_everything():
    several, _, _, x = networks(FORMS["dict"][0])
    seen = []
    with selecting(several, "cls"):
        assert several(x).shape == (2, 3)
        thread = threading.Thread(target=lambda: seen.append(several(x)))
        thread.start()
        thread.join()
    assert set(seen[0]) == {"cls", "seg"}
    assert set(several(x)) == {"cls", "seg"}
    with pytest.raises(RuntimeError, match="stop"), selecting(several, "cls"):
        raise RuntimeError("stop")
    assert not several._forward_hooks
    plain = nn.Identity()
    with selecting(plain):
        assert plain(x) is x


def test_wrappers_in_wrappers_are_taken_off():
    inner = nn.Linear(1, 1)
    assert unwrapped(inner) is inner
    assert unwrapped(nn.DataParallel(nn.DataParallel(inner))) is inner
