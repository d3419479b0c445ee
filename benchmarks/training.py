"""What training costs, as ratios in one run: the shipped step against bare torch, stock layers and stock MONAI.

    python -m benchmarks.training [--size 256] [--batch 4] [--rounds 5] [--run RUN] [--out training.json] [--check]

One thread. Two processes hold the jobs, one with the memory allocator as `tune_process` sets it, one as the system has
it; in every round each job runs once, one after another, so that a slower moment of the machine hits all. A job is a
step, or an epoch of two steps. A figure is the median over the rounds of the CPU time of a job divided by that of the
job beside it in the same round; the first round is thrown away. CPU time, because other programs disturb it least.

The jobs are the shipped configs on drawn heads (`benchmarks.data.draw`): trainer, loss, optimizer and handlers are what
``scripts.training.train`` builds. With ``--run`` the digits of the normalization are also measured on that run's
features.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.data import draw
from benchmarks.normalization import digits, layer_rows
from benchmarks.rows import Row, table
from benchmarks.timing import machine
from scripts.command import errors
from scripts.command.files import write_json
from scripts.command.locations import CONFIGS
from scripts.command.machine import tune_process
from scripts.data.preprocessing import collate
from scripts.runs import folder as runs
from scripts.training.engines import MultiTaskStep, parameter_groups, prepare_batch
from scripts.training.losses import MultiTaskLoss
from scripts.training.precision import choose_precision

logger = logging.getLogger(__name__)

STEPS = 2  # of an epoch
HALF = choose_precision("auto", "cpu")[0]  # what configs/train.yaml takes here
Job = Callable[[], Any]


@dataclass
class Setting:
    """Size of the measurement."""

    folder: str
    size: int
    batch: int
    small: bool = False

    def config(self, stage: str, masked: bool = True, overlay: str | None = None, **values: Any) -> ConfigParser:
        """The training graph of a shipped stage and overlay on the drawn heads, from random weights."""
        files = [CONFIGS / f"{name}.yaml" for name in ("train", stage, overlay) if name is not None]
        overrides: dict[str, Any] = {
            "dataset_dir": self.folder,
            "datalist_file": f"{self.folder}/{'masked' if masked else 'mixed'}.json",
            "run_dir": f"{self.folder}/runs/{stage}-{masked}-{overlay}-{'-'.join(values)}",
            "cache_dir": f"{self.folder}/cache",
            "initial_weights": None,
            "spatial_size": [self.size, self.size],
            "batch_size": self.batch,
            "items": "any",
            "device": "cpu",
            **({"network_def#filters": [4, 8, 8, 8], "network_def#evidence_channels": 8} if self.small else {}),
            **values,
        }
        content = runs.merged_config([str(file) for file in files], overrides)
        left_out = ("ValidationHandler", "StageProgress")
        content["train"]["handlers"] = [h for h in content["train"]["handlers"] if not h["_target_"].endswith(left_out)]
        for part in ("train", "validate"):
            content[part]["dataset"]["progress"] = False
        return ConfigParser(content)


def write_data(folder: Path, count: int) -> None:
    """Draw heads and write two datalists: all with a mask, and every other one without."""
    items = draw(folder, 2 * count + 2)
    tumors = [
        {"image": Path(i["image"]).name, "label": Path(i["label"]).name, "diagnosis": 1} for i in items if "label" in i
    ]
    healthy = [{"image": Path(i["image"]).name, "diagnosis": 0} for i in items if "label" not in i]
    for name, training in (("masked", tumors[:count]), ("mixed", [*tumors[: count // 2], *healthy[: count // 2]])):
        parts = {"training": training, "validation": [tumors[-1]], "test": []}
        content = {"name": name, "modality": {"0": "T1"}, "classes": {"0": "no_tumor", "1": "tumor"}, **parts}
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def batch_of(config: ConfigParser, count: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
    """A batch of the training items as the step takes it: image, targets, keywords."""
    items = config.get_parsed_content("train#items")
    image, target, _, keywords = prepare_batch(collate([items[k] for k in range(count)]), "cpu")
    return image, target, keywords


def shipped_steps(config: ConfigParser, batch: int, waited: list[float] | None = None) -> Job:
    """An epoch of the shipped trainer with all its handlers but validation and progress bar.

    Args:
        config: parsed.
        batch: items; the loader gives the first batch again and again where ``waited`` is None.
        waited: gets the CPU seconds of the loader, one number an epoch.
    """
    trainer = config.get_parsed_content("train#trainer")
    started = [0.0, 0.0]
    if waited is None:
        fixed = collate([config.get_parsed_content("train#items")[k] for k in range(batch)])
        trainer.data_loader = [fixed] * STEPS

    def ask() -> None:
        started[0] = time.process_time()

    def receive() -> None:
        started[1] += time.process_time() - started[0]

    trainer.add_event_handler(Events.GET_BATCH_STARTED, ask)
    trainer.add_event_handler(Events.GET_BATCH_COMPLETED, receive)

    def epoch() -> None:
        started[1] = 0.0
        trainer.state.max_epochs = trainer.state.epoch + 1
        trainer.run()
        if waited is not None:
            waited.append(started[1])

    return epoch


def bare_steps(step: MultiTaskStep, batch: tuple[Tensor, dict[str, Tensor], dict[str, Any]], loss: Any = None) -> Job:
    """The same number of steps in plain torch: forward, backward, AdamW; without a loss the gradients are given."""
    step.train()
    image, target, keywords = batch
    optimizer = torch.optim.AdamW(parameter_groups(step.network, 1e-4), lr=1e-4)

    def epoch() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=False)
            outputs = step(image, keywords["has_mask"])
            if loss is None:
                torch.autograd.backward(list(outputs.values()), [torch.full_like(o, 1e-6) for o in outputs.values()])
            else:
                loss(outputs, target).backward()
            optimizer.step()

    return epoch


def step_of(config: ConfigParser, precision: str, **values: Any) -> MultiTaskStep:
    """A step of its own on a new network of the config."""
    torch.manual_seed(0)
    definition = {**config["network_def"], **values, "num_classes": 2}
    network = ConfigParser({"network": definition, "regions": None, "spacing_mm": None, "spatial_size": []})
    return MultiTaskStep(network.get_parsed_content("network"), precision=precision)


def stock_steps(setting: Setting, batch: tuple[Tensor, dict[str, Tensor], dict[str, Any]]) -> Job:
    """Stock MONAI: DynUNet, DiceCELoss, AdamW in a SupervisedTrainer, float32; segmentation alone."""
    filters = [4, 8, 8, 8] if setting.small else [32, 64, 128, 256]
    network = DynUNet(2, 1, 2, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=filters)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[{"image": batch[0], "label": batch[1]["label"]}] * STEPS,
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=1e-4),
        loss_function=DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True),
        inferer=SimpleInferer(),
        decollate=False,
    )

    def epoch() -> None:
        trainer.state.max_epochs = trainer.state.epoch + 1
        trainer.run()

    return epoch


def tuned_jobs(setting: Setting) -> tuple[dict[str, Job], dict[str, list[float]]]:
    """What runs with the allocator's settings; and the loader's seconds by job."""
    waited: dict[str, list[float]] = {name: [] for name in ("stage 3", "stage 2", "stage 2 cached")}
    joint, mixed = setting.config("stage3_joint"), setting.config("stage3_joint", masked=False)
    batch, half = batch_of(joint, setting.batch), batch_of(mixed, STEPS * setting.batch)
    pick = _every_kind(half, setting.batch)
    jobs = {
        "stage 3": shipped_steps(setting.config("stage3_joint", seed=1), setting.batch, waited["stage 3"]),
        "stage 2": shipped_steps(setting.config("stage2_classification"), setting.batch, waited["stage 2"]),
        "stage 2 cached": shipped_steps(
            setting.config("stage2_classification", overlay="cached_features"), setting.batch, waited["stage 2 cached"]
        ),
        "full step": shipped_steps(joint, setting.batch),
        "bare step with the loss": bare_steps(step_of(joint, HALF), batch, MultiTaskLoss(1.0, 0.5, 0.5)),
    }
    for precision in dict.fromkeys(("float32", HALF)):
        for norm in ("instance", "foreground"):
            step = step_of(joint, precision, normalization=norm)
            jobs[f"{norm} {precision}"] = bare_steps(step, batch)
    loss = MultiTaskLoss(1.0, 0.5, 0.5)
    jobs["half without masks"] = bare_steps(step_of(joint, HALF), pick, loss)
    jobs["stock"] = stock_steps(setting, batch)
    return jobs, waited


def _every_kind(batch: tuple[Tensor, dict[str, Tensor], dict[str, Any]], count: int) -> Any:
    """``count`` items of a batch, half of them with a mask."""
    order = torch.argsort(batch[1]["has_mask"].int(), stable=True)
    chosen = torch.cat([order[: count // 2], order[-(count - count // 2) :]])
    return batch[0][chosen], {k: v[chosen] for k, v in batch[1].items()}, {"has_mask": batch[1]["has_mask"][chosen]}


def serve(setting: Setting, tuned: bool, pipe: Any) -> None:
    """Body of a process: runs the jobs it is asked for and answers with their CPU seconds."""
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    if tuned:
        tune_process()
        jobs, waited = tuned_jobs(setting)
    else:
        jobs, waited = {"stock": stock_steps(setting, batch_of(setting.config("stage3_joint"), setting.batch))}, {}
    pipe.send(list(jobs))
    while (name := pipe.recv()) is not None:
        start = time.process_time()
        jobs[name]()
        pipe.send((time.process_time() - start, waited.get(name, [0.0])[-1]))


def measure(setting: Setting, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """CPU seconds of each job and of its loader in each round, the jobs in turn."""
    context = multiprocessing.get_context("spawn")
    served = []
    for tuned in (True, False):
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(setting, tuned, there), daemon=True)
        process.start()
        there.close()
        served.append((here, "" if tuned else " untuned", here.recv()))
    seconds: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds + 1):
        for pipe, suffix, names in served:
            for name in names:
                pipe.send(name)
                taken = pipe.recv()
                if number:
                    seconds.setdefault(name + suffix, []).append(taken)
        logger.info("round %d of %d", number, rounds)
    for pipe, *_ in served:
        pipe.send(None)
    return seconds


def rows_of(pairs: dict[str, list[tuple[float, float]]], images: int) -> list[Row]:
    """The rows of measured seconds.

    Args:
        pairs: from `measure`.
        images: of a job.
    """

    def ratio(name: str, to: str) -> float:
        return statistics.median(a[0] / b[0] for a, b in zip(pairs[name], pairs[to], strict=True))

    added = [1e3 * (a[0] - b[0]) / images for a, b in
             zip(pairs["full step"], pairs["bare step with the loss"], strict=True)]  # fmt: skip
    result = [
        Row(
            "full step / bare forward, loss, backward, AdamW", ratio("full step", "bare step with the loss"), "x", 1.05
        ),
        Row("full step, added to that", statistics.median(added), "ms/image", 1.0),
        Row("bare step with the loss / without", ratio("bare step with the loss", f"foreground {HALF}")),
        Row("foreground-aware step / plain norm, float32", ratio("foreground float32", "instance float32"), "x", 1.05),
        Row("as shipped / stock MONAI float32", ratio("full step", "stock untuned"), "x", 0.4),
        Row("stock MONAI, allocator set / not set", ratio("stock", "stock untuned")),
        Row("stage 2 epoch / stage 3 epoch", ratio("stage 2", "stage 3"), "x", 0.12),
        Row("the same with cached features, later epochs", ratio("stage 2 cached", "stage 3"), "x", 0.02),
        Row("half without masks / all with", ratio("half without masks", "bare step with the loss"), "x", 0.72),
    ]
    if HALF != "float32":
        result += [
            Row(
                "foreground-aware step / plain norm, bfloat16",
                ratio(f"foreground {HALF}", f"instance {HALF}"),
                "x",
                1.1,
            ),
            Row("bfloat16 / float32, same network", ratio(f"foreground {HALF}", "foreground float32")),
        ]
    for name in ("stage 3", "stage 2", "stage 2 cached"):
        share = statistics.median(waited / whole for whole, waited in pairs[name])
        result.append(Row(f"loader's share of an epoch, {name}", 100 * share, "%", 1.0))
    stage3 = statistics.median(whole for whole, _ in pairs["stage 3"])
    result.append(Row("stage 3, CPU time", 1e3 * stage3 / images, "ms/image"))
    return result


def gradient_difference(setting: Setting) -> float:
    """Largest difference of the gradients of a batch half without masks, float32, from those of the whole decoder.

    Relative to the largest gradient.
    """
    config = setting.config("stage3_joint", masked=False, precision="float32")
    image, target, keywords = _every_kind(batch_of(config, STEPS * setting.batch), setting.batch)
    gradients = []
    for partly in (True, False):
        step = step_of(config, "float32").train()
        outputs = step(image, keywords["has_mask"]) if partly else step(image)
        if not partly:
            outputs["seg"] = outputs["seg"][keywords["has_mask"]]
        MultiTaskLoss(1.0, 0.5, 0.5)(outputs, target).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in step.network.parameters() if p.grad is not None]))
    return float((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max())


def operations(setting: Setting) -> list[Row]:
    """Operations of a joint training step, all items with a mask, and of the parts of it that stage 2 is made of.

    Counted by torch in convolutions and matrix products, a multiplication and its addition as two.
    """
    config = setting.config("stage3_joint")
    image, target, keywords = batch_of(config, setting.batch)
    step = step_of(config, "float32").train()
    network = step.network

    def counted(work: Callable[[], Any]) -> float:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops() / 1e9 / setting.batch

    with torch.no_grad():
        encoder = counted(lambda: network.encode(image))
        features, masks = network.encode(image)
    head = counted(lambda: torch.autograd.backward([o.sum() for o in network.classify(features, masks)]))
    whole = counted(lambda: MultiTaskLoss(1.0, 0.5, 0.5)(step(image, keywords["has_mask"]), target).backward())
    return [
        Row("operations of a joint step, forward and backward", whole, "GFLOP/image"),
        Row("of these the encoder's forward pass", encoder, "GFLOP/image"),
        Row("of these the head, forward and backward", head, "GFLOP/image"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 1 with ``--check`` when a target is missed, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels, a multiple of 8")
    parser.add_argument("--batch", type=int, default=4, help="items of a step, even")
    parser.add_argument("--rounds", type=int, default=5, help="times each job runs, after one that sets up")
    parser.add_argument("--run", type=Path, help="run folder whose features the normalization is tried on")
    parser.add_argument("--small", action="store_true", help="a network of 4 to 8 channels, to see that it runs")
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.batch < 2 or options.batch % 2 or options.size % 8:
        raise ValueError("--rounds is 1 or more, --batch even and 2 or more, --size a multiple of 8")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        setting = Setting(scratch, options.size, options.batch, options.small)
        write_data(Path(scratch), STEPS * options.batch)
        rows = rows_of(measure(setting, options.rounds), STEPS * options.batch)
        rows.append(Row("gradients of a batch half without masks, difference", gradient_difference(setting), "", 1e-5))
        rows += operations(setting)
        rows += layer_rows(options.size, options.rounds, 4 if options.small else 32)
        rows += digits(batch_of(setting.config("stage3_joint"), 2)[0], options.run)
    print(table(rows))
    print(f"{options.size} px, batches of {options.batch}, {options.rounds} rounds, CPU time; {machine()}")
    if options.out:
        write_json({"machine": machine(), "size": options.size, "batch": options.batch, "rounds": options.rounds,
                    "rows": [{**asdict(row), "met": row.met} for row in rows]}, options.out)  # fmt: skip
    return int(options.check and not all(row.met for row in rows))


if __name__ == "__main__":
    errors.start_logging()
    with errors.one_sentence_errors():
        raise SystemExit(main())
