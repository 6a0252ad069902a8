"""A local port that leads to a service of a cluster: `kubectl port-forward`, started again whenever it ends.

kubectl, because it knows every way to log in to a cluster (kubeconfig, exec plugins, OIDC), which no library of ours
would.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence

from enginehouse.errors import EnginehouseError, FailedPreconditionError, NotFoundError, UnavailableError

_FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) -> \d+")
# Of kubectl's libraries, such as "E1124 03:06:30.156677 ...": its own line says the same in fewer words.
_LIBRARY_LINE = re.compile(r"[EWIF]\d{4} ")
_ERROR_LINES = 5
_FIRST_PAUSE, _MOST_PAUSE = 0.2, 5.0


class PortForward:
    """`address` leads to a service, through one of its pods at a time, until `close`.

    Args:
        target: what kubectl forwards to, such as "service/enginehouse-optimizer".
        port: the service's port.
        namespace: where it is.
        context: of the kubeconfig; the current one when empty.
        timeout: seconds that the first connection may take.
    """

    def __init__(self, target: str, port: int, *, namespace: str, context: str = "", timeout: float = 30.0) -> None:
        """Raises FailedPreconditionError, NotFoundError or UnavailableError: why not, by kubectl's words."""
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            raise FailedPreconditionError(
                "kubectl is not on the PATH: install it, or run this in the cluster, or give the services' addresses"
            )
        self._command = [kubectl, "--namespace", namespace, *(["--context", context] if context else ())]
        self._command += ["port-forward", "--address", "127.0.0.1", target]
        self._target, self._port = target, port
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._errors: deque[str] = deque(maxlen=_ERROR_LINES)
        self._local = 0
        self._ready = threading.Event()
        self._process = self._start()
        atexit.register(self.close)
        if not self._ready.wait(timeout) or not self._local:
            self.close()
            raise _error_of(target, namespace, list(self._errors), timeout)

    @property
    def address(self) -> str:
        """The local "host:port"."""
        return f"127.0.0.1:{self._local}"

    def close(self) -> None:
        """End it. A second close does nothing, and neither does a forked child's: it is the parent's."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            self._closed.set()
            process = self._process
        atexit.unregister(self.close)
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*self._command, f"{self._local or ''}:{self._port}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for read in (self._read_output, self._read_errors):
            threading.Thread(target=read, args=(process,), name="port-forward", daemon=True).start()
        return process

    def _read_output(self, process: subprocess.Popen[str]) -> None:
        """Hear the port; once kubectl ends, start it again on the same one."""
        assert process.stdout is not None
        started = time.monotonic()
        for line in process.stdout:
            if found := _FORWARDING.match(line):
                self._local = int(found[1])
                self._ready.set()
        process.wait()
        if not self._local:
            time.sleep(0.05)  # the other thread reads why
            self._ready.set()
            return
        pause = _FIRST_PAUSE if time.monotonic() - started > _MOST_PAUSE else _MOST_PAUSE / 5
        if not self._closed.wait(pause):
            with self._lock:
                if not self._closed.is_set():
                    self._process = self._start()

    def _read_errors(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if not _LIBRARY_LINE.match(line):
                self._errors.append(line.strip())


def _error_of(target: str, namespace: str, said: Sequence[str], timeout: float) -> EnginehouseError:
    words = " ".join(said)
    where = f"{target} in the namespace {namespace}"
    if "NotFound" in words or "not found" in words:
        return NotFoundError(f"there is no {where}: expected Enginehouse there [{words}]")
    if "current-context" in words or "localhost:8080" in words or "does not exist" in words:
        return FailedPreconditionError(f"kubectl knows no cluster: set KUBECONFIG or the context [{words}]")
    return UnavailableError(f"kubectl did not forward to {where} within {timeout:g} s [{words or 'it said nothing'}]")
