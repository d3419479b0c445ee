from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.evaluation.case_pictures import choose, write_case_pictures
from scripts.evaluation.evaluation import decided
from scripts.measures.mask_measures import mask_measures
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from tests.inference.test_uncertainty import ARGUMENTS, Cases


def case(name: str, dice: float, diagnosis: int, predicted: int, probability: list[float]) -> dict:
    return {"name": name, "dice": dice, "diagnosis": diagnosis, "predicted": predicted, "probability": probability}


NAN = float("nan")
ROWS = [
    case("a", 0.9, 1, 1, [0.1, 0.9]), case("b", 0.1, 1, 0, [0.7, 0.3]), case("c", 0.5, 1, 1, [0.2, 0.8]),
    case("d", NAN, 0, 1, [0.05, 0.95]), case("e", NAN, -1, 1, [0.0, 1.0]), case("f", 0.7, 1, 0, [0.6, 0.4]),
]  # fmt: skip


def test_worst_best_and_the_surest_wrong_diagnoses_are_shown():
    names = [(kind, ROWS[i]["name"]) for kind, i in choose(ROWS, 2)]
    assert names == [
        ("worst", "b"), ("worst", "c"), ("best", "a"), ("best", "f"), ("misdiagnosed", "d"), ("misdiagnosed", "b"),
        ("random", "e"),
    ]  # fmt: skip


def test_with_few_cases_none_is_both_worst_and_best_and_without_masks_there_is_neither():
    kinds = [kind for kind, _ in choose(ROWS[:3], 2)]
    assert kinds == ["worst", "worst", "best", "misdiagnosed"], "and none is left to draw"
    assert [kind for kind, _ in choose([ROWS[3], ROWS[4]], 2)] == ["misdiagnosed", "random"], "unknown is not wrong"


@pytest.mark.parametrize("evidence", [True, False])
def test_pictures_show_the_masks_and_the_evidence_of_the_listed_cases(tmp_path, evidence):
    torch.manual_seed(0)
    head = {} if evidence else {"head": "average_pool"}
    network = MultiTaskDynUNet(*ARGUMENTS, filters=[4, 8, 16], **head).eval()
    dataset, rows = Cases(), []
    for i in range(len(dataset)):
        item = dataset[i]
        output = network.multitask(item["image"][None])
        segmented = (output["seg"][0].argmax(dim=0, keepdim=True) > 0).float()
        measured = mask_measures(
            segmented, item["label"].float(), item["foreground"] != 0, item["pixel_mm"], item["name"]
        )
        known = {key: item[key] for key in ("name", "source", "diagnosis")}
        rows.append({**known, "logits": output["cls"][0].tolist(), **measured})
    rows = decided(rows, 0.5, 1.0)
    entries = write_case_pictures(network, dataset, rows, tmp_path, count=1)
    assert json.loads((tmp_path / "cases.json").read_text(encoding="utf-8")) == entries
    worst, best = entries[:2]
    dice = {row["name"]: row["dice"] for row in rows if row["dice"] == row["dice"]}
    assert (worst["dice"], best["dice"]) == (min(dice.values()), max(dice.values()))
    assert {worst["name"], best["name"]} == set(dice)
    for entry in entries:
        assert (entry["evidence"] is not None) == evidence
        files = [entry["image"], entry["evidence"]] if evidence else [entry["image"]]
        packed = np.asarray(Image.open(tmp_path / entry["layers"]))
        item = next(item for item in (dataset[i] for i in range(len(dataset))) if item["name"] == entry["name"])
        assert packed.shape == (*item["image"].shape[:0:-1], 3)
        true = item["label"][0].numpy().T > 0 if bool(item["has_mask"]) else np.zeros(packed.shape[:2], bool)
        assert ((packed[..., 2] & 64 > 0) == true).all()
        assert (packed[..., 1].max() > 0) <= evidence, "no map where there is no evidence"
        for file in files:
            picture = np.asarray(Image.open(tmp_path / file).convert("RGB")).astype(int)
            assert picture.shape[0] >= 32
    picture = np.asarray(Image.open(tmp_path / worst["image"]).convert("RGB")).astype(int)
    cyan = (picture[..., 1] > 150) & (picture[..., 2] > 150) & (picture[..., 0] < 100)
    assert cyan.any(), "the line around the true mask"
    assert sorted(p.name for p in (tmp_path / "cases").iterdir()) == sorted(
        {name.partition("/")[2] for e in entries for name in (e["image"], e["evidence"], e["layers"]) if name}
    )


class Volumes(torch.utils.data.Dataset):
    """Two heads of 16 slices with a tumor in slices 6 to 9."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict:
        rng = torch.Generator().manual_seed(index)
        image = 1 + torch.rand((1, 16, 16, 16), generator=rng)
        label = torch.zeros_like(image)
        label[:, 4:9, 5:8, 6:10] = 1
        label[:, 3, 3, 8] = 1
        return {"name": f"v{index}", "image": image, "label": label, "has_mask": torch.tensor(True)}


def test_of_a_volume_several_slices_are_packed_below_each_other_in_one_window(tmp_path):
    torch.manual_seed(0)
    network = MultiTaskDynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16]).eval()
    rows = [{**case(f"v{k}", 0.1 + k, 1, 1, [0.1, 0.9]), "source": "s", "tumor_probability": 0.9} for k in range(2)]
    entry = next(e for e in write_case_pictures(network, Volumes(), rows, tmp_path, count=1) if e["name"] == "v0")
    item, count = Volumes()[0], len(entry["slices"])
    assert (entry["slice"], entry["of"]) == (8, 16)
    assert 8 in entry["slices"]
    assert 4 <= count <= 9
    packed = np.asarray(Image.open(tmp_path / entry["layers"]))
    assert packed.shape == (16 * count, 16, 3)
    image = item["image"][0].numpy()[..., entry["slices"]]
    low, high = np.percentile(image, (1, 99.5))
    for k, z in enumerate(entry["slices"]):
        part = packed[16 * k : 16 * (k + 1)]
        assert ((part[..., 2] & 64 > 0) == (item["label"][0, :, :, z].numpy().T > 0)).all()
        gray = np.rint(255 * np.clip((image[..., k].T - low) / (high - low), 0, 1))
        assert np.abs(part[..., 0] - gray).max() <= 1
