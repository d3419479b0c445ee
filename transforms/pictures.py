"""Read one picture (PNG, JPEG, TIFF, ...) as one gray channel, upright, whatever its mode."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from transforms.limits import DEFAULT_LIMITS, ReadLimits, Refused, TooLarge, refused

# What names end with, and what Pillow calls the format; the content decides all the same.
PICTURE_SUFFIXES = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".gif": "GIF",
    ".webp": "WEBP", ".jp2": "JPEG2000", ".j2k": "JPEG2000",
}  # fmt: skip
_MAGIC = (
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+",
    b"\0\0\0\x0cjP  \r\n", b"\xff\x4f\xff\x51",  # JPEG 2000: in a container, bare
)  # fmt: skip


def is_picture(head: bytes) -> bool:
    """Whether the first bytes are those of a picture."""
    return head.startswith(_MAGIC) or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")


def decoded(path: str | os.PathLike[str], limits: ReadLimits = DEFAULT_LIMITS) -> Image.Image:
    """A picture of one frame, turned upright as its EXIF orientation says.

    Raises:
        ValueError: When it cannot be decoded, is too large, or holds several frames. Names the file, says what to do.
    """
    try:
        # By a handle and not by its name: Pillow 13 maps an uncompressed TIFF into memory before it turns it, and reads
        # one that lies on its side (orientation 5 to 8) with its rows for columns.
        with open(path, "rb") as file, Image.open(file) as image:
            limits.check_picture(path, image.size)
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                raise refused(
                    path,
                    f"cannot be read as a picture: it holds {frames} frames, expected one",
                    "save the frames one by one",
                )
            image.load()
            return ImageOps.exif_transpose(image)
    except Refused:
        raise
    except Image.DecompressionBombError as error:
        raise TooLarge(
            str(refused(path, f"is a picture of more than {limits.pixels:,} pixels", "make it smaller"))
        ) from error
    except FileNotFoundError as error:
        raise refused(path, "does not exist", "look at its name and folder") from error
    except UnidentifiedImageError as error:
        raise refused(path, "cannot be read as a picture: its content is none", "save it as PNG") from error
    except Exception as error:  # Pillow raises many kinds on damaged content; all mean the same here
        raise refused(path, "cannot be read as a picture: it is damaged or cut short", "save it again") from error


def read_picture(path: str | os.PathLike[str], limits: ReadLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Read a PNG, JPEG, ... of any mode as one gray channel.

    Colors become luminance, transparency shows black, palettes are resolved, 16-bit and float values are kept, and the
    EXIF orientation is followed.

    Returns:
        float32 (X, Y), X along the width (MONAI's convention), in the file's own range (mode "1": 0 and 1).

    Raises:
        ValueError: As `decoded`.
    """
    image = decoded(path, limits)
    pixels = np.asarray(image if is_gray(image) else _on_black(image).convert("L"))
    return np.ascontiguousarray(pixels.T, dtype=np.float32)


def is_gray(image: Image.Image) -> bool:
    """Whether a picture holds one channel of values."""
    return image.mode == "F" or image.mode.startswith("I") or (image.mode in ("1", "L") and not is_transparent(image))


def is_transparent(image: Image.Image) -> bool:
    """Whether a picture says of each pixel how opaque it is."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _on_black(image: Image.Image) -> Image.Image:
    if not is_transparent(image):
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
