"""What the data cost, per image, against stock MONAI transforms in the same run.

    python -m benchmarks.data [--images DIR] [--count 40] [--rounds 5] [--out data.json]

One thread. In every round each line takes all images, one after another as a data loader does, and the lines take
turns, so that a slower moment of the machine hits all. A figure is the median over the rounds of the CPU time of the
process per image, in milliseconds (the files lie in the page cache). Without ``--images`` the pictures are drawn:
256 x 256, PNG, half of them with a tumor mask. Pictures of ``--images`` are resized to that.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import CacheDataset, PersistentDataset, PILReader
from monai.transforms import (
    Compose,
    CropForegroundd,
    LoadImaged,
    NormalizeIntensityd,
    RandAdjustContrastd,
    RandAffined,
    RandBiasFieldd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    Resized,
    ResizeWithPadOrCropd,
    ScaleIntensityd,
    SelectItemsd,
    ToTensord,
)
from PIL import Image
from tqdm import tqdm

from benchmarks.timing import machine
from scripts.command import errors
from scripts.command.files import write_json
from scripts.command.machine import tune_process
from scripts.data.caching import CachedDataset
from scripts.data.preprocessing import Pipeline, make_augmentation, make_preprocessing, make_training_pipeline
from transforms.labels import Finalized
from transforms.loading import LoadCased

logger = logging.getLogger(__name__)

SIZE = 256
SLICES = 32
# What the project set out for: milliseconds per image on one core.
TARGETS = {"cold, image": 1.5, "cached, flips and intensity": 0.5}


def draw(folder: Path, count: int) -> list[dict[str, Any]]:
    """Draw heads with scalp, bone, textured brain and ventricles on noisy air; every other one has a tumor."""
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")
    items = []
    for k in range(count):
        rng = np.random.default_rng(k)
        a, b = rng.uniform(80, 95), rng.uniform(100, 120)
        radius = np.sqrt(((x - 128) / a) ** 2 + ((y - 128) / b) ** 2)
        image = rng.rayleigh(4, (SIZE, SIZE))
        image += np.select([radius < 0.25, radius < 0.82, radius < 0.9, radius < 1], [20, 110, 8, 190], 0)
        image += (radius < 1) * rng.normal(0, 8, (SIZE, SIZE))
        item: dict[str, Any] = {"image": str(folder / f"{k}.png"), "diagnosis": k % 2, "name": str(k)}
        tumor = (x - rng.uniform(90, 160)) ** 2 + (y - rng.uniform(90, 160)) ** 2 < 15**2
        if k % 2:
            image[tumor] += 60
            item["label"] = str(folder / f"{k}_mask.png")
            Image.fromarray((tumor.T * 255).astype(np.uint8)).save(item["label"])
        Image.fromarray(np.clip(image, 0, 255).T.astype(np.uint8)).save(item["image"])
        items.append(item)
    return items


def copies(source: Path, folder: Path, count: int) -> list[dict[str, Any]]:
    """Copies of a user's pictures, gray and resized to 256 x 256, with their masks where ``masks/<stem>.png`` is.

    Raises:
        ValueError: when there are no pictures under ``source``.
    """
    paths = sorted(p for p in (source / "images").rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not paths:
        raise ValueError(f"no pictures in {source / 'images'}; expected images/<class>/*.png or .jpg")
    items = []
    for path in paths[:: max(1, len(paths) // count)][:count]:
        item: dict[str, Any] = {"image": str(folder / f"{path.stem}.png"), "diagnosis": 0, "name": path.stem}
        Image.open(path).convert("L").resize((SIZE, SIZE)).save(item["image"])
        mask = source / "masks" / f"{path.stem}.png"
        if mask.is_file():
            item |= {"diagnosis": 1, "label": str(folder / f"{path.stem}_mask.png")}
            Image.open(mask).convert("L").resize((SIZE, SIZE), Image.Resampling.NEAREST).save(item["label"])
        items.append(item)
    return items


def stock(keys: Sequence[str]) -> list[Any]:
    """The usual MONAI pipeline: load, 0..1, crop to what is bright, z-score, resize; masks by nearest neighbor."""
    modes = ["bilinear" if key == "image" else "nearest" for key in keys]
    return [
        LoadImaged(keys, reader=PILReader(converter=lambda image: image.convert("L")), ensure_channel_first=True),
        ScaleIntensityd("image"),
        CropForegroundd(keys, source_key="image", select_fn=lambda x: x > 0.1, margin=4, allow_smaller=True),
        NormalizeIntensityd("image", nonzero=True),
        Resized(keys, SIZE, size_mode="longest", mode=modes),
        ResizeWithPadOrCropd(keys, (SIZE, SIZE)),
        ToTensord(keys, track_meta=False),
    ]


def stock_augmentation(keys: Sequence[str], affine: bool) -> list[Any]:
    """MONAI's transforms of the kinds and probabilities of ``make_augmentation``."""
    modes = ["bilinear" if key == "image" else "nearest" for key in keys]
    moved = RandAffined(
        keys, prob=0.7, rotate_range=0.26, shear_range=0.06, translate_range=10, scale_range=0.12, mode=modes,
        padding_mode="zeros",
    )  # fmt: skip
    return [
        RandFlipd(keys, prob=0.5, spatial_axis=0),
        *([moved] if affine else []),
        RandBiasFieldd("image", prob=0.3),
        RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5)),
        RandScaleIntensityd("image", prob=0.3, factors=0.15),
        RandGaussianSmoothd("image", prob=0.15, sigma_x=(0.4, 1.2), sigma_y=(0.4, 1.2)),
        RandGaussianNoised("image", prob=0.2, std=0.15),
    ]


def flips_and_intensity() -> Pipeline:
    """Our pipeline without rotation, scale, shear and shift."""
    return make_training_pipeline(SIZE, True, 4, affine_prob=0.0)


def lines(items: list[dict[str, Any]], folder: Path) -> dict[str, dict[str, Callable[[int], Any]]]:
    """What is timed: name, then "ours" and others, each a function of the item's number."""
    images = [{key: value for key, value in item.items() if key != "label"} for item in items]
    masked = [item for item in items if "label" in item] or items
    keys = ["image", "label"] if "label" in masked[0] else ["image"]
    plain, traced = make_training_pipeline(SIZE, False, 4), Compose([make_preprocessing(SIZE), Finalized(4)])
    stock_image, stock_both = Compose(stock(["image"])), Compose(stock(keys))
    quiet: dict[str, Any] = {"progress": False}
    intensity = CachedDataset(masked, flips_and_intensity(), **quiet)
    augmented = CachedDataset(masked, make_training_pipeline(SIZE, True, 4), **quiet)
    alone = [CachedDataset(masked, _only(k), **quiet) for k in range(len(make_augmentation(SIZE).transforms) - 1)]
    stock_intensity = CacheDataset(masked, Compose(stock(keys) + stock_augmentation(keys, False)), **quiet)
    stock_augmented = CacheDataset(masked, Compose(stock(keys) + stock_augmentation(keys, True)), **quiet)
    CachedDataset(masked, plain, folder / "ours", **quiet)
    kept = SelectItemsd([*keys, "diagnosis", "name"])  # what else MONAI's crop leaves cannot be read back safely
    persistent = PersistentDataset(masked, Compose([*stock(keys), kept]), folder / "stock")
    for index in range(len(masked)):
        _ = persistent[index]
    disk = CachedDataset(masked, plain, folder / "ours", **quiet)
    volume = _volume(folder)
    one_slice = LoadCased()
    stock_volume = LoadImaged("image", ensure_channel_first=True)
    jobs: dict[str, dict[str, Callable[[int], Any]]] = {
        "cold, image": {
            "ours": lambda k: plain(images[k % len(images)]),
            "ours, traced": lambda k: traced(images[k % len(images)]),
            "MONAI": lambda k: stock_image(images[k % len(images)]),
        },
        "cold, image and mask": {
            "ours": lambda k: plain(masked[k % len(masked)]),
            "ours, traced": lambda k: traced(masked[k % len(masked)]),
            "MONAI": lambda k: stock_both(masked[k % len(masked)]),
        },
        "from the disk cache": {
            "ours": lambda k: disk._load_cache_item(k % len(masked)),
            "MONAI": lambda k: persistent[k % len(masked)],
        },
        "cached, flips and intensity": {
            "ours": lambda k: intensity[k % len(masked)],
            "MONAI": lambda k: stock_intensity[k % len(masked)],
        },
        "cached, all augmentation": {
            "ours": lambda k: augmented[k % len(masked)],
            "MONAI": lambda k: stock_augmented[k % len(masked)],
        },
        f"a slice of a volume of {SLICES}": {
            "ours": lambda k: one_slice({"image": volume, "slice": k % SLICES}),
            "MONAI": lambda k: stock_volume({"image": volume})["image"][..., k % SLICES],
        },
    }
    for step, dataset in zip(make_augmentation(SIZE).transforms, alone, strict=False):
        name = type(step).__name__.removeprefix("Rand").removesuffix("Foregroundd").lower()
        jobs[f"cached, {name} always"] = {"ours": _getter(dataset)}
    return {**jobs, **_steps(plain, images)}


def _steps(pipeline: Pipeline, items: list[dict[str, Any]]) -> dict[str, dict[str, Callable[[int], Any]]]:
    """Each step of a pipeline alone, on what the steps before it made of the items."""
    jobs: dict[str, dict[str, Callable[[int], Any]]] = {}
    for step in pipeline.transforms:
        jobs[f"of a cold image, {type(step).__name__}"] = {"ours": _applied(step, items)}
        items = [step(item) for item in items]
    return jobs


def _applied(step: Callable[[Any], Any], items: list[dict[str, Any]]) -> Callable[[int], Any]:
    return lambda k: step(items[k % len(items)])


def _getter(dataset: CachedDataset) -> Callable[[int], Any]:
    return lambda k: dataset[k % len(dataset)]


def _only(kept: int) -> Pipeline:
    """Our pipeline with one random transform, always applied, and the mask."""
    random = make_augmentation(SIZE).transforms
    random[kept].prob = 1.0
    return Pipeline([*make_training_pipeline(SIZE, False, 4).transforms, random[kept], random[-1]])


def _volume(folder: Path) -> str:
    path = folder / "volume.nii.gz"
    content = np.random.default_rng(0).integers(0, 300, (SIZE // 2, SIZE // 2, SLICES)).astype(np.int16)
    nib.save(nib.Nifti1Image(content, np.diag([-1.0, -1.0, 1.0, 1.0])), path)
    return str(path)


def measure(
    timed: dict[str, dict[str, Callable[[int], Any]]], count: int, rounds: int, progress: bool = True
) -> list[dict[str, Any]]:
    """Time every line on ``count`` images, ``rounds`` times, the lines in turn.

    Returns:
        rows ``{"what", "who", "median_ms", "least_ms", "most_ms", "target_ms"}``, CPU time per image: median, least and
        most of the rounds.
    """
    taken: dict[tuple[str, str], list[float]] = {(what, who): [] for what, ways in timed.items() for who in ways}
    for round_ in tqdm(range(-1, rounds), desc="Timing", disable=not progress):  # the first round sets up
        for what, calls in timed.items():
            for who, call in calls.items():
                start = time.process_time()
                for k in range(count):
                    call(k)
                spent = 1e3 * (time.process_time() - start) / count
                if round_ >= 0:
                    taken[what, who].append(spent)
    return [
        {
            "what": what,
            "who": who,
            "median_ms": float(np.median(values)),
            "least_ms": min(values),
            "most_ms": max(values),
            "target_ms": TARGETS.get(what) if who == "ours" else None,
        }
        for (what, who), values in taken.items()
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The figures as text, with MONAI's median over ours."""
    stock_median = {row["what"]: row["median_ms"] for row in rows if row["who"] == "MONAI"}
    lines_ = [f"{'per image, ms of CPU time':<40}{'':<14}{'median':>8}{'least':>8}{'most':>8}   MONAI/ours   target"]
    for row in rows:
        ratio = stock_median.get(row["what"], 0) / row["median_ms"] if row["who"] != "MONAI" else 0
        lines_.append(
            f"{row['what']:<40}{row['who']:<14}{row['median_ms']:>8.2f}{row['least_ms']:>8.2f}{row['most_ms']:>8.2f}"
            + (f"{ratio:>12.1f}" if ratio else f"{'':>12}")
            + ("" if row["target_ms"] is None else f"   {row['target_ms']} "
               + ("reached" if row["median_ms"] <= row["target_ms"] else "NOT reached"))
        )  # fmt: skip
    return "\n".join(lines_)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, help="folder images/<class>/* with optional masks/<same stem>.png")
    parser.add_argument("--count", type=int, default=40, help="number of images")
    parser.add_argument("--rounds", type=int, default=5, help="times each image is used")
    parser.add_argument("--out", type=Path, help="JSON to write")
    arguments = parser.parse_args(argv)
    tune_process()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = arguments.images
        items = draw(folder, arguments.count) if source is None else copies(source, folder, arguments.count)
        rows = measure(lines(items, folder), len(items), arguments.rounds)
    print(table(rows))
    print(f"{len(items)} images of {SIZE}x{SIZE}, {arguments.rounds} rounds, one thread")
    if arguments.out:
        write_json(
            {"rows": rows, "images": len(items), "rounds": arguments.rounds, "machine": machine()}, arguments.out
        )


if __name__ == "__main__":
    errors.start_logging()
    with errors.one_sentence_errors():
        main()
