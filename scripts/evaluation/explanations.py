"""explanations/ of a trained run: every map measured, tested and drawn."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import DataLoader
from tqdm import tqdm

from scripts.command.files import write_bytes, write_json
from scripts.data.preprocessing import collate
from scripts.evaluation.explanation_plan import Plan, main_map, make_plan
from scripts.evaluation.faithfulness import check_faithfulness, check_tests, chosen_methods
from scripts.evaluation.galleries import choose_cases, methods_picture, show_cases, write_class_galleries
from scripts.evaluation.localization import draw_cases, measure
from scripts.evaluation.localization_table import format_regions, format_table, localization_table, sorted_rows
from scripts.explain.methods import SLOW
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.pictures import overlays
from scripts.pictures.explanation_figures import faithfulness_figure, localization_figure
from scripts.pictures.planes import check_channel
from scripts.runs.artifacts import EXPLANATION, clear
from scripts.runs.folder import write_csv
from scripts.runs.tasks import UNTRAINED, is_trained

__all__ = ["check_cases", "make_plan", "write_explanations"]

logger = logging.getLogger(__name__)


def check_cases(names: Any) -> None:
    """Refuse a number where the names of the cases to show are expected.

    Raises:
        ValueError: when it is no list of names.
    """
    if names is not None and (
        isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names)
    ):
        raise ValueError(
            f"cases: expected a list of names of cases to show, such as \"['a', 'b']\", or null for a choice by tumor "
            f"area; got {names!r}"
        )


def write_explanations(
    network: MultiTaskDynUNet,
    dataset: Any,
    items: Sequence[Mapping[str, Any]],
    spatial_size: Sequence[int],
    folder: str | Path,
    plan: Plan,
    classes: Mapping[str, str],
    names: Sequence[str] | None = None,
    batch_size: int = 16,
    gallery_cases: int = 3,
    tests: Sequence[str] = (),
    test_methods: str | Sequence[str] = "main",
    test_cases: int | None = 4,
    picture_channel: int = 0,
    regions: Sequence[str] = (),
    spacing_mm: float | Sequence[float] | str | None = None,
) -> list[dict[str, Any]]:
    """Write what is known of the maps of a run, and print the table of their localization.

    localization.json, localization.png and cases.csv; overlays/, maps/ and gallery.json of the cases shown;
    galleries/ by class and outcome with galleries.json; methods/<target>.png, all methods at all layers for one case;
    faithfulness.json and faithfulness.png. What an earlier explanation left in the folder is deleted first.

    Of a network whose head was not trained only the segmentation is explained: cases, galleries and faithfulness, which
    are of the diagnosis, are left out, and unavailable.json says why.

    Args:
        network: in evaluation mode.
        dataset: preprocessed items.
        items: the same items of the datalist, with absolute paths.
        spatial_size, spacing_mm: of the preprocessing.
        folder: ``runs/<run>/explanations``.
        plan: methods, layers and targets.
        classes: names by index, of the datalist.
        names: of the cases to show; None: `choose_cases`. The middle one of those with a tumor stands in methods/.
        batch_size: cases explained at once.
        gallery_cases: correct and incorrect cases shown of each class; 0 draws no such galleries.
        tests: of `scripts.evaluation.faithfulness.TESTS`.
        test_methods: "main", "all" or names, see `scripts.evaluation.faithfulness.chosen_methods`.
        test_cases: tumor cases that are tested; None: all.
        picture_channel: of the image, that pictures show; of a volume they show one slice, see `PicturePlane`.
        regions: that maps are measured against beside the tumor, by name.

    Returns:
        the rows of localization.json.

    Raises:
        ValueError: for names of cases that are not there, or what `measure` and `check_faithfulness` refuse.
    """
    folder = Path(folder)
    chosen_methods(network, plan, test_methods)  # refused before the work, not after
    check_tests(tests)
    check_cases(names)
    check_channel(picture_channel, network)
    dataset = [dataset[i] for i in range(len(dataset))]
    missing = set(names or ()) - {case["name"] for case in dataset}
    if missing:
        raise ValueError(f"no case named {', '.join(sorted(missing))} in this part of the datalist")
    names = choose_cases(dataset) if names is None else names
    device = next(network.parameters()).device
    title = f"{folder.parent.name}: localization in the true masks"
    for path in clear(folder, EXPLANATION):
        logger.debug("deleted: %s", path)
    table = _measure(network, dataset, plan, classes, folder, batch_size, title, regions)
    diagnoses = is_trained(network, "classification")
    if not diagnoses:
        write_json({"classification": UNTRAINED["classification"]}, folder / "unavailable.json")
        logger.warning(
            "no cases, galleries and faithfulness, which are of the diagnosis: %s", UNTRAINED["classification"]
        )
    if tests and diagnoses:
        faithfulness = check_faithfulness(network, dataset, plan, tests, test_methods, test_cases, batch_size, device)
        write_json(faithfulness, folder / "faithfulness.json")
        picture = faithfulness_figure(faithfulness, main_map(network), f"{folder.parent.name}: faithfulness")
        write_bytes(picture, folder / "faithfulness.png")
    try:
        _draw(
            network.cpu(), dataset, items, names, spatial_size, folder, plan, classes, gallery_cases, batch_size,
            picture_channel, spacing_mm,
        )  # fmt: skip
    finally:
        network.to(device)
    by_region = format_regions(sorted_rows(table))
    print(f"{title}, sorted\n\n{format_table(sorted_rows(table))}\n{by_region}\nfiles: {folder}")
    return table


def _measure(
    network: MultiTaskDynUNet,
    dataset: Sequence[Mapping[str, Any]],
    plan: Plan,
    classes: Mapping[str, str],
    folder: Path,
    batch_size: int,
    title: str,
    regions: Sequence[str],
) -> list[dict[str, Any]]:
    device = next(network.parameters()).device
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=0, collate_fn=collate)
    drawn = draw_cases(dataset, plan.slow_cases, plan.seed)
    slow = [name for name in plan.methods if name in SLOW]
    if slow:
        logger.info("%s on %d cases, drawn by seed %d", ", ".join(slow), len(drawn), plan.seed)
    batches = tqdm(loader, desc="explaining", unit="batch")
    rows = measure(network, batches, plan, classes, drawn, device, regions)
    table = localization_table(rows)
    write_json(table, folder / "localization.json")
    write_csv(rows, folder / "cases.csv")
    figure = localization_figure(sorted_rows(table), main_map(network), title)
    write_bytes(figure, folder / "localization.png")
    logger.info("%d rows of measures in %s", len(rows), folder / "cases.csv")
    return table


def _draw(
    network: MultiTaskDynUNet,
    dataset: Sequence[Mapping[str, Any]],
    items: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    spatial_size: Sequence[int],
    folder: Path,
    plan: Plan,
    classes: Mapping[str, str],
    gallery_cases: int,
    batch_size: int,
    channel: int,
    spacing_mm: float | Sequence[float] | str | None,
) -> None:
    diagnoses = is_trained(network, "classification")
    if diagnoses:
        entries = show_cases(network, dataset, items, names, spatial_size, folder, channel, spacing_mm)
        write_json(entries, folder / "gallery.json")
    if gallery_cases and diagnoses:
        entries = write_class_galleries(network, dataset, classes, folder, gallery_cases, batch_size, channel)
        write_json(entries, folder / "galleries.json")
        for entry in entries:
            if entry["found"] < gallery_cases:
                logger.info("galleries: %s", json.dumps({k: v for k, v in entry.items() if k != "cases"}))
    shown = [case for case in dataset if case["name"] in names and bool(case["has_mask"]) and bool(case["label"].any())]
    if not shown:
        logger.info("no case with a tumor is shown: methods/ is not drawn")
        return
    shown.sort(key=lambda case: list(names).index(case["name"]))
    for target in plan.targets:
        picture = methods_picture(network, shown[len(shown) // 2], plan, target, channel)
        overlays.save(picture, folder / "methods" / f"{target}.png")
