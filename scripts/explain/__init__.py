"""Explanations of any PyTorch or MONAI network, and the measures that say what they are worth.

Everything here takes an `nn.Module` whose `forward(x, **forward_kwargs)` returns one tensor; nothing here knows the
bundle's own networks. Modules: `layers` (which layer), `targets` (which number is explained), `cam`, `evidence`,
`gradients`, `perturbation` (the methods), `methods` (one door to them all), `maps` (scale and grid), `measures`,
`faithfulness` and `sanity` (what a map is worth), `diagnosis` (why it lies in the background).
"""
