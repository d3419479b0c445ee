"""Where the maps of every method lie at every selectable layer of the shipped network, on images with a tumor mask.

    python -m benchmarks.layers --dataset_dir DIR --datalist_file LIST.json [--part validation] [--cases 96]
        [--size 160] [--methods gradcam,gradcam_frozen] [--out layers.json]

"oracle" stands in for a method: the tumor drawn on the layer's own grid, which says what its cells allow. Choose
methods on the validation part; the test part is for the figures of what was chosen.
"""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.command import errors
from scripts.command.files import write_json
from scripts.data.preprocessing import make_training_pipeline
from scripts.evaluation.explanation_plan import decoder_layers, encoder_layers
from scripts.explain import cam
from scripts.explain.measures import case_measures, oracle_map
from scripts.explain.methods import explain
from scripts.explain.recording import record
from scripts.explain.targets import SegmentationRegion, Target, TumorLogOdds
from scripts.inference.pipeline import Inference
from scripts.runs.folder import read_datalist, stage_items

logger = logging.getLogger(__name__)

ORACLE = "oracle"
MEASURES = ("tumor_energy", "background_energy", "pointing_game", "empty", "cancelled")


def layer_sizes(
    network: torch.nn.Module, image: torch.Tensor, layers: Sequence[str], **kwargs: Any
) -> dict[str, tuple[int, ...]]:
    """Spatial size of the output of each layer for one image."""
    with torch.no_grad(), record(network, layers) as recorder:
        network(image, **kwargs)
    return {layer: tuple(activation.shape[2:]) for layer, activation in recorder.activations.items()}


def measured(
    inference: Inference, items: Sequence[dict], size: int, methods: Sequence[str], output: str
) -> list[dict[str, Any]]:
    """One row a method and layer: means of `MEASURES` over the cases.

    Args:
        inference: the shipped network.
        items: with masks.
        size: of the network's input, in pixels.
        methods: that explain layers, and "oracle".
        output: "cls" for the tumor log-odds at the encoder's layers, "seg" for the predicted region at the decoder's.
    """
    network = inference.network
    pipeline = make_training_pipeline(size, augment=False, num_classes=network.num_classes)
    layers = encoder_layers(network) if output == "cls" else decoder_layers(network)
    target: Target = TumorLogOdds.of(network) if output == "cls" else SegmentationRegion()
    scores: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    explaining = [method for method in methods if method != ORACLE]
    for item in items:
        case = pipeline(dict(item))
        image, inside, label = (torch.as_tensor(case[key])[None].float() for key in ("image", "foreground", "label"))
        kwargs: dict[str, Any] = {"forward_kwargs": {"output": output}, "foreground_kwarg": "foreground"}
        result = explain(network, image, explaining, layers, target, foreground=inside, cancelled="empty", **kwargs)
        maps = dict(result.maps)
        if ORACLE in methods:
            sizes = layer_sizes(network, image, layers, **kwargs["forward_kwargs"])
            maps |= {(ORACLE, layer): oracle_map(label, size) for layer, size in sizes.items()}
        for (method, layer), map_ in maps.items():
            values = case_measures(map_, label, inside, result.cancelled.get((method, layer)))
            for name in MEASURES:
                scores[method, layer, name].append(float(values[name]))
    rows: list[dict[str, Any]] = []
    for layer in layers:
        for method in methods:
            means: dict[str, float | None] = {}
            for name in MEASURES:
                known = [value for value in scores[method, layer, name] if value == value]  # no map, no energy in air
                means[name] = float(np.mean(known)) if known else None
            rows.append({"layer": layer, "method": method, "target": target.name, "n": len(items), **means})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--datalist_file", required=True)
    parser.add_argument("--part", default="validation")
    parser.add_argument("--cases", type=int, default=96, help="tumors, drawn with seed 0")
    parser.add_argument("--size", type=int, default=None, help="pixels; by default that of inference")
    parser.add_argument("--methods", default=",".join(cam.METHODS))
    parser.add_argument("--outputs", default="cls,seg")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(arguments)
    inference = Inference()
    size = options.size or int(inference.preprocessing[0].size[0])
    items = stage_items(
        read_datalist(options.datalist_file, options.dataset_dir), options.part, options.dataset_dir, need="mask"
    )
    items = [item for item in items if item.get("diagnosis", 1)]
    chosen = np.random.default_rng(0).permutation(len(items))[: options.cases]
    rows = []
    for output in options.outputs.split(","):
        some = [items[i] for i in chosen]
        rows += measured(inference, some, size, options.methods.split(","), output)
    print(f"{'layer':<16}{'method':<20}{'in tumor':>9}{'in air':>8}{'points':>8}{'empty':>7}{'cancelled':>10}")
    for row in rows:
        values = [float("nan") if row[name] is None else row[name] for name in MEASURES]
        print("{:<16}{:<20}{:>9.3f}{:>8.3f}{:>8.3f}{:>7.3f}{:>10.3f}".format(row["layer"], row["method"], *values))
    if options.out is not None:
        write_json({"size": size, "part": options.part, "torch": torch.__version__, "rows": rows}, options.out)


if __name__ == "__main__":
    with errors.one_sentence_errors():
        main()
