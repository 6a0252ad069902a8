"""auth token, auth hash, and the options that say who calls."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from enginehouse.rpc.authorization import Principal
from enginehouse.rpc.static_tokens import parse_tokens


def test_a_token_and_its_line(enginehouse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    token = enginehouse("auth", "token").out.strip()
    assert len(token) == 43
    Path("token").write_text(token + "\n")
    line = enginehouse("auth", "hash", "ci", "--group", "a", "--group", "b", "--token-file", "token").out
    assert list(parse_tokens(line.encode()).values()) == [Principal("ci", True, ("a", "b"))] and token not in line
    monkeypatch.setattr("sys.stdin", io.StringIO(token + "\n"))
    assert enginehouse("auth", "hash", "ci", "--group", "a", "--group", "b").out == line


def test_a_guessable_token_is_refused(enginehouse: Any) -> None:
    Path("token").write_text("hunter2")
    refused = enginehouse("auth", "hash", "ci", "--token-file", "token")
    assert refused.status == 2 and "at least 22" in refused.err and "hunter2" not in refused.err
    assert enginehouse("auth", "hash", "ci", "--token-file", "absent").status == 2


def test_the_options_reach_the_client(enginehouse: Any) -> None:
    missing = enginehouse("--token-file", "absent", "models", "list")
    assert missing.status == 1 and "token file absent cannot be read" in missing.err and "--token-file" in missing.err
    Path("token").write_text("a-token-of-the-test")
    assert enginehouse("--token-file", "token", "models", "list").status == 0
    refused = enginehouse("--ca", "absent.pem", "models", "list")
    assert refused.status == 2 and "TLS: cannot read absent.pem" in refused.err
