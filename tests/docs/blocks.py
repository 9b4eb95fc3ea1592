"""The fenced blocks of the documents, and the shell commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = ("bash", "console", "sh")
FENCE = re.compile(r"^```(\S*) *\n(.*?)^```$", re.M | re.S)
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*$")
COMMAND = re.compile(r"(headwise|make|pip|python|curl) ")


@dataclass(frozen=True)
class Block:
    """One fenced block. language: as written; an unmarked block whose first line is a command counts as bash. reason: why it is not run."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text, found = path.read_text("utf-8"), []
    for match in FENCE.finditer(text):
        above = NOT_RUN.search(text[: match.start()].rstrip("\n"))
        language = match[1] or ("bash" if COMMAND.match(match[2]) else "text")
        line = text[: match.start()].count("\n") + 1
        found.append(Block(str(path.relative_to(ROOT)), line, language, match[2], above[1] if above else None))
    return found


def commands_of(block: Block) -> list[list[str]]:
    """Words of each command of a shell block; comments go, continued lines are joined. In a console block commands stand behind `$ `."""
    text = block.text.replace("\\\n", " ")
    lines = text.splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return [words for line in lines if (words := shlex.split(line, comments=True))]
