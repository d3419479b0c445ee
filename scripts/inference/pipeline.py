"""The bundle's inference as one object: built from ``configs/inference.yaml``, used image by image or in batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scripts.command.config_files import read_config, read_mapping
from scripts.command.devices import check_device
from scripts.command.files import file_sha256
from scripts.command.locations import ROOT
from scripts.data.preprocessing import check_network_input
from scripts.inference.backends import backend_of
from scripts.inference.inferers import Progress
from scripts.inference.postprocessing import SaveEvidenced
from scripts.inference.scans import Scan
from scripts.inference.scope import FILE as SCOPE
from scripts.measures.prevalence import applied, prevalence_in_use
from scripts.networks import mirroring
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.networks.regions import thresholds_by_name
from scripts.runs.checkpoint_files import load_weights
from scripts.runs.network_overlay import located

# Of a config: where things lie and on what they run, which the result does not depend on.
_PLACES = ("bundle_root", "dataset_dir", "input", "foreground", "output_dir", "weights", "device")
# Of an inferer's outputs, those that are the same for every slice.
_SHARED = ("threshold", "temperature", "class_shift", "mask_threshold")


class Inference:
    """Network, preprocessing, inferer and postprocessing of ``configs/inference.yaml``; nothing is written to disk.

    Args:
        bundle_root: folder that holds ``configs`` and ``models``.
        weights: state dict; None: those that the overlay names, else ``models/model.pt``.
        overlay: config files merged over ``configs/inference.yaml``, for example a run's ``network.yaml``.
        device: "cpu", "cuda", ...; None: as the config says.
        overrides: further values by config id, for example ``plane``.
        backend: what runs the network's passes, see `scripts.inference.backends`.

    Attributes:
        network: in evaluation mode, on ``device``, no parameter needs a gradient.
        weights: file that the network was loaded from.
        classes: names by index, class 0 "no tumor".
        runner, backend: what runs the network's passes, and its name and version.
        inferer, preprocessing, postprocessing: as the config builds them, the latter two as lists of transforms.

    Raises:
        FileNotFoundError: when the config or the weights do not exist.
        ValueError: when the weights do not fit the network.
    """

    def __init__(
        self,
        bundle_root: str | Path = ROOT,
        weights: str | Path | None = None,
        overlay: str | Path | Sequence[str | Path] | None = None,
        device: str | torch.device | None = None,
        overrides: Mapping[str, Any] | None = None,
        backend: str = "torch",
    ) -> None:
        root = Path(bundle_root)
        overlays = [overlay] if isinstance(overlay, (str, Path)) else list(overlay or [])
        files = [root / "configs" / "inference.yaml", *map(Path, overlays)]
        values: dict[str, Any] = {"bundle_root": str(root)}
        known = None
        for file in overlays:
            content = read_mapping(file)
            known = content.get("training_prevalence", known)
            if (entry := content.get("weights")) is not None and not str(entry).startswith(("$", "@", "%")):
                values["weights"] = str(Path(file).expanduser().parent / Path(entry).expanduser())
        if weights is not None:
            values |= {"weights": str(Path(weights).expanduser()), "weights_sha256": None, "weights_origin": None}
        if "weights" in values:
            values["training_prevalence"] = known  # that of the shipped weights is not theirs
        values |= overrides or {}
        if device is not None:
            values["device"] = str(device)
        parser = read_config(files, values)
        self.device = check_device(parser.get_parsed_content("device"))
        # Here and not by the config, whose parser wraps an error in one that does not begin with its sentence.
        weights_path = located(parser.get_parsed_content("weights"), parser["weights_sha256"], parser["weights_origin"])
        if weights_path is None:
            raise ValueError("weights is null: inference needs a file of weights")
        self.weights = Path(weights_path)
        self.network: MultiTaskDynUNet = parser.get_parsed_content("network_def")
        load_weights(self.network, self.weights).to(self.device).eval().requires_grad_(False)
        if not all(bool(torch.isfinite(v).all()) for v in self.network.state_dict().values() if v.is_floating_point()):
            raise ValueError(f"weights file {self.weights} holds values that are not finite; train the stage again")
        self._root, self._config = root, parser.config
        names = parser.get_parsed_content("classes")
        self.training_prevalence: dict[str, float] | None = parser.get_parsed_content("training_prevalence")
        self.classes: list[str] = [names.get(str(i), f"class {i}") for i in range(self.network.num_classes)]
        applied(self.network, parser.get_parsed_content("prevalence"), self.training_prevalence, self.classes)
        mirroring.applied(self.network, parser.get_parsed_content("mirror_axes"))
        self.inferer = parser.get_parsed_content("inferer")
        # One by one: MONAI's Compose wraps every error in another that does not name the file.
        self.preprocessing = list(parser.get_parsed_content("preprocessing").transforms)
        self.postprocessing = [
            step
            for step in parser.get_parsed_content("postprocessing").transforms
            if not isinstance(step, SaveEvidenced)
        ]
        self.runner, self.backend = backend_of(backend, self.network, self.preprocessing[0].size)

    @property
    def prevalence(self) -> dict[str, float] | None:
        """The prevalence that the probabilities are for, by class; None: that of the training."""
        return prevalence_in_use(self.network.class_shift.cpu(), self.training_prevalence, self.classes)

    @property
    def mask_thresholds(self) -> dict[str, float]:
        """The probability above which a place is in the mask, by region."""
        return thresholds_by_name(self.network)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the bundle says of itself: ``configs/metadata.json``."""
        return json.loads((self._root / "configs" / "metadata.json").read_text(encoding="utf-8"))

    def identity(self, options: Mapping[str, Any] | None = None) -> dict[str, str]:
        """What decides about a result beside the image: version, weights, config and scope, as hashes,
        and the backend.

        Args:
            options: values by config id that hold for one image, in place of those of the config.
        """
        config = {key: value for key, value in {**self._config, **(options or {})}.items() if key not in _PLACES}
        scope = self.weights.parent / SCOPE
        return {
            "version": str(self.metadata["version"]),
            "weights_sha256": file_sha256(self.weights),
            "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
            "scope_sha256": file_sha256(scope) if scope.is_file() else "",
            "backend": self.backend,
        }

    def prepare(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """What the pipeline makes of an item; see `scripts.inference.scans.PrepareScand` for both.

        Raises:
            ValueError: when the image cannot be read, does not fit the network or shows no head, or the pipeline does
                not give what the network was trained on; names the file.
        """
        result: dict[Any, Any] = dict(item)
        for step in self.preprocessing:
            result = step(result)
        # A stack of slices is checked as one volume: single slices may hold too little of the head to say.
        check_network_input(result["image"][None], result["foreground"][None], [Scan.of(result["image"]).source])
        return result

    def infer(self, item: Mapping[str, Any], progress: Progress | None = None) -> dict[str, Tensor]:
        """Outputs of the network for one prepared item, as the inferer gives them, without the batch axis.

        Args:
            item: of `prepare`.
            progress: called with the slices done and in all.
        """
        stack = item["image"][None].to(self.device)
        return {key: value[0] for key, value in self.inferer(stack, self.runner, progress=progress).items()}

    def infer_together(self, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        """The same for several prepared items in common passes; equal up to rounding (about 1e-6)."""
        if not items:
            return []
        stacks = [slices_first(item["image"]) for item in items]
        together = torch.cat(stacks).movedim(0, -1)[None].to(self.device)
        output = {key: value[0] for key, value in self.inferer(together, self.runner).items()}
        results, start = [], 0
        for stack in stacks:
            stop = start + len(stack)
            results.append({k: value if k in _SHARED else value[start:stop] for k, value in output.items()})
            start = stop
        return results

    def finish(self, item: Mapping[str, Any], output: Mapping[str, Tensor]) -> dict[str, Any]:
        """The prepared item with "pred", "evidence" and "result", see `postprocessing.RestoreScand`."""
        done: dict[Any, Any] = {**item, "pred": dict(output)}
        for step in self.postprocessing:
            done = step(done)
        return done


def slices_first(image: Any) -> Tensor:
    """A prepared image as a plain tensor (S, C, *size)."""
    plain = image.as_tensor()
    return plain.movedim(-1, 0) if Scan.of(image).plane else plain[None]
