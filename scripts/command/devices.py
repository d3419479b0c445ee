"""The device that was asked for: is it there?"""

from __future__ import annotations

import torch

__all__ = ["check_device", "chosen_device"]


def chosen_device(device: str | None) -> torch.device:
    """The device of ``--device``; None: CUDA where there is one, else the CPU.

    Raises:
        ValueError: see `check_device`.
    """
    return check_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def check_device(device: str | torch.device) -> torch.device:
    """The device, after something was computed on it.

    Raises:
        ValueError: when this machine has no such device, or it computes nothing; says which there are.
    """
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    try:
        chosen = torch.device(device)
        if chosen.type == "meta":
            raise RuntimeError("it holds no values")
        torch.ones(1, device=chosen).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {device} cannot be used on this machine; it has {', '.join(there)}") from error
    return chosen
