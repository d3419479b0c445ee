from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from scripts.__main__ import main as command
from scripts.checks import audit as audit_module
from scripts.checks.audit import audit, figure, summary
from scripts.data import datalists
from tests.transforms.images import head

PER_CLASS = 30


def picture(k: int, shape=(72, 72)) -> np.ndarray:
    """A head that differs from case to case in size and contrast, uint8 (X, Y), air 0."""
    rng = np.random.default_rng(k)
    image, _ = head(shape, min(shape) * rng.uniform(0.3, 0.4), seed=k)
    return np.clip(image * rng.uniform(0.7, 1.2), 0, 255)


def make(folder, change, sources=("one",)):
    """A datalist of tumors and none; ``change(image, k, tumor, source)`` plants a shortcut or returns the image."""
    items = []
    for k in range(2 * PER_CLASS * len(sources)):
        tumor, source = k % 2, sources[(k // 2) % len(sources)]
        name = f"{source}{k}.png"
        pixels = np.clip(change(picture(k), k, tumor, source), 0, 255).astype(np.uint8)
        Image.fromarray(np.ascontiguousarray(pixels.T)).save(folder / name)
        items.append({"image": name, "diagnosis": tumor, "source": source, "group": f"g{k // 4 if k < 8 else k}"})
    third = len(items) // 3
    return {
        "name": "made",
        "classes": {"0": "no_tumor", "1": "tumor"},
        "training": items[:third],
        "validation": items[third : 2 * third],
        "test": items[2 * third :],
    }


def found(result, target="diagnosis"):
    return {(r["features"], r["stage"]): r for r in result["rows"] if r["target"] == target}


def test_without_a_shortcut_nothing_is_flagged(tmp_path):
    result = audit(make(tmp_path, lambda image, *_: image), tmp_path, 48, progress=False)
    rows = found(result)
    assert set(rows) == {(kind, stage) for kind in audit_module.KINDS for stage in ("before", "after")}
    assert result["n"] == 60
    for (kind, _), row in rows.items():
        assert not row["flagged"], row
        assert row["auc"] < 0.7 if kind != "air" else row["auc"] == pytest.approx(0.5, abs=0.1)
        assert row["auc_ci95"][0] < 0.6
        assert (row["n"], row["positives"]) == (60, 30)
    text = summary(result)
    assert "Remains after the pipeline: nothing above the limits" in text
    assert "In the raw files: nothing above the limits" in text


def bright_air(image, k, tumor, source):
    level = 3 + 2 * tumor + np.random.default_rng(k).normal(0, 0.5)
    return np.where(image == 0, level, image)


def wide(image, k, tumor, source):
    return np.pad(image, ((0, 0), (0, 0))) if tumor else np.pad(image, ((8 + k % 3, 8), (0, 0)))


def stretched(image, k, tumor, source):
    return np.where(image > 0, 60 + 140 * (image / 255) ** (0.4 if tumor else 2.5), 0)


@pytest.mark.parametrize(
    ("plant", "before", "after"),
    [
        (bright_air, {"air"}, set()),
        (wide, {"size", "geometry"}, set()),
        (stretched, {"histogram"}, {"histogram"}),
    ],
)
def test_a_planted_shortcut_is_found_and_what_remains_is_said(tmp_path, plant, before, after):
    result = audit(make(tmp_path, plant), tmp_path, 48, progress=False)
    rows = found(result)
    flagged = {stage: {kind for (kind, own), row in rows.items() if own == stage and row["flagged"]}
               for stage in ("before", "after")}  # fmt: skip
    assert flagged == {"before": before, "after": after}
    for kind in before:
        assert rows[kind, "before"]["auc"] > 0.95
        assert rows[kind, "before"]["auc_ci95"][0] > 0.85
        assert rows[kind, "before"]["strongest_auc"] > 0.9
    assert rows["air", "after"]["auc"] == pytest.approx(0.5, abs=0.1), "air is exactly 0 after the pipeline"
    assert rows["size", "after"]["auc"] == pytest.approx(0.5, abs=0.1)
    text = summary(result)
    assert all(f"any tumor from {kind}: AUC" in text for kind in before)
    json.dumps(result, allow_nan=False)


def test_sources_are_told_apart_where_they_differ(tmp_path):
    def noisy(image, k, tumor, source):
        noise = np.abs(np.random.default_rng(k).normal(0, 5, image.shape))
        return image + noise if source == "two" else image

    result = audit(make(tmp_path, noisy, ("one", "two")), tmp_path, 48, progress=False)
    rows = found(result, "source")
    assert {row["value"] for row in rows.values()} == {"two"}, "with two sources the second says it for both"
    assert rows["air", "before"]["auc"] > 0.95
    assert rows["air", "before"]["flagged"]
    assert not rows["air", "after"]["flagged"]
    assert not found(result)["air", "before"]["flagged"], "source does not tell the diagnosis here"


def test_command_line_writes_json_and_a_figure(tmp_path, capsys):
    datalist = make(tmp_path, wide)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    datalist["test"].append({"image": "broken.png", "diagnosis": 0, "source": "one"})
    datalists.write(datalist, tmp_path / "list.json")
    arguments = ["audit", "--datalist_file", str(tmp_path / "list.json"), "--dataset_dir", str(tmp_path)]
    arguments += ["--out", str(tmp_path / "audit")]
    assert command([*arguments, "--spatial_size", "48"]) == 1, "an image was skipped"
    out = capsys.readouterr().out
    assert "any tumor from size: AUC 1.00 (limit 0.60); strongest alone: " in out
    assert "1 images could not be used" in out
    result = json.loads((tmp_path / "audit" / "audit.json").read_text(encoding="utf-8"))
    assert result["n"] == 60
    assert result["unusable"][0]["image"] == "broken.png"
    assert "cannot be read" in result["unusable"][0]["reason"]
    picture_of_it = Image.open(io.BytesIO((tmp_path / "audit" / "audit.png").read_bytes()))
    assert picture_of_it.width > 1000
    assert figure(result) == (tmp_path / "audit" / "audit.png").read_bytes()
    arguments = [*arguments[:-1], str(tmp_path / "shards"), "--spatial_size", "48"]
    for given in (["--shard", "2/3"], ["--shard", "1/3"], ["--shard", "3/3"]):
        assert command([*arguments, *given]) == 0
    assert command([*arguments, "--merge"]) == 1
    assert capsys.readouterr().out.splitlines()[:1] == ["shard 2 of 3: 20 of 61 inputs; --merge makes the table"]
    assert (tmp_path / "shards" / "audit.json").read_bytes() == (tmp_path / "audit" / "audit.json").read_bytes()
    assert not (tmp_path / "shards" / "ledger").exists()


@pytest.mark.parametrize(
    ("strict", "flagged", "status"), [((), True, 0), (("--strict",), True, 1), (("--strict",), False, 0)]
)
def test_what_is_flagged_after_the_pipeline_is_wrong_with_strict_alone(tmp_path, monkeypatch, strict, flagged, status):
    datalist = make(tmp_path, wide)
    datalists.write(datalist, tmp_path / "list.json")

    def rows(datalist, *_, **__):
        kinds = [{"flagged": True, "stage": "before"}, {"flagged": flagged, "stage": "after"}]
        return {"rows": kinds, "unusable": []}

    monkeypatch.setattr("scripts.checks.audit.audit", rows)
    monkeypatch.setattr("scripts.checks.audit.summary", str)
    monkeypatch.setattr("scripts.checks.audit.write_audit", lambda *_: [])
    arguments = ["audit", "--datalist_file", str(tmp_path / "list.json"), "--dataset_dir", str(tmp_path)]
    assert command([*arguments, "--out", str(tmp_path / "out"), *strict]) == status


def test_nothing_to_tell_apart_is_refused(tmp_path):
    datalist = make(tmp_path, lambda image, *_: image)
    for part in datalists.SPLITS:
        datalist[part] = [item for item in datalist[part] if item["diagnosis"] == 1]
    with pytest.raises(ValueError, match="one source and one diagnosis only"):
        audit(datalist, tmp_path, 48, limit=10, progress=False)
    with pytest.raises(ValueError, match="limit must be 1 or more, got 0"):
        audit(datalist, tmp_path, 48, limit=0, progress=False)


def test_the_shortcuts_of_real_files_are_found_and_air_and_size_are_gone_after(real_data):
    folder = real_data / "brisc2025"
    datalist, _ = datalists.image_folder(folder, limit=300, modality="T1", progress=False)
    result = audit(datalist, folder, 128, progress=False)
    rows = {(r["features"], r["stage"]): r for r in result["rows"] if r["value"] == "tumor"}
    for kind, least in (("air", 0.9), ("geometry", 0.85)):
        assert rows[kind, "before"]["flagged"]
        assert rows[kind, "before"]["auc"] > least
    assert rows["size", "before"]["auc_ci95"][0] > 0.5, "some healthy pictures are not square, all tumors' are nearly"
    for kind in ("air", "size"):
        assert not rows[kind, "after"]["flagged"]
        assert rows[kind, "after"]["auc"] == pytest.approx(0.5, abs=0.1)
    assert rows["geometry", "after"]["auc"] < rows["geometry", "before"]["auc"]
