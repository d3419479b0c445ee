"""What one volume of four sequences costs beside its windows: files to mask and evidence on disk, and peak memory.

    python -m benchmarks.volumes [--size 240 240 155] [--window 128] [--threads 2] [--clock wall] [--check]

A phantom case at 1 mm is laid into a grid of the given size and predicted by ``configs/inference.yaml`` with the
network of ``configs/volumetric_patches.yaml`` (random weights): four files are read, cut to the head, inferred in
windows, brought back to the files' grid and written. The time is compared with that of the forward passes of the same
windows alone. The memory is the largest that the process held until the results were written; the interpreter and its
libraries are in it.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser

from benchmarks.rows import Row, table
from benchmarks.timing import CLOCKS, add_options, machine, peak_bytes, set_threads
from scripts.command import errors
from scripts.command.locations import CONFIGS
from scripts.command.workflows import run_config
from scripts.data.datalists.regions import SCHEMES
from scripts.inference.pipeline import Inference, slices_first
from scripts.networks.windows import stitched
from scripts.phantoms.sequences import SEQUENCES, phantom_case
from scripts.runs.folder import write_json

logger = logging.getLogger(__name__)

LONGEST, MOST_GB = 1.10, 6.0
BACKGROUND = 3.0  # taken from the random logits of every region, so that little is tumor


def made_case(folder: Path, size: Sequence[int]) -> list[str]:
    """Four files of a phantom with a tumor at 1 mm, in the middle of a grid of air of this size."""
    case = phantom_case([0, 1], True)
    files = []
    for name in SEQUENCES:
        image = case.images[name]
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


def bare_passes(overlay: Path, files: Sequence[str], clock: Callable[[], float]) -> tuple[float, int]:
    """Seconds of the forward passes of all windows with a head, and their number."""
    inference = Inference(overlay=overlay, device="cpu")
    x = slices_first(inference.prepare({"image": list(files)})["image"]).contiguous()
    seconds: list[float] = []

    def passed(image: torch.Tensor, mask: torch.Tensor, _place: tuple[slice, ...]) -> Mapping[str, torch.Tensor]:
        start = clock()
        outputs = inference.network.outputs(*inference.network.encode(image, mask))
        seconds.append(clock() - start)
        return outputs

    with torch.no_grad():
        stitched(inference.network, x, window_outputs=passed)
    return sum(seconds), len(seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 1 with ``--check`` when a target is missed, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.volumes", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--size", type=int, nargs=3, default=[240, 240, 155], help="voxels of 1 mm of the files")
    parser.add_argument("--window", type=int, default=128, help="voxels a side")
    parser.add_argument("--filters", type=int, nargs=4, help="of the network; default: those of the config")
    add_options(parser, threads=2, clock="wall")
    options = parser.parse_args(arguments)
    errors.start_logging()
    set_threads(options.threads)
    clock = CLOCKS[options.clock]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, overlay = made_case(folder, options.size), made_overlay(folder, options.window, options.filters)
        start = clock()
        run_config("inference.yaml", [overlay], input=files, output_dir=str(folder / "out"), device="cpu")
        whole, memory = clock() - start, peak_bytes() / 1e9
        passes, windows = bare_passes(overlay, files, clock)
    rows = [
        Row("files to results / forward passes of the windows", whole / passes, target=LONGEST),
        Row("peak memory", memory, "GB", target=MOST_GB),
        Row("files to results", whole, "s"),
        Row(f"forward passes of {windows} windows", passes, "s"),
    ]
    print(table(rows))
    if options.out:
        about = {"machine": machine(), "clock": options.clock, "options": vars(options)}
        write_json(json.loads(json.dumps({**about, "rows": [asdict(row) for row in rows]})), options.out)
    return int(options.check and not all(row.met for row in rows))


if __name__ == "__main__":
    with errors.one_sentence_errors():
        raise SystemExit(main())
