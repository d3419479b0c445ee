"""The real nnU-Net, trained for a minute on drawn heads: results folder, logits, preprocessing (`make test-nnunet`)."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.explain.nnunet import NNUNet, load_nnunet
from scripts.explain.nnunet_images import prepare
from scripts.explain.targets import SegmentationRegion
from scripts.phantoms.head import draw_head, render, with_tumor

pytest.importorskip("nnunetv2", reason="the environment of make test-nnunet has nnU-Net")

SIZE, PATCH = 96, 64


def picture(seed):
    """A head with a bright tumor, (SIZE, SIZE) uint8, air above 0, and its mask."""
    rng = np.random.default_rng(seed)
    head = with_tumor(draw_head(rng), rng, 10.0, radius_mm=25)
    head = replace(head, tumors=tuple(replace(t, core_contrast=1.3, edema_contrast=1.2) for t in head.tumors))
    axis = ((np.arange(SIZE) - (SIZE - 1) / 2) * 2.2).astype(np.float32)
    drawn = render(head, axis, axis, np.array([10.0], np.float32))
    signal = np.where(drawn.head, drawn.signal, 0)[..., 0] + np.abs(rng.normal(0.03, 0.02, (SIZE, SIZE)))
    return np.clip(signal * 85, 1, 255).astype(np.uint8), drawn.tumor[..., 0].astype(np.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Results folder of nnU-Net's own planner, preprocessor and trainer."""
    root = tmp_path_factory.mktemp("nnunet")
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(root / name)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"}
    dataset = root / "raw" / "Dataset001_Heads"
    for name in ("imagesTr", "labelsTr"):
        (dataset / name).mkdir(parents=True)
    for k in range(12):
        image, mask = picture(k)
        Image.fromarray(image).save(dataset / "imagesTr" / f"head_{k:03d}_0000.png")
        Image.fromarray(mask).save(dataset / "labelsTr" / f"head_{k:03d}.png")
    description = {
        "channel_names": {"0": "FLAIR"},
        "labels": {"background": 0, "tumor": 1},
        "numTraining": 12,
        "file_ending": ".png",
    }
    (dataset / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.run.run_training import get_trainer_from_args

    extract_fingerprints([1], num_processes=1)
    plan_experiments([1])
    file = root / "preprocessed" / "Dataset001_Heads" / "nnUNetPlans.json"
    plans = json.loads(file.read_text(encoding="utf-8"))
    small = plans["configurations"]["2d"]
    small |= {"patch_size": [PATCH, PATCH], "batch_size": 4}
    kwargs = small["architecture"]["arch_kwargs"]
    stages = 4
    for key, value in kwargs.items():
        if isinstance(value, list):
            kwargs[key] = value[: stages - 1] if key == "n_conv_per_stage_decoder" else value[:stages]
    kwargs |= {"n_stages": stages, "features_per_stage": [8, 16, 32, 32]}
    file.write_text(json.dumps(plans), encoding="utf-8")
    preprocess([1], configurations=["2d"], num_processes=[1])
    trainer = get_trainer_from_args("1", "2d", "all", device=torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 2, 40, 2
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # augmentation in this process; the planner takes no 0
    trainer.run_training()
    return trainer.output_folder_base


def test_its_results_folder_is_explained_and_the_logits_are_those_of_its_predictor(trained):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    found = load_nnunet(trained)
    assert (found.configuration, found.patch_size, found.mirror_axes) == ("2d", (PATCH, PATCH), (0, 1))
    predictor = nnUNetPredictor(perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trained, ("all",), "checkpoint_final.pth")
    raw, mask = picture(100)
    properties = {"spacing": [999, 1, 1]}
    data, _, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        raw[None, None],
        None,
        properties,
        predictor.plans_manager,
        predictor.configuration_manager,
        predictor.dataset_json,
    )[:3]
    expected = torch.as_tensor(np.asarray(data), dtype=torch.float32)
    image = prepare(found, raw[None, None].astype(np.float32), (999, 1, 1)).image[0]
    torch.testing.assert_close(image, expected[:, 0], rtol=0, atol=1e-5)
    result = found.explain(image[None], "tumor", ["gradient", "hirescam"])
    logits = predictor.predict_sliding_window_return_logits(expected)[:, 0].float()  # stored in half precision
    torch.testing.assert_close(result.output[0], logits, rtol=2e-3, atol=2e-2)
    predicted = (result.output.argmax(1)[0] == 1).numpy()
    assert 2 * (predicted & (mask > 0)).sum() / (predicted.sum() + mask.sum()) > 0.5
    # The map is the gradient of those logits: nnU-Net's own network, in one piece over its windows.
    wanted = torch.zeros_like(image)
    piece = image[None].clone().requires_grad_()
    network = predictor.network.eval()
    flips = [(), (2,), (3,), (2, 3)]

    def mirrored(window):
        return torch.stack([network(window.flip(axes)).flip(axes) for axes in flips]).mean(0)

    stitched = found.inferer()(piece, mirrored)
    score = SegmentationRegion(channel=1, reduction="sum").bind(stitched.detach())(stitched)
    (wanted,) = torch.autograd.grad(score.sum(), piece)
    torch.testing.assert_close(result.gradient, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    ((_, layer),) = [key for key in result.maps if key[0] == "hirescam"]
    heat = result.maps["hirescam", layer][0, 0].numpy()
    assert heat[mask > 0].sum() / heat.sum() > 0.5


SPLINES = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
LINEAR = {**SPLINES, "order": 1}
CT = {"percentile_00_5": 20.0, "percentile_99_5": 900.0, "mean": 300.0, "std": 150.0}
PLANS = {  # schemes, masked, spacing of the plans, of the image, transposed
    "isotropic": (["ZScoreNormalization"], [True], [1.0, 1.2, 1.2], [2.0, 1.0, 1.0], [0, 1, 2]),
    "thick slices": (["ZScoreNormalization"], [False], [4.0, 1.1, 1.1], [5.0, 1.0, 0.9], [0, 1, 2]),
    "thick slices along x": (["CTNormalization"], [False], [5.0, 1.1, 1.1], [1.0, 0.9, 4.0], [2, 0, 1]),
    "slices": (
        ["ZScoreNormalization", "RescaleTo01Normalization"],
        [True, False],
        [1.5, 1.5],
        [3.0, 1.0, 1.0],
        [0, 1, 2],
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_preprocessing_and_the_way_back_are_nnunets_own(name):
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    schemes, masked, spacing, image_spacing, transpose = PLANS[name]
    rng = np.random.default_rng(0)
    image = np.zeros((len(schemes), 14, 30, 26), np.float32)
    image[:, 2:12, 4:27, 3:24] = rng.gamma(4, 90, (len(schemes), 10, 23, 21))
    image[:, 5:8, 10:14, 10:14] = 0  # a hole, which nnU-Net fills
    configuration = {
        "architecture": {}, "data_identifier": "a", "preprocessor_name": "DefaultPreprocessor", "batch_size": 1,
        "patch_size": [8] * len(spacing), "spacing": spacing, "normalization_schemes": schemes,
        "use_mask_for_norm": masked, "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": SPLINES, "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**LINEAR, "is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape", "resampling_fn_probabilities_kwargs": LINEAR,
    }  # fmt: skip
    back = np.argsort(transpose).tolist()
    intensities = {str(c): CT for c in range(len(schemes))}
    plans = PlansManager({
        "plans_name": "p", "dataset_name": "Dataset001_A", "transpose_forward": transpose, "transpose_backward": back,
        "configurations": {"c": configuration}, "foreground_intensity_properties_per_channel": intensities,
        "image_reader_writer": "SimpleITKIO", "label_manager": "LabelManager",
    })  # fmt: skip
    manager, properties = plans.get_configuration("c"), {"spacing": image_spacing}
    dataset = {"labels": {"background": 0, "tumor": 1}, "channel_names": {}}
    expected, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        image, None, properties, plans, manager, dataset
    )
    resampling = {"data": ("resample_data_or_seg_to_shape", SPLINES)}
    resampling["probabilities"] = ("resample_data_or_seg_to_shape", LINEAR)
    given = NNUNet(
        torch.nn.Identity(), "folder", "c", (8,) * len(spacing), tuple(spacing), (), ("a", "b")[: len(schemes)],
        {"background": (0, (0,)), "tumor": (1, (1,))}, tuple(schemes), tuple(masked), intensities, tuple(transpose),
        resampling,
    )  # fmt: skip
    ready = prepare(given, image, image_spacing)
    found = ready.image[0] if len(spacing) == 3 else ready.image.transpose(0, 1)
    assert tuple(found.shape) == tuple(expected.shape)
    assert found.shape[1:] != image.shape[1:]
    torch.testing.assert_close(found, torch.from_numpy(np.asarray(expected, np.float32)), rtol=0, atol=1e-5)
    logits = torch.from_numpy(rng.normal(size=(2, *found.shape[1:])).astype(np.float32))
    segmentation = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans, manager, plans.get_label_manager(dataset), properties, num_threads_torch=1
    )
    values = logits[None] if len(spacing) == 3 else logits.transpose(0, 1)
    mine = ready.restored(values).argmax(0)
    assert mine.shape == image.shape[1:]
    assert (mine == segmentation).mean() > 0.9999
    assert 0.1 < (mine > 0).mean() < 0.9
