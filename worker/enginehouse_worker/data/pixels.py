"""An image file's bytes as pixels of a model's size, with Pillow; the bytes are a stranger's."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from enginehouse_worker.errors import WorkerError

RESAMPLING = ("bilinear", "bicubic", "lanczos", "nearest")
# No format that Pillow hands to another program (EPS), and none that cameras and the web do not use.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_WIDEST_16_BIT = 65535


@dataclass(frozen=True)
class ImageSize:
    """The size of a model's images; 1 channel is grey, 3 are red, green, blue."""

    height: int
    width: int
    channels: int


@dataclass(frozen=True)
class Fitting:
    """How an image becomes one of a model's size.

    The central box of the model's proportions that is `central_fraction` of the largest such box (of a square input:
    that share of the image's shorter side) is resampled to the size. It is the resized image's central crop: 0.875 for
    224 pixels is the usual "shorter side to 256, crop 224". Pillow's filters look at neighbours beyond the box, and are
    antialiased (other than nearest).
    """

    size: ImageSize
    central_fraction: float = 0.875
    resampling: str = "bilinear"

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of what is taken of an image of that size."""
        wide = min(width, height * self.size.width / self.size.height) * self.central_fraction
        high = min(height, width * self.size.height / self.size.width) * self.central_fraction
        left, top = (width - wide) / 2, (height - high) / 2
        return (max(0.0, left), max(0.0, top), min(width, left + wide), min(height, top + high))


def decode(data: bytes, name: str, fitting: Fitting) -> npt.NDArray[np.uint8]:
    """Pixels (height, width, channels) of an image file, upright as its EXIF orientation says.

    Transparency is dropped; of an animation the first frame is taken; 16 bits become 8.

    Raises:
        WorkerError: INVALID_ARGUMENT naming the file, when it is no image, damaged, cut short, of too many pixels
            (Pillow's limit against decompression bombs), or has values whose range is unknown (floating-point).
    """
    size = fitting.size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
                image = _plain(ImageOps.exif_transpose(opened), "L" if size.channels == 1 else "RGB")
                filter_ = Image.Resampling[fitting.resampling.upper()]
                resized = image.resize((size.width, size.height), filter_, fitting.box(*image.size))
        return np.asarray(resized, np.uint8).reshape(size.height, size.width, size.channels)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise _wrong(name, f"it is no image of a known format ({', '.join(_FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _wrong(name, f"it has too many pixels, as files made to do harm do: {error}") from None
    except Exception as error:
        # Pillow's decoders raise almost any error on bytes that were made to confuse them.
        raise _wrong(name, f"it is damaged or cut short ({type(error).__name__}: {error})") from None


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """The image with 8 bits a channel, grey or RGB."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > _WIDEST_16_BIT:
            raise ValueError(f"its values reach from {values.min()} to {values.max()}; expected at most 16 bits")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its values are floating-point, and their range is unknown; convert it to 8 bits")
    return image.convert(mode)


def _wrong(name: str, message: str) -> WorkerError:
    return WorkerError("INVALID_ARGUMENT", f"the image {name!r} cannot be used: {message}")
