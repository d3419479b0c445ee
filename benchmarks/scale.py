"""What prediction by manifest costs a row, and whether anything is lost or doubled when processes are killed.

    python -m benchmarks.scale rows [--rows 10000 1000000]
    python -m benchmarks.scale kills [--images 2000] [--kills 50] [--processes 2] [--seed 0]
    python -m benchmarks.scale cost FOLDER [--images 40] [--scans 1000000]
    python -m benchmarks.scale processes FOLDER [--images 24] [--rounds 3]

`rows` sends a manifest through the real code with a predictor that answers at once: time a row, of the merge, and peak
memory, each number of rows in a process of its own. `kills` predicts small drawn heads with a tiny random
network, once undisturbed, and once while a process drawn at random (a shard's, or the one that started them) is ended
with SIGKILL; the driver is started again by the same command. `cost` predicts some images of a folder by the shipped
network, with overlays, and says what so many scans like them cost at the same rate. `processes` compares two
processes, each on a core of its own, with one of them alone: images a second by the wall clock, and by the CPU time
that each took, which other programs on the machine disturb least.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.duplicates import draw
from benchmarks.inference import standard_overlay
from benchmarks.timing import peak_bytes
from scripts.command import errors
from scripts.command.locations import ROOT
from scripts.inference.image_files import find_images
from scripts.inference.ledger import entries, journals
from scripts.inference.manifest import LEDGER, prepare
from scripts.inference.merging import merge
from scripts.inference.predict import Recipe
from scripts.inference.result_table import columns
from scripts.inference.shards import run_shard

SIDE = 32
CLASSES = ["no_tumor", "glioma", "meningioma", "pituitary"]
# Of the network, beside what train.yaml says.
TINY = {
    "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 4, 8],
    "evidence_channels": 4,
}  # fmt: skip


@dataclass
class Immediate:
    """A predictor that reads nothing and answers at once."""

    made_by: dict[str, Any] = field(default_factory=lambda: {"version": "benchmark"})
    columns: list[str] = field(default_factory=lambda: columns(CLASSES))

    def kept(self, image: Path, name: str) -> None:
        """Nothing is kept."""

    def lost(self, image: Path, name: str, reason: str) -> dict[str, Any]:
        """No input ends this process."""
        raise RuntimeError(f"{image} ended its process: {reason}")

    def stream(self, todo: Iterable[tuple[Path, str]]) -> Iterator[tuple[str, dict[str, Any]]]:
        """A row an image."""
        for image, name in todo:
            numbers = {f"probability_{kind}": 0.123456789 for kind in CLASSES}
            known = {"image": str(image), "name": name, "status": "done", "verdict": "no tumor detected", "flags": ""}
            yield name, {**dict.fromkeys(self.columns), **numbers, **known}


def measure_rows(rows: int) -> dict[str, float]:
    """Seconds a row, of the merge, and MiB at the peak, of this process."""
    with tempfile.TemporaryDirectory() as folder:
        table, out = Path(folder) / "in.csv", Path(folder) / "out"
        with open(table, "w", encoding="utf-8") as file:
            file.write("image\n")
            file.writelines(f"collection/site-{k % 37:02d}/patient-{k:07d}.nii.gz\n" for k in range(rows))
        start = time.process_time()
        manifest = prepare(table, out)
        made = time.process_time()
        run_shard(Immediate(), manifest, (1, 1))
        ran = time.process_time()
        _, counts = merge(out)
        merged = time.process_time()
    if counts["done"] != rows:
        raise RuntimeError(f"{counts} of {rows} rows")
    return {
        "rows": rows,
        "manifest_cpu_s": round(made - start, 2),
        "cpu_ms_a_row": round((ran - made) / rows * 1e3, 4),
        "merge_cpu_s": round(merged - ran, 2),
        "peak_mib": round(peak_bytes() / 2**20, 1),
    }


def measure_kills(folder: Path, images: int, kills: int, processes: int, seed: int) -> dict[str, Any]:
    """Predict undisturbed and disturbed, and compare the tables byte for byte."""
    rng, drawing = random.Random(seed), np.random.default_rng(seed)
    overlay = standard_overlay(folder, SIDE, **TINY)
    (folder / "in").mkdir()
    names = [f"in/{k:05d}.png" for k in range(images)]
    for name in tqdm(names, desc="drawing", unit="image"):
        draw(drawing).resize((SIDE, SIDE)).save(folder / name)
    (folder / "in.csv").write_text("\n".join(["image", *names]) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "scripts", "predict", str(folder / "in.csv"), "--overlay", str(overlay)]
    command += ["--device", "cpu", "--no_overlays", "--processes", str(processes), "--out"]
    subprocess.run([*command, str(folder / "undisturbed")], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    out, killed = folder / "disturbed", Counter[str]()
    driver = _driver([*command, str(out)])
    while sum(killed.values()) < kills and _finished(out) < images:
        aim = _finished(out) + rng.uniform(0.2, 0.9) * images / kills
        while _finished(out) < min(aim, images) and driver.poll() is None:
            time.sleep(0.1)
        if driver.poll() is not None:
            break
        victim = rng.choice(["driver", *["worker"] * processes])
        number = driver.pid if victim == "driver" else _worker(out, rng)
        if number is None:
            continue
        os.kill(number, signal.SIGKILL)
        killed[victim] += 1
        if victim == "driver":
            driver.wait()
            driver = _driver([*command, str(out)])
    if driver.wait() != 0:
        raise RuntimeError(f"the driver ended with {driver.returncode}")
    states = Counter(state for journal in journals(out / "ledger") for _, _, state, _, _ in entries(journal))
    tables = [(folder / name / "results.csv").read_bytes() for name in ("undisturbed", "disturbed")]
    return {
        "images": images,
        "kills": dict(killed),
        "begun": states["begun"],
        "finished": states["done"] + states["refused"],
        "failed": states["failed"],
        "table_equal_byte_for_byte": tables[0] == tables[1],
    }


def measure_cost(predict: Recipe, images: Sequence[Path], scans: int) -> dict[str, Any]:
    """CPU hours, storage and files of so many scans, from those of some; one process, loading left out.

    Args:
        predict: into an empty folder.
        images: that are predicted.
        scans: how many it is told for.
    """
    table = predict.out.with_suffix(".csv")
    table.write_text("\n".join(["image", *map(str, images)]) + "\n", encoding="utf-8")
    manifest, predictor = prepare(table, predict.out), predict()
    start = time.process_time()
    run_shard(predictor, manifest, (1, 1))
    seconds = (time.process_time() - start) / len(images)
    _, counts = merge(predict.out)
    files = [path for path in predict.out.rglob("*") if path.is_file()]
    kept = [path for path in files if LEDGER in path.parts]
    sizes = {"results": sorted(set(files) - set(kept)), "ledger": kept, "read": images}
    gib = {
        f"{name}_gib": sum(p.stat().st_size for p in paths) / len(images) * scans / 2**30
        for name, paths in sizes.items()
    }
    return {
        "images": len(images),
        "done": counts["done"],
        "cpu_s_a_scan": round(seconds, 4),
        "scans": scans,
        "cpu_hours": round(seconds * scans / 3600, 1),
        **{name: round(value, 1) for name, value in gib.items()},
        "files": round(len(sizes["results"]) / len(images) * scans),
    }


def measure_processes(folder: Path, images: Sequence[Path], rounds: int) -> dict[str, float]:
    """How many times the images of one process two get through at once, loading left out; one and two in turn."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise ValueError("two processes are compared on two cores, and this process may use one")
    context = multiprocessing.get_context("spawn")
    pipes, workers = [], []
    for core in cores:
        parent_conn, other = context.Pipe()
        workers.append(context.Process(target=_on_core, args=(other, core, Recipe(folder / str(core)), list(images))))
        workers[-1].start()
        pipes.append(parent_conn)
    times: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for number in range(rounds + 1):  # the first round warms up
        for together in (1, 2):
            for pipe in pipes[:together]:
                pipe.send(number * 2 + together)
            took = [pipe.recv() for pipe in pipes[:together]]
            if number:
                times[together].append((max(wall for wall, _ in took), statistics.mean(cpu for _, cpu in took)))
    for pipe, worker in zip(pipes, workers, strict=True):
        pipe.send(None)
        worker.join()
    pairs = list(zip(times[1], times[2], strict=True))
    return {
        "images": len(images),
        "one_process_s": round(statistics.median(wall for wall, _ in times[1]) / len(images), 4),
        "twice_by_wall_clock": round(statistics.median(2 * one[0] / two[0] for one, two in pairs), 3),
        "twice_by_cpu_time": round(statistics.median(2 * one[1] / two[1] for one, two in pairs), 3),
    }


def _on_core(link: Any, core: int, recipe: Recipe, images: Sequence[Path]) -> None:
    """A process of one core: predict the images each time it is told to."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    predictor = recipe()
    while (number := link.recv()) is not None:
        wall, cpu = time.perf_counter(), time.process_time()
        for _, row in predictor.stream((image, f"{number}/{k}") for k, image in enumerate(images)):
            if row["status"] != "done":
                raise RuntimeError(f"{row['image']}: {row['error']}")
        link.send((time.perf_counter() - wall, time.process_time() - cpu))


def _driver(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _finished(out: Path) -> int:
    return sum(
        state in ("done", "refused") for journal in journals(out / "ledger") for _, _, state, _, _ in entries(journal)
    )


def _worker(out: Path, rng: random.Random) -> int | None:
    """Process of a shard, by its lock; None where none runs yet."""
    locks = sorted((out / "ledger").glob("shard-*/lock.json"))
    try:
        number = int(json.loads(rng.choice(locks).read_text(encoding="utf-8"))["pid"])
        os.kill(number, 0)
    except (IndexError, OSError, ValueError):
        return None
    return number


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description="Prediction by manifest.")
    commands = parser.add_subparsers(dest="what", required=True)
    rows = commands.add_parser("rows", help="time and memory a row")
    rows.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000], help="numbers of rows")
    kills = commands.add_parser("kills", help="kill processes at random")
    kills.add_argument("--images", type=int, default=2000, help="small drawn images (default: 2000)")
    kills.add_argument("--kills", type=int, default=50, help="at most so many (default: 50)")
    kills.add_argument("--processes", type=int, default=2, help="that predict (default: 2)")
    kills.add_argument("--seed", type=int, default=0, help="of images and kills (default: 0)")
    cost = commands.add_parser("cost", help="what so many scans cost, from some")
    cost.add_argument("folder", type=Path, help="of images")
    cost.add_argument("--images", type=int, default=40, help="that are predicted (default: 40)")
    cost.add_argument("--scans", type=int, default=1_000_000, help="that it is told for (default: 1000000)")
    both = commands.add_parser("processes", help="two processes on two cores against one")
    both.add_argument("folder", type=Path, help="of images")
    both.add_argument("--images", type=int, default=24, help="that each predicts (default: 24)")
    both.add_argument("--rounds", type=int, default=3, help="after one that warms up (default: 3)")
    arguments = parser.parse_args(argv)
    if arguments.what in ("cost", "processes"):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            images = find_images(arguments.folder, out).images
            images = images[:: max(1, len(images) // arguments.images)][: arguments.images]
            if arguments.what == "processes":
                result = measure_processes(Path(folder), images, arguments.rounds)
            else:
                result = measure_cost(Recipe(out), images, arguments.scans)
    elif arguments.what == "kills":
        with tempfile.TemporaryDirectory() as folder:
            result = measure_kills(Path(folder), arguments.images, arguments.kills, arguments.processes, arguments.seed)
    elif len(arguments.rows) == 1:
        result = measure_rows(arguments.rows[0])
    else:
        for count in arguments.rows:
            subprocess.run(
                [sys.executable, "-m", "benchmarks.scale", "rows", "--rows", str(count)], cwd=ROOT, check=True
            )
        return
    print("\n".join(f"{name:28}{value}" for name, value in result.items()), flush=True)


if __name__ == "__main__":
    with errors.one_sentence_errors():
        main()
