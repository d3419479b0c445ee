"""Settings of the process that have to stand before torch and numpy are loaded."""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = ["tune_process"]

# glibc's malloc.h: parameter of mallopt, and its value.
_KEEP_MEMORY = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 2**28)}


def tune_process() -> None:
    """Let threads that wait sleep, and let glibc keep the memory that tensors give back.

    Waiting OpenMP threads spin by default and take a core from what they wait for. So do those of numpy's and scipy's
    BLAS, which no such setting stops: it gets one thread, as all large products are torch's. glibc hands every large
    tensor back to the system and takes page faults to get it again (docs/performance.md has the figures). What the
    environment sets already (``OMP_WAIT_POLICY``, ``OPENBLAS_NUM_THREADS``, ``MALLOC_*``) stays; other C libraries than
    glibc have no such parameters.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    for name, (parameter, value) in _KEEP_MEMORY.items():
        if not libc.mallopt(parameter, value):
            raise RuntimeError(f"mallopt({name}, {value}) was refused")
