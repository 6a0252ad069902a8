"""A terminal's output as an SVG picture, for README. Needs pyte and rich.

script -qec 'stty cols 110; make demo' demo.ansi
python docs/images/capture.py demo.ansi docs/images/demo.svg --lines 60
"""

from __future__ import annotations

import argparse
import io
from itertools import groupby
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

WIDTH = 110
ROWS = 1000


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("source", type=Path)
    cli.add_argument("target", type=Path)
    cli.add_argument("--lines", type=int, default=60, help="so many at the end")
    cli.add_argument("--title", default="make demo")
    arguments = cli.parse_args()
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for line in screen(arguments.source.read_bytes())[-arguments.lines :]:
        console.print(line, soft_wrap=True)
    console.save_svg(str(arguments.target), title=arguments.title)


def color_of(name: str) -> str | None:
    """Rich's name of pyte's color."""
    if name == "default":
        return None
    name = name.replace("brown", "yellow")
    if name.startswith("bright"):
        return f"bright_{name[6:]}"
    return name if name.isalpha() else f"#{name}"


def screen(output: bytes) -> list[Text]:
    """What a terminal shows after `output`, without the blank lines at its end."""
    terminal = pyte.Screen(WIDTH, ROWS)
    pyte.ByteStream(terminal).feed(output)
    lines = []
    for row in range(ROWS):
        cells = terminal.buffer[row]
        line = Text()
        for (color, bold), run in groupby((cells[column] for column in range(WIDTH)), key=lambda c: (c.fg, c.bold)):
            line.append("".join(cell.data for cell in run), Style(color=color_of(color), bold=bold))
        line.rstrip()
        if not line.plain.startswith("Script "):
            lines.append(line)
    while lines and not lines[-1].plain.strip():
        lines.pop()
    return lines


if __name__ == "__main__":
    main()
