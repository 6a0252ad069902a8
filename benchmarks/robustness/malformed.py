"""All kinds of malformed requests in turn, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from robustness import wrong_regions as regions
from robustness import wrong_tensors as tensors
from robustness.case import Case

KINDS: tuple[Callable[[Random], Case], ...] = (
    tensors.noise,
    tensors.cut,
    tensors.flipped,
    tensors.spliced,
    tensors.lying_length,
    tensors.wrong_wire_type,
    tensors.not_text,
    tensors.nobody,
    tensors.no_such_version,
    tensors.wrong_names,
    tensors.duplicates,
    tensors.missing,
    tensors.huge_shape,
    tensors.empty_rows,
    tensors.negative_shape,
    tensors.mixed_batches,
    tensors.wrong_type,
    tensors.wrong_size,
    tensors.wrong_count,
    tensors.typed_out_of_range,
    tensors.bad_text,
    tensors.not_numbers,
    tensors.bad_parameters,
    tensors.odd_parameters,
    tensors.bad_classes,
    tensors.many_classes,
    regions.out_of_bounds,
    regions.negative_offset,
    regions.bad_shared_size,
    regions.no_such_region,
    regions.shrunk,
    regions.bad_registration,
    regions.taken_name,
    regions.no_device,
    regions.other_methods,
    regions.bad_load,
    regions.no_method,
)


def cases(seed: int, count: int) -> Iterator[Case]:
    """That many malformed requests, the same for the same seed; kinds take turns."""
    random = Random(seed)
    for number in range(count):
        yield KINDS[number % len(KINDS)](random)
