"""A server's certificate, private key and client CAs: files that are replaced while it serves."""

from __future__ import annotations

import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import structlog

from enginehouse.errors import FailedPreconditionError
from enginehouse.rpc.watched_file import LOOK_SECONDS, Stamp, stamp

_log = structlog.get_logger("tls")


@dataclass(frozen=True)
class CertificateFiles:
    """PEM files. `client_ca` makes clients show a certificate that one of these CAs signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def all(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.certificate, self.key, self.client_ca) if path is not None)


class RotatingCertificates:
    """The credentials of a server's port: each new connection gets what the files hold by then.

    Files that do not go together (a rotation that is half done) or cannot be read change nothing, and are logged.
    Connections that are open live on until their age ends them.
    """

    def __init__(self, files: CertificateFiles) -> None:
        """Raises FailedPreconditionError: the files cannot be used."""
        self._files = files
        self._stamps: tuple[Stamp, ...] | None = self._look()
        self._first = _read(files)
        self._looked = time.monotonic()
        # gRPC asks in threads of its own.
        self._lock = threading.Lock()

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`."""
        return grpc.dynamic_ssl_server_credentials(
            self._first, cast(Any, self._changed), require_client_authentication=self._files.client_ca is not None
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What new connections are to get from now on; None: what they got before."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked < LOOK_SECONDS:
                return None
            self._looked = now
            stamps = self._look()
            if stamps == self._stamps:
                return None
            try:
                found = _read(self._files)
                if self._look() != stamps:
                    return None  # one changed while we read: look again
            except FailedPreconditionError as error:
                _log.error("the new certificate is not used", reason=error.message)
                # Once for each change; a later one, such as the missing half, is looked at again.
                self._stamps = stamps
                return None
            self._stamps = stamps
            _log.info("new certificate", certificate=str(self._files.certificate))
            return found

    def _look(self) -> tuple[Stamp, ...] | None:
        try:
            return tuple(stamp(path) for path in self._files.all)
        except OSError:
            return None


def _read(files: CertificateFiles) -> grpc.ServerCertificateConfiguration:
    """The files' content, once it is known to be usable: gRPC would only end every handshake without a word."""
    try:
        check_pair(files.certificate, files.key)
        pair = (files.key.read_bytes(), files.certificate.read_bytes())
        ca = files.client_ca.read_bytes() if files.client_ca else None
        if ca is not None:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=ca.decode("ascii"))
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or str(error)
        raise FailedPreconditionError(
            f"TLS: {', '.join(str(path) for path in files.all)}: {reason}: expected PEM files that go together"
        ) from None
    except ValueError:
        raise FailedPreconditionError(f"TLS: {files.client_ca} is not PEM") from None
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=ca)


def check_pair(certificate: Path, key: Path) -> None:
    """Check that a certificate is for a private key.

    Raises:
        OSError: it is not (`ssl.SSLError`), or one cannot be read.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
    except ValueError:
        raise OSError(0, "the private key is encrypted, and nobody can be asked for its password") from None


def _no_password() -> str:
    # Or OpenSSL would ask for it on the terminal.
    raise ValueError
