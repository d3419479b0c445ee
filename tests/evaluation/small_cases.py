"""A network and items small enough that every method runs in seconds."""

from __future__ import annotations

import torch

from scripts.networks.multitask_dynunet import MultiTaskDynUNet

CLASSES = {"0": "no_tumor", "1": "glioma", "2": "meningioma"}
FAST = {
    "integrated_gradients": {"n_steps": 2},
    "smoothgrad": {"n_samples": 2},
    "occlusion": {"window": 8, "stride": 8},
}


def make_net(head: str = "evidence", classes: int = 3) -> MultiTaskDynUNet:
    torch.manual_seed(0)
    net = MultiTaskDynUNet(
        2, 1, 2, [3] * 4, [1, 2, 2, 2], [2] * 3, [4, 4, 4, 4], num_classes=classes, head=head, evidence_channels=4
    ).eval()
    if head == "evidence":
        torch.nn.init.normal_(net.head.evidence.conv.weight, std=0.5)
    torch.nn.init.normal_(net.output_block.conv.conv.weight, std=2.0)
    return net


def make_cases(count: int = 4, size: int = 32) -> list[dict]:
    """Items as the pipeline leaves them: a head of noise with a bright square, the last one without a tumor."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for i in range(count):
        foreground = torch.zeros(1, size, size, dtype=torch.uint8)
        foreground[:, 4:28, 6:26] = 1
        image = torch.randn(1, size, size, generator=generator) * foreground
        label = torch.zeros_like(foreground)
        if i < count - 1:
            label[:, 10 + i : 18 + i, 10:16] = 1
            image += 2 * label
        cases.append(
            {
                **{"image": image, "foreground": foreground, "label": label, "has_mask": True},
                **{"diagnosis": i % 3 if i < count - 1 else 0, "label_coverage": 1.0},
                **{"name": f"c{i}", "patient": f"p{i}", "group": "", "source": "ab"[i % 2]},
            }
        )
        if cases[-1]["diagnosis"] == 0 and i < count - 1:
            cases[-1]["diagnosis"] = 1
    return cases
