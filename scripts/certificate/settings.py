"""What a model of others takes and gives, as a few lines of YAML say it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

# Of gray values 0..255: the lowest and the highest that the model takes.
SCALINGS = {"0..1": (0.0, 1.0), "0..255": (0.0, 255.0), "-1..1": (-1.0, 1.0)}


# Outputs of a segmenter.
MASKS = ("mask", "mask_logits")


@dataclass(frozen=True)
class Settings:
    """What a model takes and gives.

    Args:
        classes: names of its outputs, in their order.
        no_tumor: which of them means no tumor.
        size: (height, width) that pictures are resized to; None: as they are, one at a time.
        channels: 1 or 3.
        scaling: of gray values 0..255: "0..1", "0..255" or "-1..1".
        mean, std: by channel, taken off and divided by after scaling.
        channel_order: "rgb" or "bgr".
        layout: "nchw" or "nhwc".
        outputs: "probabilities" or "logits" of each class; of a segmenter "mask" (probabilities) or "mask_logits".
        mask_channels: names of a mask's channels: classes, or parts of the one tumor class that there is; (): a mask
            of one channel is the tumor, other channels are the classes in their order.
        least_area: pixels of a mask, on its own grid, from which on a picture is called tumor.
        threshold: of the probability of any tumor; of a mask that of a pixel.
        batch_size: pictures in one call.
        timeout_s: of one call, in seconds.
        upload: HTTP: name of the form field of the picture; None: the PNG is the body.
        answer: HTTP: key of the probabilities in the JSON answer.
    """

    classes: tuple[str, ...] = ("no_tumor", "tumor")
    no_tumor: str = "no_tumor"
    size: tuple[int, int] | None = None
    channels: int = 1
    scaling: str = "0..1"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channel_order: str = "rgb"
    layout: str = "nchw"
    outputs: str = "probabilities"
    mask_channels: tuple[str, ...] = ()
    least_area: int = 1
    threshold: float = 0.5
    batch_size: int = 16
    timeout_s: float = 60.0
    upload: str | None = None
    answer: str = "probabilities"
    allowed: Mapping[str, tuple[Any, ...]] = field(
        default_factory=lambda: {
            "channels": (1, 3), "scaling": tuple(SCALINGS), "channel_order": ("rgb", "bgr"),
            "layout": ("nchw", "nhwc"), "outputs": ("probabilities", "logits", *MASKS),
        },
        repr=False,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name, values in self.allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is one of {', '.join(map(str, values))}, got {getattr(self, name)!r}")
        if len(self.classes) < 2 or len({*self.classes}) < len(self.classes):
            raise ValueError(f"classes are two or more different names, got {list(self.classes)}")
        if self.no_tumor not in self.classes:
            raise ValueError(f"no_tumor is {self.no_tumor!r}, which is none of the classes {', '.join(self.classes)}")
        self._check_masks()
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (0, self.channels):
                raise ValueError(f"{name} has {len(getattr(self, name))} values, the model {self.channels} channels")

    def _check_masks(self) -> None:
        if not isinstance(self.least_area, int) or self.least_area < 1:
            raise ValueError(f"least_area is a number of pixels, 1 or more, got {self.least_area!r}")
        if not self.segments:
            if self.mask_channels or self.least_area != 1:
                raise ValueError(f"mask_channels and least_area are of masks: set outputs to {' or '.join(MASKS)}")
            return
        names = self.mask_channels
        if len({*names}) < len(names) or (names and set(names) == {self.no_tumor}):
            raise ValueError(f"mask_channels are different names, one of a tumor at least, got {list(names)}")
        parts = [name for name in names if name not in self.classes]
        if parts and len(self.classes) > 2:
            raise ValueError(
                f"mask_channels {', '.join(parts)} are none of the classes {', '.join(self.classes)}: parts of a tumor "
                "go with two classes, no tumor and tumor"
            )

    @property
    def segments(self) -> bool:
        """Whether the model gives masks."""
        return self.outputs in MASKS

    @property
    def tumor_classes(self) -> list[str]:
        """The classes but no tumor."""
        return [name for name in self.classes if name != self.no_tumor]

    @property
    def channel_names(self) -> list[str]:
        """Of the channels of a mask that has several."""
        return list(self.mask_channels or self.classes)

    @classmethod
    def read(cls, path: Path) -> Settings:
        """From a YAML file.

        Raises:
            ValueError: when a key is unknown or a value is none of those allowed; names the file.
        """
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        known = [f.name for f in fields(cls) if f.name != "allowed"]
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected lines of 'key: value', the keys being of {', '.join(known)}")
        for key in content:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                raise ValueError(f"{path}: no setting {key!r}; {f'nearest: {near[0]}' if near else ', '.join(known)}")
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
        }
        try:
            return cls(**plain)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
