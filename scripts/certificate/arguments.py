"""Arguments of the verb ``certify``."""

from __future__ import annotations

from pathlib import Path

from scripts.command.verbs import (
    Parser,
    Verb,
    add_compute,
    add_data,
    add_earlier,
    add_folder,
    add_out,
    add_part,
    add_run,
    add_seed,
    folder,
)  # fmt: skip

__all__ = ["VERBS"]


def _certify(parser: Parser) -> None:
    subject = parser.add_argument_group("model: a run of this bundle, or anybody's")
    add_run(subject, "trained run", required=False)  # type: ignore[arg-type]
    text = (
        "FILE.onnx, FILE.pt (TorchScript), module:function or http://ADDRESS; executes what you name and nothing else"
    )
    subject.add_argument("--model", help=text)
    text = "YAML: classes, no_tumor, size, channels, scaling, mean, std, channel_order, layout, outputs, threshold, ..."
    subject.add_argument("--model_config", type=folder, metavar="FILE.yaml", help=text)
    pictures = parser.add_argument_group("pictures: by datalist, or of --model by folder")
    add_data(pictures, required=False)  # type: ignore[arg-type]
    add_part(pictures)  # type: ignore[arg-type]
    add_folder(pictures, "one folder a class, named as the classes", earlier="--images")  # type: ignore[arg-type]
    text = "folder of the masks: the same stems, white in the tumor"
    pictures.add_argument("--masks", type=folder, metavar="DIR", help=text)
    text = (
        "in place of pictures: so many people drawn with and without a tumor, the exact answer beside each intervention"
    )
    pictures.add_argument("--phantoms", type=int, metavar="N", help=text)
    add_out(parser, "folder of the results (default: certificate in the run, or runs/certificate)")
    for name, default, text in (("tumors", 120, "tumors"), ("healthy", 60, "healthy heads")):
        text = f"at most so many {text}, drawn by --seed (default: {default})"
        parser.add_argument(f"--limit_{name}", dest=name, type=int, metavar="N", default=default, help=text)
        add_earlier(parser, f"--{name}", name, type=int)
    text = "ways of painting out (default: those that no training uses)"
    parser.add_argument("--infills", nargs="+", metavar="WAY", default=(), help=text)
    text = "ways of moving in (default: those that no training uses)"
    parser.add_argument("--blends", nargs="+", metavar="WAY", default=(), help=text)
    add_seed(parser, "the draw of cases")
    add_compute(parser)


def _planted(parser: Parser) -> None:
    parser.add_argument("--collections", type=int, metavar="N", default=1, help="collections of phantoms (default: 1)")
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE.jpg", help="write pictures of the interventions, and answers"
    )


def _ranked(parser: Parser) -> None:
    parser.add_argument(
        "--n_cases", type=int, metavar="N", default=40, help="number of phantoms with a tumor (default: 40)"
    )


VERBS = (
    Verb(
        "certify", "say whether verdict, mask and map follow the tumor: painted out, moved, faded, with controls",
        "scripts.certificate.certify", _certify,
        "  python -m scripts certify --run_dir runs/mine --dataset_dir DIR --datalist_file LIST.json\n"
        "  python -m scripts certify --model model.onnx --model_config model.yaml --folder DIR/images \\\n"
        "      --masks DIR/masks\n\n"
        "Exit status 1 when a property fails, or a picture was skipped.\n"
        "What each sentence can and cannot conclude: docs/certificate.md.",
    ),
    Verb(
        "planted", "try the certificate on classifiers and segmenters of which it is known what they read",
        "scripts.certificate.planted_suite", _planted,
        "  python -m scripts planted --collections 10\n\nExit status 1 when one is named wrong.",
    ),
    Verb(
        "rank-measures", "say which measures of maps rank worse maps lower, step by step",
        "scripts.certificate.map_measures", _ranked, "  python -m scripts rank-measures --n_cases 40",
    ),
)  # fmt: skip
