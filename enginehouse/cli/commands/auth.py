"""auth token, hash: lines of a token file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from enginehouse.cli.output import say
from enginehouse.errors import InvalidArgumentError
from enginehouse.rpc.static_tokens import new_token, token_line

app = typer.Typer(help="Tokens for services with ENGINEHOUSE_AUTH=tokens.", no_args_is_help=True)


@app.command(epilog="Example: enginehouse auth token > ci.token")
def token() -> None:
    """Print a fresh random token, for one caller to keep."""
    print(new_token())


@app.command("hash", epilog="Example: enginehouse auth hash ci --group builders < ci.token >> tokens")
def hash_token(
    name: Annotated[str, typer.Argument(help="The caller, as the roles file names it.")],
    group: Annotated[list[str] | None, typer.Option(help="A group that the caller is in; may be repeated.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File of the token; standard input when absent.")] = None,
) -> None:
    """Print a token's line for ENGINEHOUSE_AUTH_TOKENS_FILE, which holds digests and no tokens."""
    if token_file is None and sys.stdin.isatty():
        say("the token, then Enter:")
    try:
        text = sys.stdin.readline() if token_file is None else token_file.read_text()
    except OSError as error:
        raise InvalidArgumentError(f"--token-file {token_file} cannot be read: {error.strerror}") from None
    print(token_line(text.strip(), name, tuple(group or ())))
