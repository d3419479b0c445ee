"""The released bundle in the real MONAI Label server: inference, training, rollback, sampling, two bundles at once.

Runs under ``make test-label``, which sets up the environment that it needs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bundle import label_sampling
from bundle.label import ENVIRONMENT, SAMPLE_APP, STRATEGY, Label, prepare_app
from bundle.release import NAME, release
from scripts import phantoms
from scripts.__main__ import main as command
from tests.bundle.made_run import CLASSES, make_pictures, make_run
from tests.label.running import RunningServer

if not os.environ.get("TUMORLENS_LABEL"):
    pytest.skip(
        "needs the environment of MONAI Label; make test-label sets it up and runs this", allow_module_level=True
    )

OTHER = "brain_tumor_lens_other_segmentation"
FILES = ("picture", "volume", "permuted", "oblique", "series")
CHANNEL = 1  # of the 4D file


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Path]:
    """Two releases: two classes at 64 pixels, four at 96."""
    pictures = make_pictures(tmp_path_factory.mktemp("pictures"))
    out, made = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("runs")
    first = release(out, make_run(made / "first", pictures, size=64, seed=1), NAME)
    second = release(out, make_run(made / "second", pictures, size=96, num_classes=4, seed=2), OTHER)
    return {NAME: first, OTHER: second}


def shows_tumor(case: Path) -> bool:
    return bool(np.any(nib.load(str(case).replace("_flair", "_seg")).dataobj))


def rotation(degrees: float, axis: int) -> np.ndarray:
    turn, (a, b) = np.eye(4), [i for i in range(3) if i != axis]
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[a, a], turn[a, b], turn[b, a], turn[b, b] = c, -s, s, c
    return turn


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    """A picture, a volume, the same with permuted and flipped axes, oblique in space, and as the second of 4D."""
    folder, made = tmp_path_factory.mktemp("studies"), tmp_path_factory.mktemp("phantoms")
    phantoms.make_phantoms(made, seed=7, patients=8, singles=4, progress=False)
    shutil.copyfile(next((made / "singles" / "images").rglob("*.png")), folder / "picture.png")
    # Validation needs a tumor: which part a case falls in is the server's choice.
    cases = [case for case in sorted((made / "patients").rglob("*_flair.nii.gz")) if shows_tumor(case)][:4]
    volume = nib.load(cases[0])
    nib.save(volume, folder / "volume.nii.gz")
    data = np.asarray(volume.dataobj)
    turn = np.array([[2, 1], [0, -1], [1, 1]])  # axis and direction of each axis of the source
    nib.save(volume.as_reoriented(turn), folder / "permuted.nii.gz")
    affine = rotation(20, 0) @ rotation(-12, 2) @ volume.affine
    nib.save(nib.Nifti1Image(data, affine), folder / "oblique.nii.gz")
    series = np.stack([data.max() - data, data], axis=-1)
    nib.save(nib.Nifti1Image(series, volume.affine), folder / "series.nii.gz")
    for i, case in enumerate(cases[1:]):
        shutil.copyfile(case, folder / f"labeled{i}.nii.gz")
        shutil.copyfile(str(case).replace("_flair", "_seg"), folder.parent / f"{folder.name}_label{i}.nii.gz")
    return folder


def start(label: Label, log: Path) -> Iterator[RunningServer]:
    if not (ENVIRONMENT / SAMPLE_APP).is_dir():
        pytest.fail(f"TUMORLENS_LABEL is set, but {ENVIRONMENT} holds no MONAI Label; run: make test-label")
    server = RunningServer(label, log)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def label(bundles, studies, tmp_path_factory) -> Label:
    """The stock app as it is, with both bundles."""
    app = tmp_path_factory.mktemp("label") / "app"
    prepare_app(app, list(bundles.values()))
    assert (app / "main.py").read_bytes() == (ENVIRONMENT / SAMPLE_APP / "main.py").read_bytes()
    return Label(app, studies, list(bundles))


@pytest.fixture(scope="module")
def server(label, tmp_path_factory) -> Iterator[RunningServer]:
    yield from start(label, tmp_path_factory.mktemp("log") / "server.log")


RUN = """
import sys
import monai.bundle
out = sys.argv[1]
for file in sys.argv[2:]:
    channel = {"channel": 1} if "series" in file else {}
    monai.bundle.run(
        config_file="configs/inference.yaml", meta_file="configs/metadata.json", input=file, output_dir=out, **channel
    )
"""


@pytest.fixture(scope="module")
def bundle_run(bundles, studies, tmp_path_factory) -> Path:
    """What `monai.bundle run` writes for the same files, in the release's own folder."""
    out = tmp_path_factory.mktemp("bundle_run")
    files = [str(next(studies.glob(f"{name}.*"))) for name in FILES]
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(out), *files],
        cwd=bundles[NAME], capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def options(name: str) -> dict[str, int]:
    return {"channel": CHANNEL} if name == "series" else {}


def read(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    if path.suffix == ".png":
        return np.asarray(Image.open(path)), None
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def test_the_server_knows_the_bundles_by_task_and_labels(server):
    models = server.json("GET", "/info/")["models"]
    assert set(models) == {NAME, OTHER}
    for model in models.values():
        assert model["type"] == "segmentation"
        assert model["labels"] == {"tumor": 1}


@pytest.mark.parametrize("name", FILES)
def test_every_voxel_is_the_one_of_monai_bundle_run_and_lies_where_the_image_does(
    name, server, studies, bundle_run, tmp_path
):
    source = next(studies.glob(f"{name}.*"))
    suffix = "".join(source.suffixes)
    ours, affine = read(server.mask(NAME, name, tmp_path / f"mask{suffix}", **options(name)))
    theirs, _ = read(next(bundle_run.glob(f"{name}*_mask*")))
    image, placed = read(source)
    assert ours.shape == theirs.shape == image.shape[: ours.ndim]
    assert 0.001 < (theirs > 0).mean() < 0.9
    assert ((ours > 0) == (theirs > 0)).mean() == 1.0
    assert set(np.unique(ours)) == {0, 1}
    if affine is not None:
        assert np.allclose(affine, placed, atol=1e-4)


@pytest.mark.parametrize("name", FILES)
def test_params_carry_probabilities_verdict_labels_and_the_path_of_the_evidence(name, server, studies, bundle_run):
    params = server.infer(NAME, name, **options(name))
    theirs = json.loads(next(bundle_run.glob(f"{name}*_result.json")).read_text(encoding="utf-8"))
    assert params["label_names"] == {"tumor": 1}
    assert list(params["class_probabilities"]) == list(CLASSES[2].values())
    assert params["tumor_probability"] == pytest.approx(theirs["tumor_probability"], abs=1e-5)
    assert params["threshold"] == theirs["threshold"]
    assert params["raw"]["tumor_detected"] == (params["tumor_probability"] >= params["threshold"])
    joined = ("verdict", "reasons", "tumor_detected", "predicted_class")
    assert [params[key] for key in joined] == [theirs[key] for key in joined]
    source, _ = read(next(studies.glob(f"{name}.*")))
    evidence = nib.load(params["evidence"])
    expected, _ = read(next(bundle_run.glob(f"{name}*_evidence.nii.gz")))
    assert np.abs(np.asarray(evidence.dataobj) - expected).max() < 1e-4
    assert (expected.max() > 0) == (theirs["evidence_maximum"] > 0)
    assert theirs["raw"]["evidence_maximum"] > 0
    if name == "picture":
        assert params["slice_probabilities"] is None
        return
    assert evidence.shape == source.shape[:3]
    assert np.allclose(evidence.affine, nib.load(next(studies.glob(f"{name}.*"))).affine, atol=1e-4)
    slices, wanted = params["slice_probabilities"], theirs["slice_probabilities"]
    assert len(slices) == len(wanted) == min(source.shape[:3])
    assert [s is None for s in slices] == [s is None for s in wanted]
    known = [(s, w) for s, w in zip(slices, wanted, strict=True) if s is not None]
    assert known
    assert np.allclose(*np.transpose(known), atol=1e-5)


def test_permuted_axes_change_nothing_but_the_order_of_the_voxels(server, studies, tmp_path):
    straight = nib.load(server.mask(NAME, "volume", tmp_path / "volume.nii.gz"))
    turned = nib.load(server.mask(NAME, "permuted", tmp_path / "permuted.nii.gz"))
    back = [np.asarray(nib.as_closest_canonical(image).dataobj) for image in (straight, turned)]
    assert np.array_equal(back[0], back[1])


def test_the_mask_of_a_jpg_can_be_had_without_compression(server, studies, tmp_path):
    picture = studies / "compressed.jpg"
    Image.open(studies / "picture.png").convert("L").save(picture, quality=95)
    server.wait(lambda: server.json("GET", "/datastore/image/info", image="compressed") or None, "image not noticed")
    mask, _ = read(server.mask(NAME, "compressed", tmp_path / "mask.png", result_extension=".png"))
    assert mask.shape == np.asarray(Image.open(picture)).shape
    assert set(np.unique(mask)) == {0, 1}


def test_two_bundles_answer_in_turn_and_stay_themselves(server, bundles):
    keys = ("tumor_probability", "class_probabilities", "slice_probabilities", "evidence_maximum")
    answers = [server.infer(name, "volume") for name in (NAME, OTHER, NAME, OTHER)]
    first, second, again, other = ({key: answer[key] for key in keys} for answer in answers)
    assert first == again
    assert second == other
    assert list(second["class_probabilities"]) == list(CLASSES[4].values())
    assert list(first["class_probabilities"]) == list(CLASSES[2].values())
    assert first["tumor_probability"] != second["tumor_probability"]


def test_training_from_the_datastore_changes_the_weights_and_the_ones_before_can_be_put_back(
    server, label, studies, tmp_path
):
    models = label.app / "model" / NAME / "models"
    before, answer = (models / "model.pt").read_bytes(), server.infer(NAME, "volume")
    for i in range(3):
        mask = studies.parent / f"{studies.name}_label{i}.nii.gz"
        server.upload("PUT", "/datastore/label", "label", mask, image=f"labeled{i}", tag="final")
    assert "labeled0" not in server.unlabeled()
    task = server.train(NAME, max_epochs=2, val_split=0.34, multi_gpu=False)
    assert task["status"] == "DONE", "\n".join(task["details"][-30:])
    trained = (models / "model.pt").read_bytes()
    assert trained != before
    assert (models / "model_previous.pt").read_bytes() == before
    after = server.infer(NAME, "volume")
    assert after["class_probabilities"] != answer["class_probabilities"]
    previous = server.infer(NAME, "volume", model_filename="model_previous.pt")
    assert previous["class_probabilities"] == answer["class_probabilities"]

    saved = tmp_path / "model.pt"
    saved.write_bytes(before)
    server.upload("PUT", f"/model/{NAME}", "file", saved)
    assert server.request("GET", f"/model/{NAME}") == before
    restored = server.infer(NAME, "volume")
    assert restored["class_probabilities"] == answer["class_probabilities"]


@pytest.fixture(scope="module")
def sampling_server(bundles, studies, tmp_path_factory) -> Iterator[RunningServer]:
    """The app with the added strategy, on three volumes and a picture."""
    folder = tmp_path_factory.mktemp("sampling")
    (folder / "studies").mkdir()
    for name in ("picture.png", "volume.nii.gz", "labeled0.nii.gz", "labeled1.nii.gz"):
        shutil.copyfile(studies / name, folder / "studies" / name)
    prepare_app(folder / "app", [bundles[NAME]], sampling=True)
    stock = (ENVIRONMENT / SAMPLE_APP / "main.py").read_text(encoding="utf-8")
    assert (folder / "app" / "main.py").read_text(encoding="utf-8").startswith(stock)
    yield from start(Label(folder / "app", folder / "studies", [NAME]), folder / "server.log")


def test_the_most_uncertain_image_is_offered_next_then_the_one_after_it(sampling_server, capsys):
    command(["label-next", "--name", NAME, "--server", sampling_server.url])
    lines = capsys.readouterr().out.splitlines()[:-1]
    ranked = [(line.split()[1], float(line.split()[0])) for line in lines[:-1]]
    assert {name for name, _ in ranked} == {"picture", "volume", "labeled0", "labeled1"}
    assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)
    assert ranked[0][1] > ranked[-1][1]
    assert lines[-1] == f"next to label: {ranked[0][0]}"
    offered = [sampling_server.json("POST", f"/activelearning/{STRATEGY}")["id"] for _ in range(2)]
    assert offered == [ranked[0][0], ranked[1][0]]


def test_a_server_that_does_not_answer_or_refuses_is_an_error_in_one_sentence(sampling_server):
    with pytest.raises(ValueError, match=r"no MONAI Label server answers at http://127.0.0.1:9"):
        label_sampling.Server("http://127.0.0.1:9").unlabeled()
    with pytest.raises(ValueError, match="/model/none: 404"):
        sampling_server.request("GET", "/model/none")
