"""How far changes of a picture that say nothing about the tumor move the verdict of the weights.

    python -m benchmarks.invariance --dataset_dir DIR --datalist_file LIST.json [--overlay network.yaml] [--cases 200]

Borders (four placements in three colors, of a random width of 2 to 40 % of the side): of lossless pictures; of JPEG
files (quality 85), against the same file with its border cut off; and against the picture that was saved as JPEG
without a border, whose blocks of 8 x 8 pixels, and so its pixels, then lie otherwise. Letters in the corners; flips,
quarter turns, gamma, 16 bits, other sizes. For each the largest and the 95 % quantile of the change of the tumor
probability, and how many verdicts change. The network reads the picture through the pipeline of inference; nothing is
trained.
"""

from __future__ import annotations

import argparse
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from scripts.command import errors
from scripts.command.files import write_json
from scripts.data.datalists import schema as datalists
from scripts.inference.pipeline import Inference
from transforms.pictures import read_picture

logger = logging.getLogger(__name__)

Picture = NDArray[Any]
SIDES = {"all sides": (1, 1, 1, 1), "left": (1, 0, 0, 0), "top": (0, 1, 0, 0), "right and bottom": (0, 0, 1, 1)}
COLORS = {"black": 0, "gray": 128, "white": 255}
# Kinds of borders, and the largest change of the probability that is wanted; None where the picture itself differs.
MOST = {"lossless": 1e-3, "jpeg": 1e-2, "jpeg saved without": None}


def bordered(picture: Picture, sides: Sequence[int], color: int, width: int) -> Picture:
    """A picture (X, Y), uint8, with a border of ``width`` pixels at the sides (left, top, right, bottom)."""
    left, top, right, bottom = (side * width for side in sides)
    return np.pad(picture, ((left, right), (top, bottom)), constant_values=color)


def unframed(picture: Picture, sides: Sequence[int], width: int) -> Picture:
    """What `bordered` framed."""
    left, top, right, bottom = (side * width for side in sides)
    return picture[left : picture.shape[0] - right, top : picture.shape[1] - bottom]


def jpeg(picture: Picture, quality: int = 85) -> Picture:
    """A picture (X, Y), uint8, after JPEG."""
    file = io.BytesIO()
    Image.fromarray(picture.T).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).T


def lettered(picture: Picture) -> Picture:
    """A picture (X, Y), uint8, in a black border with small white letters in two corners."""
    page = Image.fromarray(bordered(picture, (1, 1, 1, 1), 0, 24).T)
    draw = ImageDraw.Draw(page)
    draw.text((2, 2), "R SE 500", fill=255)
    draw.text((2, page.size[1] - 14), "10:33", fill=255)
    return np.asarray(page).T


def _gamma(exponent: float) -> Callable[[Picture], Picture]:
    return lambda picture: (255 * (picture / 255.0) ** exponent).round().astype(np.uint8)


def _resized(factor: float) -> Callable[[Picture], Picture]:
    def change(picture: Picture) -> Picture:
        size = tuple(max(16, round(n * factor)) for n in picture.shape)
        return np.asarray(Image.fromarray(picture.T).resize(size, Image.Resampling.LANCZOS)).T

    return change


OTHERS: Mapping[str, Callable[[Picture], Picture]] = {
    "letters in the corners": lettered,
    "16 bits": lambda picture: picture.astype(np.uint16) * 257,
    "mirrored": lambda picture: picture[::-1],
    "turned by 90 degrees": lambda picture: np.rot90(picture),
    "gamma 0.7": _gamma(0.7),
    "gamma 1.4": _gamma(1.4),
    "70 % of the size": _resized(0.7),
    "130 % of the size": _resized(1.3),
}


def changes(picture: Picture, rng: np.random.Generator, borders: bool = True) -> Iterator[tuple[str, Picture, Picture]]:
    """Name, unchanged and changed picture of every change."""
    compressed = jpeg(picture)
    for place, sides in SIDES.items() if borders else ():
        for name, color in COLORS.items():
            width = max(1, round(float(rng.uniform(0.02, 0.4)) * max(picture.shape)))
            framed = bordered(picture, sides, color, width)
            yield f"border, lossless: {name}, {place}", picture, framed
            saved = jpeg(framed)
            yield f"border, jpeg: {name}, {place}", unframed(saved, sides, width), saved
            yield f"border, jpeg saved without: {name}, {place}", compressed, saved
    for name, change in OTHERS.items():
        yield name, picture, np.ascontiguousarray(change(picture))


def probability(inference: Inference, picture: Picture) -> tuple[float, float]:
    """Tumor probability and threshold for a picture (X, Y)."""
    item = inference.prepare({"image": picture.astype(np.float32)})
    output = inference.infer(item)
    return 1.0 - float(output["probability"][0, 0]), float(output["threshold"])


def measure(
    inference: Inference, pictures: Sequence[Picture], seed: int = 0, borders: bool = True
) -> list[dict[str, Any]]:
    """A row a change, with or without the borders: n, quantile_95 and maximum of the change of p, flips, refused."""
    rng = np.random.default_rng(seed)
    moved: dict[str, list[tuple[float, bool]]] = {}
    refused: dict[str, int] = {}
    for number, picture in enumerate(pictures):
        known: dict[int, tuple[Picture, float, float]] = {}  # the picture stays, or another could get its id
        for name, before, after in changes(picture, rng, borders):
            try:
                if id(before) not in known:
                    known[id(before)] = before, *probability(inference, before)
                (_, p, threshold), (q, _) = known[id(before)], probability(inference, after)
            except ValueError as error:
                refused[name] = refused.get(name, 0) + 1
                logger.info("%s: %s", name, error)
                continue
            moved.setdefault(name, []).append((abs(q - p), (p >= threshold) != (q >= threshold)))
        if (number + 1) % 10 == 0:
            logger.info("%d of %d pictures", number + 1, len(pictures))
    rows = []
    for name, values in moved.items():
        sizes = np.array([size for size, _ in values])
        rows.append(
            {"change": name, "n": len(values), "quantile_95": float(np.quantile(sizes, 0.95)),
             "maximum": float(sizes.max()), "flips": sum(flip for _, flip in values), "refused": refused.get(name, 0)}
        )  # fmt: skip
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table; borders taken together first."""
    lines = ["| change | n | 95 % of changes of p up to | largest | verdicts changed |", "|---|---|---|---|---|"]
    for kind, most in MOST.items():
        some = [row for row in rows if row["change"].startswith(f"border, {kind}:")]
        if some:
            largest = max(row["maximum"] for row in some)
            middle, flips = max(row["quantile_95"] for row in some), sum(row["flips"] for row in some)
            goal = "" if most is None else f" (<= {most:g}: {'met' if largest <= most else 'MISSED'})"
            lines.append(
                f"| **any border, {kind}** | {sum(row['n'] for row in some)} | {middle:.2g} | {largest:.2g}{goal} "
                f"| {flips} |"
            )
    for row in rows:
        lines.append(
            f"| {row['change']} | {row['n']} | {row['quantile_95']:.2g} | {row['maximum']:.2g} | {row['flips']} |"
        )
    return "\n".join(lines)


def spread(items: Sequence[Mapping[str, Any]], count: int, seed: int = 0) -> list[Mapping[str, Any]]:
    """At most ``count`` pictures of a part, drawn from a seed."""
    order = np.random.default_rng(seed).permutation(len(items))
    return [items[i] for i in order if "slice" not in items[i]][:count]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.invariance", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder that the datalist's paths start from")
    parser.add_argument("--datalist_file", type=Path, required=True, help="its test part is taken")
    parser.add_argument("--overlay", type=Path, help="network.yaml of a run (default: the shipped weights)")
    parser.add_argument("--cases", type=int, default=200, help="pictures (default: 200)")
    parser.add_argument("--without_borders", action="store_true", help="the other changes alone")
    parser.add_argument("--out", type=Path, help="write the rows as JSON here")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    datalist = datalists.read(arguments.datalist_file, arguments.dataset_dir)
    chosen = spread(datalist["test"], arguments.cases)
    pictures = [
        np.clip(read_picture(arguments.dataset_dir / str(item["image"])), 0, 255).astype(np.uint8) for item in chosen
    ]
    rows = measure(Inference(overlay=arguments.overlay), pictures, borders=not arguments.without_borders)
    if arguments.out:
        write_json(rows, arguments.out)
    print(table(rows))


if __name__ == "__main__":
    with errors.one_sentence_errors():
        main()
