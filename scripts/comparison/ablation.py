"""What each part of the design is worth: trains the variants over seeds, and compares them with the whole.

Running it again continues; what is finished is kept::

    python -m scripts ablation --dataset_dir DIR --datalist_file LIST.json --out runs/ablation --seeds 0 1 2
    python -m scripts ablation ... --overlay configs/demo.yaml --epochs 0.5 --only ours baseline
    python -m scripts ablation ... --table_only
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.certificate.certify import FOLDER as CERTIFICATE
from scripts.command.locations import CONFIGS
from scripts.command.overrides import parse_overrides
from scripts.command.verbs import Outcome, compute_values
from scripts.comparison import comparison_files
from scripts.comparison.certified import certify_missing
from scripts.comparison.certified import write as write_certified
from scripts.comparison.compare import evaluate_missing, read_models
from scripts.comparison.comparison import compare
from scripts.comparison.ensembles import make_ensemble
from scripts.comparison.trained_models import stage_folders
from scripts.runs import folder as runs
from scripts.training.train import by_stage, train

logger = logging.getLogger(__name__)

REFERENCE = "ours"
ENSEMBLE = ("densenet121", "efficientnet_b0")
NOT_CERTIFIED = ("segmentation_only", "ensemble")


@dataclass(frozen=True)
class Variant:
    """A model of the ablation.

    Attributes:
        title: what it is, in words.
        group: "reference", "ablation" (one part of the design less), "alternative" (a part done otherwise) or
            "comparison" (what a user would otherwise do).
        overlay: in ``configs/``, merged last; None for none.
        joint: one stage from random weights, with as many epochs as the three stages have together.
    """

    title: str
    group: str
    overlay: str | None = None
    joint: bool = False


# In the order of running: what the question is about first.
VARIANTS = {
    REFERENCE: Variant("TumorLens", "reference"),
    "baseline": Variant("stock design", "comparison", "baseline.yaml"),
    "plain_normalization": Variant(
        "without foreground-aware normalization", "ablation", "ablations/plain_normalization.yaml"
    ),
    "unmasked_pooling": Variant("without masked pooling", "ablation", "ablations/unmasked_pooling.yaml"),
    "no_evidence_supervision": Variant(
        "without evidence supervision", "ablation", "ablations/no_evidence_supervision.yaml"
    ),
    "no_stages": Variant("without stages 1 and 2", "ablation", "ablations/no_stages.yaml", True),
    "separate_batches": Variant("without mixed batches", "ablation", "ablations/separate_batches.yaml"),
    "segmentation_only": Variant("segmentation only", "comparison", "comparison/segmentation_only.yaml", True),
    "classification_only": Variant("classification only", "comparison", "comparison/classification_only.yaml", True),
    "densenet121": Variant("DenseNet121", "comparison", "comparison/densenet121.yaml", True),
    "efficientnet_b0": Variant("EfficientNet-B0", "comparison", "comparison/efficientnet_b0.yaml", True),
    "ensemble": Variant("DenseNet121 and EfficientNet-B0 together", "comparison"),
    "bottleneck_evidence": Variant(
        "evidence on the bottleneck alone", "alternative", "ablations/bottleneck_evidence.yaml"
    ),
    "mean_pooling": Variant("evidence averaged", "alternative", "ablations/mean_pooling.yaml"),
    "rectified_evidence": Variant(
        "evidence that cannot be negative", "alternative", "ablations/rectified_evidence.yaml"
    ),
    "softplus_evidence": Variant("evidence by softplus", "alternative", "ablations/softplus_evidence.yaml"),
    "deep_supervision": Variant("deep supervision", "alternative", "ablations/deep_supervision.yaml"),
    "patch_statistics": Variant("patches normalized by themselves", "alternative", "ablations/patch_statistics.yaml"),
    "mask_focal": Variant("focal loss on the masks", "alternative", "ablations/mask_focal.yaml"),
    "mask_tversky": Variant("Tversky's overlap of the masks", "alternative", "ablations/mask_tversky.yaml"),
    "mask_per_item": Variant("overlap of each picture by itself", "alternative", "ablations/mask_per_item.yaml"),
    "counterfactual_signed": Variant(
        "counterfactual pictures alone", "alternative", "ablations/counterfactual_signed.yaml"
    ),
    "counterfactual": Variant("counterfactual pictures, evidence not negative", "alternative", "counterfactual.yaml"),
    "counterfactual_more": Variant(
        "more counterfactual pictures, swapped heads too", "alternative", "ablations/counterfactual_more.yaml"
    ),
}


def planned_epochs(overlays: Sequence[str | Path], factor: float = 1.0) -> dict[str, int]:
    """Epochs by stage of train.yaml and the overlays, times a factor, at least 1; "joint" is the sum of the stages."""
    planned = runs.merged_config([str(CONFIGS / "train.yaml"), *map(str, overlays)])["stage_epochs"]
    epochs = {stage: max(1, round(planned[stage] * factor)) for stage in runs.STAGES}
    return {**epochs, runs.JOINT: sum(epochs.values())}


def train_variant(
    name: str,
    folder: Path,
    seed: int,
    overlays: Sequence[str | Path],
    epochs: Mapping[str, int],
    paths: Mapping[str, str],
    overrides: Mapping[str, Any] | None = None,
    joint: bool = False,
) -> None:
    """Train a variant with one seed, evaluate and explain it and its stages; what is finished is kept.

    Args:
        name: of `VARIANTS`.
        folder: ``<out>/<name>/seed<k>``.
        seed: of the training.
        overlays: of all variants (image size, network), merged before the variant's own.
        epochs: of `planned_epochs`.
        paths: dataset_dir and datalist_file.
        overrides: further values by config id, the same for all variants.
        joint: train it in one stage, whatever it is.

    Raises:
        FileNotFoundError: when a member of the ensemble is not trained yet.
    """
    variant = VARIANTS[name]
    if name == "ensemble":
        members = [folder.parents[1] / member / folder.name for member in ENSEMBLE]
        if not (folder / runs.MANIFEST).is_file():
            make_ensemble(members, folder, paths["dataset_dir"], paths["datalist_file"])
    else:
        variant_overlays = [CONFIGS / variant.overlay] if variant.overlay else []
        train(
            folder,
            [*overlays, *variant_overlays],
            _stages(variant, joint),
            seed=seed,
            stage_epochs=dict(epochs),
            **{**paths, **_of_its_stages(variant, overrides or {}, joint)},
        )
        for stage in stage_folders(folder) if name in (REFERENCE, "baseline") else []:
            evaluate_missing(stage, paths)
    evaluate_missing(folder, paths)


def _stages(variant: Variant, joint: bool = False) -> Sequence[str]:
    return (runs.JOINT,) if variant.joint or joint else runs.STAGES


def _of_its_stages(variant: Variant, overrides: Mapping[str, Any], joint: bool = False) -> dict[str, Any]:
    """Overrides without those of stages that a variant does not have; the others of the ablation have them."""
    others = {*runs.STAGES, runs.JOINT} - set(_stages(variant, joint))
    return {name: value for name, value in overrides.items() if name not in others}


def check_overrides(
    names: Sequence[str], overlays: Sequence[str | Path], overrides: Mapping[str, Any], joint: bool = False
) -> None:
    """Refuse overrides that no config has, of all variants before the first is trained.

    Raises:
        ValueError: when one is not an id of the config; names the nearest.
    """
    for variant in (VARIANTS[name] for name in names if name != "ensemble"):
        variant_overlays = [CONFIGS / variant.overlay] if variant.overlay else []
        by_stage(_stages(variant, joint), [*overlays, *variant_overlays], _of_its_stages(variant, overrides, joint))


def write_ablation(out: str | Path, only: Sequence[str] | None = None, **settings: Any) -> dict[str, Any]:
    """Write ablation.json, model_comparison.csv, figures and section.html from what is finished.

    Args:
        out: folder of the variants.
        only: names of variants; None: all.
        settings: what is said about the ablation beside its figures.

    Raises:
        FileNotFoundError: when the reference is not finished.
    """
    out = Path(out)
    names = list(only or VARIANTS)
    finished = _finished(out, names)
    if not finished.get(REFERENCE):
        raise FileNotFoundError(f"{out / REFERENCE} holds no finished seed: every variant is compared with it")
    models = [m for name in names for folder in finished[name] for m in read_models([folder])]
    result = compare(models, REFERENCE) | {"part": "test", **settings}
    described = {name: {"title": v.title, "group": v.group, "overlay": v.overlay} for name, v in VARIANTS.items()}
    result["variants"] = {name: described[name] for name in names if finished[name]}
    result["not_run"] = [name for name in names if not finished[name]]
    comparison_files.write(result, out, "ablation")
    return result


def _finished(out: Path, names: Sequence[str]) -> dict[str, list[Path]]:
    """Seeds of each variant that are trained, evaluated and explained."""
    seeds = {name: sorted(p.parents[1] for p in (out / name).glob("seed*/evaluation/metrics.json")) for name in names}
    return {name: [folder for folder in folders if _complete(folder)] for name, folders in seeds.items()}


def write_interventions(out: Path, names: Sequence[str] = tuple(VARIANTS)) -> str:
    """Write interventions.json and interventions.md of what is finished and certified.

    Args:
        out: folder of the variants.
        names: of variants.

    Returns:
        the table.

    Raises:
        FileNotFoundError: when nothing is certified.
    """
    finished = _finished(out, names)
    certified = {
        VARIANTS[name].title: [seed for seed in finished[name] if (seed / CERTIFICATE / "causal.json").is_file()]
        for name in names
    }
    if not any(certified.values()):
        raise FileNotFoundError(f"{out} holds no certified run; python -m scripts ablation --certify makes them")
    return write_certified(certified, out)


def _complete(folder: Path) -> bool:
    trained = runs.trained_tasks(runs.last_stage(folder))
    return "classification" not in trained or (folder / "explanations" / "cases.csv").is_file()


def run_ablation(
    out: Path,
    paths: Mapping[str, str],
    seeds: Sequence[int],
    overlays: Sequence[str | Path] = (),
    factor: float = 1.0,
    only: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    joint: bool = False,
    certified: bool = False,
) -> dict[str, Any]:
    """Train all variants of the first seed, then of the next, and compare after each.

    Args:
        out: folder of the ablation.
        paths: dataset_dir and datalist_file.
        seeds: of the trainings; data and split stay the same.
        overlays: of all variants.
        factor: of the overlay's epochs.
        only: names of variants; the reference is always among them. None: all.
        overrides: further values by config id.
        joint: train all in one stage.
        certified: certify each on the test part, and write a table of what the interventions say.

    Raises:
        ValueError: when a variant is unknown, or an override is in no config file.
    """
    unknown = sorted(set(only or ()) - set(VARIANTS))
    if unknown:
        raise ValueError(f"variants {', '.join(unknown)} not known; there are {', '.join(VARIANTS)}")
    names = [name for name in VARIANTS if only is None or name in (REFERENCE, *only)]
    if "ensemble" in names and not set(ENSEMBLE) <= set(names):
        raise ValueError(f"the ensemble is made of {' and '.join(ENSEMBLE)}; name them too")
    if certified and (unable := [name for name in names if name in NOT_CERTIFIED]):
        raise ValueError(f"variants {', '.join(unable)} have no verdict and mask of one network to certify; use --only")
    check_overrides(names, overlays, overrides or {}, joint)
    epochs = planned_epochs(overlays, factor)
    # Prepared images are the same for all variants.
    overrides = {"cache_dir": str(out / "cache"), **(overrides or {})}
    settings = {"epochs": epochs, "epochs_factor": factor, "overlays": [Path(o).name for o in overlays]}
    for seed in seeds:
        for name in names:
            folder, start = out / name / f"seed{seed}", time.monotonic()
            known = folder in _finished(out, [name])[name]
            train_variant(name, folder, seed, overlays, epochs, paths, overrides, joint)
            if certified:
                certify_missing(folder, paths)
            if not known:
                write_ablation(out, names, **settings)
            if certified:
                write_interventions(out, names)
            logger.info("%s, seed %d: finished (%.1f minutes now)", name, seed, (time.monotonic() - start) / 60)
    return write_ablation(out, names, **settings)


def _settings(out: Path) -> dict[str, Any]:
    """What an earlier table of the ablation said about its trainings."""
    path = out / "ablation.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {key: known[key] for key in ("epochs", "epochs_factor", "overlays") if key in known}


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``ablation``."""
    paths = {"dataset_dir": str(arguments.dataset_dir), "datalist_file": str(arguments.datalist_file)}
    overrides = {**compute_values(arguments), **parse_overrides(arguments.overrides)}
    if arguments.table_only:
        result = write_ablation(
            arguments.out, arguments.only and [REFERENCE, *arguments.only], **_settings(arguments.out)
        )
    else:
        result = run_ablation(
            arguments.out, paths, arguments.seeds, arguments.overlay, arguments.epochs, arguments.only, overrides,
            arguments.joint, arguments.certify,
        )  # fmt: skip
    followed = f"\n{write_interventions(arguments.out)}\n" if arguments.certify else ""
    return Outcome(f"{comparison_files.table(result)}\n{followed}", [arguments.out])
