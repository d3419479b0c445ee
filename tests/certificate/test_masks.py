"""Segmenters of others: how a mask is read and checked, the verdict that follows from it, and what it marks."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.certificate.arguments import VERBS
from scripts.certificate.effects import Answers
from scripts.certificate.models import ExternalModel
from scripts.certificate.openers import open_model
from scripts.certificate.planted import phantom_case, phantom_cases
from scripts.certificate.planted_masks import HONEST, SEGMENTERS, read_by_mask
from scripts.certificate.questions import Question
from scripts.certificate.settings import Settings
from scripts.certificate.shortcuts import MARKED, mask_without_tumor
from scripts.certificate.verdicts import statements
from scripts.command.verbs import run_verb
from tests.certificate.addresses import Silent, serving

TWO = ("no_tumor", "tumor")


class Marking(torch.nn.Module):
    """The picture itself as its mask, (B, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0]


def about(picture: np.ndarray, place: np.ndarray | None = None) -> list[Question]:
    case = phantom_case(1, 1)
    return [Question("as is", "", False, case, case.name, 1, picture.astype(np.float32), place)]


def square(size: int = 8) -> np.ndarray:
    """(1, 8, 6): 255 in 2 x 3 pixels, (X, Y)."""
    picture = np.zeros((1, size, 6), np.float32)
    picture[0, 1:3, 2:5] = 255
    return picture


def says(output, **settings):
    return ExternalModel(lambda batch: output, Settings(TWO, outputs="mask", **settings), "x", "model")


def test_a_mask_is_compared_with_the_place_on_the_grid_of_the_model():
    picture = square()
    place = np.zeros((8, 6), bool)
    place[1:3, 3:6] = True  # four pixels of six
    model = ExternalModel(lambda batch: batch[:, 0], Settings(TWO, outputs="mask"), "x", "model")
    (answer,) = model.answer(about(picture, place))
    assert (answer.mask_pixels, answer.mask_in_place, answer.dice) == (6, 4, 8 / 12)
    assert answer.mask_center == (3.5 / 6, 2 / 8), "rows first, as the model has them"
    assert answer.probabilities == (0.0, 1.0)
    twice = ExternalModel(lambda batch: batch[:, 0], Settings(TWO, outputs="mask", size=(12, 16)), "x", "model")
    (answer,) = twice.answer(about(picture, place))
    assert answer.dice == pytest.approx(8 / 12, abs=0.1)
    assert answer.mask_pixels > 20
    (answer,) = model.answer(about(picture))
    assert (answer.mask_in_place, answer.dice) == (None, None)


def test_a_picture_is_called_tumor_where_enough_pixels_reach_the_threshold():
    mask = np.zeros((1, 6, 8))
    mask[0, 0, :5] = 0.9, 0.8, 0.7, 0.6, 0.1
    for least, tumor, called in ((1, 0.9, True), (4, 0.6, True), (5, 0.1, False)):
        model = says(mask, least_area=least)
        (answer,) = model.answer(about(square()))
        assert answer.tumor() == pytest.approx(tumor)
        assert (answer.tumor() >= model.threshold) == called == (answer.mask_pixels >= least)
    (answer,) = says(mask, threshold=0.75).answer(about(square()))
    assert answer.mask_pixels == 2


def test_the_kind_is_that_of_most_of_the_mask_and_parts_are_of_the_one_tumor():
    three = ("solid", "no_tumor", "ring")
    output = np.zeros((1, 3, 6, 8))
    output[0, 1] = 1.0
    output[0, :, :2] = np.reshape([0.2, 0.1, 0.7], (3, 1, 1))
    model = ExternalModel(lambda batch: output, Settings(three, outputs="mask"), "x", "model")
    (answer,) = model.answer(about(square()))
    assert model.classes == ["no_tumor", "solid", "ring"]
    assert answer.probabilities == pytest.approx((0.1, 0.9 * 0.2 / 0.9, 0.9 * 0.7 / 0.9))
    assert answer.mask_pixels == 16
    last = ExternalModel(
        lambda batch: np.moveaxis(output, 1, -1), Settings(three, outputs="mask", layout="nhwc"), "x", "model"
    )
    assert last.answer(about(square()))[0].probabilities == pytest.approx(answer.probabilities)
    regions = np.zeros((1, 2, 6, 8))
    regions[0, 0, 0], regions[0, 1, 0, :2] = 0.8, 0.9
    (answer,) = says(regions, mask_channels=("whole", "core")).answer(about(square()))
    assert (answer.probabilities, answer.mask_pixels) == (pytest.approx((0.1, 0.9)), 8)
    (answer,) = says(np.zeros((1, 2, 6, 8)), mask_channels=("whole", "core")).answer(about(square()))
    assert (answer.probabilities, answer.mask_pixels, answer.mask_center) == ((1.0, 0.0), 0, None)


def test_logits_become_probabilities_one_by_one_or_against_the_background():
    logits = np.zeros((1, 1, 6, 8))
    logits[0, 0, 0, 0] = np.log(3)
    settings = Settings(TWO, outputs="mask_logits", threshold=0.6)
    (answer,) = ExternalModel(lambda batch: logits, settings, "x", "model").answer(about(square()))
    assert (answer.tumor(), answer.mask_pixels) == (pytest.approx(0.75), 1)
    both = np.concatenate([np.full_like(logits, 1.0), logits + 1.0], axis=1)
    (answer,) = ExternalModel(lambda batch: both, settings, "x", "model").answer(about(square()))
    assert (answer.tumor(), answer.mask_pixels) == (pytest.approx(0.75), 1)


@pytest.mark.parametrize(
    ("output", "settings", "sentence"),
    [
        (np.zeros((1, 8, 6)), {}, r"answered in shape \(1, 8, 6\); expected masks \(N, H, W\) or \(N, C, H, W\) with "),
        (np.zeros((1, 2)), {}, r"N = 1, H, W = 6, 8 and C = 1 or 2 \(no_tumor, tumor\)"),
        (np.zeros((2, 6, 8)), {}, r"answered in shape \(2, 6, 8\)"),
        (np.zeros((1, 3, 6, 8)), {"mask_channels": ("a", "b")}, r"and C = 2 \(a, b\)"),
        (np.full((1, 6, 8), np.nan), {}, r"a mask of values that are not finite \(NaN or infinite\)"),
        (np.full((1, 6, 8), 7.0), {}, "values from 7 to 7, not of probabilities 0 to 1; if they are logits, set"),
        (np.full((1, 6, 8), -0.5), {}, r"values from -0\.5 to -0\.5"),
        (np.zeros((1, 2, 6, 8)), {}, "channels no_tumor, tumor that sum to 1 at no better than 1; leave no_tumor out"),
        (np.zeros((1, 6, 8)), {"least_area": 99}, "masks of 48 pixels; least_area is 99"),
        ([[1.0], [2.0, 3.0]], {}, "answered with list, not with an array of numbers"),
    ],
)
def test_a_mask_that_is_none_is_told_in_a_sentence(output, settings, sentence):
    with pytest.raises(ValueError, match=f"^model .*{sentence}") as told:
        says(output, **settings).answer(about(square()))
    assert "\n" not in str(told.value)


def test_settings_of_masks_name_what_is_wrong(tmp_path):
    path = tmp_path / "model.yaml"
    for text, sentence in (
        ("least_area: 3", "mask_channels and least_area are of masks: set outputs to mask or mask_logits"),
        ("outputs: mask\nleast_area: 0", "least_area is a number of pixels, 1 or more, got 0"),
        ("outputs: mask\nmask_channels: [no_tumor]", "different names, one of a tumor at least"),
        ("classes: [no_tumor, a, b]\noutputs: mask\nmask_channels: [whole]", "whole are none of the classes"),
        ("outputs: masks", "outputs is one of probabilities, logits, mask, mask_logits, got 'masks'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"model\.yaml: .*{sentence}"):
            Settings.read(path)


class Service(Silent):
    """Answers with the picture as its mask: as PNG, or as numbers by the name of the channel."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        picture = np.asarray(Image.open(io.BytesIO(body)))
        self.send_response(200)
        if self.path == "/png":
            self.send_header("Content-Type", "image/png")
            reply = body
        else:
            reply = json.dumps({"mask": {"tumor": (picture / 255).tolist()}}).encode()
        self.end_headers()
        self.wfile.write(reply)


@pytest.fixture
def address():
    with serving(Service) as server:
        yield server


def test_every_way_to_a_segmenter_gives_the_same_mask(tmp_path, address, monkeypatch):
    torch.jit.trace(Marking(), torch.zeros(1, 1, 6, 8)).save(str(tmp_path / "model.pt"))
    torch.onnx.export(
        Marking(), (torch.zeros(2, 1, 6, 8),), str(tmp_path / "model.onnx"), dynamo=False, input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
    )  # fmt: skip
    (tmp_path / "their_masks.py").write_text("def call(batch):\n    return batch\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    place = square()[0] > 0
    named = {"mask_channels": ("tumor",)}
    for spec, settings in (
        (str(tmp_path / "model.pt"), {}),
        (str(tmp_path / "model.onnx"), {}),
        ("their_masks:call", {}),
        (f"{address}/png", {}),
        (f"{address}/json", {"answer": "mask", **named}),
    ):
        answers = open_model(spec, Settings(TWO, outputs="mask", **settings)).answer(about(square(), place) * 2)
        assert [(a.probabilities, a.mask_pixels, a.dice) for a in answers] == [((0.0, 1.0), 6, 1.0)] * 2, spec


def test_planted_segmenters_are_named_by_what_they_mark(asked):
    questions = [q for q in asked[1] if q.test in ("as is", "removal", "transplant")]
    for name in (HONEST, *(words for words, _ in MARKED.values())):
        assert read_by_mask(SEGMENTERS[name], questions) == name
    found = {}
    for name in (HONEST, "brightest tissue"):
        subject = SEGMENTERS[name]
        answers = Answers(zip(questions, subject.answer(questions), strict=True), subject.classes, 0.5)
        found[name] = {(s.property, s.of): s for s in statements(answers)}
        assert mask_without_tumor(answers)["marked"] == (name != HONEST)
    accused = found["brightest tissue"]["shortcut", "mask: brightest tissue"]
    assert accused.verdict == "fails"
    assert accused.sentence.startswith("100 % of 44 pictures without a tumor have a mask, and ")
    assert "the mask marks the brightest tissue where there is no tumor (false: " in accused.sentence
    assert not [key for key in found[HONEST] if key[1].startswith("mask: ")]


def test_the_verb_certifies_a_segmenter_of_any_tumor_on_a_datalist_of_kinds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr", sys.__stderr__)
    items = []
    for k, case in enumerate(phantom_cases(4, 3, 3)):
        Image.fromarray(case.image[0].T.astype(np.uint8)).save(tmp_path / f"p{k}.png")
        item = {"image": f"p{k}.png", "diagnosis": case.kind, "patient": f"p{k}", "source": "phantoms"}
        if case.mask is not None:
            Image.fromarray(case.mask.T.astype(np.uint8) * 255).save(tmp_path / f"m{k}.png")
            item["label"] = f"m{k}.png"
        items.append(item)
    datalist = {
        "classes": {"0": "no_tumor", "1": "solid", "2": "ring"},
        "training": [],
        "validation": [],
        "test": items,
    }
    (tmp_path / "list.json").write_text(json.dumps(datalist))
    (tmp_path / "bright_masks.py").write_text("def call(batch):\n    return (batch[:, 0] > 0.6) * 0.8\n")
    (tmp_path / "model.yaml").write_text("outputs: mask\nleast_area: 5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["certify", "--model", "bright_masks:call", "--model_config", str(tmp_path / "model.yaml")]
    command += ["--dataset_dir", str(tmp_path), "--datalist_file", str(tmp_path / "list.json"), "--part", "test"]
    assert run_verb(VERBS, [*command, "--infills", "poisson", "--out", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out" / "causal.json").read_text())
    assert content["counts"]["by_class"] == {"no_tumor": 3, "tumor": 3}
    measures = {row["measure"] for row in content["rows"]}
    assert {"mask not empty", "mask at the place", "mask marks it", "mask's overlap"} <= measures
    assert "mask at the tumor's place (poisson)" in capsys.readouterr().out
