"""Pictures of the worst, best, misdiagnosed and some random cases of an evaluation, and cases.json that lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.command.files import write_json
from scripts.explain.evidence import evidence_map
from scripts.explain.maps import scale_maps, upsample
from scripts.explain.targets import TumorLogOdds
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.networks.regions import is_nested, mask_threshold, region_masks
from scripts.pictures import overlays
from scripts.pictures.parts import PART_COLORS, Part, parts_of
from scripts.pictures.planes import PicturePlane
from scripts.runs.tasks import is_trained
from transforms.labels import MASKS_KEY

__all__ = ["choose", "write_case_pictures"]

COUNT = 6
SLICES = 9  # of a volume, in the packed picture


def choose(rows: Sequence[Mapping[str, Any]], count: int = COUNT) -> list[tuple[str, int]]:
    """(kind, index) of the cases to show.

    "worst" and "best" by Dice; "misdiagnosed" with the probability of the true class nearest to 0; "random" drawn by a
    fixed seed from all others. No case twice as worst and best: with few cases the worst come first.

    Args:
        rows: of `scripts.evaluation.evaluation.decided`.
        count: at most so many a kind.
    """
    scored = sorted((row["dice"], row["name"], i) for i, row in enumerate(rows) if row["dice"] == row["dice"])
    worst = [i for _, _, i in scored[:count]]
    best = [i for _, _, i in scored[::-1][:count] if i not in worst]
    wrong = sorted(
        (row["probability"][row["diagnosis"]], row["name"], i)
        for i, row in enumerate(rows)
        if row["diagnosis"] >= 0 and row["predicted"] != row["diagnosis"]
    )
    kinds = (("worst", worst), ("best", best), ("misdiagnosed", [i for _, _, i in wrong[:count]]))
    chosen = [(kind, i) for kind, indices in kinds for i in indices]
    others = [int(i) for i in np.random.default_rng(0).permutation(len(rows)) if int(i) not in {k for _, k in chosen}]
    return chosen + [("random", i) for i in sorted(others[:count])]


def _packed(
    planes: Sequence[PicturePlane], image: Any, heat: Any, mask: Any, predicted: Any, parts: Sequence[Part]
) -> overlays.RGB:
    """`overlays.layers` of planes below each other, in one window; parts are of the whole volume."""

    def below(value: Any, of: Callable[[PicturePlane, Any], NDArray]) -> NDArray | None:
        return None if value is None else np.concatenate([of(plane, value) for plane in planes], axis=2)

    planar = [
        replace(part, mask=below(part.mask, PicturePlane.map), predicted=below(part.predicted, PicturePlane.map))
        for part in parts
    ]
    heat, mask, predicted = (below(value, PicturePlane.map) for value in (heat, mask, predicted))
    return overlays.layers(below(image, PicturePlane.image), heat, mask, predicted, planar)


@torch.no_grad()
def write_case_pictures(
    network: MultiTaskDynUNet,
    dataset: Any,
    rows: Sequence[Mapping[str, Any]],
    folder: str | Path,
    count: int = COUNT,
    channel: int = 0,
) -> list[dict[str, Any]]:
    """Write ``cases/*.png`` and ``cases.json``.

    Args:
        network: in evaluation mode, one that segments.
        dataset: the items that the rows are of, in their order.
        rows: of `scripts.evaluation.evaluation.decided`.
        folder: ``runs/<run>/evaluation``.
        count: at most so many a kind.
        channel: of the image, that is shown.

    Returns:
        entries {kind, name, source, dice, diagnosis, predicted, tumor_probability, image, evidence (None without an
        evidence map), layers (see `scripts.pictures.overlays.layers`; of a volume several slices below each other),
        slices: those of layers, from the top, [] of a 2D image, slice: the one that is shown first, of: how many there
        are, where: which channel and slice are shown, see `scripts.pictures.planes`, regions: those drawn, the tumor
        first; [] of the tumor alone}.
    """
    folder, device = Path(folder), next(network.parameters()).device
    entries: list[dict[str, Any]] = []
    for kind, index in choose(rows, count):
        if kind == "misdiagnosed" and not is_trained(network, "classification"):
            continue  # what random weights say of a case is no diagnosis
        case, row = dataset[index], rows[index]
        output = network.multitask(case["image"][None].to(device))
        heat = None
        if network.has_evidence and is_trained(network, "classification"):
            raw = evidence_map(output["evidence"], output["cls"], TumorLogOdds.of(network)).cpu()
            heat = scale_maps(upsample(raw, case["image"].shape[1:]))[0][0].numpy()
        mask = case["label"].numpy() if bool(case["has_mask"]) else None
        regions = region_masks(output["seg"], is_nested(network), mask_threshold(network))[0]
        said = regions.cpu().numpy().astype(np.uint8)
        predicted, names = said[:1], network.regions if is_nested(network) else []
        truth = case[MASKS_KEY].numpy() if mask is not None and MASKS_KEY in case else None
        plane = PicturePlane.of(case["image"], mask, heat, predicted, channel)
        image = plane.image(case["image"])
        lines: dict[str, Any] = {
            "mask": plane.mask(mask),
            "predicted": plane.map(predicted),
            "scale": overlays.legible_scale(image.shape),
            "parts": parts_of(names, truth, said, plane),
        }
        (folder / "cases").mkdir(parents=True, exist_ok=True)
        files: dict[str, str | None] = {"image": f"cases/{row['name']}_image.png", "evidence": None}
        files["layers"] = f"cases/{row['name']}_layers.png"
        planes = plane.around(SLICES, mask, predicted, heat if mask is None else None)
        parts = parts_of(names, truth, said, PicturePlane(channel, len(case["image"])))
        overlays.save(_packed(planes, case["image"], heat, mask, predicted, parts), folder / str(files["layers"]))
        picture = overlays.overlay(image, np.zeros_like(image), **lines)
        tumor = names[0].replace("_", " ") if names else ""
        overlays.save(overlays.with_legend(picture, tumor, lines["parts"]), folder / str(files["image"]))
        if heat is not None:
            files["evidence"] = f"cases/{row['name']}_evidence.png"
            picture = overlays.overlay(image, plane.map(heat), **lines)
            overlays.save(overlays.with_legend(picture, tumor, lines["parts"]), folder / str(files["evidence"]))
        entries.append(
            {
                "kind": kind,
                **{key: row[key] for key in ("name", "source", "diagnosis", "predicted", "tumor_probability")},
                "dice": row["dice"] if row["dice"] == row["dice"] else None,
                **files,
                "slices": [one.slice for one in planes if one.slice is not None],
                "slice": plane.slice,
                "of": plane.slices,
                "where": plane.where,
                "regions": list(names[: 1 + len(PART_COLORS)]),
            }
        )
    write_json(entries, folder / "cases.json")
    return entries
