"""Inference: every output of the network from one forward pass."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer


class MultiTaskInferer(Inferer):
    """Runs the network once and returns segmentation, calibrated class probabilities and evidence.

    Example:
        >>> from scripts.networks import MultiTaskDynUNet
        >>> net = MultiTaskDynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16]).eval()
        >>> result = MultiTaskInferer()(torch.rand(1, 1, 32, 32) + 0.1, net)
        >>> sorted(result)
        ['evidence', 'probability', 'seg', 'threshold']
    """

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Infer.

        Args:
            inputs: (B, C, H, W[, D]) from the bundle's preprocessing.
            network: a `MultiTaskDynUNet`, or its TorchScript form.

        Returns:
            "seg" (B, 2, H, W[, D]) probabilities in [0, 1]; "probability" (B, K) of each class, class 0 "no tumor";
            "threshold" (B, 1) of tumor probability; "evidence" (B, 1, h, w[, d]), positive where the image speaks for
            a tumor (absent without an evidence head). Evidence of the tumor classes is weighted by their probability
            among them, so it is the map of the log-odds of any tumor.
        """
        plain = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        output = network.multitask(plain)
        logits = output["cls"]
        result = {
            "seg": torch.softmax(output["seg"], dim=1),
            "probability": torch.softmax(logits / network.temperature, dim=1),
            "threshold": network.threshold.expand(len(plain), 1),
        }
        if "evidence" in output:
            share = torch.softmax(logits[:, 1:], dim=1)
            share = share.view(*share.shape, *[1] * (plain.ndim - 2))
            result["evidence"] = (share * output["evidence"][:, 1:]).sum(dim=1, keepdim=True) - output["evidence"][
                :, :1
            ]
        return result
