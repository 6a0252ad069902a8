"""What several inference servers say of their models, as one list. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from enginehouse.client.values import ModelIndex

READY = "READY"
# The state that counts where servers differ: the one that somebody may have to do something about.
_WORST = ("UNAVAILABLE", "LOADING", "UNLOADING", "", READY)


def merge_indexes(indexes: Mapping[str, Sequence[ModelIndex]]) -> list[ModelIndex]:
    """One line for each model and version.

    Args:
        indexes: what each server says, by its address.

    Returns:
        a server's own lines where there is one; else the worst state, with how many are ready and which are not.
    """
    if len(indexes) == 1:
        return list(next(iter(indexes.values())))
    lines: dict[tuple[str, str], dict[str, ModelIndex]] = {}
    for address, entries in indexes.items():
        for entry in entries:
            lines.setdefault((entry.name, entry.version), {})[address] = entry
    return [_merged(found, len(indexes)) for _, found in sorted(lines.items())]


def _merged(found: Mapping[str, ModelIndex], servers: int) -> ModelIndex:
    worst = min(found.values(), key=_rank)
    ready = sum(entry.state == READY for entry in found.values())
    if ready == servers or (ready == 0 and len(found) == servers and len({e.state for e in found.values()}) == 1):
        return worst
    others = [f"{address}: {f'{e.state} {e.reason}'.strip()}" for address, e in found.items() if e.state != READY]
    return ModelIndex(
        worst.name, worst.version, worst.state, "; ".join([f"ready on {ready} of {servers} servers", *others])
    )


def _rank(entry: ModelIndex) -> int:
    return _WORST.index(entry.state) if entry.state in _WORST else 0
