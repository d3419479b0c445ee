"""What of a run is explained, and every map measured against the masks of its cases."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.explain.cam import METHODS as CAMS
from scripts.explain.evidence import evidence_map
from scripts.explain.layers import evaluating, resolve_layer
from scripts.explain.measures import (
    case_measures,
    case_rows,
    oracle_map,
    random_baseline,
    uniform_baseline,
)
from scripts.explain.methods import METHODS, SLOW, Explanation, explain
from scripts.explain.statistics import without_statistics
from scripts.explain.targets import LogitTarget, SegmentationRegion, Target, named_target
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.networks.regions import tumor_mask
from scripts.runs.tasks import UNTRAINED, is_trained

logger = logging.getLogger(__name__)

EVIDENCE = ("evidence", "evidence")
MAIN_TARGET = "tumor_log_odds"
TARGETS = (MAIN_TARGET, "segmentation_1_predicted")
QUICK = ("evidence", "gradcam", "hirescam", "layercam_frozen")
BASELINES = ("uniform", "random", "oracle")
COMPLETENESS = "completeness_error"


@dataclass(frozen=True)
class Plan:
    """What is explained; made by `make_plan`.

    Attributes:
        methods: of `scripts.explain.methods.METHODS`.
        targets: names, see `scripts.explain.targets.named_target`.
        layers: dotted names or aliases; None: every block in front of the target.
        aggregate: "mean", "max" or "product" over the layers as a further map a method; None for none.
        slow_cases: the methods of `SLOW` run on so many cases with a tumor, drawn by `seed`; None: on all.
        options: method: its further arguments, see `explain`; {"cam": {"foreground": True}} averages the gradients of
            Grad-CAM over the head alone, which does not cancel, see `scripts.explain.cam.cam_pass`.
        seed: of the draw.
    """

    methods: tuple[str, ...]
    targets: tuple[str, ...] = TARGETS
    layers: tuple[str, ...] | None = None
    aggregate: str | None = None
    slow_cases: int | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 0


def make_plan(
    network: MultiTaskDynUNet,
    methods: str | Sequence[str] = "quick",
    targets: Sequence[str] = TARGETS,
    layers: Sequence[str] | None = None,
    aggregate: str | None = None,
    slow_cases: int | None = 16,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> Plan:
    """Check what is asked for before the work starts.

    Args:
        network: that is explained.
        methods: "quick" (those of `QUICK`; of a network of patches the evidence alone), "all" (every method; of a
            network of patches those of class activation maps), both without "evidence" where the network has none; or a
            list of names.
        targets: see `Plan`; those of a head or decoder that was not trained, and those that none of the methods
            explains at these layers, are left out, which is logged.
        layers, aggregate, slow_cases, options, seed: see `Plan`.

    Raises:
        ValueError: for an unknown method, target or layer, "evidence" of a network without, or where no target is left.
    """
    if isinstance(methods, str) and methods not in ("quick", "all"):
        raise ValueError(f"methods: expected quick, all, or a list of {', '.join(METHODS)}; got {methods!r}")
    names = {"quick": QUICK, "all": tuple(METHODS)}[methods] if isinstance(methods, str) else tuple(methods)
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise ValueError(f"methods: {unknown} not known; expected quick, all, or a list of {', '.join(METHODS)}")
    if "evidence" in names and not network.has_evidence:
        if not isinstance(methods, str):
            raise ValueError("methods: this network has no evidence map (head='average_pool'); leave 'evidence' out")
        logger.info("no evidence map: the network was built with head='average_pool'")
        names = tuple(name for name in names if name != "evidence")
    if getattr(network, "window", None) is not None:
        of_volumes = ("evidence", *CAMS)
        if not isinstance(methods, str) and (others := [name for name in names if name not in of_volumes]):
            raise ValueError(
                f"methods: {', '.join(others)} cannot explain a network of patches, which answers for a volume in "
                f"windows; expected some of {', '.join(of_volumes)}"
            )
        if isinstance(methods, str):
            names = ("evidence",) if methods == "quick" else of_volumes
            logger.info("a network of patches: explained by %s", ", ".join(names))
    targets = _explained(network, targets)
    if aggregate is None and len(main_layers(network)) > 1:
        aggregate = "mean"
    if slow_cases is not None and slow_cases < 1:
        raise ValueError(f"slow_cases: expected 1 or more, or null for all cases; got {slow_cases}")
    if isinstance(layers, str) or layers == []:
        raise ValueError(f"layers: expected a list of names, or null for every block; got {layers!r}")
    known = None if layers is None else tuple(layers)
    for layer in known or ():
        resolve_layer(network, layer)
    with_maps = []
    for name in targets:
        dense = isinstance(_named(name), SegmentationRegion)
        if _methods_for(names, dense, layers_of(network, _named(name), known)):
            with_maps.append(name)
        else:
            suffix = "" if known is None else f" at {', '.join(known)} (layers lie in front of what they explain)"
            logger.warning("not explained: %s, by none of %s%s", name, ", ".join(names), suffix)
    if not with_maps:
        raise ValueError(
            f"layers, methods: none of {', '.join(names)} explains {', '.join(targets)}"
            + ("" if known is None else f" at {', '.join(known)} (layers lie in front of what they explain)")
            + "; give others"
        )
    targets = with_maps
    # Options of methods that do not run are no mistake here: the same config serves any choice of methods.
    wanted = {k: dict(v) for k, v in (options or {}).items() if k == "cam" or k in _with_base(names)}
    stray = sorted(set(options or {}) - {"cam", *METHODS})
    if stray:
        raise ValueError(f"options for {stray}; expected methods of {', '.join(METHODS)}, or 'cam'")
    return Plan(names, tuple(targets), known, aggregate, slow_cases, wanted, seed)


def _named(name: str) -> Target:
    """The target of a name, of a made-up case: enough to see what kind it is."""
    return named_target(name, torch.ones(1, dtype=torch.long), torch.ones(1, 1, 1, 1))


def _explained(network: MultiTaskDynUNet, targets: Sequence[str]) -> list[str]:
    """The targets of parts of the network that were trained.

    Raises:
        ValueError: for an unknown target, or when none is left.
    """
    if isinstance(targets, str) or not targets:
        raise ValueError(f"targets: expected a list of names, such as [{', '.join(TARGETS)}]; got {targets!r}")
    task = {
        name: "segmentation" if isinstance(_named(name), SegmentationRegion) else "classification" for name in targets
    }
    left = [name for name in targets if is_trained(network, task[name])]
    for kind in dict.fromkeys(task[name] for name in targets if name not in left):
        why = UNTRAINED[kind] if network.has_segmentation else "this network segments nothing"
        logger.warning("not explained: %s; %s", ", ".join(n for n in targets if task[n] == kind), why)
    if not left:
        raise ValueError(f"targets: none is left of {', '.join(targets)}, {UNTRAINED[task[targets[0]]]}")
    return left


def _with_base(methods: Sequence[str]) -> set[str]:
    """The methods, and those of them with frozen statistics without these: what options are looked up under."""
    return {*methods, *map(without_statistics, methods)}


def _methods_for(methods: Sequence[str], dense: bool, layers: Sequence[str]) -> list[str]:
    """Those methods that explain a target, dense or not, at these layers."""
    return [m for m in methods if not (m == "evidence" and dense) and not (METHODS[m] == "layer" and not layers)]


def encoder_layers(network: MultiTaskDynUNet) -> list[str]:
    """Layers below the classifier, finest first, the evidence features last if there are any."""
    if not network.has_segmentation:
        return list(main_layers(network))
    layers = ["input_block", *(f"downsamples.{i}" for i in range(len(network.downsamples))), "bottleneck"]
    return [*layers, network.default_cam_layer] if network.has_evidence else layers


def decoder_layers(network: MultiTaskDynUNet) -> list[str]:
    """Layers of the decoder, coarsest first."""
    return [f"upsamples.{i}" for i in range(len(network.upsamples))]


def layers_of(network: MultiTaskDynUNet, target: Target, layers: Sequence[str] | None) -> list[str]:
    """Layers that a target can be explained at: all blocks in front of it, or those of the given ones that are."""
    dense = isinstance(target, SegmentationRegion)
    if layers is None:
        return decoder_layers(network) if dense else encoder_layers(network)
    behind = ("head",) if dense else ("upsamples", "output_block")
    return [layer for layer in layers if resolve_layer(network, layer).split(".")[0] not in behind]


def main_layers(network: MultiTaskDynUNet) -> tuple[str, ...]:
    """Layers that a network is explained at: its `default_cam_layer`, or one a member of an ensemble."""
    return getattr(network, "cam_layers", None) or (network.default_cam_layer,)


def main_map(network: MultiTaskDynUNet) -> tuple[str, str]:
    """(method, layer) a network is explained by when nothing is asked: evidence, or Grad-CAM at its `main_layers`."""
    layers = main_layers(network)
    layer = layers[0] if len(layers) == 1 else f"mean({', '.join(layers)})"
    return EVIDENCE if network.has_evidence else ("gradcam", layer)


def main_plan(network: MultiTaskDynUNet, options: Mapping[str, Mapping[str, Any]] | None = None) -> Plan:
    """The plan of `main_map` alone."""
    layers = main_layers(network)
    single = Plan((main_map(network)[0],), (MAIN_TARGET,), layers, options=options or {})
    return single if len(layers) == 1 else replace(single, aggregate="mean")


def maps_of(
    network: MultiTaskDynUNet,
    image: Tensor,
    foreground: Tensor,
    target: Target,
    plan: Plan,
    methods: Sequence[str] | None = None,
) -> Explanation | None:
    """Maps of a batch for one target, with the foreground held fixed; the front door is `scripts.explain.methods`.

    Where the gradients of a layer cancel to rounding noise, which is what an instance norm behind it does to plain
    Grad-CAM, the map is empty.

    Args:
        network: in evaluation mode.
        image: (B, C, *spatial).
        foreground: (B, 1, *spatial).
        target: what is explained.
        plan: layers, aggregation and options.
        methods: those of the plan to run; None: all.

    Returns:
        the maps; None where no method is left for this target.
    """
    dense = isinstance(target, SegmentationRegion)
    layers = layers_of(network, target, plan.layers)
    chosen = _methods_for(plan.methods if methods is None else methods, dense, layers)
    if not chosen:
        return None
    with_layers = [name for name in chosen if METHODS[name] == "layer"]
    with_cams = any(name != "scorecam" for name in with_layers)
    options = {k: dict(v) for k, v in plan.options.items() if k in _with_base(chosen) or (k == "cam" and with_cams)}
    if options.get("cam", {}).get("foreground") is True:
        options["cam"]["foreground"] = foreground
    return explain(
        network,
        image,
        chosen,
        layers if with_layers and layers else None,
        target,
        forward_kwargs={"output": "seg" if dense else "cls"},
        foreground=foreground,
        foreground_kwarg="foreground",
        aggregate=plan.aggregate if with_layers and len(layers) > 1 else None,
        cancelled="empty",
        options=options,
    )


def draw_cases(dataset: Iterable[Mapping[str, Any]], count: int | None, seed: int) -> set[str]:
    """Names of `count` cases with a tumor in the mask, drawn by `seed`; all for None, or where there are fewer."""
    names = sorted(str(case["name"]) for case in dataset if bool(case["has_mask"]) and bool(case["label"].any()))
    if count is None or count >= len(names):
        return set(names)
    return set(np.random.default_rng(seed).choice(names, count, replace=False).tolist())


def measure(
    network: MultiTaskDynUNet,
    batches: Iterable[Mapping[str, Any]],
    plan: Plan,
    classes: Mapping[str, str],
    slow_names: set[str],
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """Measures of every map on every case with a tumor in its mask: one row a case, map and mask.

    The quick methods also run on the cases without a tumor, for `MAIN_TARGET`: whether a map finds nothing there.

    Args:
        network: in evaluation mode, on ``device``.
        batches: collated items of the bundle's pipeline.
        plan: what is explained.
        classes: names by index.
        slow_names: cases that the methods of `SLOW` run on.
        device: where the network is.

    Returns:
        rows of `case_rows` with ``mask``: "true", or "predicted" where the network's own segmentation stands in for
        it, and ``class``, the case's true one.

    Raises:
        ValueError: when no case has a tumor mask.
    """
    rows: list[dict[str, Any]] = []
    quick = [name for name in plan.methods if name not in SLOW]
    slow = [name for name in plan.methods if name in SLOW]
    for batch in batches:
        tumor = batch["label"].flatten(1).amax(dim=1) > 0
        keep = torch.as_tensor(batch["has_mask"]) & tumor
        free = (torch.as_tensor(batch["diagnosis"]) == 0) & ~tumor
        if bool(free.any()) and quick and MAIN_TARGET in plan.targets:
            healthy = _Part(network, batch, torch.nonzero(free).flatten(), classes, device, segment=False)
            result = healthy.maps(network, MAIN_TARGET, plan, quick)
            rows += [] if result is None else healthy.rows(result, MAIN_TARGET)
        if not bool(keep.any()):
            continue
        part = _Part(network, batch, torch.nonzero(keep).flatten(), classes, device)
        slow_indices = [i for i, case in enumerate(part.cases) if case["name"] in slow_names]
        sizes: dict[tuple[str, str], Sequence[int]] = {}
        for name in plan.targets:
            for methods, chosen in ((quick, part), (slow, part.take(slow_indices))):
                if methods and chosen.cases:
                    result = chosen.maps(network, name, plan, methods)
                    if result is not None:
                        rows += chosen.rows(result, name)
                        sizes |= {key: value.shape[2:] for key, value in result.maps.items()}
        size = next((s for key in (main_map(network), *sizes) if (s := sizes.get(key))), part.label.shape[2:])
        rows += part.baselines(size, MAIN_TARGET if MAIN_TARGET in plan.targets else plan.targets[0])
    if not any(row["tumor_area"] > 0 for row in rows):
        raise ValueError("no case with a tumor mask: localization can not be measured; add masks to this part")
    return rows


class _Part:
    """Cases of one batch, with the masks they are measured against."""

    def __init__(
        self,
        network: MultiTaskDynUNet,
        batch: Mapping[str, Any],
        index: Tensor,
        classes: Mapping[str, str],
        device: torch.device | str,
        segment: bool = True,
    ) -> None:
        self.image, self.foreground = batch["image"][index].to(device), batch["foreground"][index].to(device)
        self.label, self.diagnosis = batch["label"][index], torch.as_tensor(batch["diagnosis"])[index]
        self.cases = [{key: batch[key][i] for key in ("name", "patient", "group", "source")} for i in index.tolist()]
        for case, diagnosis in zip(self.cases, self.diagnosis.tolist(), strict=True):
            case["class"] = classes.get(str(diagnosis), "unknown")
        self.temperature = float(network.temperature)
        self.masks = {"true": self.label}
        self.output: dict[str, Tensor] = {}
        if segment and is_trained(network, "segmentation"):
            with torch.no_grad(), evaluating(network):
                self.output = network.multitask(self.image, self.foreground)
            self.masks["predicted"] = tumor_mask(self.output["seg"], network).to(self.label.dtype).cpu()

    def take(self, index: Sequence[int]) -> _Part:
        part = object.__new__(_Part)
        for name in ("image", "foreground", "label", "diagnosis"):
            setattr(part, name, getattr(self, name)[list(index)])
        part.temperature = self.temperature
        part.output = {name: value[list(index)] for name, value in self.output.items()}
        part.masks = {name: mask[list(index)] for name, mask in self.masks.items()}
        part.cases = [self.cases[i] for i in index]
        return part

    def target(self, name: str) -> Target:
        return named_target(name, self.diagnosis, self.label, self.temperature)

    def maps(self, network: MultiTaskDynUNet, name: str, plan: Plan, methods: Sequence[str]) -> Explanation | None:
        """`maps_of` the cases; the evidence alone is taken from the pass that segmented them."""
        target = self.target(name)
        if list(methods) == ["evidence"] and "evidence" in self.output and isinstance(target, LogitTarget):
            logits = self.output["cls"]
            evidence_maps = {EVIDENCE: evidence_map(self.output["evidence"], logits, target)}
            return Explanation(logits, target(logits), target.name, evidence_maps, size=tuple(self.image.shape[2:]))
        return maps_of(network, self.image, self.foreground, target, plan, methods)

    def rows(self, result: Explanation, target: str) -> list[dict[str, Any]]:
        records = []
        for (method, layer), maps in result.maps.items():
            keys = {"method": method, "layer": layer, "target": target}
            relative = result.figures.get(f"{method}_relative_error")
            for mask, truth in self.masks.items():
                cancelled = result.cancelled.get((method, layer))
                none = None if cancelled is None else cancelled.cpu()
                measures = case_measures(maps.cpu(), truth, self.foreground.cpu(), none)
                measures[COMPLETENESS] = torch.full((len(truth),), torch.nan) if relative is None else relative.cpu()
                records += case_rows(measures, self.cases, **keys, mask=mask)
        return records

    def baselines(self, layer_size: Sequence[int], target: str) -> list[dict[str, Any]]:
        """Rows of a uniform map, random maps, and the best map that a grid could draw of the mask, under a target."""
        rows, foreground = [], self.foreground.cpu()
        names = [case["name"] for case in self.cases]
        for mask, truth in self.masks.items():
            for name, measures in (
                ("uniform", uniform_baseline(truth, foreground, layer_size)),
                ("random", random_baseline(truth, foreground, layer_size, names)),
                ("oracle", case_measures(oracle_map(truth, layer_size), truth, foreground)),
            ):
                measures[COMPLETENESS] = torch.full((len(truth),), torch.nan)
                rows += case_rows(measures, self.cases, method=name, layer="none", target=target, mask=mask)
        return rows
