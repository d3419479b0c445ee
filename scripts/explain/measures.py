"""What a map is worth: measures per case against a tumor mask, baselines, and means with intervals."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.explain.clusters import clusters
from scripts.explain.intervals import AT_LEAST_0, SHARES, ratio_interval
from scripts.explain.localization import DISTANCES, REGION_MEASURES, energy, localized, ratio
from scripts.explain.maps import ADAPTIVE_MEAN, check_maps, upsample

__all__ = [
    "MEASURES",
    "aggregate",
    "case_measures",
    "case_rows",
    "oracle_map",
    "random_baseline",
    "uniform_baseline",
]

# Measures of a map, in the order of localization.json; "empty" becomes "empty_rate" there.
MEASURES = (
    "tumor_energy",
    "tumor_area",
    "background_energy",
    "background_energy_layer",
    "oracle_tumor_energy",
    "pointing_game",
    "rank_accuracy",
    *DISTANCES,
    "peak_in_background",
    "attention_mean",
    "attention_std",
    "attention_rest",
    "attention_ratio",
)


def _mask(mask: Tensor, like: Tensor | None, what: str) -> Tensor:
    """Binary mask (B, 1, *spatial) as a plain bool tensor."""
    if not isinstance(mask, Tensor) or mask.dim() not in (3, 4, 5) or mask.shape[1] != 1:
        raise ValueError(f"{what}: expected (B, 1, *spatial), got {getattr(mask, 'shape', type(mask).__name__)}")
    if like is not None and mask.shape != like.shape:
        raise ValueError(f"{what}: expected the shape {tuple(like.shape)} of the tumor mask, got {tuple(mask.shape)}")
    mask = mask.as_subclass(Tensor)
    binary = mask != 0
    if mask.dtype != torch.bool and not bool(((mask == 1) == binary).all()):
        raise ValueError(f"{what}: expected a mask of 0 and 1, got other values")
    return binary


def oracle_map(tumor: Tensor, layer_size: Sequence[int]) -> Tensor:
    """The tumor drawn as exactly as a layer of that grid can: its share of each cell's area, (B, 1, *layer_size).

    Not a bound of `tumor_energy`: a map of the tumor's middle alone, without its rim, has more of its energy inside.
    """
    return ADAPTIVE_MEAN[len(layer_size)](tumor.double(), tuple(layer_size))


def case_measures(
    maps: Tensor,
    tumor: Tensor,
    foreground: Tensor,
    cancelled: Tensor | None = None,
    pixel_mm: Tensor | None = None,
    regions: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Measures of each map against the tumor mask and the foreground mask.

    With m the map on the image grid (values below 0 count as 0), T the tumor, F the foreground:

    - `tumor_energy`: sum of m in T / sum of m;  `background_energy`: sum of m outside F / sum of m.
    - `tumor_area`: T / all pixels, what a uniform map's `tumor_energy` would be.
    - `pointing_game`: 1 if the maximum of m is in T;  `peak_in_background`: 1 if it is outside F. Where several pixels
      share the maximum, the share of them that is (so that a uniform map points by chance, not by its first corner).
    - `rank_accuracy`, `peak_distance_mm`, `centroid_distance_mm`: of m and T, see
      `scripts.explain.localization.localized`; for each further region all that it gives, as "energy_<region>".
    - `attention_mean`, `attention_std`: of m / max(m) in T.  `attention_rest`: mean of m / max(m) in F without T.
      `attention_ratio`: the first mean / the latter; NaN where that is 0 (see `aggregate` for the ratio over cases).
    - `background_energy_layer`: on the layer's own grid, energy in cells without any foreground pixel.
    - `oracle_tumor_energy`: the `tumor_energy` of `oracle_map` at the layer's grid, brought to the image like the map.
    - `empty`: 1 for a map without a positive value. It is a miss: `tumor_energy`, `pointing_game`, `rank_accuracy`,
      `attention_mean` and `attention_std` are 0; energies and peak in the background, distances, and what is outside
      the tumor, are left out (NaN).
    - `cancelled`: 1 for a map of zeros in place of one that there is not: its gradients cancel over space. It counts as
      a miss too, but finds nothing neither rightly nor wrongly, and is not `empty`.

    Source: energy-based pointing game: Wang et al., Score-CAM, CVPRW 2020, arXiv:1910.01279; pointing game: Zhang et
    al., IJCV 2018, arXiv:1608.00507.

    Args:
        maps: raw maps (B, 1, *layer grid); brought to the image grid by linear interpolation, align_corners=False.
        tumor: (B, 1, *image grid), 0 or 1. Measures that need a tumor are NaN for a case without.
        foreground: the same shape, 0 or 1, at least one pixel in each case.
        cancelled: (B,), bool, see `scripts.explain.methods.Explanation`; None: none is.
        pixel_mm: (B, D) size of a pixel of the image grid by axis, NaN where unknown; None: unknown, no distances.
        regions: masks like the tumor's by name; None: the tumor alone.

    Returns:
        name: (B,), float64.

    Raises:
        ValueError: for masks that are not binary, do not fit, or an empty foreground.
        FloatingPointError: for maps that are not finite.
    """
    layer_map = check_maps(maps)
    return _measured(layer_map, _Truth.of(tumor, foreground, layer_map, pixel_mm, regions), cancelled)


@dataclass(frozen=True)
class _Truth:
    """What of the measures is of the masks and of the grid of a map alone; B cases, N pixels.

    Attributes:
        tumor, head: (B, N), bool.
        has_tumor: (B,), bool.
        area, in_tumor: (B,), share and number of the tumor's pixels.
        cells_with_head: (B, 1, *layer grid), bool.
        oracle: (B,), `oracle_tumor_energy`.
        size: of the image.
        pixel_mm: (B, D) or None.
        regions: (B, 1, *size), bool, by name.
    """

    tumor: Tensor
    head: Tensor
    has_tumor: Tensor
    area: Tensor
    in_tumor: Tensor
    cells_with_head: Tensor
    oracle: Tensor
    size: tuple[int, ...]
    pixel_mm: Tensor | None
    regions: Mapping[str, Tensor]

    @classmethod
    def of(
        cls,
        tumor: Tensor,
        foreground: Tensor,
        layer_map: Tensor,
        pixel_mm: Tensor | None = None,
        regions: Mapping[str, Tensor] | None = None,
    ) -> _Truth:
        """Of masks, for maps (B, 1, *layer grid); refuses what does not fit."""
        tumor = _mask(tumor, None, "tumor mask").to(layer_map.device)
        foreground = _mask(foreground, tumor, "foreground mask").to(layer_map.device)
        if layer_map.shape[0] != tumor.shape[0]:
            raise ValueError(f"{layer_map.shape[0]} maps, but {tumor.shape[0]} masks")
        no_head = (~foreground.flatten(1).any(1)).nonzero().flatten().tolist()
        if no_head:
            raise ValueError(f"foreground mask: no foreground pixel in sample(s) {no_head}")
        size, layer_size = tuple(tumor.shape[2:]), tuple(layer_map.shape[2:])
        cells_with_head = ADAPTIVE_MEAN[len(layer_size)](foreground.double(), layer_size) > 0
        oracle = energy(upsample(oracle_map(tumor, layer_size), size), tumor)
        if pixel_mm is not None and pixel_mm.shape != (len(tumor), len(size)):
            raise ValueError(f"pixel_mm: expected {(len(tumor), len(size))}, got {tuple(pixel_mm.shape)}")
        region_masks = {
            name: _mask(m, tumor, f"region {name}").to(layer_map.device) for name, m in (regions or {}).items()
        }
        t = tumor.flatten(1)
        return cls(
            t, foreground.flatten(1), t.any(1), t.double().mean(1), t.sum(1).double(), cells_with_head, oracle, size,
            pixel_mm, region_masks,
        )  # fmt: skip


def _measured(maps: Tensor, truth: _Truth, cancelled: Tensor | None = None) -> dict[str, Tensor]:
    """`case_measures` of maps (B, 1, *layer grid) of the grid that the truth is for."""
    layer_map = maps.double().clamp(min=0)
    on_image = upsample(layer_map, truth.size)
    m = on_image.flatten(1)
    t, f, has_tumor = truth.tumor, truth.head, truth.has_tumor
    peak = m.amax(1, keepdim=True)
    empty = peak[:, 0] <= 0
    nan = torch.full_like(peak[:, 0], torch.nan)

    at_peak = (m == peak).double()
    scaled = m / torch.where(peak > 0, peak, torch.ones_like(peak))
    mean = ratio((scaled * t).sum(1), truth.in_tumor)
    variance = ratio(((scaled - mean[:, None]).square() * t).sum(1), truth.in_tumor)
    rest = f & ~t
    rest_mean = ratio((scaled * rest).sum(1), rest.sum(1).double())

    in_tumor = localized(on_image, t.view_as(on_image), truth.pixel_mm)
    measures = {
        "tumor_energy": in_tumor["energy"],
        "tumor_area": truth.area,
        "background_energy": energy(m, ~f),
        "background_energy_layer": energy(layer_map, ~truth.cells_with_head),
        "oracle_tumor_energy": truth.oracle,
        "pointing_game": in_tumor["pointing_game"],
        **{name: in_tumor[name] for name in ("rank_accuracy", *DISTANCES)},
        "peak_in_background": torch.where(empty, nan, (at_peak * ~f).sum(1) / at_peak.sum(1)),
        "attention_mean": mean,
        "attention_std": variance.sqrt(),
        "attention_rest": torch.where(empty | ~has_tumor, nan, rest_mean),
        "attention_ratio": torch.where(empty, nan, ratio(mean, rest_mean)),
    }
    for name, region in truth.regions.items():
        same = torch.equal(region.flatten(1), t)  # the first region is the tumor
        in_region = in_tumor if same else localized(on_image, region, truth.pixel_mm)
        measures |= {region_column(measure, name): value for measure, value in in_region.items()}
    nothing = torch.zeros_like(empty) if cancelled is None else cancelled.to(empty.device)
    measures["empty"] = (empty & ~nothing).double()
    measures["cancelled"] = nothing.double()
    return measures


def region_column(measure: str, region: str) -> str:
    """Name of the measure of a region: "energy_tumor_core"."""
    return f"{measure}_{region}"


def region_names(row: Mapping[str, Any]) -> list[str]:
    """Regions that a row of `case_rows` has measures of, in their order."""
    return [key.removeprefix("area_") for key in row if key.startswith("area_")]


def uniform_baseline(
    tumor: Tensor,
    foreground: Tensor,
    layer_size: Sequence[int],
    pixel_mm: Tensor | None = None,
    regions: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """`case_measures` of a map that is 1 everywhere, on a layer's grid."""
    ones = torch.ones(tumor.shape[0], 1, *layer_size)
    return case_measures(ones, tumor, foreground, pixel_mm=pixel_mm, regions=regions)


def random_baseline(
    tumor: Tensor,
    foreground: Tensor,
    layer_size: Sequence[int],
    names: Sequence[str],
    n_maps: int = 10,
    seed: int = 0,
    pixel_mm: Tensor | None = None,
    regions: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Mean of `case_measures` over several random maps per case: independent values in [0, 1) on a layer's grid.

    The maps of a case depend on its name and `seed` alone, not on the batch it comes in.

    Args:
        tumor: (B, 1, *image grid), 0 or 1.
        foreground: the same shape.
        layer_size: grid of the random maps; they are as coarse as the layer they are the baseline for.
        names: unique name of each case.
        n_maps: random maps per case.
        seed: changes all maps.
        pixel_mm, regions: as of `case_measures`.
    """
    if len(names) != tumor.shape[0] or n_maps < 1:
        raise ValueError(f"expected {tumor.shape[0]} names and n_maps >= 1, got {len(names)} names, n_maps={n_maps}")
    draws = [np.random.default_rng([seed, zlib.crc32(str(name).encode())]) for name in names]
    maps = torch.from_numpy(np.stack([rng.random((n_maps, 1, *layer_size)) for rng in draws], 1))
    truth = _Truth.of(tumor, foreground, maps[0], pixel_mm, regions)
    results = [_measured(maps[i], truth) for i in range(n_maps)]
    return {name: torch.stack([r[name] for r in results]).mean(0) for name in results[0]}


def case_rows(measures: Mapping[str, Tensor], cases: Sequence[Mapping[str, Any]], **keys: Any) -> list[dict[str, Any]]:
    """Turn the measures of a batch into one row per case.

    Args:
        measures: of `case_measures`.
        cases: what is known of each case: name, source, patient or group, and whatever else belongs in cases.csv.
        keys: method, layer, target, equal for the whole batch.

    Returns:
        rows: {**keys, **case, **measures}, measures as Python floats.
    """
    columns = {name: values.tolist() for name, values in measures.items()}
    if any(len(values) != len(cases) for values in columns.values()):
        raise ValueError(f"{len(cases)} cases, but measures of {len(next(iter(columns.values())))}")
    return [{**keys, **case, **{k: v[i] for k, v in columns.items()}} for i, case in enumerate(cases)]


def aggregate(
    rows: Iterable[Mapping[str, Any]],
    keys: Sequence[str] = ("method", "layer", "target"),
    by: str = "source",
) -> list[dict[str, Any]]:
    """Means over cases with 95 % intervals: the rows of localization.json.

    `attention_ratio` is the mean of `attention_mean` over the mean of `attention_rest`: a map that is 0 outside the
    tumor, whose own ratio has no value, counts in it, and one that is nearly so does not outweigh all others.

    Intervals count whole patients (near-duplicate groups where patients are unknown, cases where both are);
    `clustered_by` says which. A measure that no case has is null; an interval from fewer than two of them is
    [null, null].

    Args:
        rows: of `case_rows`. Cases without tumor (`tumor_area` 0) are left out: nothing could be localized in them.
        keys: columns that make a result row.
        by: column of the strata, beside the row "all" over all of them.

    Returns:
        rows {**keys, by, n, clustered_by, measure, measure_ci95, ..., empty_rate, empty_rate_ci95, cancelled_rate,
        cancelled_rate_ci95}, "all" first.

    Raises:
        ValueError: when no case has a tumor, or a case stands twice in one result row.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    strata: dict[str, None] = {"all": None}
    for row in rows:
        if row["tumor_area"] > 0:
            groups.setdefault(tuple(row[key] for key in keys), []).append(row)
            strata[str(row[by])] = None
    if not groups:
        raise ValueError("no case with a tumor mask: localization cannot be measured")
    table = []
    for stratum in strata:
        for key, members in groups.items():
            chosen = [row for row in members if stratum == "all" or str(row[by]) == stratum]
            if chosen:
                head = {**dict(zip(keys, key, strict=True)), by: stratum}
                table.append({**head, **_summary(chosen, head)})
    return table


def _summary(rows: Sequence[Mapping[str, Any]], head: Mapping[str, Any]) -> dict[str, Any]:
    names = [(row.get("source"), row.get("name")) for row in rows]
    if names[0][1] is not None and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"case {twice[1]!r} (source {twice[0]!r}) stands more than once among the cases of {dict(head)}"
        )
    named = clusters(rows)
    kinds = sorted({kind for kind, _ in named}, key=("patient", "group", "case").index)
    belongs = [f"{kind} {name}" for kind, name in named]
    summary: dict[str, Any] = {"n": len(rows), "clustered_by": " or ".join(kinds)}
    columns = {name: np.array([float(row[name]) for row in rows]) for name in (*MEASURES, "empty", "cancelled")}
    for measure, values in columns.items():
        wholes = np.where(np.isfinite(values), 1.0, np.nan)
        if measure == "attention_ratio":
            values, wholes = columns["attention_mean"], columns["attention_rest"]
        there = np.isfinite(values) & np.isfinite(wholes)
        below = wholes[there].sum()
        key = f"{measure}_rate" if measure in ("empty", "cancelled") else measure
        summary[key] = float(values[there].sum() / below) if below else None
        bounds = AT_LEAST_0 if measure.startswith("attention") or measure in DISTANCES else SHARES
        summary[f"{key}_ci95"] = ratio_interval(values, wholes, belongs, bounds)
    if regions := region_names(rows[0]):
        summary["regions"] = {name: _of_region(rows, name, belongs) for name in regions}
    return summary


def _of_region(rows: Sequence[Mapping[str, Any]], region: str, belongs: Sequence[str]) -> dict[str, Any]:
    """Means over the cases that have a region, with intervals."""
    columns = {m: np.array([float(row[region_column(m, region)]) for row in rows]) for m in REGION_MEASURES}
    has = columns["area"] > 0
    summary: dict[str, Any] = {"n": int(has.sum())}
    for measure, values in columns.items():
        values = np.where(has, values, np.nan)
        there = np.isfinite(values)
        summary[measure] = float(values[there].mean()) if there.any() else None
        bounds = AT_LEAST_0 if measure in DISTANCES else SHARES
        summary[f"{measure}_ci95"] = ratio_interval(values, np.where(there, 1.0, np.nan), belongs, bounds)
    return summary
