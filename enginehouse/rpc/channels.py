"""Channels to a service: TLS, and the token that goes with every call. For the SDK, and for services that call."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio

from enginehouse.errors import InvalidArgumentError, UnauthenticatedError
from enginehouse.rpc.watched_file import Stamp, WatchedFile, stamp

# Names of one service come and go with its pods: gRPC's own 30 s between look-ups would be an outage.
RESOLVE_OPTION = ("grpc.dns_min_time_between_resolutions_ms", 1_000)

Options = Sequence[tuple[str, int | str]]


@dataclass(frozen=True)
class TLS:
    """How to speak TLS to the services. Files that are replaced are read again for the next connection.

    Attributes:
        ca: PEM file of the CAs to trust; the system's when None.
        certificate: PEM file of our certificate, for mutual TLS. Goes with `key`.
        key: PEM file of our private key.
        server_name: the name to expect in the servers' certificates, where it is not the address's.
    """

    ca: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        for name in ("ca", "certificate", "key"):
            path = getattr(self, name)
            object.__setattr__(self, name, None if path is None else Path(path))
        if (self.certificate is None) != (self.key is None):
            raise InvalidArgumentError("TLS: certificate and key go together: give both or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            InvalidArgumentError: one cannot be read, or certificate and key do not go together.
        """
        try:
            if self.certificate is not None and self.key is not None:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(self.certificate, self.key, password="")
            return grpc.ssl_channel_credentials(_content(self.ca), _content(self.key), _content(self.certificate))
        except ssl.SSLError:
            raise InvalidArgumentError(
                f"TLS: {self.certificate} and {self.key} do not go together: expected PEM files of one pair"
            ) from None
        except OSError as error:
            raise InvalidArgumentError(f"TLS: cannot read {error.filename}: {error.strerror}") from None

    def stamps(self) -> tuple[Stamp | None, ...]:
        """What changes when a file is replaced."""
        return tuple(_stamp(Path(path)) for path in (self.ca, self.certificate, self.key) if path is not None)


def _content(path: Path | str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


def _stamp(path: Path) -> Stamp | None:
    try:
        return stamp(path)
    except OSError:
        return None


class Token:
    """A bearer token, given or in a file that is read again as it changes. Its `repr` does not show it.

    Args:
        value: the token.
        file: where it is, in place of `value`. Kubernetes replaces service account tokens before they end.
        allow_plaintext: send it over plain text to other machines, where a mesh or the network encrypts.
    """

    def __init__(self, value: str = "", *, file: Path | str | None = None, allow_plaintext: bool = False) -> None:
        """Raises InvalidArgumentError: neither or both are given, or the token has spaces or line breaks in it."""
        if bool(value) == (file is not None):
            raise InvalidArgumentError("a token or a token file: give one of the two")
        self.allow_plaintext = allow_plaintext
        self._file = None if file is None else Path(file)
        self._watched: WatchedFile[str] | None = None
        self._value = _checked(value) if value else ""

    def __repr__(self) -> str:
        return f"Token(file={str(self._file)!r})" if self._file is not None else "Token(...)"

    @property
    def metadata(self) -> tuple[str, str]:
        """What goes with a call.

        Raises:
            UnauthenticatedError: the file cannot be read, or holds no token.
        """
        return ("authorization", f"Bearer {self._value if self._file is None else self._read(self._file)}")

    def _read(self, file: Path) -> str:
        if self._watched is None:
            try:
                self._watched = WatchedFile(file, lambda content: _checked(content.decode(errors="replace").strip()))
            except OSError as error:
                raise UnauthenticatedError(f"the token file {file} cannot be read: {error.strerror}") from None
            except InvalidArgumentError as error:
                raise UnauthenticatedError(f"the token file {file}: {error.message}") from None
        return self._watched.get()


def _checked(token: str) -> str:
    if not token or not token.isascii() or any(character <= " " for character in token):
        raise InvalidArgumentError("the token is empty, or has spaces or characters that are not ASCII in it")
    return token


def token_of(value: str | Token | None, file: Path | str | None) -> Token | None:
    """A token as callers give it; None when they give none.

    Raises:
        InvalidArgumentError: both are given.
    """
    if value is None:
        return None if file is None else Token(file=file)
    if file is not None:
        raise InvalidArgumentError("token and token_file: give one of the two")
    return value if isinstance(value, Token) else Token(value)


def open_channel(
    address: str, *, tls: TLS | None = None, token: Token | None = None, options: Options = ()
) -> grpc.aio.Channel:
    """A channel to an address; every call on it carries the token.

    Raises:
        InvalidArgumentError: a TLS file cannot be used; or the token would go to another machine in plain text.
    """
    given = [RESOLVE_OPTION, *options]
    _check_plaintext(address, tls, token)
    if tls is None:
        channel = grpc.aio.insecure_channel(address, options=given)
    else:
        if tls.server_name:
            given.append(("grpc.ssl_target_name_override", tls.server_name))
        channel = grpc.aio.secure_channel(address, tls.credentials(), options=given)
    return channel if token is None else cast(grpc.aio.Channel, _WithToken(channel, token))


def _check_plaintext(address: str, tls: TLS | None, token: Token | None) -> None:
    if tls is None and token is not None and not (token.allow_plaintext or is_loopback(address)):
        raise InvalidArgumentError(
            f"the token would go to {address} in plain text, for everybody on the way to read: give tls "
            "(ENGINEHOUSE_CLIENT_CA), or, where a mesh or the network encrypts, Token(..., allow_plaintext=True) "
            "(ENGINEHOUSE_CLIENT_ALLOW_PLAINTEXT=true)"
        )


def is_loopback(address: str) -> bool:
    """Whether an address is of this machine alone."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _WithToken:
    """A channel whose calls carry a token. gRPC's own call credentials refuse plain text even on loopback."""

    def __init__(self, channel: grpc.aio.Channel, token: Token) -> None:
        self._channel = channel
        self._token = token

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    async def __aenter__(self) -> _WithToken:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._channel.close()

    def unary_unary(self, *args: Any, **options: Any) -> Any:
        return _Calls(self._channel.unary_unary(*args, **options), self._token)

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        return _Calls(self._channel.unary_stream(*args, **options), self._token)

    def stream_unary(self, *args: Any, **options: Any) -> Any:
        return _Calls(self._channel.stream_unary(*args, **options), self._token)

    def stream_stream(self, *args: Any, **options: Any) -> Any:
        return _Calls(self._channel.stream_stream(*args, **options), self._token)


class _Calls:
    """A method of a channel."""

    def __init__(self, method: Any, token: Token) -> None:
        self._method = method
        self._token = token

    def __call__(self, *args: Any, metadata: Any = None, **options: Any) -> Any:
        return self._method(*args, metadata=(*(metadata or ()), self._token.metadata), **options)


@dataclass(frozen=True)
class Credentials:
    """How to call other services.

    Attributes:
        tls: plain text when None.
        token: none is sent when None.
    """

    tls: TLS | None = None
    token: Token | None = field(default=None)

    def check(self, address: str) -> None:
        """Find out at the start what every call would fail with.

        Raises:
            InvalidArgumentError: a TLS file cannot be used; or the token would go to another machine in plain text.
        """
        if self.tls is not None:
            self.tls.credentials()
        _check_plaintext(address, self.tls, self.token)

    def open(self, address: str, options: Options = ()) -> grpc.aio.Channel:
        """A channel, as `open_channel` makes it."""
        return open_channel(address, tls=self.tls, token=self.token, options=options)


def credentials_from(variables: Mapping[str, str]) -> Credentials:
    """What ENGINEHOUSE_CLIENT_CA, _CERTIFICATE, _KEY, _SERVER_NAME, _TLS, _TOKEN, _TOKEN_FILE and _ALLOW_PLAINTEXT say.

    Raises:
        InvalidArgumentError: they do not go together.
    """

    def text(name: str) -> str:
        return variables.get(f"ENGINEHOUSE_CLIENT_{name}", "")

    def path(name: str) -> Path | None:
        return Path(found) if (found := text(name)) else None

    tls: TLS | None = TLS(path("CA"), path("CERTIFICATE"), path("KEY"), text("SERVER_NAME"))
    if tls == TLS() and not _yes(text("TLS")):
        tls = None
    token = None
    if text("TOKEN") or text("TOKEN_FILE"):
        token = Token(text("TOKEN"), file=path("TOKEN_FILE"), allow_plaintext=_yes(text("ALLOW_PLAINTEXT")))
    return Credentials(tls, token)


def _yes(text: str) -> bool:
    return text.lower() in ("1", "true", "yes", "on")
