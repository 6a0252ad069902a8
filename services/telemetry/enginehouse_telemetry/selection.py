"""Which node and which GPUs a request is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from enginehouse import names
from enginehouse.errors import InvalidArgumentError, NotFoundError
from enginehouse.v1 import telemetry_pb2 as pb

# A GPU by UUID and index: one that was never seen alive has no UUID.
GpuKey = tuple[str, int]


def check_parent(parent: str, *, project: str, node: str) -> None:
    """Accept `projects/{project}` and `projects/{project}/nodes/{node}` of this node.

    Raises:
        InvalidArgumentError: `parent` is of neither form.
        NotFoundError: it names another project or node.
    """
    try:
        if parent.count("/") <= 1:
            asked_project, asked_node = names.parse_project(parent), node
        else:
            name = names.parse(parent, "nodes")
            asked_project, asked_node = name.project, name.id
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            f'parent {parent!r} is not valid: expected "projects/{{project}}" or "projects/{{project}}/nodes/{{node}}"'
        ) from error
    if asked_project != project:
        raise NotFoundError(f"project {asked_project!r} is not served here: this server serves {project!r}")
    if asked_node != node:
        raise NotFoundError(f"node {asked_node!r} is not served here: this is {node!r}")


def select_gpus(wanted: Sequence[str], present: Iterable[GpuKey], why_none: str = "") -> frozenset[GpuKey] | None:
    """The GPUs that `wanted` names by UUID or index; None for all.

    Raises:
        NotFoundError: there is no such GPU; the message has those that there are, or `why_none`.
    """
    if not wanted:
        return None
    known = sorted(set(present), key=lambda key: (key[1], key[0]))
    chosen: set[GpuKey] = set()
    for name in wanted:
        matches = {key for key in known if name and (name == key[0] or name == str(key[1]))}
        if not matches:
            there = ", ".join(f"{index} ({uuid})" for uuid, index in known)
            hint = f"this node has {there}" if there else f"this node has none. {why_none}".rstrip()
            raise NotFoundError(f"GPU {name!r} is not there: {hint}", details={"device": name})
        chosen |= matches
    return frozenset(chosen)


def only(sample: pb.Sample, chosen: frozenset[GpuKey] | None) -> pb.Sample:
    """`sample` with the chosen GPUs; itself when that is all of them."""
    if chosen is None or all((gpu.uuid, gpu.index) in chosen for gpu in sample.gpus):
        return sample
    part = pb.Sample()
    part.CopyFrom(sample)
    del part.gpus[:]
    part.gpus.extend(gpu for gpu in sample.gpus if (gpu.uuid, gpu.index) in chosen)
    return part
