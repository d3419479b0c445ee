"""What one volume of four sequences costs beside its windows: files to mask and evidence on disk, and peak memory.

    python -m benchmarks.volumes [--size 240 240 155] [--window 128] [--threads 2] [--clock wall] [--check]
    python -m benchmarks.volumes --size 512 512 400 --enlarge 2 --filters 8 16 32 32 --memory
    python -m benchmarks.volumes ... --mirror_axes 0 1 2

A phantom case at 1 mm is laid into a grid of the given size and predicted by ``configs/inference.yaml`` with the
network of ``configs/volumetric_patches.yaml`` (random weights): four files are read, cut to the head, inferred in
windows, brought back to the files' grid and written. The time is compared with that of the forward passes of the same
windows alone. The memory is the largest that the process held until the results were written; the interpreter and its
libraries are in it. With ``--memory`` it is the point: it is compared with the files as float32, the windows are
counted and their passes not timed by themselves. ``--enlarge`` makes each voxel of the phantom several: large files.
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser

from benchmarks.rows import Row, reported
from benchmarks.timing import CLOCKS, add_options, peak_bytes, set_threads
from scripts.command import errors
from scripts.command.locations import CONFIGS
from scripts.command.workflows import run_config
from scripts.data.datalists.regions import SCHEMES
from scripts.inference.pipeline import Inference, slices_first
from scripts.networks.windows import evidence_stride, stitched
from scripts.phantoms.sequences import SEQUENCES, phantom_case

logger = logging.getLogger(__name__)

LONGEST, MOST_GB = 1.10, 6.0
MOST_SHARE = 3.0  # of the files' float32, with --memory
BACKGROUND = 3.0  # taken from the random logits of every region, so that little is tumor


def made_case(folder: Path, size: Sequence[int], enlarge: int = 1) -> list[str]:
    """Four files of a phantom with a tumor at 1 mm, in the middle of a grid of air of this size.

    Args:
        folder: of the files.
        size: of the grid.
        enlarge: voxels of the grid along each axis that a voxel of the phantom becomes.
    """
    case = phantom_case([0, 1], True)
    files = []
    for name in SEQUENCES:
        image = case.images[name]
        for axis in range(3):
            image = image.repeat(enlarge, axis=axis)
        grid = np.zeros(size, image.dtype)
        low = [max(0, (n - m) // 2) for n, m in zip(size, image.shape, strict=True)]
        cut = [max(0, (m - n) // 2) for n, m in zip(size, image.shape, strict=True)]
        kept = image[tuple(slice(c, c + n) for c, n in zip(cut, size, strict=True))]
        grid[tuple(slice(a, a + n) for a, n in zip(low, kept.shape, strict=True))] = kept
        files.append(str(folder / f"case_{name}.nii.gz"))
        nib.save(nib.Nifti1Image(grid, np.diag([-1.0, -1.0, 1.0, 1.0])), files[-1])
    return files


def network_values(window: int, filters: Sequence[int] | None = None) -> dict[str, Any]:
    """The network of ``volumetric_patches.yaml`` and what its definition refers to, of three regions and two classes.

    Args:
        window: voxels a side of its patches.
        filters: in place of those of the config.
    """
    train, patches = (
        yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))
        for name in ("train.yaml", "volumetric_patches.yaml")
    )
    changed = {key.partition("#")[2]: value for key, value in patches.items() if key.startswith("network_def#")}
    definition = {**train["network_def"], **changed, **({"filters": list(filters)} if filters else {})}
    return {
        "spatial_size": [window] * 3,
        "spacing_mm": 1.0,
        "regions": SCHEMES["brats2017"],
        "num_classes": 2,
        "network_def": definition,
    }


def made_overlay(folder: Path, window: int, filters: Sequence[int] | None = None) -> Path:
    """Overlay of ``inference.yaml`` with the network of patches and random weights."""
    classes, weights = {"0": "no_tumor", "1": "tumor"}, str(folder / "model.pt")
    values = {**network_values(window, filters), "classes": classes, "weights": weights}
    torch.manual_seed(0)
    network = ConfigParser(dict(values)).get_parsed_content("network_def")
    with torch.no_grad():
        network.output_block.conv.conv.bias -= BACKGROUND
    torch.save(network.state_dict(), folder / "model.pt")
    path = folder / "network.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def bare_passes(
    overlay: Path, files: Sequence[str], clock: Callable[[], float], computed: bool = True
) -> tuple[float, int]:
    """Seconds of the forward passes of all windows with a head, and their number; they can be counted alone."""
    inference = Inference(overlay=overlay, device="cpu")
    network: Any = inference.network
    x = slices_first(inference.prepare({"image": list(files)})["image"]).contiguous()
    seconds: list[float] = []

    def passed(image: torch.Tensor, mask: torch.Tensor, _place: tuple[slice, ...]) -> Mapping[str, torch.Tensor]:
        start = clock()
        outputs = network.outputs(*network.encode(image, mask)) if computed else blank
        seconds.append(clock() - start)
        return outputs

    with torch.no_grad():
        cells = [w // s for w, s in zip(network.window, evidence_stride(network), strict=True)]
        blank = {"seg": torch.zeros(1, network.out_channels, *network.window)}
        blank["evidence"] = torch.zeros(1, network.num_classes, *cells)
        stitched(network, x, window_outputs=passed)
    return sum(seconds), len(seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 1 with ``--check`` when a target is missed, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.volumes", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--size", type=int, nargs=3, default=[240, 240, 155], help="voxels of 1 mm of the files")
    parser.add_argument("--window", type=int, default=128, help="voxels a side")
    parser.add_argument("--filters", type=int, nargs=4, help="of the network; default: those of the config")
    parser.add_argument("--enlarge", type=int, default=1, help="voxels a side that a voxel of the phantom becomes")
    parser.add_argument("--mirror_axes", type=int, nargs="+", help="average over images mirrored along these axes")
    parser.add_argument("--memory", action="store_true", help="memory alone, as a share of the files as float32")
    add_options(parser, threads=2, clock="wall")
    options = parser.parse_args(arguments)
    errors.start_logging()
    set_threads(options.threads)
    clock = CLOCKS[options.clock]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # what drawing takes is not of the prediction
            files = apart.submit(made_case, folder, options.size, options.enlarge).result()
        overlay = made_overlay(folder, options.window, options.filters)
        before, start = peak_bytes() / 1e9, clock()
        run_config(
            "inference.yaml", [overlay], input=files, output_dir=str(folder / "out"), device="cpu",
            mirror_axes=options.mirror_axes,
        )  # fmt: skip
        whole, memory = clock() - start, peak_bytes() / 1e9
        passes, windows = bare_passes(overlay, files, clock, computed=not options.memory)
    if options.memory:
        raw = len(files) * math.prod(options.size) * 4 / 1e9
        rows = [
            Row("peak memory / files as float32", memory / raw, target=MOST_SHARE),
            Row("peak memory", memory, "GB"),
            Row("of it held before the files were read", before, "GB"),
            Row(f"files to results, {windows} windows", whole, "s"),
        ]
    else:
        rows = [
            Row(
                "files to results / forward passes of the windows",
                whole / passes,
                target=None if options.mirror_axes else LONGEST,
            ),
            Row("peak memory", memory, "GB", target=MOST_GB),
            Row("files to results", whole, "s"),
            Row(f"forward passes of {windows} windows", passes, "s"),
        ]
    return reported(rows, options)


if __name__ == "__main__":
    with errors.one_sentence_errors():
        raise SystemExit(main())
