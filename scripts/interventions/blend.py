"""Ways of joining a piece of tissue with the head that it is put into."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from scripts.interventions.membrane import laplacian, solve
from scripts.interventions.regions import Image, Mask


def alpha(host: Image, piece: Image, region: Mask, tissue: Mask, width: float) -> Image:
    """The piece, fading into the host over ``width`` pixels inside the border of the region."""
    padded = np.pad(region | ~tissue, 1, mode="edge")  # towards air and the picture's edge nothing fades
    depth = ndimage.distance_transform_edt(padded)[tuple(slice(1, -1) for _ in region.shape)]
    share = np.clip(depth / (width + 1), 0, 1).astype(np.float32)
    share = share * share * (3 - 2 * share)
    return host + (piece - host) * share


def membrane(host: Image, piece: Image, region: Mask, tissue: Mask, width: float) -> Image:
    """The piece with its own gradients, lifted so that it meets the host at the border (seamless cloning).

    Source: Perez et al. 2003, "Poisson image editing", equation 7: the piece plus the harmonic interpolation of the
    difference along the border.
    """
    return piece + solve(host - piece, region, tissue & ~region)


def poisson(host: Image, piece: Image, region: Mask, tissue: Mask, width: float) -> Image:
    """As `membrane`, with the mean of both gradients near the border and the piece's own further in.

    Departs from the paper's mixed gradients (the stronger of the two): those keep a tumor's outline where one is to go.
    """
    padded = np.pad(region, 1)
    depth = ndimage.distance_transform_edt(padded)[tuple(slice(1, -1) for _ in region.shape)]
    share = np.clip(0.5 + 0.5 * depth / (width + 1), 0, 1).astype(np.float32)
    difference = host - piece
    wanted = (1 - share) * laplacian(difference, tissue | region)
    return piece + solve(difference, region, tissue & ~region, wanted)


BLENDS = {"alpha": alpha, "membrane": membrane, "poisson": poisson}


def blend(how: str, host: Image, piece: Image, region: Mask, tissue: Mask, width: float) -> Image:
    """Join a piece with its host.

    Args:
        how: of `BLENDS`.
        host: (C, H, W[, D]).
        piece: the same shape, meaningful in the region and one pixel around it.
        region: where the host may change.
        tissue: of the host, the region included.
        width: of the seam, in pixels.

    Raises:
        ValueError: when ``how`` is unknown.
    """
    if how not in BLENDS:
        raise ValueError(f"a blend is one of {', '.join(BLENDS)}, got {how!r}")
    return np.where(region, BLENDS[how](host, piece, region, tissue, width), host).astype(np.float32)
