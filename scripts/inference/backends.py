"""What runs the network's passes: torch, or ONNX Runtime, which is faster where images come one by one on a CPU.

The other outputs than the passes' stay torch's: explanations, interventions and the views of the uncertainty.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scripts.command.optional import needed
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.runs.checkpoint_files import written_state

__all__ = ["BACKENDS", "OPSET", "TOLERANCE", "OnnxNetwork", "backend_of", "example", "export_package", "trace_onnx"]

BACKENDS = ("torch", "onnxruntime")
OPSET = 17
TOLERANCE = 1e-4  # of an output, between torch and ONNX Runtime, as a share of its largest value where that is above 1


def export_package(name: str) -> Any:
    """A package of the extra ``export``.

    Raises:
        ValueError: when it is not installed.
    """
    return needed(name, f"the package {name} is not installed; install the export extra: pip install '.[export]'")


def example(channels: int, size: Sequence[int], batch: int, seed: int = 0) -> Tensor:
    """Images like prepared ones: normal in the foreground, exactly 0 in air, (batch, channels, *size)."""
    image = torch.randn((batch, channels, *size), generator=torch.Generator().manual_seed(seed))
    for axis, n in enumerate(size):
        image.narrow(2 + axis, 0, n // 6).zero_()
        image.narrow(2 + axis, n - n // 8, n // 8).zero_()
    return image


def trace_onnx(module: nn.Module, image: Tensor, names: Sequence[str], place: Any) -> None:
    """Write a module with one tensor in (``image``) and several out (``names``) as ONNX, of any batch.

    Args:
        module: in evaluation mode.
        image: that is traced.
        names: of what comes out.
        place: path, or a file in memory.
    """
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter that traces: the newer one follows values into the checks of the input and refuses. Its folding
        # of constants drops a node that another one needs (torch 2.13); ONNX Runtime folds on loading.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (image,), place, dynamo=False, opset_version=OPSET, do_constant_folding=False,
            input_names=["image"], output_names=list(names),
            dynamic_axes={name: {0: "batch"} for name in ["image", *names]},
        )  # fmt: skip


class _Pass(nn.Module):
    """Outputs of a network, and of its encoder's first level, which the score of the scope is of."""

    def __init__(self, network: MultiTaskDynUNet) -> None:
        super().__init__()
        self.network = network
        parts = {"seg": network.has_segmentation, "cls": True, "evidence": network.has_evidence}
        self.outputs = [name for name, there in parts.items() if there]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        levels, masks = self.network.encode(image)
        outputs = self.network.outputs(levels, masks, "seg" in self.outputs)
        return (*(outputs[name] for name in self.outputs), levels[0], *masks[:1])


class OnnxNetwork:
    """A network whose passes ONNX Runtime runs on the CPU, image by image; all else is the network's own.

    It is traced when it is first asked, and again after its weights or its prevalence were written to, and compared
    with torch each time.

    Args:
        network: in evaluation mode, on the CPU.
        size: of an image on the network's grid.

    Raises:
        ValueError: when a package is missing, or the network takes its images in windows, mirrored or on another
            device; when asked: when an output differs from torch's by more than `TOLERANCE`.
    """

    def __init__(self, network: MultiTaskDynUNet, size: Sequence[int]) -> None:
        for package in ("onnx", "onnxruntime"):
            export_package(package)
        if network.mirror_axes:
            raise ValueError("backend onnxruntime runs images as they are; mirror_axes needs torch")
        if network.window is not None:
            raise ValueError("backend onnxruntime takes images whole, and this network takes windows; use torch")
        if (device := next(network.parameters()).device).type != "cpu":
            raise ValueError(f"backend onnxruntime runs on the CPU, and the device is {device}; use torch")
        self._network, self._size = network, tuple(size)
        self._begin()

    def _begin(self) -> None:
        self._session: Any = None
        self._written: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._network, name)

    def __getstate__(self) -> dict[str, Any]:
        return {"_network": self._network, "_size": self._size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    @property
    def in_torch(self) -> MultiTaskDynUNet:
        """The network itself."""
        return self._network

    def encode(self, x: Tensor, foreground: Tensor | None = None) -> tuple[list[Tensor], list[Tensor], Any]:
        """First level and mask of `MultiTaskDynUNet.encode`, and all that `outputs` returns: it is one pass.

        Raises:
            ValueError: when a foreground is given, or the image is not on the network's grid.
        """
        if foreground is not None:
            raise ValueError("backend onnxruntime reads the foreground off the image; use torch to hold one fixed")
        if tuple(x.shape[2:]) != self._size:
            raise ValueError(f"backend onnxruntime takes images of {self._size}, got {tuple(x.shape[2:])}")
        session, names = self._current()
        # Image by image: batches take longer here (docs/performance.md).
        parts = [session.run(None, {"image": image[None].numpy()}) for image in x]
        values = [torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)]
        outputs = dict(zip(names, values, strict=False))
        return [values[len(names)]], values[len(names) + 1 :], outputs

    def outputs(self, levels: list[Tensor], masks: list[Tensor], values: dict[str, Tensor]) -> dict[str, Tensor]:
        """What `MultiTaskDynUNet.outputs` returns, of what `encode` returned."""
        return values

    def multitask(self, x: Tensor) -> dict[str, Tensor]:
        """What `MultiTaskDynUNet.multitask` returns of images alone."""
        return self.encode(x)[2]

    def _current(self) -> tuple[Any, list[str]]:
        with self._lock:
            network = self._network
            written = written_state(network)
            if self._session is None or written != self._written:
                self._session, self._written = self._traced(), written
            return self._session

    def _traced(self) -> tuple[Any, list[str]]:
        runtime = export_package("onnxruntime")
        module = _Pass(self._network).eval()
        content = BytesIO()
        names = [*module.outputs, "level", "mask"]
        image = example(self._network.in_channels, self._size, 2)
        with torch.no_grad():
            expected = module(image)
        trace_onnx(module, image, names[: len(expected)], content)
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others have the cores meanwhile
        session = runtime.InferenceSession(content.getvalue(), options, providers=["CPUExecutionProvider"])
        for name, ours, theirs in zip(names, expected, session.run(None, {"image": image.numpy()}), strict=False):
            worst = float(np.abs(ours.numpy() - theirs).max()) / max(1.0, float(ours.abs().max()))
            if not worst <= TOLERANCE:
                raise ValueError(f"output {name} of onnxruntime differs by {worst:.2g}, at most {TOLERANCE}; use torch")
        return session, module.outputs


def backend_of(name: str, network: MultiTaskDynUNet, size: Sequence[int]) -> tuple[Any, str]:
    """What runs a network's passes, and what results call it.

    Raises:
        ValueError: when there is no such backend, or it cannot run this network.
    """
    if name == "torch":
        return network, name
    if name != "onnxruntime":
        raise ValueError(f"no backend {name!r}; there are {', '.join(BACKENDS)}")
    return OnnxNetwork(network, size), f"{name} {export_package(name).__version__}"
