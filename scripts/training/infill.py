"""Fits the learned infill to healthy tissue that is hidden from it, and measures every infill on tissue it never saw.

    python -m scripts infill --dataset_dir DIR --datalist_file LIST.json --out runs/infill

writes learned.pt (the weights, half precision) and infill.json. Holes have the shapes of the data's tumors and lie in
healthy tissue alone, so that what belongs there is known.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from ignite.engine import Events, create_supervised_trainer
from ignite.handlers import ProgressBar, TerminateOnNan
from skimage.metrics import structural_similarity

from scripts.command.devices import chosen_device
from scripts.command.files import write_bytes, write_json
from scripts.command.verbs import Outcome
from scripts.data.caching import CachedDataset
from scripts.data.datalists.clusters import cluster
from scripts.data.preprocessing import make_training_pipeline
from scripts.interventions.infill import Hole, surface
from scripts.interventions.infills import INFILLS, Infill
from scripts.interventions.learned import SIZE, like_healthy, make_network, planes, trained_network
from scripts.interventions.regions import NoRoom, elsewhere, grow, inner
from scripts.measures.intervals import AT_LEAST_0, case_summary
from scripts.runs.folder import read_datalist, stage_items
from scripts.training.counterfactuals import arrays, has_tumor, lesion_free

# Pixels around a tumor's mask that a hole covers too.
BOUNDS = {"mae": AT_LEAST_0, "ssim": (-1.0, 1.0)}
MARGINS = (2, 6)
# Shapes tried for a head before another is taken.
_TRIES = 4


class Holes:
    """Holes in the healthy tissue of heads.

    Args:
        dataset: items, prepared.

    Raises:
        ValueError: when no item has a tumor whose shape a hole could have.
    """

    def __init__(self, dataset: CachedDataset) -> None:
        self.dataset = dataset
        items = [dataset.prepared(i) for i in range(len(dataset.data))]
        self.heads = [i for i, item in enumerate(items) if has_tumor(item) or lesion_free(item)]
        self.tumors = [i for i in self.heads if has_tumor(items[i])]
        if not self.tumors:
            raise ValueError("no item has a tumor with a mask: holes take the shapes of tumors")

    def at(self, index: int, rng: np.random.Generator) -> Hole | None:
        """A hole in a head, or None where no shape that was tried fits into its healthy tissue."""
        image, mask, foreground = arrays(self.dataset.prepared(index))
        for donor in rng.choice(self.tumors, _TRIES):
            _, shape, _ = arrays(self.dataset.prepared(int(donor)))
            margin = int(rng.integers(*MARGINS))
            turned = np.flip(shape, tuple(axis for axis in (0, 1) if rng.random() < 0.5))
            healthy = inner(foreground) & ~grow(mask, margin)
            try:
                place, _ = elsewhere(grow(turned, margin), healthy, rng)
            except NoRoom:
                continue
            return Hole(image, place, healthy & ~place, foreground, margin)
        return None

    def drawn(self, rng: np.random.Generator) -> Iterator[Hole]:
        """Holes of heads in random order, without end."""
        while True:
            for index in rng.permutation(self.heads):
                hole = self.at(int(index), rng)
                if hole is not None:
                    yield hole


def batches(holes: Holes, rng: np.random.Generator, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs of the network (B, 2, S, S), and what it should answer (B, 1, S, S), without end."""
    drawn = holes.drawn(rng)
    while True:
        inputs: list[torch.Tensor] = []
        wanted: list[torch.Tensor] = []
        while len(inputs) < size:
            hole = next(drawn)
            for _, plane in planes(hole, surface(hole)):
                inputs += plane.inputs
                wanted += plane.difference(hole.whole)
        yield torch.stack(inputs[:size]), torch.stack(wanted[:size])


def hole_loss(answer: torch.Tensor, wanted: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """Mean absolute error in the holes, of values and, by half, of the steps between neighbors; all (B, 1, S, S)."""
    error = (answer - wanted) * hole
    steps = sum(error.diff(dim=axis).abs().sum() for axis in (2, 3))
    return (error.abs().sum() + 0.5 * steps) / hole.sum().clamp(min=1)


def fit(
    holes: Holes,
    count: int,
    batch_size: int = 8,
    learning_rate: float = 2e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> torch.nn.Module:
    """Fit the network of the learned infill.

    Args:
        holes: of the training part.
        count: of batches.
        batch_size, learning_rate: the rate falls to 0 along a cosine.
        seed: of weights and holes.
        device: to train on; the network that is returned is on the CPU.
    """
    torch.manual_seed(seed)
    network = make_network().train().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)

    def loss(answer: torch.Tensor, target: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return hole_loss(answer, *target)

    def prepared(batch: tuple[torch.Tensor, torch.Tensor], **_: Any) -> tuple[torch.Tensor, Any]:
        inputs, difference = (values.to(device) for values in batch)
        return inputs, (difference, inputs[:, 1:])

    trainer = create_supervised_trainer(network, optimizer, loss, prepare_batch=prepared)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: schedule.step())
    trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    ProgressBar(desc="infill").attach(trainer, output_transform=lambda value: {"loss": value})
    trainer.run(batches(holes, np.random.default_rng(seed), batch_size), max_epochs=1, epoch_length=count)
    return network.cpu().eval()


def fidelity(holes: Holes, ways: Mapping[str, Infill], seed: int = 0) -> list[dict[str, Any]]:
    """How near each infill comes to the healthy tissue that it replaces: one row an infill and hole.

    Args:
        holes: of a part that no infill was fitted to; one of each head.
        ways: infills by name.
        seed: of holes and infills, the same for each infill.

    Returns:
        {how, cluster, mae, ssim}: mean absolute error in the hole, in spreads of the head's tissue; mean structural
        similarity (7 pixels wide) over the hole's pixels.
    """
    rows = []
    for index in holes.heads:
        hole = holes.at(index, np.random.default_rng((seed, index)))
        if hole is None:
            continue
        tissue = hole.whole[:, hole.foreground]
        spread, width = float(tissue.std()), float(np.ptp(tissue))
        owner = cluster(holes.dataset.data[index])
        for how, way in ways.items():
            try:
                made = hole.placed(way(hole, np.random.default_rng((seed, index))))
            except NoRoom:
                continue
            away = np.abs(made - hole.whole)[:, hole.whole_region].mean() / spread
            pairs = zip(hole.whole, made, strict=True)
            alike = [structural_similarity(a, b, data_range=width, full=True)[1][hole.whole_region] for a, b in pairs]
            rows.append({"how": how, "cluster": owner, "mae": float(away), "ssim": float(np.mean(alike))})
    return rows


def _cell(figures: dict[str, Any]) -> str:
    low, high = figures["ci95"]
    interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    return f"{figures['mean']:.3f}{interval}"


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`case_summary` of mae and ssim by infill."""
    stats = {}
    for how in dict.fromkeys(row["how"] for row in rows):
        group = [row for row in rows if row["how"] == how]
        clusters = [row["cluster"] for row in group]
        stats[how] = {
            key: case_summary(np.array([row[key] for row in group]), clusters, bounds) for key, bounds in BOUNDS.items()
        }
    return stats


def table(stats: dict[str, dict[str, Any]]) -> str:
    """The summary in words."""
    lines = [f"{'infill':<16}{'n':>5}  {'absolute error':<24}{'structural similarity'}"]
    for how, row in stats.items():
        cells = map(_cell, (row["mae"], row["ssim"]))
        lines.append(f"{how:<16}{row['mae']['n']:>5}  " + "".join(f"{cell:<24}" for cell in cells).rstrip())
    return "\n".join(lines)


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``infill``.

    Raises:
        ValueError: when the datalist has no tumor with a mask.
    """
    datalist = read_datalist(str(arguments.datalist_file), str(arguments.dataset_dir))

    def holes(part: str) -> Holes:
        items = stage_items(datalist, part, str(arguments.dataset_dir), empty_masks=True)
        pipeline = make_training_pipeline(SIZE, False, len(datalist["classes"]))
        return Holes(CachedDataset(items, pipeline, arguments.cache_dir))

    written = []
    if not arguments.batches:
        network = trained_network()
    else:
        device = chosen_device(arguments.device)
        network = fit(holes("training"), arguments.batches, seed=arguments.seed, device=device)
        file = io.BytesIO()
        torch.save({name: value.half() for name, value in network.state_dict().items()}, file)
        written.append(write_bytes(file.getvalue(), arguments.out / "learned.pt"))
    ways = INFILLS | {
        "learned": partial(like_healthy, network=network),
        "learned, smooth": partial(like_healthy, network=network, grain=False),
    }
    stats = summary(fidelity(holes(arguments.part), ways, arguments.seed))
    write_json({"part": arguments.part, "batches": arguments.batches, "infills": stats}, arguments.out / "infill.json")
    return Outcome(table(stats), [*written, arguments.out / "infill.json"])
