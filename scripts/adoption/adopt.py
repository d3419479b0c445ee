"""Take over a segmentation network of your own: a stock DynUNet checkpoint becomes the result of stage 1.

    python -m scripts adopt mine.pt --run_dir runs/adopted --spatial_size 256 256
    python -m scripts adopt mine.pt --run_dir runs/adopted --spatial_size 256 256 --foreground_norm \
        --train --dataset_dir DIR --datalist_file LIST.json          # stages 2 and 3 at once
    python -m scripts adopt mine.pt --explain image.nii.gz --out runs/explained --spatial_size 256 256

Channels, kernels and strides are read off the weights; encoder and decoder keep their names and values, the evidence
head is added untrained. Written are ``stage1_segmentation``, which counts as finished and which stage 2 starts from,
and ``adopted.yaml``, the overlay that describes the network. Stages 2 and 3 at any later time::

    python -m scripts train --run_dir runs/adopted --overlay runs/adopted/adopted.yaml \
        --dataset_dir DIR --datalist_file LIST.json
"""

from __future__ import annotations

import argparse
import logging
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from scripts.command.files import file_sha256, write_json, write_text
from scripts.command.verbs import Outcome
from scripts.explain.maps import scale_maps, upsample
from scripts.explain.methods import explain
from scripts.explain.targets import SegmentationRegion
from scripts.inference.pipeline import slices_first
from scripts.inference.result_names import result_name
from scripts.inference.results import save_nifti
from scripts.inference.scans import PrepareScand, Scan, to_slice_grid
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.pictures import overlays
from scripts.runs import folder as runs
from scripts.runs.provenance import circumstances
from scripts.training.checkpoints import WEIGHTS, save_atomic
from scripts.training.train import train

logger = logging.getLogger(__name__)

FIRST = "input_block.conv1.conv.weight"
HEAD = ("head.", "threshold", "temperature", "fixed_part", "mask_threshold")


def read_stock(path: str | Path) -> dict[str, Tensor]:
    """State dict of a stock DynUNet from a checkpoint of any of the usual forms.

    The state dict may lie under "state_dict", "model", "network" or the like, and its keys may carry a prefix
    ("module.", "net.", ...). What a DynUNet keeps twice (``skip_layers``) is left out, and so are the heads of deep
    supervision.

    Raises:
        FileNotFoundError: when the file is absent.
        ValueError: when it holds no DynUNet, or one with residual blocks or batch normalization.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"checkpoint {path} cannot be read ({type(error).__name__}); it must hold tensors in dictionaries, as "
            "torch.save(network.state_dict(), ...) writes them, with nothing but plain values beside"
        ) from error
    match = _find(content)
    if match is None:
        raise ValueError(f"checkpoint {path} holds no DynUNet: no key ends in {FIRST!r}")
    state, prefix = match
    stock = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    stock = {k: v for k, v in stock.items() if not k.startswith(("skip_layers.", "heads.", "deep_supervision_heads."))}
    if any(".conv3." in key or ".norm3." in key for key in stock):
        raise ValueError(
            f"checkpoint {path} is a DynUNet with residual blocks (res_block=True): the blocks here carry the "
            "foreground to each normalization and have no shortcut; train it with res_block=False"
        )
    if any(key.endswith("running_mean") for key in stock):
        raise ValueError(
            f"checkpoint {path} has batch normalization, whose statistics are those of its training; expected instance "
            "normalization, norm_name='instance'"
        )
    return stock


def _find(content: Any, depth: int = 0) -> tuple[Mapping[str, Any], str] | None:
    """The dictionary with a DynUNet's keys, and the prefix before them."""
    if not isinstance(content, Mapping) or depth > 2:
        return None
    for key in content:
        if isinstance(key, str) and key.endswith(FIRST) and isinstance(content[key], Tensor):
            return content, key.removesuffix(FIRST)
    for value in content.values():
        match = _find(value, depth + 1)
        if match is not None:
            return match
    return None


def network_definition(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of a DynUNet read off its weights.

    The strides of the encoder are those by which the decoder enlarges; that of the first block is 1, as it is wherever
    the output has the size of the input.

    Args:
        state: of `read_stock`.

    Returns:
        spatial_dims, in_channels, out_channels, kernel_size, strides, upsample_kernel_size, filters.
    """
    downs = sorted({int(key.split(".")[1]) for key in state if key.startswith("downsamples.")})
    ups = sorted({int(key.split(".")[1]) for key in state if key.startswith("upsamples.")})
    blocks = ["input_block", *(f"downsamples.{i}" for i in downs), "bottleneck"]
    missing = [block for block in blocks if f"{block}.conv1.conv.weight" not in state]
    if missing or len(ups) != len(blocks) - 1 or "output_block.conv.conv.weight" not in state:
        raise ValueError(f"not the keys of a DynUNet: {len(blocks)} encoder and {len(ups)} decoder blocks, {missing}")
    first = [state[f"{block}.conv1.conv.weight"] for block in blocks]
    up = [list(state[f"upsamples.{i}.transp_conv.conv.weight"].shape[2:]) for i in reversed(ups)]
    dims = first[0].ndim - 2
    return {
        "spatial_dims": dims,
        "in_channels": first[0].shape[1],
        "out_channels": state["output_block.conv.conv.weight"].shape[0],
        "kernel_size": [list(weight.shape[2:]) for weight in first],
        "strides": [[1] * dims, *up],
        "upsample_kernel_size": up,
        "filters": [weight.shape[0] for weight in first],
    }


def two_channels(state: Mapping[str, Tensor], tumor_channel: int | None) -> dict[str, Tensor]:
    """The same network with an output for background and one for tumor, as stage 3 trains them.

    One output channel (a sigmoid) becomes two: background 0, tumor the logit; softmax gives the same probability. Of
    three or more, channel 0 and ``tumor_channel`` are kept.

    Raises:
        ValueError: when there are three or more channels and none, or none of them, is chosen.
    """
    result = dict(state)
    weight, bias = (f"output_block.conv.conv.{name}" for name in ("weight", "bias"))
    count = len(state[weight])
    if count == 1:
        for key in (weight, bias):
            result[key] = torch.cat([torch.zeros_like(state[key]), state[key]])
    elif tumor_channel is not None or count > 2:
        if tumor_channel is None or not 0 < tumor_channel < count:
            raise ValueError(
                f"the network has {count} output channels and the stages train background and tumor: give "
                f"tumor_channel, 1 to {count - 1}, got {tumor_channel}"
            )
        for key in (weight, bias):
            result[key] = state[key][[0, tumor_channel]]
    return result


def adopt(
    checkpoint: str | Path,
    num_classes: int = 2,
    foreground_norm: bool = False,
    tumor_channel: int | None = None,
    evidence_levels: int = 2,
    evidence_channels: int = 64,
    seed: int = 0,
) -> tuple[MultiTaskDynUNet, dict[str, Any]]:
    """Network with the weights of a stock DynUNet and a new evidence head.

    Args:
        checkpoint: see `read_stock`.
        num_classes: of the head, class 0 "no tumor".
        foreground_norm: normalization that ignores air, in place of the stock one. It changes what the network puts out
            until stage 3 has trained it.
        tumor_channel: see `two_channels`.
        evidence_levels, evidence_channels: of the head, see `MultiTaskDynUNet`.
        seed: of the head's weights.

    Returns:
        the network and its ``network_def``.

    Raises:
        ValueError: when keys or shapes do not fit.
    """
    state = two_channels(read_stock(checkpoint), tumor_channel)
    definition = {
        **network_definition(state),
        "num_classes": num_classes,
        "normalization": "foreground" if foreground_norm else "instance",
        "head": "evidence",
        "evidence_levels": evidence_levels,
        "evidence_channels": evidence_channels,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MultiTaskDynUNet(**definition)
    initial = network.state_dict()
    if not any(".norm" in key for key in state):  # instance normalization without scale and shift: 1 and 0
        state |= {key: value for key, value in initial.items() if re.search(r"\.norm\d\.(weight|bias)$", key)}
    missing = sorted(k for k in initial.keys() - state.keys() if not k.startswith(HEAD))
    unexpected = sorted(state.keys() - initial.keys())
    shapes = sorted(k for k in initial.keys() & state.keys() if initial[k].shape != state[k].shape)
    if missing or unexpected or shapes:
        raise ValueError(
            f"checkpoint {checkpoint} does not fit a DynUNet of filters {definition['filters']} and strides "
            f"{definition['strides']}: missing keys {missing[:3]}, unexpected {unexpected[:3]}, "
            f"other shapes {shapes[:3]}"
        )
    network.load_state_dict({**initial, **{key: value.to(initial[key].dtype) for key, value in state.items()}})
    return network, {"_target_": "scripts.networks.MultiTaskDynUNet", **definition, "num_classes": "@num_classes"}


def write_run(
    network: MultiTaskDynUNet,
    definition: Mapping[str, Any],
    spatial_size: Sequence[int],
    run_dir: str | Path,
    checkpoint: str | Path,
) -> Path:
    """Write stage 1 as if it had been trained, its manifest naming the checkpoint, and the overlay of the network.

    Returns:
        the overlay, to be given to every stage.

    Raises:
        ValueError: when the size does not fit the network, or the folder holds a trained stage.
    """
    _check_size(network, spatial_size)
    run = Path(run_dir)
    taken = [stage for stage in runs.STAGES if (run / stage).exists()]
    if taken:
        raise ValueError(f"{run} holds {', '.join(taken)} already; choose another run_dir")
    values = {"spatial_size": [int(n) for n in spatial_size], "network_def": dict(definition)}
    stage = run / runs.STAGES[0]
    save_atomic(network.state_dict(), stage / WEIGHTS)
    # What it can do without further training, for evaluation and for the stages after it.
    trained = {"train_segmentation": True, "train_classification": False, "initial_weights": None}
    config = {"stage": stage.name, **values, "num_classes": network.num_classes, **trained}
    write_text(yaml.safe_dump(config, sort_keys=False), stage / runs.CONFIG)
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    manifest = {
        "started": now,
        "finished": now,
        "adopted": str(checkpoint),
        "adopted_sha256": file_sha256(checkpoint),
        "seed": 0,
        **circumstances(),
        "datalist": None,
        "datalist_sha256": None,
        "training_seconds": 0.0,
        "best_metric": None,
        "best_epoch": None,
    }
    write_json(manifest, stage / runs.MANIFEST)
    return write_text(
        "# Overlay of configs/train.yaml and a stage: the adopted network.\n" + yaml.safe_dump(values, sort_keys=False),
        run / runs.ADOPTED,
    )


def _check_size(network: MultiTaskDynUNet, spatial_size: Sequence[int]) -> None:
    stride = network.total_stride
    if len(spatial_size) != len(stride) or any(n % s for n, s in zip(spatial_size, stride, strict=True)):
        raise ValueError(
            f"spatial_size must be {len(stride)} multiples of the total stride {stride}, got {list(spatial_size)}"
        )


def explain_segmentation(
    network: MultiTaskDynUNet,
    image: str | Path | Sequence[str],
    spatial_size: Sequence[int],
    out: str | Path,
    method: str = "gradcam",
    layer: str = "decoder_last",
    index: int | None = None,
) -> list[Path]:
    """Explain where the mask comes from, without any training: heatmap of the tumor logit in the predicted mask.

    Args:
        network: adopted, with the stock normalization, so that it is what the checkpoint was.
        image: file, or files that are channels.
        spatial_size: input size of the network.
        out: folder of ``<name>[_s<slice>]_<method>_<layer>.nii.gz`` on the file's grid and ``.png``.
        method, layer: see `scripts.explain.methods.explain`.
        index: slice of a volume; None: the one with the largest predicted mask.

    Returns:
        the files written.
    """
    _check_size(network, spatial_size)
    data: dict[Any, Any] = {"image": image if isinstance(image, list) else str(image)}
    if index is not None:
        data["slice"] = index
    item = PrepareScand(spatial_size, in_channels=network.in_channels)(data)
    scan, stack = Scan.of(item["image"]), slices_first(item["image"])
    network.eval()
    with torch.no_grad():
        predicted = torch.cat([network(part).argmax(1) for part in stack.split(8)]) > 0
    chosen = int(predicted.flatten(1).sum(1).argmax())
    masks = item["foreground"].movedim(-1, 0) if scan.plane else item["foreground"][None]
    explanation = explain(
        network, stack[chosen : chosen + 1].contiguous(), method, layer, SegmentationRegion(),
        foreground=masks[chosen : chosen + 1].float(), foreground_kwarg="foreground",
    )  # fmt: skip
    (_, used), value = next(iter(explanation.maps.items()))
    shown, empty = scale_maps(upsample(value, stack.shape[2:]))
    values = [torch.zeros(scan.slice_shape) for _ in scan.placements]
    values[chosen] = to_slice_grid(shown[0], scan.placements[chosen], scan.slice_shape)[0]
    name = f"{result_name(data, scan.source)}_{method}_{used.replace('.', '_')}"
    affine = np.asarray(scan.affine)
    written = [save_nifti(scan.restore(values).numpy(), affine, Path(out) / f"{name}.nii.gz")]
    if len(scan.slice_shape) == 2:
        picture = overlays.panel(
            stack[chosen, :1].numpy(), shown[0].numpy(), predicted=predicted[chosen : chosen + 1].numpy(),
            caption=f"{method} at {used}, tumor logit in the predicted mask" + (
                f", {scan.plane} slice {scan.placements[chosen].index}" if scan.plane else ""
            ),
        )  # fmt: skip
        written.append(overlays.save(picture, Path(out) / f"{name}.png"))
    if bool(empty[0]):
        logger.warning("the map is empty: nothing is predicted, or nothing speaks for it")
    return written


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``adopt``."""
    run, data = arguments.run_dir, (arguments.dataset_dir, arguments.datalist_file)
    if not run and not arguments.explain:
        raise ValueError("nothing to do: give --run_dir to adopt the network, --explain IMAGE to explain it, or both")
    if arguments.train and not (run and all(data)):
        raise ValueError("--train needs --run_dir, --dataset_dir and --datalist_file")
    written: list[Path] = []
    if arguments.explain:
        network, _ = adopt(arguments.checkpoint, tumor_channel=arguments.tumor_channel)
        written += explain_segmentation(
            network, arguments.explain, arguments.spatial_size, arguments.out, arguments.method, arguments.layer,
            arguments.slice,
        )  # fmt: skip
    if not run:
        return Outcome(written=written)
    classes = arguments.num_classes or 2
    if arguments.datalist_file:
        classes = runs.num_classes(runs.read_datalist(arguments.datalist_file, arguments.dataset_dir))
        if arguments.num_classes not in (None, classes):
            raise ValueError(f"--num_classes {arguments.num_classes}: {arguments.datalist_file} has {classes} classes")
    network, definition = adopt(
        arguments.checkpoint, classes, arguments.foreground_norm, arguments.tumor_channel, arguments.evidence_levels,
        arguments.evidence_channels,
    )  # fmt: skip
    overlay = write_run(network, definition, arguments.spatial_size, run, arguments.checkpoint)
    text = f"adopted: filters {definition['filters']}, strides {definition['strides']}"
    if arguments.train:
        train(
            run, [overlay, *arguments.overlay], runs.STAGES[1:],
            dataset_dir=str(arguments.dataset_dir), datalist_file=str(arguments.datalist_file),
        )  # fmt: skip
    else:
        if not (arguments.num_classes or arguments.datalist_file):
            text += "\nthe head has 2 classes; for a list with more, adopt with --num_classes or --datalist_file"
        text += f"\nstages 2 and 3 are trained by: {next_command(overlay, *data)}"
    return Outcome(text, [*written, overlay])


def next_command(overlay: Path, dataset_dir: Path | None, datalist_file: Path | None) -> str:
    """What trains stages 2 and 3 of an adopted network, as a shell takes it but for placeholders."""
    data = [
        f"--{name} {placeholder if value is None else shlex.quote(str(value))}"
        for name, value, placeholder in (
            ("dataset_dir", dataset_dir, "DIR"),
            ("datalist_file", datalist_file, "LIST.json"),
        )
    ]
    run, file = shlex.quote(str(overlay.parent)), shlex.quote(str(overlay))
    return " ".join(["python -m scripts train --run_dir", run, "--overlay", file, *data])
