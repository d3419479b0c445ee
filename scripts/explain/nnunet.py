"""A trained results folder of nnU-Net v2 as it lies on disk: its network, windows, labels and regions, nothing run.

`plans.json` describes the network, `dataset.json` channels and labels, `fold_*/checkpoint_final.pth` holds weights. No
class is taken from the folder but those of `dynamic_network_architectures` and of torch.nn, and the checkpoint is read
with ``weights_only``, numbers of numpy allowed: a file that asks for anything else is refused.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from scripts.explain.targets import SegmentationRegion
from scripts.explain.windows import Stitched, explain_windows, nnunet_inferer

__all__ = ["NNUNet", "load_nnunet"]

PACKAGE = "dynamic_network_architectures"
ARCHITECTURES = {  # name: module; the last part of the class that the plans name
    "PlainConvUNet": f"{PACKAGE}.architectures.unet",
    "ResidualEncoderUNet": f"{PACKAGE}.architectures.unet",
    "ResidualUNet": f"{PACKAGE}.architectures.unet",
}
CHECKPOINT = "checkpoint_final.pth"


def _numpy_numbers() -> list[Any]:
    """What nnU-Net's logs consist of: numbers and arrays of numpy."""
    multiarray: Any = importlib.import_module(
        "numpy._core.multiarray" if np.__version__[0] != "1" else "numpy.core.multiarray"
    )
    kinds = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")]
    return [multiarray.scalar, multiarray._reconstruct, np.ndarray, np.dtype, *kinds]


class _Overlapping(SegmentationRegion):
    """A region that is predicted where its own logit is above 0, whatever the other outputs are."""

    def region(self, output: Tensor) -> Tensor:
        """Region of each sample, (B, *spatial), bool."""
        super().region(output)  # checks the output
        return output.detach()[:, self.channel] > 0


@dataclass(frozen=True)
class NNUNet:
    """One fold of a results folder.

    Attributes:
        network: in evaluation mode, without deep supervision.
        folder: of the results.
        configuration: its name, "2d" or "3d_fullres".
        patch_size: of a window.
        spacing_mm: that the network was trained at.
        mirror_axes: spatial axes that nnU-Net mirrors over.
        channels: names of the input's channels.
        regions: name of each label or region: its channel in the output, and the label's values.
        schemes: normalization of each channel, by nnU-Net's names.
        masked: whether each channel is normalized by its non-zero pixels alone.
        intensities: nnU-Net's properties of the intensities of each channel.
        transpose: of the spatial axes of an image as it is read, to those of the plans.
        resampling: of "data" and of "probabilities": the name of nnU-Net's function, and its options.
        by_region: whether the outputs are regions that may overlap, each by a sigmoid, and not labels.
        reader: nnU-Net's name of what reads its images; "" where the plans do not say.
        ending: of image files.
    """

    network: nn.Module
    folder: Path
    configuration: str
    patch_size: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    mirror_axes: tuple[int, ...]
    channels: tuple[str, ...]
    regions: Mapping[str, tuple[int, tuple[int, ...]]]
    schemes: tuple[str, ...]
    masked: tuple[bool, ...]
    intensities: Mapping[str, Any]
    transpose: tuple[int, ...] = (0, 1, 2)
    resampling: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    by_region: bool = False
    reader: str = ""
    ending: str = ".nii.gz"

    def channel(self, region: str) -> int:
        """Channel of a label or region by its name.

        Raises:
            ValueError: for an unknown name.
        """
        if region not in self.regions:
            raise ValueError(f"{self.folder}: no region {region!r}; there are {', '.join(self.regions)}")
        return self.regions[region][0]

    def target(self, region: str) -> SegmentationRegion:
        """The explained score of a region: its logits, summed over the place where it is predicted.

        Raises:
            ValueError: for an unknown name.
        """
        kind = _Overlapping if self.by_region else SegmentationRegion
        return kind(channel=self.channel(region), reduction="sum")

    def inferer(self, step: float = 0.5) -> SlidingWindowInferer:
        """Windows as nnU-Net's predictor slides them."""
        return nnunet_inferer(self.patch_size, step)

    def explain(
        self,
        x: Tensor,
        region: str,
        methods: str | Sequence[str] = "hirescam",
        layer: str | None = None,
        mirrored: bool = True,
        step: float = 0.5,
    ) -> Stitched:
        """Maps of a region: of the gradient of its stitched logits, summed over the place where it is predicted.

        Args:
            x: (B, C, *spatial), at the plans' spacing and normalized, see `nnunet_images.prepare`.
            region: a name of `regions`.
            methods, layer: see `windows.explain_windows`.
            mirrored: average over mirrored windows, as nnU-Net does by default.
            step: of the windows, as a share of their size.

        Raises:
            ValueError: for another number of channels or axes than the network's.
        """
        dims = len(self.patch_size)
        if x.dim() != dims + 2 or x.shape[1] != len(self.channels):
            raise ValueError(
                f"{self.folder}: expected (B, {len(self.channels)}, {dims} spatial axes) with the channels "
                f"{', '.join(self.channels)}, got {tuple(x.shape)}"
            )
        axes = self.mirror_axes if mirrored else ()
        return explain_windows(self.network, x, self.inferer(step), self.target(region), methods, layer, axes)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path.parent} has no {path.name}; expected a results folder of nnU-Net v2") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object, got {type(content).__name__}")
    return content


def _configuration(plans: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """A configuration with all that it inherits."""
    every, chain = plans.get("configurations", {}), []
    current: str | None = name
    while current is not None:
        if current not in every or current in chain:
            raise ValueError(f"{path}: no configuration {current!r}; there are {', '.join(every) or 'none'}")
        chain.append(current)
        current = every[current].get("inherits_from")
    merged: dict[str, Any] = {}
    for part in reversed(chain):
        merged |= every[part]
    if merged.get("previous_stage"):
        raise ValueError(
            f"{path}: {name!r} is the second stage of a cascade, whose input is a segmentation; give the first"
        )
    if "architecture" not in merged:
        raise ValueError(f"{path}: {name!r} has no 'architecture'; plans of nnU-Net 2.5 and newer have one")
    return merged


def _torch_class(name: Any, path: Path) -> Any:
    """A class of torch.nn by the dotted name that plans have; nothing is imported."""
    if name is None:
        return None
    layer_class = getattr(nn, str(name).rpartition(".")[2], None) if str(name).startswith("torch.nn.") else None
    if not (isinstance(layer_class, type) and issubclass(layer_class, nn.Module)):
        raise ValueError(f"{path}: {name!r} is no layer of torch.nn, and nothing else is loaded")
    return layer_class


def _build(architecture: Mapping[str, Any], channels: int, outputs: int, path: Path) -> nn.Module:
    named = str(architecture.get("network_class_name", ""))
    kind = named.rpartition(".")[2]
    if not named.startswith(f"{PACKAGE}.") or kind not in ARCHITECTURES:
        raise ValueError(
            f"{path}: {named!r} is none of {', '.join(ARCHITECTURES)} of {PACKAGE}, and nothing else is loaded"
        )
    if importlib.util.find_spec(PACKAGE) is None:
        raise ImportError(
            f"{path}: the network is a {kind} of {PACKAGE}; pip install --no-deps -c constraints.txt "
            "dynamic-network-architectures"
        )
    built = getattr(importlib.import_module(ARCHITECTURES[kind]), kind)
    arguments = dict(architecture.get("arch_kwargs", {}))
    for key in architecture.get("_kw_requires_import", []):
        arguments[key] = _torch_class(arguments.get(key), path)
    arguments |= {"input_channels": channels, "num_classes": outputs, "deep_supervision": False}
    try:
        return built(**arguments)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"{path}: {kind} cannot be built: {error}") from error


def _regions(dataset: Mapping[str, Any], path: Path) -> dict[str, tuple[int, tuple[int, ...]]]:
    labels = dict(dataset.get("labels", {}))
    if "background" not in labels:
        raise ValueError(f"{path}: 'labels' has no 'background'; expected names and values as nnU-Net v2 has them")
    values = {
        name: tuple(map(int, value)) if isinstance(value, list) else (int(value),)
        for name, value in labels.items()
        if name != "ignore"
    }
    if any(len(value) > 1 for value in values.values()):
        regions = [name for name, value in values.items() if set(value) != {0}]
        return {name: (channel, values[name]) for channel, name in enumerate(regions)}
    ordered = sorted({value for (value,) in values.values()})
    return {name: (ordered.index(value[0]), value) for name, value in values.items()}


def _checkpoint(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a fold's checkpoint, see fold=... and checkpoint=...")
    try:
        with torch.serialization.safe_globals(_numpy_numbers()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each raise their own
        first = next((line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), str(error))
        raise ValueError(f"{path} cannot be read safely: {first.splitlines()[0][:200]}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("network_weights"), dict):
        raise ValueError(f"{path} holds no 'network_weights'; expected a checkpoint of nnU-Net v2")
    return checkpoint


def load_nnunet(folder: str | Path, fold: int | str | None = None, checkpoint: str = CHECKPOINT) -> NNUNet:
    """A fold of a results folder, ``nnUNet_results/Dataset*/Trainer__Plans__configuration``.

    Args:
        folder: with plans.json, dataset.json and fold_*.
        fold: number, or "all"; None: the first that has the checkpoint.
        checkpoint: file in the fold's folder.

    Raises:
        OSError: when a file is missing.
        ValueError: when a file is not what nnU-Net v2 writes, or names a class that is not loaded.
        ImportError: when `dynamic_network_architectures` is not installed.
    """
    root = Path(folder)
    plans, dataset = _json(root / "plans.json"), _json(root / "dataset.json")
    if fold is None:
        folds = sorted(path.parent.name.removeprefix("fold_") for path in root.glob(f"fold_*/{checkpoint}"))
        if not folds:
            raise FileNotFoundError(f"{root} has no fold_*/{checkpoint}")
        fold = folds[0]
    file = root / f"fold_{fold}" / checkpoint
    saved = _checkpoint(file)
    name = str(saved.get("init_args", {}).get("configuration") or root.name.rpartition("__")[2])
    configuration = _configuration(plans, name, root / "plans.json")
    names = dataset.get("channel_names", dataset.get("modality", {}))
    channels = tuple(str(names[key]) for key in sorted(names, key=int))
    regions = _regions(dataset, root / "dataset.json")
    outputs = 1 + max(channel for channel, _ in regions.values())
    network = _build(configuration["architecture"], len(channels), outputs, root / "plans.json")
    weights = {
        key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in saved["network_weights"].items()
    }
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{file} does not fit {root / 'plans.json'}: {str(error).splitlines()[-1].strip()[:200]}"
        ) from error
    mirrored = saved.get("inference_allowed_mirroring_axes")
    return NNUNet(
        network.eval(),
        root,
        name,
        tuple(map(int, configuration["patch_size"])),
        tuple(map(float, configuration["spacing"])),
        tuple(map(int, mirrored or ())),
        channels,
        regions,
        tuple(configuration.get("normalization_schemes", ())),
        tuple(map(bool, configuration.get("use_mask_for_norm", ()))),
        plans.get("foreground_intensity_properties_per_channel", {}),
        tuple(map(int, plans.get("transpose_forward", (0, 1, 2)))),
        {
            kind: (
                str(configuration.get(f"resampling_fn_{kind}", "")),
                dict(configuration.get(f"resampling_fn_{kind}_kwargs", {})),
            )
            for kind in ("data", "probabilities")
        },
        any(len(values) > 1 for _, values in regions.values()),
        str(plans.get("image_reader_writer", "")),
        str(dataset.get("file_ending", ".nii.gz")),
    )
