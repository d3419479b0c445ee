"""The side of nnU-Net, run by the Python of its own environment (`make nnunet`); imports nothing of ours.

    .venv-nnunet/bin/python benchmarks/beside_nnunet/theirs.py ROOT --seconds 1800 --filters 16 32 64 --patch 48 48 48

ROOT holds ``raw/Dataset001_Beside``; ``preprocessed``, ``results``, ``predicted`` and ``theirs.json`` are written
there. The plan is nnU-Net's own but for patch, batch and widths, which are given: with those that it plans for a GPU a
step takes minutes on a CPU (``--seconds_of_own_plan`` measures it).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

NUMBER, DATASET, CONFIGURATION, FOLD = 1, "Dataset001_Beside", "3d_fullres", 0
EPOCHS, PILOT = 12, 4


def cpu_seconds() -> float:
    """CPU time of this process and of those that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def planned(root: Path) -> Path:
    """Fingerprint, nnU-Net's own plan, and the split of the datalist; the plan's file."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments

    extract_fingerprints([NUMBER], num_processes=1)
    plan_experiments([NUMBER])
    folder = root / "preprocessed" / DATASET
    split = root / "raw" / DATASET / "splits_final.json"
    (folder / split.name).write_bytes(split.read_bytes())
    return folder / "nnUNetPlans.json"


def resized(file: Path, filters: list[int], patch: list[int], batch: int) -> None:
    """Give the plan another patch, batch and network of as many levels as filters."""
    plans = json.loads(file.read_text(encoding="utf-8"))
    plan = plans["configurations"][CONFIGURATION]
    plan |= {"patch_size": patch, "batch_size": batch}
    network, levels = plan["architecture"]["arch_kwargs"], len(filters)
    network |= {
        "n_stages": levels,
        "features_per_stage": filters,
        "kernel_sizes": [[3] * 3] * levels,
        "strides": [[1] * 3, *[[2] * 3] * (levels - 1)],
        "n_conv_per_stage": [2] * levels,
        "n_conv_per_stage_decoder": [2] * (levels - 1),
    }
    file.write_text(json.dumps(plans), encoding="utf-8")


def trainer_of(epochs: int, iterations: int) -> Any:
    """A trainer of nnU-Net for so many iterations."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args(str(NUMBER), CONFIGURATION, FOLD, device=torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, iterations, 1
    return trainer


def seconds_a_step(steps: int) -> float:
    """CPU seconds of a training step, augmentation included: the mean of so many, after one that is not counted."""
    trainer = trainer_of(1, PILOT)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    for k in range(steps + 1):
        if k == 1:
            start = cpu_seconds()
        trainer.train_step(next(trainer.dataloader_train))
    return (cpu_seconds() - start) / steps


def train(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Plan, preprocess and train; the plan, the steps and the CPU time of each part."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess

    start = cpu_seconds()
    file = planned(root)
    result: dict[str, Any] = {"own_plan": json.loads(file.read_text(encoding="utf-8"))["configurations"][CONFIGURATION]}
    preprocess([NUMBER], configurations=[CONFIGURATION], num_processes=[1])
    result["preprocessing_s"] = cpu_seconds() - start
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # augmentation in this process
    if options.seconds_of_own_plan:
        result["own_plan_step_s"] = seconds_a_step(1)
        print(f"a step of its own plan takes {result['own_plan_step_s']:.1f} CPU s", flush=True)
    resized(file, options.filters, options.patch, options.batch)
    step = seconds_a_step(PILOT)
    iterations = max(1, round(options.seconds / step / EPOCHS))
    print(f"a step takes {step:.2f} CPU s: {EPOCHS} epochs of {iterations}", flush=True)
    start = cpu_seconds()
    trainer = trainer_of(EPOCHS, iterations)
    trainer.run_training()
    seconds = cpu_seconds() - start
    return result | {
        "step_s": step,
        "steps": EPOCHS * iterations,
        "training_s": seconds,
        "folder": trainer.output_folder_base,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--seconds", type=float, required=True, help="CPU time of the training")
    parser.add_argument("--filters", type=int, nargs="+", required=True, help="of the encoder's levels")
    parser.add_argument("--patch", type=int, nargs=3, required=True)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument(
        "--seconds_of_own_plan", action="store_true", help="measure a step of nnU-Net's own plan as well"
    )
    options = parser.parse_args()
    root = options.root.resolve()
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(root / name)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"}  # the planner takes no 0
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    trained = root / "trained.json"
    if not trained.is_file():
        trained.write_text(json.dumps(train(root, options), indent=1), encoding="utf-8")
    result = json.loads(trained.read_text(encoding="utf-8"))
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(result["folder"], (FOLD,), "checkpoint_final.pth")
    (root / "predicted").mkdir(exist_ok=True)
    start, wall = cpu_seconds(), time.monotonic()
    predictor.predict_from_files_sequential(str(root / "raw" / DATASET / "imagesTs"), str(root / "predicted"))
    result |= {"prediction_s": cpu_seconds() - start, "prediction_wall_s": time.monotonic() - wall}
    (root / "theirs.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
