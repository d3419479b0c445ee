"""Which cases are shown, in which gallery, and what stands in the pictures."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from scripts.data.preprocessing import make_preprocessing
from scripts.evaluation import galleries
from scripts.evaluation.explanation_plan import make_plan
from scripts.evaluation.galleries import (
    _panel,
    choose_cases,
    explain_case,
    methods_picture,
    write_class_galleries,
    write_map,
)
from scripts.explain.maps import upsample
from scripts.pictures import overlays
from scripts.pictures.sheets import HEADING, stack, tile_grid
from tests.evaluation.small_cases import CLASSES, FAST, make_cases, make_net


def case(name, patient, area, diagnosis=1):
    label = torch.zeros(1, 8, 8)
    label.flatten()[:area] = 1
    return {"name": name, "patient": patient, "group": "", "label": label, "diagnosis": diagnosis}


def test_cases_are_chosen_from_small_to_large_tumors_of_different_patients_then_tumor_free():
    cases = [case(f"a{i}", "a", 10 + i) for i in range(6)] + [case("b0", "b", 2), case("c0", "c", 40)]
    cases += [case("h1", "h1", 0, 0), case("h0", "h0", 0, 0), case("h2", "h2", 0, 0)]
    chosen = choose_cases(cases, tumors=3, free=2)
    assert chosen[0] == "b0"
    assert chosen[1].startswith("a")
    assert chosen[2] == "c0"
    assert chosen[3:] == ["h0", "h2"]


def test_a_patient_is_shown_twice_only_when_there_is_no_other():
    chosen = choose_cases([case(f"a{i}", "a", 10 + i) for i in range(5)], tumors=3)
    assert len(chosen) == len(set(chosen)) == 3


def test_fewer_cases_than_asked_are_all_shown():
    assert choose_cases([case("a0", "a", 5)], tumors=6) == ["a0"]


def test_galleries_hold_the_cases_of_their_class_and_outcome_and_count_them(tmp_path):
    net, cases = make_net(), make_cases(8)
    entries = write_class_galleries(net, cases, CLASSES, tmp_path, count=2, batch_size=3)
    assert [(e["class"], e["outcome"]) for e in entries] == [
        (name, outcome) for name in CLASSES.values() for outcome in ("correct", "incorrect")
    ]
    decided = {c["name"]: explain_case(net, c).predicted_class for c in cases}
    truth = {c["name"]: c["diagnosis"] for c in cases}
    for entry in entries:
        index = list(CLASSES.values()).index(entry["class"])
        right = entry["outcome"] == "correct"
        fitting = {n for n in truth if truth[n] == index and (decided[n] == index) == right}
        assert entry["found"] == len(fitting)
        assert len(entry["cases"]) == min(2, len(fitting))
        assert set(entry["cases"]) <= fitting
        picture = np.asarray(Image.open(tmp_path / entry["file"]))
        panel = overlays.panel(cases[0]["image"].numpy(), np.zeros((1, 32, 32))).shape
        assert picture.shape[0] == HEADING + len(entry["cases"]) * (panel[0] + overlays.GAP)
    assert sum(e["found"] for e in entries) == len(cases)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (0, "there is no such case (3 asked for)"),
        (1, "there is only 1 (3 asked for)"),
        (2, "there are only 2 (3 asked for)"),
        (3, "3 of 3"),
        (9, "3 of 9"),
    ],
)
def test_a_gallery_says_when_there_are_fewer(found, words, monkeypatch, tmp_path):
    headings = []
    monkeypatch.setattr(
        "scripts.evaluation.galleries.stack",
        lambda heading, _: headings.append(heading) or np.zeros((1, 1, 3), np.uint8),
    )
    monkeypatch.setattr("scripts.evaluation.galleries._panel", lambda *_: None)
    monkeypatch.setattr("scripts.evaluation.galleries.decide", lambda logits, *_: np.ones(len(logits), int))
    cases = [{**c, "diagnosis": 1 if i < found else 0} for i, c in enumerate(make_cases(10))]
    write_class_galleries(make_net(classes=2), cases, {"0": "none", "1": "tumor"}, tmp_path, count=3)
    assert headings[2] == f"tumor, classified correctly: {words}"
    assert headings[0] == "none, classified correctly: there is no such case (3 asked for)"


def test_the_caption_says_classes_probability_and_a_tumor_without_evidence(monkeypatch, tmp_path):
    captions = []
    monkeypatch.setattr(
        "scripts.pictures.overlays.panel",
        lambda *_, caption, **__: captions.append(caption) or np.zeros((1, 1, 3), np.uint8),
    )
    net, item = make_net(), make_cases()[1]
    shown = explain_case(net, item)
    name = CLASSES[str(shown.predicted_class)]
    with torch.no_grad():
        probability = torch.softmax(net(item["image"][None], output="cls"), 1)[0]
        net.head.evidence.conv.weight.zero_()
        net.head.bias.copy_(torch.tensor([0.0, 5.0, 0.0]))
    _panel(shown, CLASSES)
    _panel(explain_case(net, item), CLASSES)
    p, tumor = float(probability[shown.predicted_class]), float(1 - probability[0])
    assert captions[0] == f"c1: true glioma, predicted {name} (p = {p:.2f}; tumor {tumor:.2f})"
    assert captions[1].startswith("c1: true glioma, predicted glioma (p = 0.99; tumor 0.99)")
    assert captions[1].endswith("; a tumor without evidence")


def test_pictures_stand_below_each_other_under_the_heading():
    red, blue = (np.full((20, 30, 3), c, np.uint8) for c in ([200, 0, 0], [0, 0, 200]))
    picture = stack("two", [red, blue])
    assert picture.shape == (HEADING + 2 * (20 + overlays.GAP), 30, 3)
    assert (picture[HEADING : HEADING + 20] == red).all()
    assert (picture[HEADING + 20 + overlays.GAP :][:20] == blue).all()
    assert (picture[:HEADING] < 128).any()  # the words
    assert stack("nothing", []).shape == (HEADING, 760, 3)


def test_tiles_keep_their_row_and_column_and_empty_places_stay_white():
    red, blue = (np.full((20, 200, 3), c, np.uint8) for c in ([200, 0, 0], [0, 0, 200]))
    picture = tile_grid("grid", [("first", [(red, "a", "b"), (None, "", ""), (blue, "c", "d")]), ("second", [])])
    rows, columns = np.where((picture == [200, 0, 0]).all(-1))
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (20, 200)
    assert np.where((picture == [0, 0, 200]).all(-1))[1].min() - columns.min() == 2 * (200 + overlays.GAP)
    between = picture[rows.min() : rows.max() + 1, columns.max() + 1 :][:, : overlays.GAP + 200]
    assert (between == 255).all()
    with pytest.raises(ValueError, match="without any picture"):
        tile_grid("grid", [("first", [])])


def test_methods_picture_has_a_row_a_method_and_a_column_a_layer(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "scripts.evaluation.galleries.tile_grid", lambda heading, rows: seen.update(heading=heading, rows=rows)
    )
    net = make_net()
    item = make_cases()[0]
    methods_picture(net, item, make_plan(net, "all", options=FAST), "tumor_log_odds")
    assert seen["heading"].startswith("c0: target tumor_log_odds, score ")
    labels = [label for label, _ in seen["rows"]]
    cams = ["gradcam", "hirescam", "gradcam++", "layercam"]
    assert labels == ["no layer", *cams, *(f"{name}_frozen" for name in cams), "scorecam", "lrp", "lrp_places"]
    assert [title for _, title, _ in seen["rows"][0][1]] == [
        *("image and true mask", "evidence", "integrated gradients", "saliency", "smoothgrad", "occlusion"),
        *("integrated gradients frozen", "saliency frozen", "smoothgrad frozen"),
    ]
    layers = ["input_block", "downsamples.0", "downsamples.1", "bottleneck", "head.features"]
    for _, cells in seen["rows"][1:]:
        assert [title for _, title, _ in cells] == layers
    # A map of nothing is shown as nothing: the picture without any color but the mask's line, and the words.
    words = ("empty map", "gradients cancel")
    empty = [(picture, below) for _, cells in seen["rows"] for picture, _, below in cells if below in words]
    assert {below for _, below in empty} == {"gradients cancel"}, "behind a norm; the evidence is there"
    plain = overlays.overlay(
        item["image"].numpy(), np.zeros((1, 32, 32)), mask=item["label"].numpy(), scale=8, brightness=0.5
    )
    for picture, _ in empty:
        assert np.array_equal(picture, overlays.say_empty(plain))
        assert not np.array_equal(picture, plain)
    with pytest.raises(ValueError, match="none of the methods evidence explains the target segmentation_1_predicted"):
        methods_picture(net, item, make_plan(net, ["evidence"]), "segmentation_1_predicted")


def test_maps_are_written_through_the_preprocessing_of_the_run(tmp_path, monkeypatch):
    class Asked(Exception):
        pass

    def stop(**asked):
        raise Asked(asked)

    monkeypatch.setattr(galleries, "make_preprocessing", stop)
    with pytest.raises(Asked) as caught:
        galleries.show_cases(make_net(), [], [], [], (16, 16, 16), tmp_path, spacing_mm=8.0)
    assert caught.value.args == ({"spatial_size": (16, 16, 16), "spacing_mm": 8.0},)


def test_a_written_map_lies_on_the_file_as_the_network_saw_it(tmp_path):
    """A map with one hot cell comes out where that part of the image lies in the file, with the file's affine."""
    size, center = (40, 56, 12), (29, 17)
    image = np.zeros(size, np.float32)
    x, y = np.mgrid[: size[0], : size[1]]
    image[(x > 5) & (x < 35) & (y > 8) & (y < 48)] = 0.4
    image *= 1 + 0.3 * (np.sin(x / 6) * np.cos(y / 5))[..., None].astype(np.float32)
    image += np.random.default_rng(0).uniform(0, 0.02, size).astype(np.float32) * (image > 0)
    image[center[0] - 1 : center[0] + 2, center[1] - 1 : center[1] + 2] = 1.0
    affine = np.array([[-0.9, 0, 0, 12], [0, -1.1, 0, 34], [0, 0, 5.0, -6], [0, 0, 0, 1]])  # LPS, as the pipeline reads
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "a.nii.gz")
    pipeline = make_preprocessing((32, 32))
    item = {"image": str(tmp_path / "a.nii.gz"), "slice": 5}
    seen = pipeline(dict(item))["image"]
    hot = torch.as_tensor(np.asarray(seen[0] == seen[0].max())).float()[None, None]
    path = write_map(hot, item, pipeline, tmp_path / "map.nii.gz")
    written = nib.load(path)
    found = written.get_fdata()[..., 0]
    assert found.shape == size[:2]
    peak = np.unravel_index(found.argmax(), found.shape)
    assert np.abs(np.array(peak) - center).max() <= 1
    assert np.allclose(written.affine[:, :3], affine[:, :3])
    assert np.allclose(written.affine[:, 3], affine @ [0, 0, 5, 1])  # slice 5 of the volume
    coarse = write_map(torch.ones(1, 1, 4, 4), item, pipeline, tmp_path / "coarse.nii.gz")
    assert np.allclose(upsample(torch.ones(1, 1, 4, 4), (32, 32)), 1)
    inside = nib.load(coarse).get_fdata()[8:33, 12:44, 0]
    assert np.allclose(inside, 1)
