"""Predict every image of a folder: mask, evidence, overlay and result of each, and one table of all.

    python -m scripts predict FOLDER --out runs/predicted --overlay runs/mine/network.yaml

Pictures and NIfTI volumes are found in all subfolders; a folder of DICOM files is one volume. The folder structure is
kept under ``--out``: ``<stem>_mask``, ``<stem>_evidence.nii.gz``, ``<stem>_overlay.png`` and ``<stem>_result.json``.
A file that can not be used is named in the table with the reason, and the others go on. Interrupted or run again, it
continues: images whose result is there, of the same file, weights and options, are not read again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import logging
import math
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from scripts.command.files import write_text
from scripts.command.locations import ROOT
from scripts.command.verbs import Outcome, inference_overlays
from scripts.explain.maps import upsample
from scripts.inference.pipeline import Inference, slices_first
from scripts.inference.postprocessing import evidence_scale
from scripts.inference.results import is_volume, save_mask_picture, save_nifti, stem
from scripts.inference.studies import Study
from scripts.pictures import overlays
from scripts.runs.folder import write_json
from transforms.pictures import PICTURE_SUFFIXES
from transforms.reading import VOLUME_SUFFIXES

logger = logging.getLogger(__name__)

SUFFIXES = (*PICTURE_SUFFIXES, *VOLUME_SUFFIXES)
DICOM = (".dcm", ".ima")
TABLE = (
    "image", "name", "tumor_detected", "tumor_probability", "threshold", "predicted_class", "plane", "slices_read",
    "tumor_voxels", "evidence_maximum", "flags", "error",
)  # fmt: skip
TILE = 192  # longest side of a slice in the overlay of a volume, in pixels


def find_images(folder: Path, out: Path) -> list[Path]:
    """Pictures, volumes and folders of DICOM files under a folder, in order; what lies under ``out`` is left out.

    Raises:
        FileNotFoundError: when the folder does not exist.
        ValueError: when it holds no image.
    """
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    found: list[Path] = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and (Path(root) / f).resolve() != out.resolve())
        names = [name for name in sorted(files) if not name.startswith(".")]
        found += [Path(root) / name for name in names if name.lower().endswith(SUFFIXES)]
        if any(name.lower().endswith(DICOM) for name in names):
            found.append(Path(root))
    if not found:
        raise ValueError(f"{folder} holds no image ({', '.join(SUFFIXES)} or a folder of DICOM files)")
    return found


def result_stems(images: Sequence[Path], folder: Path) -> list[str]:
    """Where the results of each image go, relative to the output folder; two images never share a place."""
    base = folder if folder.is_dir() else folder.parent
    plain = [(image.relative_to(base).parent / stem(image)).as_posix() for image in images]
    twice = {name for name, count in Counter(plain).items() if count > 1}
    return [
        image.relative_to(base).as_posix().replace(".", "_") if name in twice or name == "." else name
        for image, name in zip(images, plain, strict=True)
    ]


class BatchPrediction:
    """Predicts files one after the other; reading and writing run in threads beside the network.

    Args:
        inference: the loaded bundle.
        out: folder of the results.
        options: of the inference, as plain values; results of other options are not taken for this one's.
        overlay: write overlays.
        readers: files that are prepared ahead of the network, and threads that do so.
    """

    def __init__(
        self, inference: Inference, out: Path, options: Mapping[str, Any], overlay: bool = True, readers: int = 1
    ) -> None:
        self.inference, self.out, self.overlay, self.readers = inference, out, overlay, readers
        weights = hashlib.sha256(inference.weights.read_bytes()).hexdigest()
        self.made_by = {"weights_sha256": weights, "options": dict(options)}

    def run(self, images: Sequence[Path], stems: Sequence[str]) -> list[dict[str, Any]]:
        """Predict what is not there yet.

        Returns:
            one row of `TABLE` an image, in order.
        """
        rows: dict[str, dict[str, Any]] = {}
        todo = []
        for image, name in zip(images, stems, strict=True):
            kept = self._kept(image, name)
            if kept is None:
                todo.append((image, name))
            else:
                rows[name] = kept
        if rows:
            logger.info("%d of %d images were predicted before and are kept", len(rows), len(images))
        bar = tqdm(total=len(images), initial=len(rows), desc="predicting", unit="image")
        writing: deque[tuple[str, Future]] = deque()
        with ThreadPoolExecutor(self.readers) as reading, ThreadPoolExecutor(1) as writer:
            try:
                for image, name, prepared in self._ahead(reading, todo):
                    try:
                        item = prepared.result()
                        output = {key: value.cpu() for key, value in self.inference.infer(item).items()}
                    except Exception as error:  # whatever a damaged file does to a reader must not end the others
                        rows[name] = self._failed(image, name, error)
                        bar.update()
                        continue
                    writing.append((name, writer.submit(self._write, image, name, item, output)))
                    while len(writing) > 1:  # never more than one study beside the one that is computed
                        self._take(writing, rows, bar)
                while writing:
                    self._take(writing, rows, bar)
            finally:
                reading.shutdown(wait=False, cancel_futures=True)
                bar.close()
                self.write_table(list(rows.values()), stems)
        return [rows[name] for name in stems]

    def _ahead(self, pool: ThreadPoolExecutor, todo: Sequence[tuple[Path, str]]) -> Iterator[tuple[Path, str, Future]]:
        """Files with their preparation under way, ``readers`` of them ahead."""
        waiting: deque[tuple[Path, str, Future]] = deque()
        for image, name in todo:
            waiting.append((image, name, pool.submit(self.inference.prepare, {"image": str(image)})))
            if len(waiting) > self.readers:
                yield waiting.popleft()
        yield from waiting

    def _take(self, writing: deque[tuple[str, Future]], rows: dict[str, dict[str, Any]], bar: tqdm) -> None:
        name, future = writing.popleft()
        rows[name] = future.result()
        bar.update()

    def _kept(self, image: Path, name: str) -> dict[str, Any] | None:
        """Row of an image whose result is there and is of the same file and options, or None."""
        path = self.out / f"{name}_result.json"
        if not path.is_file():
            return None
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return None
        same = result.get("file") == fingerprint(image) and result.get("made_by") == self.made_by
        return result["row"] if same else None

    def _failed(self, image: Path, name: str, error: Exception) -> dict[str, Any]:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        logger.warning("%s skipped: %s", image, reason)
        return {**dict.fromkeys(TABLE, None), "image": str(image), "name": name, "flags": "", "error": reason}

    def _write(
        self, image: Path, name: str, item: Mapping[str, Any], output: Mapping[str, torch.Tensor]
    ) -> dict[str, Any]:
        """Mask, evidence, overlay, and last the result, which says that the others are whole."""
        done = self.inference.finish(item, output)
        target = self.out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        mask, result = done["pred"], done["result"]
        affine = np.asarray(mask.affine, dtype=float)
        study = Study.of(item["image"])
        if study.picture and not is_volume(image):
            save_mask_picture(mask.as_tensor()[0].numpy().T, _beside(target, "_mask.png"))
        else:
            save_nifti(mask.as_tensor()[0].numpy(), affine, _beside(target, "_mask.nii.gz"))
        if "evidence" in done:
            save_nifti(done["evidence"].as_tensor()[0].numpy(), affine, _beside(target, "_evidence.nii.gz"))
        if self.overlay and "evidence" in output and len(study.unit_shape) == 2:
            overlays.save(study_overlay(item, output), _beside(target, "_overlay.png"))
        row = {
            **dict.fromkeys(TABLE, None),
            **{key: result[key] for key in TABLE if key in result},
            "image": str(image),
            "name": name,
            "slices_read": len(study.placements) if study.plane else None,
            "flags": " ".join(flag["code"] for flag in result["flags"]),
        }
        whole = {"image": str(image), **result, "row": row, "file": fingerprint(image), "made_by": self.made_by}
        write_json(whole, _beside(target, "_result.json"))
        return row

    def write_table(self, rows: Sequence[Mapping[str, Any]], stems: Sequence[str]) -> None:
        """Write results.csv and results.json, whole or not at all, in the order of ``stems``."""
        order = {name: i for i, name in enumerate(stems)}
        rows = sorted(rows, key=lambda row: order[row["name"]])
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, TABLE)
        writer.writeheader()
        writer.writerows(rows)
        write_text(text.getvalue(), self.out / "results.csv")
        write_json([dict(row) for row in rows], self.out / "results.json")


def study_overlay(item: Mapping[str, Any], output: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Evidence and outline of the mask over the image, as the network sees it; of a volume, all of its slices.

    Args:
        item: prepared.
        output: of the inferer.

    Returns:
        RGB (H, W, 3) uint8; slices of a volume in reading order, each at most `TILE` pixels wide or high.
    """
    study = Study.of(item["image"])
    stack = slices_first(item["image"])
    size = stack.shape[2:]
    heat = evidence_scale(upsample(output["evidence"].clamp(min=0), size), output["temperature"]).numpy()
    seg = output["seg"].numpy()
    predicted = seg[:, 1:].max(axis=1, keepdims=True) > seg[:, :1]  # torch's argmax takes longer than all else here
    shown = stack[:, :1].numpy()
    if not study.plane:
        scale = overlays.legible_scale(shown[0].shape)
        return overlays.overlay(shown[0], heat[0], predicted=predicted[0], scale=scale)
    step = max(1, math.ceil(max(size) / TILE))
    pictures = [overlays.overlay(shown[i], heat[i], predicted=predicted[i])[::step, ::step] for i in range(len(stack))]
    columns = math.ceil(math.sqrt(len(pictures) * 1.5))
    height, width = pictures[0].shape[:2]
    sheet = np.zeros((math.ceil(len(pictures) / columns) * height, columns * width, 3), np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + height, left : left + width] = picture
    return sheet


def fingerprint(path: Path) -> dict[str, int]:
    """Size and time of the last change of a file, or of all files of a folder together."""
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    status = [file.stat() for file in files]
    return {"bytes": sum(s.st_size for s in status), "changed_ns": max(s.st_mtime_ns for s in status)}


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(target.name + ending)


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``predict``; fails when some images were skipped."""
    if arguments.readers < 1:
        raise ValueError(f"--readers is at least 1, got {arguments.readers}")
    options = {
        key: value for key in ("plane", "channel", "slice_batch_size") if (value := getattr(arguments, key)) is not None
    }
    inference = Inference(
        arguments.bundle_root or ROOT, arguments.weights, inference_overlays(arguments), arguments.device, options
    )
    images = find_images(arguments.folder, arguments.out)
    stems = result_stems(images, arguments.folder)
    job = BatchPrediction(inference, arguments.out, options, not arguments.no_overlays, arguments.readers)
    rows = job.run(images, stems)
    skipped = sum(bool(row["error"]) for row in rows)
    found = sum(bool(row["tumor_detected"]) for row in rows)
    text = f"{len(rows)} images: {found} with a tumor, {len(rows) - found - skipped} without, {skipped} skipped"
    return Outcome(text, [arguments.out / "results.csv"], bool(skipped))
