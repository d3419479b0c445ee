"""Anybody's model: what is opened, how pictures reach it, and the sentence of each way in which an answer is none."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.certificate.arguments import VERBS
from scripts.certificate.bundle_run import BundleRun
from scripts.certificate.folders import datalist_cases, read_cases, read_picture
from scripts.certificate.models import ExternalModel
from scripts.certificate.openers import open_model
from scripts.certificate.planted import phantom_case
from scripts.certificate.questions import Question
from scripts.certificate.settings import Settings
from scripts.command.verbs import run_verb
from scripts.data.datalists.clusters import clusters
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from tests.certificate.addresses import Silent, serving

CLASSES = ("solid", "no_tumor")


class Bright(torch.nn.Module):
    """Logits of (solid, no_tumor) from the largest value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        top = x.flatten(1).amax(1)
        return torch.stack([top, -top], 1)


def questions(*pictures: np.ndarray) -> list[Question]:
    case = phantom_case(1, 1)
    return [Question("as is", "", False, case, case.name, 1, picture, None) for picture in pictures]


def gray(value: float, shape: tuple[int, int] = (6, 8)) -> np.ndarray:
    return np.full((1, *shape), value, np.float32)


def test_outputs_are_reordered_so_that_no_tumor_is_first():
    model = ExternalModel(lambda batch: [[0.9, 0.1]] * len(batch), Settings(CLASSES), "x", "model")
    assert model.classes == ["no_tumor", "solid"]
    assert model.answer(questions(gray(1)))[0].probabilities == pytest.approx((0.1, 0.9))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"scaling": "0..1"}, 0.2),
        ({"scaling": "0..255"}, 51),
        ({"scaling": "-1..1"}, -0.6),
        ({"mean": (0.1,), "std": (0.5,)}, 0.2),
    ],
)
def test_gray_values_are_scaled_as_the_settings_say(settings, expected):
    found = ExternalModel(len, Settings(CLASSES, **settings), "x", "model").prepare(gray(51))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.shape == (1, 8, 6)


def test_channels_their_order_layout_and_size():
    color = np.stack([np.full((6, 8), v, np.float32) for v in (255, 0, 51)])
    rgb, bgr = (
        ExternalModel(len, Settings(CLASSES, channels=3, channel_order=order), "x", "model").prepare(color)
        for order in ("rgb", "bgr")
    )
    np.testing.assert_array_equal(rgb, bgr[::-1])
    assert rgb[:, 0, 0] == pytest.approx([1, 0, 0.2])
    last = ExternalModel(len, Settings(CLASSES, channels=3, layout="nhwc", size=(4, 5)), "x", "model").prepare(color)
    assert last.shape == (4, 5, 3)
    assert ExternalModel(len, Settings(CLASSES, channels=3), "x", "m").prepare(gray(255)).shape == (3, 8, 6)
    assert ExternalModel(len, Settings(CLASSES), "x", "m").prepare(color)[0, 0, 0] == pytest.approx(0.4)


def test_pictures_of_one_size_go_in_one_call():
    sizes = []

    def call(batch):
        sizes.append(batch.shape)
        return [[0.5, 0.5]] * len(batch)

    model = ExternalModel(call, Settings(CLASSES, batch_size=2), "x", "model")
    model.answer(questions(gray(1), gray(2), gray(3), gray(4, (9, 9))))
    assert sizes == [(2, 1, 8, 6), (1, 1, 8, 6), (1, 1, 9, 9)]
    assert model.calls == 3


@pytest.mark.parametrize(
    ("call", "settings", "sentence"),
    [
        (lambda b: [[0.5, 0.5, 0.0]], {}, r"answered in shape \(1, 3\); expected \(1, 2\): one row a picture"),
        (lambda b: [[float("nan"), 1.0]], {}, "values that are not finite"),
        (lambda b: [[3.0, -1.0]], {}, r"no probabilities \(one sums to 2, its least value is -1\); if they are logits"),
        (lambda b: [[0.2, 0.2]], {}, r"one sums to 0\.4"),
        (lambda b: "tumor", {}, "answered with str, not with an array of numbers"),
        (lambda b: 1 / 0, {}, r"failed on a batch of shape \(1, 1, 8, 6\): ZeroDivisionError"),
        (lambda b: time.sleep(5), {"timeout_s": 0.05}, r"no answer within 0\.05 s for 1 pictures; raise timeout_s"),
    ],
)
def test_an_answer_that_is_none_is_told_in_a_sentence(call, settings, sentence):
    with pytest.raises(ValueError, match=f"^model .*{sentence}"):
        ExternalModel(call, Settings(CLASSES, **settings), "x", "model").answer(questions(gray(1)))


def test_settings_name_what_is_wrong(tmp_path):
    path = tmp_path / "model.yaml"
    for text, sentence in (
        ("sise: [4, 4]", "no setting 'sise'; nearest: size"),
        ("scaling: 0..2", r"scaling is one of 0\.\.1, 0\.\.255, -1\.\.1, got '0\.\.2'"),
        ("no_tumor: healthy", "no_tumor is 'healthy', which is none of the classes no_tumor, tumor"),
        ("mean: [0.1, 0.2]", "mean has 2 values, the model 1 channels"),
        ("- a", "expected lines of 'key: value'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"model\.yaml: .*{sentence}"):
            Settings.read(path)
    path.write_text("classes: [a, b]\nno_tumor: b\nsize: [3, 4]\n")
    assert Settings.read(path) == Settings(("a", "b"), "b", (3, 4))


def test_torchscript_and_onnx_answer_alike(tmp_path):
    torch.jit.trace(Bright(), torch.zeros(1, 1, 8, 6)).save(str(tmp_path / "model.pt"))
    torch.onnx.export(
        Bright(), (torch.zeros(2, 1, 8, 6),), str(tmp_path / "model.onnx"), dynamo=False,
        input_names=["x"], dynamic_axes={"x": {0: "n"}},
    )  # fmt: skip
    settings = Settings(CLASSES, outputs="logits")
    asked = questions(gray(255), gray(0))
    expected = [1 / (1 + np.exp(2)), 0.5]
    for name in ("model.pt", "model.onnx"):
        answers = open_model(str(tmp_path / name), settings).answer(asked)
        assert [a.probabilities[0] for a in answers] == pytest.approx(expected, rel=1e-5)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pt")
    (tmp_path / "broken.onnx").write_bytes(b"none")
    for name, sentence in (("weights.pt", "is not TorchScript"), ("broken.onnx", "cannot be opened as ONNX")):
        with pytest.raises(ValueError, match=sentence):
            open_model(str(tmp_path / name), settings)
    with pytest.raises(FileNotFoundError, match=r"no model at .*absent\.onnx"):
        open_model(str(tmp_path / "absent.onnx"), settings)
    with pytest.raises(ValueError, match=r"a model is FILE\.onnx, .*, got 'model'"):
        open_model("model", settings)


def test_a_function_is_imported_by_its_name_alone(tmp_path, monkeypatch):
    (tmp_path / "their_model.py").write_text(
        "import numpy as np\nasked = []\n\ndef call(batch):\n    return np.tile([0.3, 0.7], (len(batch), 1))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    model = open_model("their_model:call", Settings(CLASSES))
    assert model.answer(questions(gray(1)))[0].probabilities == pytest.approx((0.7, 0.3))
    with pytest.raises(ValueError, match="module 'their_model' has no function 'asked'"):
        open_model("their_model:asked", Settings(CLASSES))
    with pytest.raises(ValueError, match="module 'not_there' cannot be imported"):
        open_model("not_there:call", Settings(CLASSES))
    sys.modules.pop("their_model")


class Service(Silent):
    """Answers with the probabilities by name, or not as it should."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        start = body.find(b"\x89PNG")
        if self.path == "/broken":
            self.send_error(500, "out of order")
            return
        content = {"said": {"no_tumor": 0.25, "solid": 0.75}} if start >= 0 else {}
        reply = b"no json" if self.path == "/text" else json.dumps(content).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(reply)


@pytest.fixture
def address():
    with serving(Service) as server:
        yield server


@pytest.mark.parametrize("upload", [None, "image"])
def test_an_address_is_asked_with_a_picture_and_answers_by_name(address, upload):
    model = open_model(f"{address}/predict", Settings(CLASSES, upload=upload, answer="said"))
    assert model.answer(questions(gray(1), gray(2)))[1].probabilities == pytest.approx((0.25, 0.75))


def test_an_address_that_does_not_answer_is_told(address):
    for path, key, sentence in (
        ("/broken", "said", "it answered with status 500"),
        ("/text", "said", "its answer is not JSON"),
        ("/predict", "other", "no list or names under 'other'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            open_model(address + path, Settings(CLASSES, answer=key)).answer(questions(gray(1)))
    with pytest.raises(ValueError, match="it cannot be reached"):
        open_model("http://127.0.0.1:9/", Settings(CLASSES)).answer(questions(gray(1)))


@pytest.fixture
def pictures(tmp_path):
    """Two pictures a class with masks, one tumor without, one file that is none."""
    for name, kind in (("no_tumor", 0), ("solid", 1)):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        for k in range(2 + kind):
            case = phantom_case(10 * kind + k, kind)
            Image.fromarray(case.image[0].T.astype(np.uint8)).save(tmp_path / "images" / name / f"{name}{k}.png")
            if case.mask is not None and k < 2:
                Image.fromarray(case.mask.T).convert("L").save(tmp_path / "masks" / f"{name}{k}.png")
    (tmp_path / "images" / "solid" / "none.png").write_text("no picture")
    return tmp_path


def test_a_folder_is_read_and_what_cannot_be_used_is_counted(pictures):
    left_out: Counter[str] = Counter()
    cases = read_cases(pictures / "images", pictures / "masks", ["no_tumor", "solid"], left_out)
    assert [(case.kind, case.mask is not None) for case in cases] == [(0, False)] * 2 + [(1, True)] * 2
    np.testing.assert_array_equal(cases[0].image, phantom_case(0, 0).image)
    assert left_out.pop("a tumor without a mask") == 1
    assert [next(iter(left_out))[:15], *left_out.values()] == ["cannot be used:", 1]
    with pytest.raises(ValueError, match=r"has no folder named as a class \(a, b\); there are no_tumor, solid"):
        read_cases(pictures / "images", None, ["a", "b"], left_out)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        read_cases(pictures / "absent", None, ["a"], left_out)


def _of_two_sources(folder) -> list[dict]:
    """Patient 1 of two sources, who are two people, and a near-duplicate of one of them without a patient."""
    about = [
        {"patient": "1", "source": "here"},
        {"patient": "1", "source": "there", "group": "g"},
        {"group": "g", "source": "there"},
        {"source": "there"},
    ]
    files = sorted((folder / "images" / "no_tumor").glob("*.png")) + sorted(
        (folder / "images" / "solid").glob("solid*")
    )
    return [
        {"image": str(file), "name": file.name, "diagnosis": 0, **one} for file, one in zip(files, about, strict=False)
    ]


def test_patients_of_one_number_in_two_sources_are_two(pictures):
    """As everywhere else: the certificate of somebody's model, and that of a run."""
    items = _of_two_sources(pictures)
    network = MultiTaskDynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16]).eval()
    own = BundleRun(network, [64, 64], ["no_tumor", "solid"], "x")
    for cases in (datalist_cases(items, [0, 1], Counter()), own.cases(items, Counter())):
        assert len(cases) == 4
        groups = [case.group for case in cases]
        assert groups == clusters(items)
        assert groups[:2] == ["patient here: 1", "patient there: 1"]
        assert groups[2] == groups[1], "a near-duplicate counts with its patient"
        assert len(set(groups)) == 3


def test_colors_and_deep_gray_values_are_read(tmp_path):
    color = np.zeros((4, 6, 3), np.uint8)
    color[..., 1] = 200
    Image.fromarray(color).save(tmp_path / "color.png")
    assert read_picture(tmp_path / "color.png").shape == (3, 6, 4)
    Image.fromarray((np.arange(24).reshape(4, 6) * 1000).astype(np.uint16)).save(tmp_path / "deep.png")
    deep = read_picture(tmp_path / "deep.png")
    assert (deep.shape, float(deep.max())) == ((1, 6, 4), 255.0)


def test_the_verb_certifies_a_model_by_name(pictures, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr", sys.__stderr__)
    (pictures / "model.yaml").write_text("classes: [solid, no_tumor]\noutputs: logits\n")
    torch.jit.trace(Bright(), torch.zeros(1, 1, 8, 6)).save(str(pictures / "model.pt"))
    command = ["certify", "--model", str(pictures / "model.pt"), "--model_config", str(pictures / "model.yaml")]
    folders = ["--folder", str(pictures / "images"), "--masks", str(pictures / "masks")]
    assert run_verb(VERBS, [*command, *folders, "--infills", "poisson", "--out", str(pictures / "out")]) == 1
    printed = capsys.readouterr().out
    assert "withheld" in printed
    assert "skipped: 1 pictures: a tumor without a mask" in printed
    content = json.loads((pictures / "out" / "causal.json").read_text())
    assert content["counts"]["by_class"] == {"no_tumor": 2, "solid": 2}
    assert content["clustered_by"] == "picture"
    assert {row["reason"] for row in content["left_out"]} >= {"a tumor without a mask"}
    with pytest.raises(ValueError, match="give either --run_dir"):
        run_verb(VERBS, ["certify", *folders])
    with pytest.raises(ValueError, match="give --folder and --masks, or --dataset_dir"):
        run_verb(VERBS, command)
