"""Verify the images of a datalist before training, against stated rules::

    python -m scripts verify --dataset_dir DIR --datalist_file data/mine.json
    python -m scripts verify --dataset_dir DIR --datalist_file data/mine.json --allow corner_mean modality

Writes `verification.csv` (one line an item), `verification.json` and `worst.png`; exit status 1 when a rule fails that
is not allowed.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from scripts.checks.verification import FAIL, NOTE, RULES, Result, Verifier, compare, every_item
from scripts.command.files import whole, write_json
from scripts.command.verbs import Outcome
from scripts.data.datalists import schema as datalists
from scripts.data.datalists.clusters import Item, paths
from scripts.data.datalists.schema import SPLITS, Datalist
from scripts.inference.item_shards import in_shards
from scripts.runs.folder import write_csv
from transforms.borders import head_mask
from transforms.intensity import scale_robust
from transforms.loading import LoadCased

logger = logging.getLogger(__name__)

SHEET = 24
COLORS = {"foreground": "#ffd24d", "label": "#4dd2ff"}


def read_loosely(path: Path) -> Datalist:
    """Read a datalist whose items may be broken: only the form of the lists is needed, each item is verified.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is no JSON object with lists of items.
    """
    content = datalists.read_unchecked(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(split), list) for split in SPLITS):
        raise ValueError(f"{path}: expected an object with the lists {', '.join(SPLITS)}")
    return content


def verify(datalist: Datalist, dataset_dir: Path | str, spatial_size: int = 256, progress: bool = True) -> list[Result]:
    """Verify every item of a datalist; broken ones are results like the others.

    Args:
        datalist: see `scripts.data.datalists`; its items may be broken.
        dataset_dir: folder of the images.
        spatial_size: of the network's input.
        progress: show a progress bar.

    Returns:
        One result an item, in the order of the list.

    Raises:
        FileNotFoundError: when there is no such folder.
    """
    items = every_item(datalist)
    one = _verifier(datalist, items, dataset_dir, spatial_size)
    results = [one(number) for number in tqdm(range(len(items)), desc="verify", unit="item", disable=not progress)]
    compare(results, dataset_dir)
    return results


def _verifier(
    datalist: Datalist, items: Sequence[tuple[Item, str]], dataset_dir: Path | str, spatial_size: int
) -> Callable[[int], Result]:
    """Verifies one of the items, by its number."""
    if not Path(dataset_dir).is_dir():
        raise FileNotFoundError(f"no folder {dataset_dir}")
    verifier = Verifier(dataset_dir, spatial_size)
    classes = len(datalist.get("classes", {"0": "", "1": ""}))

    def one(number: int) -> Result:
        item, split = items[number]
        fault = _form(item, classes)
        if not fault:
            return verifier(item, split)
        named = item if isinstance(item, dict) and isinstance(item.get("image"), (str, list)) else {"image": str(item)}
        result = Result(named, split)
        result.breaks("readable", fault)
        return result

    return one


@dataclass(frozen=True)
class VerifyJob:
    """Verification of one item after the other, by any number of processes."""

    datalist_file: Path
    dataset_dir: Path
    spatial_size: int

    def settings(self) -> dict[str, Any]:
        """What decides about a result beside the list."""
        return {"dataset_dir": str(Path(self.dataset_dir).resolve()), "spatial_size": self.spatial_size}

    def start(self) -> Callable[[int], Any]:
        """The verification of an item by its number."""
        datalist = read_loosely(self.datalist_file)
        one = _verifier(datalist, every_item(datalist), self.dataset_dir, self.spatial_size)
        return lambda number: one(number).to_plain()


def _form(item: Any, classes: int) -> str:
    """What is wrong with the form of an item, "" if nothing."""
    lists: Datalist = {"classes": {str(k): str(k) for k in range(max(2, classes))}, **{split: [] for split in SPLITS}}
    try:
        datalists.validate({**lists, "training": [item]}, origin="item")
    except ValueError as error:
        return str(error).removeprefix("item: training[0]").lstrip(": ")
    return ""


def summarize(results: Sequence[Result], allowed: Sequence[str] = ()) -> dict[str, Any]:
    """Counts by rule and by source, and up to five items each; `passed` says whether only allowed rules fail."""
    levels = Counter(result.level(allowed) for result in results)
    rules = {}
    for name, rule in RULES.items():
        affected = [result for result in results if name in result.broken]
        if affected:
            rules[name] = {
                "level": "allowed" if name in allowed else rule.level,
                "items": len(affected),
                "share": len(affected) / len(results),
                "limit": rule.limit,
                "advice": rule.advice,
                "by_class": dict(sorted(Counter(str(one.item.get("diagnosis", -1)) for one in affected).items())),
                "by_source": dict(sorted(Counter(str(one.item.get("source", "")) for one in affected).items())),
                "first": [f"{case_name(one)}: {one.broken[name]}" for one in affected[:5]],
            }
    return {
        "passed": levels[FAIL] == 0,
        "items": {"found": len(results), "pass": levels["pass"], "note": levels[NOTE], "fail": levels[FAIL]},
        "allowed": list(allowed),
        "rules": rules,
    }


def case_name(result: Result) -> str:
    """File of an item, and its slice."""
    index = result.item.get("slice")
    place = f" slice {index}" if index is not None else ""
    plane = result.item.get("plane", "")
    return f"{paths(result.item)[0]}{place}{' ' + plane if plane else ''}"


def text(summary: dict[str, Any], classes: dict[str, str]) -> str:
    """The summary for a person: what fails, where, and what to do about it."""
    count = summary["items"]
    lines = [f"{count['found']} items: {count['pass']} pass, {count['note']} with notes, {count['fail']} fail"]
    order = {FAIL: 0, "allowed": 1, NOTE: 2}
    for name, rule in sorted(summary["rules"].items(), key=lambda pair: (order[pair[1]["level"]], -pair[1]["items"])):
        by_class = ", ".join(f"{classes.get(key, 'unknown')} {number}" for key, number in rule["by_class"].items())
        sources = ", ".join(f"{key or 'no source'} {number}" for key, number in rule["by_source"].items())
        lines += [
            f"{rule['level'].upper():8}{name}: {rule['items']} items ({rule['share']:.1%}); by class: {by_class}; "
            f"by source: {sources}",
            f"        rule: {rule['limit']}",
            f"        do:   {rule['advice']}",
            *(f"        - {case}" for case in rule["first"]),
        ]
    return "\n".join(lines)


def worst(results: Sequence[Result], allowed: Sequence[str], count: int = SHEET) -> list[Result]:
    """Items to look at: failing ones before noted ones, the rules taking turns, so that none crowds out the others."""
    chosen: list[Result] = []
    for level in (FAIL, NOTE):
        queues = []
        for rule in RULES:
            hits = [one for one in results if rule in one.broken and one.level(allowed) == level and one not in chosen]
            queues.append(hits)
        while len(chosen) < count and any(queues):
            for queue in queues:
                while queue and any(queue[0] is one for one in chosen):
                    queue.pop(0)
                if queue and len(chosen) < count:
                    chosen.append(queue.pop(0))
    return chosen


def contact_sheet(results: Sequence[Result], dataset_dir: Path | str, out: Path) -> None:
    """Draw items with the outlines of foreground (yellow) and tumor mask (blue), and the rules that do not hold.

    Args:
        results: up to a few dozen.
        dataset_dir: folder of the images.
        out: PNG to write.
    """
    columns = min(6, max(1, len(results)))
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.5 * columns, 3.1 * rows + 0.6), squeeze=False)
    verifier = Verifier(dataset_dir)
    for axis in axes.ravel():
        axis.axis("off")
    for axis, result in zip(axes.ravel(), results, strict=False):
        _draw(axis, result, verifier)
    figure.suptitle("Items to look at. Outlines: foreground yellow, tumor mask blue", fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.97), h_pad=1.2)
    with whole(out) as place:
        figure.savefig(place, dpi=110, format="png")
    plt.close(figure)


def _draw(axis: Any, result: Result, verifier: Verifier) -> None:
    rules = ", ".join(result.broken) or "no rule broken"
    name = Path(paths(result.item)[0]).name
    index = f" [{result.item['slice']}]" if "slice" in result.item else ""
    shown = name if len(name) <= 30 else f"...{name[-27:]}"
    axis.set_title(f"{rules}\n{shown}{index}", fontsize=7, color="#b00020" if result.level() == FAIL else "black")
    try:
        loaded = LoadCased()(verifier.resolved(result.item))
        image = loaded["image"][:1].as_tensor()
    except ValueError:
        axis.text(0.5, 0.5, "cannot be read", ha="center", va="center", fontsize=8, transform=axis.transAxes)
        return
    axis.imshow(np.clip(scale_robust(image)[0].numpy().T, 0, 1), cmap="gray", vmin=0, vmax=1)
    try:
        head = loaded["foreground"][0].numpy() if "foreground" in loaded else head_mask(image.numpy())
        _outline(axis, head != 0, COLORS["foreground"])
    except ValueError:
        logger.debug("%s shows no foreground", case_name(result))  # the title says so
    if "label" in loaded:
        _outline(axis, loaded["label"][0].numpy() != 0, COLORS["label"])


def _outline(axis: Any, mask: Any, color: str) -> None:
    if mask.any() and not mask.all():
        axis.contour(np.asarray(mask).T.astype(float), levels=[0.5], colors=[color], linewidths=0.8)


def passing(datalist: Datalist, results: Sequence[Result], allowed: Sequence[str]) -> Datalist:
    """The datalist without its failing items."""
    kept: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for result in results:
        if result.level(allowed) != FAIL:
            kept[result.split].append(result.item)
    return {**datalist, **kept}


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``verify``; fails when a rule fails that is not allowed.

    Raises:
        ValueError: when a rule is not there, or the datalist is empty.
    """
    unknown = [rule for rule in arguments.allow if rule not in RULES]
    if unknown:
        raise ValueError(f"--allow: no rule {unknown[0]!r}; the rules: {', '.join(RULES)}")
    file = arguments.datalist_file
    out = arguments.out or file.with_name(f"{file.stem}_verification")
    datalist = read_loosely(file)
    job = VerifyJob(file, arguments.dataset_dir, arguments.spatial_size)
    gathered = in_shards(arguments, job, file, out, lambda: len(every_item(datalist)))
    if isinstance(gathered, str):
        return Outcome(gathered, [out])
    if gathered is None:
        results = verify(datalist, arguments.dataset_dir, arguments.spatial_size)
    else:
        results = [
            Result.from_plain(values, split) for values, (_, split) in zip(gathered, every_item(datalist), strict=True)
        ]
        compare(results, arguments.dataset_dir)
    if not results:
        raise ValueError(f"{file} holds no items")
    summary = summarize(results, arguments.allow)
    write_csv([result.row() for result in results], out / "verification.csv")
    write_json(summary, out / "verification.json")
    shown = worst(results, arguments.allow)
    if shown:
        contact_sheet(shown, arguments.dataset_dir, out / "worst.png")
    written = [out]
    if arguments.write_passing:
        datalists.write(passing(datalist, results, arguments.allow), arguments.write_passing)
        written.append(arguments.write_passing)
    return Outcome(text(summary, datalist.get("classes", {})), written, not summary["passed"])
