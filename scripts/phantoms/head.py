"""A parametric FLAIR-like head: anatomy, lesions and tumor as functions of position, rendered on any grid.

Positions are LPS millimeters about the middle of the head: x to the patient's left, y to posterior, z to superior.
Everything random is drawn once, by `draw_head`, so that a head is the same whatever grid it is rendered on;
a tumor is added by `with_tumor`, so that nothing else about a person can depend on the diagnosis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

# Half of the edge of the cube, in mm, on which random fields are defined; no head reaches its walls.
DOMAIN_MM = 140.0
# Signal of a tumor's rim above gray matter's, relative to white matter, at least.
MIN_RIM_OVER_GRAY = 0.3
# Standard deviation of a cubic B-spline sum of unit normals is sqrt(151/315) per axis, averaged over position.
_SPLINE_STD = (151.0 / 315.0) ** 1.5

# Left lateral ventricle as joined capsules: position (mm, x away from the midline) and relative radius of each end.
_VENTRICLE = (
    ((7.0, -32.0, 6.0), 0.75, (8.0, -14.0, 16.0), 1.0),
    ((8.0, -14.0, 16.0), 1.0, (13.0, 12.0, 20.0), 1.0),
    ((13.0, 12.0, 20.0), 1.0, (24.0, 32.0, 9.0), 1.25),
    ((24.0, 32.0, 9.0), 1.25, (20.0, 52.0, 5.0), 0.45),
    ((24.0, 32.0, 9.0), 0.9, (33.0, 8.0, -14.0), 0.15),
)
# Deep gray nuclei on the left: center and half axes in mm (caudate, lentiform nucleus, thalamus).
_NUCLEI = (
    ((14.0, -24.0, 8.0), (4.5, 9.0, 9.0)),
    ((25.0, -6.0, 2.0), (6.5, 15.0, 10.0)),
    ((11.0, 12.0, 6.0), (8.0, 13.0, 9.0)),
)
_FACE_BONE = 0.08


class SmoothField:
    """Random field, mean about 0 and standard deviation about 1, that varies over a length of `scale_mm`.

    A sum of cubic B-splines on a lattice, so that it costs three small matrix products on a separable grid.
    """

    def __init__(self, rng: np.random.Generator, scale_mm: float):
        self.scale_mm = float(scale_mm)
        n = int(2 * DOMAIN_MM / scale_mm) + 5
        self.coefficients = rng.standard_normal((n, n, n), dtype=np.float32)

    def _basis(self, positions: Array) -> Array:
        n = self.coefficients.shape[0]
        u = (np.clip(positions, -DOMAIN_MM, DOMAIN_MM) + DOMAIN_MM) / self.scale_mm
        i = np.floor(u).astype(int)
        t = (u - i).astype(np.float32)
        basis = np.zeros((len(positions), n), dtype=np.float32)
        rows = np.arange(len(positions))
        weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        for k, weight in enumerate(weights):
            basis[rows, i + k] = weight / 6
        return basis

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        """Values at the grid of x (X,), y (Y,), z (Z,) in mm: float32 (X, Y, Z)."""
        bx, by, bz = self._basis(x), self._basis(y), self._basis(z)
        out = np.tensordot(self.coefficients, bz, axes=(2, 1))  # (n, n, Z): the short axis first
        out = np.tensordot(out, by, axes=(1, 1))  # (n, Z, Y)
        out = np.tensordot(bx, out, axes=(1, 0))  # (X, Z, Y)
        return np.ascontiguousarray(out.transpose(0, 2, 1)) / np.float32(_SPLINE_STD)


@dataclass(frozen=True)
class Blob:
    """An ellipsoid: center and half axes in mm; `contrast` is its signal relative to white matter, minus 1."""

    center: tuple[float, float, float]
    radii: tuple[float, float, float]
    contrast: float


@dataclass(frozen=True)
class Tumor:
    """One tumor focus: ellipsoid with a ragged, blurred border, a core and a necrosis inside, signal as in `Blob`."""

    center: tuple[float, float, float]
    radii: tuple[float, float, float]
    core_share: float
    necrosis_share: float
    edema_contrast: float
    core_contrast: float
    necrosis_contrast: float
    border_mm: float
    raggedness: float
    shape: SmoothField
    texture: SmoothField


@dataclass(frozen=True)
class Head:
    """Everything random about one person: shape, signal of each tissue (white matter about 1), lesions, tumors."""

    half_axes: tuple[float, float, float]
    power: float
    rotation_rad: float
    tilt: float
    shift: tuple[float, float]
    skull_mm: float
    scalp_mm: float
    csf_gap_mm: float
    sulcus_mm: float
    sulcus_depth_mm: float
    ventricle_mm: float
    rim_contrast: float
    gray: float
    csf: float
    scalp: float
    marrow: float
    muscle: float
    texture: float
    warp: tuple[SmoothField, SmoothField]
    folds: SmoothField
    coarse: SmoothField
    fine: SmoothField
    lesions: tuple[Blob, ...] = ()
    tumors: tuple[Tumor, ...] = ()


@dataclass(frozen=True)
class Rendered:
    """A noise-free picture: `signal` float32 (X, Y, Z), air 0; `tumor`, `brain` and `head` bool masks of that shape.

    `distances`: to the border of each tumor in mm, negative inside.
    """

    signal: Array
    tumor: NDArray[np.bool_]
    brain: NDArray[np.bool_]
    head: NDArray[np.bool_]
    distances: tuple[Array, ...] = ()


def _brain_point(rng: np.random.Generator, half_axes: tuple[float, float, float], level_mm: float, reach: float):
    """A random position (mm) at height `level_mm`, within `reach` (0..1) of the way from the middle to the skull."""
    upper = half_axes[2] if level_mm > 0 else 120.0
    room = np.sqrt(max(0.05, 1 - (level_mm / upper) ** 2))
    angle, radius = rng.uniform(0, 2 * np.pi), reach * room * np.sqrt(rng.uniform(0.02, 1))
    return (
        float(half_axes[0] * radius * np.cos(angle)),
        float(half_axes[1] * radius * np.sin(angle)),
        float(level_mm),
    )


def _draw_tumor(
    rng: np.random.Generator, half_axes: tuple[float, float, float], level_mm: float, radius_mm: float
) -> Tumor:
    shape = rng.uniform(0.75, 1.3, 3)
    radii = radius_mm * shape / np.cbrt(shape.prod())
    kind = rng.choice(["edematous", "diffuse", "cystic"], p=[0.5, 0.3, 0.2])
    core, necrosis, core_contrast, necrosis_contrast = {
        "edematous": (rng.uniform(0.45, 0.75), rng.uniform(0.0, 0.65), rng.uniform(0.15, 1.0), rng.uniform(-0.6, 0.0)),
        "diffuse": (rng.uniform(0.2, 0.5), 0.0, rng.uniform(0.3, 0.7), 0.0),
        "cystic": (rng.uniform(0.6, 0.85), rng.uniform(0.75, 0.9), rng.uniform(0.4, 1.0), rng.uniform(-0.75, -0.4)),
    }[str(kind)]
    return Tumor(
        center=_brain_point(rng, half_axes, level_mm, reach=max(0.35, 0.88 - 0.8 * radius_mm / half_axes[0])),
        radii=(float(radii[0]), float(radii[1]), float(radii[2])),
        core_share=float(core),
        necrosis_share=float(necrosis),
        edema_contrast=float(rng.uniform(0.45, 1.0)),
        core_contrast=float(core_contrast),
        necrosis_contrast=float(necrosis_contrast),
        border_mm=float(rng.uniform(0.8, 2.0)),
        raggedness=float(rng.uniform(0.08, 0.18)),
        shape=SmoothField(rng, max(8.0, 0.6 * radius_mm)),
        texture=SmoothField(rng, rng.uniform(6, 12)),
    )


def draw_head(rng: np.random.Generator) -> Head:
    """Draw one person without a tumor; the same state of `rng` gives the same head."""
    axes = (float(rng.uniform(61, 70)), float(rng.uniform(77, 89)), float(rng.uniform(72, 80)))
    lesions = []
    # Bright things that are no tumor: small-vessel lesions, mostly beside the ventricles; in every second person.
    for _ in range(int(rng.integers(1, 9)) if rng.random() < 0.5 else 0):
        side = rng.choice([-1.0, 1.0])
        center = (side * rng.uniform(12, 36), rng.uniform(-45, 50), rng.uniform(0, 45))
        lesions.append(Blob(center, tuple(rng.uniform(1.5, 4.0, 3)), rng.uniform(0.3, 0.8)))
    # Old cavities and cysts, dark as CSF.
    for _ in range(int(rng.random() < 0.2)):
        radius = rng.uniform(3, 11)
        center = _brain_point(rng, axes, rng.uniform(-25, 50), reach=0.8)
        lesions.append(Blob(center, tuple(radius * rng.uniform(0.8, 1.25, 3)), -0.8))
    # Vessels with inflow: sagittal sinus behind, branches beside the Sylvian fissure.
    for _ in range(int(rng.integers(0, 4))):
        side = rng.choice([-1.0, 1.0])
        center = (side * rng.uniform(30, 50), rng.uniform(-25, 10), rng.uniform(-25, 15))
        lesions.append(Blob(center, (1.8, 1.8, 9.0), rng.uniform(0.5, 1.3)))
    if rng.random() < 0.4:
        lesions.append(Blob((0.0, axes[1] * 0.93, 10.0), (3.0, 4.0, 45.0), rng.uniform(0.2, 0.9)))
    if rng.random() < 0.5:  # choroid plexus in the atria
        for side in (-1.0, 1.0):
            lesions.append(Blob((side * 24.0, 31.0, 9.0), (2.5, 4.5, 4.0), rng.uniform(0.1, 0.6)))

    return Head(
        half_axes=axes,
        power=float(rng.uniform(1.95, 2.25)),
        rotation_rad=float(np.deg2rad(rng.uniform(-12, 12))),
        tilt=float(rng.uniform(-0.15, 0.15)),
        shift=(float(rng.uniform(-7, 7)), float(rng.uniform(-6, 6))),
        skull_mm=float(rng.uniform(3.5, 6.5)),
        scalp_mm=float(rng.uniform(3, 6)),
        csf_gap_mm=float(rng.uniform(1.5, 3.5)),
        sulcus_mm=float(rng.uniform(0.4, 1.3)),
        sulcus_depth_mm=float(rng.uniform(12, 22)),
        ventricle_mm=float(rng.uniform(3.2, 7.5)),
        rim_contrast=float(rng.uniform(0.0, 0.5)),
        gray=float(rng.uniform(1.12, 1.38)),
        csf=float(rng.uniform(0.10, 0.30)),
        scalp=float(rng.uniform(0.5, 2.4)),
        marrow=float(rng.uniform(0.1, 0.7)),
        muscle=float(rng.uniform(0.4, 0.7)),
        texture=float(rng.uniform(0.02, 0.05)),
        warp=(SmoothField(rng, 40), SmoothField(rng, 40)),
        folds=SmoothField(rng, rng.uniform(8, 10.5)),
        coarse=SmoothField(rng, 30),
        fine=SmoothField(rng, 5),
        lesions=tuple(lesions),
    )


def with_tumor(head: Head, rng: np.random.Generator, level_mm: float = 10.0, radius_mm: float | None = None) -> Head:
    """The same person with a tumor: one focus, in one case of eight a small second one.

    Args:
        head: the person; nothing but `tumors` is changed.
        rng: source of all randomness.
        level_mm: height of the first focus's center above the middle of the head, in mm.
        radius_mm: mean radius of the first focus in mm; drawn log-uniformly from 9 to 34 if not given.
    """
    radius = float(np.exp(rng.uniform(np.log(9), np.log(34)))) if radius_mm is None else radius_mm
    tumors = [_draw_tumor(rng, head.half_axes, level_mm, radius)]
    if rng.random() < 0.12:
        tumors.append(_draw_tumor(rng, head.half_axes, level_mm + rng.uniform(-15, 15), rng.uniform(8, 12)))
    # A rim no brighter than gray matter is invisible where it lies in it: no reader could have drawn such a mask.
    visible = head.gray - 1 + MIN_RIM_OVER_GRAY
    return replace(
        head, tumors=tuple(replace(tumor, edema_contrast=max(tumor.edema_contrast, visible)) for tumor in tumors)
    )


def _step(distance_mm: Array, width_mm: float) -> Array:
    """0 to 1 as `distance_mm` rises through 0, over about `width_mm` to each side."""
    t = np.clip(0.5 + distance_mm * np.float32(0.5 / width_mm), 0, 1)
    return t * t * (3 - 2 * t)


def _mix(below: Array, above: Array | float, share: Array) -> Array:
    return below + (np.asarray(above, dtype=np.float32) - below) * share


def _ellipsoid(x: Array, y: Array, z: Array, center, radii) -> Array:
    """Signed distance in mm to an ellipsoid, to first order: negative inside."""
    q = ((x - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2 + ((z - center[2]) / radii[2]) ** 2
    return (np.sqrt(q) - 1) * np.float32(np.cbrt(np.prod(radii)))


def _ventricle_distance(x: Array, y: Array, z: Array, radius_mm: float) -> Array:
    """Signed distance in mm to both lateral ventricles and the third: negative inside."""
    ax = np.abs(x)
    best = _ellipsoid(x, y, z, (0.0, 4.0, -4.0), (0.32 * radius_mm, 14.0, 10.0))
    for start, r0, end, r1 in _VENTRICLE:
        (sx, sy, sz), (vx, vy, vz) = start, np.subtract(end, start).astype(np.float32)
        px, py, pz = ax - np.float32(sx), y - np.float32(sy), z - np.float32(sz)
        t = np.clip((px * vx + py * vy + pz * vz) / np.float32(vx * vx + vy * vy + vz * vz), 0, 1)
        distance = np.sqrt((px - t * vx) ** 2 + (py - t * vy) ** 2 + (pz - t * vz) ** 2)
        best = np.minimum(best, distance - radius_mm * (r0 + t * np.float32(r1 - r0)))
    # The septum between the frontal horns stays.
    return np.maximum(best, np.float32(0.8) - ax) if radius_mm > 0 else best


def _tumor_distances(head: Head, grid: tuple[Array, Array, Array], x: Array, y: Array, z: Array) -> list[Array]:
    """Signed distance in mm to every tumor focus, ragged border included: negative inside."""
    distances = []
    for tumor in head.tumors:
        radius = float(np.cbrt(np.prod(tumor.radii)))
        ragged = tumor.shape(*grid) * np.float32(tumor.raggedness * radius)
        distances.append(_ellipsoid(x, y, z, tumor.center, tumor.radii) + ragged)
    return distances


def _displace(head: Head, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
    """Mass effect: tissue around a tumor is pushed away from its center by up to a quarter of its radius."""
    for tumor in head.tumors:
        radius = float(np.cbrt(np.prod(tumor.radii)))
        dx, dy, dz = x - tumor.center[0], y - tumor.center[1], z - tumor.center[2]
        pull = np.float32(0.25) * np.exp(-(dx**2 + dy**2 + dz**2) / np.float32(2 * (1.2 * radius) ** 2))
        x, y, z = x - dx * pull, y - dy * pull, z - dz * pull
    return x, y, z


def _fold_distance(head: Head, grid: tuple[Array, Array, Array]) -> Array:
    """In-plane distance in mm to the middle of the nearest sulcus: the zero lines of a smooth field."""
    folds = head.folds(*grid)
    gx = np.gradient(folds, grid[0], axis=0)
    gy = np.gradient(folds, grid[1], axis=1)
    return np.abs(folds) / (np.sqrt(gx * gx + gy * gy) + np.float32(0.25 / head.folds.scale_mm))


def render(head: Head, x_mm: Array, y_mm: Array, z_mm: Array) -> Rendered:
    """Render a head without noise on the grid of x_mm (X,), y_mm (Y,), z_mm (Z,), LPS millimeters, X and Y >= 2.

    Returns:
        Signal float32 (X, Y, Z), air exactly 0 and white matter about 1, with the masks of tumor, brain and head.

    Raises:
        ValueError: when x_mm or y_mm has fewer than two positions.
    """
    if len(x_mm) < 2 or len(y_mm) < 2:
        raise ValueError(f"a head is rendered on at least 2 x 2 positions, got {len(x_mm)} x {len(y_mm)}")
    grid = (np.asarray(x_mm, np.float32), np.asarray(y_mm, np.float32), np.asarray(z_mm, np.float32))
    gx, gy, z = grid[0][:, None, None], grid[1][None, :, None], grid[2][None, None, :]
    cos, sin = np.float32(np.cos(head.rotation_rad)), np.float32(np.sin(head.rotation_rad))
    tx, ty = gx - np.float32(head.shift[0]), gy - np.float32(head.shift[1])
    x = tx * cos + ty * sin + 2.5 * head.warp[0](*grid)
    y = ty * cos - tx * sin + 2.5 * head.warp[1](*grid)
    z = z + np.float32(head.tilt) * y

    # Distance to the inner table of the skull, positive outside; the front is narrower than the back.
    a, b, c = head.half_axes
    p = np.float32(head.power)
    width = a * (1 + np.float32(0.10) * np.clip(y / b, -1, 1))
    rho = (np.abs(x / width) ** p + np.abs(y / b) ** p + np.abs(np.where(z > 0, z / c, z / 120)) ** p) ** (1 / p)
    skull = (1 - 1 / np.maximum(rho, 1e-3)) * np.sqrt(x * x + y * y + z * z)
    coarse = head.coarse(*grid)
    bone_mm = head.skull_mm * (1 + 0.12 * coarse)
    scalp_mm = head.scalp_mm * (1 - 0.15 * coarse)
    temple = _step(np.abs(x) - 0.75 * a, 8) * _step(20 - z, 15) * _step(35 - y, 15)  # the muscle over the temples
    surface = bone_mm + scalp_mm + 5 * temple

    signal = head.scalp * _step(surface - skull, 0.8)
    signal = _mix(signal, head.muscle, temple * _step(surface - 3 - skull, 0.8))
    signal = _mix(signal, 0.06, _step(bone_mm - skull, 0.8))
    signal = _mix(signal, head.marrow, _step(0.22 * bone_mm - np.abs(skull - 0.5 * bone_mm), 0.8))
    signal = _mix(signal, head.csf, _step(-skull, 0.8))
    is_head = skull < surface

    orbit, globe = (_ellipsoid(np.abs(x), y, z, (0.45 * a, -0.86 * b, -44.0), (q, q, q)) for q in (20.0, 12.0))
    nose = _ellipsoid(x, y, z, (0.0, -b, -46.0), (11.0, 40.0, 20.0))

    tumors = _tumor_distances(head, grid, x, y, z)
    nearest = np.minimum.reduce(tumors) if tumors else np.full_like(x, 99.0)
    x, y, z = _displace(head, x, y, z)

    depth = -skull - head.csf_gap_mm
    swollen = 1 - _step(-nearest, 4)  # sulci are effaced inside a tumor
    sulcus = _fold_distance(head, grid) + 1.5 * np.maximum(depth - head.sulcus_depth_mm * (1 + 0.25 * coarse), 0)
    cleft = np.abs(x + 1.2 * coarse) + 2.0 * np.maximum(38 - np.maximum(np.abs(y - 2), z + 8), 0)
    sylvian = np.abs(y + 6 + 0.5 * z) + 2.0 * np.maximum(36 - np.abs(x), 0) + np.maximum(np.abs(z + 2) - 14, 0)
    # Quadrigeminal cistern behind the midbrain and the top of the vermis: short and blurred, in the lower slices only.
    arc = np.abs(np.hypot(x / 11, (y - 14) / 9) - 1 + 0.2 * coarse) * 9
    cistern = arc + 1.2 * np.maximum(np.abs(x) - 6, 0) + 1.5 * np.maximum(17 - y, 0) + np.maximum(np.abs(z + 20) - 7, 0)
    pia = np.minimum.reduce([sulcus, depth, cleft, sylvian - 0.7, cistern])
    gray = _step(2.8 + 0.5 * coarse - pia, 1.2)
    ax = np.abs(x)
    for center, radii in _NUCLEI:
        gray = np.maximum(gray, 0.55 * _step(-_ellipsoid(ax, y, z, center, radii), 3))
    tissue = 1 + (head.gray - 1) * gray * (0.6 + 0.4 * swollen)
    tissue = tissue * (1 + head.texture * head.fine(*grid) + 0.03 * coarse)
    tissue = _mix(tissue, head.csf, _step(head.sulcus_mm - pia, 0.9) * swollen * (0.75 + 0.2 * (pia == depth)))

    ventricle = _ventricle_distance(x, y, z, head.ventricle_mm)
    tissue = tissue * (1 + head.rim_contrast * np.exp(-((np.maximum(ventricle, 0) / 2.2) ** 2)))
    for tumor, distance in zip(head.tumors, tumors, strict=True):
        radius = np.float32(np.cbrt(np.prod(tumor.radii)))
        blotch = 1 + 0.12 * tumor.texture(*grid)
        tissue = _mix(tissue, (1 + tumor.edema_contrast) * blotch, _step(-distance, tumor.border_mm))
        core = distance + radius * (1 - tumor.core_share)
        tissue = _mix(tissue, (1 + tumor.core_contrast) * blotch, _step(-core, 1.5))
        if tumor.necrosis_share > 0:
            dead = distance + radius * (1 - tumor.core_share * tumor.necrosis_share)
            tissue = _mix(tissue, (1 + tumor.necrosis_contrast) * blotch, _step(-dead, 1.5))
    tissue = _mix(tissue, head.csf, _step(-ventricle, 0.9))
    for lesion in head.lesions:
        inside = _step(-_ellipsoid(x, y, z, lesion.center, lesion.radii), 0.9)
        tissue = _mix(tissue, 1 + lesion.contrast, inside)

    depth = np.minimum(depth, np.minimum(orbit, nose) - 1.5)
    signal = _mix(signal, _FACE_BONE, _step(2 - np.minimum(orbit, nose), 0.8) * is_head)
    signal = _mix(signal, 0.6 * head.scalp, _step(-orbit, 0.8) * is_head)
    signal = _mix(signal, head.csf, _step(-globe, 0.8) * is_head)
    signal = _mix(signal, 0.04, _step(-nose, 0.8) * _step(0.8 - coarse, 0.6) * is_head)
    brain = _step(depth, 0.8)
    signal = _mix(signal, tissue, brain)
    tumor_mask = (nearest < 0) & (depth > 0) & (ventricle > 0)
    return Rendered(signal.astype(np.float32), tumor_mask, depth > 0, is_head, tuple(tumors))
