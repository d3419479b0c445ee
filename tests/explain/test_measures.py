from __future__ import annotations

import json
import math
import zlib

import numpy as np
import pytest
import torch

from scripts.explain.intervals import mean_interval
from scripts.explain.measures import (
    MEASURES,
    aggregate,
    case_measures,
    case_rows,
    oracle_map,
    random_baseline,
    region_names,
    uniform_baseline,
)


def grid(rows):
    return torch.tensor(rows, dtype=torch.float32)[None, None]


# Head: the 3x3 upper left; tumor: two pixels in it.
FOREGROUND = grid([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
TUMOR = grid([[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
MAP = grid([[0, 1, 0, 0], [0, 8, 4, 2], [1, 0, 0, 0], [0, 0, 0, 4]])  # sum 20, tumor 12, air 6


def values(measures, index=0):
    return {k: float(v[index]) for k, v in measures.items()}


def test_measures_by_hand():
    m = values(case_measures(MAP, TUMOR, FOREGROUND, pixel_mm=torch.tensor([[1.0, 2.0]])))
    assert m == {
        "tumor_energy": pytest.approx(12 / 20),
        "tumor_area": pytest.approx(2 / 16),
        "background_energy": pytest.approx(6 / 20),
        "background_energy_layer": pytest.approx(6 / 20),  # the layer's grid is the image's
        "oracle_tumor_energy": pytest.approx(1.0),
        "pointing_game": 1.0,
        "rank_accuracy": 0.75,  # the 8, and one of the two fours, of which one lies in the tumor
        "peak_distance_mm": 0.0,
        "centroid_distance_mm": pytest.approx(math.hypot(1.4 - 1, (1.75 - 1.5) * 2)),
        "peak_in_background": 0.0,
        "attention_mean": pytest.approx(0.75),  # 8/8 and 4/8
        "attention_std": pytest.approx(0.25),
        "attention_rest": pytest.approx((2 / 8) / 7),
        "attention_ratio": pytest.approx(0.75 / ((2 / 8) / 7)),  # two ones among seven head pixels without tumor
        "empty": 0.0,
        "cancelled": 0.0,
    }


def test_scale_of_the_map_and_negative_values_do_not_matter():
    negative = torch.where(MAP == 0, torch.full_like(MAP, -5.0), MAP)
    mm = torch.ones(1, 2)
    reference = values(case_measures(MAP, TUMOR, FOREGROUND, pixel_mm=mm))
    assert values(case_measures(MAP * 1e-3, TUMOR, FOREGROUND, pixel_mm=mm)) == pytest.approx(reference)
    assert values(case_measures(negative, TUMOR, FOREGROUND, pixel_mm=mm)) == pytest.approx(reference)


def test_peak_in_the_air():
    m = values(case_measures(grid([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 3]]), TUMOR, FOREGROUND))
    assert (m["pointing_game"], m["peak_in_background"]) == (0.0, 1.0)
    assert (m["tumor_energy"], m["background_energy"]) == (0.25, 0.75)
    assert math.isnan(m["attention_ratio"])  # nothing in the head outside the tumor: undefined, not infinite


def test_uniform_map_scores_the_area_of_everything():
    m = values(uniform_baseline(TUMOR, FOREGROUND, (4, 4)))
    assert m["tumor_energy"] == pytest.approx(m["tumor_area"]) == pytest.approx(2 / 16)
    assert m["pointing_game"] == pytest.approx(2 / 16)  # all pixels share the maximum: it points by chance
    assert m["background_energy"] == m["peak_in_background"] == pytest.approx(7 / 16)
    assert (m["attention_mean"], m["attention_std"], m["attention_ratio"]) == (1.0, 0.0, 1.0)
    coarse = values(uniform_baseline(TUMOR, FOREGROUND, (2, 2)))
    assert coarse["tumor_energy"] == pytest.approx(2 / 16)
    assert coarse["background_energy_layer"] == 0.0  # each of the four cells has a head pixel


def test_empty_map_is_a_miss_and_has_no_background():
    m = values(case_measures(torch.zeros(1, 1, 4, 4), TUMOR, FOREGROUND))
    assert (m["tumor_energy"], m["pointing_game"], m["attention_mean"], m["attention_std"]) == (0.0, 0.0, 0.0, 0.0)
    assert all(math.isnan(m[k]) for k in ("background_energy", "background_energy_layer", "peak_in_background"))
    assert math.isnan(m["attention_ratio"])
    assert (m["empty"], m["cancelled"]) == (1.0, 0.0)
    assert m["tumor_area"] == pytest.approx(2 / 16)
    assert m["oracle_tumor_energy"] == pytest.approx(1.0)
    assert values(case_measures(torch.full((1, 1, 4, 4), -1.0), TUMOR, FOREGROUND))["empty"] == 1.0


def test_layer_grid_oracle_and_air_by_hand():
    # 4x4 image, 2x2 cells; the head covers the left half, so the right cells are all air.
    foreground = grid([[1, 1, 0, 0]] * 4)
    tumor = grid([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert oracle_map(tumor, (2, 2)).flatten().tolist() == [0.75, 0.0, 0.0, 0.0]
    m = values(case_measures(grid([[3.0, 1.0], [0.0, 0.0]]), tumor, foreground))
    assert m["background_energy_layer"] == pytest.approx(0.25)
    # A corner cell brought to the image, per axis 1, .75, .25, 0: energy 4; in the tumor 1 + .75 + .75.
    assert m["oracle_tumor_energy"] == pytest.approx(2.5 / 4)
    # Along an axis the map runs 3, 2.5, 1.5, 1 in front of the same falling off downwards.
    assert m["tumor_energy"] == pytest.approx((3 + 2.5 + 3 * 0.75) / (8 * 2))
    assert m["background_energy"] == pytest.approx(2.5 / 8)


def test_batches_equal_single_cases_in_2d_and_3d():
    generator = torch.Generator().manual_seed(0)
    for size, layer in (((8, 12), (4, 6)), ((8, 8, 6), (4, 4, 2))):
        maps = torch.rand(3, 1, *layer, generator=generator)
        tumor = (torch.rand(3, 1, *size, generator=generator) > 0.8).to(torch.uint8)
        foreground = torch.rand(3, 1, *size, generator=generator) > 0.3
        batch = case_measures(maps, tumor, foreground)
        for i in range(3):
            single = case_measures(maps[i : i + 1], tumor[i : i + 1], foreground[i : i + 1])
            assert values(batch, i) == pytest.approx(values(single), nan_ok=True)
        assert 0 < float(batch["tumor_energy"][0]) < 1


def test_case_without_tumor_is_measured_where_it_can_be():
    m = values(case_measures(MAP, torch.zeros(1, 1, 4, 4), FOREGROUND))
    assert m["background_energy"] == pytest.approx(6 / 20)
    assert m["tumor_area"] == 0.0
    for name in ("tumor_energy", "pointing_game", "attention_mean", "attention_ratio", "oracle_tumor_energy"):
        assert math.isnan(m[name]), name


def test_wrong_masks_are_errors():
    with pytest.raises(ValueError, match="expected a mask of 0 and 1"):
        case_measures(MAP, TUMOR * 255, FOREGROUND)
    with pytest.raises(ValueError, match=r"no foreground pixel in sample\(s\) \[0\]"):
        case_measures(MAP, TUMOR, FOREGROUND * 0)
    with pytest.raises(ValueError, match="of the tumor mask, got"):
        case_measures(MAP, TUMOR, FOREGROUND[..., :2])
    with pytest.raises(FloatingPointError, match="NaN"):
        case_measures(MAP * torch.nan, TUMOR, FOREGROUND)


def test_random_baseline_is_seeded_by_case_and_scores_about_the_area():
    both = random_baseline(TUMOR.repeat(2, 1, 1, 1), FOREGROUND.repeat(2, 1, 1, 1), (4, 4), ["a", "b"], n_maps=5)
    alone = random_baseline(TUMOR, FOREGROUND, (4, 4), ["b"], n_maps=5)
    assert values(both, 1) == pytest.approx(values(alone), rel=0, abs=0, nan_ok=True)
    assert values(both, 0)["tumor_energy"] != values(both, 1)["tumor_energy"]
    other = values(random_baseline(TUMOR, FOREGROUND, (4, 4), ["b"], 5, seed=1))
    assert other["tumor_energy"] != values(alone)["tumor_energy"]
    many = values(random_baseline(TUMOR, FOREGROUND, (4, 4), ["c"], n_maps=1000))
    assert many["tumor_energy"] == pytest.approx(2 / 16, abs=0.01)
    assert many["pointing_game"] == pytest.approx(2 / 16, abs=0.03)
    assert many["peak_in_background"] == pytest.approx(7 / 16, abs=0.04)


def make_rows(energies, patients, sources, method="gradcam", **more):
    blank = {**dict.fromkeys(MEASURES, 0.5), "tumor_area": 0.1, "empty": 0.0, "cancelled": 0.0, **more}
    return [
        {**blank, "method": method, "layer": "l", "target": "t", "name": f"c{i}", "patient": p, "source": s,
         "tumor_energy": e}
        for i, (e, p, s) in enumerate(zip(energies, patients, sources, strict=True))
    ]  # fmt: skip


def test_aggregate_by_source_and_all():
    rows = make_rows([0.2, 0.4, 0.9], ["p1", "p2", "p1"], ["x", "x", "y"])
    rows[0]["empty"] = 1.0
    table = aggregate(rows + make_rows([0.1] * 3, ["p1", "p2", "p1"], ["x", "x", "y"], "uniform"))
    assert [(r["source"], r["method"], r["n"]) for r in table] == [
        ("all", "gradcam", 3),
        ("all", "uniform", 3),
        ("x", "gradcam", 2),
        ("x", "uniform", 2),
        ("y", "gradcam", 1),
        ("y", "uniform", 1),
    ]
    assert table[0]["tumor_energy"] == pytest.approx(0.5)
    assert table[0]["empty_rate"] == pytest.approx(1 / 3)
    assert table[2]["tumor_energy"] == pytest.approx(0.3)
    assert table[4]["tumor_energy_ci95"] == [None, None]  # one patient: no interval
    low, high = table[0]["tumor_energy_ci95"]
    assert 0 <= low < 0.5 < high <= 1
    low, high = table[1]["tumor_energy_ci95"]
    assert low < 0.1 < high, "three cases that are alike"
    assert table[0]["clustered_by"] == "patient"
    expected = {"method", "layer", "target", "source", "n", "clustered_by"}
    expected |= {f"{name}_rate{end}" for name in ("empty", "cancelled") for end in ("", "_ci95")}
    assert set(table[0]) == expected | set(MEASURES) | {f"{m}_ci95" for m in MEASURES}
    json.dumps(table, allow_nan=False)


def test_interval_is_deterministic_and_contains_the_mean():
    rng = np.random.default_rng(0)
    rows = make_rows(rng.random(60), [f"p{i // 3}" for i in range(60)], ["x"] * 60)
    first, again = aggregate(rows)[0], aggregate(rows)[0]
    assert first == again
    low, high = first["tumor_energy_ci95"]
    assert low < first["tumor_energy"] < high
    assert aggregate(rows[::-1])[0]["tumor_energy_ci95"] == pytest.approx([low, high])


def test_interval_has_the_width_of_patients_and_not_of_cases():
    # 20 patients with 10 equal cases each: the interval is that of 20 values.
    rng = np.random.default_rng(0)
    per_patient = rng.normal(0.5, 0.1, 20)
    clustered = aggregate(make_rows(np.repeat(per_patient, 10), [f"p{i // 10}" for i in range(200)], ["x"] * 200))[0]
    assert clustered["tumor_energy_ci95"] == pytest.approx(mean_interval(per_patient, list(range(20))))
    width = np.diff(clustered["tumor_energy_ci95"])[0]
    independent = aggregate(make_rows(np.repeat(per_patient, 10), [f"p{i}" for i in range(200)], ["x"] * 200))[0]
    assert np.diff(independent["tumor_energy_ci95"])[0] < width / 3


def test_what_cases_are_clustered_by_is_named():
    rows = make_rows([0.1, 0.2, 0.3], [None, "", None], ["x"] * 3)
    assert aggregate(rows)[0]["clustered_by"] == "case"
    for row in rows:
        row["group"] = 7
    assert aggregate(rows)[0]["clustered_by"] == "group"
    assert aggregate(rows)[0]["tumor_energy_ci95"] == [None, None]  # one group
    rows[0]["patient"] = "p1"
    assert aggregate(rows)[0]["clustered_by"] == "patient"  # the group joins the others to this patient
    rows[0]["group"] = ""
    assert aggregate(rows)[0]["clustered_by"] == "patient or group"


def test_same_patient_name_in_two_sources_is_two_patients():
    rows = make_rows([0.0, 1.0], ["p1", "p1"], ["x", "y"])
    low, high = aggregate(rows)[0]["tumor_energy_ci95"]
    assert 0 <= low < 0.05
    assert 0.95 < high <= 1


def test_missing_values_are_left_out_and_all_missing_is_null():
    rows = make_rows([0.2, 0.4, 0.6], ["a", "b", "c"], ["x"] * 3, attention_rest=float("nan"))
    rows[0]["background_energy"] = float("nan")
    rows[1]["background_energy"] = 0.2
    row = aggregate(rows)[0]
    assert row["background_energy"] == pytest.approx(0.35)
    assert row["attention_ratio"] is None
    assert row["attention_ratio_ci95"] == [None, None]


def test_attention_ratio_over_cases_stands_a_map_that_is_nothing_outside_the_tumor():
    rows = make_rows([0.5] * 3, ["a", "b", "c"], ["x"] * 3)
    for row, inside, outside in zip(rows, (0.8, 0.6, 0.4), (0.0, 1e-9, 0.3), strict=True):
        ratio = inside / outside if outside else float("nan")
        row.update(attention_mean=inside, attention_rest=outside, attention_ratio=ratio)
    summary = aggregate(rows)[0]
    assert summary["attention_ratio"] == pytest.approx(1.8 / 0.3)  # the mean of the ratios would be 3e8
    low, high = summary["attention_ratio_ci95"]
    assert low < 6 < high
    assert low >= 0
    for row in rows:
        row.update(attention_rest=0.0)
    assert aggregate(rows)[0]["attention_ratio"] is None, "nothing outside in any case: no ratio"
    assert aggregate(rows)[0]["attention_rest"] == 0.0


def test_a_measure_that_one_patient_has_gets_no_interval():
    rows = make_rows([0.2, 0.4, 0.6], ["a", "a", "b"], ["x"] * 3)
    rows[2]["background_energy"] = float("nan")
    row = aggregate(rows)[0]
    assert row["tumor_energy_ci95"] != [None, None]
    assert row["background_energy"] == 0.5
    assert row["background_energy_ci95"] == [None, None]


def test_cases_without_tumor_are_left_out_and_none_at_all_is_an_error():
    rows = make_rows([0.2, 0.4], ["a", "b"], ["x"] * 2)
    rows[1]["tumor_area"] = 0.0
    assert aggregate(rows)[0]["n"] == 1
    rows[0]["tumor_area"] = 0.0
    with pytest.raises(ValueError, match="no case with a tumor mask"):
        aggregate(rows)


def test_a_case_that_stands_twice_is_an_error():
    rows = make_rows([0.2, 0.4], ["a", "b"], ["x"] * 2)
    rows[1]["name"] = "c0"
    with pytest.raises(ValueError, match=r"case 'c0' \(source 'x'\) stands more than once"):
        aggregate(rows)


def test_rows_of_a_batch_feed_the_table():
    cases = [{"name": "a", "source": "s", "patient": "1"}, {"name": "b", "source": "s", "patient": "2"}]
    measures = case_measures(MAP.repeat(2, 1, 1, 1), TUMOR.repeat(2, 1, 1, 1), FOREGROUND.repeat(2, 1, 1, 1))
    rows = case_rows(measures, cases, method="gradcam", layer="l", target="t")
    assert rows[1]["name"] == "b"
    assert rows[1]["tumor_energy"] == pytest.approx(0.6)
    table = aggregate(rows)
    assert table[0]["tumor_energy"] == pytest.approx(0.6)
    assert table[0]["empty_rate"] == 0.0
    with pytest.raises(ValueError, match="1 cases, but measures of 2"):
        case_rows(measures, cases[:1], method="gradcam")
    assert aggregate(rows, by="patient")[1]["patient"] == "1"


def test_regions_have_measures_of_their_own_in_columns_by_name():
    core = TUMOR.clone()
    core[0, 0, 1, 2] = 0
    m = values(case_measures(MAP, TUMOR, FOREGROUND, regions={"whole": TUMOR, "core": core}))
    assert (m["energy_whole"], m["energy_core"], m["area_core"]) == (m["tumor_energy"], 8 / 20, 1 / 16)
    assert region_names(m) == ["whole", "core"]
    assert region_names(values(case_measures(MAP, TUMOR, FOREGROUND))) == []
    with pytest.raises(ValueError, match="region core: expected the shape"):
        case_measures(MAP, TUMOR, FOREGROUND, regions={"core": core[..., :2]})


def test_cancelled_maps_are_misses_and_not_empty():
    maps = torch.cat([MAP * 0, MAP * 0, MAP])
    m = case_measures(maps, TUMOR.repeat(3, 1, 1, 1), FOREGROUND.repeat(3, 1, 1, 1), torch.tensor([True, False, False]))
    assert (m["empty"].tolist(), m["cancelled"].tolist()) == ([0.0, 1.0, 0.0], [1.0, 0.0, 0.0])
    assert m["tumor_energy"].tolist() == [0.0, 0.0, pytest.approx(0.6)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"maps": MAP.repeat(2, 1, 1, 1)}, "2 maps, but 1 masks"),
        ({"tumor": TUMOR[0]}, r"tumor mask: expected \(B, 1, \*spatial\)|of the tumor mask"),
        ({"tumor": TUMOR[:, 0]}, "tumor mask: expected"),
        ({"tumor": TUMOR.repeat(1, 2, 1, 1)}, "tumor mask: expected"),
        ({"tumor": [[0, 1]]}, r"tumor mask: expected \(B, 1, \*spatial\), got list"),
        ({"tumor": -TUMOR}, "tumor mask: expected a mask of 0 and 1"),
        ({"foreground": FOREGROUND * 0.5}, "foreground mask: expected a mask of 0 and 1"),
        ({"pixel_mm": torch.ones(2, 2)}, r"pixel_mm: expected \(1, 2\), got \(2, 2\)"),
        ({"pixel_mm": torch.ones(1, 3)}, r"pixel_mm: expected \(1, 2\), got \(1, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(changed, message):
    given = {"maps": MAP, "tumor": TUMOR, "foreground": FOREGROUND, **changed}
    with pytest.raises(ValueError, match=message):
        case_measures(**given)


def test_random_maps_are_as_many_as_asked_and_at_least_one():
    for names, count in ((["a"], 0), (["a", "b"], 1), ([], 1)):
        with pytest.raises(ValueError, match=r"expected 1 names and n_maps >= 1"):
            random_baseline(TUMOR, FOREGROUND, (4, 4), names, count)
    one = values(random_baseline(TUMOR, FOREGROUND, (4, 4), ["a"], 1))
    assert one["pointing_game"] in (0.0, 1.0)
    ten, given = (values(random_baseline(TUMOR, FOREGROUND, (4, 4), ["a"], **o)) for o in ({}, {"seed": 0}))
    assert ten == pytest.approx(given, nan_ok=True)
    rng = np.random.default_rng([0, zlib.crc32(b"a")])
    drawn = torch.from_numpy(rng.random((1, 1, 4, 4)))
    by_hand = values(case_measures(drawn, TUMOR, FOREGROUND))
    assert one == pytest.approx(by_hand, nan_ok=True)


def test_unbounded_measures_may_lie_above_one():
    rows = make_rows([0.2, 0.4, 0.6], ["a", "b", "c"], ["x"] * 3)
    for row, distance in zip(rows, (20.0, 40.0, 30.0), strict=True):
        row.update(peak_distance_mm=distance, centroid_distance_mm=distance, attention_ratio=9.0, attention_mean=5.0)
    summary = aggregate(rows)[0]
    assert summary["peak_distance_mm"] == 30.0
    low, high = summary["peak_distance_mm_ci95"]
    assert 0 <= low < 30 < high
    assert summary["attention_ratio"] == pytest.approx(5.0 / 0.5), "the mean over the mean of what is outside"
    shares = [dict(row, tumor_energy=2.0) for row in rows]
    with pytest.raises(ValueError, match="give the right bounds"):
        aggregate(shares)
