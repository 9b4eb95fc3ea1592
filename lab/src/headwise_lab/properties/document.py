"""Fill the numbers of docs/properties.md from a result: `python -m headwise_lab.properties.document RESULT.json docs/properties.md`.

Every block between `<!-- properties: NAME -->` and `<!-- end -->` is replaced by what the result says; the text around it stays.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headwise.heads import HeadwiseError
from headwise.heads.files import write_atomically

BLOCK = re.compile(r"(<!-- properties: ([a-z_]+) -->\n).*?(<!-- end -->)", re.DOTALL)
SIGNS = {True: "yes", False: "**no**", None: "not measured"}
Result = Mapping[str, Any]


def fill(text: str, result: Result) -> str:
    """The document with all its blocks made anew.

    Args:
        text: The document.
        result: JSON data of `headwise lab properties`.

    Raises:
        HeadwiseError: A result or a block that is not known.
    """
    if result.get("headwise_properties") != 1:
        raise HeadwiseError("this is no result of `headwise lab properties`; give its properties.json")
    properties = {one["key"]: one for one in result["properties"]}

    def block(match: re.Match[str]) -> str:
        name = match[2]
        if name == "summary":
            body = _summary(result)
        elif name == "settings":
            body = _table(("setting", "value"), [(key, str(value)) for key, value in result["settings"].items()])
        elif name in properties:
            body = _property(properties[name])
        else:
            raise HeadwiseError(f"the document has a block {name!r}; known are summary, settings, {', '.join(properties)}")
        return f"{match[1]}{body}\n{match[3]}"

    return BLOCK.sub(block, text)


def _summary(result: Result) -> str:
    rows = [
        (
            one["title"],
            f"**{one['verdict']}**",
            one["found"],
            "; ".join(f"{row['what']}: {row['value']}" for row in one["paper"][:2]),
        )
        for one in result["properties"]
    ]
    models = ", ".join(f"`{model['name']}`" for model in result["models"])
    return (
        f"Models: {models}.\n\n" + _table(("property", "verdict", "here", "paper"), rows) + f"\n\nRule. {result['verdict_rule']}"
    )


def _property(one: Mapping[str, Any]) -> str:
    """Claim, verdict, what the paper says, and every check."""
    lines = [f"{one['claim']} Verdict: **{one['verdict']}**; {one['found']}.", ""]
    lines += [f"- Paper, {row['what']}: {row['value']} ({row['source']})" for row in one["paper"]]
    rows = [
        (
            check["model"],
            check["what"] + ("" if check["main"] else " (supporting)"),
            check["value"] + (f" ({check['note']})" if check["note"] else ""),
            check["rule"],
            SIGNS[check["holds"]],
        )
        for check in one["checks"]
    ]
    lines += ["", _table(("model", "check", "here", "rule", "passes"), rows)]
    lines += [f"\n{note}" for note in one["notes"]]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in cells)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Command line of this file."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, target = map(Path, sys.argv[1:])
    try:
        filled = fill(target.read_text("utf-8"), json.loads(source.read_text("utf-8")))
    except (HeadwiseError, OSError, ValueError) as error:
        sys.exit(f"{source} was not written into {target}: {error}")
    write_atomically(target, filled.encode())


if __name__ == "__main__":
    main()
