"""Arguments of the verb ``predict``."""

from __future__ import annotations

from pathlib import Path

from scripts.command.verbs import (
    Parser,
    Verb,
    add_backend,
    add_out,
    add_prevalence,
    add_shards,
    add_weights,
    folder,
)

__all__ = ["VERBS"]


def _input(text: str) -> Path | str:
    return text if text.lower().startswith(("http://", "https://")) else folder(text)


def _predict(parser: Parser) -> None:
    parser.add_argument(
        "folder",
        type=_input,
        metavar="INPUT",
        help="folder of images, one image, a CSV or Parquet file with a column image, or the address of a study or "
        "series of a DICOMweb server",
    )
    add_out(parser, "folder of the results", required=True)
    add_weights(parser)
    parser.add_argument("--bundle_root", type=folder, help="folder with configs/ and models/ (default: this bundle)")
    parser.add_argument("--plane", help="axial, coronal, sagittal or auto: how volumes are cut")
    parser.add_argument("--channel", type=int, help="which volume of 4D files, counted from 0")
    parser.add_argument("--slice_batch_size", type=int, help="slices in one pass of the network")
    parser.add_argument(
        "--mirror_axes",
        type=int,
        nargs="+",
        metavar="AXIS",
        help="average over images mirrored along these axes, as 0 1 2",
    )
    parser.add_argument(
        "--assess_anyway", action="store_const", const=True, help="answer images unlike those of the training too"
    )
    add_prevalence(parser)
    add_backend(parser)
    parser.add_argument("--readers", type=int, default=1, help="threads that read and prepare files ahead (default: 1)")
    parser.add_argument("--no_overlays", action="store_true", help="write masks, evidence and results only")
    parser.add_argument(
        "--results_to",
        metavar="ADDRESS",
        help="put the files of each image in this store, e.g. s3://bucket/prefix; the table stays below --out",
    )
    parser.add_argument("--dicom", action="store_true", help="also write DICOM objects: segmentation, evidence, report")
    parser.add_argument("--series", metavar="UID", help="the one DICOM series to take, of a folder or study of several")
    parser.add_argument(
        "--store",
        metavar="URL",
        nargs="?",
        const=True,
        help="store the DICOM objects at this DICOMweb server (alone: where the series came from), each once",
    )
    parser.add_argument(
        "--anonymous", action="store_true", help="DICOM objects, tables and names that say nothing of the patient"
    )
    parser.add_argument(
        "--evidence_segments",
        action="store_true",
        help="DICOM evidence as a Segmentation too, for viewers as OHIF",
    )
    add_shards(parser, "of a manifest: as many as cores")


VERBS = (
    Verb(
        "predict", "predict every image of a folder or manifest: masks, evidence, overlays and one table, resumable",
        "scripts.inference.predict", _predict,
        "  python -m scripts predict FOLDER --out runs/predicted --run_dir runs/mine\n"
        "  python -m scripts predict manifest.csv --out runs/predicted --processes 8\n"
        "  python -m scripts predict manifest.csv --out runs/predicted --shard 3/40\n"
        "  python -m scripts predict manifest.csv --out runs/predicted --merge\n"
        "  python -m scripts predict http://127.0.0.1:8042/dicom-web/studies/UID --out runs/predicted --dicom --store"
        "\n\n"
        "Exit status 1 when an image was skipped; the table says why.",
    ),
)  # fmt: skip
