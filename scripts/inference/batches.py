"""Predicts files one after the other: mask, evidence, overlay and result of each, whole or not at all."""

from __future__ import annotations

import errno
import json
import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from scripts.command.files import write_json
from scripts.dicom.writing import ENDINGS, ObjectWriter
from scripts.explain.maps import upsample
from scripts.inference.answer import NOT_ASSESSED
from scripts.inference.image_files import fingerprint
from scripts.inference.pipeline import Inference, slices_first
from scripts.inference.postprocessing import region_masks_of, shown_evidence
from scripts.inference.result_names import RESULT, check_free, shown
from scripts.inference.result_table import columns, write_table
from scripts.inference.results import EVIDENCE, is_volume, save_mask_picture, save_nifti, verdict_in_words
from scripts.inference.scans import Scan
from scripts.inference.stores import ResultStore, StoreError
from scripts.measures.prevalence import in_words
from scripts.pictures import overlays
from scripts.pictures.parts import parts_of
from scripts.pictures.planes import PicturePlane

__all__ = ["BatchPrediction", "study_overlay", "summary"]

logger = logging.getLogger(__name__)

TILE = 192  # longest side of a slice in the overlay of a volume, in pixels
PARTS = ("_mask.png", "_mask.nii.gz", "_evidence.nii.gz", "_overlay.png", *ENDINGS)
# Errors of the disk that no other image would be spared.
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


class BatchPrediction:
    """Predicts files one after the other; reading and writing run in threads beside the network.

    Args:
        inference: the loaded bundle.
        out: folder of the results.
        options: of the inference, as plain values; they are named in the results.
        overlay: write overlays.
        readers: files that are prepared ahead of the network, and threads that do so.
        objects: writes DICOM objects of each; None: none are written.
        called: what images are called in results, errors and logs, where it is not their path.
        store: where the files of each image go once they are whole; None: they stay below ``out``.
    """

    def __init__(
        self,
        inference: Inference,
        out: Path,
        options: Mapping[str, Any],
        overlay: bool = True,
        readers: int = 1,
        objects: ObjectWriter | None = None,
        called: Mapping[Path, str] | None = None,
        store: ResultStore | None = None,
    ) -> None:
        self.inference, self.out, self.overlay, self.readers = inference, out, overlay, readers
        self.objects, self.called, self.store = objects, called or {}, store
        # Results of anything else are not taken for this one's.
        self.made_by = {**inference.identity(), "options": dict(options), "overlays": overlay}
        if store is not None:
            self.made_by["store"] = store.address

    def run(
        self, images: Sequence[Path], stems: Sequence[str], failed: Sequence[tuple[Path, str]] = ()
    ) -> list[dict[str, Any]]:
        """Predict what is not there yet, and write the table.

        Args:
            images: files, or folders of DICOM files.
            stems: where the results of each go, below ``out``.
            failed: what else is in the table: paths that cannot be read, with the reasons.

        Returns:
            one row of `result_table.columns` an image, in order, then those of ``failed``.

        Raises:
            ValueError: when the results of another file are there under the name of an image.
        """
        started = time.monotonic()
        rows: dict[str, dict[str, Any]] = {}
        todo = []
        for image, name in zip(images, stems, strict=True):
            check_free(_beside(self.out / name, RESULT), image, "out")
            kept = self.kept(image, name)
            if kept is None:
                todo.append((image, name))
            else:
                rows[name] = kept
        if rows:
            logger.info("%d of %d images were predicted before and are kept", len(rows), len(images))
        other = [self._failed(path, self._shown(path), reason) for path, reason in failed]
        bar = tqdm(total=len(images), initial=len(rows), desc="predicting", unit="image")
        try:
            for name, row in self.stream(todo):
                rows[name] = row
                self._advance(bar, rows)
        finally:
            bar.close()
            whole = [*(rows[name] for name in stems if name in rows), *other]
            text = summary(whole, len(images) - len(rows), time.monotonic() - started)
            about = [text, f"Weights: {shown(self.inference.weights)}"]
            about += [] if (known := self.inference.prevalence) is None else [in_words(known).capitalize()]
            write_table(whole, self.classes, self.out, ". ".join(about))
        return whole

    @property
    def classes(self) -> list[str]:
        """Names by index."""
        return self.inference.classes

    @property
    def columns(self) -> list[str]:
        """Columns of the table, see `scripts.inference.result_table`."""
        return columns(self.classes)

    def stream(self, todo: Iterable[tuple[Path, str]]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Predict image by image; never more than one scan is held beside the one that is computed.

        Args:
            todo: images, each with the place of its results below ``out``; taken one by one, ``readers`` ahead.

        Yields:
            place and row of each, as they come to their end.

        Raises:
            OSError: when the disk is full or the like, which no other image would be spared.
        """
        writing: deque[tuple[Path, str, Future]] = deque()
        with ThreadPoolExecutor(self.readers) as reading, ThreadPoolExecutor(1) as writer:
            try:
                for image, name, prepared in self._ahead(reading, todo):
                    try:
                        item = prepared.result()
                        output = {key: value.cpu() for key, value in self.inference.infer(item).items()}
                    except Exception as error:  # whatever a damaged file does to a reader must not end the others
                        yield name, self._failed(image, name, error)
                        continue
                    writing.append((image, name, writer.submit(self._write, image, name, item, output)))
                    while len(writing) > 1:
                        yield self._taken(*writing.popleft())
                while writing:
                    yield self._taken(*writing.popleft())
            finally:
                reading.shutdown(wait=False, cancel_futures=True)

    def _ahead(self, pool: ThreadPoolExecutor, todo: Iterable[tuple[Path, str]]) -> Iterator[tuple[Path, str, Future]]:
        """Files with their preparation under way, ``readers`` of them ahead."""
        waiting: deque[tuple[Path, str, Future]] = deque()
        for image, name in todo:
            waiting.append((image, name, pool.submit(self.inference.prepare, {"image": str(image)})))
            if len(waiting) > self.readers:
                yield waiting.popleft()
        yield from waiting

    def _taken(self, image: Path, name: str, future: Future) -> tuple[str, dict[str, Any]]:
        try:
            return name, future.result()
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _FATAL:
                raise
            return name, self._failed(image, name, error)

    def _advance(self, bar: tqdm, rows: Mapping[str, Mapping[str, Any]]) -> None:
        skipped = sum(bool(row["error"]) for row in rows.values())
        bar.set_postfix(tumor=sum(bool(row["tumor_detected"]) for row in rows.values()), skipped=skipped, refresh=False)
        bar.update()

    def kept(self, image: Path, name: str) -> dict[str, Any] | None:
        """Row of an image whose results are there and are of the same file, weights and options, or None."""
        try:
            result = self._result(name) if self.store is None else self.store.result(name)
            if result is None or result["file"] != fingerprint(image) or result["made_by"] != self.made_by:
                return None
            row: dict[str, Any] = result["row"]
        except StoreError as error:
            logger.warning("%s is predicted without asking for an earlier result: %s", self._shown(image), error)
            return None
        except (OSError, ValueError, KeyError, TypeError):  # none, or nothing that was written here
            return None
        if list(row) != self.columns:
            return None
        if self.store is not None:
            self._remove_here(name)  # of a process that was killed when all was in the store
        return row

    def _result(self, name: str) -> dict[str, Any] | None:
        """Result of an image below ``out`` when all files that it names are there; else None."""
        result: dict[str, Any] = json.loads(_beside(self.out / name, RESULT).read_text(encoding="utf-8"))
        whole = all(_beside(self.out / name, ending).is_file() for ending in result["files"])
        return result if whole else None

    def _shown(self, image: Path) -> str:
        return shown(self.called.get(image, image))

    def _failed(self, image: Path, name: str, error: Exception | str) -> dict[str, Any]:
        reason = shown(error if isinstance(error, (str, ValueError)) else f"{type(error).__name__}: {error}")
        reason = reason.replace(shown(image), self._shown(image))
        logger.warning("%s skipped: %s", self._shown(image), reason)
        try:
            self._remove(name)
        except StoreError as left:
            logger.warning("%s: an earlier result stays in the store: %s", self._shown(image), left)
        # A ValueError speaks of the image; anything else may go well another time.
        status = "refused" if isinstance(error, (str, ValueError)) else "failed"
        return {**self.lost(image, name, reason), "status": status}

    def lost(self, image: Path, name: str, reason: str) -> dict[str, Any]:
        """Row of an image without a result."""
        known = {"image": self._shown(image), "name": name, "verdict": f"{NOT_ASSESSED}: {reason}"}
        return {**dict.fromkeys(self.columns), **known, "flags": "", "status": "failed", "error": reason}

    def _remove(self, name: str) -> None:
        """Delete what was written of an earlier content of the file; the result first, which says that all is whole."""
        self._remove_here(name)
        if self.store is not None:
            self.store.remove(name)

    def _remove_here(self, name: str) -> None:
        target = self.out / name
        if _beside(target, RESULT).is_file():
            for ending in (RESULT, *PARTS):
                _beside(target, ending).unlink(missing_ok=True)

    def _write(
        self, image: Path, name: str, item: Mapping[str, Any], output: Mapping[str, torch.Tensor]
    ) -> dict[str, Any]:
        """Mask, evidence, overlay, and last the result, which says that the others are whole."""
        done = self.inference.finish(item, output)
        target = self.out / name
        self._remove(name)
        mask, result = done["pred"], done["result"]
        affine = np.asarray(mask.affine, dtype=float)
        scan = Scan.of(item["image"])
        # First: a series that no object can refer to is refused before anything of it is written.
        objects = [] if self.objects is None else self.objects(image, done, target)
        if scan.picture and not is_volume(image):
            files = [save_mask_picture(mask.as_tensor()[0].numpy().T, _beside(target, "_mask.png"))]
        else:
            files = [save_nifti(mask.as_tensor()[0].numpy(), affine, _beside(target, "_mask.nii.gz"))]
        if "evidence" in done:
            evidence = done["evidence"].as_tensor()[0].numpy()
            files.append(save_nifti(evidence, affine, _beside(target, "_evidence.nii.gz"), EVIDENCE))
        files += objects
        picture = f"{name}_overlay.png" if self.overlay else None
        empty = not result["tumor_voxels"] and not result.get("evidence_maximum")
        if picture is not None:
            files.append(
                overlays.save(study_overlay(item, output, empty, tuple(result.get("regions", ()))), self.out / picture)
            )
        row = {
            **dict.fromkeys(self.columns),
            **{key: value for key, value in result.items() if key in columns(())},
            **{f"probability_{key}": value for key, value in result["class_probabilities"].items()},
            **{f"raw_{key}": value for key, value in result["raw"].items() if f"raw_{key}" in columns(())},
            "image": self._shown(image),
            "name": name,
            "verdict": verdict_in_words(result),
            "prevalence": None if result["prevalence"] is None else 1 - next(iter(result["prevalence"].values())),
            "slices_read": len(scan.placements) if scan.plane else None,
            "overlay": picture,
            "flags": " ".join(flag["code"] for flag in result["flags"]),
            "status": "done",
        }
        about = {"file": fingerprint(image), "files": [file.name.removeprefix(target.name) for file in files]}
        whole = {"image": self._shown(image), **result, "weights": shown(self.inference.weights), "row": row, **about}
        write_json({**whole, "made_by": self.made_by}, _beside(target, RESULT))
        if self.store is not None:
            self.store.take([*files, _beside(target, RESULT)], self.out)
        return row


def summary(rows: Sequence[Mapping[str, Any]], missing: int, seconds: float) -> str:
    """How many images were predicted, and what came out."""
    skipped = sum(bool(row["error"]) for row in rows)
    tumors, free = (sum(row["tumor_detected"] is value for row in rows) for value in (True, False))
    counts = {"with a tumor": tumors, "without": free, "uncertain or not assessed": len(rows) - tumors - free - skipped}
    text = ", ".join(f"{count} {name}" for name, count in {**counts, "skipped": skipped}.items())
    text = f"{len(rows)} images: {text}"
    return f"{text}{f', {missing} not reached' if missing else ''}, {seconds:.0f} s"


def study_overlay(
    item: Mapping[str, Any], output: Mapping[str, torch.Tensor], empty: bool = False, names: Sequence[str] = ()
) -> np.ndarray:
    """Evidence and outlines of the masks over the image, as the network sees it; of a volume, all of its slices.

    Args:
        item: prepared.
        output: of the inferer.
        empty: the answer has no mask and no evidence: the image alone.
        names: of the regions where there are several; they stand below the picture.

    Returns:
        RGB (H, W, 3) uint8; slices of a volume in reading order, each at most `TILE` pixels wide or high.
    """
    scan = Scan.of(item["image"])
    stack = slices_first(item["image"])[:, :1]
    evidence, masks = output.get("evidence"), region_masks_of(output)
    if stack.ndim == 5:  # a volume taken whole: its slices across the last axis
        evidence = None if evidence is None else upsample(evidence, stack.shape[2:])
        stack, masks = (value[0].movedim(-1, 0) for value in (stack, masks))
        evidence = None if evidence is None else evidence[0].movedim(-1, 0)
    size = stack.shape[2:]
    heat = np.zeros(stack.shape, np.float32)
    if evidence is not None:
        heat = shown_evidence(upsample(evidence.clamp(min=0), size) / output["temperature"]).numpy()
    regions = masks.numpy()
    if empty:
        heat, regions = np.zeros_like(heat), np.zeros_like(regions)
    predicted = regions[:, :1]
    shown_stack = stack.numpy()
    if len(stack) == 1 and not scan.plane:
        scale = overlays.legible_scale(shown_stack[0].shape)
        parts = parts_of(names, None, regions[0], PicturePlane(0, 1))
        picture = overlays.overlay(shown_stack[0], heat[0], predicted=predicted[0], scale=scale, parts=parts)
        return _named(picture, names)
    step = max(1, math.ceil(max(size) / TILE))
    pictures = [
        overlays.overlay(
            shown_stack[i], heat[i], predicted=predicted[i], parts=parts_of(names, None, regions[i], PicturePlane(0, 1))
        )[::step, ::step]
        for i in range(len(stack))
        if shown_stack[i].any()
    ]
    columns_count = math.ceil(math.sqrt(len(pictures) * 1.5))
    height, width = pictures[0].shape[:2]
    sheet = np.zeros((math.ceil(len(pictures) / columns_count) * height, columns_count * width, 3), np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns_count * height, i % columns_count * width
        sheet[top : top + height, left : left + width] = picture
    return _named(sheet, names)


def _named(picture: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """A picture of predicted masks with the names of the regions below."""
    tumor = names[0].replace("_", " ") if names else ""
    return overlays.with_legend(picture, tumor, parts_of(names, None, None, PicturePlane(0, 1)), true=False)


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(target.name + ending)
