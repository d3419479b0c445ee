"""What inference on one file takes and writes: mask, evidence and verdict on the image's own grid."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events
from PIL import Image

from scripts.runs import write_json

logger = logging.getLogger(__name__)

VOLUMES = (".nii", ".nii.gz")


def inference_items(path: str | None, index: int | None = None) -> list[dict[str, Any]]:
    """The one item of an inference run.

    Args:
        path: PNG, JPG or NIfTI file.
        index: slice of a volume along its last axis in LPS orientation.

    Raises:
        ValueError: when no path is given.
        FileNotFoundError: when it is not a file.
    """
    if path is None:
        raise ValueError("input is required; give the image as --input FILE")
    if not Path(path).is_file():
        raise FileNotFoundError(f"input {path} is not a file")
    item: dict[str, Any] = {"image": str(path)}
    if index is not None:
        item["slice"] = int(index)
    return [item]


def stem(path: str | Path) -> str:
    """File name without its image suffix ("a.nii.gz" gives "a")."""
    name = Path(path).name
    for suffix in VOLUMES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


class WriteResults:
    """Writes ``<stem>_mask``, ``<stem>_evidence.nii.gz`` and ``<stem>_result.json``.

    The mask is a PNG (0 and 255) for a PNG or JPG image and NIfTI (0 and 1) for a slice of a volume. Evidence is
    float32 and not rescaled: 0 is no evidence. The probability goes to standard output.

    Args:
        output_dir: made if absent.
    """

    def __init__(self, output_dir: str | Path):
        self.output_dir = Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Write after each image."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Write the items of a batch."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            self.write(item, output)

    def write(self, item: dict[str, Any], output: dict[str, Any]) -> None:
        """Write one item.

        Args:
            item: the preprocessed item, whose image knows its file.
            output: of the postprocessing, on the original grid: "pred" (1, X, Y) uint8, "evidence" (1, X, Y), "result".
        """
        source = Path(str(item["image"].meta["filename_or_obj"]))
        name = stem(source) + (f"_s{int(item['slice']):03d}" if "slice" in item else "")
        self.output_dir.mkdir(parents=True, exist_ok=True)
        mask = output["pred"][0].cpu().numpy().astype(np.uint8)
        affine = np.asarray(output["pred"].affine, dtype=float)
        written = []
        if source.name.lower().endswith(VOLUMES):
            written.append(self._nifti(mask[..., None], affine, f"{name}_mask.nii.gz"))
        else:
            path = self.output_dir / f"{name}_mask.png"
            Image.fromarray(mask.T * 255).save(path)
            written.append(path)
        result = {"image": str(source), **output["result"], "tumor_pixels": int(mask.sum())}
        if "evidence" in output:
            evidence = output["evidence"][0].cpu().numpy().astype(np.float32)
            written.append(self._nifti(evidence[..., None], affine, f"{name}_evidence.nii.gz"))
            result["evidence_maximum"] = float(evidence.max())
        write_json(result, self.output_dir / f"{name}_result.json")
        written.append(self.output_dir / f"{name}_result.json")
        verdict = "tumor" if result["tumor_detected"] else "no tumor"
        print(
            f"{source.name}: {verdict} detected, probability {result['tumor_probability']:.4f} "
            f"(threshold {result['threshold']:.4f})"
        )
        print(json.dumps(result["class_probabilities"]))
        for path in written:
            print(f"  {path}")

    def _nifti(self, array: np.ndarray, affine: np.ndarray, name: str) -> Path:
        path = self.output_dir / name
        nib.save(nib.Nifti1Image(array, affine), path)
        return path
