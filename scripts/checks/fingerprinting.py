"""Fingerprints of a datalist's images, by any number of processes; merges take them in place of reading the images::

python -m scripts fingerprint --dataset_dir DIR --datalist_file LIST.json --out runs/prints --processes 8
python -m scripts datalist merge LIST.json MORE.json --dataset_dir DIR --fingerprints runs/prints --out BOTH.json
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scripts.checks.verification import every_item
from scripts.checks.verify_data import read_loosely
from scripts.command.verbs import Outcome
from scripts.data.datalists.known_fingerprints import FILE, VERSION, key_of, write
from scripts.data.datalists.linking import picture_of
from scripts.inference.item_shards import in_shards

__all__ = ["FingerprintJob"]


@dataclass(frozen=True)
class FingerprintJob:
    """Fingerprint and content of one item after the other."""

    datalist_file: Path
    dataset_dir: Path

    def settings(self) -> dict[str, Any]:
        """What decides about a result beside the list."""
        return {"dataset_dir": str(Path(self.dataset_dir).resolve()), "version": VERSION}

    def start(self) -> Callable[[int], Any]:
        """Key, fingerprint and content hash of an item by its number; None where its image cannot be read."""
        items, root = every_item(read_loosely(self.datalist_file)), Path(self.dataset_dir)

        def one(number: int) -> list[str] | None:
            item = items[number][0]
            try:
                key = key_of(item, root)
                fingerprint, content = picture_of(item, root)
            except (ValueError, OSError):  # a merge reads it again and says why it cannot be used
                return None
            return [key.hex(), base64.b64encode(fingerprint.tobytes()).decode(), content]

        return one


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``fingerprint``; fails when an image was skipped.

    Raises:
        FileNotFoundError: when there is no such list or folder.
        ValueError: when the list holds no items, or no image of it can be read.
    """
    source = arguments.datalist_file
    if not Path(arguments.dataset_dir).is_dir():
        raise FileNotFoundError(f"no folder {arguments.dataset_dir}")
    count = len(every_item(read_loosely(source)))
    if not count:
        raise ValueError(f"{source} holds no items")
    job = FingerprintJob(source, arguments.dataset_dir)
    results = in_shards(arguments, job, source, arguments.out, lambda: count)
    if isinstance(results, str):
        return Outcome(results, [arguments.out])
    if results is None:
        one = job.start()
        results = [one(number) for number in tqdm(range(count), desc="fingerprints", unit="image")]
    read = [values for values in results if values is not None]
    if not read:
        raise ValueError(f"none of {count} images of {source} can be read; python -m scripts verify says why")
    keyed = (
        (bytes.fromhex(key), np.frombuffer(base64.b64decode(bits), np.uint8), content) for key, bits, content in read
    )
    written = write(arguments.out / FILE, keyed)
    skipped = count - written
    return Outcome(f"{written} fingerprints, {skipped} images not read", [arguments.out / FILE], failed=skipped > 0)
