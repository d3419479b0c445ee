"""A results folder of nnU-Net v2 is explained as it lies on disk, and nothing in it is run."""

from __future__ import annotations

import json
import os

import pytest
import torch

from scripts.explain.nnunet import load_nnunet
from scripts.explain.targets import SegmentationRegion
from tests.explain.nnunet_results import KWARGS, make_results, plan, plans

pytest.importorskip("dynamic_network_architectures.architectures.unet")


@pytest.fixture
def results(tmp_path):
    return make_results(tmp_path)


def test_the_folder_is_explained_as_the_network_that_was_saved(results):
    folder, network, _ = results
    found = load_nnunet(folder)
    assert (found.patch_size, found.spacing_mm, found.mirror_axes) == ((16, 16), (1.0, 1.0), (0, 1))
    assert found.regions == {"background": (0, (0,)), "edema": (1, (1,)), "tumor": (2, (2,))}
    x = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    network.decoder.deep_supervision = False
    with torch.no_grad():
        expected = network.eval()(x)
        flips = [(), (2,), (3,), (2, 3)]
        mirrored = torch.stack([network(x.flip(axes)).flip(axes) for axes in flips]).mean(0)
    plain = found.explain(x, "tumor", ["gradient", "hirescam"], mirrored=False)
    torch.testing.assert_close(plain.output, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.explain(x, "tumor").output, mirrored, rtol=0, atol=1e-6)
    image = x.clone().requires_grad_()
    output = network(image)
    score = SegmentationRegion(channel=2, reduction="sum").bind(output.detach())(output)
    (gradient,) = torch.autograd.grad(score.sum(), image)
    torch.testing.assert_close(plain.gradient, gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()))
    ((_, layer),) = [key for key in plain.maps if key[0] == "hirescam"]
    assert layer.startswith("decoder.stages.1")
    large = found.explain(torch.randn(1, 1, 40, 24), "edema", "gradient")
    assert large.maps["gradient", "input"].shape == (1, 1, 40, 24)


def test_regions_have_their_own_channels(results):
    folder, _, _ = results
    labels = {"background": 0, "whole": [1, 2], "core": 2, "rest": 3}
    dataset = {"channel_names": {"0": "FLAIR"}, "labels": labels, "regions_class_order": [1, 2, 3]}
    (folder / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    found = load_nnunet(folder, 0)
    assert found.regions == {"whole": (0, (1, 2)), "core": (1, (2,)), "rest": (2, (3,))}
    with pytest.raises(ValueError, match="no region 'cor'; there are whole, core, rest"):
        found.explain(torch.zeros(1, 1, 16, 16), "cor")
    with pytest.raises(
        ValueError, match=r"expected \(B, 1, 2 spatial axes\) with the channels FLAIR, got \(1, 2, 16, 16\)"
    ):
        found.explain(torch.zeros(1, 2, 16, 16), "core")


def test_regions_that_overlap_are_predicted_by_their_own_logits():
    nested = plan(regions={"whole": (0, (1, 2)), "core": (1, (2,))}, by_region=True)
    logits = torch.tensor([[[1.0, 2.0, -1.0]], [[3.0, -1.0, -2.0]]])[None]  # (1, 2, 1, 3)
    assert nested.target("whole").region(logits).tolist() == [[[True, True, False]]]
    assert nested.target("core").region(logits).tolist() == [[[True, False, False]]]
    labels = plan(regions={"background": (0, (0,)), "tumor": (1, (1,))})
    assert labels.target("tumor").region(logits).tolist() == [[[True, False, False]]]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("run-by-a-pickle",)


def test_nothing_of_the_folder_is_run(results, tmp_path, monkeypatch):
    folder, _, checkpoint = results
    monkeypatch.chdir(tmp_path)
    torch.save({**checkpoint, "logging": Evil()}, folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(ValueError, match="cannot be read safely"):
        load_nnunet(folder)
    assert not (tmp_path / "run-by-a-pickle").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"network_class_name": "os.system"}, "'os.system' is none of PlainConvUNet"),
        ({"network_class_name": "subprocess.PlainConvUNet"}, "nothing else is loaded"),
        ({"arch_kwargs": {**KWARGS, "nonlin": "os.system"}}, r"'os\.system' is no layer of torch\.nn"),
        ({"arch_kwargs": {**KWARGS, "nonlin": "torch.nn.init.ones_"}}, "is no layer of torch.nn"),
        ({"arch_kwargs": {**KWARGS, "n_stages": 2}}, "PlainConvUNet cannot be built"),
        ({"arch_kwargs": {**KWARGS, "features_per_stage": [4, 6, 10]}}, "does not fit"),
    ],
)
def test_plans_that_name_anything_else_are_refused_in_one_sentence(results, changed, message):
    folder, _, _ = results
    (folder / "plans.json").write_text(json.dumps(plans(**changed)), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        load_nnunet(folder)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named(results, tmp_path):
    folder, _, checkpoint = results
    with pytest.raises(FileNotFoundError, match=r"has no plans\.json"):
        load_nnunet(tmp_path)
    with pytest.raises(FileNotFoundError, match="fold_3"):
        load_nnunet(folder, 3)
    torch.save({"state_dict": {}}, folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(ValueError, match="holds no 'network_weights'"):
        load_nnunet(folder)
    torch.save({**checkpoint, "init_args": {"configuration": "3d"}}, folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(ValueError, match="no configuration '3d'; there are base, 2d"):
        load_nnunet(folder)
    (folder / "dataset.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is no JSON"):
        load_nnunet(folder)


def rewrite(folder, name, **changed):
    """Change entries of a file of the folder."""
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps({**content, **changed}), encoding="utf-8")


@pytest.mark.parametrize(
    ("configurations", "message"),
    [
        ({"2d": {"inherits_from": "2d"}}, "no configuration '2d'; there are 2d"),
        ({"2d": {"inherits_from": "base"}}, "no configuration 'base'; there are 2d"),
        ({}, "no configuration '2d'; there are none"),
        ({"2d": {"previous_stage": "3d_lowres"}}, "'2d' is the second stage of a cascade"),
        ({"2d": {"patch_size": [16, 16]}}, "'2d' has no 'architecture'; plans of nnU-Net 2.5"),
    ],
)
def test_configurations_that_say_too_little_are_refused(results, configurations, message):
    folder, _, _ = results
    rewrite(folder, "plans.json", configurations=configurations)
    with pytest.raises(ValueError, match=message):
        load_nnunet(folder)


def test_what_the_plans_say_is_kept(results):
    folder, _, checkpoint = results
    weights = {f"module._orig_mod.{key}": value for key, value in checkpoint["network_weights"].items()}
    changed = {**checkpoint, "network_weights": weights, "init_args": {}, "inference_allowed_mirroring_axes": None}
    (folder / "fold_all").mkdir()
    torch.save(changed, folder / "fold_all" / "other.pth")
    resampling = {f"resampling_fn_{kind}": f"by_{kind}" for kind in ("data", "probabilities")}
    configuration = {**plans()["configurations"]["base"], **resampling, "resampling_fn_data_kwargs": {"order": 1}}
    properties = {"0": {"mean": 1.0}}
    rewrite(
        folder, "plans.json", configurations={"2d": configuration}, transpose_forward=[1, 0, 2],
        image_reader_writer="NibabelIO", foreground_intensity_properties_per_channel=properties,
    )  # fmt: skip
    rewrite(folder, "dataset.json", file_ending=".png")
    found = load_nnunet(str(folder), checkpoint="other.pth")
    assert (found.configuration, found.mirror_axes, found.ending, found.reader) == ("2d", (), ".png", "NibabelIO")
    assert found.resampling == {"data": ("by_data", {"order": 1}), "probabilities": ("by_probabilities", {})}
    assert (found.transpose, found.intensities, found.by_region) == ((1, 0, 2), properties, False)
    assert (found.schemes, found.masked) == (("ZScoreNormalization",), (True,))
    assert not found.network.training
    assert load_nnunet(folder, "all", "other.pth").folder == folder
    with pytest.raises(FileNotFoundError, match=r"has no fold_\*/none\.pth"):
        load_nnunet(folder, checkpoint="none.pth")


def test_labels_are_numbered_by_value_and_channels_by_number(results):
    folder, _, _ = results
    dataset = {
        "modality": {"0": "FLAIR"}, "labels": {"core": 2, "background": 0, "edema": 1, "ignore": 3},
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    found = load_nnunet(folder)
    assert found.regions == {"core": (2, (2,)), "background": (0, (0,)), "edema": (1, (1,))}
    assert found.channels == ("FLAIR",)
    assert (found.reader, found.ending, found.transpose) == ("", ".nii.gz", (0, 1, 2))
    names = {str(number): f"c{number}" for number in (10, 2, 0, 1, *range(3, 10))}
    rewrite(folder, "dataset.json", modality=names)
    kwargs = {**KWARGS, "input_channels": 11}
    (folder / "plans.json").write_text(json.dumps(plans(arch_kwargs=kwargs)), encoding="utf-8")
    with pytest.raises(ValueError, match="does not fit"):
        load_nnunet(folder)  # built for eleven channels, saved for one
    rewrite(folder, "dataset.json", labels={"edema": 1})
    with pytest.raises(ValueError, match="'labels' has no 'background'"):
        load_nnunet(folder)
    (folder / "dataset.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="expected an object, got list"):
        load_nnunet(folder)


def test_the_score_of_a_region_is_summed():
    logits = torch.tensor([[[1.0, 2.0, -1.0]], [[3.0, 5.0, -2.0]]])[None]
    labels = plan(regions={"background": (0, (0,)), "tumor": (1, (1,))})
    assert labels.target("tumor")(logits).tolist() == [8.0]
    assert labels.channel("tumor") == 1
    nested = plan(regions={"whole": (0, (1, 2)), "core": (1, (2,))}, by_region=True)
    assert nested.target("whole")(logits).tolist() == [3.0]
    with pytest.raises(ValueError, match="expects a dense output"):
        nested.target("whole").region(torch.zeros(1, 2))
    inferer = labels.inferer(0.25)
    assert (tuple(inferer.roi_size), inferer.overlap) == ((4, 4, 4), 0.75)
