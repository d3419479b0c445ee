"""faithfulness.json of a run: do its maps say what the network does? The tests of `scripts.explain.faithfulness`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from scripts.evaluation.explanation_plan import MAIN_TARGET, Plan, main_map, main_plan, maps_of
from scripts.evaluation.localization import draw_cases
from scripts.explain.clusters import clusters
from scripts.explain.faithfulness import background_swap, deletion_insertion
from scripts.explain.gradients import INPUT
from scripts.explain.methods import METHODS
from scripts.explain.sanity import Explainer, RandomizationStage, cascading_randomization, stability
from scripts.explain.targets import TumorLogOdds
from scripts.measures.intervals import mean_interval
from scripts.networks.multitask_dynunet import MultiTaskDynUNet

logger = logging.getLogger(__name__)

TESTS = ("deletion_insertion", "randomization", "background_swap", "stability")
STEPS, RANDOM_MAPS, NOISE, REPLACEMENT = 8, 2, 0.05, "blur"
AUC = ("deletion", "random_deletion", "deletion_gain", "insertion", "random_insertion", "insertion_gain")


@dataclass
class Cases:
    """What is tested: a few cases with a tumor in the mask.

    Attributes:
        image: (B, C, *spatial), on the network's device.
        foreground: (B, 1, *spatial).
        groups: (B,), the patient, or near-duplicate group, that intervals are drawn by.
    """

    image: Tensor
    foreground: Tensor
    groups: list[str]

    def split(self, size: int) -> list[Cases]:
        """Parts of at most `size` cases."""
        parts = range(0, len(self.groups), size)
        return [
            Cases(self.image[i : i + size], self.foreground[i : i + size], self.groups[i : i + size]) for i in parts
        ]


def chosen_methods(network: MultiTaskDynUNet, plan: Plan, methods: str | Sequence[str]) -> list[tuple[str, str]]:
    """(method, layer) of the maps that are tested, each method at the layer that the network is explained at.

    Args:
        network: the network.
        plan: of the run.
        methods: "main" (the map that the network is explained by), "all" (those of the plan), or names.

    Raises:
        ValueError: for another word, an unknown method, or "evidence" of a network without.
    """
    if methods == "main":
        return [main_map(network)]
    names = plan.methods if methods == "all" else methods
    if isinstance(names, str) or any(name not in METHODS for name in names):
        raise ValueError(f"test_methods: expected main, all, or a list of {', '.join(METHODS)}; got {methods!r}")
    if "evidence" in names and not network.has_evidence:
        raise ValueError("test_methods: this network has no evidence map (head='average_pool'); leave 'evidence' out")
    layer = {
        "layer": main_map(network)[1] if not network.has_evidence else network.default_cam_layer,
        INPUT: INPUT,
        "evidence": "evidence",
    }
    return [(name, layer[METHODS[name]]) for name in names]


def check_tests(tests: Sequence[str]) -> None:
    """Refuse a test that there is not.

    Raises:
        ValueError: naming it and what there is.
    """
    unknown = [tests] if isinstance(tests, str) else [name for name in tests if name not in TESTS]
    if unknown:
        raise ValueError(f"tests: {unknown} not known; expected some of {', '.join(TESTS)}, or [] for none")


def check_faithfulness(
    network: MultiTaskDynUNet,
    dataset: Sequence[Mapping[str, Any]],
    plan: Plan,
    tests: Sequence[str] = TESTS,
    methods: str | Sequence[str] = "main",
    count: int | None = 4,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Content of faithfulness.json.

    Args:
        network: in evaluation mode, on ``device``.
        dataset: preprocessed items.
        plan: of the run; its options and seed are used.
        tests: of `TESTS`.
        methods: see `chosen_methods`.
        count: tumor cases, drawn by the plan's seed; None: all.
        batch_size: cases at once.
        device: where the network is.

    Returns:
        ``target``, ``n``, ``cases`` and ``seed``; and of each test its rows, every measure as mean over cases with
        ``<measure>_ci95``, drawn by patient.

    Raises:
        ValueError: for an unknown test, or when no case has a tumor mask.
    """
    check_tests(tests)
    names = draw_cases(dataset, count, plan.seed)
    items = [case for case in dataset if str(case["name"]) in names]
    if not items:
        raise ValueError("no case with a tumor mask: faithfulness is tested on those; add masks to this part")
    maps = chosen_methods(network, plan, methods)
    cases = Cases(
        torch.stack([case["image"] for case in items]).to(device),
        torch.stack([case["foreground"] for case in items]).to(device),
        [name for _, name in clusters(items)],
    )
    result: dict[str, Any] = {
        "target": MAIN_TARGET,
        "n": len(items),
        "cases": [str(case["name"]) for case in items],
        "seed": plan.seed,
    }
    parts = cases.split(batch_size)
    per_map: dict[str, Callable[..., Any]] = {
        "deletion_insertion": _deletion_insertion,
        "randomization": _randomization,
        "stability": _stability,
    }
    for name in tests:
        if name == "background_swap":
            result[name] = _background_swap(network, parts, plan.seed)
            continue
        rows = []
        for method, layer in tqdm(maps, desc=name.replace("_", " "), unit="map"):
            scores = per_map[name](network, parts, (method, layer), plan)
            rows.append({"method": method, "layer": layer, **scores})
        result[name] = rows
    return result


def _explainer(key: tuple[str, str], foreground: Tensor, plan: Plan) -> Explainer:
    method, layer = key
    single = Plan((method,), (MAIN_TARGET,), (layer,) if METHODS[method] == "layer" else None, options=plan.options)

    def maps(network: nn.Module, x: Tensor) -> Tensor:
        map_plan = main_plan(network, plan.options) if key == main_map(network) else single  # type: ignore[arg-type]
        result = maps_of(network, x, foreground, TumorLogOdds.of(network), map_plan)  # type: ignore[arg-type]
        assert result is not None
        return result.maps[key]

    return maps


def _summary(values: Mapping[str, Tensor], parts: Sequence[Cases]) -> dict[str, Any]:
    """Means over cases with intervals; NaN (no such value for a case) is left out, null where no case has one."""
    groups = np.array([group for part in parts for group in part.groups])
    summary: dict[str, Any] = {}
    for name, value in values.items():
        array = value.double().cpu().numpy()
        there = np.isfinite(array)
        summary[name] = float(array[there].mean()) if there.any() else None
        summary[f"{name}_ci95"] = mean_interval(array[there], list(groups[there]), bounds=None)
    return summary


def _deletion_insertion(
    network: MultiTaskDynUNet, parts: Sequence[Cases], key: tuple[str, str], plan: Plan
) -> dict[str, Any]:
    """Areas under the curves, and the curves' means, beside those of random maps as coarse."""
    curves = []
    for part in parts:
        maps = _explainer(key, part.foreground, plan)(network, part.image)
        curves.append(
            deletion_insertion(
                network,
                part.image,
                maps,
                TumorLogOdds.of(network),
                {"output": "cls"},
                part.foreground,
                "foreground",
                steps=STEPS,
                baseline=REPLACEMENT,
                n_random=RANDOM_MAPS,
                seed=plan.seed,
            )
        )
    areas = [c.auc() for c in curves]
    ends = {"score": torch.cat([c.deletion[:, 0] for c in curves]),
            "score_replaced": torch.cat([c.deletion[:, -1] for c in curves])}  # fmt: skip
    values = ends | {name: torch.cat([a[name] for a in areas]) for name in AUC}
    result = {"replaced_by": REPLACEMENT, **_summary(values, parts)}
    result["empty_rate"] = float(torch.cat([c.empty for c in curves]).double().mean())
    result["curves"] = {
        "share": curves[0].share.tolist(),
        "deletion": torch.cat([c.deletion for c in curves]).mean(0).tolist(),
        "insertion": torch.cat([c.insertion for c in curves]).mean(0).tolist(),
        "random_deletion": torch.cat([c.random_deletion for c in curves], 1).mean((0, 1)).tolist(),
        "random_insertion": torch.cat([c.random_insertion for c in curves], 1).mean((0, 1)).tolist(),
    }
    return result


def _randomization(
    network: MultiTaskDynUNet, parts: Sequence[Cases], key: tuple[str, str], plan: Plan
) -> dict[str, Any]:
    """Likeness of the maps with those of the trained network, stage by stage from the output to the input."""
    runs: list[list[RandomizationStage]] = []
    for part in parts:
        maps = _explainer(key, part.foreground, plan)
        runs.append(
            cascading_randomization(
                network,
                part.image,
                maps,
                forward_kwargs={"output": "cls"},
                foreground=part.foreground,
                seed=plan.seed,
            )
        )
    stages = []
    for group in zip(*runs, strict=True):
        values = {name: torch.cat([getattr(stage, name) for stage in group]) for name in ("rank_correlation", "ssim")}
        empty = torch.cat([stage.empty for stage in group]).double().mean()
        stages.append({"layers": list(group[0].layers), **_summary(values, parts), "empty_rate": float(empty)})
    return {"stages": stages}


def _stability(network: MultiTaskDynUNet, parts: Sequence[Cases], key: tuple[str, str], plan: Plan) -> dict[str, Any]:
    """Likeness of the maps with those of copies with a little noise in the foreground."""
    results = [
        stability(
            network,
            part.image,
            _explainer(key, part.foreground, plan),
            part.foreground,
            noise_std=NOISE,
            seed=plan.seed,
        )
        for part in parts
    ]
    values = {
        "rank_correlation": torch.cat([s.rank_correlation.nanmean(0) for s in results]),
        "ssim": torch.cat([s.ssim.nanmean(0) for s in results]),
        "largest_change": torch.cat([s.largest_change for s in results]),
    }
    return {"noise_std": NOISE, **_summary(values, parts)}


def _background_swap(network: MultiTaskDynUNet, parts: Sequence[Cases], seed: int) -> list[dict[str, Any]]:
    """Change of the score when the air becomes something else, with the foreground given, and read off the image."""
    rows = []
    for foreground in ("given", "read off the image"):
        swaps = [
            background_swap(
                network,
                part.image,
                part.foreground,
                TumorLogOdds.of(network),
                {"output": "cls"},
                "foreground" if foreground == "given" else None,
                seed=seed,
            )
            for part in parts
        ]
        score = torch.cat([s.score for s in swaps])
        for masked in (True, False):
            changes = [s.before_masking if masked else s.after_masking for s in swaps]
            for air in changes[0]:
                change = torch.cat([c[air] for c in changes])
                head = {"air": air, "masked_again": masked, "foreground": foreground}
                values = {"absolute_change": change.abs(), "absolute_score": score.abs()}
                rows.append({**head, **_summary(values, parts), "largest_change": float(change.abs().max())})
    return rows
