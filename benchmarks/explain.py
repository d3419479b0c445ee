"""What explanations cost, in forward passes of the network, against MONAI's GradCAM (and pytorch-grad-cam) in one run.

    python -m benchmarks.explain [--size 256] [--volume 96 96 64] [--repeats 7] [--threads 1] [--clock cpu]
        [--out explain.json] [--check]

Every line is timed once a round, the forward pass first; a figure is the median over the rounds of its time divided by
the forward pass of the same round, so that a slower moment of the machine cancels. ``--clock cpu`` counts the
processor time of this process, all threads together, which other programs on the machine disturb least. Batch of one
image, random weights: neither changes the time. The evidence of a volume in windows is divided by plain inference of
that volume, the segmentation alone.

pytorch-grad-cam (``pip install --no-deps grad-cam ttach``) takes part where it is installed; it scales its maps so that
their smallest value is 0, which is its difference. The bundle does not need it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import monai.visualize
import torch
from torch import Tensor, nn

from benchmarks.timing import CLOCKS, add_options, machine, set_threads, timed
from scripts.command import errors
from scripts.command.files import write_json
from scripts.explain.cam import cam_pass
from scripts.explain.evidence import evidence_map, evidence_pass
from scripts.explain.maps import max_scaling, upsample
from scripts.explain.perturbation import scorecam
from scripts.explain.scores import COPIES
from scripts.explain.targets import ClassScore, SegmentationRegion, TumorLogOdds
from scripts.networks.multitask_dynunet import MultiTaskDynUNet

logger = logging.getLogger(__name__)

DECODER = ("upsamples.0", "upsamples.1", "upsamples.2", "output_block")
CLASS_LAYER = "head.features"
SCORECAM_LAYER = "head.features"
TOLERANCE = 1e-5
FOREIGN_CLASS = "pytorch-grad-cam, class map"
FOREIGN_DECODER = "pytorch-grad-cam, four decoder maps, one call each"


@dataclass
class Row:
    """One line of the result.

    Attributes:
        name: what was timed.
        forward_passes: median of its time in units of the forward pass (all outputs) of the same round.
        milliseconds: median of its time.
        target: most forward passes that it may take; None where nothing is promised.
        difference: largest difference of its maps, scaled to a maximum of 1, from those of the reference; None where
            there is none.
    """

    name: str
    forward_passes: float
    milliseconds: float
    target: float | None = None
    difference: float | None = None

    @property
    def met(self) -> bool:
        """Whether the target and the agreement with the reference are met."""
        fast = self.target is None or self.forward_passes <= self.target
        return fast and (self.difference is None or self.difference <= TOLERANCE)


class Both(nn.Module):
    """The whole prediction in one pass: returns the segmentation, keeps the class logits."""

    def __init__(self, network: MultiTaskDynUNet):
        super().__init__()
        self.network = network
        self.logits = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Segmentation logits of x (B, C, *spatial)."""
        outputs = self.network.multitask(x)
        self.logits = outputs["cls"].detach()
        return outputs["seg"]


def make_network(filters: Sequence[int] = (32, 64, 128, 256), evidence_channels: int = 64) -> MultiTaskDynUNet:
    """The network of configs/train.yaml, or a narrower one, with random weights."""
    torch.manual_seed(0)
    network = MultiTaskDynUNet(
        2, 1, 2, [3] * 4, [1, 2, 2, 2], [2] * 3, list(filters), num_classes=2, evidence_channels=evidence_channels
    ).eval()
    nn.init.normal_(network.head.evidence.conv.weight, std=0.5)
    return network


def make_image(size: int) -> Tensor:
    """(1, 1, size, size): an ellipse of noise in air of exactly 0, about 45 % of the image."""
    axis = torch.linspace(-1, 1, size)
    inside = (axis[:, None] / 0.85).square() + (axis[None] / 0.7).square() < 1
    noise = torch.randn(size, size, generator=torch.Generator().manual_seed(0)) + 0.3
    return (noise * inside)[None, None]


class _Output(nn.Module):
    """One output of the network from the image alone, which is what pytorch-grad-cam calls."""

    def __init__(self, network: nn.Module, output: str):
        super().__init__()
        self.network, self.output = network, output

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x, output=self.output)


# Names of torchvision that pytorch-grad-cam imports; none of them is used for a class activation map.
TORCHVISION = {
    "torchvision": (),
    "torchvision.transforms": ("Compose", "Normalize", "ToTensor"),
    "torchvision.transforms.functional": ("resize",),
}


def has_gradcams() -> bool:
    """Whether pytorch-grad-cam, and ttach that it imports, are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("pytorch_grad_cam", "ttach"))


def import_gradcams() -> Any:
    """The package pytorch-grad-cam, without torchvision if need be, of which there is no build for every torch.

    Modules with the names of `TORCHVISION` then stand in for it during the import, and are gone before anything else
    can take them for the real one.
    """
    absent = importlib.util.find_spec("torchvision") is None
    stubs = {name: ModuleType(name) for name in TORCHVISION} if absent else {}
    for name, stub in stubs.items():
        for attribute in TORCHVISION[name]:
            setattr(stub, attribute, None)
    sys.modules.update(stubs)
    try:
        return importlib.import_module("pytorch_grad_cam")
    finally:
        for name in stubs:
            del sys.modules[name]


def foreign_maps(
    network: nn.Module, x: Tensor, layers: Sequence[str], output: str, class_idx: int
) -> dict[str, Tensor]:
    """pytorch-grad-cam's Grad-CAM, one object and one call a layer; its maps on the image grid, as it scales them."""
    gradcams, model, result = import_gradcams(), _Output(network, output), {}
    for layer in layers:
        with gradcams.GradCAM(model, [network.get_submodule(layer)]) as cam:
            heatmaps = cam(x, targets=[lambda out: out[class_idx].sum()])
        result[layer] = torch.from_numpy(heatmaps)[:, None]
    return result


def stock_maps(network: nn.Module, x: Tensor, layers: Sequence[str], output: str, class_idx: int) -> dict[str, Tensor]:
    """MONAI's Grad-CAM, one object and one call a layer, as its users write it; the raw map on the image grid."""
    result = {}
    for layer in layers:
        cam = monai.visualize.GradCAM(network, layer, postprocessing=lambda maps: maps)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that MONAI's hooks fire for inputs without gradients
            result[layer] = cam(x, class_idx=class_idx, output=output).detach()
    return result


def _difference(maps: dict[str, Tensor], reference: dict[str, Tensor], size: Sequence[int]) -> float:
    worst = 0.0
    for name, expected in reference.items():
        actual = max_scaling(upsample(maps[name], size))
        if float(expected.max()) <= 0:
            raise ValueError(f"the reference map at {name!r} is empty: it proves nothing")
        worst = max(worst, float((actual - max_scaling(expected)).abs().max()))
    return worst


def measure(
    network: MultiTaskDynUNet,
    x: Tensor,
    repeats: int = 7,
    scorecam_batch: int = COPIES["cpu"],
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Time everything, compare the maps with MONAI's, and give the rows.

    Args:
        network: in evaluation mode, three upsampling blocks.
        x: (1, 1, *spatial).
        repeats: rounds.
        scorecam_batch: channels of Score-CAM in one forward pass.
        clock: seconds, of any beginning.

    Raises:
        ValueError: when a reference map is empty.
    """
    both, tumor, size = Both(network), TumorLogOdds(), tuple(x.shape[2:])
    inside = torch.ones(1, 1, *size)  # the whole image, which is what MONAI sums over
    everywhere = SegmentationRegion(inside, reduction="sum")
    maps: dict[str, Any] = {}

    def predict() -> None:
        with torch.no_grad():
            network.multitask(x)

    def class_map_too() -> None:
        with torch.no_grad():
            outputs = network.multitask(x)
        maps["evidence"] = evidence_map(outputs["evidence"], outputs["cls"], tumor)

    def decoder() -> None:
        layers = [f"network.{layer}" for layer in DECODER]
        maps["decoder"] = cam_pass(both, x, layers, everywhere, "gradcam", cancelled="empty").maps

    def class_gradcam() -> None:
        result = cam_pass(network, x, CLASS_LAYER, ClassScore(1), "gradcam", {"output": "cls"})
        maps["class"] = result.maps["gradcam", CLASS_LAYER]

    def scores(batch: int) -> None:
        inputs = {"output": "cls"}
        mask = (x != 0).any(1, keepdim=True)
        result = scorecam(network, x, SCORECAM_LAYER, tumor, inputs, mask, "foreground", batch_size=batch)
        maps[f"scorecam {batch}"] = result.maps["scorecam", SCORECAM_LAYER]

    foreign: dict[str, tuple[Callable[[], Any], float | None]] = {
        FOREIGN_CLASS: (lambda: maps.update(foreign_class=foreign_maps(network, x, [CLASS_LAYER], "cls", 1)), None),
        FOREIGN_DECODER: (lambda: maps.update(foreign_decoder=foreign_maps(network, x, DECODER, "seg", 1)), None),
    }
    channels = next(network.get_submodule("head.evidence").parameters()).shape[1]
    jobs: dict[str, tuple[Callable[[], Any], float | None]] = {
        "prediction (segmentation, classes, evidence)": (predict, None),
        "prediction + class map (evidence)": (class_map_too, 1.05),
        "class map alone (evidence)": (lambda: evidence_pass(network, x, tumor), 0.45),
        "prediction + four decoder maps, one pass": (decoder, 1.8),
        "class map by Grad-CAM, one pass": (class_gradcam, None),
        "MONAI GradCAM, class map": (
            lambda: maps.update(stock_class=stock_maps(network, x, [CLASS_LAYER], "cls", 1)),
            None,
        ),
        "MONAI GradCAM, four decoder maps, one call each": (
            lambda: maps.update(stock_decoder=stock_maps(network, x, DECODER, "seg", 1)),
            None,
        ),
        **(foreign if has_gradcams() else {}),
        f"Score-CAM, {channels} channels, {scorecam_batch} at a time": (lambda: scores(scorecam_batch), None),
        f"Score-CAM, {channels} channels, one at a time": (lambda: scores(1), None),
    }
    seconds = timed({name: job for name, (job, _) in jobs.items()}, repeats, clock)
    forward = seconds["prediction (segmentation, classes, evidence)"]
    rows = []
    for name, (_, target) in jobs.items():
        ratio = statistics.median(t / f for t, f in zip(seconds[name], forward, strict=True))
        rows.append(Row(name, ratio, 1000 * statistics.median(seconds[name]), target))
    decoder_maps = {layer: maps["decoder"]["gradcam", f"network.{layer}"] for layer in DECODER}
    by_name = {row.name.split(",")[0]: row for row in rows if not row.name.startswith(("MONAI", "pytorch"))}
    ours = {"decoder": decoder_maps, "class": {CLASS_LAYER: maps["class"]}}
    by_name["prediction + four decoder maps"].difference = _difference(ours["decoder"], maps["stock_decoder"], size)
    by_name["class map by Grad-CAM"].difference = _difference(ours["class"], maps["stock_class"], size)
    single = {"": upsample(maps["scorecam 1"], size)}
    batched = next(row for row in rows if row.name.startswith("Score-CAM"))
    batched.difference = _difference({"": maps[f"scorecam {scorecam_batch}"]}, single, size)
    for row in rows:
        if row.name in (FOREIGN_CLASS, FOREIGN_DECODER):
            kind = "class" if row.name == FOREIGN_CLASS else "decoder"
            row.difference = _difference(ours[kind], maps[f"foreign_{kind}"], size)
    return rows


def make_patch_network(
    window: int = 64, filters: Sequence[int] = (32, 64, 128, 256), evidence_channels: int = 64
) -> MultiTaskDynUNet:
    """The network of configs/volumetric_patches.yaml for one sequence, or a narrower one, with random weights."""
    torch.manual_seed(0)
    return MultiTaskDynUNet(
        3, 1, 2, [3] * 4, [1, 2, 2, 2], [2] * 3, list(filters), num_classes=2, evidence_channels=evidence_channels,
        window=[window] * 3,
    ).eval()  # fmt: skip


def measure_windows(
    network: MultiTaskDynUNet, x: Tensor, repeats: int = 7, clock: Callable[[], float] = time.perf_counter
) -> Row:
    """The line of a volume that goes through a network in windows: all outputs, in plain inferences of it.

    Args:
        network: in evaluation mode, of a window smaller than the volume.
        x: (1, C, X, Y, Z).
        repeats, clock: see `measure`.

    Raises:
        ValueError: for a volume that fits into one window.
    """
    if not network.in_windows(x):
        raise ValueError(f"a volume of {list(x.shape[2:])} goes through windows of {network.window} in one piece")

    def plain() -> None:
        with torch.no_grad():
            network.multitask(x, classification=False)

    def evidence_too() -> None:
        with torch.no_grad():
            outputs = network.multitask(x)
        evidence_map(outputs["evidence"], outputs["cls"], TumorLogOdds())

    seconds = timed({"plain": plain, "evidence": evidence_too}, repeats, clock)
    ratio = statistics.median(e / p for e, p in zip(seconds["evidence"], seconds["plain"], strict=True))
    name = "volume in windows + class map (evidence), in plain inferences"
    return Row(name, ratio, 1000 * statistics.median(seconds["evidence"]), 1.3)


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    lines = ["| | forward passes | ms | target | difference from reference |", "|---|---|---|---|---|"]
    for row in rows:
        target = (
            ""
            if row.target is None
            else f"<= {row.target:g}: {'met' if row.forward_passes <= row.target else 'MISSED'}"
        )
        difference = "" if row.difference is None else f"{row.difference:.1e}"
        lines.append(f"| {row.name} | {row.forward_passes:.2f} | {row.milliseconds:.1f} | {target} | {difference} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 1 with ``--check`` when a target is missed or maps differ, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.explain", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--size", type=int, default=256, help="side of the image in pixels, a multiple of 8")
    parser.add_argument("--volume", type=int, nargs=3, default=[96, 96, 64], help="voxels, in windows of 64 a side")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    add_options(parser, threads=0, clock="wall")
    options = parser.parse_args(arguments)
    errors.start_logging()
    if options.repeats < 1:
        raise ValueError(f"--repeats: expected 1 or more, got {options.repeats}")
    set_threads(options.threads)
    logger.info("%d px, %d rounds, %s, %s time", options.size, options.repeats, machine(), options.clock)
    rows = measure(make_network(), make_image(options.size), options.repeats, clock=CLOCKS[options.clock])
    volume = torch.randn(1, 1, *options.volume, generator=torch.Generator().manual_seed(0))
    rows.append(measure_windows(make_patch_network(), volume, options.repeats, CLOCKS[options.clock]))
    print(table(rows))
    if options.out:
        write_json(
            {"machine": machine(), "clock": options.clock, "size": options.size, "rows": [asdict(row) for row in rows]},
            options.out,
        )
    return int(options.check and not all(row.met for row in rows))


if __name__ == "__main__":
    with errors.one_sentence_errors():
        raise SystemExit(main())
