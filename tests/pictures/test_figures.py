from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from scripts.pictures import figures


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are turned into PNG, in order."""
    seen: list[Figure] = []
    png = figures.png

    def keep(figure: Figure) -> bytes:
        seen.append(figure)
        return png(figure)

    monkeypatch.setattr(figures, "png", keep)
    return seen


def texts(axes) -> set[str]:
    return {text.get_text() for text in axes.texts}


def size(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


def test_a_figure_has_the_pixels_that_matplotlib_saves():
    def drawn_once() -> Figure:
        figure, axes = figures.new_axes()
        axes.plot([0, 1], [1, 0.5], label="a line")
        axes.set(xlabel="said", ylabel="seen", title="Title")
        figure.legend(loc="outside lower center")
        return figure

    buffer = io.BytesIO()
    drawn_once().savefig(buffer, format="png", facecolor="white")
    expected, found = Image.open(buffer), Image.open(io.BytesIO(figures.png(drawn_once())))
    assert np.array_equal(np.asarray(found.convert("RGB")), np.asarray(expected.convert("RGB")))
    assert found.info["dpi"] == expected.info["dpi"]


def test_confusion_matrix_shows_counts_and_row_shares(drawn):
    png = figures.confusion_matrix([[9, 1], [0, 0]], ["no_tumor", "tumor"], "ours")
    axes, bar = drawn[0].axes
    assert texts(axes) == {"9\n90%", "1\n10%", "0"}
    assert axes.images[0].get_array().tolist() == [[0.9, 0.1], [0.0, 0.0]]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["no tumor", "tumor"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert bar.get_ylabel() == "share of the true class"
    assert size(png)[0] >= 760


def test_confusion_matrix_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"shape \(2, 2\) for 3 classes: a, b, c"):
        figures.confusion_matrix([[1, 0], [0, 1]], ["a", "b", "c"], "")
    with pytest.raises(ValueError, match="without any case"):
        figures.confusion_matrix([[0]], ["a"], "")


def test_roc_passes_through_hand_computed_points(drawn):
    figures.roc({"ours": ([False, True, False, True], [0.1, 0.9, 0.6, 0.4])})
    chance, line = drawn[0].axes[0].lines
    assert chance.get_xydata().tolist() == [[0, 0], [1, 1]]
    # Thresholds 0.9, 0.6, 0.4, 0.1: one tumor, one false alarm, the other tumor, the other false alarm.
    assert line.get_xydata().tolist() == [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]]
    with pytest.raises(ValueError, match="ours: ROC needs cases with and without tumor, all 2 are of one kind"):
        figures.roc({"ours": ([True, True], [0.1, 0.2])})


def test_dice_histogram_bins_and_means(drawn):
    figures.dice_histogram({"ours": [0.01, 0.81, 0.82, 1.0], "baseline": [0.5]})
    axes = drawn[0].axes[0]
    means = [line.get_xdata()[0] for line in axes.lines]
    assert means == pytest.approx([0.66, 0.5])
    heights = axes.patches[0].get_xy()[:, 1]
    assert heights.max() == 2
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["ours (4 cases)", "baseline (1 cases)"]
    with pytest.raises(ValueError, match="baseline: no tumor case"):
        figures.dice_histogram({"baseline": []})


def test_training_curves_join_stages_and_leave_out_what_is_not_finite(drawn):
    stages = [
        ("segmentation", {"validation/dice": [(1, 0.2), (2, float("nan")), (3, 0.4)], "train/loss/total": [(3, 1.0)]}),
        ("joint", {"validation/dice": [(1, 0.5), (2, 0.6)], "validation/auc": [(2, 0.9)]}),
    ]
    charts = figures.training_curves(stages)
    assert list(charts) == ["Training loss and its parts", "Validation"]
    axes = drawn[1].axes[0]
    curves = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata()) and line.get_xdata()[0] != 3]
    assert curves == [[[5, 0.9]], [[1, 0.2], [3, 0.4]], [[4, 0.5], [5, 0.6]]]
    assert [line.get_xdata()[0] for line in axes.lines if list(line.get_ydata()) == [0, 1]] == [3]
    assert texts(axes) == {"segmentation", "joint"}
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["auc", "dice"]
    assert axes.get_xlabel() == "epoch"
    assert axes.get_xlim() == (0, 5)


def test_lines_differ_by_color_and_dashes():
    assert len(set(figures.COLORS)) == len(figures.DASHES) == 7
    lightness = sorted(np.dot(to_rgb(c), [0.3, 0.59, 0.11]) for c in figures.COLORS[:2])
    assert lightness[1] - lightness[0] > 0.05  # ours and baseline also differ in gray


def test_comparison_picture_lays_cases_below_each_other(drawn):
    pictures = [np.full((8, 8, 3), v, dtype=np.uint8) for v in (10, 20, 30, 40)]
    rows = [("a", [(pictures[0], "a0"), (pictures[1], "a1")]), ("b", [(pictures[2], "b0"), (pictures[3], "b1")])]
    png = figures.comparison_picture(["image", "ours"], rows)
    axes = drawn[0].axes
    assert [int(a.images[0].get_array()[0, 0, 0]) for a in axes] == [10, 20, 30, 40]
    assert [a.get_xlabel() for a in axes] == ["a0", "a1", "b0", "b1"]
    assert [a.get_title() for a in axes] == ["image", "ours", "", ""]
    assert size(png)[0] >= 900
    with pytest.raises(ValueError, match="case a: 2 pictures for 1 columns"):
        figures.comparison_picture(["image"], rows)
    with pytest.raises(ValueError, match="without any case"):
        figures.comparison_picture(["image"], [])
