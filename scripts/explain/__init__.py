"""Explanations of any PyTorch or MONAI network, and the measures that say what they are worth.

Everything here takes an `nn.Module` whose `forward(x, **forward_kwargs)` returns one tensor; nothing here knows the
bundle's own networks. Modules: `layers` (which layer), `targets` (which number is explained), `cam`, `evidence`,
`gradients`, `perturbation` (the methods), `methods` (all of them by name), `maps` (scale and grid), `measures`,
`faithfulness` and `sanity` (what a map is worth), `diagnosis` (why it lies in the background).

Imports nothing of ours.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "layers": ["resolve_layer"],
        "maps": ["scale_maps", "upsample"],
        "methods": ["METHODS"],
        "targets": ["ClassScore", "SegmentationRegion", "TumorLogOdds", "named_target"],
    },
)
