"""A run of this bundle as the subject of a certificate: its own pipeline, mask and evidence included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from scripts.certificate.answers import Answer
from scripts.certificate.cases import Case, uneven, usable_mask
from scripts.certificate.masks import mask_fields
from scripts.certificate.questions import Question
from scripts.data.datalists.clusters import clusters
from scripts.data.planes import plane_of
from scripts.data.preprocessing import collate, foreground_mask, make_training_pipeline
from scripts.evaluation.items import EvaluationDataset
from scripts.explain.evidence import evidence_map
from scripts.explain.maps import upsample
from scripts.explain.targets import TumorLogOdds
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.networks.regions import tumor_mask
from scripts.runs.tasks import is_trained


class BundleRun:
    """A network of this bundle that answers pictures through its pipeline, as the evaluation does.

    Args:
        network: in evaluation mode.
        spatial_size: of its input.
        classes: names, class 0 no tumor.
        identity: of the weights.
    """

    def __init__(
        self, network: MultiTaskDynUNet, spatial_size: Sequence[int], classes: Sequence[str], identity: str
    ) -> None:
        self.network, self.identity = network, identity
        self.classes: Sequence[str] = list(classes)
        self.threshold, self.temperature = float(network.threshold), float(network.temperature)
        self.segments = is_trained(network, "segmentation")
        self.maps = network.has_evidence and is_trained(network, "classification")
        self.dataset = EvaluationDataset([], make_training_pipeline(spatial_size, False, len(classes)))

    def cases(self, items: Sequence[dict[str, Any]], left_out: Counter[str]) -> list[Case]:
        """Items with what an intervention needs; why others are left out is counted.

        Args:
            items: of `scripts.evaluation.items.evaluated_items`.
            left_out: counts reasons, in place.
        """
        kept = []
        for item, group in zip(items, clusters(items), strict=True):
            loaded, spacing, _ = self.dataset.load(item)
            image = np.ascontiguousarray(loaded["image"], np.float32)
            if image.ndim == 4 and (reason := uneven(spacing)):
                left_out[f"a volume: {reason}"] += 1
                continue
            try:
                head = foreground_mask(image)
            except ValueError as error:
                left_out[f"no head is found: {error}"] += 1
                continue
            mask = np.asarray(loaded["label"])[0] != 0 if "label" in loaded else None
            kind = int(item.get("diagnosis", -1 if mask is None else int(mask.any())))
            if kind > 0 and mask is None:
                left_out["a tumor without a mask"] += 1
                continue
            if kind < 0:
                left_out["no diagnosis"] += 1
                continue
            if kind > 0 and mask is not None:
                mask, reason = usable_mask(mask, head)
                if reason:
                    left_out[reason] += 1
                    continue
            source = str(item.get("source", ""))
            tumor = mask if kind > 0 else None
            kept.append(Case(str(item["name"]), group, source, kind, image, head, tumor, plane_of(item)))
        return kept

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Ask the network, all pictures in one batch; what the pipeline refuses is refused by name."""
        prepared: list[dict[str, Any] | None] = []
        reasons: list[str] = []
        for question in questions:
            place = np.zeros(question.picture.shape[1:], bool) if question.place is None else question.place
            item = {
                "image": torch.from_numpy(np.ascontiguousarray(question.picture)),
                "label": torch.from_numpy(place[None].astype(np.uint8)),
                "name": question.case.name,
                "diagnosis": int(place.any()),
            }
            try:
                prepared.append(self._prepare(item))
                reasons.append("")
            except ValueError as error:
                prepared.append(None)
                reasons.append(str(error) or type(error).__name__)
        kept = [item for item in prepared if item is not None]
        answers = iter(self._forward(kept) if kept else [])
        return [
            Answer(refused=reason) if item is None else next(answers)
            for item, reason in zip(prepared, reasons, strict=True)
        ]

    def _prepare(self, item: dict[str, Any]) -> dict[str, Any]:
        prepared = self.dataset.transform(item, start=self.dataset._loaded)
        return {key: prepared[key] for key in ("image", "label", "foreground")}

    @torch.no_grad()
    def _forward(self, items: Sequence[Mapping[str, Any]]) -> list[Answer]:
        batch = collate([dict(item) for item in items])
        device = next(self.network.parameters()).device
        output = self.network.multitask(batch["image"].to(device), segmentation=self.segments)
        probabilities = torch.softmax(output["cls"].float().cpu() / self.temperature, dim=1)
        masks = tumor_mask(output["seg"], self.network)[:, 0].cpu() if self.segments else None
        maps = None
        if self.maps:
            maps = evidence_map(output["evidence"], output["cls"], TumorLogOdds()).cpu()
            largest = maps.flatten(1).amax(dim=1)
            maps = upsample(maps, batch["image"].shape[2:])[:, 0] * (batch["foreground"][:, 0] != 0)
        answers = []
        for i in range(len(items)):
            place = batch["label"][i, 0] != 0
            values: dict[str, Any] = {"probabilities": tuple(probabilities[i].double().tolist())}
            if masks is not None:
                gray, head = batch["image"][i].mean(0).numpy(), batch["foreground"][i, 0].numpy() != 0
                values |= mask_fields(masks[i].numpy() != 0, place.numpy(), gray, head)
            if maps is not None:
                values["evidence"] = float(largest[i])
                total = float(maps[i].sum())
                if bool(place.any()) and total > 0:
                    values["evidence_in_place"] = float(maps[i][place].sum()) / total
                    values["peak_in_place"] = bool(place.flatten()[maps[i].flatten().argmax()])
            answers.append(Answer(**values))
        return answers
