"""The prevalence of a training, from its config and datalist."""

from __future__ import annotations

import json

import pytest
import yaml
from PIL import Image

from scripts.runs.checkpoint_files import CONFIG
from scripts.runs.prevalence import training_prevalence


@pytest.fixture
def stage(tmp_path):
    """Ten items: five without a tumor, three gliomas with a mask, two meningiomas without."""
    for name in [*(f"{i}.png" for i in range(12)), "mask.png"]:
        Image.new("L", (4, 4), 1).save(tmp_path / name)
    rows = [0] * 5 + [1] * 3 + [2] * 2 + [0, 0]
    items = [
        {"image": f"{i}.png", "diagnosis": k, "group": f"g{i}", **({"label": "mask.png"} if k == 1 else {})}
        for i, k in enumerate(rows)
    ]
    parts = {"training": items[:10], "validation": items[10:11], "test": items[11:]}
    datalist = {"name": "made", "modality": {"0": "MRI"}, "classes": {"0": "no_tumor", "1": "glioma", "2": "other"}}
    file = tmp_path / "list.json"
    file.write_text(json.dumps({**datalist, **parts}), encoding="utf-8")

    def write(**values):
        config = {"datalist_file": str(file), "dataset_dir": str(tmp_path), **values}
        (tmp_path / CONFIG).write_text(yaml.safe_dump(config), encoding="utf-8")
        return training_prevalence(tmp_path)

    return write


@pytest.mark.parametrize(
    ("values", "shares"),
    [
        ({}, [0.5, 0.3, 0.2]),
        ({"class_shares": {0: 0.2, 1: 0.4, 2: 0.4}}, [0.2, 0.4, 0.4]),
        ({"class_shares": "equal"}, [1 / 3, 1 / 3, 1 / 3]),
        ({"class_weights": [1.0, 1.0, 2.5]}, [0.5 / 1.3, 0.3 / 1.3, 0.5 / 1.3]),
        ({"items": "mask"}, [5 / 8, 3 / 8, 0.0]),
        # Half of those with and without a tumor change, less two fifths of controls: 0.3 of the masked and of the free.
        ({"counterfactual_share": 0.5, "control_share": 0.4}, [0.5 - 0.15 + 0.09, 0.3 - 0.09 + 0.15, 0.2]),
        # Tumors alone, or the others alone.
        ({"counterfactual_share": [0.5, 0.0], "control_share": 0.4}, [0.5 + 0.09, 0.3 - 0.09, 0.2]),
        ({"counterfactual_share": [0.0, 0.5], "control_share": 0.4}, [0.5 - 0.15, 0.3 + 0.15, 0.2]),
        # Of the 0.3 x 0.3 changed tumors half are another's now: all donors here are of class 1.
        (
            {"counterfactual_share": [0.5, 0.0], "control_share": 0.4, "swap_share": 0.5},
            [0.5 + 0.045, 0.3 - 0.045, 0.2],
        ),
    ],
)
def test_shares_are_those_that_the_loss_saw(stage, values, shares):
    assert list(stage(**values).values()) == pytest.approx(shares, abs=1e-6)


def test_a_stage_without_a_classification_or_a_datalist_has_none(stage):
    assert stage(train_classification=False) is None
    assert stage(cls_weight=0.0) is None
    assert stage(datalist_file=None) is None
