"""Several processes, one a device, started by torchrun: what they share and how their sums and gradients agree."""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

logger = logging.getLogger(__name__)

OVERLAY = "configs/multi_gpu_train.yaml"


def rank() -> int:
    """Number of this process, from 0, as torchrun gives it; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """Number of processes; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Whether this is the process that writes files."""
    return rank() == 0


def device() -> torch.device:
    """Device of this process: the GPU of its local rank, else the CPU.

    Raises:
        ValueError: when the machine has fewer GPUs than processes.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise ValueError(
            f"process {local} of this machine has no GPU, there are {torch.cuda.device_count()}: start as many "
            "processes as GPUs (--nproc_per_node), or give --backend gloo and --device cpu"
        )
    return torch.device("cuda", local)


def start(backend: str | None, timeout_minutes: float = 30.0) -> None:
    """Join the processes that torchrun started; nothing to do for a single one.

    Args:
        backend: of ``torch.distributed``, "nccl" or "gloo"; None where the config is for one process.
        timeout_minutes: how long a process waits for the others, e.g. while one fills the cache.

    Raises:
        ValueError: when there are several processes and the config is for one: each would train by itself and write
            over the files of the others; or when torchrun is to restart the processes of several machines with one
            store for all rounds, see `_store`.
    """
    if world() == 1:
        return
    if backend is None:
        raise ValueError(
            f"torchrun started {world()} processes, and the config is for one: add {OVERLAY} to the config files "
            f"(python -m scripts train: --overlay {OVERLAY})"
        )
    if dist.is_initialized():
        return
    if backend == "nccl":
        torch.cuda.set_device(device())
    timeout = timedelta(minutes=timeout_minutes)
    store = _store(timeout)
    if store is None:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=store, rank=rank(), world_size=world(), timeout=timeout)
    atexit.register(stop)
    if not first():
        logging.getLogger().setLevel(logging.WARNING)
    logger.info("%d processes, backend %s", world(), backend)


def _store(timeout: timedelta) -> dist.Store | None:
    """Where the processes find each other after a restart; None: as torch does it by itself.

    torchrun keeps one store for the processes of all its rounds (torch 2.13: `dynamic_rendezvous.py` makes it once,
    and `rendezvous.py` sets no prefix, as if each round had its own). After a restart a process may read the address
    of one that is dead, and is refused or waits for it. So each round of one machine gets its own part of the store.
    Of several machines every agent counts its restarts by itself, and there is no common number of the round.
    """
    of_all_rounds = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not of_all_rounds or int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) == 0:
        return None
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "torchrun restarts processes with the addresses of the dead ones in its store; on every machine set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 and give --rdzv_backend=c10d, or --max_restarts=0"
        )
    shared = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world(), is_master=False, timeout=timeout
    )
    return dist.PrefixStore(f"round_{os.environ['TORCHELASTIC_RESTART_COUNT']}", shared)


def stop() -> None:
    """Leave the group of processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def summed(local: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over the processes, with the gradient that makes averaged gradients those of one process.

    The value is the sum. Backward hands each process ``world`` times its own share of the gradient, which
    DistributedDataParallel's mean over the processes then divides by: what is left is the gradient of the function of
    the whole sum, as if one process had computed it. Every process has to call it, with the same shape.
    """
    if not dist.is_initialized():
        return local
    total = local.detach().clone()
    dist.all_reduce(total)
    return total + world() * (local - local.detach())


def gathered(values: Sequence[Any]) -> list[Any]:
    """The values of all processes in the order that one would have had, item k being of process ``k % world``."""
    if not dist.is_initialized():
        return list(values)
    shares: list[Any] = [None] * world()
    dist.all_gather_object(shares, list(values))
    longest = max(len(share) for share in shares)
    return [share[k] for k in range(longest) for share in shares if k < len(share)]


def wrapped(step: nn.Module, on: torch.device | str) -> nn.Module:
    """The step as several processes train it: gradients averaged; the step itself for one process.

    Call the result, never a method of ``result.module``: that leaves the gradients of each process its own, without a
    word (see ``scripts.training.handlers.SameGradients``). Parts without a gradient in one process (a decoder
    without masks) are found at each step. Freeze before wrapping, as `MultiTaskStep` does.
    """
    if not dist.is_initialized():
        return step
    local_device = torch.device(on)
    devices = [local_device.index if local_device.index is not None else 0] if local_device.type == "cuda" else None
    # With the classifier alone every trained parameter is used in every step, and nothing has to be looked for.
    always_used = getattr(step, "classification", False) and not getattr(step, "segmentation", True)
    return DistributedDataParallel(step, device_ids=devices, find_unused_parameters=not always_used)
