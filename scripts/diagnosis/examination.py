"""One diagnosis: the subject, all findings about it, the map that the user looks at, and the same map with more air."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from scripts.data.datalists.folders import IMAGE_SUFFIXES
from scripts.diagnosis.inputs import Samples
from scripts.diagnosis.network import padding
from scripts.diagnosis.shortcut import shortcut, shortcut_rows
from scripts.explain.diagnosis import diagnose
from scripts.explain.effect_findings import air_effect
from scripts.explain.findings import CANNOT_TELL, DOES_NOT_HOLD, FOLLOWS, HOLDS, Finding
from scripts.explain.layers import LayerError
from scripts.explain.maps import max_scaling, upsample
from scripts.explain.measures import case_measures
from scripts.explain.methods import METHODS, explain
from scripts.explain.network_findings import pad_with_air
from scripts.explain.picture_findings import swapped_pictures
from scripts.explain.recording import default_layer
from scripts.explain.targets import SegmentationRegion, Target
from scripts.interventions import membrane
from scripts.interventions.regions import grow

__all__ = ["Examination", "Subject", "examine"]

logger = logging.getLogger(__name__)

BATCH = 8
OWN_PIPELINE = "your own preprocessing was not given; behind this bundle's, "


@dataclass
class Subject:
    """What is diagnosed.

    Attributes:
        network: in evaluation mode, on the CPU.
        samples: images as it gets them.
        target, method, layer: of the map that is looked at; layer None: chosen.
        forward_kwargs: arguments of the network's `forward`.
        title: what the page is about.
        normalizer, colormap: functions for the finished map, None where unknown, and their names.
        pictures: folder of ready heatmaps or overlays, named as the images; None for none.
        pipeline_known: the samples came through the pipeline that the network is used with.
        objection: against the order of its transforms.
        sources, labels: of all items of the datalist, beyond the samples; a source of "" and a label of -1 are unknown.
        classes: names by index.
        notes: how it was chosen, sentences for the page.
    """

    network: nn.Module
    samples: Samples
    target: Target
    method: str = "gradcam"
    layer: str | None = None
    forward_kwargs: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    normalizer: Callable[[Tensor], Any] | None = None
    normalizer_name: str = ""
    colormap: Callable[[np.ndarray], Any] | None = None
    colormap_name: str = ""
    pictures: Path | None = None
    pipeline_known: bool = True
    objection: str | None = None
    sources: Sequence[str] = ()
    labels: Sequence[int] = ()
    classes: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Examination:
    """A subject and what was found.

    Attributes:
        subject: what was diagnosed.
        layer: the explained layer; None where none could be chosen.
        pad: pixels of air that were added on a side.
        findings: one a cause.
        rows: of `shortcut.shortcut_rows`.
        maps: (B, 1, *layer grid), raw, >= 0, of all images; None where the layer cannot be explained.
        padded_maps: (B, 1, *spatial), the map of the image with more air, divided by its maximum and then cut to the
            image; None where not possible.
        measures: name: mean over the maps, see `measures.case_measures`.
        given_pictures: (name, RGB) of the user's own pictures.
        without_tumor: the images with their tumors painted out; None where no image has a mask.
    """

    subject: Subject
    layer: str | None
    pad: int
    findings: list[Finding] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    maps: Tensor | None = None
    padded_maps: Tensor | None = None
    measures: dict[str, float] = field(default_factory=dict)
    given_pictures: list[tuple[str, np.ndarray]] = field(default_factory=list)
    without_tumor: Tensor | None = None

    @property
    def consequences(self) -> list[Finding]:
        """Findings that follow from those that hold."""
        return [finding for finding in self.findings if finding.verdict == FOLLOWS]

    @property
    def holding(self) -> list[Finding]:
        """Findings that hold of their own."""
        return [finding for finding in self.findings if finding.verdict == HOLDS]


def examine(subject: Subject) -> Examination:
    """Test every cause.

    Raises:
        ValueError: for an unknown method, or pictures that cannot be read.
    """
    if subject.method not in METHODS:
        raise ValueError(f"method {subject.method!r} is none of {', '.join(METHODS)}")
    samples, network, kwargs = subject.samples, subject.network, dict(subject.forward_kwargs)
    layer = subject.layer
    if layer is None:
        try:
            dense = isinstance(subject.target, SegmentationRegion)
            layer = default_layer(network, samples.images[:1], kwargs, dense=dense)
        except LayerError as error:
            subject.notes.append(f"no layer was given, and none could be chosen: {error}")
    result = Examination(subject, layer, padding(network, samples.images, kwargs))
    result.rows = shortcut_rows(samples)
    result.without_tumor = painted_out(samples)
    labels, sources = subject.labels or samples.labels, subject.sources or samples.sources
    followed = None
    if any(row["flagged"] for row in result.rows):
        followed = air_effect(network, samples.images, samples.foreground, samples.labels, subject.target, kwargs)
    result.findings = diagnose(
        network,
        samples.images,
        samples.foreground,
        subject.target,
        layer,
        samples.labels,
        samples.tumor,
        None,
        subject.normalizer,
        subject.colormap,
        kwargs,
        result.pad,
        samples.estimated,
        subject.objection,
        subject.method,
        result.without_tumor,
        shortcut(samples, result.rows, sources, labels, subject.pipeline_known, followed),
    )
    if not subject.pipeline_known:
        result.findings = [_of_another_pipeline(finding) for finding in result.findings]
    _maps(result)
    if subject.pictures is not None:
        _look_at_pictures(result)
    return result


def painted_out(samples: Samples) -> Tensor | None:
    """The images with a membrane in place of each tumor and its rim; None where no image has a mask."""
    if samples.tumor is None or not bool(samples.tumor.any()):
        return None
    images = samples.images.clone()
    rim = max(1, round(max(images.shape[2:]) / 64))
    for i, (tumor, inside) in enumerate(zip(samples.tumor != 0, samples.foreground != 0, strict=True)):
        tissue = inside[0].numpy()
        hole = grow(tumor[0].numpy(), rim) & tissue
        if hole.any() and (tissue & ~hole).any():
            images[i] = torch.from_numpy(membrane.solve(images[i].numpy(), hole, tissue))
    for region in (samples.foreground != 0, torch.ones_like(samples.foreground, dtype=torch.bool)):
        images = _alike(images, samples.images, region)
    return images


def _alike(images: Tensor, before: Tensor, region: Tensor) -> Tensor:
    """Changed images with the mean and deviation in a region that a pipeline gave to all images before, if it did.

    Without a bright tumor the same pipeline would have made the rest of the head brighter.
    """
    mean, deviation = _moments(before, region)
    if len(before) < 2 or float(mean.std(0).max()) > 0.01 or float((deviation.std(0) / deviation.mean(0)).max()) > 0.01:
        return images
    own_mean, own_deviation = _moments(images, region)
    scaled = (images - own_mean) / own_deviation.clamp(min=1e-6) * deviation + mean
    return torch.where(region, scaled, images)


def _moments(images: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each sample and channel in a region, (B, C, 1, ...)."""
    axes, inside = tuple(range(2, images.dim())), region.to(images.dtype)
    count = inside.sum(axes, keepdim=True)
    mean = (images * inside).sum(axes, keepdim=True) / count
    return mean, (((images - mean) ** 2 * inside).sum(axes, keepdim=True) / count).sqrt()


def _of_another_pipeline(finding: Finding) -> Finding:
    of_air = ("air not zero", "order of transforms")
    if (finding.cause not in of_air and finding.follows not in of_air) or finding.verdict == CANNOT_TELL:
        return finding
    advice = "give your own: --preprocessing FILE, a config with 'preprocessing', as bundles have it"
    return replace(finding, verdict=CANNOT_TELL, reason=OWN_PIPELINE + finding.reason, advice=advice)


def _explained(result: Examination, images: Tensor) -> Tensor:
    """Raw maps (B, 1, *layer grid), a few samples at a time."""
    subject, parts = result.subject, []
    kind = METHODS[subject.method]
    layers = result.layer if kind == "layer" else None
    for start in range(0, len(images), BATCH):
        index = torch.arange(start, min(start + BATCH, len(images)))
        target = subject.target.take(index)
        kwargs = dict(subject.forward_kwargs)
        explanation = explain(
            subject.network, images[index], subject.method, layers, target, forward_kwargs=kwargs, cancelled="empty"
        )
        parts.append(next(value for (method, _), value in explanation.maps.items() if method == subject.method))
    return torch.cat(parts)


def _maps(result: Examination) -> None:
    """The map that is looked at, what it measures, and the same with more air."""
    samples = result.subject.samples
    try:
        result.maps = _explained(result, samples.images).detach().float().clamp(min=0)
    except LayerError as error:
        result.subject.notes.append(f"no map could be made: {error}")
        return
    inside = samples.foreground.float()
    tumor = torch.zeros_like(inside) if samples.tumor is None else samples.tumor
    measured = case_measures(result.maps, tumor, inside)
    names = ("background_energy", "background_energy_layer", "tumor_energy", "pointing_game", "empty")
    for name in names:
        values = measured[name][torch.isfinite(measured[name])]
        if len(values):
            result.measures[name] = float(values.mean())
    pad, size = result.pad, samples.images.shape[2:]
    padded = pad_with_air(samples.images, samples.foreground, pad)
    try:
        grown = _explained(result, padded).detach().float().clamp(min=0)
    except (RuntimeError, ValueError, AssertionError) as error:
        logger.info("no map with more air: %s", str(error).splitlines()[0])
        return
    on_image = max_scaling(upsample(grown, padded.shape[2:]))  # raw Grad-CAM shrinks with the number of cells
    for axis, length in enumerate(size):
        on_image = on_image.narrow(2 + axis, pad, length)
    result.padded_maps = on_image
    change = (on_image - max_scaling(upsample(result.maps, size))).abs().flatten(1).amax(1)
    result.measures["map_change_with_more_air"] = float(change.median())


def _look_at_pictures(result: Examination) -> None:
    """Compare ready pictures with the maps, and put what is found into 'swapped colors'."""
    folder, samples = Path(str(result.subject.pictures)), result.subject.samples
    if not folder.is_dir():
        raise FileNotFoundError(f"heatmaps: {folder} is not a folder")
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise ValueError(f"heatmaps: no picture in {folder}")
    by_name = {path.stem: i for i, name in enumerate(samples.names) for path in files if path.stem.startswith(name)}
    chosen = [path for path in files if path.stem in by_name] or files
    result.given_pictures = [(p.stem, np.asarray(Image.open(p).convert("RGB"))) for p in chosen[:12]]
    pictures = [picture for _, picture in result.given_pictures]
    swapped = None
    if (
        result.maps is not None
        and samples.images.dim() == 4
        and all(stem in by_name for stem, _ in result.given_pictures)
    ):
        scaled = max_scaling(upsample(result.maps, samples.images.shape[2:]))
        planes = [
            np.asarray(Image.fromarray(scaled[by_name[stem], 0].numpy().T).resize(picture.shape[1::-1]))
            for stem, picture in result.given_pictures
        ]
        swapped = swapped_pictures(pictures, planes)
    if swapped is None or swapped.verdict == CANNOT_TELL:
        alone = swapped_pictures(pictures)
        swapped = alone if swapped is None or alone.verdict != CANNOT_TELL else swapped
    of_function = next(finding for finding in result.findings if finding.cause == swapped.cause)
    verdicts = {swapped.verdict, of_function.verdict}
    verdict = HOLDS if HOLDS in verdicts else DOES_NOT_HOLD if DOES_NOT_HOLD in verdicts else CANNOT_TELL
    reason = f"of {len(pictures)} pictures in {folder}: {swapped.reason}"
    if of_function.figures:
        reason += f"; of the color map: {of_function.reason}"
    merged = Finding(swapped.cause, verdict, {**of_function.figures, **swapped.figures}, reason, swapped.advice)
    result.findings = [merged if finding.cause == swapped.cause else finding for finding in result.findings]
