"""Several processes of one test, joined as torchrun would join them."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.ports import free_port

torch.set_num_threads(1)  # a forked process waits forever for the threads that its parent computed with


def together(work: Callable[[int], Any], folder: Path, world: int = 2, fails: bool = False) -> list[Any]:
    """Run ``work(rank)`` in so many forked processes with torchrun's environment; what each returns.

    Args:
        work: what a process does; it joins the others by ``parallel.start("gloo")``.
        folder: for the results.
        world: number of processes.
        fails: expect every process to raise; their last lines are returned.
    """
    port = free_port()
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            try:
                result, status = work(rank), 0
            except BaseException as error:
                result, status = f"{type(error).__name__}: {error}", 1
                if not fails:
                    traceback.print_exc()
            (folder / f"result{rank}").write_bytes(pickle.dumps(result))
            os._exit(status)
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert statuses == [int(fails)] * world, statuses
    return [pickle.loads((folder / f"result{rank}").read_bytes()) for rank in range(world)]
