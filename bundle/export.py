"""Export the network to ONNX: segmentation, class probabilities and evidence of a prepared image in one pass.

    python -m scripts export --run_dir runs/mine --out model.onnx

Input ``image``: float32 (B, C, *spatial_size) as `scripts.inference.scans.PrepareScand` prepares it, any B.
Outputs as of `scripts.inference.inferers.MultiTaskInferer`: ``seg`` (B, 2, *spatial_size), ``probability`` (B, K),
``evidence`` (B, 1, *grid). Threshold, temperature, thresholds of the masks, class names and the version of the bundle
lie in the file's metadata. Needs the packages of the extra ``export``.

TorchScript is written by MONAI: ``python -m monai.bundle ckpt_export``; the inferer takes it as a network.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from scripts.command.files import whole
from scripts.command.locations import ROOT
from scripts.command.verbs import Outcome, inference_overlays
from scripts.inference.backends import TOLERANCE, example, export_package, trace_onnx
from scripts.inference.pipeline import Inference

logger = logging.getLogger(__name__)


class ExportedNetwork(nn.Module):
    """What the inferer makes of a batch, as a module with tensors in and out.

    Args:
        inference: the loaded bundle.
    """

    def __init__(self, inference: Inference) -> None:
        super().__init__()
        self.network, self.inferer = inference.network, inference.inferer
        self.names = ["seg", "probability", *(["evidence"] if inference.network.has_evidence else [])]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Outputs in the order of ``names``."""
        output = self.inferer.infer(image, self.network)
        return tuple(output[name] for name in self.names)


def export_onnx(inference: Inference, path: str | Path) -> dict[str, float]:
    """Write the network as ONNX and compare it with torch on batches of one and three images.

    Args:
        inference: the loaded bundle, on the CPU.
        path: of the file, written whole or not at all.

    Returns:
        largest difference of each output.

    Raises:
        ValueError: when a package is missing, or an output differs by more than 1e-4.
    """
    with whole(path) as place:
        differences = _export(inference, place)
        worst = max(differences.values())
        if not worst <= TOLERANCE:
            raise ValueError(
                f"the exported network differs from the network by {worst:.2g}, at most {TOLERANCE} expected"
            )
    return differences


def _export(inference: Inference, partial: Path) -> dict[str, float]:
    onnx, runtime = export_package("onnx"), export_package("onnxruntime")
    size, channels = list(inference.preprocessing[0].size), inference.network.in_channels
    module = ExportedNetwork(inference).eval()
    trace_onnx(module, example(channels, size, 2), module.names, partial)
    model = onnx.load(str(partial))
    about = {
        "threshold": repr(float(inference.network.threshold)),
        "temperature": repr(float(inference.network.temperature)),
        "mask_thresholds": json.dumps(inference.mask_thresholds),
        "classes": json.dumps(inference.classes),
        "bundle_version": json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"],
    }
    for key, value in about.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    onnx.save(model, str(partial))
    session = runtime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
    differences = dict.fromkeys(module.names, 0.0)
    for batch in (1, 3):
        image = example(channels, size, batch, seed=batch)
        with torch.no_grad():
            expected = module(image)
        for name, ours, theirs in zip(module.names, expected, session.run(None, {"image": image.numpy()}), strict=True):
            differences[name] = max(differences[name], float(np.abs(ours.numpy() - theirs).max()))
    return differences


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``export``.

    Raises:
        ValueError: when the file's name does not end in .onnx.
    """
    if arguments.out.suffix != ".onnx":
        raise ValueError(f"--out: a file that ends in .onnx is written, got {arguments.out.name!r}")
    inference = Inference(
        arguments.bundle_root or ROOT, arguments.weights, inference_overlays(arguments), arguments.device or "cpu"
    )
    differences = export_onnx(inference, arguments.out)
    shown = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    return Outcome(f"largest difference to torch: {shown}", [arguments.out])
