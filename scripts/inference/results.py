"""What inference on one file takes and writes: mask, evidence and verdict on the image's own grid."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events
from PIL import Image

from scripts.command.files import file_sha256, whole, write_bytes, write_json
from scripts.inference.answer import NO_TUMOR, TUMOR
from scripts.inference.result_names import HEADERS, RESULT, check_free, result_name, shown
from scripts.measures.prevalence import in_words
from scripts.pictures import overlays
from transforms.reading import VOLUME_SUFFIXES

logger = logging.getLogger(__name__)

EVIDENCE = "log-odds >= 0"  # calibrated, see `scripts.inference.postprocessing.RestoreScand`
EVIDENCE_SHOWN = 6.0  # log-odds, of which the color is 0.995 of the brightest
VOLUMES = (*VOLUME_SUFFIXES, *HEADERS)


def inference_items(
    path: str | Sequence[str] | None, index: int | None = None, foreground: str | None = None
) -> list[dict[str, Any]]:
    """The one item of an inference run.

    Args:
        path: PNG, JPG or NIfTI file, or a folder with one DICOM series; several files are channels.
        index: one slice of a volume, along the plane it is cut in; None: all of them.
        foreground: mask of the head on the same grid; None: it is computed.

    Raises:
        ValueError: when no path is given.
        FileNotFoundError: when one of them does not exist.
    """
    if not path:
        raise ValueError("input is required; give the image as --input FILE")
    paths = [path] if isinstance(path, str) else list(path)
    for file in [*paths, *([foreground] if foreground else [])]:
        if not Path(file).exists():
            raise FileNotFoundError(f"input {file} is not a file")
    item: dict[str, Any] = {"image": paths[0] if len(paths) == 1 else paths}
    if index is not None:
        item["slice"] = int(index)
    if foreground:
        item["foreground"] = foreground
    return [item]


def verdict_in_words(result: Mapping[str, Any]) -> str:
    """The answer of a result in words, without its numbers.

    >>> verdict_in_words({"verdict": "tumor", "predicted_class": "glioma"})
    'tumor detected, most probably glioma'
    >>> verdict_in_words({"verdict": "uncertain", "reasons": ["the verdict is tumor, but the mask is empty"]})
    'uncertain: the verdict is tumor, but the mask is empty'
    """
    if result["verdict"] == NO_TUMOR:
        return "no tumor detected"
    if result["verdict"] != TUMOR:
        return f"{result['verdict']}: {'; '.join(result['reasons'])}"
    name = str(result["predicted_class"]).replace("_", " ")
    return "tumor detected" + ("" if name == "tumor" else f", most probably {name}")


def save_nifti(array: np.ndarray, affine: np.ndarray, path: str | Path, unit: str = "") -> Path:
    """Write a NIfTI file whole or not at all, marked as ours; an array of two axes gets a third of length 1.

    Args:
        array: of two or three axes.
        affine: 4x4.
        path: of the file.
        unit: of a map, at most 15 letters, as the header's intent name; the header's display range is then 0 to 6.
    """
    path = Path(path)
    image = nib.Nifti1Image(array if array.ndim > 2 else array[..., None], affine)
    image.header["descrip"] = overlays.MARK
    if unit:
        image.header["intent_name"], image.header["cal_min"], image.header["cal_max"] = unit, 0.0, EVIDENCE_SHOWN
    content = image.to_bytes()
    if path.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=1, mtime=0)
    return write_bytes(content, path)


class WriteResults:
    """Writes ``<name>_mask`` and ``<name>_result.json``; the evidence is written by the postprocessing.

    The mask is a PNG (0 and 255 for two classes) for a PNG or JPG image and NIfTI (class numbers) for a volume. The
    probability goes to standard output.

    Args:
        output_dir: made if absent.
        weights: file of the network's weights, which every result names with its hash; None: not known.

    Raises:
        ValueError: when the place holds results of another file, see `result_names.check_free`.
    """

    def __init__(self, output_dir: str | Path, weights: str | Path | None = None):
        self.output_dir = Path(output_dir)
        self.weights: dict[str, str] = {}
        if weights is not None:
            self.weights = {"weights": shown(Path(weights)), "weights_sha256": file_sha256(weights)}

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
            item: the prepared item, whose image knows its file.
            output: of the postprocessing: "pred" (1, X, Y[, Z]) uint8 and "result".
        """
        source = Path(str(item["image"].meta["filename_or_obj"]))
        name = result_name(item, source)
        check_free(self.output_dir / f"{name}{RESULT}", source)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        mask = output["pred"][0].cpu().numpy().astype(np.uint8)
        affine = np.asarray(output["pred"].affine, dtype=float)
        if mask.ndim == 2 and not is_volume(source):
            written = [save_mask_picture(mask.T, self.output_dir / f"{name}_mask.png")]
        else:
            written = [save_nifti(mask, affine, self.output_dir / f"{name}_mask.nii.gz")]
        result = {"image": shown(source), **output["result"], **self.weights}
        if "evidence" in result:
            written.append(Path(result["evidence"]))
        write_json(result, self.output_dir / f"{name}{RESULT}")
        written.append(self.output_dir / f"{name}{RESULT}")
        print(
            f"{shown(source.name)}: {verdict_in_words(result)}, probability {result['tumor_probability']:.4f} "
            f"(threshold {result['threshold']:.4f})"
        )
        print(json.dumps(result["class_probabilities"]))
        if result.get("prevalence"):
            print(in_words(result["prevalence"]))
        if self.weights:
            print(f"weights {result['weights']} (SHA-256 {result['weights_sha256'][:12]}...)")
        for flag in result["flags"]:
            print(f"  {flag['code']}: {flag['message']}")
        for path in written:
            print(f"  {shown(path)}")


def is_volume(path: str | Path) -> bool:
    """Whether a file name is that of a volume."""
    return Path(path).name.lower().endswith(VOLUMES)


def save_mask_picture(mask: np.ndarray, path: str | Path) -> Path:
    """Write a mask (rows, columns) of class numbers as a gray PNG whose brightest class is 255, whole or not at all."""
    with whole(path) as place:
        Image.fromarray((mask > 0).astype(np.uint8) * 255).save(place, format="PNG", pnginfo=overlays.marked())
    return Path(path)
