"""Train ours and the real nnU-Net v2 on the same volumes for the same CPU time, and compare their masks.

    make nnunet
    python -m benchmarks.beside_nnunet --dataset_dir DIR --datalist_file LIST.json --out runs/beside \
        --spacing_mm 2 --spatial_size "[48,48,48]" --max_epochs 12 ...

What follows goes to ``train --joint --overlay configs/volumetric_patches.yaml``. Ours is trained first; nnU-Net gets
the CPU time that this took, one thread each, its own planning and preprocessing not counted. With ``--seconds`` it
gets that many and is trained beside ours, on another core. Both are in 3D, with the patches, batches and widths of
ours, as those that nnU-Net plans for a GPU make no progress in such a time; neither mirrors images when it predicts.
The masks of the test part are compared on the files' grid by one function. Trainings and nnU-Net's prediction that
are finished in ``--out`` are not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from benchmarks.beside_nnunet.theirs import DATASET
from benchmarks.timing import machine
from scripts.command import errors
from scripts.command.files import write_json
from scripts.command.locations import CONFIGS, ROOT
from scripts.command.overrides import merged_config, parse_overrides
from scripts.command.workflows import run_config
from scripts.data.datalists import schema as datalists
from scripts.data.datalists.clusters import Item, cluster, images_of
from scripts.data.datalists.nnunet import write_raw
from scripts.data.datalists.regions import SCHEMES
from scripts.measures.region_measures import region_measures, region_summary
from scripts.runs.folder import JOINT
from scripts.training.train import config_files
from transforms.reading import file_kind, read_volume

THEIRS = Path(__file__).with_name("theirs.py")
PYTHON = ROOT / ".venv-nnunet" / "bin" / "python"
OVERLAY = CONFIGS / "volumetric_patches.yaml"
SHOWN = ("dice", "nsd", "lesion_f1")


def child_seconds(command: Sequence[Any]) -> float:
    """Run a command on one thread; its CPU time, also where others run beside it.

    Raises:
        RuntimeError: when it fails.
    """
    child = subprocess.Popen([*map(str, command)], env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{command[0]} ended with {child.returncode}; its message stands above")
    return usage.ru_utime + usage.ru_stime


def train_ours(options: argparse.Namespace, overrides: Sequence[str], file: Path) -> dict[str, Any]:
    """Our training, once; what it took."""
    if not file.is_file():
        if (options.out / "run").exists():
            raise ValueError(
                f"{options.out / 'run'} was begun before, so its CPU time is not known; give another --out"
            )
        paths = [
            "--dataset_dir",
            options.dataset_dir,
            "--datalist_file",
            options.datalist_file,
            "--run_dir",
            options.out / "run",
        ]
        overlay = ["--joint", "--overlay", OVERLAY]
        seconds = child_seconds([sys.executable, "-m", "scripts", "train", *overlay, *paths, *overrides])
        write_json({"training_s": seconds, "values": list(overrides)}, file)
    done = dict(json.loads(file.read_text(encoding="utf-8")))
    if done["values"] != list(overrides):
        raise ValueError(
            f"{options.out} was trained with {' '.join(done['values'])}; give another --out for other values"
        )
    return done


def train_theirs(options: argparse.Namespace, overrides: Sequence[str], seconds: float, file: Path) -> dict[str, Any]:
    """nnU-Net's training and prediction, once; what they took."""
    if not file.is_file():
        datalist = datalists.read(options.datalist_file, options.dataset_dir)
        write_raw(datalist, options.dataset_dir, options.out / "raw" / DATASET)
        ours = merged_config(config_files(JOINT, [OVERLAY]), parse_overrides(overrides))
        filters, patch = ours["network_def"]["filters"], ours["spatial_size"]
        sizes = ["--filters", *filters, "--patch", *patch, "--batch", options.batch]
        child_seconds([options.python, THEIRS, options.out, "--seconds", seconds, *sizes, "--seconds_of_own_plan"])
    return dict(json.loads(file.read_text(encoding="utf-8")))


def predict_ours(run: Path, item: Item, dataset_dir: Path, out: Path) -> tuple[Path, float]:
    """Our mask of a case on its files' grid, and the CPU time that it took, the network's loading included."""
    files = [str(dataset_dir / image) for image in images_of(item)]
    start = time.process_time()
    run_config("inference.yaml", [run / "network.yaml"], input=files, output_dir=str(out), device="cpu")
    (mask,) = out.rglob("*_mask.nii.gz")
    return mask, time.process_time() - start


def masks_of(file: Path, regions: Mapping[str, Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(R, X, Y, Z) bool of a label map, and the sides of its voxels in mm (3,)."""
    values, affine = read_volume(file, file_kind(file))
    masks = torch.from_numpy(np.stack([np.isin(values, labels) for labels in regions.values()]))
    return masks, torch.from_numpy(nib.affines.voxel_sizes(affine))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.beside_nnunet", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--datalist_file", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of both, and of beside.json")
    text = "CPU time of nnU-Net, which is trained beside ours (default: after ours, as much as that took)"
    parser.add_argument("--seconds", type=float, help=text)
    parser.add_argument("--batch", type=int, default=2, help="patches of a step of nnU-Net (default: 2)")
    parser.add_argument("--python", type=Path, default=PYTHON, help="that has nnunetv2 (default: .venv-nnunet)")
    options, overrides = parser.parse_known_args(arguments)
    errors.start_logging()
    torch.set_num_threads(1)
    for name in ("dataset_dir", "datalist_file", "out"):
        setattr(options, name, getattr(options, name).resolve())
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.python.is_file():
        raise ValueError(f"no {options.python}: `make nnunet` makes the environment of nnU-Net")
    with ThreadPoolExecutor(2) as pool:
        our_training = pool.submit(train_ours, options, overrides, options.out / "ours.json")
        seconds = options.seconds or our_training.result()["training_s"]
        their_training = pool.submit(train_theirs, options, overrides, seconds, options.out / "theirs.json")
        ours, theirs = our_training.result(), their_training.result()

    datalist = datalists.read(options.datalist_file, options.dataset_dir)
    regions = datalist.get("regions") or SCHEMES["tumor"]
    described = json.loads((options.out / "raw" / DATASET / "dataset.json").read_text(encoding="utf-8"))["labels"]
    rows: dict[str, list[dict[str, Any]]] = {"TumorLens": [], "nnU-Net": []}
    spent_by_case = []
    for item in datalist["test"]:
        label = options.dataset_dir / item["label"]
        case = label.name.removesuffix(".nii.gz").removesuffix("_seg")
        mask, spent = predict_ours(options.out / "run", item, options.dataset_dir, options.out / "masks" / case)
        spent_by_case.append(spent)
        truth, pixel_mm = masks_of(label, regions)
        numbers = {name: np.atleast_1d(described[name]).tolist() for name in regions}
        said = {
            "TumorLens": masks_of(mask, regions),
            "nnU-Net": masks_of(options.out / "predicted" / f"{case}.nii.gz", numbers),
        }
        for name, (predicted, _) in said.items():
            figures = region_measures(predicted, truth, list(regions), pixel_mm)
            defined = {key: value if np.isfinite(value) else None for key, value in figures.items()}
            rows[name].append({"case": case, "cluster": cluster(item), **defined})
    summaries = {name: region_summary(of, list(regions)) for name, of in rows.items()}
    ours["prediction_s"] = sum(spent_by_case)
    write_json(
        {"machine": machine(), "ours": ours, "theirs": theirs, "summaries": summaries, "cases": rows},
        options.out / "beside.json",
    )
    print(_table(summaries, list(regions), ours, theirs, len(spent_by_case)))
    return 0


def _cell(mean: float | None, low: float | None, high: float | None) -> str:
    if mean is None:
        return "n/a"
    return f"{mean:.3f}" if low is None or high is None else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _table(summaries: Mapping[str, Any], regions: Sequence[str], ours: Any, theirs: Any, cases: int) -> str:
    lines = [f"| | {' | '.join(summaries)} |", "|---|---|---|"]
    for region in regions:
        for measure in SHOWN:
            figures = [summary[region][measure] for summary in summaries.values()]
            cells = [_cell(f["mean"], *f["ci95"]) for f in figures]
            lines.append(f"| {region}: {measure} ({figures[0]['n']} cases) | {' | '.join(cells)} |")
    for text, key, scale in (("training, CPU s", "training_s", 1), ("prediction, CPU s a case", "prediction_s", cases)):
        lines.append(f"| {text} | {ours[key] / scale:.0f} | {theirs[key] / scale:.0f} |")
    plan = theirs["own_plan"]
    lines += [
        "",
        f"nnU-Net: {theirs['steps']} steps of {theirs['step_s']:.2f} CPU s. Its own plan, patches of "
        f"{plan['patch_size']} in batches of {plan['batch_size']}, takes {theirs['own_plan_step_s']:.0f} CPU s a step.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    with errors.one_sentence_errors():
        raise SystemExit(main())
