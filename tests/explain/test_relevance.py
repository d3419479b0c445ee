"""The rules of relevance by hand, where contributions vanish, meet in zero, or come by another way of writing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scripts.explain.layers import LayerError
from scripts.explain.relevance import relevance_rules
from tests.explain.test_lrp import handed_on


def row(*values):
    return torch.tensor([values])


def linear(*rows):
    """A linear function without bias by the weights of its outputs."""
    weight = torch.tensor(rows)
    return lambda x: F.linear(x, weight)


def test_small_contributions_count_and_those_of_another_sample_do_not():
    function = linear([1.0, 0.0], [0.0, 1.0])
    x = torch.tensor([[1.0, 1e-4], [1e9, 1e6]])
    (found,) = handed_on(function, x, relevance=torch.tensor([[2.0, 5.0], [3.0, 7.0]]))
    torch.testing.assert_close(found, torch.tensor([[2.0, 5.0], [3.0, 7.0]]))


def test_an_image_of_zeros_gets_relevance_evenly():
    (found,) = handed_on(linear([1.0, -2.0, 0.5]), row(0.0, 0.0, 0.0), relevance=row(6.0))
    assert found.tolist() == [[2.0, 2.0, 2.0]]
    (found,) = handed_on(lambda v: v.mean(1), row(0.0, 0.0, 0.0), relevance=torch.tensor([6.0]))
    assert found.tolist() == [[2.0, 2.0, 2.0]]


def test_what_speaks_against_gets_what_nothing_speaks_for():
    (found,) = handed_on(linear([-1.0, -3.0]), row(2.0, 2.0), relevance=row(8.0))
    assert found.tolist() == [[2.0, 6.0]]
    (found,) = handed_on(linear([1.0, 3.0]), row(-2.0, -2.0), relevance=row(8.0))
    assert found.tolist() == [[2.0, 6.0]]
    (found,) = handed_on(linear([1.0, -3.0]), row(-2.0, 2.0), relevance=row(8.0))
    assert found.tolist() == [[2.0, 6.0]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((3.0, 1.0, -2.0), (9.0, 3.0, 0.0)),  # a mean above 0: what is above it
        ((-3.0, -1.0, 2.0), (9.0, 3.0, 0.0)),
        ((3.0, -1.0, -2.0), (6.0, 2.0, 4.0)),  # of exactly 0: by size
    ],
)
def test_averages_by_hand(values, expected):
    for average in (lambda v: v.mean(1), lambda v: v.sum(1), lambda v: F.avg_pool1d(v[:, None], 3).flatten()):
        (found,) = handed_on(average, row(*values), relevance=torch.tensor([12.0]))
        torch.testing.assert_close(found, row(*expected))


def test_sums_that_are_zero_and_branches_that_are_spread_over_places():
    of_a, of_b = handed_on(torch.add, row(0.0, 2.0), row(0.0, -2.0), relevance=row(3.0, 4.0))
    assert (of_a.tolist(), of_b.tolist()) == ([[1.5, 4.0]], [[1.5, 0.0]])
    of_a, of_b = handed_on(torch.add, row(3.0, 1.0), torch.tensor([[1.0]]), relevance=row(4.0, 4.0))
    assert (of_a.tolist(), of_b.tolist()) == ([[3.0, 2.0]], [[3.0]])


def test_rules_do_not_depend_on_the_scale_of_the_values():
    torch.manual_seed(0)
    a, b, given = torch.randn(2, 4), torch.randn(2, 4), torch.randn(2, 4)
    pooled = lambda v: F.avg_pool1d(v[:, None], 2)[:, 0]  # noqa: E731
    for function, inputs, relevance in (
        (torch.add, (a, b), given),
        (torch.sub, (a, b), given),
        (pooled, (a,), given[:, :2]),
        (linear([1.0, -2.0, 0.5, 3.0], [-1.0, -1.0, 2.0, 0.0]), (a,), given[:, :2]),
    ):
        reference = handed_on(function, *inputs, relevance=relevance)
        small = handed_on(function, *(value * 2.0**-10 for value in inputs), relevance=relevance)
        for found, expected in zip(small, reference, strict=True):
            torch.testing.assert_close(found, expected)


def test_products_by_hand():
    given = row(8.0, 2.0)
    half = [[4.0, 1.0]]
    nothing = [[0.0, 0.0]]
    for a, b, expected in (
        (row(3.0, -2.0), row(4.0, 5.0), (half, half)),  # no gate
        (row(3.0, -2.0), row(0.0, 1.0), (given.tolist(), nothing)),  # a gate that is shut and one that is open
        (row(1.0, 0.0), row(3.0, -2.0), (nothing, given.tolist())),
        (row(3.0, 2.0), row(0.5, 1.1), (half, half)),
        (row(-0.1, 0.5), row(3.0, 2.0), (half, half)),
    ):
        assert tuple(found.tolist() for found in handed_on(torch.mul, a, b, relevance=given)) == expected
    of_a, of_b = handed_on(torch.div, row(3.0, -2.0), row(4.0, 5.0), relevance=given)
    assert (of_a.tolist(), of_b.tolist()) == (given.tolist(), nothing)


def test_numbers_and_constants_in_any_writing_leave_relevance_as_it_is():
    def in_place(v):
        v = v.clone()
        v += 2
        v -= 1
        v *= 3
        v /= 4
        return v

    constant = row(2.0, -3.0)
    for function in (
        in_place,
        lambda v: 2 / v,
        lambda v: 2 - v,
        lambda v: constant - v,
        lambda v: constant * v,
        lambda v: constant / v,
        lambda v: torch.true_divide(v, constant),
        lambda v: torch.subtract(v, 2),
        lambda v: torch.multiply(v, constant),
        lambda v: F.relu(input=v),
        lambda v: v.clone().relu_(),
    ):
        (found,) = handed_on(function, row(5.0, -1.0), relevance=row(8.0, 2.0))
        assert found.tolist() == [[8.0, 2.0]]
    with pytest.raises(LayerError, match="no rule for 'add'"):
        handed_on(lambda v: torch.add(v, v, alpha=2), row(5.0, -1.0), relevance=row(8.0, 2.0))


def test_what_padding_got_goes_to_the_nearest_place():
    x = torch.tensor([[[[5.0, -1.0]]]])
    (found,) = handed_on(lambda v: F.pad(v, (2, 1)), x, relevance=torch.tensor([[[[1.0, 2.0, 3.0, 4.0, 5.0]]]]))
    assert found.flatten().tolist() == [6.0, 9.0]
    (found,) = handed_on(lambda v: F.pad(v, (0, 0, 1, 0)), x, relevance=torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    assert found.flatten().tolist() == [4.0, 6.0]
    for pad, mode, given, expected in (
        ((1, -1), "constant", [1.0, 2.0], [2.0, 0.0]),  # one is cut off, and what replaces it goes nowhere
        ((1, 0, 0, 0), "reflect", [1.0, 2.0, 3.0], [2.0, 4.0]),
    ):
        relevance = torch.tensor(given).reshape(1, 1, 1, -1)
        (found,) = handed_on(lambda v: F.pad(v, pad, mode), x, relevance=relevance)  # noqa: B023
        assert found.flatten().tolist() == expected
    channels = torch.tensor([1.0, 2.0, 9.0, 9.0]).reshape(1, 2, 1, 2)
    (found,) = handed_on(lambda v: F.pad(v, (0, 0, 0, 0, 0, 1)), x, relevance=channels)
    assert found.flatten().tolist() == [1.0, 2.0]


def test_weights_that_are_computed_from_the_image_are_refused():
    x = row(5.0, -1.0)
    for function in (lambda v: F.linear(x, v), lambda v: F.linear(v, v)):
        with pytest.raises(LayerError, match="weights that are computed from the image"):
            handed_on(function, x, relevance=torch.tensor([[1.0]]))


def test_gradients_behind_the_block_are_gradients():
    x = row(5.0, -1.0).requires_grad_()
    with relevance_rules(nn.Identity()):
        with torch.no_grad():
            assert not (2 * x).requires_grad
        assert torch.equal(torch.sin(x.detach()), x.detach().sin()), "what depends on no image needs no rule"
    (gradient,) = torch.autograd.grad((2 * x).sum(), x)
    assert gradient.tolist() == [[2.0, 2.0]]
