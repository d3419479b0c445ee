"""One random patch of a prepared volume, with a stated share of tumor."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandCropByLabelClasses, Randomizable

from transforms.describe import describe
from transforms.intensity import plain
from transforms.labels import MASKS_KEY

# With fewer voxels of tumor a patch is neither one of a tumor nor one without: its class is not trained.
LEAST_TUMOR = 64


class RandCropPatchd(Randomizable, MapTransform):
    """Crop image, foreground, label and ``region_masks`` of a finalized volume to one patch.

    Its center is drawn by MONAI's RandCropByLabelClasses: with ``tumor_share`` in the tumor, each of its regions as
    often as the others, else anywhere in the rest of the head. Intensities stay as they are: they were normalized over
    the head of the whole volume, so that a patch in training looks like the same place in a window of inference.

    The class becomes that of the patch: of an item with a mask 0 where the patch has no tumor, and -1, unknown, with
    fewer than 64 voxels of it; of a tumor without a mask -1.

    Args:
        spatial_size: of the patch; the volume is at least as large.
        tumor_share: 0 to 1.
        image_key, label_key, foreground_key: of the tensors.

    Raises:
        ValueError: When the share is not between 0 and 1; when the volume is smaller than the patch (names the case).
    """

    def __init__(
        self,
        spatial_size: Sequence[int],
        tumor_share: float = 0.5,
        image_key: str = "image",
        label_key: str = "label",
        foreground_key: str = "foreground",
    ) -> None:
        MapTransform.__init__(self, [image_key, label_key, foreground_key, MASKS_KEY], allow_missing_keys=True)
        if not 0 <= tumor_share <= 1:
            raise ValueError(f"tumor_share lies between 0 and 1, got {tumor_share}")
        self.spatial_size, self.tumor_share = tuple(int(n) for n in spatial_size), float(tumor_share)
        self.image_key, self.label_key, self.foreground_key = image_key, label_key, foreground_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item's patch."""
        item = dict(data)
        shape = tuple(item[self.image_key].shape[1:])
        if any(n < size for n, size in zip(shape, self.spatial_size, strict=True)):
            raise ValueError(
                f"{describe(item, self.image_key)}: the volume {shape} is smaller than the patch {self.spatial_size}"
            )
        regions = plain(item.get(MASKS_KEY, item[self.label_key])).numpy()
        classes = (plain(item[self.foreground_key])[:1].numpy() != 0).astype(np.uint8)
        for k, region in enumerate(regions):
            classes[0][region != 0] = 2 + k
        present = [k for k in range(2, 2 + len(regions)) if bool((classes == k).any())]
        ratios = [0.0, 1 - self.tumor_share if present else 1.0]
        ratios += [self.tumor_share / len(present) if k in present else 0.0 for k in range(2, 2 + len(regions))]
        draw = RandCropByLabelClasses(
            self.spatial_size, ratios=ratios, num_classes=len(ratios), num_samples=1, warn=False
        )  # type: ignore[arg-type]
        draw.set_random_state(state=self.R)
        draw.randomize(torch.from_numpy(classes))
        assert draw.centers is not None
        starts = [int(center) - size // 2 for center, size in zip(draw.centers[0], self.spatial_size, strict=True)]
        box = (slice(None), *(slice(a, a + size) for a, size in zip(starts, self.spatial_size, strict=True)))
        for key in self.key_iterator(item):
            item[key] = plain(item[key])[box].contiguous()
        voxels = int(item[self.label_key].sum())
        if not item["has_mask"]:
            item["diagnosis"] = 0 if item["diagnosis"] == 0 else -1
        elif voxels < LEAST_TUMOR:
            item["diagnosis"] = 0 if voxels == 0 else -1
        return item
