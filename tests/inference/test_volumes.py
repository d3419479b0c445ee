from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from scripts.inference.postprocessing import RestoreScand
from scripts.inference.volume_rule import VolumeRule, evidence_places, strongest_run, volume_probability
from scripts.inference.volumes import group_rows, own_threshold, patient_summary, volume_summary
from scripts.measures.lesions import count_lesions, lesion_summary

ROOT = Path(__file__).resolve().parents[2]


def row(volume: str, tumor_probability: float, tumor: int, predicted: int, shared: int, **more) -> dict:
    """A slice; by default one pixel of the network is one of the image, 2 mm2, and slices are 5 mm apart."""
    p = tumor_probability
    union = tumor + predicted
    return {
        "volume": volume, "cluster": f"a: {volume}", "source": "a", "has_mask": True, "diagnosis": int(tumor > 0),
        "predicted": int(p >= 0.5), "probability": [1 - p, 0.7 * p, 0.3 * p],
        "tumor_probability": p, "tumor_pixels": tumor, "predicted_pixels": predicted,
        "shared_pixels": shared, "pixel_area": 1.0, "head_share": 0.4,
        "tumor_mm2": 2.0 * tumor, "predicted_mm2": 2.0 * predicted, "slice_mm": 5.0,
        "dice": 2 * shared / union if tumor else float("nan"), **more,
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


def test_a_volume_is_diagnosed_by_the_mean_over_its_most_suspicious_slices():
    slices = [row("v", p, 5, 5, 5) for p in (0.8, 0.7, 0.3, 0.1)]
    assert [group_rows(slices, "volume", 0.5, VolumeRule(share))[0]["score"] for share in (0.1, 0.5, 0.75, 1)] == [
        pytest.approx(0.8), pytest.approx(0.75), pytest.approx(0.6), pytest.approx(1.9 / 4),
    ]  # fmt: skip
    assert [group_rows(slices, "volume", 0.5, VolumeRule(share))[0]["predicted"] for share in (0.75, 1)] == [1, 0]


def test_slices_with_little_head_do_not_count_for_their_volume():
    slices = [row("v", 0.9, 0, 0, 0, head_share=0.05), row("v", 0.2, 0, 0, 0), row("v", 0.1, 0, 0, 0)]
    assert group_rows(slices, "volume", 0.5)[0]["score"] == pytest.approx(0.2)
    assert group_rows(slices[:1], "volume", 0.5)[0]["score"] == pytest.approx(0.9), "unless there is no other"


def test_the_class_of_a_volume_is_the_most_probable_of_the_mean():
    slices = [row("v", 0.9, 5, 5, 5, probability=[0.1, 0.5, 0.4]), row("v", 0.8, 5, 5, 5, probability=[0.2, 0.1, 0.7])]
    assert group_rows(slices, "volume", 0.5, VolumeRule(share=1))[0]["predicted"] == 2
    assert group_rows(slices, "volume", 0.5, VolumeRule(share=0.5))[0]["predicted"] == 1, "the first alone"


def test_evaluation_and_inference_diagnose_a_volume_by_the_same_rule():
    config = yaml.safe_load((ROOT / "configs" / "inference.yaml").read_text(encoding="utf-8"))
    assert VolumeRule() == VolumeRule(config["volume_share"], config["min_foreground"], config["volume_threshold"])
    probability = torch.softmax(torch.from_numpy(np.random.default_rng(1).normal(size=(24, 3)) * 2), dim=1)
    share = np.linspace(0.02, 0.5, 24)
    slices = [
        row("v", 1 - float(p[0]), 0, 0, 0, probability=p.tolist(), head_share=s)
        for p, s in zip(probability, share, strict=True)
    ]
    scan = SimpleNamespace(plane="axial", placements=[SimpleNamespace(share=s, index=i) for i, s in enumerate(share)])
    inferred = RestoreScand(volume_share=config["volume_share"], min_foreground=config["min_foreground"])
    expected, _ = inferred.probability(probability, scan)
    assert VolumeRule().probability(slices) == pytest.approx(expected.tolist())
    evidence = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(3)) ** 9
    places = evidence_places(evidence).tolist()
    agreed, _ = inferred.probability(probability, scan, evidence)
    placed = [{**s, "slice": i, "evidence_place": places[i]} for i, s in enumerate(slices)]
    assert VolumeRule().probability(placed[::-1]) == pytest.approx(agreed.tolist()), "in the order of the slices"
    assert float(agreed[0]) > float(expected[0]), "some slices agree with no neighbor"
    assert group_rows(slices, "volume", 0.5)[0]["score"] == pytest.approx(1 - float(expected[0]))


def volume(tumor, cells, size=20):
    """Class probabilities, and evidence of one bright cell a slice (None: none), of a made volume."""
    t = torch.tensor(tumor, dtype=torch.float64)
    evidence = torch.zeros(len(tumor), 1, size, size)
    for k, cell in enumerate(cells):
        if cell is not None:
            evidence[k, 0, cell[0], cell[1]] = 3.0
    return torch.stack([1 - t, t], dim=1), evidence


def test_evidence_lies_at_the_center_of_its_strongest_half():
    _, evidence = volume([0.5] * 3, [(4, 9), None, (19, 0)])
    evidence[0, 0, 6, 9], evidence[0, 0, 0, 0] = 2.0, 1.0  # one counts, one is too weak
    places = evidence_places(evidence)
    torch.testing.assert_close(places[0], torch.tensor([5.5 / 20, 9.5 / 20], dtype=torch.float64))
    assert bool(torch.isnan(places[1]).all())
    torch.testing.assert_close(places[2], torch.tensor([19.5 / 20, 0.5 / 20], dtype=torch.float64))


def test_a_tumor_over_neighboring_slices_counts_and_the_same_probabilities_scattered_do_not():
    votes = torch.ones(30, dtype=torch.bool)
    here, elsewhere = (10, 12), (3, 4)
    tumor = [0.05] * 30
    tumor[12:16] = [0.8, 0.95, 0.9, 0.7]
    probability, evidence = volume(tumor, [here] * 30)
    found, run = strongest_run(probability, votes, 0.1, evidence_places(evidence))
    assert (float(found[1]), run) == (pytest.approx((0.8 + 0.95 + 0.9) / 3), [12, 13, 14])
    # The same four, far apart along the axis: each run holds one.
    apart = [0.05] * 30
    apart[2], apart[10], apart[18], apart[26] = 0.8, 0.95, 0.9, 0.7
    probability, evidence = volume(apart, [here] * 30)
    found, run = strongest_run(probability, votes, 0.1, evidence_places(evidence))
    assert float(found[1]) == pytest.approx((0.95 + 2 * 0.05) / 3)
    assert 10 in run
    # Neighbors, but in another place each: nothing continues, and nothing counts.
    corners = [(0, 0), (0, 19), (19, 0), (19, 19)] * 8
    probability, evidence = volume(tumor, corners[:30])
    found, _ = strongest_run(probability, votes, 0.1, evidence_places(evidence))
    assert float(found[1]) == 0.0
    # One slice alone, its neighbors' evidence elsewhere, as of a vessel: dismissed.
    spike = [0.05] * 30
    spike[14] = 0.99
    probability, evidence = volume(spike, [here if k == 14 else elsewhere for k in range(30)])
    assert float(volume_probability(probability, votes, 0.1, evidence_places(evidence))[1]) == pytest.approx(0.05)
    assert float(volume_probability(probability, votes, 0.1)[1]) == pytest.approx((0.99 + 2 * 0.05) / 3)
    # Of few slices a run is one: there is no neighbor to ask.
    few, evidence = volume([0.1, 0.9, 0.1], [elsewhere, here, elsewhere])
    assert float(volume_probability(few, votes[:3], 0.1, evidence_places(evidence))[1]) == pytest.approx(0.9)


def test_a_volume_has_a_threshold_of_its_own_and_a_joined_answer():
    slices = [row("v", p, 5, 5, 5, head_pixels=100, evidence_maximum=p, evidence_overlap=p > 0.5) for p in (0.6, 0.2)]
    (v,) = group_rows(slices, "volume", 0.5)
    assert (v["predicted"], v["predicted_pixels"], v["head_pixels"], v["tumor_pixels"]) == (1, 10, 200, 10)
    assert (v["evidence_maximum"], v["evidence_overlap"]) == (0.6, True)
    (strict,) = group_rows(slices, "volume", 0.5, VolumeRule(threshold=0.7))
    assert strict["predicted"] == 0
    (unsegmented,) = group_rows([{**s, "predicted_pixels": None, "has_mask": False} for s in slices], "volume", 0.5)
    assert unsegmented["predicted_pixels"] is None
    with pytest.raises(ValueError, match="volume_threshold lies between 0 and 1"):
        VolumeRule(threshold=1.5)


def test_volumes_get_a_threshold_of_their_own_where_enough_patients_carry_it():
    sick = [{"cluster": f"s{k}", "diagnosis": 2, "score": 0.30 + 0.01 * k} for k in range(10)]
    healthy = [{"cluster": f"h{k}", "diagnosis": 0, "score": 0.02 * k} for k in range(10)]
    unknown = {"cluster": "u", "diagnosis": -1, "score": 0.9}
    threshold, words = own_threshold([*sick, *healthy, unknown])
    assert threshold == pytest.approx((0.18 + 0.30) / 2)
    assert "`volume_threshold: 0.240` in the run's network.yaml" in words
    assert VolumeRule(threshold=threshold).threshold_of(0.5) == threshold
    # Twenty volumes of nine patients are nine.
    threshold, words = own_threshold([*sick[:9], *sick[:9], *healthy, unknown])
    assert threshold is None
    assert words.endswith("takes 10 patients with a tumor and 10 without, this part has 9 and 10")
    # Without evidence 0.05 is said: a threshold below it would call that a tumor.
    weak = [{**row, "score": 0.052 + 0.0001 * k} for k, row in enumerate(sick)]
    none = [{**row, "score": 0.05} for row in healthy]
    threshold, _ = own_threshold([*weak, *none])
    assert threshold > 0.051


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
    # Of three slices one stands for the volume: the one false alarm of w makes it sick.
    assert result["classification"]["confusion_matrix"] == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert "10% of its evaluated slices" in result["diagnosis_rule"]
    assert result["predicted_ml_tumor_free"]["mean"] == pytest.approx(0.2)
    patients = patient_summary(group_rows(SLICES, "cluster", 0.5))
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
        {"has_mask": True, "cluster": "a", "lesions": 3, "lesions_found": 2, "false_lesions": 0},
        {"has_mask": True, "cluster": "b", "lesions": 1, "lesions_found": 1, "false_lesions": 1},
        {"has_mask": True, "cluster": "c", "lesions": 0, "lesions_found": 0, "false_lesions": 4},
        {"has_mask": False, "cluster": "d", "lesions": None, "lesions_found": None, "false_lesions": None},
    ]
    result = lesion_summary(rows)
    assert (result["n"], result["found"], result["sensitivity"]) == (4, 3, 0.75)
    low, high = result["sensitivity_ci95"]
    assert 0 < low < 0.2, "two patients"
    assert 0.75 < high <= 1
    assert result["false_per_image"]["mean"] == pytest.approx(5 / 3)
    assert (result["false_per_tumor_free_image"]["n"], result["false_per_tumor_free_image"]["mean"]) == (1, 4.0)
    assert lesion_summary(rows[2:])["sensitivity"] is None


@pytest.mark.parametrize(
    ("count", "share", "taken"), [(70, 0.1, 7), (30, 0.1, 3), (71, 0.1, 8), (3, 0.1, 1), (5, 1.0, 5)]
)
def test_so_many_slices_are_taken_at_inference_and_in_evaluation(count, share, taken):
    tumor = torch.linspace(0.01, 0.9, count, dtype=torch.float64)
    probability = torch.stack([1 - tumor, tumor], dim=1)
    expected = float(tumor[-taken:].mean())
    assert float(volume_probability(probability, torch.ones(count, dtype=torch.bool), share)[1]) == pytest.approx(
        expected
    )
    rows = [{"head_share": 1.0, "probability": p} for p in probability.tolist()]
    assert VolumeRule(share).probability(rows)[1] == pytest.approx(expected)
    float32 = volume_probability(probability.float(), torch.ones(count, dtype=torch.bool), share)
    assert float(float32[1]) == pytest.approx(expected, abs=1e-6)
