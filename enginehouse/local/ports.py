"""Whether a port can be listened on, and who has it."""

from __future__ import annotations

import socket

import psutil

from enginehouse.errors import UnavailableError

HOST = "127.0.0.1"


def check_free(port: int, *, what: str, option: str, host: str = HOST) -> None:
    """Refuse a port that is taken.

    Raises:
        UnavailableError: it is; the message names who has it where we may know, and the option to choose another.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: old connections do not count
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            raise UnavailableError(
                f"port {port} for {what} is in use{_holder(port)}: stop what holds it, choose another with "
                f"{option}, or let free ones be chosen with --ports auto [{error.strerror}]",
                details={"port": str(port), "service": what},
            ) from None


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if connection.status != psutil.CONN_LISTEN or not address or not connection.pid:
                continue
            if address.port == port:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return ""
