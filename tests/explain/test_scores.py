"""The score of changed copies: which are run at a time, which arguments follow them, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.explain.layers import LayerError
from scripts.explain.scores import Scorer, checked_score, copies_at_once, one_tensor, plain, plain_values
from scripts.explain.targets import ClassScore
from tests.explain.nets import PooledLinear


def test_scorer_runs_the_asked_number_of_copies_at_a_time():
    sizes = []
    net = PooledLinear()
    net.register_forward_hook(lambda _m, inputs, _o: sizes.append(len(inputs[0])))
    scorer = Scorer(net, torch.randn(2, 1, 4, 4), ClassScore(0))
    index = torch.tensor([0, 1, 1, 0, 1])
    scores = scorer.of_many(index, lambda positions: scorer.x[index[positions]], 2)
    assert sizes == [2, 2, 2, 1]
    torch.testing.assert_close(scores, scorer.score[index])


class Sum(nn.Module):
    """Logits [sum of the image times a gain, plus an offset; 0]."""

    def forward(self, x, gain=1.0, offset=0.0, mode="cls"):
        total = (x * gain).flatten(1).sum(1) + offset
        return torch.stack([total, torch.zeros_like(total)], 1)


def ones(*levels):
    return torch.tensor(levels).reshape(-1, 1, 1, 1).expand(-1, 1, 1, 2).clone()


def test_arguments_of_a_sample_follow_its_copies_and_others_stay():
    kwargs = {"gain": torch.tensor([1.0, 10.0]).reshape(2, 1, 1, 1), "offset": torch.tensor(0.5), "mode": "cls"}
    scorer = Scorer(Sum(), ones(1.0, 2.0), ClassScore(0), kwargs)
    assert scorer.score.tolist() == [2.5, 40.5]
    assert scorer.output.tolist() == [[2.5, 0.0], [40.5, 0.0]]
    assert scorer(ones(1.0, 1.0, 1.0), torch.tensor([1, 0, 1])).tolist() == [20.5, 2.5, 20.5]
    index = torch.tensor([1, 0, 0])
    assert scorer.of_many(index, lambda i: ones(3.0).expand(len(i), -1, -1, -1)).tolist() == [60.5, 6.5, 6.5]


def test_an_argument_of_another_length_is_no_argument_of_samples():
    scorer = Scorer(Sum(), ones(1.0, 2.0, 3.0), ClassScore(0), {"gain": torch.tensor([[[[1.0, 3.0]]]])})
    assert scorer(ones(1.0, 2.0), torch.tensor([2, 1])).tolist() == [4.0, 8.0]


def test_targets_of_a_sample_follow_its_copies():
    scorer = Scorer(Sum(), ones(1.0, -2.0), ClassScore())  # top classes 0 and 1
    assert scorer.score.tolist() == [2.0, 0.0]
    assert scorer(ones(-3.0, 5.0), torch.tensor([0, 1])).tolist() == [-6.0, 0.0], "those of the unchanged input"


def test_copies_at_a_time():
    assert copies_at_once(torch.zeros(1), 5) == 5
    assert copies_at_once(torch.zeros(1), 1) == 1
    assert copies_at_once(torch.zeros(1), None) < copies_at_once(torch.zeros(1, device="meta"), None)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size: expected 1 or more, or None, got {wrong}"):
            copies_at_once(torch.zeros(1), wrong)


def test_tensors_of_inference_mode_become_plain_and_others_are_not_copied():
    with torch.inference_mode():
        made = torch.ones(2)
    assert not plain(made).is_inference()
    t = torch.ones(2, requires_grad=True)
    assert not plain(t).requires_grad
    assert plain(t).data_ptr() == t.data_ptr()
    assert plain_values(None) == {}
    values = plain_values({"a": t, "b": "seg"})
    assert (values["a"].requires_grad, values["b"]) == (False, "seg")


def test_scores_that_are_not_one_finite_number_a_sample_are_refused():
    net, output = PooledLinear(), torch.zeros(2, 3)

    class Wide(ClassScore):
        def __call__(self, output):
            return output

    with pytest.raises(ValueError, match=r"target class_0 gave \(2, 3\); expected \(2,\)"):
        checked_score(net, Wide(0), output)
    output[1, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="target class_0: a score of PooledLinear is not finite"):
        checked_score(net, ClassScore(0), output)
    assert checked_score(net, ClassScore(1), output).tolist() == [0.0, 0.0]
    with pytest.raises(TypeError, match="PooledLinear returned tuple; expected one tensor"):
        one_tensor(net, (output,))


def test_layers_are_kept_of_the_unchanged_input():
    net, x = PooledLinear(), torch.randn(2, 1, 4, 4)
    scorer = Scorer(net, x, ClassScore(0), layers=["relu", "mine"], aliases={"mine": "conv"})
    assert set(scorer.activations) == {"relu", "conv"}
    torch.testing.assert_close(scorer.activations["relu"], net.conv(x).relu().detach())
    torch.testing.assert_close(scorer.output, net(x).detach())
    assert Scorer(net, x, ClassScore(0)).activations == {}
    with pytest.raises(LayerError, match="'rellu'"):
        Scorer(net, x, ClassScore(0), layers=["rellu"])


class Masked(nn.Module):
    """Logits [sum of the image in its foreground, sum of the foreground]."""

    def forward(self, x, foreground=None):
        inside = (x != 0).to(x.dtype) if foreground is None else foreground
        return torch.stack([(x * inside).flatten(1).sum(1), inside.flatten(1).sum(1)], 1)


def test_the_foreground_is_handed_on_as_numbers_or_refused():
    x, inside = ones(1.0, 2.0).double(), torch.tensor([[[[1, 0]]], [[[1, 1]]]])
    scorer = Scorer(Masked(), x, ClassScore(0), foreground=inside, foreground_kwarg="foreground")
    assert scorer.score.tolist() == [1.0, 4.0]
    assert scorer(x * 0 + 3, torch.tensor([1, 0])).tolist() == [6.0, 3.0]
    assert scorer.foreground.dtype == torch.bool
    with pytest.raises(ValueError, match="pass foreground_kwarg='foreground'"):
        Scorer(Masked(), x, ClassScore(0), foreground=inside)
    given = Scorer(Masked(), x, ClassScore(0), {"foreground": inside.double()}, inside)
    assert given.score.tolist() == [1.0, 4.0]
    assert Scorer(Masked(), x, ClassScore(0)).score.tolist() == [2.0, 4.0], "none is given: none is missing"
    assert Scorer(Sum(), x, ClassScore(0), foreground=inside).score.tolist() == [2.0, 4.0], "it takes none"
    with pytest.raises(ValueError, match="in forward_kwargs and as foreground_kwarg; give it once"):
        Scorer(Masked(), x, ClassScore(0), {"foreground": inside}, inside, "foreground")
    with pytest.raises(ValueError, match="foreground_kwarg='foreground' is given, but no foreground"):
        Scorer(Masked(), x, ClassScore(0), foreground_kwarg="foreground")


def test_scores_are_differentiable_where_gradients_are_on_and_refused_where_none_arrives():
    scorer = Scorer(Sum(), ones(1.0), ClassScore(0))
    leaf = ones(2.0).requires_grad_()
    (gradient,) = torch.autograd.grad(scorer(leaf, torch.tensor([0])).sum(), leaf)
    assert gradient.flatten().tolist() == [1.0, 1.0]

    class Rounded(Sum):
        def forward(self, x):
            return super().forward(x.detach().round())

    rounded = Scorer(Rounded(), ones(1.0), ClassScore(0))
    with pytest.raises(ValueError, match="no gradient of class_0 reaches the input of Rounded"):
        rounded(leaf, torch.tensor([0]))
    with torch.no_grad():
        assert rounded(leaf, torch.tensor([0])).tolist() == [4.0]
    assert rounded(leaf.detach(), torch.tensor([0])).tolist() == [4.0]


@pytest.mark.parametrize("half", ["weights", "image", "autocast", "none"])
def test_scores_are_scaled_where_float16_could_round_a_gradient_to_nothing(half):
    net, x = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten()), torch.ones(1, 1, 2, 2)
    if half == "weights":

        class Cast(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net.half()

            def forward(self, x):
                return self.net(x.half())

        net = Cast()
    x = x.half() if half == "image" else x
    net = net.half() if half == "image" else net
    with torch.autocast("cpu", torch.float16, enabled=half == "autocast"):
        scale = Scorer(net, x, ClassScore(0)).scale
    assert (scale > 1) == (half != "none")
    assert scale == 2.0 ** round(torch.tensor(scale).log2().item()), "a power of two does not round"


def test_frozen_statistics_are_those_of_every_pass():
    net = nn.Sequential(nn.InstanceNorm2d(1), nn.Flatten())
    x = torch.rand(1, 1, 3, 3)
    gradients = {}
    for how in ("followed", "frozen"):
        leaf = x.clone().requires_grad_()
        scorer = Scorer(net, x, ClassScore(0), statistics=how)
        (gradients[how],) = torch.autograd.grad(scorer(leaf, torch.tensor([0])).sum(), leaf)
    assert int((gradients["frozen"] != 0).sum()) == 1, "with its mean and deviation fixed a pixel moves itself alone"
    assert int((gradients["followed"] != 0).sum()) > 1
    with pytest.raises(ValueError, match="expected 'followed' or 'frozen'"):
        Scorer(net, x, ClassScore(0), statistics="fixed")
