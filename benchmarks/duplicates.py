"""How many unrelated drawn pictures are taken for near-duplicates, and how many true copies are found among them.

    python -m benchmarks.duplicates [--images 20000] [--classes 4] [--copies 200] [--seed 0] [--drawn FILE.npy]

Each picture is a head of its own: an ellipse of random axes and turn, with one to six blobs. So no group of them is
right. The class of a picture says nothing of what is drawn: a group of two classes is as wrong as one of one class.
The copies are pictures stored again at half the size and as JPEG; the way is that of `datalist build` for pictures.
"""

from __future__ import annotations

import argparse
import io
import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from benchmarks.timing import peak_bytes
from scripts.command import errors
from scripts.data.datalists.fingerprints import fingerprint
from scripts.data.datalists.near_duplicates import group_near_duplicates

SIDE = 96


def draw(rng: np.random.Generator) -> Image.Image:
    """A drawn head with blobs, 8 bits."""
    x, y = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij")

    def ellipse(center: NDArray, axes: NDArray, turn: float) -> NDArray[np.bool_]:
        u = (x - center[0]) * np.cos(turn) + (y - center[1]) * np.sin(turn)
        v = (y - center[1]) * np.cos(turn) - (x - center[0]) * np.sin(turn)
        return (u / axes[0]) ** 2 + (v / axes[1]) ** 2 <= 1

    head = ellipse(rng.uniform(-0.08, 0.08, 2), rng.uniform([0.55, 0.7], [0.75, 0.88]), rng.uniform(-0.3, 0.3))
    picture = np.where(head, rng.uniform(80, 140), 0.0)
    for _ in range(rng.integers(1, 7)):
        blob = ellipse(rng.uniform(-0.5, 0.5, 2), rng.uniform(0.05, 0.3, 2), rng.uniform(0, np.pi))
        picture = np.where(blob & head, rng.uniform(30, 250), picture)
    picture = picture + head * rng.normal(0, 4, picture.shape)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def stored_again(picture: Image.Image) -> Image.Image:
    """The picture at half its size, after JPEG at quality 75."""
    file = io.BytesIO()
    picture.resize((SIDE // 2, SIDE // 2), Image.Resampling.LANCZOS).save(file, "JPEG", quality=75)
    return Image.open(file)


def fingerprints(images: int, copies: int, seed: int = 0, progress: bool = False) -> NDArray[np.uint8]:
    """Fingerprints of unrelated pictures, and behind them of the first ones stored again, uint8 (N, 672)."""
    rng = np.random.default_rng(seed)
    originals, again = [], []
    for k in tqdm(range(images), unit="image", disable=not progress):
        picture = draw(rng)
        originals.append(fingerprint(picture))
        if k < copies:
            again.append(fingerprint(stored_again(picture)))
    return np.stack([*originals, *again])


def measure(both: NDArray[np.uint8], classes: int, copies: int, seed: int = 0) -> dict[str, Any]:
    """Wrong groups, pictures in them, wrong groups of several classes, and copies found, by the rule of datalists.

    Args:
        both: fingerprints of unrelated pictures, and behind them of copies of the first ones.
        classes: among which they are drawn.
        copies: how many there are.
        seed: of the classes.
    """
    images = len(both) - copies
    kinds = np.random.default_rng([seed, 1]).integers(0, classes, images)
    start = time.process_time()
    groups, used = group_near_duplicates(both, order=np.arange(images + copies))
    searched = time.process_time() - start
    unrelated = groups[:images].tolist()
    wrong = {group for group, size in Counter(unrelated).items() if size > 1}
    mixed: dict[int, set[int]] = {}
    for group_id, kind in zip(unrelated, kinds.tolist(), strict=True):
        if group_id in wrong:
            mixed.setdefault(group_id, set()).add(kind)
    return {
        "images": images,
        "classes": classes,
        "wrong_groups": len(wrong),
        "images_in_wrong_groups": sum(group in wrong for group in unrelated),
        "wrong_groups_of_several_classes": sum(len(classes) > 1 for classes in mixed.values()),
        "copies_found": f"{int((groups[images:] == groups[:copies]).sum())} of {copies}",
        **used.figures(),
        "search_cpu_s": round(searched, 1),
        "peak_mib": round(peak_bytes() / 2**20),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.duplicates", description="Near-duplicates by mistake.")
    parser.add_argument("--images", type=int, default=20000, help="unrelated pictures (default: 20000)")
    parser.add_argument("--classes", type=int, default=4, help="classes they are in (default: 4)")
    parser.add_argument("--copies", type=int, default=200, help="pictures stored again (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (default: 0)")
    text = "fingerprints: kept there, or read where they were, the first --images of them (with as many --copies)"
    parser.add_argument("--drawn", type=Path, metavar="FILE.npy", help=text)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    images, copies, drawn = arguments.images, arguments.copies, arguments.drawn
    if drawn is not None and drawn.exists():
        kept = np.load(drawn)
        if len(kept) < images + copies:
            raise ValueError(f"{drawn} holds {len(kept)} fingerprints, fewer than {images} and {copies} copies")
        both = np.concatenate([kept[:images], kept[len(kept) - copies :]])
    else:
        both = fingerprints(images, copies, arguments.seed, progress=True)
        if drawn is not None:
            np.save(drawn, both)
    results = measure(both, arguments.classes, copies, arguments.seed)
    print("\n".join(f"{name:34}{value}" for name, value in results.items()))


if __name__ == "__main__":
    with errors.one_sentence_errors():
        main()
