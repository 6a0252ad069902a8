"""Whose a bearer token is: by a file of ours, or by the cluster's API server."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from enginehouse.errors import ResourceExhaustedError, UnauthenticatedError, UnavailableError
from enginehouse.kubernetes.api_server import ApiServer
from enginehouse.rpc.authorization import Principal
from enginehouse.rpc.denials import Denials
from enginehouse.rpc.static_tokens import digest_of

INVALID = "the token is not valid here: it is unknown, has ended, or is for another audience"

REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
# The API server itself remembers a good token for 10 s. Beyond `FRESH_SECONDS` we ask again, beside the call that is
# being answered, and beyond `GOOD_SECONDS` the call waits for the answer.
FRESH_SECONDS = 15.0
GOOD_SECONDS = 60.0
BAD_SECONDS = 5.0
MAX_REMEMBERED = 4096
# Strangers' tokens must not become a flood at the API server.
REVIEWS_AT_ONCE = 4
MAX_WAITING = 64
_MAX_TOKEN_BYTES = 16 << 10
_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

_log = structlog.get_logger("auth")


class TokenChecker(Protocol):
    """Knows whose a token is."""

    async def principal(self, token: str) -> Principal:
        """Its owner.

        Raises:
            UnauthenticatedError: nobody's.
            UnavailableError, ResourceExhaustedError: nobody can tell just now.
        """


class StaticTokens:
    """Tokens whose digests a file lists.

    Args:
        known: the principals by their tokens' digests, as they are now.
    """

    def __init__(self, known: Callable[[], Mapping[str, Principal]]) -> None:
        self._known = known

    async def principal(self, token: str) -> Principal:
        """The owner of a token, as `TokenChecker` says."""
        found = self._known().get(digest_of(token))
        if found is None:
            raise UnauthenticatedError(INVALID)
        return found


@dataclass
class _Verdict:
    """What the API server said of a token; times are `time.monotonic()`'s."""

    principal: Principal | None
    asked: float
    until: float


class TokenReviews:
    """Service account tokens (and others) that the cluster's API server knows, by TokenReview.

    Verdicts are remembered by the token's digest: good ones for a minute at most and not beyond the token's own end,
    bad ones for seconds. The server away is UNAVAILABLE, never a yes.

    Args:
        audience: what a token must be made for.
    """

    def __init__(self, server: ApiServer, audience: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._audience = audience
        self._clock = clock
        self._known: OrderedDict[str, _Verdict] = OrderedDict()
        self._asking: dict[str, asyncio.Task[_Verdict]] = {}
        self._threads = ThreadPoolExecutor(REVIEWS_AT_ONCE, thread_name_prefix="token-review")
        self._denials = Denials()

    async def principal(self, token: str) -> Principal:
        """The owner of a token, as `TokenChecker` says."""
        if len(token) > _MAX_TOKEN_BYTES or not _JWT.fullmatch(token):
            raise UnauthenticatedError(INVALID)  # no cluster issues such a token: no need to ask
        key = digest_of(token)
        verdict = self._known.get(key)
        now = self._clock()
        if verdict is None or now >= verdict.until:
            verdict = await asyncio.shield(self._ask(key, token))
        elif verdict.principal is not None and now - verdict.asked >= FRESH_SECONDS and key not in self._asking:
            verdict.asked = now  # one look at a time, also while nobody answers
            self._ask(key, token).add_done_callback(_heard)
        if verdict.principal is None:
            raise UnauthenticatedError(INVALID)
        return verdict.principal

    def _ask(self, key: str, token: str) -> asyncio.Task[_Verdict]:
        """Ask once, however many calls wait for it."""
        task = self._asking.get(key)
        if task is None:
            if len(self._asking) >= MAX_WAITING:
                raise ResourceExhaustedError("too many tokens wait to be checked: try again", retry_after_seconds=1.0)
            task = self._asking[key] = asyncio.get_running_loop().create_task(self._review(key, token))
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        return task

    async def _review(self, key: str, token: str) -> _Verdict:
        spec = {"token": token, "audiences": [self._audience]}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        loop = asyncio.get_running_loop()
        try:
            status, answer = await loop.run_in_executor(self._threads, self._server.post, REVIEWS, body)
        except UnavailableError as error:
            self._denials.log("tokens cannot be checked", reason=error.message)
            raise _cannot_check() from None
        if status not in (200, 201) or not isinstance(answer, dict):
            said = answer.get("message") if isinstance(answer, dict) else None
            hint = "; the service account needs the ClusterRole system:auth-delegator" if status == 403 else ""
            self._denials.log("tokens cannot be checked", reason=f"the API server answered {status}: {said}{hint}")
            raise _cannot_check()
        principal, reason = verdict_of(answer, self._audience)
        now = self._clock()
        if principal is None:
            self._denials.log("token refused", reason=reason.replace(token, "..."))
            verdict = _Verdict(None, now, now + BAD_SECONDS)
        else:
            verdict = _Verdict(principal, now, now + min(GOOD_SECONDS, seconds_left(token, time.time())))
        self._known[key] = verdict
        self._known.move_to_end(key)
        while len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        return verdict


def verdict_of(review: Mapping[str, Any], audience: str) -> tuple[Principal | None, str]:
    """The principal of an answered TokenReview, or None and why.

    A server that does not know audiences answers without them, and then the token may be for anything: that is a no.
    """
    status = review.get("status") or {}
    user = status.get("user") or {}
    name = user.get("username")
    if status.get("authenticated") is not True or not name:
        return None, str(status.get("error") or "not authenticated")
    if audience not in (status.get("audiences") or ()):
        return None, f"the answer does not name the audience {audience}"
    return Principal(str(name), authenticated=True, groups=tuple(str(g) for g in user.get("groups") or ())), ""


def seconds_left(token: str, now: float) -> float:
    """Until a JSON web token ends, by what it says itself; without end when it does not say.

    Args:
        now: Unix time in seconds.
    """
    middle = token.split(".")[1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        return float(claims["exp"]) - now
    except (ValueError, KeyError, TypeError, binascii.Error):
        return float("inf")


def _cannot_check() -> UnavailableError:
    return UnavailableError("the token cannot be checked now: try again", retry_after_seconds=1.0)


def _heard(task: asyncio.Task[_Verdict]) -> None:
    """A look beside the call failed: it was logged, and the next one asks again."""
    if not task.cancelled():
        task.exception()
