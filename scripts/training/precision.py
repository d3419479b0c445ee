"""The precision of training: which one pays on a device, and what a choice that does not costs."""

from __future__ import annotations

import logging
import platform
import time

import torch
from torch import nn

__all__ = ["PRECISIONS", "autocast_dtype", "check_precision", "choose_precision", "native_bfloat16", "scales_gradients"]

logger = logging.getLogger(__name__)

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
PRECISIONS = ("auto", *DTYPES)


def native_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16: of processors those with AVX512-BF16 or AMX, or oneDNN's word for it.

    Others take bfloat16 too, and emulate it many times slower than float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_precision(precision: str, device: torch.device | str) -> tuple[str, str]:
    """The precision that is trained in, and why in words.

    Args:
        precision: of `PRECISIONS`; "auto" is bfloat16 where the device computes in it, float16 on a GPU that does not,
            else float32.
        device: that is trained on.

    Raises:
        ValueError: when precision is another word, or the device cannot train in it.
    """
    device = torch.device(device)
    check_precision(precision, device)
    if precision != "auto":
        return precision, "as asked for"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if native_bfloat16(device):
            return "bfloat16", f"{name} computes in it"
        return "float16", f"{name} has no bfloat16"
    if native_bfloat16(device):
        return "bfloat16", "this processor has instructions for it"
    if device.type == "cpu":
        return "float32", "this processor has neither AVX512-BF16 nor AMX and would emulate bfloat16"
    return "float32", f"autocast is not tried on {device.type}"


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Data type of autocast on a device; None for float32. What takes effect is logged, and what an emulation costs.

    Raises:
        ValueError: when precision is another word, or the device cannot train in it.
    """
    chosen, reason = choose_precision(precision, device)
    if precision == "auto":
        logger.info("precision: %s on %s, as %s", chosen, device, reason)
    elif chosen != "float32":
        logger.info("precision: %s autocast on %s, weights and loss in float32", chosen, device)
    if chosen == "bfloat16" and device.type == "cpu" and not native_bfloat16(device):
        logger.warning(
            "precision: this processor emulates bfloat16, a convolution took %.0f times as long as in float32; "
            "--precision auto takes the faster one",
            emulation_factor(),
        )
    return DTYPES[chosen]


def emulation_factor(size: int = 80, channels: int = 32, repeats: int = 3) -> float:
    """How many times as long a 3x3 convolution takes in bfloat16 as in float32 on this processor, measured now."""
    layer, image = nn.Conv2d(channels, channels, 3, padding=1), torch.rand(1, channels, size, size)
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        work, data = layer.to(dtype), image.to(dtype)
        taken = []
        with torch.no_grad():
            for _ in range(repeats + 1):
                start = time.perf_counter()
                work(data)
                taken.append(time.perf_counter() - start)
        seconds.append(min(taken[1:]))
    return seconds[1] / seconds[0]


def check_precision(precision: str, device: torch.device) -> None:
    """See that a device can train in a precision.

    Raises:
        ValueError: when precision is another word, or the device cannot train in it.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "float16" and device.type == "cpu":
        raise ValueError(
            "precision float16 needs a GPU: its gradients underflow without loss scaling, which MONAI's engines do on "
            "CUDA alone; use bfloat16 or float32 on the CPU"
        )
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError(f"{torch.cuda.get_device_name(device)} has no bfloat16; use float16 or float32")


def scales_gradients(precision: str, device: torch.device | str) -> bool:
    """Whether the trainer has to scale the loss: what its ``amp`` is for, float16 alone needs it."""
    return choose_precision(precision, device)[0] == "float16"
