"""A port that several processes listen on, kept for them."""

from __future__ import annotations

import socket

from enginehouse.errors import UnavailableError


def reserve(host: str, port: int) -> tuple[socket.socket, int]:
    """Bind a port without listening on it, so that it stays ours while processes that share it come and go.

    Args:
        port: 0 takes a free one.

    Raises:
        UnavailableError: the port is in use or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        # Others' sockets may share the port as well, so that only a socket that does not can tell whether it is free.
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            if port == 0:
                address = probe.getsockname()
        held = socket.socket(family, kind, protocol)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(address)
        except BaseException:
            held.close()
            raise
    except OSError as error:
        raise UnavailableError(
            f"cannot listen on {host}:{port}: the port is in use or the address is not this machine's. "
            f"Stop what holds it, or set ENGINEHOUSE_PORT to another port. [{error}]"
        ) from error
    return held, int(held.getsockname()[1])
