"""How often each class occurred in the training of a stage, as its loss saw them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scripts.command.config_files import read_mapping
from scripts.data.samplers import both_shares, checked_shares, groups, has_mask
from scripts.runs.checkpoint_files import CONFIG
from scripts.runs.folder import read_datalist, stage_items

__all__ = ["training_prevalence"]


def training_prevalence(stage_dir: str | Path) -> dict[str, float] | None:
    """Share of each class by name, from the config of a stage and its datalist.

    It is that of the drawn items (``class_shares``, else as in the training part), times ``class_weights``; items that
    counterfactuals turn into others count as what they become.

    Args:
        stage_dir: folder with a config.yaml.

    Returns:
        shares that sum to 1, in the order of the classes; None where the stage did not train the classification, or its
        datalist is not there (MONAI Label has none).
    """
    config = read_mapping(Path(stage_dir) / CONFIG)
    file, folder = config.get("datalist_file"), config.get("dataset_dir")
    trained = config.get("train_classification", True) and config.get("cls_weight", 1.0)
    if not trained or file is None or not Path(file).is_file():
        return None
    datalist = read_datalist(file, folder)
    names = [str(datalist["classes"][str(k)]) for k in range(len(datalist["classes"]))]
    items = stage_items(datalist, "training", str(folder), config.get("items", "any"), empty_masks=True)
    classes, masked = groups(items)["class"], has_mask(items)
    counts = [float(classes.count(k)) for k in range(len(names))]
    asked = dict(enumerate(counts))
    if (class_shares := config.get("class_shares")) is not None:
        asked = {int(k): share for k, share in checked_shares("class", class_shares, list(map(str, classes))).items()}
    shares = [asked.get(k, 0.0) / max(sum(asked.values()), 1e-12) for k in range(len(names))]
    of_masked = [
        sum(m for c, m in zip(classes, masked, strict=True) if c == k) / count if count else 0.0
        for k, count in enumerate(counts)
    ]
    kept = 1 - float(config.get("control_share", 0.3))
    removed, moved = (kept * share for share in both_shares(config.get("counterfactual_share") or 0.0))
    swap = float(config.get("swap_share", 0.0))
    shares = _turned(shares, counts, of_masked, moved, removed * (1 - swap), removed * swap)
    weights = config.get("class_weights") or [1.0] * len(names)
    weighted = [share * float(weight) for share, weight in zip(shares, weights, strict=True)]
    if not sum(weighted):
        return None
    return {name: round(value / sum(weighted), 6) for name, value in zip(names, weighted, strict=True)}


def _turned(
    shares: Sequence[float],
    counts: Sequence[float],
    masked: Sequence[float],
    moved: float,
    removed: float,
    swapped: float,
) -> list[float]:
    """Shares after counterfactuals: tumors taken out, put in and swapped, of each class as often as there are donors.

    Heads that no donor's tumor fits are counted as if one did: which those are only the images tell.
    """
    donors = [count * share for count, share in zip(counts[1:], masked[1:], strict=True)]
    if not sum(donors):
        moved = swapped = 0.0
    marked = [share * has for share, has in zip(shares, masked, strict=True)]
    filled, taken = marked[0] * moved, sum(marked[1:]) * removed
    lost = filled + sum(marked[1:]) * swapped
    gained = [lost * donor / max(sum(donors), 1e-12) for donor in donors]
    tumors = [
        share - part * (removed + swapped) + new
        for share, part, new in zip(shares[1:], marked[1:], gained, strict=True)
    ]
    return [shares[0] - filled + taken, *tumors]
