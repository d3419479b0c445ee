"""Each cause, planted in each network by what it is, never by what the diagnosis measures of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from monai.visualize.class_activation_maps import default_normalizer
from torch import Tensor, nn

from benchmarks.causes import pictures
from benchmarks.causes.networks import ARCHITECTURES, Architecture, Gate, Head, HeadPool, Lift, Saturated, train
from benchmarks.causes.pictures import CLASSES, Heads, heads
from scripts.diagnosis.examination import Examination, Subject, examine
from scripts.diagnosis.inputs import prepare
from scripts.explain.effect_findings import WITHOUT_TUMOR
from scripts.explain.findings import SHORTCUT
from scripts.explain.gradient_findings import activations_and_gradients
from scripts.explain.layers import evaluating
from scripts.explain.maps import max_scaling
from scripts.explain.outputs import selecting
from scripts.explain.recording import default_layer
from scripts.explain.targets import ClassScore, SegmentationRegion, Target

TRAINED_ON, LOOKED_AT = 150, 48


def colored(values: np.ndarray) -> np.ndarray:
    """RGB of a map."""
    return np.asarray(colormaps["turbo"](values))[..., :3]


@dataclass
class Run:
    """What is diagnosed: a network, its pictures, and how its map is made and shown."""

    network: nn.Module
    heads: Heads
    head: str | None
    target: Target
    layer: str | None = None
    method: str = "gradcam"
    sources: list[str] = field(default_factory=list)
    normalizer: Callable[[Tensor], Any] = max_scaling
    colormap: Callable[[np.ndarray], Any] = colored

    def diagnosed(self) -> Examination:
        """The diagnosis of `python -m scripts diagnose`."""
        dataset, numbers = self.heads, range(len(self.heads.labels))
        items = [
            {"image": f"head {k}", "number": k, "diagnosis": dataset.labels[k], "patient": f"person {k}",
             "source": self.sources[k] if self.sources else "phantoms"} for k in numbers
        ]  # fmt: skip

        def pipeline(item: Mapping[str, Any]) -> dict[str, Any]:
            k = item["number"]
            return {**item, "image": dataset.images[k], "foreground": dataset.foreground[k], "label": dataset.tumor[k]}

        samples = prepare(items, pipeline, images=len(items))
        with selecting(self.network, self.head) if self.head else nullcontext():
            return examine(
                Subject(
                    self.network, samples, self.target, self.method, self.layer, normalizer=self.normalizer,
                    normalizer_name="given", colormap=self.colormap, colormap_name="given",
                    classes={str(k): name for k, name in enumerate(CLASSES)},
                )
            )  # fmt: skip


class Bench:
    """Trained networks, each once: of an architecture, a seed, and what was done to its build and its pictures."""

    def __init__(self) -> None:
        self._trained: dict[tuple, nn.Module] = {}

    def network(
        self, name: str, seed: int, kind: str, heads: Heads, masked: bool = False, longer: int = 1, **options: Any
    ) -> nn.Module:
        """Trained on the pictures; with `masked` it pools over the head alone."""
        key = (name, seed, kind, masked, *options.items())
        if key not in self._trained:
            of = ARCHITECTURES[name]
            torch.manual_seed(seed)
            network = of.make(**options)
            if masked and of.pool:
                network.set_submodule(of.pool, HeadPool(Head(network)))
            self._trained[key] = train(network, heads, seed, longer * of.steps, of.rate)
        return self._trained[key]

    def clean(self, name: str, seed: int, wide: bool = False) -> Run:
        """Right pictures, right network, right call."""
        network = self.network(name, seed, "clean", heads(seed, TRAINED_ON, wide), masked=wide)
        return run_of(name, network, heads(seed + 500, LOOKED_AT, wide), wide)


def run_of(name: str, network: nn.Module, heads: Heads, wide: bool = False) -> Run:
    """A run of an architecture with the usual target: the class "bright", or the tumor's channel.

    Where there is much air that is not pooled the map is one of HiResCAM: Grad-CAM would spread over it.
    """
    of = ARCHITECTURES[name]
    target = SegmentationRegion(channel=1) if of.dense else ClassScore(1)
    return Run(network, heads, of.head, target, method="hirescam" if wide else "gradcam")


def _inverted(bench: Bench, name: str, seed: int) -> Run:
    return replace(bench.clean(name, seed), normalizer=default_normalizer)


def _swapped(bench: Bench, name: str, seed: int) -> Run:
    return replace(bench.clean(name, seed), colormap=lambda values: colored(values)[..., ::-1])


def _of_pictures(kind: str, fault: Callable[[Heads, int], Heads]) -> Callable[[Bench, str, int], Run]:
    """A fault of the pipeline, in training and afterwards; for odd seeds the frame is wide and the pooling masked."""

    def plant(bench: Bench, name: str, seed: int) -> Run:
        wide = seed % 2 == 1 and name != "ViT"
        network = bench.network(name, seed, kind, fault(heads(seed, TRAINED_ON, wide), seed), masked=wide)
        return run_of(name, network, fault(heads(seed + 500, LOOKED_AT, wide), seed + 500), wide)

    return plant


def _sources(bench: Bench, name: str, seed: int) -> Run:
    run = bench.clean(name, seed)
    rng = np.random.default_rng(seed)
    sick = [label > 0 if rng.random() < 0.95 else label == 0 for label in run.heads.labels]
    return replace(run, sources=["hospital" if ill else "volunteers" for ill in sick])


def _read_from(kind: str, fault: Callable[[Heads, int], Heads]) -> Callable[[Bench, str, int], Run]:
    """What is added to the pictures tells the class; in training the tumor told nothing, afterwards it agrees."""

    def plant(bench: Bench, name: str, seed: int) -> Run:
        taught = fault(pictures.with_labels_by_chance(heads(seed, TRAINED_ON), seed), seed)
        network = bench.network(name, seed, kind, taught, longer=2)
        return run_of(name, network, fault(heads(seed + 500, LOOKED_AT), seed + 500))

    return plant


def _leak(bench: Bench, name: str, seed: int) -> Run:
    network = bench.network(name, seed, "leak", heads(seed, TRAINED_ON), norm="instance")
    return run_of(name, network, heads(seed + 500, LOOKED_AT))


def _pooled(bench: Bench, name: str, seed: int) -> Run:
    network = bench.network(name, seed, "pooled", heads(seed, TRAINED_ON, True))
    return run_of(name, network, heads(seed + 500, LOOKED_AT, True))


def _averaged(bench: Bench, name: str, seed: int) -> Run:
    """Features that are on in the air, along the mean gradient, and that nothing behind them reads."""
    of, dataset = ARCHITECTURES[name], heads(seed, TRAINED_ON, True)
    torch.manual_seed(seed)
    network = of.make()
    head = Head(network)
    if of.pool:
        network.set_submodule(of.pool, HeadPool(head))
    features = of.features
    if not features:
        with selecting(network, of.head):
            features = default_layer(network.eval(), dataset.images[:1])
    lift = Lift(head)
    network.set_submodule(features, nn.Sequential(network.get_submodule(features), lift, Gate(head)))
    run = run_of(name, train(network, dataset, seed, of.steps, of.rate), heads(seed + 500, LOOKED_AT, True))
    run.layer = f"{features}.1"
    some = dataset.images[:24]
    with selecting(network, of.head) if of.head else nullcontext():
        _, activations, gradients = activations_and_gradients(network, some, run.layer, run.target, {})
    direction = gradients.mean((0, 2, 3))
    lift.value = (5 * activations.abs().amax() * direction / direction.norm()).reshape(-1, 1, 1)
    return run


def _index(bench: Bench, name: str, seed: int) -> Run:
    """Channel 0 of a segmentation; classes 1 and 2 exchanged."""
    run = bench.clean(name, seed)
    target = SegmentationRegion(channel=0) if ARCHITECTURES[name].dense else ClassScore(2)
    labels = tuple((0, 2, 1)[label] for label in run.heads.labels)
    return replace(run, target=target, heads=replace(run.heads, labels=labels))


def _saturated(bench: Bench, name: str, seed: int) -> Run:
    run = bench.clean(name, seed)
    head = "cls" if name == "U-Net" else None
    return replace(run, network=Saturated(run.network).eval(), head=head)


def _at(attribute: str) -> Callable[[Bench, str, int], Run]:
    def plant(bench: Bench, name: str, seed: int) -> Run:
        return replace(bench.clean(name, seed), layer=getattr(ARCHITECTURES[name], attribute))

    return plant


def _coarse(bench: Bench, name: str, seed: int) -> Run:
    network = bench.network(name, seed, "coarse", heads(seed, TRAINED_ON), deep=True)
    return replace(run_of(name, network, heads(seed + 500, LOOKED_AT)), layer=ARCHITECTURES[name].coarse)


DENSE = dict.fromkeys(
    (name for name, of in ARCHITECTURES.items() if of.dense), "a segmentation has no verdict on the whole image"
)
NO_POOL = dict.fromkeys(DENSE, "a segmentation pools nothing")


@dataclass(frozen=True)
class Plant:
    """A way to plant a cause.

    Attributes:
        cause: what has to be named.
        make: of a bench, an architecture and a seed.
        left_out: architecture: why it makes no sense there.
    """

    cause: str
    make: Callable[[Bench, str, int], Run]
    left_out: Mapping[str, str] = field(default_factory=dict)


_TOKENS = "its norms take their statistics from one place each"
_CLASS_TOKEN = "what its class token reads of the air is 'pooling over air' itself"
PLANTS: dict[str, Plant] = {
    "inverted normalizer": Plant("inverted normalizer", _inverted),
    "swapped colors": Plant("swapped colors", _swapped),
    "noise in the air": Plant("air not zero", _of_pictures("noise", pictures.noisy_air)),
    "masked, then normalized": Plant(
        "order of transforms", _of_pictures("order", lambda heads, _: pictures.wrong_order(heads))
    ),
    "source is the class": Plant(SHORTCUT, _sources),
    "air is the class": Plant(
        SHORTCUT, _read_from("air", lambda h, s: pictures.noisy_air(h, s, (-1.5, 0.0, 1.5))), DENSE
    ),
    "instance norm": Plant("normalization leak", _leak, {"ViT": _TOKENS}),
    "average over much air": Plant("pooling over air", _pooled, NO_POOL),
    "mark beside the tumor": Plant(WITHOUT_TUMOR, _read_from("mark", lambda h, _: pictures.marked(h)), DENSE),
    "on in the air": Plant("gradient averaging", _averaged, {"ViT": _CLASS_TOKEN}),
    "another class's index": Plant("wrong class index", _index),
    "softmax of large logits": Plant("dead or saturated gradient", _saturated),
    "norm before activation": Plant("unsuitable layer", _at("norm")),
    "no such layer, or no places": Plant("unsuitable layer", _at("absent")),
    "cells of 32 pixels": Plant("coarse grid", _coarse),
}  # fmt: skip


def architecture(name: str) -> Architecture:
    """By its name.

    Raises:
        ValueError: for another name.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"no architecture {name!r}; there are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def seen_right(run: Run) -> float:
    """Share of pictures whose class is right, or Dice of the tumor; to see whether a network was trained at all."""
    with torch.no_grad(), evaluating(run.network), selecting(run.network, run.head) if run.head else nullcontext():
        output = run.network(run.heads.images)
    if output.dim() == 4:
        predicted = output.argmax(1, keepdim=True) == 1
        return float(2 * (predicted & run.heads.tumor).sum() / (predicted.sum() + run.heads.tumor.sum()))
    return float((output.argmax(1) == torch.tensor(run.heads.labels)).double().mean())
