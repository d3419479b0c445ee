"""Class activation maps by hand, from activations and gradients."""

from __future__ import annotations

import pytest
import torch

from scripts.explain.cam_formulas import (
    METHODS,
    gradcam,
    gradcam_plus_plus,
    gradient_coherence,
    hirescam,
    layercam,
)

# Two channels of two places, of two samples; as maps of one axis more.
A = torch.tensor([[[1.0, 2.0], [3.0, -1.0]], [[0.0, 4.0], [2.0, 2.0]]])
G = torch.tensor([[[1.0, 3.0], [-2.0, 1.0]], [[0.5, -0.5], [1.0, 0.0]]])
EXPECTED = {
    # Means 2 and -1/2; 0 and 1/2.
    "gradcam": [[2 - 1.5, 4 + 0.5], [1.0, 1.0]],
    "hirescam": [[1 - 6, 6 - 1], [2.0, -2.0]],
    # Weights 1 / (2 + 3) + 3 / (2 + 9) and 1 / (2 + 3); 0.5 / (2 + 2) and 1 / (2 + 4).
    "gradcam++": [[26 / 55 + 0.6, 52 / 55 - 0.2], [2 / 6, 4 / 8 + 2 / 6]],
    "layercam": [[1.0, 6 - 1], [2.0, 0.0]],
}


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (1, 1, 2)])
@pytest.mark.parametrize("name", METHODS)
def test_maps_by_hand(name, shape):
    maps = METHODS[name](A.reshape(2, 2, *shape), G.reshape(2, 2, *shape))
    assert maps.shape == (2, 1, *shape)
    torch.testing.assert_close(maps.flatten(1), torch.tensor(EXPECTED[name]))


@pytest.mark.parametrize("dims", [2, 3])
def test_mean_over_some_cells_alone(dims):
    shape = (1, 2) if dims == 2 else (1, 1, 2)
    inside = torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]]).reshape(2, 1, *shape)
    maps = gradcam(A.reshape(2, 2, *shape), G.reshape(2, 2, *shape), inside)
    torch.testing.assert_close(maps.flatten(1), torch.tensor([[3.0 + 3.0, 6.0 - 1.0], [1.0, 1.0]]))


def test_formulas_are_linear_where_they_say_so():
    torch.manual_seed(0)
    a, b, g = torch.randn(3, 2, 4, 5, 5)
    for formula in (gradcam, hirescam, layercam):
        torch.testing.assert_close(formula(a + b, g), formula(a, g) + formula(b, g), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(formula(a, 3 * g), 3 * formula(a, g))


def test_gradcam_plus_plus_equals_the_formula_of_the_paper():
    torch.manual_seed(0)
    a, g, score = torch.rand(2, 3, 4, 4, dtype=torch.double), torch.randn(2, 3, 4, 4, dtype=torch.double), 0.7
    expected = torch.zeros(2, 1, 4, 4, dtype=torch.double)
    e = torch.tensor(score).double().exp()
    for b in range(2):
        for k in range(3):
            alpha = e * g[b, k] ** 2 / (2 * e * g[b, k] ** 2 + a[b, k].sum() * e * g[b, k] ** 3)
            expected[b, 0] += (alpha * (e * g[b, k]).clamp(min=0)).sum() * a[b, k] / e
    torch.testing.assert_close(gradcam_plus_plus(a, g), expected)


def test_coherence_by_hand():
    gradients = torch.tensor([[[[1.0, 1.0]], [[2.0, -2.0]]], [[[1.0, -1.0]], [[3.0, -1.0]]], [[[0.0, 0.0]]] * 2])
    coherence = gradient_coherence(gradients)
    assert coherence[:2].tolist() == [1.0, 0.5]
    assert torch.isnan(coherence[2])


@pytest.mark.parametrize("shape", [(1, 4), (2, 2), (1, 2, 2)])
def test_coherence_is_that_of_the_best_channel_over_all_places(shape):
    gradients = torch.tensor([[[1.0, -1.0, 1.0, -1.0], [3.0, -1.0, 0.0, 0.0]], [[0.0] * 4, [-2.0, -1.0, 0.0, -1.0]]])
    assert gradient_coherence(gradients.reshape(2, 2, *shape)).tolist() == [0.5, 1.0]
    assert gradient_coherence(1e-30 * gradients.reshape(2, 2, *shape)).tolist() == pytest.approx([0.5, 1.0])
    cancelled = gradients[:1, :1].reshape(1, 1, *shape)
    assert gradient_coherence(cancelled).tolist() == [0.0], "it cancels, which is not the same as none"
