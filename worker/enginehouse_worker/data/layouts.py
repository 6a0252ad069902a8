"""Which of an image input's dimensions are its channels."""

from __future__ import annotations

_CHANNELS = (1, 3, 4)


def is_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether a shape of rank 3 (no batch) reads (channels, height, width), not (height, width, channels).

    A dimension of 1, 3 or 4 is the channels. Where both ends are, or neither is, the last is.
    """
    return shape[0] in _CHANNELS and shape[2] not in _CHANNELS
