"""Decoding image files: the same pixels for training, evaluation and prediction."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import v2

from experiment.errors import UserError


class BadImage(UserError):
    """The content of the file cannot be decoded. Trying again does not help."""


UNDECODABLE = "cannot decode the image "


# {orientation in the EXIF data: the operation that turns the image upright}. `ImageOps.exif_transpose` also rewrites
# all EXIF data, and fails if some of it is damaged.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def pixels(image: Image.Image, size: int, channels: int = 3, centre_crop: float = 1.0) -> Tensor:
    """The centre square of an opened image, resized, as uint8 (channels, size, size).

    The image is turned upright by its EXIF data, and put on white where it is transparent. With `centre_crop` below 1,
    the square keeps this share of the shorter side, as after torchvision's Resize and CenterCrop.

    Raises:
        ValueError: it has more than 8 bits per channel. Damaged images raise almost anything.
    """
    image = upright(image)
    if centre_crop == 1:
        square = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    else:
        square = v2.functional.center_crop(v2.functional.resize(image, [round(size / centre_crop)]), [size, size])
    return to_tensor(on_white(square), channels)


def upright(image: Image.Image) -> Image.Image:
    """RGB, or RGBA where it is transparent; raises the same errors as `pixels`."""
    if image.mode[0] in "IF":
        raise ValueError("it has more than 8 bits per channel; convert it to 8")  # Pillow would clip it to white
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    converted = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return converted if turn is None else converted.transpose(turn)


def on_white(image: Image.Image) -> Image.Image:
    return (
        image
        if image.mode == "RGB"
        else Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    )


def to_tensor(image: Image.Image, channels: int) -> Tensor:
    """uint8 (channels, H, W) of an image in RGB."""
    pixels = np.array(image.convert("L") if channels == 1 else image)
    return torch.from_numpy(pixels).view(image.height, image.width, channels).permute(2, 0, 1).contiguous()


def decode(path: str, size: int, channels: int = 3, centre_crop: float = 1.0) -> Tensor:
    """`pixels` of the image in a file; raises the same errors as `read_image`."""
    return read_image(path, lambda image: pixels(image, size, channels, centre_crop))


def read_image(path: str, use: Callable[[Image.Image], Tensor]) -> Tensor:
    """The result of `use(image)` for the image in a file.

    Raises:
        BadImage: it cannot be decoded.
        UserError: the file cannot be read.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return use(image)
    except MemoryError:
        raise
    except UnidentifiedImageError:  # its message does not name the file
        raise BadImage(f"{UNDECODABLE}{path}: it is not an image that Pillow reads") from None
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        # An error number means an error of the system (the file is missing, too many are open), which may not occur the
        # next time.
        kind = UserError if isinstance(error, OSError) and error.errno is not None else BadImage
        raise kind(f"{UNDECODABLE}{path}: {error}") from None
