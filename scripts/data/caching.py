"""A cache of the deterministic part of a pipeline: in memory, and on disk between runs."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset
from monai.transforms import Compose, RandomizableTrait, Transform

import transforms
from scripts.command.files import file_sha256, remove_partial, write_bytes

logger = logging.getLogger(__name__)

FORMAT = "2"  # of an entry: those of another are not found
CHECKSUM = 24  # bytes at the beginning of an entry
FILES = ("image", "label", "foreground")
# What decides how a file is decoded and interpolated, besides our own code.
PACKAGES = ("torch", "monai", "numpy", "scipy", "scikit-image", "pillow", "nibabel", "itk")


class CachedDataset(CacheDataset):
    """MONAI's CacheDataset, whose content is also kept on disk and taken from there by the next run.

    An entry is one file, named by a hash of everything that decides what is in it: the item and the size and times of
    its files, the settings of the deterministic transforms, their source code and the versions of the libraries. If
    any of it changes the entry is not found and the item is processed again. Entries are written under another name and
    then renamed: an interrupted run leaves whole entries only. A damaged one is reported and replaced. Old entries are
    never deleted: delete the folder to be rid of them.

    Args:
        data: items with paths (see ``scripts.data.preprocessing.resolve_items``).
        transform: a Compose; what comes before its first random transform is cached.
        cache_dir: folder for the entries, made if absent; None keeps them in memory only.
        num_workers: threads that fill the cache.
        progress: show a progress bar.

    Raises:
        ValueError: when there are no items, or one cannot be processed.
        OSError: when ``cache_dir`` cannot be written.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Compose,
        cache_dir: str | os.PathLike[str] | None = None,
        num_workers: int = 1,
        progress: bool = True,
    ) -> None:
        if len(data) == 0:
            raise ValueError("no items for a dataset: this part of the datalist is empty")
        self.cache_dir = None if cache_dir is None else Path(os.path.normpath(cache_dir))
        self.found = self.made = 0
        if self.cache_dir is not None:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            for folder in self.cache_dir.iterdir():
                remove_partial(folder, older_than_s=86400)
            self.pipeline_hash = fingerprint(deterministic(transform))
        # Our transforms never write into what they are given, so the cached items need not be copied.
        super().__init__(data, transform, num_workers=num_workers, progress=progress, copy_cache=False)

    def set_data(self, data: Sequence) -> None:
        """Fill the cache with other items."""
        self.found = self.made = 0
        super().set_data(data)
        if self.cache_dir is not None:
            logger.info("cache %s: %d items found, %d made", self.cache_dir, self.found, self.made)

    def prepared(self, index: int) -> Any:
        """A cached item, as it is before the first random transform; read-only."""
        return self._cache[index]

    def augmented(self, item: Any) -> Any:
        """A prepared item after the random transforms."""
        return self.transform(item, start=len(deterministic(self.transform)))

    def _load_cache_item(self, idx: int) -> Any:
        if self.cache_dir is None:
            return super()._load_cache_item(idx)
        name = hashlib.sha256((FORMAT + self.pipeline_hash + describe_item(self.data[idx])).encode()).hexdigest()[:32]
        path = self.cache_dir / name[:2] / f"{name}.item"
        item = read_entry(path)
        if item is None:
            item = super()._load_cache_item(idx)
            write_entry(item, path)
            self.made += 1
        else:
            self.found += 1
        return item


def read_entry(path: Path) -> dict[str, Any] | None:
    """Read an entry; None if there is none, or if it is damaged (which is logged)."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    body = memoryview(content)[CHECKSUM:]
    if content[:CHECKSUM] != _checksum(body):
        logger.warning("cache entry %s is damaged and will be made again", path)
        return None
    end = content.index(b"\n", CHECKSUM)
    head, place = content[CHECKSUM:end], end + 1 - CHECKSUM
    item: dict[str, Any] = {}
    for key, value in json.loads(head).items():
        if isinstance(value, dict):
            array = np.empty(value["shape"], value["dtype"])
            array.reshape(-1).view(np.uint8)[:] = np.frombuffer(body, np.uint8, array.nbytes, place)
            place += array.nbytes
            value = torch.from_numpy(array)
        item[key] = value
    return item


def _checksum(content: Any) -> bytes:
    """Length and weighted sum of the bytes, eight at a time, as 24 hexadecimal digits (a tenth of the time of a CRC).

    Every place has a weight of its own, so that words which changed places are noticed.
    """
    size = len(content)
    words = np.frombuffer(content, np.uint64, count=size // 8)
    rest = int.from_bytes(bytes(content[size - size % 8 :]), "little")
    total = int((words * _weights(len(words).bit_length())[: len(words)]).sum(dtype=np.uint64))
    return f"{size:08x}{(total + rest) % 2**64:016x}".encode()


@lru_cache(maxsize=32)
def _weights(bits: int) -> np.ndarray:
    """Odd numbers, drawn once: the same in every process, and of a shorter array the beginning."""
    return np.random.default_rng(0).integers(0, 2**63, size=2**bits, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def write_entry(item: Any, path: Path) -> None:
    """Write an entry whole or not at all, also when several processes write the same one.

    A line of JSON, then the bytes of the tensors one after another: read five times as fast as ``torch.load`` reads
    safely, and nothing in it can be executed.

    Raises:
        ValueError: when the item is not a dict of plain tensors, texts and numbers.
    """
    if not isinstance(item, dict):
        raise ValueError(f"expected an item that is a dict, got {type(item).__name__}")
    head: dict[str, Any] = {}
    arrays = []
    for key, value in item.items():
        if type(value) not in (torch.Tensor, str, bool, int, float, type(None)) or not isinstance(key, str):
            raise ValueError(
                f"the item holds a {type(value).__name__} under {key!r}; only plain tensors, texts and numbers are "
                "kept on disk: end the deterministic part with Finalized, or leave out cache_dir"
            )
        if isinstance(value, torch.Tensor):
            arrays.append(np.ascontiguousarray(value.numpy()))
            value = {"shape": list(value.shape), "dtype": str(arrays[-1].dtype)}
        head[key] = value
    body = b"".join([json.dumps(head).encode(), b"\n", *(array.tobytes() for array in arrays)])
    write_bytes(_checksum(body) + body, path)


def deterministic(transform: Compose) -> list[Any]:
    """The transforms before the first random one: what MONAI's CacheDataset caches."""
    first = transform.get_index_of_first(lambda t: isinstance(t, RandomizableTrait) or not isinstance(t, Transform))
    return list(transform.transforms[:first])


def describe_item(item: Mapping[str, Any]) -> str:
    """One line of everything about an item that decides what the pipeline makes of it, its files' state included.

    A file counts by its path, size and times of modification and change: the latter also moves when content is
    replaced under an old modification time.

    Raises:
        ValueError: when a value has no lasting description.
    """
    facts = {key: describe_setting(value) for key, value in item.items() if key not in FILES}
    for key in FILES:
        value = item.get(key)
        if isinstance(value, (str, os.PathLike)):
            facts[key] = _state(Path(value))
        elif isinstance(value, (list, tuple)):
            facts[key] = [_state(Path(path)) for path in value]
        elif value is not None:
            facts[key] = describe_setting(value)
    return json.dumps(facts, sort_keys=True)


def _state(path: Path) -> Any:
    """Path, size and times of a file, or of all files of a folder (DICOM)."""
    try:
        paths = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        stats = [(str(p), p.stat()) for p in paths]
    except OSError as error:
        raise ValueError(f"file {path} cannot be read: {error.strerror}") from error
    return [os.path.abspath(path), [[n, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for n, s in stats]]


def fingerprint(steps: Sequence[Any]) -> str:
    """Hash of transforms: their settings, their source code, and the versions of the libraries under them.

    Raises:
        ValueError: when a setting has no lasting description.
    """
    modules = {cls.__module__ for step in steps for cls in type(step).__mro__}
    local_modules = [m for m in modules if not m.startswith(("monai.", "builtins", "abc", "typing"))]
    folder = Path(inspect.getfile(transforms)).parent
    files = {str(path) for path in folder.glob("*.py")}
    files |= {str(sys.modules[m].__file__) for m in local_modules if getattr(sys.modules.get(m), "__file__", None)}
    facts = {
        "settings": [describe_setting(step) for step in steps],
        "code": sorted(_file_hash(path, os.stat(path).st_mtime_ns) for path in files),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=256)
def _file_hash(path: str, _modified_ns: int) -> str:
    return file_sha256(path)


def describe_setting(value: Any) -> Any:
    """Something JSON can write that is equal exactly if two settings are.

    Args:
        value: a number, text, array, type, function at a module's top, collection of such, or an object (a transform),
            which counts by its class and attributes; random states do not count.

    Raises:
        ValueError: for a lambda or another object that looks different in every process.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value if not isinstance(value, Enum) else str(value)
    if isinstance(value, (Enum, os.PathLike, torch.dtype, torch.device, np.dtype, slice)):
        return repr(value)
    if isinstance(value, np.generic):
        return [str(value.dtype), value.item()]
    if isinstance(value, Mapping):
        return {"mapping": sorted(([str(key), describe_setting(v)] for key, v in value.items()), key=str)}
    if isinstance(value, (list, tuple)):
        return [describe_setting(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return {"set": sorted((describe_setting(v) for v in value), key=str)}
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    if inspect.isroutine(value) or isinstance(value, type):
        name = f"{value.__module__}.{value.__qualname__}"
        if "<" in name:
            raise ValueError(
                f"{name} cannot be distinguished from another by name, so its results cannot be cached on disk"
            )
        return name
    if isinstance(value, np.random.RandomState):
        return "random"
    if not hasattr(value, "__dict__"):
        raise ValueError(f"{type(value).__name__} {value!r} has no lasting description: its results cannot be cached")
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return {"object": kind, "attributes": {k: describe_setting(v) for k, v in sorted(vars(value).items())}}
