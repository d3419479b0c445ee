"""A Compose that refuses wrong orders when it is built, and names the file when an item fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from monai.transforms import Compose, LazyTrait, ThreadUnsafe

from transforms.describe import describe

# MONAI's own transforms, by module; the exceptions move voxels without interpolating.
_EXACT_SPATIAL = frozenset(
    [
        "Flip",
        "RandFlip",
        "RandAxisFlip",
        "Rotate90",
        "RandRotate90",
        "Orientation",
        "GridSplit",
        "GridPatch",
        "RandGridPatch",
        "ConvertBoxToPoints",
        "ConvertPointsToBoxes",
    ]
)
_NORMALIZING = ("NormalizeIntensity", "HistogramNormalize")
_FIELDS = {"SmoothField", "RandSmoothFieldAdjustContrast", "RandSmoothFieldAdjustIntensity"}


def stage_of(transform: Any) -> str | None:
    """Say what a transform does to the image, as far as the order is concerned.

    Returns:
        ``"load"``, ``"border"``, ``"scale"``, ``"foreground"``, ``"crop"``, ``"normalize"``, ``"mask"``,
        ``"interpolate"``, ``"intensity"``, or None for what may stand anywhere.
    """
    stage = getattr(transform, "stage", None)
    if isinstance(stage, str):
        return stage
    for cls in type(transform).__mro__:
        module, name = cls.__module__, cls.__name__
        if not module.startswith("monai.transforms."):
            continue
        base = name[:-1] if name.endswith("d") else name.removesuffix("Dict")
        if module.startswith("monai.transforms.croppad"):
            return "crop" if base == "CropForeground" else None
        if base == "MaskIntensity":
            return "mask"
        if base in _NORMALIZING:
            return "normalize"
        if module.startswith("monai.transforms.spatial"):
            return None if base in _EXACT_SPATIAL else "interpolate"
        if module.startswith("monai.transforms.smooth_field"):
            return "intensity" if base in _FIELDS else "interpolate"
        if module.startswith("monai.transforms.intensity"):
            return "scale" if base.startswith(("ScaleIntensity", "ClipIntensity")) else "intensity"
    return None


def check_order(transforms: Sequence[Callable], image_key: str = "image") -> None:
    """Refuse an order in which air would not be exactly 0, or statistics not those of the foreground.

    Args:
        transforms: the sequence; nested Compose objects are looked into.
        image_key: dictionary transforms on other keys only (masks, predictions) are not looked at.

    Raises:
        ValueError: When the order is wrong; names the two transforms and the reason.
    """
    seen: dict[str, str] = {}
    last_mask = unmasked = None
    for transform in _walk(transforms):
        keys = getattr(transform, "keys", None)
        if isinstance(keys, tuple) and image_key not in keys:
            continue
        stage, name = stage_of(transform), type(transform).__name__
        if stage is None:
            continue
        reason = _objection(stage, seen)
        if reason:
            raise ValueError(f"wrong order of transforms: {name} {reason}. Right: foreground, crop, normalize, mask")
        if stage == "mask":
            last_mask, unmasked = name, None
        elif stage in ("interpolate", "intensity", "scale", "normalize"):
            unmasked = name
        seen.setdefault(stage, name)
    if unmasked and (last_mask or "normalize" in seen):
        after = f"after the last {last_mask}" if last_mask else "and no MaskBackgroundd follows"
        raise ValueError(
            f"wrong order of transforms: {unmasked} stands {after}: air would no longer be exactly 0, and the network "
            "reads its foreground from there. End with MaskBackgroundd"
        )


def _objection(stage: str, seen: Mapping[str, str]) -> str | None:
    """Why this stage may not follow the ones seen (stage to name), or None."""
    if stage == "border" and (later := [seen[s] for s in ("scale", "foreground", "normalize") if s in seen]):
        return f"after {later[0]}: its statistics would depend on a border; take borders off first"
    if stage == "foreground" and "normalize" in seen:
        return f"after {seen['normalize']}: a percentile threshold on z-scored data keeps everything"
    if stage == "normalize" and "mask" in seen:
        return f"after {seen['mask']}: z-scoring after masking moves air to about -1"
    if stage == "crop" and "normalize" in seen:
        return (
            f"after {seen['normalize']}: z-scored tissue is negative below the mean and a box around positive values "
            "cuts it off; crop first, so that every consumer takes its statistics from the same voxels"
        )
    if stage in ("crop", "normalize") and "foreground" not in seen:
        return "without a foreground mask before it: statistics and box must be those of the head, not of the air"
    return None


def _walk(transforms: Sequence[Callable]) -> Iterator[Callable]:
    for transform in transforms:
        if isinstance(transform, Compose):
            yield from _walk(transform.transforms)
        else:
            yield transform


class Pipeline(Compose):
    """MONAI's Compose with the order checked when it is built and one clear sentence when an item fails.

    Args:
        transforms: dictionary transforms in order.
        image_key: the key that the order is about.

    Raises:
        ValueError: When the order is wrong (on building); when an item cannot be processed (on calling): names the file
            and the reason, with the original exception as its cause.
    """

    def __init__(
        self, transforms: Sequence[Callable] | Callable | None = None, image_key: str = "image", **kwargs: Any
    ) -> None:
        super().__init__(transforms, **kwargs)
        self.image_key = image_key
        check_order(self.transforms, image_key)

    def __call__(
        self, input_: Any, start: int = 0, end: int | None = None, threading: bool = False, lazy: bool | None = None
    ) -> Any:
        """Process one item; arguments as in MONAI's Compose."""
        try:
            if not isinstance(input_, Mapping) or lazy or self.lazy or self.log_stats:
                return super().__call__(input_, start=start, end=end, threading=threading, lazy=lazy)
            return self._straight(input_, start, len(self.transforms) if end is None else end, threading)
        except Exception as error:
            raise self._named(error, input_) from error

    def _straight(self, item: Any, start: int, end: int, threading: bool) -> Any:
        """What MONAI's loop does with one dictionary, without its checks at every step (together 0.3 ms)."""
        if not 0 <= start <= end <= len(self.transforms):
            raise ValueError(f"transforms {start} to {end} asked for, there are {len(self.transforms)}")
        for index in range(start, end):
            if not isinstance(item, Mapping):  # several items from one: MONAI knows what to do
                return super().__call__(item, start=index, end=end, threading=threading)
            transform = self.transforms[index]
            transform = deepcopy(transform) if threading and isinstance(transform, ThreadUnsafe) else transform
            item = transform(item, lazy=False) if isinstance(transform, LazyTrait) else transform(item)
        return item

    def _named(self, error: BaseException, item: Any) -> ValueError:
        # Below MONAI's "applying transform ..." wrappers stands the error that was written for the reader.
        while error.__cause__ is not None and not isinstance(error, ValueError):
            error = error.__cause__
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        if not isinstance(item, Mapping):
            return ValueError(reason)
        file = describe({key: item[key] for key in (self.image_key, "name") if key in item}, self.image_key)
        return ValueError(
            reason if file.removeprefix("file ") in reason else f"{describe(item, self.image_key)}: {reason}"
        )
