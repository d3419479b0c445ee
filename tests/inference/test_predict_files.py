"""Prediction of folders as people have them: names that clash or are odd, links, results of before, tables."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import skimage.data
import torch
from PIL import Image, ImageDraw

from scripts.explain.evidence import evidence_pass
from scripts.explain.maps import upsample
from scripts.explain.targets import TumorLogOdds
from scripts.inference import result_table
from scripts.inference.batches import BatchPrediction, study_overlay
from scripts.inference.image_files import find_images, fingerprint, is_result
from scripts.inference.inferers import MultiTaskInferer
from scripts.inference.pipeline import Inference, slices_first
from scripts.inference.result_names import check_free, result_name, result_stems
from scripts.inference.results import WriteResults
from tests.inference.test_predict import run
from tests.scans import head, oblique, save, save_picture, write_overlay


@pytest.fixture(scope="module")
def inference(overlay):
    return Inference(overlay=overlay)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def job(inference, folder, out):
    found = find_images(folder, out)
    return BatchPrediction(inference, out, {}).run(found.images, result_stems(found.images, folder), found.failed)


NAMES = {
    "two pictures": (["a.jpg", "a.png"], ["a.jpg", "a.png"]),
    "volumes": (["v.mha", "v.nii", "v.nii.gz", "v.nrrd"], ["v.mha", "v.nii", "v.nii.gz", "v.nrrd"]),
    "capitals": (["A.png", "a.bmp"], ["A.png", "a.bmp"]),
    "one beside others": (["a.png", "b.png", "b.tif"], ["a", "b.png", "b.tif"]),
    "a name that is another's whole name": (["a.jpg", "a.png", "a.png.bmp"], ["a.jpg", "a.png", "a.png.bmp"]),
    "other folders": (["x/a.png", "y/a.jpg"], ["x/a", "y/a"]),
    "dots": (["p.1.png", "p.2.png"], ["p.1", "p.2"]),
    "suffix alone": ([".png", "a.png"], [".png", "a"]),
}


@pytest.mark.parametrize("case", NAMES)
def test_no_two_images_share_a_name(folder, case):
    files, expected = NAMES[case]
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).touch()
    images = [folder / file for file in files]
    assert result_stems(images, folder) == expected
    # One image alone has the name that it has among the others.
    assert [result_stems([image], image)[0] for image in images] == [Path(name).name for name in expected]
    assert [result_name({}, image) for image in images] == [Path(name).name for name in expected]


def test_odd_names_become_names_that_can_be_written(folder):
    images = [
        folder / name for name in ("x" * 251 + ".png", "x" * 250 + "y.png", os.fsdecode(b"caf\xe9.png"), "a\nb.png")
    ]
    stems = result_stems(images, folder)
    assert len(set(stems)) == 4
    for name in stems:
        assert name.isprintable()
        assert len(f"{name}_evidence.nii.gz".encode()) <= 255
    assert re.fullmatch(r"caf__[0-9a-f]{8}", stems[2])
    assert stems[:2] != result_stems(images[1::-1], folder)


def test_one_odd_file_does_not_end_the_others(inference, folder, tmp_path):
    plane = head()[:, :, 4]
    for name in ("a.png", "x" * 251 + ".png", os.fsdecode(b"caf\xe9.png"), "=1+1.png", "a\nb.png"):
        save_picture(folder / name, plane)
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    rows = job(inference, folder, tmp_path / "out")
    assert [bool(row["error"]) for row in rows] == [False] * 5 + [True]
    assert len({row["tumor_probability"] for row in rows[:5]}) == 1
    assert rows[5]["error"] == f"is a link to {folder / 'nowhere.png'}, which does not exist"
    with open(tmp_path / "out" / "results.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["image"] for row in table] == [row["image"] for row in rows]
    assert "'=1+1" in [row["name"] for row in table]  # a spreadsheet would compute it
    assert not any("\n" in row["name"] for row in table)


def test_a_result_that_cannot_be_written_is_a_row(inference, folder, tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        save_picture(folder / name, head()[:, :, 4])
    finish = Inference.finish

    def brittle(self, item, output):
        if item["image"].meta["filename_or_obj"].endswith("a.png"):
            raise RuntimeError("no")
        return finish(self, item, output)

    assert not any(row["error"] for row in job(inference, folder, tmp_path / "out"))
    os.utime(folder / "a.png", ns=(1, 1))
    monkeypatch.setattr(Inference, "finish", brittle)
    rows = job(inference, folder, tmp_path / "out")
    assert [row["error"] for row in rows] == ["RuntimeError: no", None]
    assert not list((tmp_path / "out").glob("a_*"))  # what was written of the earlier file is gone


def test_links_are_followed_once_and_dead_ones_named(folder, tmp_path):
    plane = head()[:, :, 4]
    outside = tmp_path / "outside"
    outside.mkdir()
    save_picture(outside / "b.png", plane)
    save_picture(tmp_path / "c.png", plane)
    save_picture(folder / "a.png", plane)
    (folder / "linked").symlink_to(outside)
    (folder / "linked again").symlink_to(outside)
    (folder / "round").symlink_to(folder)
    (folder / "c.png").symlink_to(tmp_path / "c.png")
    (folder / "dead").symlink_to(tmp_path / "nothing")
    found = find_images(folder, tmp_path / "out")
    assert found.images == [folder / "a.png", folder / "c.png", folder / "linked" / "b.png"]
    assert found.again == [folder / "linked again", folder / "round"]
    assert found.failed == [(folder / "dead", f"is a link to {tmp_path / 'nothing'}, which does not exist")]
    with pytest.raises(FileNotFoundError, match=r"dead is a link to .*nothing, which does not exist"):
        find_images(folder / "dead", tmp_path / "out")


def test_own_results_are_never_images_wherever_they_lie(inference, folder, tmp_path, caplog):
    save_picture(folder / "a.png", head()[:, :, 4])
    save(folder / "v.nii.gz", head(), oblique())
    for _ in range(2):  # into the folder itself
        rows = job(inference, folder, folder)
        assert [row["name"] for row in rows] == ["a", "v"]
    made = {path.name for path in folder.iterdir() if is_result(path)}
    assert made == {
        "a_mask.png", "a_evidence.nii.gz", "a_overlay.png", "v_mask.nii.gz", "v_evidence.nii.gz", "v_overlay.png",
    }  # fmt: skip
    for name in ("a.png", "v.nii.gz"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="6 files are results of TumorLens and left out"):
        find_images(folder, tmp_path / "out")
    with pytest.raises(ValueError, match=r"a_mask\.png is a result of TumorLens"):
        find_images(folder / "a_mask.png", tmp_path / "out")


def test_dicom_without_suffix_and_pairs_are_found_and_the_rest_counted(folder, tmp_path):
    (folder / "series").mkdir()
    path = pydicom.data.get_testdata_file("MR_small.dcm")
    (folder / "series" / "IM0001").write_bytes(Path(path).read_bytes())
    nib.save(nib.Nifti1Pair(head(), np.eye(4)), folder / "pair.img")
    (folder / "notes.txt").touch()
    (folder / ".hidden.png").touch()
    found = find_images(folder, tmp_path / "out")
    assert found.images == [folder / "pair.hdr", folder / "series"]
    assert found.others == Counter({".txt": 1})
    assert list(fingerprint(folder / "pair.hdr")) == ["pair.hdr", "pair.img"]


def test_results_are_kept_only_of_the_same_config_and_while_they_are_whole(inference, overlay, folder, tmp_path):
    for name in ("a.png", "b.png"):
        save_picture(folder / name, head()[:, :, 4])
    out = tmp_path / "out"

    def predicted(*more):
        before = {path.name: path.stat().st_mtime_ns for path in out.glob("*_result.json")}
        status, rows = run(folder, out, overlay, *more)
        assert (status, len(rows)) == (0, 2)
        return [
            path.name[0]
            for path in sorted(out.glob("*_result.json"))
            if path.stat().st_mtime_ns != before.get(path.name)
        ]

    assert predicted() == ["a", "b"]
    assert predicted() == []
    (out / "a_mask.png").unlink()
    assert predicted() == ["a"]
    (out / "b_result.json").write_text("{")
    assert predicted() == ["b"]
    more = tmp_path / "more.yaml"
    more.write_text("classes: {'0': no_tumor, '1': lymphoma, '2': meningioma}\n")
    assert predicted("--overlay", str(more)) == ["a", "b"]
    assert json.loads((out / "a_result.json").read_text())["class_probabilities"].keys() == {
        "no_tumor",
        "lymphoma",
        "meningioma",
    }
    assert predicted("--no_overlays") == ["a", "b"]
    assert not list(out.glob("*_overlay.png"))


def test_results_of_another_image_are_not_written_over(inference, tmp_path, overlay):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        save_picture(tmp_path / name / "a.png", head()[:, :, 4])
    out = tmp_path / "out"
    run(tmp_path / "x", out, overlay)
    with pytest.raises(
        ValueError, match=r"out holds the table of other images \(first: .*x/a.png\); choose another --out"
    ):
        run(tmp_path / "y", out, overlay)
    with pytest.raises(
        ValueError, match=r"a_result.json holds the results of .*x/a.png; choose another --out for .*y/a.png"
    ):
        job(inference, tmp_path / "y", out)
    item = inference.prepare({"image": str(tmp_path / "y" / "a.png")})
    done = inference.finish(item, inference.infer(item))
    with pytest.raises(ValueError, match="choose another --output_dir"):
        WriteResults(out).write(item, done)
    (tmp_path / "x" / "a.png").unlink()  # moved, or deleted: nothing is lost
    check_free(out / "a_result.json", tmp_path / "y" / "a.png")
    run(tmp_path / "y", out, overlay)


def test_the_table_has_a_column_a_class_words_and_pictures(inference, folder, tmp_path):
    save_picture(folder / "<b>a.png", head()[:, :, 4])
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    out = tmp_path / "out"
    row, broken = job(inference, folder, out)
    assert list(row) == result_table.columns(inference.classes)
    names = ["probability_no_tumor", "probability_glioma", "probability_meningioma"]
    assert list(row)[8:11] == names
    assert sum(row[key] for key in names) == pytest.approx(1)
    assert row["prevalence"] is None
    tumor = row["predicted_class"]
    assert row["verdict"] == (
        f"tumor detected, most probably {tumor}" if row["tumor_detected"] else "no tumor detected"
    )
    assert (broken["verdict"], broken["tumor_probability"]) == (f"not assessed: {broken['error']}", None)
    page = (out / "results.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;a" in page
    assert "<b>a" not in page
    assert 'src="%3Cb%3Ea_overlay.png"' in page
    assert (out / row["overlay"]).is_file()
    assert "1 with a tumor" in page
    assert "1 skipped" in page
    result = json.loads((out / "<b>a_result.json").read_text(encoding="utf-8"))
    assert result["weights"] == str(inference.weights)
    assert result["made_by"]["weights_sha256"]


def test_a_given_prevalence_stands_in_table_page_and_result(folder, tmp_path, overlay, capsys):
    save_picture(folder / "a.png", head()[:, :, 4])
    known = tmp_path / "known.yaml"
    known.write_text("training_prevalence: {no_tumor: 0.5, glioma: 0.3, meningioma: 0.2}\n", encoding="utf-8")
    run(folder, tmp_path / "usual", overlay, "--overlay", str(known))
    out = tmp_path / "out"
    run(folder, out, overlay, "--overlay", str(known), "--prevalence", "glioma=0.04,meningioma=0.06")
    (before,), (after,) = (
        json.loads((place / "results.json").read_text(encoding="utf-8")) for place in (tmp_path / "usual", out)
    )
    assert after["prevalence"] == pytest.approx(0.1)
    moved = [before[f"probability_{n}"] * r for n, r in (("no_tumor", 1.8), ("glioma", 2 / 15), ("meningioma", 0.3))]
    assert after["tumor_probability"] == pytest.approx(1 - moved[0] / sum(moved), abs=1e-6)
    assert "prevalence of no tumor 90 %, glioma 4 %, meningioma 6 %" in (out / "results.html").read_text()
    result = json.loads((out / "a_result.json").read_text(encoding="utf-8"))
    assert result["prevalence"] == pytest.approx({"no_tumor": 0.9, "glioma": 0.04, "meningioma": 0.06}, abs=1e-5)
    with pytest.raises(ValueError, match="no class lymphoma"):
        run(folder, out, overlay, "--overlay", str(known), "--prevalence", "lymphoma=0.1")


def test_a_network_without_evidence_and_one_of_volumes_get_pictures(tmp_path):
    plain = Inference(overlay=write_overlay(tmp_path, head="average_pool"))
    item = plain.prepare({"image": str(save_picture(tmp_path / "a.png", head()[:, :, 4]))})
    output = plain.infer(item)
    assert "evidence" not in output
    output["seg"][0, 1, 10:20, 10:20], output["seg"][0, 0, 10:20, 10:20] = 1, 0
    picture = study_overlay(item, output)
    assert (picture[..., 0] != picture[..., 1]).any()  # the mask's line
    (tmp_path / "3d").mkdir()
    volumes = Inference(
        overlay=write_overlay(
            tmp_path / "3d",
            (16, 16, 16),
            spatial_dims=3,
            kernel_size=[3, 3, 3],
            strides=[1, 2, 2],
        )
    )
    item = volumes.prepare({"image": str(save(tmp_path / "v.nii.gz", head(), oblique()))})
    sheet = study_overlay(item, volumes.infer(item))
    assert sheet.ndim == 3
    assert sheet.shape[0] % 16 == sheet.shape[1] % 16 == 0


def test_evidence_is_weighted_as_the_calibrated_probabilities_say(inference, tmp_path):
    """What is written is what the evaluation measures, in calibrated log-odds."""
    item = inference.prepare({"image": str(save_picture(tmp_path / "a.png", head()[:, :, 4]))})
    x, network = slices_first(item["image"]), inference.network
    temperature = float(network.temperature)
    assert temperature == 1.5
    output = MultiTaskInferer()(item["image"][None], network)
    raw = network.multitask(x)
    share = torch.softmax(raw["cls"][0, 1:] / temperature, 0)
    by_hand = (share[:, None, None] * raw["evidence"][0, 1:]).sum(0) - raw["evidence"][0, 0]
    torch.testing.assert_close(output["evidence"][0, 0, 0], by_hand)
    measured = evidence_pass(network, x, TumorLogOdds.of(network), signed=True).maps["evidence", "evidence"]
    torch.testing.assert_close(measured[0, 0], by_hand)
    on_grid = upsample(measured.clamp(min=0), x.shape[2:])
    done = inference.finish(item, inference.infer(item))
    largest = float(on_grid.max()) / temperature
    assert done["result"]["evidence_maximum"] <= largest
    uncalibrated = torch.softmax(raw["cls"][0, 1:], 0)
    assert not torch.allclose(uncalibrated, share, atol=1e-3)


def test_damaged_weights_are_refused_whole(inference, overlay, tmp_path):
    content = inference.weights.read_bytes()
    for size in (0, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "model.pt").write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"weights file .*model.pt is not readable"):
            Inference(overlay=overlay, weights=tmp_path / "model.pt")
    state = torch.load(inference.weights)
    state["temperature"] = torch.tensor(float("nan"))
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="not finite"):
        Inference(overlay=overlay, weights=tmp_path / "model.pt")


def test_masks_say_what_they_are(inference, folder, tmp_path):
    save_picture(folder / "a.png", head()[:, :, 4])
    job(inference, folder, tmp_path / "out")
    assert Image.open(tmp_path / "out" / "a_mask.png").info["Software"] == "TumorLens result"
    assert (
        bytes(nib.load(tmp_path / "out" / "a_evidence.nii.gz").header["descrip"]).rstrip(b"\0") == b"TumorLens result"
    )


def test_what_is_no_head_is_not_assessed_and_the_reason_is_said(tmp_path):
    folder, rng = tmp_path / "in", np.random.default_rng(0)
    folder.mkdir()
    dot = np.zeros((96, 96), np.uint8)
    dot[40, 40] = 255
    page = Image.new("L", (320, 240), 255)
    for line in range(14):
        ImageDraw.Draw(page).text((10, 8 + 16 * line), f"Line {line}: no abnormality in the left lobe", fill=0)
    pictures = {
        "black": np.zeros((96, 96), np.uint8), "white": np.full((96, 96), 255, np.uint8), "dot": dot,
        "one pixel": dot[40:41, 40:41], "noise": rng.integers(0, 256, (96, 96), np.uint8), "text": np.asarray(page),
    }  # fmt: skip
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{name}.png")
    photos = Path(skimage.data.__file__).parent
    for name in ("astronaut", "camera", "chelsea", "coffee", "page"):  # photographs and a scanned page of its package
        shutil.copyfile(photos / f"{name}.png", folder / f"{name}.png")
    rows = {row["name"]: row for row in job(Inference(), folder, tmp_path / "out")}
    assert {row["verdict"].split(": ")[0] for row in rows.values()} == {"not assessed"}
    for name in ("black", "white", "one pixel"):
        assert "no foreground found: the image is constant" in rows[name]["verdict"]
    for name in ("dot", "noise"):
        assert "no foreground found: the image is noise" in rows[name]["verdict"]
    assert all(row["tumor_detected"] is None and not row["tumor_voxels"] for row in rows.values())
