"""Command line: `python -m scripts phantoms --out data/phantoms --seed 0`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.phantoms.dataset import make_phantoms


def main(argv: Sequence[str] | None = None) -> int:
    """Write a phantom folder; returns the exit status, 1 with one sentence on stderr when it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m scripts phantoms", description="Write seeded FLAIR-like phantoms.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; appears only when it is whole")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patients", type=int, default=60, help="NIfTI volumes with masks (default 60)")
    parser.add_argument("--singles", type=int, default=160, help="single images without masks, even (default 160)")
    parser.add_argument("--overwrite", action="store_true", help="replace phantoms made with other arguments")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        make_phantoms(args.out, args.seed, args.patients, args.singles, overwrite=args.overwrite)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
