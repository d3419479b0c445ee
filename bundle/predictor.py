"""The trained bundle as one object: load once, then predict and explain images from any thread.

Example::

    from bundle.predictor import Predictor

    predictor = Predictor(overlay="runs/mine/network.yaml")
    prediction = predictor.predict("image.jpg")
    print(prediction.probability, prediction.verdict, prediction.flags)
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from bundle.predict_options import PredictOptions, named, opened
from bundle.predictions import Heatmap, Prediction, Uncertainty
from scripts.command.locations import ROOT
from scripts.explain import methods
from scripts.explain.maps import is_empty, upsample
from scripts.explain.targets import ClassMargin, ClassScore, SegmentationRegion, Target, TumorLogOdds
from scripts.inference.inferers import Progress
from scripts.inference.pipeline import Inference, slices_first
from scripts.inference.postprocessing import RestoreScand, shown_evidence
from scripts.inference.scans import Scan, to_slice_grid
from scripts.measures.prevalence import Given
from transforms.limits import ReadLimits

__all__ = ["Heatmap", "Prediction", "Predictor", "Uncertainty"]

Image = str | Path | Sequence[str | Path] | np.ndarray


class Predictor:
    """Predicts and explains images; its network and pipeline are those of ``configs/inference.yaml``.

    Args:
        bundle_root: folder that holds ``configs`` and ``models``.
        weights: state dict; None: those that the overlay names, else ``models/model.pt``.
        overlay: config files merged over ``configs/inference.yaml``, for example a run's ``network.yaml``.
        device: "cpu", "cuda", ...; None: as the config says.
        prevalence: share of any tumor, or of each class by name, where it is used; see
            `scripts.measures.prevalence.given_prevalence`. None: as the config says, by default that of the training.
        backend: "torch", or "onnxruntime": what runs the network's passes of a prediction, see
            `scripts.inference.backends`.

    Attributes:
        network, device, weights, classes, backend: see `scripts.inference.pipeline.Inference`.
        prevalence: of each class, that the probabilities are for; None: that of the training.

    Raises:
        FileNotFoundError: when the config or the weights do not exist.
        ValueError: when the weights do not fit the network.

    All methods may be called from several threads at once.
    """

    def __init__(
        self,
        bundle_root: str | Path = ROOT,
        weights: str | Path | None = None,
        overlay: str | Path | Sequence[str | Path] | None = None,
        device: str | torch.device | None = None,
        prevalence: Given = None,
        backend: str = "torch",
    ) -> None:
        self.bundle_root = Path(bundle_root)
        self._overrides = {} if prevalence is None else {"prevalence": prevalence}
        self._inference = Inference(bundle_root, weights, overlay, device, self._overrides, backend)
        self.network, self.device = self._inference.network, self._inference.device
        self.weights, self.classes = self._inference.weights, self._inference.classes
        self.backend, self.prevalence = self._inference.backend, self._inference.prevalence
        self.mask_thresholds = self._inference.mask_thresholds
        self.spatial_size: list[int] = self._inference.preprocessing[0].size  # of a slice to the network, in pixels
        self._explaining = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: with joblib, Ray or Dask a predictor goes to where the images are."""
        return {key: value for key, value in self.__dict__.items() if key != "_explaining"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._explaining = threading.Lock()

    def limit_files(self, limits: ReadLimits) -> None:
        """Refuse larger files, by their headers, from now on."""
        self._inference.preprocessing[0].limits = limits

    def predict(
        self,
        image: Image,
        affine: np.ndarray | None = None,
        foreground: str | Path | np.ndarray | None = None,
        uncertainty: bool = False,
        *,
        assess_anyway: bool = False,
        slice: int | None = None,
        plane: str | None = None,
        channel: int | None = None,
        name: str | None = None,
        progress: Progress | None = None,
        series: str | None = None,
        dicom: str | Path | None = None,
        anonymous: bool = False,
        evidence_segments: bool = False,
    ) -> Prediction:
        """Predict one image.

        Args:
            image: a file (PNG, JPG, ..., NIfTI of two to four axes, folder with a DICOM series), several files (one a
                channel), or an array: (rows, columns) gray values of a picture, or (X, Y[, Z[, C]]) with an affine;
                or the address of a study or series of a DICOMweb server, as the verb ``predict`` takes it.
            affine: 4x4 of an array of a volume, voxel indices to RAS+ millimeters.
            foreground: the user's own mask of the head, on the image's grid; None: it is computed.
            assess_anyway: answer an image unlike those of the training too, instead of "not assessed".
            uncertainty: predict several views of the image and say how far they lie apart (7 passes in place of 1).
            slice: one slice of a volume alone; None: all.
            plane: to cut a volume in; None: as the config says.
            channel: of a 4D volume; None: as the config says.
            name: what errors call an array.
            progress: called with the slices done and of all; (0, 0) while the image is prepared.
            series: UID of the one DICOM series that is taken, of a folder or study of several.
            dicom: write DICOM objects of a series, as the verb ``predict`` does with ``--dicom``: this path, with
                ``_segmentation.dcm`` and so on behind it. `Prediction.objects` lists them.
            anonymous: objects that say nothing of the patient.
            evidence_segments: the evidence as a Segmentation too, for viewers without maps.

        Raises:
            ValueError: when the image cannot be read, does not fit the network or shows no head; names the file.
            OSError: when a DICOMweb server does not answer.
        """
        if progress is not None:
            progress(0, 0)
        kwargs: dict[str, Any] = {
            "image": image,
            "affine": affine,
            "foreground": foreground,
            "slice": slice,
            "plane": plane,
        }
        kwargs |= {"channel": channel, "name": name, "series": series}
        wanted = PredictOptions(uncertainty, assess_anyway, dicom, anonymous, evidence_segments)
        with self._prepared(wanted, **kwargs) as item:
            return self._finish(item, self._inference.infer(item, progress), wanted)

    @overload
    def predict_batch(self, images: Sequence[Image | Mapping[str, Any]]) -> list[Prediction]: ...

    @overload
    def predict_batch(
        self, images: Sequence[Image | Mapping[str, Any]], errors: Literal["return"]
    ) -> list[Prediction | ValueError]: ...

    def predict_batch(self, images: Sequence[Image | Mapping[str, Any]], errors: str = "raise") -> Any:
        """Predict several images, their slices in common passes of the network.

        Results equal those of `predict` up to rounding (about 1e-6), as convolutions sum in another order in another
        batch.

        Args:
            images: each an image, or a dictionary of the arguments of `predict`.
            errors: "raise" the first error, or "return" it in the place of its prediction.

        Returns:
            one prediction an image, in order.
        """
        if errors not in ("raise", "return"):
            raise ValueError(f"errors is 'raise' or 'return', got {errors!r}")
        prepared: list[tuple[dict[str, Any], PredictOptions] | ValueError] = []
        with ExitStack() as stack:
            for image in images:
                kwargs: dict[str, Any] = dict(image) if isinstance(image, Mapping) else {"image": image}
                wanted = PredictOptions(
                    **{field.name: kwargs.pop(field.name) for field in fields(PredictOptions) if field.name in kwargs}
                )
                try:
                    prepared.append((stack.enter_context(self._prepared(wanted, **kwargs)), wanted))
                except ValueError as error:
                    if errors == "raise":
                        raise
                    prepared.append(error)
            items = [entry for entry in prepared if not isinstance(entry, ValueError)]
            outputs = iter(self._inference.infer_together([item for item, _ in items]))
            predictions: list[Prediction | ValueError] = []
            for entry in prepared:
                try:
                    predictions.append(
                        entry if isinstance(entry, ValueError) else self._finish(entry[0], next(outputs), entry[1])
                    )
                except ValueError as error:
                    if errors == "raise":
                        raise
                    predictions.append(error)
            return predictions

    def explain(
        self,
        image: Image,
        method: str = "evidence",
        layer: str | None = None,
        target: str | int | None = None,
        slice: int | None = None,
        *,
        affine: np.ndarray | None = None,
        foreground: str | Path | np.ndarray | None = None,
        plane: str | None = None,
        channel: int | None = None,
        name: str | None = None,
        series: str | None = None,
    ) -> Heatmap:
        """Explain one image.

        Args:
            image, affine, foreground, slice, plane, channel, name, series: as in `predict`. Without ``slice`` every
                slice of a volume is explained, which takes long with the perturbing methods.
            method: one of `scripts.explain.methods.METHODS`.
            layer: dotted name or alias, for the methods that explain layers; None: the default layer.
            target: "tumor" (log-odds of any tumor, the default), a class by name or number, the margin of two classes
                ("glioma_minus_meningioma"), or "segmentation" (the tumor logit in the predicted mask).

        Raises:
            ValueError: for an unknown method or target, a layer that does not exist, a layer for a method that
                explains none, an image as in `predict`, and where no map can be made: Grad-CAM at a layer whose
                gradients cancel, or the class without a tumor, whose logit the image does not change (docs/decisions).
        """
        with self._prepared(
            PredictOptions(), image, affine, foreground, slice, plane, channel, name, series
        ) as prepared:
            item = prepared
        scan = Scan.of(item["image"])
        stack = slices_first(item["image"])
        mask = item["foreground"]
        masks = mask.movedim(-1, 0) if scan.plane else mask[None]
        aim, output, used = self._target(target, method)
        maps, raw_layer = [], ""
        size = self._inference.inferer.batch_size
        for start in range(0, len(stack), size):
            x, inside = (part[start : start + size].contiguous().to(self.device) for part in (stack, masks))
            with self._explaining:  # hooks are set on the one network
                result = methods.explain(
                    self.network,
                    x,
                    method,
                    layer if layer is not None or methods.METHODS.get(method) != "layer" else self._layer(output),
                    aim,
                    forward_kwargs={"output": output},
                    foreground=inside.to(x.dtype),
                    foreground_kwarg="foreground",
                )
            (_, raw_layer), value = next(iter(result.maps.items()))
            maps.append(upsample(value.float(), x.shape[2:]).cpu())
        return self._heatmap(torch.cat(maps), scan, method, raw_layer, used)

    def _heatmap(self, maps: Tensor, scan: Scan, method: str, layer: str, target: str) -> Heatmap:
        empty = bool(is_empty(maps).all())
        on_slices = [
            to_slice_grid(value.clamp(min=0), placement, scan.slice_shape)[0]
            for value, placement in zip(maps, scan.placements, strict=True)
        ]
        if method == "evidence":
            on_slices = [value / self.network.temperature.float().cpu() for value in on_slices]
            message = "evidence on an absolute scale: 0 none, 0.9 calibrated odds of 19 to 1"
        else:
            largest = max(float(value.max()) for value in on_slices)
            on_slices = [value / largest if largest > 0 else value for value in on_slices]
            message = "divided by its largest value: shows where, not how much"
        if empty:
            message = "nothing speaks for the target: the map is empty"
        restored = scan.restore(on_slices)
        array = (shown_evidence(restored) if method == "evidence" else restored).numpy()
        slices = [p.index for p in scan.placements] if scan.plane else None
        affine = np.asarray(scan.affine, dtype=float)
        return Heatmap(array.T if scan.picture else array, method, layer, target, empty, message, slices, affine)

    def _layer(self, output: str) -> str:
        """Layer that is explained when none is asked for."""
        if output == "seg":
            return f"upsamples.{len(self.network.upsamples) - 1}"
        return self.network.default_cam_layer

    def _target(self, target: str | int | None, method: str) -> tuple[Target, str, str]:
        """The explained score, the network's output that it reads, and its name with classes by name."""
        if method == "evidence" and not self.network.has_evidence:
            raise ValueError("this network has no evidence head; choose another method, for example 'gradcam'")
        if target is None or target == "tumor":
            return TumorLogOdds.of(self.network), "cls", "tumor_log_odds"
        if target == "segmentation":
            return (region := SegmentationRegion()), "seg", region.name
        name = target
        if isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(self.classes):
            name = self.classes[target]
        if name in self.classes:
            index = self.classes.index(str(name))
            if index == 0 and self.network.has_evidence:
                against = f"{self.classes[0]}_minus_{self.classes[1]}"
                raise ValueError(
                    f"{name} is the class that the others are compared with: the image does not change its logit, and "
                    f"every map of it is empty; explain a margin, for example {against!r}, or 'tumor' for what speaks "
                    "for any tumor"
                )
            return ClassScore(index), "cls", str(name)
        margins = {
            f"{a}_minus_{b}": (i, k) for i, a in enumerate(self.classes) for k, b in enumerate(self.classes) if i != k
        }
        if name in margins:
            return ClassMargin(*margins[str(name)]), "cls", str(name)
        raise ValueError(
            f"target is 'tumor', 'segmentation', one of the classes {', '.join(self.classes)} or its number, or the "
            f"margin of two (as in {next(iter(margins))!r}), got {target!r}"
        )

    @contextmanager
    def _prepared(
        self,
        wanted: PredictOptions,
        image: Image,
        affine: np.ndarray | None = None,
        foreground: str | Path | np.ndarray | None = None,
        slice: int | None = None,
        plane: str | None = None,
        channel: int | None = None,
        name: str | None = None,
        series: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """The item that the pipeline makes of an image; what is fetched of it is there as long as the block lasts."""
        wanted.check(image, slice)
        with opened(image, series) as (source, called):
            item: dict[str, Any] = {"image": source, "affine": affine, "name": name}
            optional = {"foreground": foreground, "slice": slice, "plane": plane, "channel": channel}
            item |= {key: value for key, value in optional.items() if value is not None}
            if isinstance(source, np.ndarray) and source.ndim == 2 and affine is None:
                item["image"] = source.T
                if isinstance(foreground, np.ndarray):
                    item["foreground"] = foreground.T
            elif isinstance(source, Path):
                item["image"] = str(source)
            options = {"plane": plane, "channel": channel, **self._overrides}
            about = {"options": {key: value for key, value in options.items() if value is not None}}
            with named(source, called):
                prepared = self._inference.prepare(item)
            yield {**prepared, **about, "called": called, "given": foreground}

    def _finish(self, item: Mapping[str, Any], output: Mapping[str, Tensor], wanted: PredictOptions) -> Prediction:
        done = self._inference.finish({**item, **({"assess_anyway": True} if wanted.assess_anyway else {})}, output)
        result, mask = done["result"], done["pred"]
        scan = Scan.of(item["image"])

        def on_grid(value: MetaTensor) -> np.ndarray:
            array = value.as_tensor()[0].numpy()
            return np.ascontiguousarray(array.T) if scan.picture else array

        return Prediction(
            source=item["called"] or str(mask.meta["filename_or_obj"]),
            probability=result["tumor_probability"],
            probabilities=result["class_probabilities"],
            slice_probabilities=result["slice_probabilities"],
            plane=result["plane"],
            verdict=result["verdict"],
            reasons=result["reasons"],
            threshold=result["threshold"],
            prevalence=result["prevalence"],
            predicted_class=result["predicted_class"],
            mask=on_grid(mask),
            evidence=on_grid(done["evidence"]) if "evidence" in done else None,
            affine=np.asarray(mask.affine, dtype=float),
            raw=result["raw"],
            raw_mask=on_grid(done["raw_pred"]),
            raw_evidence=on_grid(done["raw_evidence"]) if "raw_evidence" in done else None,
            flags=result["flags"],
            scores=result.get("scores", {}),
            uncertainty=self._uncertainty(item, scan, output) if wanted.uncertainty else None,
            objects=wanted.write(self._inference, item["options"], item["given"], done, item["called"]),
        )

    def _uncertainty(self, item: Mapping[str, Any], scan: Scan, output: Mapping[str, Tensor]) -> Uncertainty:
        views = {
            key: value[0].cpu()
            for key, value in self._inference.inferer.views(item["image"][None].to(self.device), self.network).items()
        }
        count = views["probability"].shape[1]
        restore = next(step for step in self._inference.postprocessing if isinstance(step, RestoreScand))
        places = output["evidence"].cpu() if "evidence" in output else None
        each = [restore.probability(views["probability"][:, i], scan, places)[0] for i in range(count)]
        tumor = [1 - float(probability[0]) for probability in each]
        on_slices = [
            to_slice_grid(value, placement, scan.slice_shape)[0]
            for value, placement in zip(views["seg_std"], scan.placements, strict=True)
        ]
        array = scan.restore(on_slices).numpy()
        return Uncertainty(float(np.std(tumor)), array.T if scan.picture else array, count)
