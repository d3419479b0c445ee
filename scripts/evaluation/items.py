"""What an evaluation is made of: items of any datalist, their scale in millimeters, and which classes are compared."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import Dataset
from monai.transforms import Compose
from scipy.special import logsumexp

from scripts.command.config_files import read_mapping
from scripts.command.locations import CONFIGS
from scripts.data.datalists import schema as datalists
from scripts.inference.volume_rule import VolumeRule
from scripts.measures.prevalence import Given, applied, prevalence_in_use
from scripts.runs.checkpoint_files import WEIGHTS
from scripts.runs.folder import last_stage, read_manifest, stage_items, trained_tasks
from scripts.runs.network_overlay import FILE as NETWORK
from scripts.runs.prevalence import training_prevalence
from scripts.runs.regions import stated
from scripts.runs.seen import count_seen
from transforms.cropping import CropToForegroundd, ResizeToFitd
from transforms.describe import Untraced
from transforms.reading import file_kind

__all__ = [
    "ClassComparison",
    "EvaluationDataset",
    "at_prevalence",
    "compare_classes",
    "comparison",
    "evaluated_items",
    "explained_regions",
    "is_own_datalist",
    "measured_regions",
    "output_folder",
    "prevalence_used",
    "provenance",
    "run_prevalence",
    "volume_rule",
]

logger = logging.getLogger(__name__)


def evaluated_items(datalist: Mapping[str, Any], part: str, dataset_dir: str) -> list[dict[str, Any]]:
    """Items of a part with absolute paths, and ``volume``: which volume a slice is of ("" for a single picture).

    Args:
        datalist: validated.
        part: "training", "validation", "test", or "all" for the three together.
        dataset_dir: folder that the paths are relative to.

    Raises:
        ValueError: when the part is unknown or holds no item.
    """
    known = (*datalists.SPLITS, "all")
    if part not in known:
        raise ValueError(f"part is one of {', '.join(known)}, got {part!r}")
    merged = dict(datalist)
    if part == "all":
        merged["all"] = [item for split in datalists.SPLITS for item in datalist.get(split, [])]
    items = stage_items(merged, part, dataset_dir)
    for item in items:
        files = item["image"] if isinstance(item["image"], list) else [item["image"]]
        name = Path(files[0]).relative_to(dataset_dir).as_posix()
        item["volume"] = f"{name} {item.get('plane', 'axial')}" if "slice" in item else ""
    return items


class EvaluationDataset(Dataset):
    """Items of the bundle's pipeline, with what is needed to measure in millimeters and over whole volumes.

    Adds to each finalized item ``pixel_mm`` (D,), the size of a pixel of the network's grid, NaN where the file does
    not say; ``pixel_area``, how many pixels (3D: voxels) of the image one of them covers; ``head_share``, of the image
    that is head; ``slice_mm``, the distance between neighboring slices of the volume (NaN for a picture, and for a
    whole volume, which is one case); ``slice`` (-1 for both) and ``volume`` (a whole volume's own name).

    Args:
        data: of `evaluated_items`.
        transform: of ``scripts.data.preprocessing.make_training_pipeline`` without augmentation.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Compose):
        super().__init__(data, transform)
        steps = [type(step) for step in transform.transforms]
        self._loaded, self._cropped = steps.index(Untraced), steps.index(CropToForegroundd) + 1
        self._resized = steps.index(ResizeToFitd) + 1

    def _transform(self, index: int) -> dict[str, Any]:
        source: Mapping[str, Any] = self.data[index]
        loaded, spacing, between = self.load(source)
        return self.prepare(loaded, source, spacing, between)

    def load(self, source: Mapping[str, Any]) -> tuple[dict[str, Any], np.ndarray, float]:
        """An item with its images as the files have them, the size of their pixels and the distance of slices in mm."""
        loaded = self.transform(source, end=self._loaded)
        return loaded, *_spacing_mm(loaded["image"])

    def prepare(
        self, loaded: Mapping[str, Any], source: Mapping[str, Any], spacing: np.ndarray, between: float
    ) -> dict[str, Any]:
        """The rest of the pipeline for a loaded item."""
        cropped = self.transform(loaded, start=self._loaded, end=self._cropped)
        resized = self.transform(cropped, start=self._cropped, end=self._resized)
        before, after = (np.array(item["image"].shape[1:], dtype=float) for item in (cropped, resized))
        item = self.transform(resized, start=self._resized)
        pixel = before / after  # pixels of the image that one of the network's covers, by axis
        item["pixel_mm"] = torch.from_numpy(spacing * pixel)
        item["pixel_area"] = float(pixel.prod())
        item["head_share"] = float((cropped["foreground"] != 0).sum() / np.prod(loaded["image"].shape[1:]))
        item["slice_mm"] = between
        item["slice"] = int(source.get("slice", -1))
        item["volume"] = str(source.get("volume", "")) or (str(item["name"]) if item["image"].ndim == 4 else "")
        return item


def _spacing_mm(image: Any) -> tuple[np.ndarray, float]:
    """Pixel size by axis and distance of slices of a loaded image, NaN where its file does not say."""
    dims, path = image.ndim - 1, image.meta.get("filename_or_obj")
    if path is None or file_kind(path) == "picture":
        return np.full(dims, np.nan), float("nan")
    sides = nib.affines.voxel_sizes(np.asarray(image.affine, dtype=float))
    return sides[:dims], float(sides[2]) if dims == 2 else float("nan")


@dataclass
class ClassComparison:
    """How the classes of a datalist meet those of a network.

    `names` are the classes compared, class 0 "no tumor"; `index` maps those of the datalist to them; where the two
    know different tumors, all tumor classes are taken together (`binary`). `notes` say what was done, in sentences.
    """

    names: list[str]
    index: list[int]
    binary: bool = False
    notes: list[str] = field(default_factory=list)

    def logits(self, logits: np.ndarray, temperature: float) -> np.ndarray:
        """Class logits (N, K) as logits of the compared classes, whose probabilities at this temperature they keep."""
        if not self.binary or logits.shape[1] == 2:
            return logits
        tumor = temperature * logsumexp(logits[:, 1:] / temperature, axis=1)
        return np.stack([logits[:, 0], tumor], axis=1)

    def diagnosis(self, number: int) -> int:
        """Class of the comparison for a diagnosis of the datalist; -1 stays unknown."""
        return self.index[number] if number >= 0 else -1


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def compare_classes(trained: Sequence[str] | None, num_classes: int, listed: Sequence[str]) -> ClassComparison:
    """Match the classes of a datalist with those that a network was trained on, by name.

    Args:
        trained: names of the network's classes, class 0 "no tumor"; None where the run does not say.
        num_classes: of the network.
        listed: names of the datalist's classes, class 0 "no tumor".

    Raises:
        ValueError: when the names of the network's classes are not known and their number is another.
    """
    if trained is None and len(listed) != num_classes:
        raise ValueError(
            f"the network has {num_classes} classes whose names its run does not hold, the datalist has {len(listed)} "
            f"({', '.join(listed)}): they can not be matched; give the run folder that network.yaml lies in"
        )
    if trained is None:
        return ClassComparison(list(listed), list(range(len(listed))), notes=["classes matched by their order"])
    plain_names = [_plain(name) for name in trained]
    index = [0] + [plain_names.index(_plain(name)) if _plain(name) in plain_names[1:] else -1 for name in listed[1:]]
    if -1 not in index:
        lacking = [name for k, name in enumerate(trained) if k and k not in index]
        notes = [f"the datalist has no class {', '.join(lacking)}, which the run may predict"] if lacking else []
        return ClassComparison(list(trained), index, notes=notes)
    note = (
        f"the datalist's tumor classes ({', '.join(listed[1:])}) are not those of the run ({', '.join(trained[1:])}): "
        "compared as any tumor against none"
    )
    return ClassComparison([trained[0], "tumor"], [0] + [1] * (len(listed) - 1), True, [note])


def trained_classes(run_dir: str | Path) -> list[str] | None:
    """Names of the classes that a run was trained on, from its ``network.yaml``; None where there is none."""
    stage = last_stage(run_dir)
    for folder in (Path(run_dir), stage, stage.parent):
        path = folder / "network.yaml"
        if path.is_file():
            classes = read_mapping(path)["classes"]
            return [classes[str(k)] for k in range(len(classes))]
    return None


def comparison(run_dir: str | Path, num_classes: int, datalist: Mapping[str, Any]) -> ClassComparison:
    """`compare_classes` of a run and a datalist; what is worth knowing is logged."""
    classes = datalist["classes"]
    names = [classes[str(k)] for k in range(len(classes))] if isinstance(classes, Mapping) else list(classes)
    result = compare_classes(trained_classes(run_dir), num_classes, names)
    for note in result.notes:
        logger.warning("%s", note)
    return result


def run_prevalence(run_dir: str | Path) -> dict[str, float] | None:
    """Share of each class in the training of a run: of its ``network.yaml``, else of its config and datalist."""
    stage = last_stage(run_dir)
    for path in (folder / NETWORK for folder in (Path(run_dir).expanduser(), stage, stage.parent)):
        if path.is_file() and (known := read_mapping(path).get("training_prevalence")) is not None:
            return dict(known)
    return training_prevalence(stage)


def at_prevalence(network: Any, run_dir: str | Path, stated: Given) -> Any:
    """The network of a run at a prevalence, see `scripts.measures.prevalence.applied`; None: that of its training."""
    if stated is None:
        return network
    training = run_prevalence(run_dir)
    return applied(network, stated, training, trained_classes(run_dir) or list(training or ()))


def prevalence_used(network: Any, run_dir: str | Path) -> dict[str, float] | None:
    """The prevalence that the probabilities of a network of `at_prevalence` are for; None: that of the training."""
    training = run_prevalence(run_dir) if bool(network.class_shift.any()) else None
    return prevalence_in_use(network.class_shift.cpu(), training, trained_classes(run_dir) or list(training or ()))


def measured_regions(network: Any, datalist: Mapping[str, Any]) -> list[str] | None:
    """Regions that are measured one by one, those of a network that segments several; None: the tumor alone.

    Raises:
        ValueError: when the datalist states other regions.
    """
    trained, listed = list(getattr(network, "regions", [])), list(stated(datalist) or [])
    if len(trained) < 2:
        return None
    if listed and listed != trained:
        raise ValueError(
            f"the run segments the regions {', '.join(trained)}, the datalist states {', '.join(listed)}: build the "
            "datalist again with the --regions of the run"
        )
    return trained


def explained_regions(network: Any, datalist: Mapping[str, Any]) -> list[str]:
    """Regions that maps are measured against one by one: those that the datalist states, also of a network of one.

    Raises:
        ValueError: as of `measured_regions`.
    """
    measured_regions(network, datalist)
    return list(stated(datalist) or [])


def volume_rule(run_dir: str | Path) -> VolumeRule:
    """How a run diagnoses a volume at inference: by ``configs/inference.yaml``, under the run's ``network.yaml``."""
    values = read_mapping(CONFIGS / "inference.yaml")
    stage = last_stage(run_dir)
    for path in (folder / NETWORK for folder in (stage, stage.parent, Path(run_dir).expanduser())):
        if path.is_file():
            values |= read_mapping(path)
    return VolumeRule(values["volume_share"], values["min_foreground"], values["volume_threshold"])


def is_own_datalist(run_dir: str | Path, datalist_file: str | Path) -> bool:
    """Whether a run was trained on this datalist, by its content."""
    return datalists.same_content(datalist_file, str(read_manifest(last_stage(run_dir)).get("datalist_sha256")))


def output_folder(run_dir: str | Path | None, datalist_file: str | None, part: str = "test") -> str:
    """Where an evaluation is written: ``evaluation`` for the run's own test part, else a folder named after both.

    Raises:
        ValueError: when one of the paths is not given.
    """
    for name, value in (("run_dir", run_dir), ("datalist_file", datalist_file)):
        if value is None:
            raise ValueError(f"{name} is required; give it as --{name} PATH")
    name = (
        "evaluation"
        if is_own_datalist(str(run_dir), str(datalist_file))
        else f"evaluation_{Path(str(datalist_file)).stem}"
    )
    return str(Path(str(run_dir)) / (name if part == "test" else f"{name}_{part}"))


def provenance(
    run_dir: str | Path, datalist: Mapping[str, Any], datalist_file: str, items: Sequence[Mapping]
) -> dict[str, Any]:
    """Where the evaluated cases come from, and how many of them the run was trained or selected on.

    Returns:
        {datalist, datalist_sha256, own: whether it is the run's datalist, tasks: what it was trained for, seen: number
        of evaluated images that are in the run's training or validation part, by their content; None where that is not
        known, weights: file}.
    """
    return {
        "datalist": datalist.get("name", ""),
        "datalist_sha256": datalists.content_sha256(datalist_file),
        "own": is_own_datalist(run_dir, datalist_file),
        "tasks": sorted(trained_tasks(last_stage(run_dir))),
        "seen": count_seen(run_dir, items),
        "weights": str(last_stage(run_dir) / WEIGHTS),
    }
