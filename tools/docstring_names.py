"""For the site only: docstrings of headwise are prose with "name: meaning" parts; this turns those parts into lists.

A part begins at a name of the function's parameters or of the class's fields, at the start of a sentence, and ends where the next begins.
Angle brackets are escaped, because docstrings speak of `<s>` and are no HTML.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Class, Extension, Function, Object


class DocstringNames(Extension):
    """Rewrites docstrings after an object and its members have been read."""

    def on_function(self, *, func: Function, **_: Any) -> None:
        """Parameters of a function."""
        _rewrite(func, [parameter.name.lstrip("*") for parameter in func.parameters])

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        """Fields of a class, and parameters of its constructor."""
        made = cls.members.get("__init__")
        given = [p.name for p in made.parameters] if isinstance(made, Function) else []
        _rewrite(cls, [*cls.members, *given])


def _rewrite(thing: Object, names: list[str]) -> None:
    if thing.docstring is None:
        return
    text = thing.docstring.value.replace("<", "&lt;")
    known = "|".join(sorted({re.escape(name) for name in names if not name.startswith("_")}, key=len, reverse=True))
    if known:
        part = re.compile(
            rf"(?:(?<=^)|(?<=\n)|(?<=[.;)] ))((?:{known})(?:,? (?:and )?(?:{known}))*)(?: \[([^\]]*)\](?: \w+)?)?: "
        )
        text = part.sub(_item, text)
    # A paragraph behind a list must not become part of its last item.
    thing.docstring.value = re.sub(r"\n(?=Raises|Returns|Tap)", "\n\n", text)


def _item(found: re.Match[str]) -> str:
    shape = f" `[{found[2]}]`" if found[2] else ""
    return "\n\n- " + ", ".join(f"**{name}**" for name in re.split(r",? (?:and )?", found[1])) + f"{shape}: "
