"""A call that fails lets go of what its callers held, without a garbage collection."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from enginehouse.errors import InvalidArgumentError
from enginehouse.workers.calls import Calls


class Answer:
    """Something large."""


@pytest.fixture
def no_collections() -> Any:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def test_an_error_does_not_keep_the_frames_above_it(no_collections: None) -> None:
    sent: list[dict[str, Any]] = []
    calls = Calls(sent.append, lambda segment: None, lambda frame: None)

    async def caller() -> weakref.ref[Answer]:
        answer = Answer()
        seen = weakref.ref(answer)
        try:
            await calls.call({"type": "infer"})
        except InvalidArgumentError:
            pass
        else:
            raise AssertionError("no error")
        return seen

    task = asyncio.create_task(caller())
    await asyncio.sleep(0)
    calls.answer({"type": "error", "id": sent[0]["id"], "code": "INVALID_ARGUMENT", "message": "bad"})
    seen = await task
    del task
    assert seen() is None
