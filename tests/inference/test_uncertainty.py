from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from scripts.evaluation.uncertainty_evaluation import draw, summarize, write_uncertainty
from scripts.inference.inferers import VIEWS
from scripts.inference.uncertainty import (
    PredictiveUncertainty,
    dropout_on,
    has_dropout,
    mc_dropout,
    predict,
    test_time_augmentation,
)
from scripts.networks.classifiers import ImageClassifier
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.runs.documents import Document

ARGUMENTS = (2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2])


def network(dropout: float | None = None) -> MultiTaskDynUNet:
    torch.manual_seed(0)
    return MultiTaskDynUNet(*ARGUMENTS, filters=[4, 8, 16], dropout=dropout).eval()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((3, 1, 32, 32), generator=generator)
    head = torch.zeros(1, 1, 32, 32)
    head[..., 6:26, 8:22] = 1
    return x * head


def test_spread_by_hand():
    probabilities = [torch.tensor([[0.8, 0.2]]), torch.tensor([[0.4, 0.6]])]
    half = torch.zeros(1, 1, 2, 2)
    half[..., 0, :] = 1.0
    none = torch.zeros(1, 1, 2, 2)
    found = PredictiveUncertainty.of(probabilities, [half, none])
    torch.testing.assert_close(found.probability, torch.tensor([[0.6, 0.4]]))
    torch.testing.assert_close(found.probability_std, torch.tensor([0.2]))
    assert found.entropy.item() == pytest.approx(-(0.6 * np.log(0.6) + 0.4 * np.log(0.4)))
    assert found.seg_std[0, 0].tolist() == [[0.5, 0.5], [0.0, 0.0]]
    # The mean is 0.5 in two pixels, which counts as tumor: Dice 1 with the first mask, 0 with the empty one.
    assert found.mask_disagreement.item() == pytest.approx(0.5)
    assert found.count == 2


def test_predictions_that_agree_have_no_spread_also_without_any_tumor():
    same = [torch.tensor([[0.9, 0.1]])] * 3
    found = PredictiveUncertainty.of(same, [torch.zeros(1, 1, 4, 4)] * 3)
    assert (found.probability_std.item(), found.mask_disagreement.item()) == (0.0, 0.0)
    with pytest.raises(ValueError, match="two predictions or more, got 1"):
        PredictiveUncertainty.of(same[:1], [torch.zeros(1, 1, 4, 4)])


def test_augmentation_compares_the_views_that_users_get(image):
    net = network()
    found = test_time_augmentation(net, image)
    assert found.count == len(VIEWS)
    by_hand = [predict(net, change(image)) for change, _ in VIEWS.values()]
    tumor = torch.stack([probability[:, 1] for probability, _ in by_hand])
    torch.testing.assert_close(found.probability_std, tumor.std(dim=0, correction=0))
    undone = torch.stack([undo(seg) for (_, seg), (_, undo) in zip(by_hand, VIEWS.values(), strict=True)])
    torch.testing.assert_close(found.seg, undone.mean(dim=0))
    assert bool((found.probability_std > 0).all())
    assert bool((found.seg_std.flatten(1).amax(dim=1) > 0).all())


def test_foreground_is_held_fixed_whether_read_or_given(image):
    net = network()
    read, given = test_time_augmentation(net, image), test_time_augmentation(net, image, (image != 0).to(torch.uint8))
    torch.testing.assert_close(read.seg_std, given.seg_std)
    torch.testing.assert_close(read.probability, given.probability)
    for change, _ in VIEWS.values():
        assert ((change(image) != 0) == (change((image != 0).float()) != 0)).all(), "the view's own foreground"


def test_dropout_varies_is_seeded_and_leaves_everything_as_it_was(image):
    net = network(0.2)
    before = torch.random.get_rng_state()
    first, again = (mc_dropout(net, image, samples=4, seed=3) for _ in range(2))
    assert bool((first.probability_std > 0).all())
    assert bool((first.seg_std.flatten(1).amax(dim=1) > 0).all())
    torch.testing.assert_close(first.seg, again.seg)
    assert not torch.equal(first.seg, mc_dropout(net, image, samples=4, seed=4).seg)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not any(module.training for module in net.modules())
    air = image == 0
    assert bool((first.seg_std[air] < 1e-6).all()), "dropout never makes tissue of air"


def test_dropout_is_switched_off_also_after_an_error():
    net = network(0.2)
    seen = []

    def broken() -> None:
        with dropout_on(net):
            seen.append(any(module.training for module in net.modules()))
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        broken()
    assert seen == [True]
    assert not any(module.training for module in net.modules())


def test_dropout_without_dropout_is_an_error_and_not_a_zero(image):
    net = network()
    assert not has_dropout(net)
    with pytest.raises(ValueError, match="needs a network trained with dropout"):
        mc_dropout(net, image)


def row(cluster: str, wrong: bool | None, std: float, dice: float, disagreement: float) -> dict:
    return {
        "cluster": cluster, "wrong": wrong, "dice": dice, "mask_disagreement": disagreement, "probability_std": std,
        "entropy": std, "single_entropy": 1 - std, "mean_std": std, "pixel_auroc": 0.9,
        "single_pixel_auroc": float("nan"),
    }  # fmt: skip


def test_figures_by_hand():
    rows = [
        row("a", False, 0.1, 0.9, 0.1), row("b", True, 0.4, 0.5, 0.6), row("c", False, 0.2, 0.8, 0.2),
        row("d", True, 0.15, 0.6, 0.3), row("e", None, 0.0, float("nan"), 0.0),
    ]  # fmt: skip
    found = summarize(rows)
    assert (found["diagnosis"]["n"], found["diagnosis"]["errors"]) == (4, 2)
    assert found["diagnosis"]["probability_std"]["auroc"] == pytest.approx(3 / 4)
    assert found["diagnosis"]["single_entropy"]["auroc"] == pytest.approx(1 / 4)
    assert (found["mask"]["n"], found["mask"]["poor"], found["mask"]["auroc"]) == (4, 2, 1.0)
    assert found["mask"]["spearman"] == pytest.approx(-1.0)
    assert (found["pixels"]["pixel_auroc"]["n"], found["pixels"]["single_pixel_auroc"]["n"]) == (5, 0)
    assert found["spread"]["none"] == 0.2, "the last case"
    right = summarize([r for r in rows if not r["wrong"]])
    assert right["diagnosis"]["entropy"] == {"auroc": None, "auroc_ci95": [None, None]}, (
        "without an error there is none"
    )


def test_cases_are_drawn_by_the_seed():
    assert draw(range(10), None) == draw(range(10), 10) == list(range(10))
    chosen = draw(range(100), 7)
    assert chosen == draw(range(100), 7) == sorted(set(chosen))
    assert len(chosen) == 7


class Cases(Dataset):
    """Two healthy heads and two with a bright square, as the evaluation's dataset gives them."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> dict:
        generator = torch.Generator().manual_seed(i)
        foreground, label = torch.zeros(1, 32, 32, dtype=torch.uint8), torch.zeros(1, 32, 32, dtype=torch.uint8)
        foreground[0, 6:26, 8:22] = 1
        if i % 2:
            label[0, 10:16, 10:16] = 1
        image = (torch.randn((1, 32, 32), generator=generator) + 3 * label) * foreground
        nan = float("nan")
        return {
            "image": image, "foreground": foreground, "label": label, "has_mask": True, "diagnosis": i % 2,
            "source": "s", "patient": f"p{i}", "group": "", "name": f"case{i}", "label_coverage": 1.0,
            "pixel_mm": torch.full((2,), nan), "pixel_area": 1.0, "head_share": 0.5, "slice_mm": nan,
            "slice": -1, "volume": "",
        }  # fmt: skip


def test_a_network_that_does_not_segment_is_measured_by_its_diagnoses_alone(tmp_path):
    torch.manual_seed(0)
    result = write_uncertainty(ImageClassifier("densenet121", 2, 1, 2).eval(), Cases(), tmp_path)
    (found,) = result["methods"].values()
    assert found["diagnosis"]["n"] == found["spread"]["probability_std"]["n"] == 4
    assert (found["mask"]["n"], found["pixels"]["pixel_auroc"]["n"], found["spread"]["mean_std"]["n"]) == (0, 0, 0)
    assert found["spread"]["probability_std"]["mean"] > 0
    assert found["spread"]["none"] == 0.0
    assert "segments nothing" in result["unavailable"]["segmentation"]
    assert result["pictures"] == []
    rows = Document(tmp_path, "uncertainty_cases.csv").content
    assert {row["mask_disagreement"] for row in rows} == {""}


def test_a_head_that_was_not_trained_gives_no_figures_of_diagnosis(tmp_path):
    net = network()
    net.trained_tasks = ("segmentation",)
    result = write_uncertainty(net, Cases(), tmp_path)
    (found,) = result["methods"].values()
    assert found["diagnosis"]["n"] == found["spread"]["probability_std"]["n"] == 0
    assert found["spread"]["mean_std"]["n"] == 4
    assert "head of this network was not trained" in result["unavailable"]["classification"]
    assert [entry["probability_std"] for entry in result["pictures"]] == [None] * 4


@pytest.mark.parametrize("dropout", [None, 0.2])
def test_files_hold_methods_pictures_and_what_is_not_available(tmp_path, dropout):
    result = write_uncertainty(network(dropout), Cases(), tmp_path, cases=3, samples=3)
    assert Document(tmp_path, "uncertainty.json").content == result
    assert (result["n"], result["of"]) == (3, 4)
    table = Document(tmp_path, "uncertainty_cases.csv").content
    if dropout:
        assert set(result["methods"]) == {"test_time_augmentation", "mc_dropout"}
        assert result["unavailable"] == {}
        assert len(table) == 6
    else:
        assert set(result["methods"]) == {"test_time_augmentation"}
        assert "without dropout" in result["unavailable"]["mc_dropout"]
        assert len(table) == 3
    assert result["methods"]["test_time_augmentation"]["spread"]["none"] == 0.0
    assert all((tmp_path / entry[what]).is_file() for entry in result["pictures"] for what in ("image", "std"))
    assert len(result["pictures"]) == 3


@pytest.mark.parametrize("name", [name for name in VIEWS if name not in ("brighter", "darker")])
def test_a_mirrored_or_shifted_view_is_undone(name):
    change, undo = VIEWS[name]
    x = torch.arange(1.0, 121).reshape(1, 1, 12, 10)
    assert torch.equal(undo(change(x))[:, :, 3:-3, 3:-3], x[:, :, 3:-3, 3:-3])
    assert name == "as it is" or not torch.equal(change(x), x)
