"""Counterfactual items of a training: true by construction, drawn by seed, free of what the certificate holds out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.command.locations import CONFIGS
from scripts.data.preprocessing import check_network_input, make_training_pipeline
from scripts.data.samplers import DrawnItems, SampleIndex
from scripts.interventions.infills import HELD_OUT_INFILLS
from scripts.interventions.insertion import HELD_OUT_BLENDS
from scripts.runs.folder import JOINT, read_datalist, read_manifest, stage_items
from scripts.training.counterfactuals import KINDS, Changed, Counterfactuals, has_tumor, lesion_free
from scripts.training.monai_label import CaseDataset
from scripts.training.train import train

SIZE = (64, 64)


@pytest.fixture(scope="module")
def dataset(small_data) -> CaseDataset:
    datalist = read_datalist(str(small_data.datalist_file), str(small_data.dataset_dir))
    items = stage_items(datalist, "training", str(small_data.dataset_dir), empty_masks=True)
    return CaseDataset(items, make_training_pipeline(SIZE, True, 2), progress=False)


@pytest.fixture(scope="module")
def made(dataset) -> Counterfactuals:
    return Counterfactuals(dataset, 1.0, swap_share=0.5)


def fitting(made: Counterfactuals, kind: str) -> list[int]:
    test = lesion_free if kind.startswith("move") else has_tumor
    return [i for i in range(len(made.dataset)) if test(made.dataset.prepared(i))]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_changed_item_says_is_true(made, kind):
    found = [(i, made.changed(i, kind, np.random.default_rng(i))) for i in fitting(made, kind)]
    changed = [(made.dataset.prepared(i), item) for i, item in found if item["intervention"]]
    assert len(changed) >= 2
    for before, item in changed:
        assert item["intervention"] == kind
        assert item["has_mask"]
        assert not torch.equal(item["image"], before["image"])
        assert torch.equal(item["foreground"], before["foreground"])
        check_network_input(item["image"][None], item["foreground"][None])
        if kind == "removed":
            assert (item["diagnosis"], int(item["label"].sum())) == (0, 0)
        elif kind in ("moved", "swapped"):
            assert item["diagnosis"] == 1
            assert not torch.equal(item["label"], before["label"])
            assert item["label"].any()
            assert not (item["label"][item["foreground"] == 0]).any()
        else:
            assert item["diagnosis"] == before["diagnosis"]
            # Put back after it was taken out, a tumor lies where its head lets it, not to the pixel where it was.
            assert item["label"].any() if kind == "swap_control" else torch.equal(item["label"], before["label"])


def test_a_swapped_head_gets_the_class_of_its_donor(dataset, made):
    index = next(
        i for i in fitting(made, "swapped") if made.changed(i, "swapped", np.random.default_rng(0))["intervention"]
    )
    others = {place for place, _ in made.alike[index]}
    assert others
    assert index not in others
    kinds = {i: dataset.prepared(i)["diagnosis"] for i in others}
    try:
        for i in others:
            dataset.prepared(i)["diagnosis"] = 2
        drawn = [made.changed(index, kind, np.random.default_rng(0)) for kind in ("swapped", "swap_control")]
    finally:
        for i, kind in kinds.items():
            dataset.prepared(i)["diagnosis"] = kind
    assert [item["diagnosis"] for item in drawn] == [2, 1]


def test_prepared_items_are_not_written_into(made):
    before = {i: made.dataset.prepared(i)["image"].clone() for i in range(len(made.dataset))}
    for i in before:
        made(i, np.random.default_rng(i))
    assert all(torch.equal(image, made.dataset.prepared(i)["image"]) for i, image in before.items())


def test_shares_are_met(dataset):
    some = Counterfactuals(dataset, 0.5, control_share=0.4)
    index, rng = fitting(some, "moved")[0], np.random.default_rng(0)
    kinds = [some(index, rng)["intervention"] for _ in range(120)]
    assert kinds.count("") == pytest.approx(60, abs=16)
    assert kinds.count("move_control") == pytest.approx(24, abs=13)


def test_swaps_are_drawn_as_often_as_asked(dataset, made):
    index, rng = fitting(made, "swapped")[0], np.random.default_rng(0)
    kinds = [made(index, rng)["intervention"].partition("_")[0] for _ in range(120)]
    assert sum(kind.startswith("swap") for kind in kinds) == pytest.approx(60, abs=18)
    assert sum(kind.startswith("remov") for kind in kinds) == pytest.approx(60, abs=18)


def test_the_draw_depends_on_seed_epoch_and_place_alone(dataset, made):
    index = fitting(made, "removed")[0]

    def drawn(epoch: int, place: int, seed: int = 0) -> torch.Tensor:
        items = DrawnItems(dataset, seed, made)
        items.set_epoch(epoch)
        return items[SampleIndex(index, place)]["image"]

    first = drawn(1, 5)
    drawn(2, 0)
    assert torch.equal(drawn(1, 5), first)
    for other in (drawn(2, 5), drawn(1, 6), drawn(1, 5, seed=1)):
        assert not torch.equal(other, first)


def test_a_list_whose_no_tumor_is_not_no_lesion_gives_no_hosts(small_data):
    datalist = read_datalist(str(small_data.datalist_file), str(small_data.dataset_dir))
    datalist["no_tumor_means_no_lesion"] = False
    items = stage_items(datalist, "training", str(small_data.dataset_dir), empty_masks=True)
    plain = [item for item in items if "label" not in item]
    assert plain
    assert not any(item.get("lesion_free") for item in items)
    dataset = CaseDataset(plain, make_training_pipeline(SIZE, True, 2), progress=False)
    assert not any(dataset.prepared(i)["has_mask"] for i in range(len(dataset)))


def test_validation_has_the_same_changed_items_every_time(dataset):
    first, again = (Changed(2, seed=3)(dataset) for _ in range(2))
    assert [item["intervention"] for item in first] == ["removed"] * 2 + ["moved"] * 2
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, again, strict=True))
    assert Changed(0)(dataset) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1.5}, "counterfactual_share lies between 0 and 1, one number or two, got 1.5"),
        ({"share": [0.1, 0.2, 0.3]}, "one number or two, got"),
        ({"control_share": -1.0}, "control_share lies between 0 and 1, got -1.0"),
        ({"swap_share": 2}, "swap_share lies between 0 and 1, got 2"),
        ({"infills": HELD_OUT_INFILLS}, "the others are held out"),
        ({"blends": HELD_OUT_BLENDS}, "the others are held out"),
    ],
)
def test_what_cannot_be_drawn_is_refused(dataset, settings, message):
    with pytest.raises(ValueError, match=message):
        Counterfactuals(dataset, **settings)


def test_the_shipped_overlay_trains_and_selects_by_the_changed_items(small_data, tmp_path):
    overlays = [CONFIGS / "counterfactual.yaml", CONFIGS / "smoke.yaml"]
    values = {"max_epochs": 1, "validation_counterfactuals": 2, "image_interval": 0}
    train(tmp_path, overlays, (JOINT,), **values, **small_data.paths)
    manifest = read_manifest(tmp_path / JOINT)
    curves = EventAccumulator(str(tmp_path / JOINT)).Reload()
    found = {name: [e.value for e in curves.Scalars(f"validation/{name}")] for name in ("removed", "moved", "combined")}
    because = [sum(values) / 3 for values in zip(*found.values(), strict=True)]
    assert len(because) == 2
    assert manifest["best_metric"] == pytest.approx(max(because), abs=1e-6)
    assert "head.log_scale" in torch.load(tmp_path / JOINT / "model.pt", weights_only=True)
