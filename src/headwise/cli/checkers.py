"""Checkers of support by their name on the command line: `lexical`, `entailment:FOLDER`, and those of other packages (`headwise.checkers`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwise.cli import options as o
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.evaluation.support import SupportChecker

HELP = (
    "Who says whether a document supports a sentence: lexical (shared words: weak), entailment:FOLDER-OR-ID (an entailment model); headwise-lab "
    "adds world (exact, for texts of the micro-world)."
)


def checker_of(text: str, device: str) -> SupportChecker:
    """The checker that was named.

    Args:
        text: Such as `entailment:models/nli`.
        device: Of an entailment model, as a user gave it.

    Raises:
        HeadwiseError: An unknown checker, or an entailment model that cannot be used.
    """
    name, _, rest = text.strip().partition(":")
    if name == "entailment":
        from headwise.evaluation.entailment import EntailmentChecker
        from headwise.models.load import resolve_device

        return EntailmentChecker(rest, resolve_device(device), offline=bool(o.shared("offline").get("offline")))
    if rest:
        raise HeadwiseError(f"the checker {name} takes no options; write --checker {name}")
    if name == "lexical":
        from headwise.evaluation.support import LexicalOverlap

        return LexicalOverlap()
    known = o.installed("checkers")
    if name not in known:
        raise HeadwiseError(f"unknown checker {name!r}; use {', '.join(('lexical', 'entailment:FOLDER', *sorted(known)))}")
    made: SupportChecker = o.method_named("checkers", name)()
    return made
