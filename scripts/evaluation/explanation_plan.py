"""Methods, targets and layers by which a network is explained, and their maps of a batch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from scripts.explain.cam import METHODS as CAMS
from scripts.explain.layers import resolve_layer
from scripts.explain.methods import METHODS, Explanation, explain
from scripts.explain.statistics import without_statistics
from scripts.explain.targets import SegmentationRegion, Target, named_target
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.runs.tasks import UNTRAINED, is_trained

logger = logging.getLogger(__name__)

EVIDENCE = ("evidence", "evidence")
MAIN_TARGET = "tumor_log_odds"
TARGETS = (MAIN_TARGET, "segmentation_1_predicted")
QUICK = ("evidence", "gradcam", "hirescam", "layercam_frozen")


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
    """A named target of a placeholder case, to find out its kind."""
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
    """Names under which options are looked up: the methods, and the plain ones of those with frozen statistics."""
    return {*methods, *map(without_statistics, methods)}


def _methods_for(methods: Sequence[str], dense: bool, layers: Sequence[str]) -> list[str]:
    """The methods that can explain a target, dense or not, at these layers."""
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
    """Default (method, layer) of a network: evidence, or Grad-CAM at its `main_layers`."""
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
    """Maps of a batch for one target, with the foreground held fixed; without a plan use `scripts.explain.methods`.

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
