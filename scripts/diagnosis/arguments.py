"""Arguments of the verb ``diagnose``."""

from __future__ import annotations

from scripts.command.verbs import (
    Parser,
    Verb,
    add_data,
    add_earlier,
    add_folder,
    add_limit,
    add_out,
    add_part,
    add_run,
    add_size,
    folder,
)  # fmt: skip

__all__ = ["VERBS"]


def _diagnose(parser: Parser) -> None:
    network = parser.add_argument_group("network: a run of this bundle, or one of your own")
    add_run(network, required=False)  # type: ignore[arg-type]
    network.add_argument("--network", help="class or function, as a dotted path: monai.networks.nets.DenseNet121")
    network.add_argument("--network_args", help="its arguments, as JSON")
    network.add_argument("--network_config", type=folder, help="or a bundle config that defines it")
    network.add_argument("--network_id", default="network_def", help="its id in that config (default: network_def)")
    text = "state dict of the network, or a checkpoint that holds one"
    network.add_argument("--weights", type=folder, metavar="FILE.pt", help=text)
    add_earlier(network, "--checkpoint", "weights", type=folder)  # type: ignore[arg-type]
    network.add_argument("--random_weights", action="store_true", help="diagnose the design, without weights")
    network.add_argument("--forward_args", help="further arguments of its forward, as JSON")
    network.add_argument(
        "--head", help="the explained one of its outputs: key, field or number (default: the only one)"
    )
    images = parser.add_argument_group("images: by datalist, or by folder")
    add_data(images, required=False)  # type: ignore[arg-type]
    add_part(images)  # type: ignore[arg-type]
    add_folder(images, "images/<class>/* with optional masks/, or plain files")  # type: ignore[arg-type]
    add_limit(images, "images go through the network (default: 48)", 48)  # type: ignore[arg-type]
    text = "config file with your own 'preprocessing' (default: this bundle's)"
    images.add_argument("--preprocessing", type=folder, help=text)
    add_size(images, "+")  # type: ignore[arg-type]
    shown = parser.add_argument_group("the map that you look at")
    text = "method of the map: gradcam, hirescam, ... (default: gradcam, or evidence for runs that have it)"
    shown.add_argument("--method", metavar="METHOD", help=text)
    shown.add_argument("--layer", metavar="LAYER", help="layer of the map: dotted name or alias (default: chosen)")
    shown.add_argument("--class_index", type=int, help="class whose logit is explained, or channel of a segmentation")
    shown.add_argument("--target", help="another score: tumor_log_odds, class_2_minus_class_0, ...")
    shown.add_argument(
        "--num_classes", type=int, metavar="K", help="number of classes, checked against the network's output"
    )
    shown.add_argument("--normalizer", help="function that scales the finished map, as a dotted path")
    shown.add_argument("--colormap", help="function that colors it, values (H, W) to RGB (H, W, 3), as a dotted path")
    shown.add_argument("--heatmaps", type=folder, help="folder of ready heatmaps or overlays, named as the images")
    add_out(parser, "folder of the results (default: diagnosis in the run, or runs/diagnosis)")


VERBS = (
    Verb(
        "diagnose", "say why a heatmap lies in the background, for a run or a network of your own",
        "scripts.diagnosis.diagnose", _diagnose,
        "  python -m scripts diagnose --run_dir runs/mine --dataset_dir DIR --datalist_file LIST.json\n"
        "  python -m scripts diagnose --network monai.networks.nets.DenseNet121 --weights model.pt --folder DIR \\\n"
        "      --network_args '{\"spatial_dims\": 2, \"in_channels\": 1, \"out_channels\": 2}'\n\n"
        "Exit status 1 when a cause holds.",
    ),
)  # fmt: skip
