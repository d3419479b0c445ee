"""Verification: each rule on an image that breaks it and on one that does not, the summary, and the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scripts.__main__ import main as command
from scripts.checks.verification import RULES, Verifier
from scripts.checks.verify_data import passing, summarize, text, verify, worst
from scripts.data import datalists
from tests.transforms.images import disc, head


def picture(seed: int = 0, radius: float = 55) -> np.ndarray:
    """A head (X, Y), uint8: unlike others in its ventricles, so that it is no near-duplicate."""
    image, _ = head((160, 160), radius, seed)
    rng = np.random.default_rng(seed)
    for _ in range(12):
        spot = disc((160, 160), rng.uniform(4, 10), tuple(rng.uniform(50, 110, 2)))
        image[spot] = rng.uniform(20, 190)
    return np.clip(image, 0, 255).astype(np.uint8)


def save(array: np.ndarray, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(array.T)).save(path)
    return path.name


def broken(tmp_path, array, **item) -> dict[str, str]:
    name = save(array, tmp_path / "a.png")
    return Verifier(tmp_path, 64)({"image": name, "diagnosis": 0, **item}, "training").broken


def test_a_good_image_breaks_no_rule_and_is_measured(tmp_path):
    image = picture()
    name, mask = save(image, tmp_path / "a.png"), disc((160, 160), 8, (80, 60)).astype(np.uint8) * 255
    save(mask, tmp_path / "m.png")
    result = Verifier(tmp_path, 64)({"image": name, "label": "m.png", "diagnosis": 1, "patient": "p"}, "training")
    assert result.broken == {}
    row = result.row()
    assert (row["width"], row["height"], row["mode"], row["minimum"], row["maximum"]) == (160, 160, "L", 0, 200)
    assert row["zero_share"] == pytest.approx((image == 0).mean())
    assert row["corner_mean"] == 0
    assert row["foreground_share"] == pytest.approx(disc((160, 160), 55).mean(), rel=0.05)
    assert row["tumor_share"] == pytest.approx((mask > 0).mean())
    assert row["mask_inside"] == 1
    assert row["label_values"] == "2 from 0 to 255"
    assert row["network_zero_share"] == pytest.approx(1 - np.pi * 55**2 / 118**2, abs=0.05)  # 110 and margin 4 a side


def test_each_rule_names_what_breaks_it(tmp_path):
    image = picture()
    assert "aspect 4.0" in broken(tmp_path, picture()[:, 60:100])["size"]
    color = np.stack([picture(), picture() // 4, picture() // 8], axis=-1)
    Image.fromarray(color.transpose(1, 0, 2)).save(tmp_path / "c.png")
    assert Verifier(tmp_path, 64)({"image": "c.png", "diagnosis": 0}, "test").broken["mode"].startswith("RGB, color")
    flat = np.where(disc((160, 160), 50), 200, 0).astype(np.uint8)
    assert broken(tmp_path, flat)["intensity_range"] == "2 different values"
    noise = np.random.default_rng(0).integers(0, 255, (160, 160), dtype=np.uint8)
    assert "noise" in broken(tmp_path, noise)["foreground"]
    page = np.where(disc((160, 160), 70), image, 255).astype(np.uint8)
    found = broken(tmp_path, page)
    assert found == {"background": "corner mean 1.00, outside the mask"}
    mask = disc((160, 160), 10, (6, 6)).astype(np.uint8) * 255
    save(mask, tmp_path / "m.png")
    outside = broken(tmp_path, image, label="m.png", diagnosis=1)
    assert outside == {"mask_inside": "0.000"}
    tumor = disc((160, 160), 8, (80, 60)).astype(np.uint8) * 255
    save(tumor, tmp_path / "m.png")
    assert broken(tmp_path, image, label="m.png") == {
        "label_class": f"class 0 (no tumor), but {int((tumor > 0).sum())} tumor pixels"
    }
    save(tumor * 0, tmp_path / "m.png")
    assert broken(tmp_path, image, label="m.png", diagnosis=1) == {"label_class": "class 1, but an empty mask"}
    soft = (np.clip(30 - np.hypot(*(np.indices((160, 160)) - 80)), 0, 30) * 8.5).astype(np.uint8)
    save(soft, tmp_path / "m.png")
    assert "gray values lie between" in broken(tmp_path, image, label="m.png", diagnosis=1)["label_values"]
    save(disc((160, 160), 50).astype(np.uint8) * 255, tmp_path / "m.png")
    assert broken(tmp_path, image, label="m.png", diagnosis=1)["mask_share"] == "0.80 of the foreground"
    save(np.ones((20, 20), np.uint8) * 255, tmp_path / "m.png")
    assert "size (20, 20)" in broken(tmp_path, image, label="m.png", diagnosis=1)["readable"]
    assert broken(tmp_path, picture(radius=75)[:100, :100])["cut_head"].startswith("1 corner of mean")


def test_normalized_volumes_and_odd_labels(tmp_path):
    image, inside = head((48, 48, 8), 20, 0)
    z = np.where(inside, (image - image[inside].mean()) / image[inside].std(), -3.5).astype(np.float32)
    affine = np.diag([-1.0, -1, 3, 1])
    for name, array in {"z": z, "brain": inside * 1.0, "odd": disc((48, 48, 8), 5) * 6.0}.items():
        nib.save(nib.Nifti1Image(array.astype(np.float32), affine), tmp_path / f"{name}.nii")
    item = {"image": "z.nii", "slice": 4, "diagnosis": 0}
    assert Verifier(tmp_path, 64)(item, "test").broken == {"normalized": "air is -3.5"}
    given = Verifier(tmp_path, 64)({**item, "foreground": "brain.nii"}, "test")
    assert given.broken == {}
    assert given.measures["given_mask"]
    labels = Verifier(tmp_path, 64)({**item, "foreground": "brain.nii", "label": "odd.nii", "diagnosis": 1}, "test")
    assert labels.broken == {"label_values": "labels 6"}
    assert labels.measures["label_values"] == "0 6"


def test_a_mask_on_another_grid_is_not_readable(tmp_path):
    image, inside = head((48, 48, 8), 20, 0)
    affine = np.diag([-1.0, -1, 3, 1])
    away = affine.copy()
    away[0, 3] = 40
    for name, array, grid in (("i", image, affine), ("here", disc((48, 48, 8), 5), affine),
                              ("away", disc((48, 48, 8), 5), away), ("brain", inside, away)):  # fmt: skip
        nib.save(nib.Nifti1Image(array.astype(np.float32), grid), tmp_path / f"{name}.nii")
    item = {"image": "i.nii", "slice": 4, "diagnosis": 1}
    assert Verifier(tmp_path, 64)({**item, "label": "here.nii"}, "test").broken == {}
    for key, name in (("label", "away.nii"), ("foreground", "brain.nii")):
        broken = Verifier(tmp_path, 64)({**item, key: name}, "test").broken
        assert broken == {
            "readable": f"{key} {name} and image i.nii have the same size, but are not on the same grid: "
            "their corners lie up to 40 mm apart, at most 0.1 mm (a tenth of a voxel) is taken as rounding; resample "
            "the mask to the image"
        }
    assert RULES["readable"].level == "fail"


def folder_of(tmp_path: Path, count: int = 6) -> dict:
    items = [
        {"image": save(picture(k), tmp_path / f"{k}.png"), "diagnosis": k % 2, "source": "x"} for k in range(count)
    ]
    return {
        "name": "x", "modality": {"0": "T1"}, "classes": {"0": "no_tumor", "1": "tumor"},
        "training": items[: count - 2], "validation": [items[count - 2]], "test": [items[count - 1]],
    }  # fmt: skip


def test_copies_and_near_copies_between_splits_are_found(tmp_path):
    datalist = folder_of(tmp_path)
    assert {result.level() for result in verify(datalist, tmp_path, 64, progress=False)} == {"pass"}
    save(picture(0), tmp_path / "copy.png")
    save(picture(1)[::-1], tmp_path / "mirrored.png")
    save(picture(2), tmp_path / "twice.png")
    datalist["test"] += [{"image": "copy.png", "diagnosis": 0}, {"image": "mirrored.png", "diagnosis": 1}]
    datalist["training"].append({"image": "twice.png", "diagnosis": 0})
    results = {r.item["image"]: r.broken for r in verify(datalist, tmp_path, 64, progress=False)}
    assert results["copy.png"]["duplicate"] == "same pixels as 0.png (training)"
    assert results["0.png"]["near_duplicate"] == "linked to copy.png in test"
    assert results["mirrored.png"] == {"near_duplicate": "linked to 1.png in training"}
    assert results["twice.png"] == {"copies": "same pixels as 2.png"}
    assert results["3.png"] == {}
    datalist["test"][-1]["patient"] = datalist["validation"][0]["patient"] = "p1"
    datalist["test"][-1]["source"] = "y"  # p1 of another source is another person
    results = {r.item["image"]: r.broken for r in verify(datalist, tmp_path, 64, progress=False)}
    assert results["4.png"] == {}
    datalist["test"][-1]["source"] = "x"
    results = {r.item["image"]: r.broken for r in verify(datalist, tmp_path, 64, progress=False)}
    assert results["4.png"] == {"near_duplicate": "linked to 1.png in training"}  # over mirrored.png


def test_the_command_writes_tables_a_sheet_and_exits_by_the_rules(tmp_path, capsys):
    datalist = folder_of(tmp_path)
    (tmp_path / "torn.png").write_bytes((tmp_path / "0.png").read_bytes()[:100])
    datalist["training"].append({"image": "torn.png", "diagnosis": 1, "source": "y"})
    page = np.where(disc((160, 160), 70), picture(8), 255).astype(np.uint8)
    datalist["training"].append({"image": save(page, tmp_path / "page.png"), "diagnosis": 1, "source": "y"})
    file = tmp_path / "list.json"
    file.write_text(json.dumps(datalist))
    arguments = ["verify", "--datalist_file", str(file), "--dataset_dir", str(tmp_path)]
    assert command([*arguments, "--spatial_size", "64", "--write_passing", str(tmp_path / "ok.json")]) == 1
    printed = capsys.readouterr().out
    assert "8 items: 6 pass, 1 with notes, 1 fail" in printed
    assert "FAIL    readable: 1 items (12.5%); by class: tumor 1; by source: y 1" in printed
    assert "- torn.png: file torn.png cannot be read as a picture" in printed
    assert f"do:   {RULES['readable'].advice}" in printed
    out = tmp_path / "list_verification"
    with open(out / "verification.csv", encoding="utf-8", newline="") as rows:
        table = list(csv.DictReader(rows))
    assert [row["image"] for row in table if row["failed"]] == ["torn.png"]
    assert [row["image"] for row in table if row["noted"] == "background"] == ["page.png"]
    assert json.loads((out / "verification.json").read_text(encoding="utf-8"))["items"] == {
        "found": 8,
        "pass": 6,
        "note": 1,
        "fail": 1,
    }
    with Image.open(out / "worst.png") as sheet:
        assert np.asarray(sheet.convert("L")).std() > 20
    assert sum(len(datalists.read(tmp_path / "ok.json", tmp_path)[split]) for split in datalists.SPLITS) == 7
    shards = [*arguments, "--spatial_size", "64", "--out", str(tmp_path / "shards")]
    assert command([*shards, "--shard", "2/2"]) == 0
    with pytest.raises(ValueError, match=r"4 of 8 inputs of .*list.json are not finished yet"):
        command([*shards, "--merge"])
    with pytest.raises(ValueError, match=r"results made otherwise \(spatial_size differ\)"):
        command([*arguments, "--out", str(tmp_path / "shards"), "--shard", "1/2"])
    assert command([*shards, "--shard", "1/2"]) == 0
    assert command([*shards, "--merge"]) == 1
    for name in ("verification.csv", "verification.json"):
        assert (tmp_path / "shards" / name).read_bytes() == (out / name).read_bytes()
    assert not (tmp_path / "shards" / "ledger").exists()
    assert command([*arguments, "--allow", "readable", "--out", str(tmp_path / "o")]) == 0
    assert "ALLOWED readable: 1 items" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no rule 'everything'; the rules: readable"):
        command([*arguments, "--allow", "everything"])
    file.write_text("{")
    with pytest.raises(ValueError, match=r"list\.json is no JSON file"):
        command(arguments)


def test_worst_items_take_turns_between_rules(tmp_path):
    datalist = folder_of(tmp_path)
    for k in range(4):
        datalist["training"].append({"image": f"gone{k}.png", "diagnosis": 0})
    flat = np.where(disc((160, 160), 50), 200, 0).astype(np.uint8)
    datalist["training"].append({"image": save(flat, tmp_path / "flat.png"), "diagnosis": 0})
    results = verify(datalist, tmp_path, 64, progress=False)
    shown = [result.item["image"] for result in worst(results, [], count=3)]
    assert shown == ["gone0.png", "flat.png", "gone1.png"]
    assert len(worst(results, [], count=50)) == 5
    summary = summarize(results, ["readable", "intensity_range"])
    assert summary["passed"]
    assert text(summary, {"0": "healthy"}).startswith("11 items: 6 pass, 5 with notes, 0 fail")
    assert len(passing(datalist, results, [])["training"]) == 4


def test_ct_is_told_from_mr(tmp_path):
    ring, brain = disc((200, 200), 85) & ~disc((200, 200), 72), disc((200, 200), 72)
    rng = np.random.default_rng(0)
    ct = np.where(ring, 255, np.where(brain, 100 + rng.normal(0, 6, (200, 200)), 0))
    assert "looks like CT" in broken(tmp_path, np.clip(ct, 0, 255).astype(np.uint8))["modality"]
    # MR: bright fat, then dark bone, then brain.
    fat, bone = disc((200, 200), 85) & ~disc((200, 200), 76), disc((200, 200), 76) & ~disc((200, 200), 66)
    mr = np.where(bone, 15, np.where(fat, 255, np.where(disc((200, 200), 66), 100 + rng.normal(0, 6, (200, 200)), 0)))
    assert "modality" not in broken(tmp_path, np.clip(mr, 0, 255).astype(np.uint8))
