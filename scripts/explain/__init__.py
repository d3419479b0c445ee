"""Explanations of any PyTorch or MONAI network, and the measures that say what they are worth.

`methods.explain` takes any `nn.Module`, other functions one whose `forward(x, **forward_kwargs)` returns one tensor;
nothing here knows the bundle's own networks. Modules: `layers` and `recording` (which layer, and what it puts out),
`outputs` (which output), `targets` (which number is explained), `cam`, `evidence`, `gradients`, `lrp`, `perturbation`
(the methods), `statistics` and `relevance` (what the backward pass does), `methods` (all of them by name), `maps`
(scale and grid), `measures`, `localization`, `faithfulness` and `sanity` (what a map is worth), `diagnosis`
(why it lies in the background).

Imports nothing of ours.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "layers": ["resolve_layer"],
        "maps": ["scale_maps", "upsample"],
        "methods": ["METHODS", "Explanation", "explain"],
        "targets": ["ClassScore", "SegmentationRegion", "TumorLogOdds", "named_target"],
    },
)
