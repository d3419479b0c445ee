"""Regions: schemes by name, what a datalist states, and masks of label values on their way through the pipeline."""

from __future__ import annotations

import json
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.__main__ import main
from scripts.data import arguments
from scripts.data.datalists import nifti_cases, schema
from scripts.data.datalists.building import chosen_regions
from scripts.data.datalists.regions import SCHEMES, check_regions, fitting
from scripts.data.datalists.slices import SliceRule
from scripts.data.preprocessing import make_training_pipeline, resolve_items
from scripts.phantoms.sequences import phantom_case
from scripts.runs.folder import stage_items
from scripts.runs.regions import stated
from tests.scans import head
from transforms.masks import region_masks


def made(pairs, regions) -> dict[str, Any]:
    rule = SliceRule(planes=(), regions=regions)
    datalist, _ = nifti_cases(pairs, rule=rule, patient_pattern=r"v\d+", channels=("FLAIR", "T1ce"), progress=False)
    return datalist


def test_the_arguments_name_every_scheme():
    assert tuple(SCHEMES) == arguments.SCHEMES


def test_schemes_state_what_the_challenges_state():
    assert SCHEMES["brats2017"] == {"whole_tumor": [1, 2, 4], "tumor_core": [1, 4], "enhancing_tumor": [4]}
    assert SCHEMES["msd_task01"]["tumor_core"] == [2, 3] != SCHEMES["brats2023"]["tumor_core"] == [1, 3]
    for name, regions in SCHEMES.items():
        check_regions(regions, name)
    nested = [regions for name, regions in SCHEMES.items() if name != "brats2024"]
    assert all(set(own) <= set(next(iter(regions.values()))) for regions in nested for own in regions.values())


def test_values_fit_several_schemes_so_that_none_is_guessed(pairs, capsys):
    assert fitting([0, 1, 2, 3]) == ["brats2012", "brats2023", "brats2024", "msd_task01"]
    datalist = made(pairs, None)
    assert "regions" not in datalist
    assert stated(datalist) is None


def test_the_command_states_the_regions_of_a_scheme_and_says_them(pairs, tmp_path, capsys):
    out = tmp_path / "list.json"
    common = ["datalist", "nifti_cases", "--folder", str(pairs), "--whole_volumes", "--patient_pattern", r"v\d+"]
    main([*common, "--out", str(out), "--regions", "brats2012"])
    assert "enhancing_tumor = [4]" in capsys.readouterr().out
    assert json.loads(out.read_text())["regions"] == SCHEMES["brats2012"]
    main([*common, "--out", str(tmp_path / "one.json")])
    assert "never guessed: brats2012, brats2024 know these labels" in capsys.readouterr().out
    own = tmp_path / "own.json"
    own.write_text('{"tumor": [1, 2, 3, 4], "necrosis": [1]}')
    assert chosen_regions(str(own)) == {"tumor": [1, 2, 3, 4], "necrosis": [1]}
    with pytest.raises(ValueError, match="no scheme 'brats2016'; there are tumor, brats2012"):
        chosen_regions("brats2016")


def test_a_value_of_no_region_refuses_its_case(pairs):
    with pytest.raises(ValueError, match="holds the label 3, of which no region is"):
        region_masks(np.array([0, 3]), "seg.nii.gz", SCHEMES["brats2017"])
    datalist = made(pairs, {"tumor": [7], "core": [8]})
    kept = [item for part in schema.SPLITS for item in datalist[part]]
    assert [item["diagnosis"] for item in kept] == [0, 0, 0]  # those without a tumor


NO_REGIONS = ([], {}, {"a b": [1]}, {"a": []}, {"a": [0]}, {"a": [1, 1]}, {"a": [1.0]}, {"a": [1], "b": [1]}, {"a": 1})


@pytest.mark.parametrize("regions", NO_REGIONS)
def test_what_is_no_set_of_regions_is_refused_in_one_sentence(regions):
    datalist = {"classes": {"0": "no_tumor", "1": "tumor"}, "training": [{"image": "a.png", "diagnosis": 0}]}
    with pytest.raises(ValueError, match="region"):
        schema.validate({**datalist, "validation": [], "test": [], "regions": regions})


def test_lists_of_other_regions_are_not_joined(pairs):
    one, other = made(pairs, SCHEMES["brats2012"]), made(pairs, None)
    with pytest.raises(ValueError, match="regions differ"):
        schema.merge([one, other])


def test_regions_go_through_the_pipeline_beside_the_tumor(pairs):
    datalist = made(pairs, SCHEMES["brats2012"])
    pipeline = make_training_pipeline((16, 16, 16), augment=False, num_classes=2)
    items = stage_items(datalist, "training", str(pairs))
    plain = [{k: v for k, v in item.items() if k != "regions"} for item in items]
    for item, without in zip(items, plain, strict=True):
        both, one = pipeline(item), pipeline(without)
        assert both["region_masks"].shape == (3, 16, 16, 16)
        assert "region_masks" not in one
        for key in ("image", "label", "foreground"):
            assert torch.equal(both[key], one[key])
        whole, core, enhancing = both["region_masks"].bool()
        assert torch.equal(whole[None], both["label"].bool())
        assert not bool((core & ~whole).any())
        assert not bool((enhancing & ~core).any())


def test_an_item_without_a_mask_has_empty_regions(pairs):
    datalist = made(pairs, SCHEMES["brats2012"])
    item = {k: v for k, v in stage_items(datalist, "training", str(pairs))[0].items() if k != "label"}
    found = make_training_pipeline((16, 16, 16), augment=False, num_classes=2)({**item, "diagnosis": 1})
    assert (int(found["region_masks"].sum()), found["has_mask"], len(found["region_masks"])) == (0, False, 3)


def test_regions_of_a_slice_are_those_of_the_volume(tmp_path):
    image, label = head((40, 46, 9)), np.zeros((40, 46, 9), np.uint8)
    label[15:25, 18:30, 4], label[18:22, 20:26, 4] = 2, 4
    for name, array in (("a_flair", image), ("a_seg", label)):
        nib.save(nib.Nifti1Image(array, np.diag([-1, -1, 4, 1])), tmp_path / f"{name}.nii.gz")
    item = {"image": "a_flair.nii.gz", "label": "a_seg.nii.gz", "slice": 4, "regions": SCHEMES["brats2017"]}
    found = make_training_pipeline((64, 64), augment=False, num_classes=2)(resolve_items([item], tmp_path)[0])
    whole, core, enhancing = (int(mask.sum()) for mask in found["region_masks"])
    assert whole > core == enhancing > 0


def test_a_flip_moves_all_regions_alike(pairs):
    datalist = made(pairs, SCHEMES["brats2012"])
    pipeline = make_training_pipeline((32, 32, 32), augment=True, num_classes=2)
    item = next(i for i in stage_items(datalist, "training", str(pairs)) if i["diagnosis"] == 1)
    for seed in range(4):
        pipeline.set_random_state(seed=seed)
        found = pipeline(item)
        assert torch.equal(found["region_masks"][:1], found["label"])
        assert int(found["region_masks"][1].sum()) > 0


def test_phantom_pairs_differ_by_the_tumor_alone_and_have_nested_parts():
    sick, healthy = (phantom_case([9, 0], tumor, (6.0, 6.0, 8.0)) for tumor in (True, False))
    assert set(sick.images) == {"flair", "t1", "t1ce", "t2"}
    assert not healthy.label.any()
    assert 1 <= len(set(np.unique(sick.label)) - {0}) <= 4
    for name, image in sick.images.items():
        near = np.abs(image.astype(int) - healthy.images[name]) > 0.02 * image.max()
        far = near & (np.abs(np.indices(image.shape).T - np.argwhere(sick.label).mean(axis=0)).T.max(axis=0) > 10)
        assert near[sick.label > 0].mean() > 0.2
        assert far.mean() < 0.001
    again = phantom_case([9, 0], True, (6.0, 6.0, 8.0))
    assert all(np.array_equal(again.images[name], image) for name, image in sick.images.items())
