from __future__ import annotations

import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, Invertd
from PIL import Image
from torch.utils.data import default_collate

from scripts.command.errors import sentence
from scripts.command.locations import CONFIGS
from scripts.data.preprocessing import (
    Pipeline,
    check_network_input,
    collate,
    make_preprocessing,
    make_training_pipeline,
    resolve_items,
)
from scripts.runs import folder as runs
from tests.transforms.images import disc, head, overlap
from transforms.labels import Finalized

SHAPE = (150, 120)
TUMOR = disc(SHAPE, 9, (60.0, 50.0))


@pytest.fixture
def folder(tmp_path):
    image, _ = head(SHAPE, 45)
    image[TUMOR] = 180
    Image.fromarray(image.T.astype(np.uint8)).save(tmp_path / "scan.png")
    Image.fromarray((TUMOR.T * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    Image.fromarray(np.full((40, 40), 9, np.uint8)).save(tmp_path / "blank.png")
    volume = np.zeros((*SHAPE, 3), np.float32)
    volume[:, :, 1] = image
    label = np.zeros((*SHAPE, 3), np.uint8)
    label[:, :, 1] = TUMOR * 4
    for codes in ("LPS", "RAS"):
        flip = slice(None, None, -1 if codes == "RAS" else 1)
        affine = np.diag([-1.0, -1, 2, 1]) if codes == "LPS" else np.diag([1.0, 1, 2, 1])
        for name, array in (("flair", volume), ("seg", label)):
            (tmp_path / codes).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array[flip, flip], affine), tmp_path / codes / f"{name}.nii.gz")
    return tmp_path


def items_of(folder):
    return {
        "png": {"image": str(folder / "scan.png"), "label": str(folder / "mask.png")},
        "LPS": {"image": str(folder / "LPS/flair.nii.gz"), "label": str(folder / "LPS/seg.nii.gz"), "slice": 1},
        "RAS": {"image": str(folder / "RAS/flair.nii.gz"), "label": str(folder / "RAS/seg.nii.gz"), "slice": 1},
    }


@pytest.mark.parametrize("kind", ["png", "LPS", "RAS"])
def test_every_source_gives_the_specified_input(folder, kind):
    item = make_preprocessing(96)(items_of(folder)[kind])
    image, inside = item["image"], item["foreground"] == 1
    assert image.dtype == torch.float32
    assert image.shape == item["label"].shape == item["foreground"].shape == (1, 96, 96)
    assert torch.equal((image != 0).as_tensor(), inside.as_tensor())
    assert float(image[inside].mean()) == pytest.approx(0, abs=0.1)
    assert float(image[inside].std()) == pytest.approx(1, abs=0.15)  # smoothing by the resize takes some
    assert item["label_coverage"] == 1.0
    assert item["tumor_voxels"] == TUMOR.sum()
    check_network_input(image[None], item["foreground"][None])


def test_a_png_and_a_slice_of_the_same_picture_are_the_same_input(folder):
    out = [make_preprocessing(96)(item)["image"].as_tensor() for item in items_of(folder).values()]
    assert torch.allclose(out[1], out[2], atol=1e-6)
    assert (out[0] - out[1]).abs().mean() < 0.01  # the PNG is rounded to 8 bits


@pytest.mark.parametrize("kind", ["png", "LPS", "RAS"])
@pytest.mark.parametrize("size", [96, 256, (256, 192)])
def test_inverse_restores_the_original_grid(folder, kind, size):
    pipeline = make_preprocessing(size)
    item = pipeline(items_of(folder)[kind])
    back = pipeline.inverse({"image": item["image"], "label": item["label"], "foreground": item["foreground"]})
    assert back["label"].shape == (1, *SHAPE)
    assert overlap(back["label"][0].numpy() > 0.5, TUMOR) > (0.93 if size == 96 else 0.98)
    if kind != "png":  # the plane's place in the patient is as it was: voxel (60, 50, 1) of the LPS volume
        lps = np.diag([-1.0, -1, 2, 1]) @ [60, 50, 1, 1]
        ras = np.diag([1.0, 1, 2, 1]) @ [SHAPE[0] - 1 - 60, SHAPE[1] - 1 - 50, 1, 1]
        assert np.allclose(back["label"].affine.numpy() @ [60, 50, 0, 1], lps if kind == "LPS" else ras, atol=1e-6)


def test_invertd_brings_a_batched_prediction_back(folder):
    pipeline = make_preprocessing(96)
    loader = DataLoader(
        [pipeline({"image": items_of(folder)["png"]["image"], "extra": "text"})], batch_size=1, num_workers=0
    )
    batch = next(iter(loader))
    batch["pred"] = MetaTensor((batch["foreground"].as_tensor() == 1).float())  # Invertd skips plain tensors
    (item,) = decollate_batch(batch)
    item = Invertd("pred", transform=pipeline, orig_keys="image", nearest_interp=True, to_tensor=True)(item)
    assert item["pred"].shape == (1, *SHAPE)
    assert overlap(item["pred"][0].numpy() > 0.5, head(SHAPE, 45)[1]) > 0.96


@pytest.mark.parametrize("kind", ["png", "LPS", "RAS"])
@pytest.mark.parametrize("size", [64, 96, 256, (256, 192)])
def test_without_tracing_the_result_is_the_same_bit_for_bit(folder, kind, size):
    item = {**items_of(folder)[kind], "diagnosis": 1}
    traced, plain = make_preprocessing(size)(item), make_preprocessing(size, trace=False)(item)
    for key in ("image", "label", "foreground"):
        assert isinstance(traced[key], MetaTensor)
        assert type(plain[key]) is torch.Tensor
        assert torch.equal(traced[key].as_tensor(), plain[key].to(traced[key].dtype))
    assert plain["label_coverage"] == traced["label_coverage"]
    final = [Compose([make_preprocessing(size, trace=trace), Finalized(2)])(item) for trace in (True, False)]
    for key, value in final[0].items():
        assert torch.equal(value, final[1][key]) if isinstance(value, torch.Tensor) else value == final[1][key]
        assert type(value) is type(final[1][key])
    with pytest.raises(RuntimeError, match="inverse"):
        make_preprocessing(size, trace=False).inverse(plain)


def test_without_tracing_a_volume_is_the_same_too(tmp_path):
    image, _ = head((40, 36, 30), 12)
    nib.save(nib.Nifti1Image(image[::-1], np.diag([1.0, 1, 2, 1])), tmp_path / "v.nii.gz")
    item = {"image": str(tmp_path / "v.nii.gz")}
    for size in ((32, 32, 24), (16, 16, 16), (64, 64, 48)):
        traced, plain = make_preprocessing(size)(item), make_preprocessing(size, trace=False)(item)
        assert torch.equal(traced["image"].as_tensor(), plain["image"])
        assert torch.equal(traced["foreground"].as_tensor(), plain["foreground"])


def test_3d_pipeline_and_its_inverse(tmp_path):
    image, outline = head((40, 36, 30), 12)
    nib.save(nib.Nifti1Image(image, np.diag([1.0, 1, 2, 1])), tmp_path / "v.nii.gz")
    pipeline = make_preprocessing((32, 32, 24))
    item = pipeline({"image": str(tmp_path / "v.nii.gz")})
    assert item["image"].shape == (1, 32, 32, 24)
    check_network_input(item["image"][None])
    back = pipeline.inverse({"image": item["image"], "foreground": item["foreground"]})
    assert back["foreground"].shape == (1, 40, 36, 30)
    assert np.allclose(back["image"].affine, np.diag([1.0, 1, 2, 1]))
    assert overlap(back["foreground"][0].numpy() > 0.5, outline) > 0.85


def test_a_users_own_mask_is_used(folder):
    mine = np.zeros(SHAPE, np.uint8)
    mine[40:100, 30:90] = 255
    Image.fromarray(mine.T).save(folder / "mine.png")
    item = make_preprocessing(60, margin=0)({**items_of(folder)["png"], "foreground": str(folder / "mine.png")})
    assert item["foreground"].sum() == 60 * 60
    cut = {**items_of(folder)["png"], "foreground": str(folder / "mine.png")}
    mine[:60] = 0
    Image.fromarray(mine.T).save(folder / "mine.png")
    item = make_preprocessing(60)(cut)
    assert item["label_coverage"] == pytest.approx(TUMOR[60:].sum() / TUMOR.sum())


def test_finalized_items_have_one_form_with_and_without_masks(folder):
    png = items_of(folder)["png"]
    data = [
        {**png, "patient": "p1", "source": "a"},
        {"image": png["image"], "diagnosis": 1, "group": 7, "note": "dropped"},
        {"image": png["image"]},
    ]
    pipeline = make_training_pipeline(64, augment=False, num_classes=2)
    batch = collate([pipeline(item) for item in data])
    assert default_collate([pipeline(item) for item in data]).keys() == batch.keys()
    assert batch["has_mask"].tolist() == [True, False, False]
    assert batch["diagnosis"].tolist() == [1, 1, -1]
    assert batch["label"].flatten(1).any(1).tolist() == [True, False, False]
    assert batch["patient"] == ["p1", "", ""]
    assert batch["group"] == ["", "7", ""]
    assert batch["source"] == ["a", "unknown", "unknown"]
    assert batch["name"] == ["scan"] * 3
    assert batch["label_coverage"].tolist() == [1, 1, 1]
    assert type(batch["image"]) is torch.Tensor
    assert pipeline(items_of(folder)["LPS"])["name"] == "flair_s001"


@pytest.mark.parametrize(
    ("num_classes", "facts", "expected"),
    [
        (2, {}, 1),
        (4, {}, -1),
        (4, {"diagnosis": 3}, 3),
        (None, {"diagnosis": 3}, 3),
        (None, {}, "two classes: give 'diagnosis'"),
        (2, {"diagnosis": 3}, "diagnosis 3 is not a class"),
        (2, {"diagnosis": "glioma"}, "diagnosis 'glioma' is not a class"),
        (2, {"diagnosis": 0}, f"no tumor\\), but its mask has {TUMOR.sum()} tumor voxels"),
    ],
)
def test_diagnosis_is_taken_derived_or_refused(folder, num_classes, facts, expected):
    pipeline = make_training_pipeline(64, augment=False, num_classes=num_classes)
    item = {**items_of(folder)["png"], **facts}
    if isinstance(expected, int):
        assert pipeline(item)["diagnosis"] == expected
    else:
        with pytest.raises(ValueError, match=expected):
            pipeline(item)


def dataset(items, folder, size, augment=False, cache=True):
    """The training dataset of the shipped config; or the same items and pipeline without a cache."""
    values = {
        "train#dataset#data": resolve_items(items, folder),
        "train#dataset#slices": None,
        "train#dataset#progress": False,
        "augment": augment,
        "num_classes": 2,
        "spatial_size": [size, size],
        "cache_dir": None,
    }
    parser = ConfigParser(runs.merged_config([CONFIGS / "train.yaml"], values))
    if cache:
        return parser.get_parsed_content("train#dataset")
    return Dataset(values["train#dataset#data"], parser.get_parsed_content("train#preprocessing"))


def test_dataset_caches_the_deterministic_part_and_seeds_the_rest(folder):
    items = [
        {"image": "scan.png", "label": "mask.png"},
        {"image": "LPS/flair.nii.gz", "slice": 1, "diagnosis": 0},
        {"image": "RAS/flair.nii.gz", "slice": 1, "diagnosis": 0},
    ]
    make = [dataset(items, folder, 64, augment=True, cache=cache) for cache in (True, False)]
    for data in make:
        data.transform.set_random_state(seed=3)
    assert isinstance(make[0], CacheDataset)
    assert type(make[0]._cache[0]["image"]) is torch.Tensor  # finalized: everything before the first random transform
    for index in range(3):
        assert torch.equal(make[0][index]["image"], make[1][index]["image"])
    assert not torch.equal(make[0][0]["image"], make[0][0]["image"])  # another draw
    assert [make[0][i]["name"] for i in range(3)] == ["scan", "LPS_flair_s001", "RAS_flair_s001"]
    plain = dataset(items[:1], folder, 64)
    assert torch.equal(plain[0]["image"], plain[0]["image"])


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"image": "gone.png"}, "1 files of the datalist do not exist, first: .*gone.png"),
        ({"image": "blank.png"}, r"blank.png: no foreground found: the image is constant"),
        ({"image": "scan.png", "label": "blank.png"}, "mask .*blank.png has a brightest value of 9"),
        ({"img": "scan.png"}, "item 0 of the datalist has no 'image'; its keys: \\['img'\\]"),
        ({"image": "LPS/flair.nii.gz"}, "LPS/flair.nii.gz is a volume of 3 slices"),
        ({"image": "LPS/flair.nii.gz", "slice": 0}, "flair.nii.gz, slice 0: no foreground found"),
    ],
)
@pytest.mark.parametrize("cache", [True, False])
def test_faulty_items_stop_with_one_sentence(folder, item, reason, cache):
    with pytest.raises((ValueError, RuntimeError)) as caught:  # of the config in MONAI's wrapper
        _ = dataset([item], folder, 64, cache=cache)[0]
    text = sentence(caught.value)
    assert re.search(reason, text)
    assert "applying transform" not in text
    assert "\n" not in text


def test_collate_names_cases_that_do_not_fit(folder):
    a = make_training_pipeline(64, augment=False)({"image": items_of(folder)["png"]["image"], "name": "a"})
    b = make_training_pipeline(32, augment=False)({"image": items_of(folder)["png"]["image"], "name": "b"})
    with pytest.raises(ValueError, match=r"'image' of case a has shape \(1, 64, 64\), of b \(1, 32, 32\)"):
        collate([a, b])
    with pytest.raises(ValueError, match=r"cases a and b differ in their keys: \['extra'\]"):
        collate([a, {**a, "name": "b", "extra": 1}])


def test_paths_are_joined_and_names_told_apart():
    with pytest.raises(ValueError, match=r"2 files of the datalist do not exist, first: root/a/flair\.nii"):
        resolve_items([{"image": ["a/flair.nii", "a/t1.nii"]}], "root")


def test_bundle_config_builds_it_and_extra_keys_pass(folder):
    parser = ConfigParser(
        {"preprocessing": {"_target_": "scripts.data.preprocessing.make_preprocessing", "spatial_size": [64, 64]}}
    )
    pipeline = parser.get_parsed_content("preprocessing")
    assert isinstance(pipeline, Pipeline)
    path = items_of(folder)["png"]["image"]
    item = pipeline({"image": path, "image_path": path, "device": "cpu", "result_extension": ".nii.gz"})
    assert item["device"] == "cpu"
    assert torch.equal(item["image"].as_tensor(), make_preprocessing(64)({"image": path})["image"].as_tensor())


def test_network_input_is_checked():
    inside = torch.from_numpy(disc((16, 16), 5))[None, None]
    texture = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 16, 16)).astype(np.float32))
    good = texture * inside
    check_network_input(good)
    check_network_input(good, inside)
    check_network_input(texture, torch.ones_like(inside))  # a head that fills the image, said so
    shifted = torch.where(inside, texture, -1.03)
    with pytest.raises(ValueError, match=r"no voxel is exactly 0, its corner is -1\.03"):
        check_network_input(shifted)
    with pytest.raises(ValueError, match="item 1: air is not exactly 0"):
        check_network_input(torch.cat([good, shifted]), torch.cat([inside, inside]))
    holed = good.clone()
    holed[0, 0, 8, 8] = 0
    with pytest.raises(ValueError, match="1 foreground voxels are exactly 0"):
        check_network_input(holed, inside)
    with pytest.raises(ValueError, match="foreground is empty"):
        check_network_input(good * 0)
    with pytest.raises(ValueError, match=r"foreground mean 1\d\d, .*normalize first"):
        check_network_input((texture + 150) * inside)
    with pytest.raises(ValueError, match="expected float"):
        check_network_input(good.to(torch.uint8))


def test_real_images_of_every_kind():
    root = os.environ.get("TUMORLENS_DATA")
    if not root:
        pytest.skip("real images: set TUMORLENS_DATA")
    brisc, brats = Path(root) / "brisc2025", Path(root) / "brats2013/brats_2013_pat0003_1"
    items = []
    for name in ("glioma", "meningioma", "pituitary", "no_tumor"):
        for path in sorted((brisc / "images" / name).glob("*.jpg"))[::300]:
            mask = brisc / "masks" / f"{path.stem}.png"
            items.append({"image": str(path), **({"label": str(mask)} if mask.exists() else {})})
    items.append(
        {"image": str(brats / "Flair_subtrMeanDivStd.nii.gz"), "label": str(brats / "OTMultiClass.nii.gz"), "slice": 85}
    )
    items.append({"image": str(Path(root) / "healthy/torchio_fernando_t2.nii.gz"), "slice": 12})
    data = dataset(items, "/", 128)
    batch = collate([data[i] for i in range(len(data))])
    check_network_input(batch["image"], batch["foreground"])
    assert batch["label_coverage"].min() >= 0.99
    assert batch["has_mask"].sum() == len([i for i in items if "label" in i])
