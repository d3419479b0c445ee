"""Read NIfTI, Analyze and FreeSurfer's MGH files: units, scales and places as their headers say, or refused."""

from __future__ import annotations

import io
import math
import os
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.fileholders import FileHolder

from transforms.grids import grid_gap_mm
from transforms.limits import ReadLimits, refused

GZIP = b"\x1f\x8b"
MGH = b"\0\0\0\1"  # version 1, big endian
HEADER_SIZES = (348, 540)
_SINGLE = {348: (nib.Nifti1Image, 344, b"n+1"), 540: (nib.Nifti2Image, 4, b"n+2")}
_PAIR = {348: (nib.Nifti1Pair, 344, b"ni1"), 540: (nib.Nifti2Pair, 4, b"ni2")}
_UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_UNIT_NAMES = {0: "not stated", 1: "meter", 2: "millimeter", 3: "micrometer"}
_CIFTI = range(3000, 3100)
# Where the axes run for transverse, coronal and sagittal slices, unflipped, as Analyze 7.5 describes them.
_ANALYZE_AXES = {0: "LAS", 1: "LSA", 2: "ASL"}
_CHUNK = 1 << 20


def header_size(head: bytes) -> int:
    """348 or 540 for the header of a NIfTI or Analyze file, 0 for anything else."""
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")} & set(HEADER_SIZES)
    return sizes.pop() if sizes else 0


def unpacked(path: str | os.PathLike[str], count: int) -> bytes:
    """The first `count` bytes of a file, gzipped or not; of a gzipped one no more than these are unpacked.

    Raises:
        ValueError: when the gzipped file is damaged.
        OSError: when the file cannot be opened.
    """
    with open(path, "rb") as file:
        head = file.read(2)
        file.seek(0)
        if head != GZIP:
            return file.read(count)
        unpacker, out, left = zlib.decompressobj(31), bytearray(), b""
        try:
            while len(out) < count:
                data = left or file.read(_CHUNK)
                if not data:
                    break
                out += unpacker.decompress(data, count - len(out))
                left = unpacker.unconsumed_tail
                if unpacker.eof:  # gzip files may be several, one behind the other
                    left = unpacker.unused_data.lstrip(b"\0")
                    unpacker = zlib.decompressobj(31)
        except zlib.error as error:
            raise refused(path, "is damaged: its gzip stream cannot be unpacked", "copy or export it again") from error
    return bytes(out)


def read_nifti(path: str | os.PathLike[str], limits: ReadLimits) -> tuple[np.ndarray, np.ndarray]:
    """Read a NIfTI-1, NIfTI-2, Analyze or MGH file, or a pair of header and image by its header.

    The affine is the sform where the header has one, else the qform, else the voxel sizes alone, in millimeters
    whatever the header's unit.

    Returns:
        float32 (X, Y[, Z[, C]]), values scaled as the header says, and the 4x4 affine to RAS+ millimeters.

    Raises:
        ValueError: When the file is cut short or damaged, too large, of colors or complex numbers, a surface, or when
            sform and qform contradict each other. Names the file and says what to do.
    """
    head = unpacked(path, 544)
    if head.startswith(MGH):
        return _read_mgh(path, limits)
    size = header_size(head)
    single, offset, magic = _SINGLE[size]
    if head[offset : offset + 3] == magic:
        header = _header(single, head, size, path)
        _check(header, path, limits)
        return _values(_load(single, {"image": _body(path, header, int(header.get_data_offset()))}, path), path)
    pair, offset, magic = _PAIR[size]
    is_nifti = head[offset : offset + 3] == magic
    if not is_nifti and size == 540:
        raise refused(path, "has the size of a NIfTI-2 header, but is none", "export it again as .nii.gz")
    kind = pair if is_nifti else nib.Spm2AnalyzeImage
    header = _header(kind, head, size, path)
    _check(header, path, limits)
    image = _partner(path)
    files = {"header": head[:size], "image": _body(image, header, int(header.get_data_offset()))}
    array, affine = _values(_load(kind, files, path, mat=image.with_suffix(".mat")), path)
    return array, affine if is_nifti else _analyze_affine(header, affine, array.shape, image, path)


def pair_header(path: str | os.PathLike[str]) -> Path | None:
    """The header file of an Analyze or NIfTI pair whose image file is `path` (`a.img`); None for any other file."""
    path = Path(path)
    stem = path.with_suffix("") if path.name.lower().endswith(".img.gz") else path
    if stem.suffix.lower() != ".img":
        return None
    candidates = (stem.with_suffix(suffix) for suffix in (".hdr", ".HDR", ".hdr.gz"))
    return next((one for one in candidates if one.is_file()), None)


def _partner(path: str | os.PathLike[str]) -> Path:
    stem = Path(path)
    stem = stem.with_suffix("") if stem.suffix.lower() == ".gz" else stem
    for suffix in (".img", ".IMG", ".img.gz"):
        if stem.with_suffix(suffix).is_file() and stem.with_suffix(suffix) != Path(path):
            return stem.with_suffix(suffix)
    raise refused(
        path, "is the header of a pair (.hdr and .img), and no image file of its name lies beside it",
        "put the .img file there, or export a .nii.gz",
    )  # fmt: skip


def _header(kind: Any, head: bytes, size: int, path: str | os.PathLike[str]) -> Any:
    if len(head) < size:
        raise refused(path, f"is cut short: {len(head)} bytes, its header alone has {size}", "copy it again")
    try:
        return kind.header_class(binaryblock=head[:size], check=False)
    except Exception as error:  # nibabel raises several kinds on damaged headers; all mean the same here
        raise refused(path, "has a damaged header", "export it again") from error


def _check(header: Any, path: str | os.PathLike[str], limits: ReadLimits) -> None:
    """What can be said from the header alone."""
    try:
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
    except Exception as error:
        raise refused(path, "has a damaged header (shape or type of voxels)", "export it again") from error
    if "intent_code" in header and int(header["intent_code"]) in _CIFTI:
        raise refused(path, "is a CIFTI file of surfaces and regions, no image", "give the volume it was made from")
    if dtype.fields is not None:
        raise refused(path, "holds colors (rgb24 or rgba32), expected gray values", "give the gray image")
    if dtype.kind == "c":
        raise refused(path, "holds complex numbers, expected magnitudes", "save the magnitude image")
    scale = [float(header[key]) for key in ("scl_slope", "scl_inter") if key in header]
    if len(scale) == 2 and scale[0] and np.isfinite(scale[0]) and not np.isfinite(scale[1]):
        raise refused(
            path, f"states a scale that is no number (scl_inter {scale[1]:g})", "set it to 0 if none is meant"
        )
    limits.check_volume(path, shape)


def _body(path: str | os.PathLike[str], header: Any, offset: int) -> bytes:
    """As many bytes of the file as the header promises, and no more."""
    needed = offset + math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
    content = unpacked(path, needed)
    if len(content) < needed:
        raise refused(
            path, f"is cut short: the header promises {needed:,} bytes, there are {len(content):,}", "copy it again"
        )
    return content


def _load(kind: Any, contents: dict[str, bytes], path: str | os.PathLike[str], mat: Path | None = None) -> Any:
    files = {name: FileHolder(fileobj=io.BytesIO(content)) for name, content in contents.items()}
    if kind is nib.Spm2AnalyzeImage:
        files["mat"] = FileHolder(filename=str(mat))
    elif "header" not in files:
        files["header"] = files["image"]
    try:
        return kind.from_file_map(files)
    except Exception as error:
        raise refused(path, "has a damaged header", "export it again") from error


def _values(image: Any, path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    try:
        array = image.get_fdata(dtype=np.float32, caching="unchanged")
    except Exception as error:
        raise refused(path, "has voxels that cannot be read", "export it again") from error
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 5 and array.shape[3] == 1:  # vectors of NIfTI: (X, Y, Z, 1, C)
        array = array[:, :, :, 0]
    if not 2 <= array.ndim <= 4:
        raise refused(path, f"has shape {array.shape}, expected (X, Y, Z) or (X, Y, Z, C)", "save its volumes alone")
    affine = np.asarray(image.affine, np.float64)
    if isinstance(image.header, nib.Nifti1Header):
        affine = _nifti_affine(image.header, affine, array.shape, path)
    return array, affine


def _nifti_affine(header: Any, affine: np.ndarray, shape: tuple[int, ...], path: str | os.PathLike[str]) -> np.ndarray:
    """The affine in millimeters, after a look at what sform, qform and unit say together."""
    unit = int(header["xyzt_units"]) & 7
    if unit not in _UNITS_MM:
        raise refused(path, f"states the unknown unit {unit} of length (xyzt_units)", "set it to 2, millimeter")
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    if sform_code > 0 and qform_code > 0:
        _compare_forms(header, shape, path, sform_code == qform_code)
    affine = np.diag([*[_UNITS_MM[unit]] * 3, 1.0]) @ affine
    sizes = nib.affines.voxel_sizes(affine)[: min(3, len(shape))]
    far = [n for n, count in zip(sizes, shape, strict=False) if count > 1 and not 1e-3 <= n <= 100]
    if far and np.isfinite(far).all() and unit not in (0, 2):
        raise refused(
            path, f"says that its voxels are {' x '.join(f'{n:.4g}' for n in sizes)} mm (xyzt_units: "
            f"{_UNIT_NAMES[unit]})", "set xyzt_units to 2, millimeter, if that is what the sizes are in",
        )  # fmt: skip
    return affine


def _compare_forms(header: Any, shape: tuple[int, ...], path: str | os.PathLike[str], same_space: bool) -> None:
    """Refuse a header whose sform and qform turn the volume differently, or place it differently in one space."""
    try:
        sform, qform = header.get_sform(), header.get_qform()
    except ValueError:  # a quaternion that is none; the sform stands
        return
    gap = grid_gap_mm(shape, sform, qform)
    if not gap > max(nib.affines.voxel_sizes(sform)):
        return
    codes = ["".join(str(code) for code in nib.aff2axcodes(form)) for form in (sform, qform)]
    what = ""
    if codes[0] != codes[1]:
        what = f"axes {codes[0]} by its sform, {codes[1]} by its qform, so that left and right are not sure"
    elif same_space:
        what = f"sform and qform, both of code {int(header['sform_code'])}, place its corners {gap:.3g} mm apart"
    if what:
        raise refused(path, f"has a header that contradicts itself: {what}", "set the code of the wrong one to 0")


def _analyze_affine(
    header: Any, affine: np.ndarray, shape: tuple[int, ...], image: Path, path: str | os.PathLike[str]
) -> np.ndarray:
    """Affine of an Analyze file: by SPM's .mat or origin, else by the plane in which its slices are said to lie."""
    if image.with_suffix(".mat").is_file() or np.any(header["origin"][:3]):
        return affine
    plane = ord(bytes(header["orient"]) or b"\0")
    if plane not in _ANALYZE_AXES:
        raise refused(path, f"is an Analyze file of orientation {plane} (flipped), of which programs disagree what it "
                      "means", "convert it to .nii.gz with the program that wrote it")  # fmt: skip
    turned = np.zeros((4, 4))
    turned[3, 3] = 1
    sizes = nib.affines.voxel_sizes(affine)
    for axis, letter in enumerate(_ANALYZE_AXES[plane]):
        world = "LAS".index(letter)
        turned[world, axis] = -sizes[axis] if letter == "L" else sizes[axis]
    middle = turned[:3, :3] @ [(n - 1) / 2 for n in (*shape[:3], 1)[:3]]
    turned[:3, 3] = -middle
    return turned


def _read_mgh(path: str | os.PathLike[str], limits: ReadLimits) -> tuple[np.ndarray, np.ndarray]:
    head = unpacked(path, 284)
    if len(head) < 284:
        raise refused(path, f"is cut short: {len(head)} bytes, its header alone has 284", "copy it again")
    try:
        header = nib.MGHImage.header_class(binaryblock=head, check=False)
        shape = header.get_data_shape()
        item_bytes = header.get_data_dtype().itemsize
    except Exception as error:
        raise refused(path, "has a damaged header", "export it again") from error
    limits.check_volume(path, shape)
    needed = 284 + math.prod(shape) * item_bytes
    content = unpacked(path, needed + 4096)  # what follows the voxels is small and may be missing
    if len(content) < needed:
        raise refused(
            path, f"is cut short: the header promises {needed:,} bytes, there are {len(content):,}", "copy it again"
        )
    return _values(_load(nib.MGHImage, {"image": content}, path), path)
