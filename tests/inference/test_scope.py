from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from scripts.data.preprocessing import make_preprocessing, make_training_pipeline
from scripts.evaluation import scope_evaluation, scope_fit
from scripts.evaluation.contrasts import CHANGES, changed
from scripts.evaluation.items import EvaluationDataset, evaluated_items
from scripts.evaluation.outsiders import OUTSIDERS
from scripts.evaluation.scope_evaluation import compare, write_scope
from scripts.evaluation.scope_fit import fit_scope, item_features
from scripts.inference import scope
from scripts.inference.inferers import MultiTaskInferer
from scripts.inference.pipeline import Inference
from scripts.inference.scans import Placement, Scan
from scripts.inference.scope_features import WIDTHS, _blurred, features, probe
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.runs.folder import last_stage, load_run, read_datalist


def made(rng, shift=0.0, count=400, width=4):
    return rng.normal(size=(count, width)) + shift


def test_distances_equal_mahalanobis_and_log_odds_and_the_limit_is_of_validation():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(4, 4))
    training, validation = (made(rng, count=n) @ mix + 5 for n in (4000, 400))
    foreign = made(rng, [4, 0, 0, 0]) @ mix + 5
    found = scope.fit(training, validation, foreign, np.zeros(4))
    difference = validation - training.mean(axis=0)
    length = np.sqrt(np.einsum("ni,ij,nj->n", difference, np.linalg.inv(np.cov(training.T)), difference))
    raw = found.distances(validation) * found.spread + found.center
    np.testing.assert_allclose(raw[:, 0], np.log(length), atol=0.03)  # the covariance is shrunk a little
    np.testing.assert_allclose(raw[:, 1], difference / training.std(axis=0) @ found.direction, atol=1e-9)
    np.testing.assert_allclose(found.distances(validation).mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(found.distances(validation).std(axis=0), 1, atol=1e-9)
    summed = np.exp(found.distances(validation) @ [1, scope.WEIGHT] - found.limit)
    np.testing.assert_allclose(found.score(validation), summed)
    assert (found.score(validation) > 1).mean() == pytest.approx(0.05, abs=0.003)
    assert (found.score(foreign) > 1).mean() > 0.8
    assert found.score(np.full((1, 4), 90.0))[0] > 1
    assert (found.training, found.validation, found.foreign) == (4000, 400, 400)


def test_a_picture_is_flagged_above_what_foreign_pictures_that_no_fit_saw_leave_below():
    rng = np.random.default_rng(0)
    training, validation = made(rng), made(rng)
    foreign, far, near = made(rng, [6, 0, 0, 0]), made(rng, [6, 0, 0, 0]), made(rng, [1, 0, 0, 0])
    found = scope.fit(training, validation, foreign, np.zeros(4), far)
    assert (found.score(far) > 1).mean() == pytest.approx(0.95, abs=0.003)
    assert (found.score(validation) > 1).mean() < 0.02, "what lies between the two is not flagged"
    assert (found.score(validation) * found.slice_factor > 1).mean() == pytest.approx(0.05, abs=0.003)
    both = scope.fit(training, validation, foreign, np.zeros(4), near)
    assert both.limit == both.slice_limit == found.slice_limit, "never more than 5 % of validation"


def test_each_distance_sees_what_the_other_does_not():
    rng = np.random.default_rng(0)
    training, validation = made(rng), made(rng)
    found = scope.fit(training, validation, made(rng, [2, 0, 0, 0]), np.zeros(4))
    near, elsewhere = found.distances(made(rng, [2.5, 0, 0, 0])), found.distances(made(rng, [0, 0, 9, 0]))
    assert np.median(near[:, 1]) > 2 > np.median(near[:, 0]), "a little along the foreign ones"
    assert np.median(elsewhere[:, 0]) > 3 > 1 > np.median(elsewhere[:, 1]), "far, where none was seen"
    assert (found.score(made(rng, [0, 0, 9, 0])) > 1).all()


def test_a_scope_needs_images_and_the_features_that_it_was_fitted_on(tmp_path):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="20 validation images or more, got 5"):
        scope.fit(rng.normal(size=(30, 3)), rng.normal(size=(5, 3)), rng.normal(size=(30, 3)), np.zeros(3))
    with pytest.raises(ValueError, match="20 foreign images or more, got 0"):
        scope.fit(rng.normal(size=(30, 3)), rng.normal(size=(30, 3)), np.empty((0, 3)), np.zeros(3))
    found = scope.fit(*(rng.normal(size=(30, 3)) for _ in range(3)), np.zeros(3))
    with pytest.raises(ValueError, match="fitted on 3 features, this network and image give 2"):
        found.score(np.zeros((1, 2)))
    found.save(tmp_path / scope.FILE)
    loaded = scope.load(tmp_path)
    values = rng.normal(size=(5, 3))
    np.testing.assert_array_equal(loaded.score(values), found.score(values))
    (tmp_path / scope.FILE).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a scope"):
        scope.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="python -m scripts scope fits it"):
        scope.load(tmp_path / "absent.npz")


def small_network() -> MultiTaskDynUNet:
    torch.manual_seed(0)
    return MultiTaskDynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16]).eval()


@torch.no_grad()
def train_further(network: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def test_features_see_the_foreground_alone():
    network = small_network()
    image = torch.zeros(1, 1, 32, 32)
    image[..., 8:24, 8:24] = torch.randn(16, 16)
    padded = torch.zeros(1, 1, 48, 48)
    padded[..., 8:40, 8:40] = image
    np.testing.assert_allclose(features(network, image), features(network, padded), atol=1e-4)
    given = features(network, image, (image != 0).to(torch.uint8))
    np.testing.assert_allclose(features(network, image), given, atol=1e-12)
    shuffled = image.clone()
    inside = image != 0
    shuffled[inside] = image[inside][torch.randperm(int(inside.sum()))]
    assert np.abs(features(network, image) - features(network, shuffled)).max() > 0.01, "texture counts"
    alone = features(torch.nn.Identity(), image)
    assert alone.shape[1] < given.shape[1], "the picture's alone without an encoder"
    # Shells, steps and structures, last of the picture's, by hand: a square of 16 in a constant 2, but one shell of 4.
    square = torch.zeros(1, 1, 32, 32)
    square[..., 8:24, 8:24] = 2.0
    square[..., 8, 8:24] = square[..., 23, 8:24] = square[..., 8:24, 8] = square[..., 8:24, 23] = 4.0
    values = features(torch.nn.Identity(), square)[0, -18:]
    np.testing.assert_allclose(values[:12:2], [0, 4, 2, 2, 2, 2])  # depths 1 to 8 of 8: 0.125, 0.25, ...
    np.testing.assert_allclose(values[1:12:2], 0, atol=1e-6)
    np.testing.assert_allclose(values[12:15], [0, 2, 2])


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_image_is_as_the_pipeline_would_give_it_and_changes_by_the_seed_alone(name):
    rng = np.random.default_rng(0)
    inside = np.hypot(*np.meshgrid(np.linspace(-1, 1, 48), np.linspace(-1, 1, 48))) < 0.9
    image = (rng.gamma(2.0, 1.0, (2, 48, 48)) * inside).astype(np.float32)
    found, left = changed(name, image, inside, np.random.default_rng(5))
    again, _ = changed(name, image, inside, np.random.default_rng(5))
    np.testing.assert_array_equal(found, again)
    assert ((found != 0).all(axis=0) == left).all(), "air is 0, and nothing else"
    assert left.sum() < inside.sum() if "stripped" in name else (left == inside).all()
    np.testing.assert_allclose([found[k][left].mean() for k in range(2)], 0, atol=1e-4)
    np.testing.assert_allclose([found[k][left].std() for k in range(2)], 1, rtol=1e-3)


def test_contrasts_exchange_the_order_of_tissues():
    inside = np.ones((10, 10), bool)
    ramp = np.arange(100, dtype=np.float32).reshape(1, 10, 10)
    inverted, _ = changed("inverted", ramp, inside, np.random.default_rng(0))
    assert (np.diff(inverted.ravel()) < 0).all()
    for name in ("T2-like", "FLAIR-like", "proton-density-like", "another contrast"):
        steps = np.diff(changed(name, ramp, inside, np.random.default_rng(1))[0].ravel())
        assert steps.max() > 0 > steps.min(), name
    # Fluid is darkest in T1, white matter lies at about two thirds.
    bright, dark = (
        changed(name, ramp, inside, np.random.default_rng(0))[0].ravel() for name in ("T2-like", "FLAIR-like")
    )
    assert bright[0] > bright[65]
    assert dark[0] < dark[65] < dark[40]


def test_refused_images_are_recognized_without_a_score():
    found = compare(np.array([0.1, 0.5, 0.9]), list("abc"), np.array([0.8, 2.0, 3.0]), list("def"), refused=1)
    assert (found["n"], found["refused"], found["flagged"], found["recognized"]) == (4, 1, 2, 0.75)
    assert found["auroc"] == pytest.approx(8 / 9)
    nothing = compare(np.array([0.1]), ["a"], np.empty(0), [], refused=4)
    assert (nothing["recognized"], nothing["auroc"], nothing["flagged"]) == (1.0, None, 0)


def test_drawn_outsiders_are_seeded_and_air_and_noise_are_refused_by_the_pipeline():
    pipeline = make_preprocessing((64, 64), trace=False)
    for name, picture in OUTSIDERS.items():
        np.testing.assert_array_equal(picture(3), picture(3))
        item = {"image": picture(3)[None].astype(np.float32), "name": name}
        if name in ("air alone", "noise", "text page (drawn)"):
            with pytest.raises(ValueError, match="no foreground found"):
                pipeline(item)
        else:
            assert not np.array_equal(picture(3), picture(4))
            assert pipeline(item)["image"].shape == (1, 64, 64)


def at_inference(run, folder):
    """Inference with a scope beside the weights scores images and flags those that are none of its kind."""
    inference = Inference(overlay=run / "network.yaml")
    results = {}
    for name in ("CT (drawn)", "photograph (drawn)"):
        picture = OUTSIDERS[name](0)
        Image.fromarray(np.uint8(255 * (picture - picture.min()) / np.ptp(picture))).save(folder / "x.png")
        item = inference.prepare({"image": str(folder / "x.png")})
        results[name] = inference.finish(item, inference.infer(item))["result"]
    result = results["CT (drawn)"]
    assert result["scores"]["scope"] > 1
    (flag,) = [flag for flag in result["flags"] if flag["code"] == "outside_scope"]
    assert f"score {result['scores']['scope']:.2f}" in flag["message"]


def study_of(*shares):
    scan = Scan("a.nii.gz", False, [8, 8, len(shares)], np.eye(4).tolist(), "axial", len(shares), [8, 8])
    scan.placements += [
        Placement(i, [[0, 8]] * 2, [8, 8], [0, 0], share, [[0, 8]] * 2) for i, share in enumerate(shares)
    ]
    return scan


def flags_of(scores, *shares):
    numbers, flags = scope.in_words(
        torch.zeros(1), {"scope": torch.tensor(scores) / 2, "scope_slice": torch.tensor(scores)}, study_of(*shares)
    )
    return numbers["scope"], [flag["code"] for flag in flags]


def test_slices_with_enough_head_vote_on_a_volume():
    assert scope.in_words(torch.zeros(1), {}, None) == ({}, [])
    assert flags_of([0.5, 0.9, 7.0, 0.8], 0.3, 0.3, 0.3, 0.3) == (pytest.approx(0.9), []), "a quarter is not more"
    assert flags_of([0.5, 1.9, 7.0, 0.8], 0.3, 0.3, 0.3, 0.3) == (pytest.approx(1.9), ["outside_scope"])
    assert flags_of([0.5, 1.0, 0.8, 0.7, 9.0], 0.3, 0.3, 0.3, 0.3, 0.01) == (pytest.approx(0.8), [])
    assert flags_of([7.0], 0.01) == (pytest.approx(3.5), ["outside_scope"]), "a picture of its own"
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.exponential(1.0, rng.integers(1, 12))
        assert (scope.vote(values) > 1) == ((values > 1).mean() > scope.VOTE)


def test_a_scope_of_other_weights_is_not_used(tmp_path, caplog):
    network = small_network()
    image = torch.randn(24, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    own = features(network, image)
    fitted = scope.fit(own, own, own + 5, probe(network))
    fitted.save(tmp_path / scope.FILE)
    scorer = scope.ScopeScorer(tmp_path / "model.pt")
    output = MultiTaskInferer(5, scorer)(image.movedim(0, -1)[None], network)
    assert output["scope"].shape == (1, 24)
    np.testing.assert_allclose(output["scope"][0], fitted.score(features(network, image)), rtol=1e-4)
    assert output["scope_slice"].shape == (1, 24)
    whole = []
    encode = network.encode
    network.encode = lambda x, foreground=None: whole.append(len(x)) or encode(x, foreground)
    MultiTaskInferer(12, scorer)(image.movedim(0, -1)[None], network)
    assert whole == [12, 12]  # prediction and scope share one pass, and known weights are not probed again
    del network.encode
    assert "scope" not in MultiTaskInferer(5, scope.ScopeScorer(tmp_path / "elsewhere" / "model.pt"))(image, network)
    train_further(network)
    with caplog.at_level(logging.WARNING, logger="scripts.inference.scope"):
        assert "scope" not in MultiTaskInferer(5, scorer)(image, network)
    assert "fitted with other weights" in caplog.text


def test_blurring_is_that_of_scipy():
    rng = np.random.default_rng(0)
    for shape in ((40, 33), (12, 20, 9)):
        for width in WIDTHS:
            image = rng.normal(size=shape).astype(np.float32)
            np.testing.assert_allclose(_blurred(image, width), gaussian_filter(image, width), atol=1e-5)


def test_a_scope_of_an_older_version_is_said_to_be_one(tmp_path, caplog):
    rng = np.random.default_rng(0)
    scope.fit(*(rng.normal(size=(30, 3)) for _ in range(3)), np.zeros(3)).save(tmp_path / scope.FILE)
    with np.load(tmp_path / scope.FILE) as content:
        np.savez(tmp_path / scope.FILE, **{key: content[key] for key in content if key != "probe"})
    with pytest.raises(
        scope.OldScope, match=r"has an older format, without probe; fit it again with python -m scripts scope"
    ):
        scope.load(tmp_path)
    assert scope.ScopeScorer(tmp_path / "model.pt").scope is None
    assert "images are not scored" in caplog.text
    assert "other weights" not in caplog.text
    assert not scope.is_current(tmp_path, small_network())


def test_scope_of_a_run_is_fitted_once_kept_and_tells_what_is_no_mri(small_run, tmp_path, monkeypatch):
    run = small_run.run("ours")
    network, config, _ = load_run(run)
    folder = str(small_run.dataset_dir)
    datalist = read_datalist(str(small_run.datalist_file), folder)
    # Ten patients and a few pictures do not make twenty validation images: training stands in for them here.
    datalist["validation"] = datalist["training"]
    pipeline = make_preprocessing(config["spatial_size"], trace=False)
    items = evaluated_items(datalist, "test", folder)
    training_pipeline = make_training_pipeline(config["spatial_size"], augment=False, num_classes=2)
    dataset = EvaluationDataset(items, training_pipeline)
    file = last_stage(run) / scope.FILE
    try:
        missing = write_scope(network, run, dataset, pipeline, tmp_path, datalist, folder, own_datalist=False)
        assert list(missing) == ["unavailable"]
        assert "scope.npz is missing" in missing["unavailable"]
        few = {**datalist, "validation": datalist["validation"][:5]}
        result = write_scope(network, run, dataset, pipeline, tmp_path, few, folder, own_datalist=True)
        assert result == {"unavailable": "a scope takes 20 validation images or more, got 5"}
        assert not file.is_file()
        result = write_scope(network, run, dataset, pipeline, tmp_path, datalist, folder, own_datalist=True)
        assert json.loads((tmp_path / "scope.json").read_text()) == result
        by_name = {entry["name"]: entry for entry in result["outside"]}
        assert by_name["CT (drawn)"]["auroc"] > 0.95
        assert by_name["photograph (drawn)"]["auroc"] > 0.95
        assert by_name["inverted"]["auroc"] > 0.95
        left_out = {name for name, entry in by_name.items() if entry["left_out_of_fit"]}
        assert {"FLAIR-like", "knee (drawn)"} <= left_out <= by_name.keys() - {"CT (drawn)", "inverted"}
        assert by_name["noise"]["recognized"] == by_name["air alone"]["recognized"] == 1.0
        assert scope.is_current(last_stage(run), network)
        before = file.read_bytes()
        reference = scope.load(run)
        image = dataset[0]["image"][None]
        values, _, _ = item_features(network, items[:1], pipeline)
        np.testing.assert_allclose(reference.score(features(network, image)), reference.score(values), rtol=1e-6)
        with monkeypatch.context() as patch:  # measured above
            patch.setattr(scope_evaluation, "foreign_images", lambda *_: iter(()))
            other = write_scope(
                network, run, dataset, pipeline, tmp_path, datalist, folder, own_datalist=False, cases=4
            )
        assert (other["inside"]["n"], file.read_bytes() == before) == (4, True)
        at_inference(run, tmp_path)
        train_further(network)
        assert not scope.is_current(last_stage(run), network), "of other weights: fitted again"
    finally:
        file.unlink(missing_ok=True)
    monkeypatch.setattr(scope_fit, "drawn_items", lambda *_, **__: [])
    assert fit_scope(network, datalist, folder, pipeline, limit=20).training == 20
