"""A terminal's output as an SVG picture, for README.

script -qec 'make demo' demo.ansi && python docs/images/capture.py demo.ansi docs/images/demo.svg --lines 40
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from rich.console import Console
from rich.text import Text


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("source", type=Path)
    cli.add_argument("target", type=Path)
    cli.add_argument("--lines", type=int, default=40, help="so many at the end")
    cli.add_argument("--title", default="make demo")
    arguments = cli.parse_args()
    lines = final_lines(arguments.source.read_text(errors="replace"))[-arguments.lines :]
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    for line in lines:
        console.print(Text.from_ansi(line), soft_wrap=True)
    console.save_svg(str(arguments.target), title=arguments.title)


def final_lines(text: str) -> list[str]:
    """What stays on the screen: live displays move the cursor up and draw again; only their last drawing counts."""
    screen: list[str] = []
    row = 0
    for raw in text.replace("\r\n", "\n").split("\n"):
        line = raw
        while (at := line.find("\x1b[1A")) >= 0:
            line = line[:at] + line[at + 4 :]
            row -= 1
        line = line.replace("\x1b[2K", "").replace("\x1b[?25l", "").replace("\x1b[?25h", "").rsplit("\r", 1)[-1]
        row = max(row, 0)
        screen[row:] = [*screen[row:row], line] if row >= len(screen) else [line, *screen[row + 1 :]]
        row += 1
    return [line.rstrip() for line in screen if not line.startswith("Script ")]


if __name__ == "__main__":
    main()
