from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import center_of_mass
from skimage.measure import shannon_entropy

from scripts.data.preprocessing import make_training_pipeline
from scripts.evaluation.corruptions import CORRUPTIONS, corrupt
from scripts.evaluation.items import EvaluationDataset, compare_classes, evaluated_items
from scripts.evaluation.robustness import summarize, write_robustness
from scripts.runs.documents import Document
from scripts.runs.folder import load_run, read_datalist


@pytest.fixture(scope="module")
def item() -> dict:
    x, y = np.meshgrid(np.arange(96), np.arange(80), indexing="ij")
    head = ((x - 48) / 38) ** 2 + ((y - 40) / 32) ** 2 < 1
    brain = 500 + 200 * np.sin(x / 4) * np.cos(y / 5)
    label = (x - 30) ** 2 + (y - 40) ** 2 < 64
    image = np.where(head, brain + 400 * label, 0).astype(np.float32)
    meta = {"filename_or_obj": "a.png"}
    return {
        "name": "a", "image": MetaTensor(torch.tensor(image[None]), meta=meta),
        "label": torch.tensor(label[None].astype(np.uint8)),
    }  # fmt: skip


def change(item: dict, name: str, strength: float) -> float:
    """Mean change of the image, as a share of its range."""
    changed = corrupt(item, name, strength)["image"]
    return float((changed.as_tensor() - item["image"].as_tensor()).abs().mean() / item["image"].max())


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_a_stronger_corruption_changes_more_and_the_item_stays_as_it_was(item, name):
    before = item["image"].as_tensor().clone()
    strengths = CORRUPTIONS[name].strengths
    changes = [change(item, name, s) for s in strengths]
    assert all(c > 0 for c in changes)
    if name not in ("contrast", "bias field"):  # of contrast the first goes the other way, of bias each is drawn again
        assert changes == sorted(changes)
    changed = corrupt(item, name, strengths[-1])
    assert changed["image"].shape == item["image"].shape
    assert changed["image"].meta["filename_or_obj"] == "a.png"
    assert bool(torch.isfinite(changed["image"]).all())
    assert torch.equal(item["image"].as_tensor(), before)
    again = corrupt(item, name, strengths[-1])["image"]
    assert torch.equal(changed["image"].as_tensor(), again.as_tensor()), "seeded by the case"
    if not CORRUPTIONS[name].geometric:
        assert torch.equal(changed["label"], item["label"])


def test_noise_fills_the_air_as_in_a_scanner(item):
    air = item["image"].as_tensor() == 0
    noisy = corrupt(item, "noise", 0.07)["image"].as_tensor()
    assert bool((noisy[air] > 0).all()), "Rician: a magnitude"
    span = float(torch.quantile(item["image"].as_tensor(), 0.999))
    assert float(noisy[air].mean()) == pytest.approx(0.07 * span * np.sqrt(np.pi / 2), rel=0.05)


def test_rotation_moves_image_and_mask_alike(item):
    changed = corrupt(item, "rotation", 30.0)
    moved, label = changed["image"].as_tensor()[0].numpy(), changed["label"][0].numpy()
    assert set(np.unique(label)) == {0, 1}
    assert np.hypot(*np.subtract(center_of_mass(label), center_of_mass(item["label"][0].numpy()))) > 5
    bright = (moved > 850) & (moved < 1400)
    overlap = 2 * (bright & (label > 0)).sum() / (bright.sum() + label.sum())
    assert overlap > 0.7, "the bright tumor is where its mask went"


def test_ghosts_lie_along_the_second_axis_at_a_fourth_of_its_length(item):
    point = dict(item)
    point["image"] = torch.zeros(1, 64, 64)
    point["image"][0, 20:24, 20:24] = 1000.0
    ghosted = corrupt(point, "motion ghosting", 0.9)["image"][0]
    assert float(ghosted[20:24, 36:40].mean()) > 20, "20 + 64/4"
    assert float(ghosted[40:44, 20:24].abs().max()) < 1, "not along the first axis"


def test_jpeg_keeps_the_range_and_loses_detail(item):
    small = corrupt(item, "JPEG", 5.0)["image"].as_tensor()
    assert float(small.max()) == pytest.approx(float(item["image"].max()), rel=0.2)
    assert shannon_entropy(small[0].round().numpy()) < shannon_entropy(item["image"].as_tensor()[0].round().numpy())


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_every_channel_is_corrupted_within_its_own_range(item, name):
    image = item["image"].as_tensor()
    two = {**item, "image": torch.cat([image, 40 * image + 300])}
    strength = CORRUPTIONS[name].strengths[1]
    changed = corrupt(two, name, strength)["image"]
    share = (changed - two["image"]).abs().mean(dim=(1, 2)) / two["image"].amax(dim=(1, 2))
    if name == "noise":  # drawn for each pixel of each channel
        span = two["image"].amax(dim=(1, 2)) - two["image"].amin(dim=(1, 2))
        deviation = (changed - two["image"])[:, image[0] > 0].std(dim=1) / span
        assert deviation.tolist() == pytest.approx([strength, strength], rel=0.1)
        return
    assert torch.allclose(changed[:1], corrupt(item, name, strength)["image"].as_tensor(), atol=1e-2)
    if name != "rotation":  # brings 0 in, which is not this channel's air
        assert torch.allclose(changed[1], 40 * changed[0] + 300, rtol=1e-3, atol=1.0)
    assert bool((share > 0).all())


def test_unknown_corruption_and_volumes_are_refused(item):
    with pytest.raises(ValueError, match="corruption is one of noise, blur"):
        corrupt(item, "nois", 1.0)
    with pytest.raises(ValueError, match="2D images"):
        corrupt({"image": torch.zeros(1, 8, 8, 8)}, "noise", 0.1)


def test_refused_images_are_counted_and_not_scored():
    case = {"cluster": "a", "dice": 0.5, "tumor_energy": 0.4, "diagnosis": 1, "predicted": 1, "tumor_probability": 0.7}
    found = summarize([case], 2, ["no head", "no head"])
    assert (found["n"], found["refused"], found["reasons"]) == (1, 2, ["no head"])
    assert (found["dice"]["mean"], found["balanced_accuracy"], found["specificity"]) == (0.5, 1.0, None)
    nothing = summarize([], 2, ["no head"])
    assert (nothing["n"], nothing["dice"]["mean"], nothing["balanced_accuracy"]) == (0, None, None)


def test_file_holds_every_strength_beside_the_clean_images(small_run, tmp_path):
    network, config, _ = load_run(small_run.run("ours"))
    datalist = read_datalist(str(small_run.datalist_file), str(small_run.dataset_dir))
    items = evaluated_items(datalist, "test", str(small_run.dataset_dir))
    dataset = EvaluationDataset(items, make_training_pipeline(config["spatial_size"], augment=False, num_classes=2))
    classes = compare_classes(["no_tumor", "tumor"], 2, ["no_tumor", "tumor"])
    result = write_robustness(network, dataset, tmp_path, 6, classes, corruptions=["noise", "JPEG"])
    assert Document(tmp_path, "robustness.json").content == result
    assert (result["n"], result["of"]) == (6, len(items))
    assert (tmp_path / "figures" / "robustness.png").read_bytes().startswith(b"\x89PNG")
    assert [c["name"] for c in result["corruptions"]] == ["noise", "JPEG"]
    for corruption in result["corruptions"]:
        assert [level["strength"] for level in corruption["levels"]] == list(CORRUPTIONS[corruption["name"]].strengths)
        assert all(level["n"] + level["refused"] == 6 for level in corruption["levels"])
    assert result["clean"]["refused"] == 0
    assert result["clean"]["tumor_energy"]["n"] == result["clean"]["dice"]["n"] > 0
    network.trained_tasks = ("classification",)
    half = write_robustness(network, dataset, tmp_path, 6, classes, corruptions=["JPEG"])["clean"]
    assert (half["dice"]["n"], half["balanced_accuracy"]) == (0, result["clean"]["balanced_accuracy"])
    network.trained_tasks = ("segmentation",)
    half = write_robustness(network, dataset, tmp_path, 6, classes, corruptions=["JPEG"])["clean"]
    assert (half["dice"], half["balanced_accuracy"]) == (result["clean"]["dice"], None)
    assert half["tumor_energy"]["n"] == 0
    with pytest.raises(ValueError, match="corruptions are of noise"):
        write_robustness(network, dataset, tmp_path, 6, classes, corruptions=["fog"])
