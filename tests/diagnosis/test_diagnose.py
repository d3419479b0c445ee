"""The diagnosis as a command and as a config: own networks and images, our design and the stock design."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
import yaml
from matplotlib import colormaps
from monai.networks.nets import DenseNet121
from PIL import Image
from torch import nn

from scripts.__main__ import main as command
from scripts.command.workflows import run_config
from scripts.diagnosis import page
from scripts.diagnosis.examination import Subject, examine
from scripts.diagnosis.inputs import Samples, prepare
from scripts.diagnosis.network import build_network, load_checkpoint, named
from scripts.diagnosis.pictures import PICTURES
from scripts.diagnosis.shortcut import shortcut, shortcut_rows
from scripts.explain.diagnosis import CAUSES
from scripts.explain.findings import CANNOT_TELL, DOES_NOT_HOLD, FOLLOWS, HOLDS
from scripts.explain.maps import max_scaling, upsample
from scripts.explain.targets import TumorLogOdds
from tests.explain.nets import TwoOutputs
from tests.networks.nets import heads, tiny

DENSENET = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 2,
    "block_config": [2, 2],
    "init_features": 8,
    "growth_rate": 4,
}


@pytest.fixture
def densenet(tmp_path):
    """Arguments of the command line for a small DenseNet121; its checkpoint is one of distributed training."""
    torch.manual_seed(0)
    network = DenseNet121(**DENSENET)
    path = tmp_path / "densenet.pt"
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, path)
    return [
        "--network",
        "monai.networks.nets.DenseNet121",
        "--network_args",
        json.dumps(DENSENET),
        "--weights",
        str(path),
    ]


@pytest.fixture
def flat(small_data, tmp_path):
    """A folder of four image files, of nothing else known."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for i, path in enumerate(sorted((small_data.dataset_dir / "singles").rglob("images/*/*.*"))[:4]):
        Image.open(path).save(folder / f"{i}.png")
    return str(folder)


def draw_nothing(patch):
    """The page without pictures, which take longer than all that is measured: for what others draw too."""
    patch.setattr(page, "map_picture", lambda *_: None)
    patch.setattr(page, "picture_of", lambda *_: None)


@pytest.fixture
def undrawn(monkeypatch):
    draw_nothing(monkeypatch)


def document(folder):
    return json.loads((folder / "diagnosis.json").read_text(encoding="utf-8"))


def verdicts(folder):
    return {finding["cause"]: finding["verdict"] for finding in document(folder)["findings"]}


def figures(folder, cause):
    return next(finding["figures"] for finding in document(folder)["findings"] if finding["cause"] == cause)


def test_the_config_names_nothing_on_ours_and_leak_and_pooling_on_the_stock_design(
    small_run, tmp_path, capsys, undrawn
):
    for name in ("ours", "baseline"):
        run_config(
            "diagnose.yaml", run_dir=str(small_run.run(name)), output_dir=str(tmp_path / name), **small_run.paths
        )
    assert document(tmp_path / "ours")["holds"] == []
    assert document(tmp_path / "ours")["map"]["background_energy_layer"] == 0
    # At 64 x 64 the stock design's cells, 8 x 8, are larger than most tumors; of the air they explain next to nothing.
    assert document(tmp_path / "baseline")["holds"] == ["normalization leak", "pooling over air", "coarse grid"]
    ours, stock = (figures(tmp_path / name, "coarse grid") for name in ("ours", "baseline"))
    assert (ours["cells"], stock["cells"]) == (16 * 16, 8 * 8)
    assert stock["oracle_tumor_energy"] < 0.5 < ours["oracle_tumor_energy"]
    assert stock["oracle_background_energy"] < 0.1 < document(tmp_path / "baseline")["map"]["background_energy"]
    printed = capsys.readouterr().out
    assert "holds: nothing" in printed
    assert "holds: normalization leak, pooling over air, coarse grid" in printed


def test_the_page_is_self_contained_and_tells_every_cause_with_its_limit_and_picture(small_run, tmp_path):
    out = tmp_path / "out"
    argv = ["--run_dir", str(small_run.run("baseline")), "--out", str(out), "--limit", "16"]
    argv += [token for key, value in small_run.paths.items() for token in (f"--{key}", value)]
    assert command(["diagnose", *argv]) == 1
    html = (out / "diagnosis.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:image/png;base64,|#)", html)
    untold = html.count("The network is untrained") // 2  # in the table and below: there is nothing to draw of classes
    assert html.count("<img src=") == 1 + len(CAUSES) - untold
    assert all(f'id="{cause.replace(" ", "-")}"' in html for cause in CAUSES)
    assert "3 hold</strong>" in html
    for finding in document(out)["findings"]:
        assert finding["limit"] == CAUSES[finding["cause"]][1]
        assert finding["reason"]


def test_the_default_normalizer_of_monai_is_named(small_run, tmp_path):
    inverts = {"normalizer": "monai.visualize.default_normalizer"}
    paths = {**small_run.paths, "run_dir": str(small_run.run("ours")), "output_dir": str(tmp_path)}
    run_config("diagnose.yaml", images=8, **paths, **inverts)
    assert document(tmp_path)["holds"] == ["inverted normalizer"]


def test_a_set_in_which_the_source_is_the_label_is_named(small_run, tmp_path, undrawn):
    datalist = json.loads(small_run.datalist_file.read_text(encoding="utf-8"))
    for part in ("training", "validation", "test"):
        for item in datalist[part]:
            item["source"] = "hospital" if item["diagnosis"] else "volunteers"
    file = tmp_path / "list.json"
    file.write_text(json.dumps(datalist), encoding="utf-8")
    paths = {"dataset_dir": str(small_run.dataset_dir), "datalist_file": str(file)}
    run_config("diagnose.yaml", run_dir=str(small_run.run("ours")), output_dir=str(tmp_path), images=8, **paths)
    found = document(tmp_path)
    assert found["holds"] == ["source or air shortcut"]
    told = figures(tmp_path, "source or air shortcut")
    assert told["balanced_accuracy_from_source"] == 1.0
    assert told["air_auc"] == 0.5


def monai_pipeline(path, transforms):
    common = [
        {"_target_": "LoadImaged", "keys": "image", "image_only": True},
        {"_target_": "EnsureChannelFirstd", "keys": "image", "channel_dim": "no_channel"},
        {"_target_": "ScaleIntensityd", "keys": "image"},
        {"_target_": "Resized", "keys": "image", "spatial_size": [64, 64]},
    ]
    config = {"preprocessing": {"_target_": "Compose", "transforms": [*common, *transforms]}}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(path)


MASK = {"_target_": "ThresholdIntensityd", "keys": "image", "threshold": 0.1}
ZSCORE = {"_target_": "NormalizeIntensityd", "keys": "image"}


def test_a_densenet_with_own_images_and_pipeline_that_masks_before_it_normalizes(densenet, small_data, tmp_path):
    folder = ["--folder", str(small_data.dataset_dir / "singles"), "--out", str(tmp_path)]
    wrong = ["--preprocessing", monai_pipeline(tmp_path / "wrong.yaml", [MASK, ZSCORE])]
    assert command(["diagnose", *densenet, *folder, *wrong, "--class_index", "1", "--num_classes", "2"]) == 1
    found = verdicts(tmp_path)
    assert found["order of transforms"] == found["pooling over air"] == HOLDS
    assert found["air not zero"] == FOLLOWS
    assert found["normalization leak"] == DOES_NOT_HOLD  # batch norm
    assert found["inverted normalizer"] == found["swapped colors"] == CANNOT_TELL
    assert document(tmp_path)["foreground"] == "estimated from the input"
    order = next(f for f in document(tmp_path)["findings"] if f["cause"] == "order of transforms")
    assert "NormalizeIntensityd" in order["reason"]
    # The same mask in front: statistics of what is not 0 alone leave the air at 0.
    right = ["--preprocessing", monai_pipeline(tmp_path / "right.yaml", [MASK, {**ZSCORE, "nonzero": True}])]
    command(["diagnose", *densenet, *folder, *right])
    assert verdicts(tmp_path)["order of transforms"] == verdicts(tmp_path)["air not zero"] == DOES_NOT_HOLD


def test_our_network_behind_such_a_pipeline_is_told_the_order(small_run, tmp_path, undrawn):
    own = monai_pipeline(tmp_path / "wrong.yaml", [MASK, ZSCORE])
    argv = ["--run_dir", str(small_run.run("ours")), "--folder", str(small_run.dataset_dir / "singles")]
    assert command(["diagnose", *argv, "--preprocessing", own, "--limit", "8", "--out", str(tmp_path)]) == 1
    # Our network reads its foreground from the air: with an air that is not 0 it takes all of the image for the head.
    assert document(tmp_path)["holds"] == ["order of transforms"]
    after = dict.fromkeys(["air not zero", "normalization leak", "pooling over air"], "order of transforms")
    assert document(tmp_path)["consequences"] == after


def test_without_the_own_pipeline_its_air_and_order_cannot_be_told(densenet, small_data, tmp_path, undrawn):
    argv = [*densenet, "--folder", str(small_data.dataset_dir / "singles"), "--spatial_size", "64", "--limit", "8"]
    assert command(["diagnose", *argv, "--out", str(tmp_path)]) == 1
    found = document(tmp_path)
    assert found["target"] == "class_1"
    for cause in ("air not zero", "order of transforms", "source or air shortcut"):
        finding = next(f for f in found["findings"] if f["cause"] == cause)
        assert finding["verdict"] == CANNOT_TELL
        assert "not given" in finding["reason"]


def test_plain_files_without_classes_are_enough(densenet, flat, tmp_path):
    argv = [*densenet, "--folder", flat, "--spatial_size", "64", "--out", str(tmp_path)]
    assert command(["diagnose", *argv, "--colormap", "scripts.pictures.overlays.colorize"]) == 1
    assert verdicts(tmp_path)["wrong class index"] == CANNOT_TELL
    assert verdicts(tmp_path)["swapped colors"] == DOES_NOT_HOLD


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "give --weights FILE, or --random_weights"),
        (["--random_weights", "--datalist_file", "x.json"], "either as --datalist_file"),
        (["--random_weights", "--class_index", "7"], r"class index 7 is not in 0..1: the network has 2 outputs"),
        (["--random_weights", "--num_classes", "4"], "has 2 outputs, but 4 classes were given"),
        (["--random_weights", "--normalizer", "monai.nothing.here"], "normalizer 'monai.nothing.here' can not be"),
        (["--random_weights", "--heatmaps", "nowhere"], "nowhere is not a folder"),
        (
            ["--random_weights", "--target", "segmentation_1_predicted"],
            "does not fit the network's output, class logits",
        ),
        (["--random_weights", "--network_config", "x.yaml"], "either as --network CLASS"),
        (["--random_weights", "--forward_args", "[1]"], "forward_args: expected a JSON object"),
        (["--random_weights", "--forward_args", '{"a": 1}'], "does not work on images .* unexpected keyword argument"),
    ],
)
def test_errors_say_what_to_do(tokens, message, flat, tmp_path):
    network = ["--network", "monai.networks.nets.DenseNet121", "--network_args", json.dumps(DENSENET)]
    folder = ["--folder", flat, "--spatial_size", "64"]
    with pytest.raises((ValueError, OSError), match=message):
        command(["diagnose", *network, *folder, "--out", str(tmp_path), *tokens])


def test_a_network_that_returns_a_dictionary_is_diagnosed_by_one_of_its_outputs(flat, tmp_path, monkeypatch):
    torch.manual_seed(0)
    torch.save(TwoOutputs().state_dict(), tmp_path / "weights.pt")
    common = ["--network", "tests.explain.nets.TwoOutputs", "--weights", str(tmp_path / "weights.pt")]
    common += ["--folder", flat, "--spatial_size", "64"]
    for head in ("cls", "seg"):
        one = ["--network_args", json.dumps({"only": head}), "--out", str(tmp_path / "one")]
        end = command(["diagnose", *common, "--head", head, "--out", str(tmp_path / "several")])
        with monkeypatch.context() as patch:
            draw_nothing(patch)
            assert command(["diagnose", *common, *one]) == end
        several, alone = (document(tmp_path / name) for name in ("several", "one"))
        assert several["findings"] == alone["findings"]
        assert several["layer"] == alone["layer"] == {"cls": "last", "seg": "decoder"}[head]
    with pytest.raises(ValueError, match=r"TwoOutputs returned several outputs: cls .*, seg .*; name one by head"):
        command(["diagnose", *common, "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="brings its own network; leave out --head"):
        command(["diagnose", "--run_dir", str(tmp_path), "--head", "cls"])


def test_networks_by_class_and_by_config(tmp_path):
    by_class = build_network("torch.nn.Linear", '{"in_features": 1, "out_features": 2}', None, "")
    assert isinstance(by_class, nn.Linear)
    config = tmp_path / "net.yaml"
    config.write_text(yaml.safe_dump({"mine": {"_target_": "torch.nn.ReLU"}, "other": 3}), encoding="utf-8")
    assert isinstance(build_network(None, None, str(config), "mine"), nn.ReLU)
    for arguments, message in (
        ((None, None, str(config), "network_def"), "has no 'network_def'; it has mine, other"),
        ((None, None, str(config), "other"), "gives a int, expected a torch.nn.Module"),
        (("torch.nn.ReLU", '{"a": 1}', None, ""), "does not take these arguments"),
        (("torch.nn.ReLU", "{a}", None, ""), "is not JSON"),
        (("ReLU", None, None, ""), "expected a dotted import path"),
    ):
        with pytest.raises(ValueError, match=message):
            build_network(*arguments)
    assert named(None, "normalizer") is None


def test_a_checkpoint_that_does_not_fit_is_refused_with_its_keys(tmp_path):
    path = tmp_path / "other.pt"
    torch.save(nn.Conv2d(1, 1, 3).state_dict(), path)
    with pytest.raises(ValueError, match=r"does not fit BatchNorm2d: missing \['num_batches_tracked'"):
        load_checkpoint(nn.BatchNorm2d(1), path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds no state dict"):
        load_checkpoint(nn.BatchNorm2d(1), path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="can not be read as weights"):
        load_checkpoint(nn.BatchNorm2d(1), path)


def items_with_air(count, air_of):
    """Items that hold their arrays: a head of noise, and air of a given value."""
    rng = np.random.default_rng(0)
    inside = np.zeros((1, 32, 32), np.float32)
    inside[:, 6:26, 8:24] = 1
    items = []
    for i in range(count):
        label = i % 2
        image = np.where(inside > 0, 1 + rng.random((1, 32, 32)), air_of(label, rng)).astype(np.float32)
        items.append({"image": image, "foreground": inside, "diagnosis": label, "patient": f"p{i}", "name": f"c{i}"})
    return items


def test_air_that_tells_the_class_is_a_shortcut_and_air_of_zero_is_none(monkeypatch):
    monkeypatch.setattr("scripts.diagnosis.inputs._file_size", lambda item: None)  # these items have no files
    sources, labels = ["one"] * 24, [0, 1] * 12
    for air_of, verdict in (
        (lambda label, rng: 0.3 * label + 0.1 * rng.random(), HOLDS),
        (lambda label, rng: 0.1 * rng.random(), DOES_NOT_HOLD),
        (lambda label, rng: 0.0, DOES_NOT_HOLD),
    ):
        samples = prepare(items_with_air(24, air_of), lambda item: item, images=8)
        rows = shortcut_rows(samples)
        assert len(samples.images) == 8
        assert len(samples.feature_labels) == 24
        finding = shortcut(samples, rows, sources, labels)
        assert finding.verdict == verdict
        assert (finding.figures["air_auc"] > 0.9) == (verdict == HOLDS)
        assert not any(row["flagged"] for row in rows if row["features"] != "air")
    assert samples.air_value == 0.0
    assert shortcut(samples, rows, [""] * 24, labels).verdict == CANNOT_TELL
    assert shortcut(samples, rows, sources, labels, pipeline_known=False).verdict == CANNOT_TELL
    assert shortcut(samples, rows, ["a", "b"] * 12, labels).verdict == HOLDS


def test_images_that_cannot_be_used_are_listed_and_shapes_have_to_agree(monkeypatch):
    monkeypatch.setattr("scripts.diagnosis.inputs._file_size", lambda item: None)
    items = items_with_air(4, lambda label, rng: 0.0)
    items[1]["image"] = items[1]["image"] * np.nan
    samples = prepare(items, lambda item: item)
    assert samples.left_out == [("c1", "the pipeline gives values that are not finite")]
    assert samples.names == ["c0", "c2", "c3"]
    items[2]["image"] = items[2]["image"][:, :30]
    items[2]["foreground"] = items[2]["foreground"][:, :30]
    with pytest.raises(ValueError, match="different shapes"):
        prepare(items, lambda item: item)
    with pytest.raises(ValueError, match="none of 1 images"):
        prepare(items[1:2], lambda item: item)


def subject(dims=2, **options):
    x = heads(dims, 24 if dims == 2 else 12)
    tumor = torch.zeros_like(x)
    tumor[0, 0, 5:8, 5:8] = 1
    samples = Samples(x, x != 0, False, tumor, ["a", "b"], [1, 0], ["s", "s"])
    options = {"normalizer": max_scaling, **options}
    return Subject(tiny(dims), samples, TumorLogOdds(), "gradcam", forward_kwargs={"output": "cls"}, **options)


def write_pictures(folder, name, swapped):
    """Ready heatmaps of `subject`, one an image, by a color map of matplotlib."""
    folder.mkdir()
    result = examine(subject())
    for case, heat in zip(("a", "b"), max_scaling(upsample(result.maps, (24, 24))), strict=True):
        colors = (colormaps[name](heat[0].numpy().T)[..., :3] * 255).astype(np.uint8)
        picture = Image.fromarray(np.ascontiguousarray(colors[..., ::-1] if swapped else colors))
        picture.resize((96, 96), Image.Resampling.BILINEAR).save(folder / f"{case}_heatmap.png")
    return folder


@pytest.mark.parametrize("swapped", [False, True])
def test_ready_pictures_of_jet_are_compared_with_the_map(tmp_path, swapped):
    folder = write_pictures(tmp_path / "pictures", "jet", swapped)
    found = {f.cause: f for f in examine(subject(pictures=folder)).findings}["swapped colors"]
    assert found.verdict == (HOLDS if swapped else DOES_NOT_HOLD)
    assert found.figures["pictures"] == 2


def test_volumes_are_diagnosed_and_drawn():
    result = examine(subject(3))
    assert result.holding == []
    assert result.maps.dim() == 5
    assert result.measures["map_change_with_more_air"] < 1e-4
    drawn = {cause: picture(result) for cause, picture in PICTURES.items()}
    for cause, png in drawn.items():
        if cause not in ("swapped colors", "source or air shortcut", "coarse grid"):  # nothing to show: not given
            assert png is not None, cause
            assert png.startswith(b"\x89PNG")


def test_a_layer_that_is_not_there_leaves_the_other_causes():
    wrong = subject()
    wrong.layer = "bottlenek"
    result = examine(wrong)
    assert [f.cause for f in result.holding] == ["unsuitable layer"]
    assert result.maps is None
    assert all(PICTURES[cause](result) is None for cause in ("gradient averaging", "unsuitable layer", "coarse grid"))
