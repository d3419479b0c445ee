"""Diagnosis of a bundle: does it load, is every consumer fed alike, does it predict, are its maps alive.

::

    python -m scripts check                                  # the checkout with models/model.pt
    python -m scripts check --run_dir runs/demo/ours
    python -m scripts check --bundle_root dist/brain_tumor_lens_segmentation --image mine.jpg --out runs/checks

One line a check; exit status 1 if any fails. The samples of `bundle.samples` are drawn for it: no image is needed.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from PIL import Image

from bundle import parity
from bundle.predictor import Prediction, Predictor
from bundle.release import ROOT
from bundle.samples import HEALTHY, PICTURE, SAMPLES, VOLUME, draw_samples
from scripts.command.errors import USER_ERRORS, sentence
from scripts.command.verbs import Outcome, inference_overlays
from scripts.explain.layers import resolve_layer
from scripts.explain.maps import upsample
from scripts.inference.inferers import MultiTaskInferer
from scripts.inference.postprocessing import shown_evidence
from scripts.pictures import overlays as pictures
from scripts.runs.checkpoint_files import load_weights

SKIPPED = "skipped: "


class Failure(Exception):
    """What a check found wrong, in one sentence."""


@dataclass
class Checks:
    """The checks of one bundle; each method returns what it found, or raises `Failure`.

    Attributes:
        root: folder that holds ``configs`` and ``models``.
        samples: folder of `bundle.samples.draw_samples`.
        overlays: config files merged over ``inference.yaml``.
        weights: instead of the config's, or None.
        image: the user's own picture or volume, or None for the phantom.
        layer: layer for Grad-CAM, or None for the network's default.
        out: folder of the overlay, or None.
        device: "cpu", "cuda", ..., or None: as the config says.
        label_python: interpreter of MONAI Label's environment.
    """

    root: Path
    samples: Path
    overlays: Sequence[Path] = ()
    weights: Path | None = None
    image: Path | None = None
    layer: str | None = None
    out: Path | None = None
    device: str | None = None
    label_python: Path = ROOT / ".venv-label" / "bin" / "python"

    @property
    def files(self) -> list[Path]:
        """Config files of the inference."""
        return [self.root / "configs" / "inference.yaml", *self.overlays]

    @property
    def sample(self) -> Path:
        """What is predicted."""
        return self.image or self.samples / PICTURE

    @cached_property
    def predictor(self) -> Predictor:
        """The bundle."""
        return Predictor(self.root, self.weights, self.overlays, self.device)

    @cached_property
    def prediction(self) -> Prediction:
        """Of the sample."""
        return self.predictor.predict(self.sample, assess_anyway=True)

    def load(self) -> str:
        """Configs parse, and the weights fit the network."""
        network = self.predictor.network
        count = sum(p.numel() for p in network.parameters())
        size = " x ".join(map(str, self.predictor.spatial_size))
        return f"{type(network).__name__}, {count:,} parameters, {size}, classes {', '.join(self.predictor.classes)}"

    def keys(self) -> str:
        """State-dict keys are the network's, every value is finite (both seen on loading), and the threshold is one."""
        state = torch.load(self.predictor.weights, map_location="cpu", weights_only=True)
        load_weights(self.predictor.network, self.predictor.weights)  # strict
        dead = [name for name, value in state.items() if name.endswith("conv.weight") and not value.any()]
        if dead:
            raise Failure(f"{len(dead)} convolutions are all 0, first: {dead[0]}")
        threshold, temperature = (float(state[name]) for name in ("threshold", "temperature"))
        if not 0 < threshold < 1 or temperature <= 0:
            raise Failure(f"threshold {threshold:g} is not between 0 and 1, or temperature {temperature:g} not above 0")
        masks = self.predictor.network.mask_threshold.tolist()
        if not all(0 < value < 1 for value in masks):
            raise Failure(f"a threshold of the masks is not between 0 and 1: {masks}")
        return f"{len(state)} keys, threshold {threshold:.3f}, temperature {temperature:.3f}"

    def metadata(self) -> str:
        """What MONAI Label reads of ``metadata.json`` is there and agrees with the network."""
        meta = json.loads((self.root / "configs" / "metadata.json").read_text(encoding="utf-8"))
        formats = meta["network_data_format"]
        first = [next(iter(formats[side])) for side in ("inputs", "outputs")]
        if first != ["image", "pred"]:
            raise Failure(f"first input and output are {first}; MONAI Label needs 'image' and 'pred'")
        channels = formats["outputs"]["pred"]["channel_def"]
        network = self.predictor.network
        have = len(network.regions) + 1 if network.nested else network.out_channels
        if len(channels) != have or channels["0"].lower() != "background":
            raise Failure(f"channel_def is {channels}; expected {have} labels, of which 0 is background")
        return f"version {meta['version']}, labels {', '.join(list(channels.values())[1:])}"

    def layer_for_cam(self) -> str:
        """The layer exists, and Grad-CAM of the drawn tumor there is neither cancelled (which raises) nor empty."""
        network = self.predictor.network
        name = resolve_layer(network, self.layer or network.default_cam_layer)
        heatmap = self.predictor.explain(self.samples / PICTURE, method="gradcam", layer=name)
        if not np.isfinite(heatmap.map).all():
            raise Failure(f"Grad-CAM at {name} is not finite")
        if heatmap.empty:
            raise Failure(f"Grad-CAM at {name} of {PICTURE}: {heatmap.message}")
        return f"{name}: map of {' x '.join(map(str, heatmap.map.shape))}"

    def parity(self) -> str:
        """Training, inference and MONAI Label feed the network alike, bit for bit; the service answers alike."""
        images = [self.image] if self.image else [self.samples / PICTURE, self.samples / VOLUME]
        consumers = ["inference", "training"]
        for image in images:
            ours, places, plane = parity.inference_input(self.files, self.root, image)
            train = self.root / "configs" / "train.yaml"
            others = {"training": parity.training_input(train, self.files, self.root, image, places, plane)}
            if self.label_python.is_file():
                others["MONAI Label"] = parity.label_input(self.label_python, self.files, self.root, image)
            for consumer, theirs in others.items():
                if theirs.shape != ours.shape or not torch.equal(theirs, ours):
                    raise Failure(f"{image.name}: {consumer} feeds the network otherwise than the inference: "
                                  f"{difference(ours, theirs)}")  # fmt: skip
            probability = parity.service_probability(self.predictor, image)
            predicted = self.predictor.predict(image).probability
            if probability is not None and not math.isclose(probability, predicted, abs_tol=1e-5):
                raise Failure(f"{image.name}: the service says {probability:.6f}, the predictor {predicted:.6f}")
        consumers += ["MONAI Label"] if self.label_python.is_file() else []
        consumers += ["service"] if probability is not None else []
        absent = sorted({"MONAI Label", "service"} - set(consumers))
        return f"{', '.join(consumers)} alike" + (f"; not installed: {', '.join(absent)}" if absent else "")

    def predict(self) -> str:
        """A prediction is in range, the same twice, on the image's grid, and the raw verdict on samples is right."""
        first, again = self.prediction, self.predictor.predict(self.sample, assess_anyway=True)
        if not 0 <= first.probability <= 1 or not math.isclose(sum(first.probabilities.values()), 1, abs_tol=1e-4):
            raise Failure(f"probabilities are {first.probabilities}")
        if first.probability != again.probability or not np.array_equal(first.mask, again.mask):
            raise Failure("two predictions of the same image differ")
        grid = sample_grid(self.sample)
        if first.mask.shape != grid:
            raise Failure(f"the mask has shape {first.mask.shape}, the image {grid}")
        drawn = {name: self.predictor.predict(self.samples / name, assess_anyway=True) for name in SAMPLES}
        if len({prediction.probability for prediction in (first, *drawn.values())}) == 1:
            raise Failure("the probabilities do not depend on the image")
        wrong = [
            f"{name}: tumor {prediction.probability:.3f}, threshold {prediction.threshold:.3f}, drawn "
            f"{'with' if SAMPLES[name] else 'without'} a tumor"
            for name, prediction in drawn.items()
            if prediction.raw["tumor_detected"] is not SAMPLES[name]
        ]
        if wrong:
            raise Failure(f"the verdict on {len(wrong)} of {len(drawn)} samples is wrong: {'; '.join(wrong)}")
        summary = f"{first.predicted_class}, tumor {first.probability:.3f} (threshold {first.threshold:.3f})"
        others = "; ".join(f"{k} {p.probability:.3f}" for k, p in drawn.items() if k != self.sample.name)
        return f"{self.sample.name}: {summary}, {int((first.mask > 0).sum())} voxels; {others}"

    def maps(self) -> str:
        """Evidence varies within the image and from image to image, and there is none in the air."""
        network = self.predictor.network
        if not network.has_evidence:
            return f"{SKIPPED}the network has no evidence head"
        names = [self.sample, self.samples / HEALTHY]
        inputs = [parity.inference_input(self.files, self.root, image)[0] for image in names]
        with torch.no_grad():
            middle = [stack[[len(stack) // 2]].to(self.predictor.device) for stack in inputs]
            raw = [network(part, output="evidence").float() for part in middle]
        inside = [values[values != 0] for values in raw]
        for image, values in zip(names, inside, strict=True):
            if values.numel() == 0 or float(values.std()) == 0:
                raise Failure(f"{image.name}: the evidence is the same everywhere")
        if raw[0].shape == raw[1].shape and torch.equal(raw[0], raw[1]):
            raise Failure("the evidence is the same for two images")
        return f"evidence varies: standard deviation {float(inside[0].std()):.3g} and {float(inside[1].std()):.3g}"

    def overlay_picture(self) -> str:
        """In the overlay the strongest evidence is red, and where there is none the image is gray."""
        plane = self._plane()
        image, heat, mask = (array[None] for array in plane)
        probe = np.zeros_like(heat)
        peak = np.unravel_index(int(np.argmax(heat)) if heat.any() else int(np.argmax(image)), heat.shape)
        probe[peak] = 1.0
        scale = pictures.legible_scale(image.shape)
        marked = pictures.overlay(image, probe)
        red, _, blue = (int(v) for v in marked[peak[2], peak[1]])
        if red <= blue:
            raise Failure(f"the hottest place is drawn with red {red} and blue {blue}")
        cold = np.delete(marked.reshape(-1, 3), int(peak[2]) * marked.shape[1] + int(peak[1]), axis=0)
        if int(np.ptp(cold.astype(int), axis=1).max()) > 0:
            raise Failure("places without evidence are not gray")
        picture = pictures.overlay(image, heat, predicted=mask if mask.any() else None, scale=scale)
        if not heat.any():
            picture = pictures.say_empty(picture)
        if self.out is None:
            return f"drawn, {picture.shape[1]} x {picture.shape[0]} pixels; --out DIR keeps it"
        return str(pictures.save(picture, self.out / "overlay.png"))

    def _plane(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image, evidence and mask on the network's grid: what the network saw of the sample's middle slice."""
        stack, _, _ = parity.inference_input(self.files, self.root, self.sample)
        shown = stack[len(stack) // 2]
        with torch.no_grad():
            result = MultiTaskInferer()(shown[None, ..., None].to(self.predictor.device), self.predictor.network)
        result = {key: value.cpu() for key, value in result.items()}
        evidence = result["evidence"][0, 0] if "evidence" in result else torch.zeros(1, *shown.shape[1:])
        heat = shown_evidence(upsample(evidence[None].clamp(min=0), shown.shape[1:])[0, 0] / result["temperature"][0])
        mask = result["seg"][0, 0, 1] > result["mask_threshold"][0, 0]
        return shown[0].numpy(), heat.numpy(), mask.numpy().astype(np.uint8)

    def all(self) -> list[tuple[str, Callable[[], str]]]:
        """Names and checks, in order."""
        return [
            ("load", self.load),
            ("keys", self.keys),
            ("metadata", self.metadata),
            ("layer", self.layer_for_cam),
            ("parity", self.parity),
            ("prediction", self.predict),
            ("maps", self.maps),
            ("overlay", self.overlay_picture),
        ]


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """How two inputs of the network differ, in words."""
    if ours.shape != theirs.shape:
        return f"shape {tuple(theirs.shape)}, expected {tuple(ours.shape)}"
    apart = (ours - theirs).abs()
    return f"{int((apart > 0).sum())} of {apart.numel()} values differ, by up to {float(apart.max()):.2g}"


def sample_grid(path: Path) -> tuple[int, ...]:
    """Shape of a file: (rows, columns) of a picture, three axes of a volume."""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return tuple(nib.load(path).shape[:3])  # type: ignore[attr-defined]
    with Image.open(path) as picture:
        return picture.size[::-1]


def run(checks: Checks) -> bool:
    """Run all and print one line each; True if none failed. Without a bundle that loads the others are not tried."""
    passed = True
    for name, check in checks.all():
        try:
            message = check()
            word = "skipped" if message.startswith(SKIPPED) else "ok"
            line = f"{word:8s}{name:12s}{message.removeprefix(SKIPPED)}"
        except Exception as error:
            reason = sentence(error) or f"{error}" if not isinstance(error, Failure) else str(error)
            kind = "" if isinstance(error, (Failure, *USER_ERRORS)) else f"{type(error).__name__}: "
            line, passed = f"FAILED  {name:12s}{kind}{reason}", False
        print(line, flush=True)
        if not passed and name == "load":
            break
    return passed


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``check``; fails if a check fails."""
    root = arguments.bundle_root or ROOT
    with tempfile.TemporaryDirectory() as folder:
        draw_samples(Path(folder))
        passed = run(
            Checks(
                root.absolute(), Path(folder), inference_overlays(arguments), arguments.weights, arguments.image,
                arguments.layer, arguments.out, device=arguments.device,
            )
        )  # fmt: skip
    written = [] if arguments.out is None or not passed else [arguments.out]
    return Outcome("all checks passed" if passed else "at least one check failed", written, not passed)
