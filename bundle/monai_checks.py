"""MONAI's own checks of a released bundle, run from its folder with nothing of the repository on the path.

python bundle/monai_checks.py dist/brain_tumor_lens_segmentation
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai import bundle
from monai.bundle import ConfigParser, ConfigWorkflow

META, INFERENCE, TRAIN, SCHEMA = (
    "configs/metadata.json",
    "configs/inference.yaml",
    "configs/train.yaml",
    "docs/metadata.schema.json",
)
MAX_BYTES = 25 * 2**20
TOLERANCE = 1e-4
# The model zoo's rules: what a bundle holds, https://github.com/Project-MONAI/model-zoo/blob/dev/CONTRIBUTING.md
REQUIRED = ("LICENSE", META, INFERENCE, TRAIN, "docs/README.md", "docs/data_license.txt", "models/model.pt")


class Failure(Exception):
    """What a check found wrong, in one sentence."""


def files() -> str:
    """The files that the model zoo asks for are there, and none is larger than 25 MB."""
    missing = [name for name in REQUIRED if not Path(name).is_file()]
    if missing:
        raise Failure(f"missing: {', '.join(missing)}")
    sizes = {path: path.stat().st_size for path in Path().rglob("*") if path.is_file()}
    large = [f"{path} ({size / 2**20:.1f} MB)" for path, size in sizes.items() if size > MAX_BYTES]
    if large:
        raise Failure(f"larger than 25 MB: {', '.join(large)}")
    return f"{len(sizes)} files, the largest {max(sizes.values()) / 2**20:.1f} MB"


def changelog() -> str:
    """The version is in the changelog and newest there; authors and license are named."""
    meta = json.loads(Path(META).read_text(encoding="utf-8"))
    version, entries = meta.get("version"), list(meta.get("changelog", {}))
    if version not in entries or max(entries, key=lambda v: [int(n) for n in v.split(".")]) != version:
        raise Failure(f"version {version!r} is not the newest entry of the changelog, which has {entries}")
    unnamed = [key for key in ("authors", "copyright", "license", "description") if not meta.get(key)]
    if unnamed:
        raise Failure(f"metadata.json does not say: {', '.join(unnamed)}")
    return f"version {version} by {meta['authors']}"


def verify_metadata() -> str:
    """`monai.bundle verify_metadata`, against the schema that lies beside."""
    bundle.verify_metadata(meta_file=META, filepath=SCHEMA)
    return f"fits {SCHEMA}"


def verify_net_in_out() -> str:
    """`monai.bundle verify_net_in_out`."""
    bundle.verify_net_in_out(net_id="network_def", meta_file=META, config_file=INFERENCE, n=4)
    return "shapes as metadata.json says"


def network() -> Any:
    """The network of ``inference.yaml`` with the weights, keys compared strictly."""
    parser = ConfigParser()
    parser.read_config(INFERENCE)
    return parser.get_parsed_content("network").eval()


def sample_input() -> torch.Tensor:
    """Noise of the size that the config names, with an air border."""
    parser = ConfigParser()
    parser.read_config(INFERENCE)
    size = list(parser.get_parsed_content("spatial_size"))
    shape = (1, int(parser.get_parsed_content("network_def#in_channels")), *size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for axis, length in enumerate(size):
        at = torch.arange(length)
        inside = (at >= length // 8) & (at < length - length // 8)
        noise = noise * inside.view(-1, *[1] * (len(size) - 1 - axis))
    return noise


def ckpt_export() -> str:
    """`monai.bundle ckpt_export` writes ``models/model.ts``, which gives what the network gives, evidence included."""
    bundle.ckpt_export(
        net_id="network_def",
        filepath="models/model.ts",
        ckpt_file="models/model.pt",
        meta_file=META,
        config_file=INFERENCE,
    )
    scripted, image = torch.jit.load("models/model.ts", map_location="cpu").eval(), sample_input()
    with torch.no_grad():
        ours, theirs = network().cpu().multitask(image), scripted.multitask(image)
    if ours.keys() != theirs.keys():
        raise Failure(f"model.ts gives {sorted(theirs)}, the network {sorted(ours)}")
    worst = max(float((ours[key] - theirs[key]).abs().max()) for key in ours)
    if worst > TOLERANCE:
        raise Failure(f"model.ts differs from the network by {worst:.2g}, allowed {TOLERANCE:g}")
    return f"{', '.join(sorted(ours))} within {worst:.1g} of the network"


def load() -> str:
    """`monai.bundle.load` gives the network, the weights and the TorchScript module."""
    here, ref = Path.cwd(), network().state_dict()
    place = {"name": here.name, "bundle_dir": str(here.parent), "device": "cpu"}
    built = bundle.load(workflow_type="infer", **place)
    if not isinstance(built, torch.nn.Module):
        raise Failure(f"load(workflow_type='infer') gives a {type(built).__name__}, expected the network")
    state = bundle.load(model_file="models/model.pt", **place)
    for loaded in (built.state_dict(), state):
        if loaded.keys() != ref.keys() or any(not torch.equal(loaded[key].cpu(), ref[key].cpu()) for key in ref):
            raise Failure("load gives other weights than models/model.pt")
    scripted, meta, _ = bundle.load(load_ts_module=True, **place)
    if not hasattr(scripted, "multitask") or "network_data_format" not in meta:
        raise Failure("load(load_ts_module=True) gives a module without 'multitask', or without metadata")
    return "network, state dict and TorchScript"


def drawn(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Phantoms as the network takes them, slices or volumes of its sequences and regions: values of both workflows.

    None where the network takes more sequences than phantoms have.
    """
    names = ("data.datalists", "data.datalists.naming", "data.datalists.regions", "phantoms", "phantoms.sequences")
    datalists, naming, stated, phantoms, volumes = (importlib.import_module(f"scripts.{name}") for name in names)
    parser = ConfigParser()
    parser.read_config(INFERENCE)
    whole = len(parser.get_parsed_content("spatial_size")) == 3
    channels = int(parser.get_parsed_content("network_def#in_channels"))
    regions, sequences = parser.get_parsed_content("regions"), naming.CHANNELS
    if channels > len(sequences):
        return None
    if channels == 1 and not whole and len(regions or []) < 2:
        phantoms.make_phantoms(folder, seed=0, patients=0, singles=12, progress=False)
        data = folder / "singles"
        datalist, _ = datalists.image_folder(data, name="phantoms", progress=False)
        image: Any = str(next((data / "images").rglob("*.png")))
    else:
        data = folder / "volumes"
        for k in range(4):
            volumes.write_pair(data, [0, k], f"v{k}", (8.0, 8.0, 8.0))
        for mask in data.rglob("*_seg.nii.gz"):
            _relabel(mask, stated.own_values(regions or {"tumor": [1]}))
        rule = datalists.SliceRule(regions=regions, **({"planes": ()} if whole else {}))
        datalist, _ = datalists.nifti_cases(
            data, rule=rule, channels=sequences[:channels], patient_pattern=r"v\d+", progress=False
        )
        files = datalist["test"][0]["image"]  # one name of one sequence, else a list
        image = [str(data / name) for name in ([files] if isinstance(files, str) else files)]
    datalists.write(datalist, folder / "list.json")
    paths = {"dataset_dir": str(data), "datalist_file": str(folder / "list.json"), "run_dir": str(folder / "run")}
    return {"infer": {"input": image}, "train": paths}


def _relabel(mask: Path, values: list[int]) -> None:
    """Write the parts of a phantom's tumor, from the outermost to the innermost, in a scheme's own label values."""
    image: Any = nib.load(mask)
    labels = np.asarray(image.dataobj)
    result = np.where(labels > 0, values[0], 0)
    for inner, value in zip(([1, 3, 4], [4]), values[1:], strict=False):
        result[np.isin(labels, inner)] = value
    nib.save(nib.Nifti1Image(result.astype(np.uint8), image.affine), mask)


def workflows() -> str:
    """Both configs have every property that MONAI asks of an inference or a training workflow, on a few phantoms."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = drawn(Path(folder))
        if overrides is None:
            return "NOT CHECKED: the network takes more sequences than phantoms have"
        for kind, name in (("infer", INFERENCE), ("train", TRAIN)):
            workflow = ConfigWorkflow(
                workflow_type=kind, config_file=name, meta_file=META, logging_file=False, **overrides[kind]
            )
            workflow.parser.parse(reset=True)
            # Initializing would start a training; check_properties only builds what the config describes.
            workflow._is_initialized = True
            wrong = workflow.check_properties()
            if wrong:
                raise Failure(f"{name} lacks {', '.join(wrong)}")
    return "inference.yaml and train.yaml are complete"


CHECKS: tuple[Callable[[], str], ...] = (
    changelog,
    verify_metadata,
    verify_net_in_out,
    ckpt_export,
    load,
    workflows,
    files,
)


def verify(folder: str | Path) -> bool:
    """Run all checks in a bundle's folder and print one line each; True if all passed.

    Changes the current folder and the import path: meant for a process of its own.
    """
    os.chdir(folder)
    sys.path[0] = str(Path.cwd())
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    passed = True
    for check in CHECKS:
        try:
            line = f"ok      {check.__name__:18s} {check()}"
        except Exception as error:
            cause: BaseException = error
            while cause.__cause__ is not None:  # MONAI wraps an error once for each config item
                cause = cause.__cause__
            line, passed = f"FAILED  {check.__name__:18s} {type(cause).__name__}: {cause}", False
        print(line)
    return passed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("expected: python bundle/monai_checks.py FOLDER")
    sys.exit(0 if verify(sys.argv[1]) else 1)
