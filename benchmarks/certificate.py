"""Minutes of the CPU that a certificate of somebody's slow model takes, the model's own apart.

    python -m benchmarks.certificate [--pictures 200] [--side 256] [--milliseconds 50] [--check] [--out FILE]

Drawn heads, three in five with a tumor, are written as pictures and masks and read again, as `certify --folder --masks`
does; the model spends so many milliseconds of the CPU in each call. ``--profile`` prints where the time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import pstats
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import timing
from benchmarks.rows import Row, table
from scripts.certificate.certificate import certify
from scripts.certificate.folders import read_cases
from scripts.certificate.models import ExternalModel
from scripts.certificate.planted import CLASSES, SIZE, phantom_case
from scripts.certificate.settings import Settings
from scripts.command import errors
from scripts.command.files import write_json

# Minutes of the CPU for 200 pictures and a model of 50 ms a call.
GOAL = 5.0
_SICK = 0.6


class Slow:
    """Spends a time of the CPU in each call, and says tumor where a picture is bright; ``seconds`` adds it up."""

    def __init__(self, milliseconds: float) -> None:
        self.milliseconds, self.seconds = milliseconds, 0.0

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, 3) probabilities of a batch (N, 1, H, W)."""
        start = time.process_time()
        top = np.quantile(batch.reshape(len(batch), -1), 0.995, axis=1)
        tumor = np.clip(top * 2 - 0.8, 0.02, 0.98)
        while time.process_time() - start < self.milliseconds / 1000:
            pass
        self.seconds += time.process_time() - start
        return np.stack([1 - tumor, tumor / 2, tumor / 2], axis=1)


def write_pictures(folder: Path, pictures: int, side: int) -> tuple[int, int]:
    """Write heads and masks into ``images/<class>`` and ``masks``: (tumors, healthy heads)."""
    tumors = round(pictures * _SICK)
    (folder / "masks").mkdir()
    for k in range(pictures):
        kind = 1 + k % 2 if k < tumors else 0
        case = phantom_case(k, kind)
        (folder / "images" / CLASSES[kind]).mkdir(parents=True, exist_ok=True)
        for array, into in ((case.image[0], folder / "images" / CLASSES[kind]), (case.mask, folder / "masks")):
            if array is not None:
                drawn = Image.fromarray((array.T * (255 if array.dtype == bool else 1)).astype(np.uint8))
                how = Image.Resampling.NEAREST if array.dtype == bool else Image.Resampling.BICUBIC
                drawn.resize((side, side), how).save(into / f"axial{k}.png")
    return tumors, pictures - tumors


def measured(pictures: int, side: int, milliseconds: float) -> tuple[list[Row], dict[str, Any]]:
    """Certify drawn pictures: rows, and counts of the certificate."""
    model = Slow(milliseconds)
    settings = Settings(CLASSES, CLASSES[0], size=(224, 224))
    subject = ExternalModel(model, settings, "slow", "slow")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tumors, healthy = write_pictures(folder, pictures, side)
        start, wall = time.process_time(), time.perf_counter()
        left_out: Counter[str] = Counter()
        cases = read_cases(folder / "images", folder / "masks", list(CLASSES), left_out)
        content = certify(
            subject, cases, folder / "out", "slow", "picture", tumors, healthy, left_out=left_out,
            batch_size=settings.batch_size,
        )  # fmt: skip
        spent, wall = time.process_time() - start, time.perf_counter() - wall
    counts = content["counts"]
    full = (pictures, milliseconds) == (200, 50)
    rows = [
        Row("certificate in all, CPU", spent / 60, "min", GOAL if full else None),
        Row("the model's own, CPU", model.seconds / 60, "min"),
        Row("the rest, CPU", (spent - model.seconds) / 60, "min"),
        Row("in all, by the clock", wall / 60, "min"),
        Row("pictures certified", len(cases), ""),
        Row("pictures asked about", counts["pictures"], ""),
        Row("of these seen by the model", counts["asked"], ""),
        Row("of these known before", counts["known"], ""),
        Row("calls", subject.calls, ""),
    ]
    return rows, counts


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.certificate", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--pictures", type=int, default=200, help="drawn heads (default: 200)")
    parser.add_argument("--side", type=int, default=2 * SIZE, help=f"of a picture, in pixels (default: {2 * SIZE})")
    parser.add_argument("--milliseconds", type=float, default=50, help="of the CPU in each call (default: 50)")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--out", type=Path, help="write the rows as JSON here")
    parser.add_argument("--check", action="store_true", help="exit with 1 when the target is missed")
    arguments = parser.parse_args(argv)
    timing.set_threads(1)
    profile = cProfile.Profile()
    if arguments.profile:
        profile.enable()
    rows, _ = measured(arguments.pictures, arguments.side, arguments.milliseconds)
    profile.disable()
    print(table(rows))
    print(f"{arguments.side} x {arguments.side} pixels, {arguments.milliseconds:g} ms a call; {timing.machine()}")
    if arguments.profile:
        text = io.StringIO()
        pstats.Stats(profile, stream=text).sort_stats("cumulative").print_stats(45)
        print(text.getvalue())
    if arguments.out:
        write_json([vars(row) for row in rows], arguments.out)
    return int(arguments.check and not all(row.met for row in rows))


if __name__ == "__main__":
    with errors.one_sentence_errors():
        sys.exit(main())
