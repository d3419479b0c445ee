"""A stock DynUNet is taken over as it is, explained as it is, and trained on."""

from __future__ import annotations

import hashlib

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.networks.nets import DynUNet
from PIL import Image

from scripts.__main__ import main as command
from scripts.adoption import adopt
from scripts.command.locations import CONFIGS
from scripts.runs import folder as runs
from scripts.runs.network_overlay import write_network_overlay
from scripts.training import train
from tests.scans import head, oblique, save, save_picture

ARGUMENTS = {
    "kernel_size": [3, 3, 3, 3],
    "strides": [1, 2, 2, 2],
    "upsample_kernel_size": [2, 2, 2],
    "filters": [4, 8, 8, 8],
}


def stock(out_channels=2, dims=2, in_channels=1, seed=0, **changes):
    torch.manual_seed(seed)
    return DynUNet(dims, in_channels, out_channels, **{**ARGUMENTS, **changes}).eval()


def images(dims=2, channels=1):
    generator = torch.Generator().manual_seed(3)
    return torch.randn((2, channels, *[32] * dims), generator=generator)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "stock.pt"
    torch.save(stock().state_dict(), path)
    return path


@pytest.mark.parametrize("dims", [2, 3])
def test_the_adopted_network_segments_as_the_stock_one(tmp_path, dims):
    network = stock(dims=dims, in_channels=2, out_channels=3, strides=[1, 2, 1, 2], upsample_kernel_size=[2, 1, 2])
    torch.save(network.state_dict(), tmp_path / "a.pt")
    adopted, definition = adopt.adopt(tmp_path / "a.pt", tumor_channel=2)
    x = images(dims, 2)
    with torch.no_grad():
        assert torch.allclose(adopted.eval()(x), network(x)[:, [0, 2]], atol=1e-5)
    assert definition["filters"] == [4, 8, 8, 8]
    assert definition["strides"] == [[1] * dims, [2] * dims, [1] * dims, [2] * dims]
    stock_keys = {key for key in network.state_dict() if not key.startswith("skip_layers.")}
    assert stock_keys <= adopted.state_dict().keys()
    assert {key.split(".")[0] for key in adopted.state_dict().keys() - stock_keys} == {
        "head",
        "threshold",
        "temperature",
        "fixed_part",
        "mask_threshold",
    }


def test_the_head_is_drawn_by_the_seed_and_torch_is_not_left_seeded(checkpoint):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (adopt.adopt(checkpoint, seed=seed)[0].state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    heads = [key for key in first if key.startswith("head.") and first[key].ndim > 1]
    assert heads
    for key in heads:
        assert torch.equal(first[key], again[key])
        assert not torch.equal(first[key], other[key])


def test_instance_normalization_without_scale_and_shift_is_adopted_as_it_is(tmp_path):
    network = stock(norm_name=("INSTANCE", {"affine": False}))
    torch.save(network.state_dict(), tmp_path / "a.pt")
    adopted, _ = adopt.adopt(tmp_path / "a.pt")
    with torch.no_grad():
        assert torch.allclose(adopted.eval()(images()), network(images()), atol=1e-5)


def test_the_number_of_classes_is_that_of_the_list_or_said(checkpoint, small_data, tmp_path, capsys):
    arguments = ["adopt", str(checkpoint), "--spatial_size", "32", "32", "--run_dir", str(tmp_path / "run")]
    data = ["--dataset_dir", str(small_data.dataset_dir), "--datalist_file", str(small_data.datalist_file)]
    with pytest.raises(ValueError, match=r"--num_classes 3: .*datalist\.json has 2 classes"):
        command([*arguments, *data, "--num_classes", "3"])
    command(arguments)
    assert "the head has 2 classes; for a list with more, adopt with" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3},
        lambda s: {"network": {"weights": {f"net._orig_mod.{k}": v for k, v in s.items()}}},
        lambda s: {f"model.{k}": v.half() for k, v in s.items()} | {"loss.weight": torch.ones(2)},
    ],
)
def test_checkpoints_in_wrappers_and_with_prefixes_are_read(tmp_path, wrap):
    state = stock().state_dict()
    torch.save(wrap(state), tmp_path / "a.pt")
    adopted, _ = adopt.adopt(tmp_path / "a.pt")
    own = adopted.state_dict()
    assert all(torch.allclose(own[k], v, atol=1e-3) for k, v in state.items() if not k.startswith("skip_layers."))
    assert all(value.dtype == torch.float32 for value in own.values())


def test_a_sigmoid_output_becomes_two_channels_of_the_same_probability(tmp_path):
    network = stock(out_channels=1)
    torch.save(network.state_dict(), tmp_path / "a.pt")
    adopted, definition = adopt.adopt(tmp_path / "a.pt")
    assert definition["out_channels"] == 2
    with torch.no_grad():
        ours = torch.softmax(adopted.eval()(images()), 1)[:, 1:]
        assert torch.allclose(ours, torch.sigmoid(network(images())), atol=1e-6)


def test_deep_supervision_heads_are_left_out(tmp_path):
    network = stock(deep_supervision=True, deep_supr_num=1)
    torch.save(network.state_dict(), tmp_path / "a.pt")
    adopted, _ = adopt.adopt(tmp_path / "a.pt")
    with torch.no_grad():
        assert torch.allclose(adopted.eval()(images()), network(images()), atol=1e-5)


def test_normalization_over_the_foreground_is_taken_on_wish(checkpoint):
    plain, _ = adopt.adopt(checkpoint)
    masked, definition = adopt.adopt(checkpoint, foreground_norm=True, num_classes=4)
    assert definition["normalization"] == "foreground"
    assert masked.num_classes == 4
    own, other = masked.state_dict(), plain.state_dict()
    assert all(torch.equal(own[k], other[k]) for k in own if not k.startswith(("head.", "fixed_part")))
    x = images()
    x[:, :, :8] = 0
    padded = torch.nn.functional.pad(x, (0, 0, 16, 0))
    with torch.no_grad():
        for network, same in ((masked.eval(), True), (plain.eval(), False)):
            assert torch.allclose(network(padded)[:, :, 16:], network(x), atol=1e-3) is same


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        (lambda: stock(res_block=True), {}, "residual blocks"),
        (lambda: stock(norm_name="batch"), {}, "batch normalization"),
        (lambda: torch.nn.Conv2d(1, 2, 3), {}, "holds no DynUNet"),
        (lambda: stock(out_channels=4), {}, "give tumor_channel, 1 to 3, got None"),
        (lambda: stock(out_channels=4), {"tumor_channel": 4}, "got 4"),
        (lambda: stock(), {"evidence_levels": 9}, "evidence_levels"),
    ],
)
def test_what_can_not_be_adopted_is_refused(tmp_path, network, arguments, message):
    torch.save(network().state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message):
        adopt.adopt(tmp_path / "a.pt", **arguments)


def test_files_that_are_no_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*a\.pt"):
        adopt.read_stock(tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"a\.pt cannot be read"):
        adopt.read_stock(tmp_path / "a.pt")


def test_the_run_is_ready_for_stage_2(checkpoint, tmp_path):
    run = tmp_path / "run"
    command(["adopt", str(checkpoint), "--run_dir", str(run), "--spatial_size", "32", "32", "--num_classes", "3"])
    parser = ConfigParser()
    parser.read_config(
        [str(CONFIGS / "train.yaml"), str(CONFIGS / "stage2_classification.yaml"), str(run / "adopted.yaml")]
    )
    parser["run_dir"], parser["num_classes"], parser["device"] = str(run), 3, "cpu"
    network = parser.get_parsed_content("network")
    state = stock().state_dict()
    assert all(torch.equal(network.state_dict()[k], v) for k, v in state.items() if not k.startswith("skip_layers."))
    assert parser.get_parsed_content("spatial_size") == [32, 32]
    loaded, config, folder = runs.load_run(run)
    assert (loaded.num_classes, config["spatial_size"], folder.name) == (3, [32, 32], "stage1_segmentation")
    with pytest.raises(ValueError, match="holds stage1_segmentation already"):
        command(["adopt", str(checkpoint), "--run_dir", str(run), "--spatial_size", "32", "32"])
    with pytest.raises(ValueError, match=r"multiples of the total stride \[8, 8\], got \[30, 32\]"):
        command(["adopt", str(checkpoint), "--run_dir", str(tmp_path / "b"), "--spatial_size", "30", "32"])


def test_stages_2_and_3_train_the_adopted_network(checkpoint, small_data, tmp_path):
    run = tmp_path / "run"
    command(
        ["adopt", str(checkpoint), "--run_dir", str(run), "--spatial_size", "64", "64", "--train", "--foreground_norm",
         "--dataset_dir", str(small_data.dataset_dir), "--datalist_file", str(small_data.datalist_file),
         "--overlay", str(small_overlay(tmp_path))]
    )  # fmt: skip
    adopted = torch.load(run / "stage1_segmentation" / "model.pt")
    second, third = (torch.load(run / stage / "model.pt") for stage in runs.STAGES[1:])
    frozen = [k for k in adopted if not k.startswith(("head.", "threshold", "temperature", "fixed_part"))]
    assert all(torch.equal(adopted[k], second[k]) for k in frozen)
    assert adopted.keys() == third.keys()
    assert yaml.safe_load((run / "network.yaml").read_text(encoding="utf-8"))["spatial_size"] == [64, 64]


def trained(run, data, *overlays):
    train.train(run, list(overlays), dataset_dir=str(data.dataset_dir), datalist_file=str(data.datalist_file))


def test_an_adopted_network_trained_later_keeps_its_stage_1(checkpoint, small_data, tmp_path, capsys):
    run, short = tmp_path / "my run", small_overlay(tmp_path)
    command(["adopt", str(checkpoint), "--run_dir", str(run), "--spatial_size", "64", "64"])
    assert (
        f"python -m scripts train --run_dir '{run}' --overlay '{run}/adopted.yaml' --dataset_dir DIR"
        in capsys.readouterr().out
    )
    manifest = runs.read_manifest(run / "stage1_segmentation")
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert (manifest["adopted"], manifest["adopted_sha256"]) == (str(checkpoint), digest)
    before = (run / "stage1_segmentation" / "model.pt").read_bytes()
    with pytest.raises(ValueError, match=r"adopted from .*stock\.pt, and the config describes another one .*"
                       r"network_def#strides.*add --overlay .*adopted\.yaml"):  # fmt: skip
        trained(run, small_data, CONFIGS / "smoke.yaml")
    assert not (run / "stage2_classification").exists()
    trained(run, small_data, run / "adopted.yaml", short)
    assert (run / "stage1_segmentation" / "model.pt").read_bytes() == before
    assert runs.trained_tasks(run / "stage3_joint") == {"segmentation", "classification"}
    overlay = yaml.safe_load((run / "network.yaml").read_text(encoding="utf-8"))
    assert overlay["trained_tasks"] == ["classification", "segmentation"]
    alone = write_network_overlay(run / "stage1_segmentation", {"0": "no_tumor", "1": "tumor"})
    assert yaml.safe_load(alone.read_text(encoding="utf-8"))["trained_tasks"] == ["segmentation"]
    assert runs.load_run(run / "stage1_segmentation").network.trained_tasks == ("segmentation",)


def small_overlay(folder):
    """The settings of the smoke overlay that do not describe the network."""
    values = yaml.safe_load((CONFIGS / "smoke.yaml").read_text(encoding="utf-8"))
    path = folder / "short.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if "network_def" not in k and k != "spatial_size"}))
    return path


def test_a_stock_network_is_explained_as_it_is(checkpoint, tmp_path):
    volume = save(tmp_path / "scan.nii.gz", head(), oblique(), "SRA")
    picture = save_picture(tmp_path / "slice.png", head()[:, :, 4])
    for path, more in ((volume, ("--slice", "4")), (volume, ()), (picture, ("--method", "hirescam"))):
        out = tmp_path / "out"
        command(
            ["adopt", str(checkpoint), "--spatial_size", "32", "32", "--explain", str(path), "--out", str(out), *more]
        )
        method = "hirescam" if more[:1] == ("--method",) else "gradcam"
        number = "_s004" if more[:1] == ("--slice",) else ""
        name = f"{path.name.split('.')[0]}{number}_{method}_decoder_last"
        written = nib.load(out / f"{name}.nii.gz")
        assert np.asarray(Image.open(out / f"{name}.png")).ndim == 3
        values = written.get_fdata()
        assert 0.5 < values.max() <= 1
        if path is volume:
            assert written.shape == nib.load(volume).shape
            assert np.allclose(written.affine, nib.load(volume).affine)
            assert sum(plane.any() for plane in values) == 1  # SRA: slices along the first axis
            if more:
                assert values[4].any()


def test_nothing_to_do_is_said(checkpoint):
    with pytest.raises(ValueError, match="nothing to do"):
        command(["adopt", str(checkpoint), "--spatial_size", "32", "32"])
    with pytest.raises(ValueError, match="--train needs"):
        command(["adopt", str(checkpoint), "--spatial_size", "32", "32", "--train", "--run_dir", "x"])
