"""Why is my heatmap in the background? Tests every known cause on a network and its images.

    python -m scripts diagnose --run_dir runs/mine --dataset_dir DIR --datalist_file LIST.json
    python -m scripts diagnose --network monai.networks.nets.DenseNet121 \
        --network_args '{"spatial_dims": 2, "in_channels": 1, "out_channels": 2}' --weights model.pt --folder DIR \
        --preprocessing my_config.yaml --normalizer monai.visualize.default_normalizer --class_index 1

Prints a verdict a cause, writes diagnosis.json and diagnosis.html. Exit status: 0 if no cause holds, 1 if one does, 2
for an error in what was given.
"""

from __future__ import annotations

import argparse
import copy
import logging
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scripts.command.files import write_json
from scripts.command.verbs import Outcome
from scripts.data.preprocessing import Pipeline, make_preprocessing
from scripts.diagnosis.examination import Examination, Subject, examine
from scripts.diagnosis.inputs import folder_items, order_objection, prepare, read_pipeline
from scripts.diagnosis.network import build_network, choose_target, load_checkpoint, named, parse_json
from scripts.diagnosis.page import write_page
from scripts.explain.diagnosis import CAUSES
from scripts.explain.findings import CANNOT_TELL, HOLDS
from scripts.explain.methods import METHODS
from scripts.explain.outputs import selecting
from scripts.explain.targets import TumorLogOdds
from scripts.runs import folder as runs

__all__ = ["diagnose_run", "report", "table"]

logger = logging.getLogger(__name__)

BUNDLE_NORMALIZER, BUNDLE_COLORMAP = "scripts.explain.maps.max_scaling", "scripts.pictures.overlays.colorize"


def diagnose_run(
    network: nn.Module,
    datalist: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    preprocessing: Any,
    output_dir: str | Path,
    *,
    title: str = "",
    normalizer: str | None = BUNDLE_NORMALIZER,
    colormap: str | None = BUNDLE_COLORMAP,
    heatmaps: str | None = None,
    method: str | None = None,
    layer: str | None = None,
    target: str | None = None,
    class_index: int | None = None,
    images: int = 48,
) -> Examination:
    """Diagnose a trained run of this bundle, print the table and write diagnosis.json and diagnosis.html.

    Args:
        network: of `scripts.runs.folder.load_run`.
        datalist: whole, for sources and labels.
        items: of the part that is looked at, with absolute paths.
        preprocessing: the pipeline that the network is used with; this bundle's, or the user's own.
        output_dir: folder of the two files.
        title: what is diagnosed, for the page.
        normalizer, colormap: dotted paths of what is done to a finished map; None: not known.
        heatmaps: folder of ready pictures to check for swapped colors.
        method, layer: of the map that is looked at; None: evidence, or Grad-CAM at the network's own choice of layer.
        target: name of the explained score; None: the log-odds of any tumor.
        class_index: class whose logit is explained, in place of a target.
        images: at most so many go through the network.
    """
    network = network.cpu().eval()
    kwargs = {"output": "cls"}
    from_bundle = isinstance(preprocessing, Pipeline)
    window: Sequence[int] | None = getattr(network, "window", None)
    samples = prepare(items, preprocessing, images, window=window)
    if window is not None:  # layers are looked at, which see one window: the network is asked about one, whole
        network = copy.deepcopy(network)
        network.window = None  # type: ignore[assignment]
    aim, said = choose_target(
        network, samples.images, kwargs, target, class_index, len(datalist["classes"]) or None, TumorLogOdds.of(network)
    )
    everything = [item for part in ("training", "validation", "test") for item in datalist[part]]
    evidence = bool(getattr(network, "has_evidence", False)) and layer is None
    subject = Subject(
        network,
        samples,
        aim,
        method or ("evidence" if evidence else "gradcam"),
        layer,
        kwargs,
        title or str(datalist.get("name", "")),
        named(normalizer, "normalizer"),
        normalizer or "",
        named(colormap, "colormap"),
        colormap or "",
        None if heatmaps is None else Path(heatmaps),
        True,
        None if from_bundle else order_objection(preprocessing),
        [str(item.get("source", "")) for item in everything],
        [int(item.get("diagnosis", -1)) for item in everything],
        datalist["classes"],
        [
            said,
            "preprocessing of this bundle" if from_bundle else "preprocessing as given, not this bundle's",
            *(
                []
                if window is None
                else [f"of each volume one window of {'x'.join(map(str, window))}, around its tumor or head"]
            ),
        ],
    )
    return report(subject, output_dir)


def report(subject: Subject, output_dir: str | Path) -> Examination:
    """Test every cause, print the table, and write diagnosis.json and diagnosis.html."""
    result = examine(subject)
    folder = Path(output_dir)
    write_json(_document(result), folder / "diagnosis.json")
    page = write_page(result, folder / "diagnosis.html")
    print(table(result))
    print(f"\nwritten: {folder / 'diagnosis.json'}, {page}")
    return result


def _document(result: Examination) -> dict[str, Any]:
    """diagnosis.json."""
    subject, samples = result.subject, result.subject.samples
    return {
        "title": subject.title,
        "network": type(subject.network).__name__,
        "method": subject.method,
        "layer": result.layer,
        "target": subject.target.name,
        "images": len(samples.images),
        "images_audited": len(samples.feature_labels),
        "spatial_size": list(samples.images.shape[2:]),
        "foreground": "estimated from the input" if samples.estimated else "of the pipeline",
        "more_air_pixels": result.pad,
        "normalizer": subject.normalizer_name or None,
        "colormap": subject.colormap_name or None,
        "map": result.measures,
        "holds": [finding.cause for finding in result.holding],
        "consequences": {finding.cause: finding.follows for finding in result.consequences},
        "findings": [
            {
                "cause": finding.cause,
                "verdict": finding.verdict,
                "figures": finding.figures,
                "reason": finding.reason,
                "limit": CAUSES[finding.cause][1],
                "advice": finding.advice,
            }
            for finding in result.findings
        ],
        "without_looking_at_the_brain": result.rows,
        "notes": subject.notes,
        "left_out": [{"image": name, "reason": reason} for name, reason in samples.left_out],
    }


def table(result: Examination, width: int = 118) -> str:
    """The verdicts as plain text: cause, verdict, figure and, where it holds or cannot be told, what to do."""
    subject = result.subject
    lines = [
        f"{subject.title}: {type(subject.network).__name__}, {subject.method} at {result.layer}, "
        f"{subject.target.name}, {len(subject.samples.images)} images",
        "",
    ]
    for finding in result.findings:
        head = f"{finding.cause:<28}{finding.verdict:<15}"
        text = finding.reason[:1].upper() + finding.reason[1:] + "."
        lines += textwrap.wrap(text, width, initial_indent=head, subsequent_indent=" " * 43)
        if finding.verdict in (HOLDS, CANNOT_TELL) and finding.advice:
            lines += textwrap.wrap(finding.advice, width, initial_indent=" " * 43 + "-> ", subsequent_indent=" " * 46)
    names = ", ".join(finding.cause for finding in result.holding)
    lines += ["", f"holds: {names or 'nothing'}"]
    if result.consequences:
        lines.append("consequences: " + ", ".join(f"{f.cause} (of {f.follows})" for f in result.consequences))
    return "\n".join(lines)


def _items(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Items to look at, and the datalist around them (of a folder: classes alone)."""
    if (arguments.folder is None) == (arguments.datalist_file is None):
        raise ValueError("give the images either as --datalist_file LIST --dataset_dir DIR or as --folder DIR")
    if arguments.folder is not None:
        items, classes = folder_items(arguments.folder)
        return items, {"name": Path(arguments.folder).resolve().name, "classes": classes or {}, "test": items}
    datalist = runs.read_datalist(arguments.datalist_file, arguments.dataset_dir)
    return runs.stage_items(datalist, arguments.part, arguments.dataset_dir), datalist


def _sizes(arguments: argparse.Namespace) -> list[int]:
    sizes = arguments.spatial_size or [256]
    return sizes * 2 if len(sizes) == 1 else sizes


def _own_network(arguments: argparse.Namespace) -> nn.Module:
    network = build_network(arguments.network, arguments.network_args, arguments.network_config, arguments.network_id)
    if (arguments.weights is None) != arguments.random_weights:
        raise ValueError("give --weights FILE, or --random_weights to look at the design alone")
    return network if arguments.weights is None else load_checkpoint(network, arguments.weights)


def _own(arguments: argparse.Namespace, out: Path) -> Examination:
    """Diagnose a user's own network."""
    network = _own_network(arguments)
    with selecting(network, arguments.head):
        return _diagnosed(network, arguments, out)


def _diagnosed(network: nn.Module, arguments: argparse.Namespace, out: Path) -> Examination:
    """Diagnose a network that returns one tensor."""
    items, datalist = _items(arguments)
    classes = datalist["classes"]
    known = arguments.preprocessing is not None
    pipeline = read_pipeline(arguments.preprocessing) if known else make_preprocessing(_sizes(arguments), trace=False)
    samples = prepare(items, pipeline, arguments.limit)
    kwargs = parse_json(arguments.forward_args, "forward_args")
    aim, said = choose_target(
        network, samples.images, kwargs, arguments.target, arguments.class_index, arguments.num_classes
    )
    everything = [item for part in ("training", "validation", "test") for item in datalist.get(part, [])]
    weights = (
        f"weights of {arguments.weights}" if arguments.weights else "random weights: a design, not a trained network"
    )
    subject = Subject(
        network,
        samples,
        aim,
        arguments.method or "gradcam",
        arguments.layer,
        kwargs,
        f"{type(network).__name__} on {datalist.get('name', 'images')}",
        named(arguments.normalizer, "normalizer"),
        arguments.normalizer or "",
        named(arguments.colormap, "colormap"),
        arguments.colormap or "",
        None if arguments.heatmaps is None else Path(arguments.heatmaps),
        known,
        order_objection(pipeline) if known else None,
        [str(item.get("source", "")) for item in everything],
        [int(item.get("diagnosis", -1)) for item in everything],
        classes,
        [said, weights, f"preprocessing of {arguments.preprocessing}" if known else "preprocessing of this bundle"],
    )
    return report(subject, out)


def _run(arguments: argparse.Namespace, out: Path) -> Examination:
    """Diagnose a run of this bundle."""
    bad = [
        name for name in ("network", "network_config", "weights", "forward_args", "head") if getattr(arguments, name)
    ]
    if bad:
        raise ValueError(f"--run_dir brings its own network; leave out --{', --'.join(bad)}")
    network, config, folder = runs.load_run(arguments.run_dir)
    items, datalist = _items(arguments)
    if arguments.folder is not None:
        datalist = {**datalist, "training": [], "validation": []}
    sizes = _sizes(arguments) if arguments.spatial_size else config["spatial_size"]
    if arguments.preprocessing:
        pipeline = read_pipeline(arguments.preprocessing)
    else:
        pipeline = make_preprocessing(sizes, trace=False, spacing_mm=config.get("spacing_mm"))
    return diagnose_run(
        network,
        datalist,
        items,
        pipeline,
        out,
        title=f"{folder} on {datalist.get('name', 'images')}",
        normalizer=arguments.normalizer or BUNDLE_NORMALIZER,
        colormap=arguments.colormap or BUNDLE_COLORMAP,
        heatmaps=arguments.heatmaps,
        method=arguments.method,
        layer=arguments.layer,
        target=arguments.target,
        class_index=arguments.class_index,
        images=arguments.limit,
    )


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``diagnose``; fails if a cause holds."""
    if arguments.method is not None and arguments.method not in METHODS:
        raise ValueError(f"--method: no method {arguments.method!r}; there are {', '.join(sorted(METHODS))}")
    out = arguments.out or (arguments.run_dir / "diagnosis" if arguments.run_dir else Path("runs", "diagnosis"))
    torch.manual_seed(0)
    result = (_run if arguments.run_dir else _own)(arguments, out)
    return Outcome(written=[out], failed=bool(result.holding))
