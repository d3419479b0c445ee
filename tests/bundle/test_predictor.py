"""The predictor: the numbers of configs/inference.yaml, bit for bit, from files and arrays, in any thread."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow
from PIL import Image

from bundle.predictor import Predictor
from scripts.explain import methods
from scripts.explain.maps import upsample
from scripts.explain.targets import ClassScore
from scripts.inference.postprocessing import shown_evidence
from scripts.inference.scans import PrepareScand, Scan, to_slice_grid
from tests.explain.nets import cam_maps
from tests.scans import ROOT, head, oblique, save, save_picture, write_overlay


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("predictor")


@pytest.fixture(scope="module")
def overlay(folder):
    return write_overlay(folder)


@pytest.fixture(scope="module")
def predictor(overlay):
    return Predictor(overlay=overlay)


@pytest.fixture(scope="module")
def files(folder):
    volume, affine = head(), oblique()
    return {
        "picture": save_picture(folder / "picture.png", volume[:, :, 4]),
        "volume": save(folder / "volume.nii.gz", volume, affine),
        "permuted": save(folder / "permuted.nii.gz", volume, affine, "SRA"),
    }


def test_what_was_not_trained_is_flagged(overlay, files, tmp_path):
    """As `scripts.runs.folder.write_network_overlay` writes it of a run that only segments, or only classifies."""
    config = yaml.safe_load(overlay.read_text(encoding="utf-8"))
    found = {}
    for trained in (["segmentation"], ["classification"], ["classification", "segmentation"]):
        path = tmp_path / "network.yaml"
        path.write_text(yaml.safe_dump({**config, "trained_tasks": trained}), encoding="utf-8")
        flags = Predictor(overlay=path).predict(next(iter(files.values()))).flags
        found[tuple(trained)] = {flag["code"]: flag["message"] for flag in flags if "untrained" in flag["code"]}
    assert found["segmentation",].keys() == {"untrained_head"}
    assert "those of random weights" in found["segmentation",]["untrained_head"]
    assert found["classification",].keys() == {"untrained_decoder"}
    assert found["classification", "segmentation"] == {}


def test_a_given_prevalence_moves_every_probability_by_bayes(overlay, files, tmp_path):
    training = {"no_tumor": 0.5, "glioma": 0.3, "meningioma": 0.2}
    known = tmp_path / "known.yaml"
    known.write_text(yaml.safe_dump({"training_prevalence": training}), encoding="utf-8")
    given = {"no_tumor": 0.98, "glioma": 0.012, "meningioma": 0.008}
    usual, rare = (Predictor(overlay=[overlay, known], prevalence=p) for p in (None, 0.02))
    before, after = usual.predict(files["picture"]), rare.predict(files["picture"])
    moved = [p * given[name] / training[name] for name, p in before.probabilities.items()]
    expected = {name: value / sum(moved) for name, value in zip(given, moved, strict=True)}
    assert after.probabilities == pytest.approx(expected, abs=1e-6)
    assert after.probability < before.probability
    assert after.threshold == before.threshold
    assert (usual.prevalence, before.prevalence, before.to_json()["prevalence"]) == (None, None, None)
    assert rare.prevalence == after.prevalence == after.to_json()["prevalence"] == pytest.approx(given, abs=1e-5)
    np.testing.assert_array_equal(before.raw_mask, after.raw_mask)
    with pytest.raises(ValueError, match="in the training of these weights are not known"):
        Predictor(overlay=overlay, prevalence=0.02)


def same(a, b):
    return (
        a.to_json() | {"source": ""} == b.to_json() | {"source": ""}
        and np.array_equal(a.mask, b.mask)
        and np.array_equal(a.evidence, b.evidence)
    )


@pytest.mark.parametrize("kind", ["picture", "volume", "permuted"])
def test_the_predictor_is_the_bundles_inference_bit_for_bit(predictor, overlay, files, tmp_path, kind):
    workflow = ConfigWorkflow(
        workflow_type="infer", config_file=[str(ROOT / "configs" / "inference.yaml"), str(overlay)],
        meta_file=str(ROOT / "configs" / "metadata.json"), logging_file=False, bundle_root=str(ROOT),
        input=str(files[kind]), output_dir=str(tmp_path),
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    prediction = predictor.predict(files[kind])
    result = json.loads((tmp_path / f"{kind}_result.json").read_text(encoding="utf-8"))
    assert prediction.probability == result["tumor_probability"]
    assert prediction.probabilities == result["class_probabilities"]
    assert prediction.slice_probabilities == result["slice_probabilities"]
    assert (prediction.verdict, prediction.threshold) == (result["verdict"], result["threshold"])
    assert (prediction.detected, prediction.raw) == (result["tumor_detected"], result["raw"])
    assert (prediction.predicted_class, prediction.flags) == (result["predicted_class"], result["flags"])
    written = nib.load(tmp_path / f"{kind}_evidence.nii.gz")
    named = [written.header[key].item() for key in ("intent_name", "cal_min", "cal_max")]
    assert named == [b"log-odds >= 0", 0, 6]
    assert result["temperature"] == float(predictor.network.temperature)
    evidence = written.get_fdata(dtype=np.float32)
    assert prediction.evidence.max() > 0 == prediction.evidence.min()
    if kind == "picture":
        mask = np.asarray(Image.open(tmp_path / "picture_mask.png"))
        assert np.array_equal(prediction.mask * 255, mask)
        assert prediction.mask.shape == np.asarray(Image.open(files[kind])).shape
        assert np.array_equal(prediction.evidence, evidence[..., 0].T)
    else:
        mask = nib.load(tmp_path / f"{kind}_mask.nii.gz")
        assert np.array_equal(prediction.mask, mask.get_fdata())
        assert np.array_equal(prediction.evidence, evidence)
        assert np.allclose(prediction.affine, nib.load(files[kind]).affine)
    assert prediction.mask.sum() > 0


def test_arrays_give_what_their_files_give(predictor, files):
    picture = np.asarray(Image.open(files["picture"]))
    assert same(predictor.predict(picture), predictor.predict(files["picture"]))
    for kind in ("volume", "permuted"):
        image = nib.load(files[kind])
        array = image.get_fdata(dtype=np.float32)
        assert same(predictor.predict(array, affine=image.affine), predictor.predict(str(files[kind])))


def test_a_foreground_of_an_array_lies_on_its_grid(predictor, files, tmp_path):
    picture = np.asarray(Image.open(files["picture"]))
    mask = np.zeros(picture.shape, np.uint8)
    mask[5:40, 9:30] = 1
    Image.fromarray(mask * 255).save(tmp_path / "mask.png")
    given = predictor.predict(picture, foreground=mask)
    assert same(given, predictor.predict(files["picture"], foreground=tmp_path / "mask.png"))
    assert given.probability != predictor.predict(picture).probability
    outside = np.ones(picture.shape, bool)
    outside[1:44, 5:34] = False  # the crop keeps a margin of 4
    assert not given.evidence[outside].any()


def test_the_verdict_follows_the_threshold(predictor, files):
    before = predictor.network.threshold.clone()
    probability = predictor.predict(files["picture"]).probability
    try:
        for threshold, verdict in ((probability - 0.01, True), (probability + 0.01, False)):
            predictor.network.threshold.fill_(threshold)
            prediction = predictor.predict(files["picture"])
            assert prediction.raw["tumor_detected"] is verdict
            tumors = {name: p for name, p in prediction.probabilities.items() if name != "no_tumor"}
            assert prediction.raw["predicted_class"] == (max(tumors, key=tumors.get) if verdict else "no_tumor")
            assert prediction.raw_mask.any()
            if verdict:
                assert (prediction.verdict, prediction.predicted_class) == ("tumor", max(tumors, key=tumors.get))
                assert (prediction.mask * prediction.evidence).any()
            else:
                assert prediction.verdict == "uncertain"
                assert "the verdict is no tumor, but the mask holds" in prediction.reasons[0]
                assert (prediction.detected, prediction.predicted_class) == (None, None)
            assert np.array_equal(prediction.mask, prediction.raw_mask)
    finally:
        predictor.network.threshold.copy_(before)


def test_a_batch_gives_what_single_images_give_and_keeps_errors_in_place(predictor, files, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nno")
    volume = nib.load(files["volume"])
    images = [
        files["picture"],
        broken,
        {"image": volume.get_fdata(dtype=np.float32), "affine": volume.affine},
        {"image": files["permuted"], "slice": 4, "uncertainty": True},
    ]
    got = predictor.predict_batch(images, errors="return")
    assert isinstance(got[1], ValueError)
    assert "broken.png" in str(got[1])
    singles = [
        predictor.predict(images[0]),
        predictor.predict(files["volume"]),
        predictor.predict(files["permuted"], slice=4),
    ]
    for single, batched in zip(singles, (got[0], got[2], got[3]), strict=True):
        assert batched.probability == pytest.approx(single.probability, abs=1e-5)
        assert np.allclose(batched.evidence, single.evidence, atol=1e-4)
        assert (batched.mask != single.mask).mean() < 1e-3
    assert got[3].uncertainty.probability_std > 0
    with pytest.raises(ValueError, match=r"broken\.png"):
        predictor.predict_batch(images)
    assert predictor.predict_batch([]) == []


def test_threads_get_their_own_answers_while_others_explain(predictor, files):
    images = [{"image": files["volume"], "slice": i} for i in range(1, 9)] + [{"image": files["picture"]}]
    expected = [predictor.predict(**image) for image in images]
    maps = [predictor.explain(**image, method="hirescam", layer="bottleneck").map for image in images]
    assert all(each.max() == 1 for each in maps)
    assert len({each[each > 0].tobytes() for each in maps}) == len(maps)
    start = threading.Barrier(4)

    def work(offset):
        start.wait()
        for i in range(len(images)):
            at = (i + offset) % len(images)
            assert same(predictor.predict(**images[at]), expected[at])
            if offset % 2:
                found = predictor.explain(**images[at], method="hirescam", layer="bottleneck")
                assert np.array_equal(found.map, maps[at])
        return offset

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(work, range(4))) == [0, 1, 2, 3]
    assert not any(module._forward_hooks for module in predictor.network.modules())


def test_one_explanation_at_a_time_sets_hooks_on_the_network(predictor, files, monkeypatch):
    explain, held = methods.explain, []

    def watched(*args, **kwargs):
        held.append(predictor._explaining.locked())
        return explain(*args, **kwargs)

    monkeypatch.setattr(methods, "explain", watched)
    predictor.explain(files["picture"], method="hirescam", layer="bottleneck")
    assert held == [True]
    assert not predictor._explaining.locked()


@pytest.mark.parametrize("kind", ["picture", "permuted"])
def test_the_evidence_explanation_is_the_predictions_evidence(predictor, files, kind):
    found = predictor.explain(files[kind])
    assert (found.method, found.layer, found.target, found.empty) == ("evidence", "evidence", "tumor_log_odds", False)
    shown = shown_evidence(torch.from_numpy(predictor.predict(files[kind]).evidence)).numpy()
    assert np.allclose(found.map, shown, atol=1e-6)


def test_a_layer_is_explained_on_the_input_grid(predictor, files):
    found = predictor.explain(files["volume"], "hirescam", layer="encoder_last", target="meningioma", slice=4)
    assert (found.layer, found.target, found.slices) == ("encoder_last", "meningioma", [4])
    assert found.map.shape == (40, 46, 9)
    item = PrepareScand((32, 32))({"image": str(files["volume"]), "slice": 4})
    scan = Scan.of(item["image"])
    x = item["image"].as_tensor()[..., 0][None]
    raw = cam_maps(predictor.network, x, "bottleneck", ClassScore(2), "hirescam", {"output": "cls"})
    value = to_slice_grid(upsample(raw["hirescam", "bottleneck"], (32, 32))[0], scan.placements[0], scan.slice_shape)[0]
    assert np.allclose(found.map[:, :, 4], value / value.max(), atol=1e-6)
    assert not found.map[:, :, :4].any()
    assert found.map.max() == 1


def test_the_segmentation_is_explained_in_its_own_region(predictor, files):
    found = predictor.explain(files["picture"], "hirescam", target="segmentation")
    assert (found.layer, found.target) == ("upsamples.1", "segmentation_1_predicted")
    assert found.map.shape == (46, 40)
    for method in ("saliency", "occlusion"):
        found = predictor.explain(files["picture"], method, target=1)
        assert (found.layer, found.empty, found.map.max()) == ("input", False, 1)


def test_an_empty_map_is_dark_and_says_so(predictor, files, monkeypatch):
    monkeypatch.setattr(predictor.network.output_block.conv.conv.bias, "data", torch.tensor([1e6, 0.0]))
    assert not predictor.predict(files["picture"]).mask.any()
    found = predictor.explain(files["picture"], "hirescam", target="segmentation")  # of a mask that is empty
    assert found.empty
    assert not found.map.any()
    assert "empty" in found.message


@pytest.mark.parametrize("kind", ["picture", "volume"])
def test_a_cancelled_grad_cam_is_an_error_and_no_empty_map(predictor, files, kind):
    with pytest.raises(ValueError, match="no Grad-CAM at layer 'encoder_early': the gradients of every channel cancel"):
        predictor.explain(files[kind], "gradcam", layer="encoder_early")
    assert not predictor.explain(files[kind], "hirescam", layer="encoder_early").empty
    assert not any(module._forward_hooks for module in predictor.network.modules())


def test_classes_and_their_margins_are_answered_by_name(predictor, files):
    assert [predictor.explain(files["picture"], "hirescam", target=k).target for k in (1, 2)] == [
        "glioma",
        "meningioma",
    ]
    against = predictor.explain(files["picture"], target="no_tumor_minus_glioma", method="saliency")
    assert against.target == "no_tumor_minus_glioma"
    # The logit of no_tumor is the same for every image, so that the absolute gradient is that of the other class.
    assert np.allclose(against.map, predictor.explain(files["picture"], "saliency", target="glioma").map, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "gliom"}, "target is 'tumor', 'segmentation', one of the classes no_tumor, glioma, meningioma"),
        ({"target": 3}, "target is"),
        ({"method": "gradcan"}, "unknown method"),
        ({"method": "gradcam", "layer": "bottlenek"}, "nearest: 'bottleneck'"),
        ({"target": "segmentation"}, "explains class logits"),
        ({"layer": "bogus"}, "evidence explains none; leave them out"),
        ({"method": "saliency", "layer": "bottleneck"}, "saliency explains none"),
        ({"target": "no_tumor"}, "explain a margin, for example 'no_tumor_minus_glioma'"),
        ({"target": 0, "method": "gradcam", "layer": "head.features"}, "'no_tumor_minus_glioma'"),
        ({"target": "glioma_minus_glioma"}, "target is"),
        ({"slice": 0}, "picture.png is a picture: it has no slice 0"),
    ],
)
def test_what_can_not_be_explained_is_refused(predictor, files, arguments, message):
    with pytest.raises(ValueError, match=message):
        predictor.explain(files["picture"], **arguments)


def test_uncertainty_is_on_the_input_grid_and_not_zero(predictor, files):
    prediction = predictor.predict(files["permuted"], uncertainty=True)
    spread = prediction.uncertainty
    assert spread.views == 7
    assert 0 < spread.probability_std < 0.5
    assert spread.map.shape == prediction.mask.shape
    assert 0 < spread.map.max() <= 0.5
    assert predictor.predict(files["permuted"]).uncertainty is None
    assert prediction.to_json()["probability_std"] == spread.probability_std


def test_the_prediction_becomes_json(predictor, files):
    for kind in ("picture", "volume"):
        text = json.dumps(predictor.predict(files[kind], uncertainty=True).to_json(), allow_nan=False)
        assert json.loads(text)["shape"] == list(predictor.predict(files[kind]).mask.shape)


@pytest.mark.parametrize(
    ("image", "arguments", "message"),
    [
        (np.zeros((20, 20), np.uint8), {}, "the array: no foreground found: the image is constant"),
        (np.zeros((20, 20, 3), np.uint8), {}, "needs its affine"),
        (np.zeros((4,)), {}, r"expected an array"),
        (np.zeros((20, 20, 3)), {"affine": np.zeros((4, 4))}, "expected an invertible 4x4 affine"),
        ("nowhere.png", {}, "nowhere.png does not exist"),
        (np.full((20, 20), np.nan), {"name": "upload 7"}, "upload 7: .*not finite"),
        (3, {}, "expected a path"),
    ],
)
def test_bad_images_are_named(predictor, image, arguments, message):
    with pytest.raises(ValueError, match=message):
        predictor.predict(image, **arguments)


@pytest.mark.parametrize("given", [{"slice": 7}, {"slice": 0}, {"plane": "axial"}, {"plane": "foo"}])
def test_a_picture_has_no_slice_or_plane_to_choose(predictor, files, given):
    (key,) = given
    with pytest.raises(ValueError, match=rf"is a picture: it has no {key} .* leave '{key}' out"):
        predictor.predict(files["picture"], **given)
    assert same(predictor.predict(files["picture"], plane="auto"), predictor.predict(files["picture"]))


def test_weights_and_configs_that_are_absent_are_named(overlay, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config file at .*mine\.yaml"):
        Predictor(overlay=tmp_path / "mine.yaml")
    with pytest.raises(FileNotFoundError, match=r"no weights at .*model\.pt"):
        Predictor(overlay=overlay, weights=tmp_path / "model.pt")


def test_a_network_without_an_evidence_head_predicts_without_a_map(files, tmp_path):
    predictor = Predictor(overlay=write_overlay(tmp_path, head="average_pool"))
    prediction = predictor.predict(files["picture"])
    assert prediction.evidence is None
    assert prediction.to_json()["evidence_maximum"] is None
    with pytest.raises(ValueError, match="no evidence head"):
        predictor.explain(files["picture"])
    assert predictor.explain(files["picture"], "gradcam").layer == "bottleneck"


def test_the_network_is_not_changed(predictor, files):
    before = {key: value.clone() for key, value in predictor.network.state_dict().items()}
    predictor.predict(files["volume"], uncertainty=True)
    predictor.explain(files["picture"], "gradcam")
    assert all(torch.equal(value, before[key]) for key, value in predictor.network.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in predictor.network.parameters())
    assert not predictor.network.training
