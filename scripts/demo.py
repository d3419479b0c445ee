"""The whole way in one command: data, three stages and the stock design beside them, evaluation, explanation, report.

On phantoms made here, or on a folder ``images/<class>/*`` with optional ``masks/<same stem>.png``::

    python -m scripts.demo
    python -m scripts.demo --data FOLDER --limit 400
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from scripts import datalists, phantoms, report, runs
from scripts.cli import one_sentence_errors, start_logging
from scripts.train import CONFIGS, ROOT, train

logger = logging.getLogger(__name__)

RUNS = {"ours": "TumorLens", "baseline": "stock design"}
PHANTOM_PATIENTS, PHANTOM_SINGLES = 80, 160
PHANTOM_NOTE = (
    "The images are phantoms: drawn by a program, easier than patients. They show that the way works, not how well."
)


def phantom_datalist(folder: Path, seed: int) -> dict[str, Any]:
    """Make the two phantom sources, or find them made, and list them together."""
    phantoms.make_phantoms(folder, seed=seed, patients=PHANTOM_PATIENTS, singles=PHANTOM_SINGLES)
    patients, _ = datalists.nifti_cases(
        folder / "patients", root=folder, name="patients", seed=seed, tumor_slices=4, normal_slices=2
    )
    singles, _ = datalists.image_folder(folder / "singles", root=folder, name="singles", seed=seed, modality="FLAIR")
    return datalists.merge([patients, singles], name="phantoms")


def run_config(name: str, **values: Any) -> None:
    """Run one of the bundle's configs in this process, as ``monai.bundle run`` would."""
    workflow = ConfigWorkflow(
        workflow_type="infer",
        config_file=str(CONFIGS / name),
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        bundle_root=str(ROOT),
        **values,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def demo(out: Path, data: Path | None = None, limit: int | None = None, seed: int = 0) -> str:
    """Run the demo.

    Args:
        out: folder of runs and report.
        data: the user's folder; None makes phantoms in ``data/phantoms``.
        limit: at most so many images of the user's folder.
        seed: of phantoms, split and training.

    Returns:
        the table to print.
    """
    start = time.monotonic()
    if data is None:
        folder = ROOT / "data" / "phantoms"
        datalist = phantom_datalist(folder, seed)
    else:
        folder = data
        datalist, _ = datalists.image_folder(folder, limit=limit, seed=seed)
    datalists.assert_no_overlap(datalist)
    datalist_file = out / "datalist.json"
    out.mkdir(parents=True, exist_ok=True)
    datalists.write(datalist, datalist_file)
    runs.write_json(report.data_summary(datalist, notes=[PHANTOM_NOTE] if data is None else []), out / "data.json")
    paths = {"dataset_dir": str(folder), "datalist_file": str(datalist_file)}

    overlays = {"ours": [CONFIGS / "demo.yaml"], "baseline": [CONFIGS / "baseline.yaml", CONFIGS / "demo.yaml"]}
    for name, title in RUNS.items():
        logger.info("training %s (%s)", name, title)
        train(out / name, overlays[name], seed=seed, **paths)
    for name in RUNS:
        run_config("evaluate.yaml", run_dir=str(out / name), **paths)
        run_config("explain.yaml", run_dir=str(out / name), **paths)
    page = report.write_report(out, RUNS)
    logger.info("finished in %.1f minutes", (time.monotonic() - start) / 60)
    return f"{report.comparison_table(out, RUNS)}\n\nreport: {page}\ncurves: tensorboard --logdir {out}"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder images/<class>/* with optional masks/<same stem>.png")
    parser.add_argument("--limit", type=int, help="use at most so many images of --data")
    parser.add_argument("--out", type=Path, help="default: runs/demo, or runs/demo-<folder> with --data")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    out = arguments.out or ROOT / "runs" / ("demo" if arguments.data is None else f"demo-{arguments.data.name}")
    start_logging()
    print(demo(out, arguments.data, arguments.limit, arguments.seed))


if __name__ == "__main__":
    with one_sentence_errors():
        main()
