"""Small grey images as text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

SHADES = " ░▒▓█"
GAP = "   "


def side_by_side(images: npt.NDArray[Any], captions: Sequence[str]) -> list[str]:
    """Lines that show `images` (N, height, width; values in [0, 1]) in a row, a caption below each."""
    columns = []
    for image, caption in zip(images, captions, strict=True):
        levels = np.clip(np.rint(image * (len(SHADES) - 1)), 0, len(SHADES) - 1).astype(int)
        width = 2 * image.shape[1]
        pixels = ["".join(SHADES[level] * 2 for level in row) for row in levels]
        columns.append(pixels + [line.center(width) for line in caption.splitlines()])
    return [GAP.join(parts).rstrip() for parts in zip(*columns, strict=True)]
