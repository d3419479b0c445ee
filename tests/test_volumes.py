from __future__ import annotations

import numpy as np
import pytest

from scripts.lesions import count_lesions, lesion_summary
from scripts.volumes import group_rows, patient_summary, volume_summary


def row(volume: str, tumor_probability: float, tumor: int, predicted: int, shared: int, **more) -> dict:
    """A slice; by default one pixel of the network is one of the image, 2 mm2, and slices are 5 mm apart."""
    p = tumor_probability
    union = tumor + predicted
    return {
        "volume": volume, "unit": f"a: {volume}", "source": "a", "has_mask": True, "diagnosis": int(tumor > 0),
        "predicted": int(p >= 0.5), "probability": [1 - p, 0.7 * p, 0.3 * p],
        "tumor_probability": p, "tumor_pixels": tumor, "predicted_pixels": predicted,
        "shared_pixels": shared, "pixel_area": 1.0, "tumor_mm2": 2.0 * tumor, "predicted_mm2": 2.0 * predicted,
        "slice_mm": 5.0, "dice": 2 * shared / union if tumor else float("nan"), **more,
    }  # fmt: skip


SLICES = [
    row("v", 0.9, 100, 80, 80), row("v", 0.6, 10, 30, 5), row("v", 0.2, 0, 10, 0),
    row("w", 0.9, 0, 0, 0), row("w", 0.1, 0, 0, 0), row("w", 0.3, 0, 20, 0),
]  # fmt: skip


def test_dice_of_a_volume_is_over_all_of_its_slices_together():
    v, w = group_rows(SLICES, "volume", 0.5)
    assert v["dice"] == pytest.approx(2 * 85 / (110 + 120)), "false pixels on the tumor-free slice count too"
    assert v["mean_case_dice"] == pytest.approx((160 / 180 + 10 / 40) / 2)
    assert np.isnan(w["dice"])
    assert (v["n"], v["tumor_ml"], w["predicted_ml"]) == (3, pytest.approx(110 * 2 * 5 / 1000), pytest.approx(0.2))


def test_slices_of_unequal_scale_are_weighed_by_the_pixels_of_the_image():
    # The second slice was enlarged: four of its pixels are one of the image.
    slices = [row("v", 0.9, 10, 10, 10), row("v", 0.9, 40, 40, 0, pixel_area=0.25)]
    assert group_rows(slices, "volume", 0.5)[0]["dice"] == pytest.approx(2 * 10 / (20 + 20))


def test_a_volume_has_a_tumor_if_two_of_its_slices_say_so():
    v, w = group_rows(SLICES, "volume", 0.5)
    assert (v["diagnosis"], v["predicted"], v["score"]) == (1, 1, 0.6)
    assert (w["diagnosis"], w["predicted"], w["score"]) == (0, 0, 0.3), "one slice alone is not enough"
    alone = group_rows([row("x", 0.9, 5, 5, 5)], "volume", 0.5)[0]
    assert (alone["predicted"], alone["score"]) == (1, 0.9), "its only slice is"


def test_the_class_of_a_volume_is_the_one_with_most_probability():
    slices = [row("v", 0.9, 5, 5, 5, probability=[0.1, 0.5, 0.4]), row("v", 0.8, 5, 5, 5, probability=[0.2, 0.1, 0.7])]
    assert group_rows(slices, "volume", 0.5)[0]["predicted"] == 2


def test_what_is_not_known_is_not_made_up():
    slices = [row("v", 0.9, 5, 5, 5, diagnosis=-1, slice_mm=float("nan")), row("", 0.9, 5, 5, 5)]
    (v,) = group_rows(slices, "volume", 0.5)
    assert v["diagnosis"] == -1
    assert np.isnan(v["tumor_ml"])
    assert np.isnan(v["right"])
    assert "classification" not in volume_summary([v], 3)


def test_summaries_count_every_patient_once():
    volumes = group_rows(SLICES, "volume", 0.5)
    result = volume_summary(volumes, 3)
    assert (result["n"], result["dice"]["n"], result["slices"]["mean"]) == (2, 1, 3.0)
    assert result["classification"]["confusion_matrix"] == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert result["predicted_ml_tumor_free"]["mean"] == pytest.approx(0.2)
    patients = patient_summary(group_rows(SLICES, "unit", 0.5))
    # v: two of three slices right (the third says nothing and is nothing), w: two of three.
    assert patients["accuracy"]["mean"] == pytest.approx((1 + 2 / 3) / 2)


def test_lesions_are_connected_also_over_corners():
    label, predicted = np.zeros((12, 12)), np.zeros((12, 12))
    label[1:3, 1:3] = label[3, 3] = 1  # one lesion of 5 pixels, joined at a corner
    label[8:12, 0:5] = 1  # 20 pixels
    predicted[8, 0] = 1  # 5 % of the second
    predicted[2, 2] = 1  # 20 % of the first
    predicted[6, 10] = predicted[0, 11] = 1  # two that are none
    assert count_lesions(predicted, label) == {"lesions": 2, "lesions_found": 1, "false_lesions": 2}
    predicted[8, 1] = 1  # 10 % of it
    assert count_lesions(predicted, label)["lesions_found"] == 2
    assert count_lesions(label, np.zeros((12, 12))) == {"lesions": 0, "lesions_found": 0, "false_lesions": 2}


def test_lesion_sensitivity_is_over_lesions_and_false_ones_over_images():
    rows = [
        {"has_mask": True, "unit": "a", "lesions": 3, "lesions_found": 2, "false_lesions": 0},
        {"has_mask": True, "unit": "b", "lesions": 1, "lesions_found": 1, "false_lesions": 1},
        {"has_mask": True, "unit": "c", "lesions": 0, "lesions_found": 0, "false_lesions": 4},
        {"has_mask": False, "unit": "d", "lesions": None, "lesions_found": None, "false_lesions": None},
    ]
    result = lesion_summary(rows)
    assert (result["n"], result["found"], result["sensitivity"]) == (4, 3, 0.75)
    assert result["sensitivity_ci95"] == [pytest.approx(2 / 3), 1.0]
    assert result["false_per_image"]["mean"] == pytest.approx(5 / 3)
    assert (result["false_per_tumor_free_image"]["n"], result["false_per_tumor_free_image"]["mean"]) == (1, 4.0)
    assert lesion_summary(rows[2:])["sensitivity"] is None
