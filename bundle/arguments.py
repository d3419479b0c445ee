"""Arguments of the verbs of the product: service, page, checks, release, export, MONAI Label, model card."""

from __future__ import annotations

from scripts.command.verbs import (
    Parser,
    Verb,
    add_backend,
    add_data,
    add_out,
    add_port,
    add_prevalence,
    add_run,
    add_weights,
    folder,
)

__all__ = ["NAME", "VERBS"]

NAME = "brain_tumor_lens_segmentation"


def _serve(parser: Parser) -> None:
    add_weights(parser)
    add_prevalence(parser)
    add_backend(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; the service has no login of its own")
    add_port(parser, 8000)
    parser.add_argument(
        "--allowed_host", action="append", default=[], metavar="NAME",
        help="further name that the service is called by; localhost and IP addresses are; repeatable",
    )  # fmt: skip
    parser.add_argument("--max_upload_mib", type=int, default=64, help="size of one file (default: 64)")
    parser.add_argument("--max_batch", type=int, default=8, help="images predicted together (default: 8)")


def _page(parser: Parser) -> None:
    """The service as it is without options: for the browser of this machine."""
    add_weights(parser)
    add_prevalence(parser)
    add_backend(parser)
    add_port(parser, 8501)
    parser.set_defaults(host="127.0.0.1", allowed_host=[], max_upload_mib=64, max_batch=8)


def _check(parser: Parser) -> None:
    add_weights(parser)
    parser.add_argument("--bundle_root", type=folder, help="folder with configs/ and models/ (default: this bundle)")
    parser.add_argument("--image", type=folder, help="your own picture or volume (default: a phantom)")
    parser.add_argument("--layer", metavar="LAYER", help="layer of the map by Grad-CAM (default: the network's)")
    add_out(parser, "folder of the overlay (default: not kept)")


def _release(parser: Parser) -> None:
    add_run(parser, "trained run whose weights are released (default: models/model.pt)", required=False)
    add_out(parser, "folder of the bundle and its zip file", "dist")
    parser.add_argument("--name", metavar="NAME", default=NAME, help=f"name of the bundle (default: {NAME})")


def _export(parser: Parser) -> None:
    add_out(parser, "file to write, which ends in .onnx", required=True)
    add_weights(parser)
    parser.add_argument("--bundle_root", type=folder, help="folder with configs/ and models/ (default: this bundle)")


def _label(parser: Parser) -> None:
    text = f"released folder, repeatable (default: dist/{NAME})"
    parser.add_argument("--bundle", type=folder, action="append", help=text)
    add_out(parser, "folder of app and studies", "runs/label")
    parser.add_argument("--studies", help="your own folder of images, or the URL of a DICOMweb server")
    add_prevalence(parser)
    parser.add_argument("--stock", action="store_true", help="leave the app as it is, without the added strategy")


def _sampling(parser: Parser) -> None:
    parser.add_argument("--name", metavar="NAME", default=NAME, help=f"name of the bundle in the app (default: {NAME})")
    parser.add_argument("--server", default="http://127.0.0.1:8000", help="default: http://127.0.0.1:8000")


def _card(parser: Parser) -> None:
    add_data(parser, required=False, extra=" of BRISC 2025: images/<class>, masks", datalist=False)
    parser.add_argument("--volumes", type=folder, nargs="*", default=[], help="volumes of other sequences to try")
    add_out(parser, "folder of evaluation and explanations", "runs/weights_card")
    parser.add_argument(
        "--only", metavar="NAME", choices=("certificate", "scope"), help="only certificate, or scope; the rest is kept"
    )
    parser.add_argument("--render", action="store_true", help="write the card from what was measured before")


def _ship(parser: Parser) -> None:
    parser.add_argument("runs", type=folder, nargs="+", metavar="RUN", help="run folders in the order of training")
    parser.add_argument("--data_source", help="a sentence on the training data, with publisher and license")
    parser.add_argument(
        "--keep_earlier", action="store_true", help="the first run started from the weights shipped before: keep theirs"
    )


VERBS = (
    Verb(
        "serve", "serve predictions and explanations over HTTP", "bundle.service", _serve,
        "  python -m scripts serve --run_dir runs/mine --port 8000\n"
        "  curl -F image=@slice.png http://127.0.0.1:8000/predict_multitask",
    ),
    Verb(
        "page", "show verdict, mask and heatmap of dropped images in the browser", "bundle.service", _page,
        "  python -m scripts page --run_dir runs/mine",
    ),
    Verb(
        "check", "check that a bundle loads, is fed alike everywhere, predicts and explains", "bundle.checks", _check,
        "  python -m scripts check\n"
        f"  python -m scripts check --bundle_root dist/{NAME} --image mine.jpg --out runs/checks\n\n"
        "Exit status 1 if a check fails.",
    ),
    Verb(
        "export", "write the network as ONNX", "bundle.export", _export,
        "  python -m scripts export --run_dir runs/mine --out model.onnx\n\n"
        "TorchScript is written by MONAI: python -m monai.bundle ckpt_export",
    ),
    Verb(
        "release", "release the MONAI bundle as a folder and a zip file, checked by MONAI's commands", "bundle.release",
        _release, "  python -m scripts release --run_dir runs/mine",
    ),
    Verb(
        "label", "prepare MONAI Label with the released bundle and sample studies", "bundle.label", _label,
        "  python -m scripts label --studies FOLDER",
    ),
    Verb(
        "label-next", "score which image of a running MONAI Label server to label next", "bundle.label_sampling",
        _sampling, "  python -m scripts label-next --server http://127.0.0.1:8000",
    ),
    Verb(
        "card", "measure the shipped weights and write their model card", "bundle.weights_card", _card,
        "  python -m scripts card --dataset_dir BRISC --volumes A.nii.gz B.nii.gz",
    ),
    Verb(
        "ship", "ship a run's weights with the repository", "bundle.shipping", _ship,
        "  python -m scripts ship runs/weights runs/weights_continued",
    ),
)  # fmt: skip
