"""The folder command: results of each image and a table of all, resumable, whatever lies in the folder."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from typing import ClassVar

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from scripts.__main__ import main as command
from scripts.inference import predict
from scripts.inference.batches import study_overlay
from scripts.inference.pipeline import Inference
from tests.scans import head, oblique, save, save_picture


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "in"
    (root / "deep" / "er").mkdir(parents=True)
    volume = head()
    for i, name in enumerate(("a.png", "b.png", "deep/a.png", "deep/a.bmp")):
        save_picture(root / name, volume[:, :, 3 + i])
    save(root / "deep" / "er" / "scan.nii.gz", volume, oblique(), "SRA")
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (root / "cut.nii.gz").write_bytes((root / "deep" / "er" / "scan.nii.gz").read_bytes()[:500])
    (root / "notes.txt").write_text("not an image")
    return root


def run(folder, out, overlay, *more):
    status = command(["predict", str(folder), "--out", str(out), "--overlay", str(overlay), *more])
    with open(out / "results.csv", encoding="utf-8", newline="") as file:
        return status, {row["name"]: row for row in csv.DictReader(file)}


def test_every_image_gets_its_files_and_a_row_and_bad_ones_a_reason(folder, tmp_path, overlay, caplog):
    out = tmp_path / "out"
    with caplog.at_level(logging.WARNING):
        status, rows = run(folder, out, overlay)
    assert status == 1
    assert list(rows) == ["a", "b", "broken", "cut", "deep/a.bmp", "deep/a.png", "deep/er/scan"]
    assert "broken.png cannot be read as a picture" in rows["broken"]["error"]
    assert "cut.nii.gz" in rows["cut"]["error"]
    assert [record.message.split()[0] for record in caplog.records] == [
        str(folder / n) for n in ("broken.png", "cut.nii.gz")
    ]
    good = [name for name, row in rows.items() if not row["error"]]
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    expected = {f"{name}_{kind}" for name in good for kind in ("evidence.nii.gz", "overlay.png", "result.json")}
    masks = {f"{name}_mask.png" for name in good if name != "deep/er/scan"} | {"deep/er/scan_mask.nii.gz"}
    assert files == expected | masks | {"results.csv", "results.html", "results.json"}
    assert json.loads((out / "results.json").read_text(encoding="utf-8"))[0]["name"] == "a"


def test_results_are_those_of_one_image_alone(folder, tmp_path, overlay):
    _, rows = run(folder, tmp_path / "out", overlay)
    inference = Inference(overlay=overlay)
    for name, path in (("b", "b.png"), ("deep/er/scan", "deep/er/scan.nii.gz")):
        item = inference.prepare({"image": str(folder / path)})
        done = inference.finish(item, inference.infer(item))
        assert float(rows[name]["tumor_probability"]) == done["result"]["tumor_probability"]
        evidence = nib.load(tmp_path / "out" / f"{name}_evidence.nii.gz")
        assert np.array_equal(np.squeeze(evidence.dataobj), done["evidence"][0].numpy())
        if name == "b":
            mask = np.asarray(Image.open(tmp_path / "out" / "b_mask.png"))
            assert np.array_equal(mask > 0, done["pred"][0].numpy().T > 0)
        else:
            mask = nib.load(tmp_path / "out" / f"{name}_mask.nii.gz")
            assert np.array_equal(mask.dataobj, done["pred"][0].numpy())
            assert np.allclose(mask.affine, nib.load(folder / path).affine)
            assert int(rows[name]["slices_read"]) == 8
            assert "slices_without_head" in rows[name]["flags"]
            assert int(rows[name]["tumor_voxels"]) == int(np.asarray(mask.dataobj).astype(bool).sum()) > 0


class Counting(Inference):
    """Counts the images that go through the network, and stops at one of them."""

    seen: ClassVar[list[str]] = []
    stop_at: str | None = None

    def infer(self, item):
        name = item["image"].meta["filename_or_obj"]
        if self.stop_at is not None and name.endswith(self.stop_at):
            raise KeyboardInterrupt
        self.seen.append(name)
        return super().infer(item)


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr(predict, "Inference", Counting)
    monkeypatch.setattr(Counting, "seen", [])
    monkeypatch.setattr(Counting, "stop_at", None)
    return Counting


def test_an_interrupted_run_continues_where_it_was(folder, tmp_path, overlay, counting):
    out = tmp_path / "out"
    counting.stop_at = "a.bmp"
    with pytest.raises(KeyboardInterrupt):
        run(folder, out, overlay)
    done = [p.name for p in out.glob("*_result.json")]
    assert done
    assert not list(out.rglob("*.partial"))
    first = len(counting.seen)
    counting.stop_at = None
    _, rows = run(folder, out, overlay)
    assert len(rows) == 7
    assert len(counting.seen) - first == 5 - len(done)
    before = (out / "results.csv").read_bytes()
    counting.seen.clear()
    run(folder, out, overlay)
    assert counting.seen == []
    assert (out / "results.csv").read_bytes() == before


def test_what_changed_is_predicted_again(folder, tmp_path, overlay, counting):
    out = tmp_path / "out"
    run(folder, out, overlay)
    counting.seen.clear()
    save_picture(folder / "a.png", head(seed=5)[:, :, 5])
    run(folder, out, overlay)
    assert counting.seen == [str(folder / "a.png")]
    for more, count in ((("--plane", "coronal"), 5), (("--plane", "coronal"), 0)):
        counting.seen.clear()
        run(folder, out, overlay, *more)
        assert len(counting.seen) == count
    state = torch.load(overlay.parent / "model.pt")
    state["threshold"].fill_(0.9)
    torch.save(state, tmp_path / "other.pt")
    counting.seen.clear()
    run(folder, out, overlay, "--plane", "coronal", "--weights", str(tmp_path / "other.pt"))
    assert len(counting.seen) == 5


def test_results_within_the_folder_are_not_taken_for_images(folder, overlay):
    for _ in range(2):
        _, rows = run(folder, folder / "out", overlay)
        assert len(rows) == 7


def test_one_image_and_folders_without_any(folder, tmp_path, overlay):
    status, rows = run(folder / "deep" / "er" / "scan.nii.gz", tmp_path / "one", overlay, "--no_overlays")
    assert (status, list(rows)) == (0, ["scan"])
    assert not list((tmp_path / "one").glob("*overlay*"))
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        run(folder, tmp_path / "none", overlay)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        run(folder / "x", tmp_path / "none", overlay)


def test_the_overlay_shows_every_slice_and_colors_only_evidence(folder, overlay):
    inference = Inference(overlay=overlay)
    item = inference.prepare({"image": str(folder / "deep" / "er" / "scan.nii.gz")})
    output = inference.infer(item)
    output["seg"] = torch.zeros_like(output["seg"])
    sheet = study_overlay(item, output)
    assert sheet.shape == (2 * 32, 4 * 32, 3)
    colored = (sheet.max(-1) != sheet.min(-1)).reshape(2, 32, 4, 32).any((1, 3)).flatten()
    assert colored.tolist() == [bool((e > 0).any()) for e in output["evidence"]]
    output["evidence"] = torch.full_like(output["evidence"], -1.0)
    dark = study_overlay(item, output)
    assert (dark.max(-1) == dark.min(-1)).all()


@pytest.mark.parametrize(("temperature", "flagged"), [(0.05, True), (20.0, True), (1.5, False)])
def test_a_temperature_at_an_end_of_its_range_is_named_without_a_claim_on_the_values(
    folder, overlay, temperature, flagged
):
    inference = Inference(overlay=overlay)
    item = inference.prepare({"image": str(folder / "b.png")})
    output = {**inference.infer(item), "temperature": torch.tensor(temperature)}
    flags = {flag["code"]: flag["message"] for flag in inference.finish(item, output)["result"]["flags"]}
    assert flags.get("not_calibrated") == (
        f"the fitted temperature ({temperature:.3g}) stands at an end of its range: the probabilities are not "
        "calibrated; train with more validation cases"
        if flagged
        else None
    )
