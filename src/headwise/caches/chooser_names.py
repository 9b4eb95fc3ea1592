"""Choosers of `headwise.sparse_decode` by name, with options as words: `pages:size=16`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from headwise.attention.sparse import Chooser
from headwise.caches import choosers
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import Heads
from headwise.models.model import Model

CHOOSERS: dict[str, Callable[..., Chooser]] = {
    kind.name: kind
    for kind in (
        choosers.Streaming, choosers.Random, choosers.Oracle, choosers.PreviousQuery, choosers.Pages, choosers.AnchorLayers,
        choosers.RetrievalHeads, choosers.RefreshEvery, choosers.SmallModel,
    )
}  # fmt: skip
KINDS: dict[str, Callable[[str], Any]] = {"int": int, "float": float}  # of options that can be written as a word


def chooser_of(text: str, model: Model, heads: Heads | None = None) -> Chooser:
    """The chooser that some words name, checked against a model.

    Args:
        text: `name` or `name:option=value,...`; options are those of the chooser's class. `small_model` takes `model=NAME`.
        model: That will run.
        heads: For `retrieval_heads`, which needs some, and `refresh_every`, which uses them if there are some.

    Raises:
        HeadwiseError: A name, option or value that does not exist, missing heads, or a chooser that does not fit the model.
    """
    name, _, rest = text.strip().partition(":")
    kind = kind_of(name)
    given = _given(name, rest)
    if name == "small_model":
        from headwise.models.load import load

        if "model" not in given:
            raise HeadwiseError("small_model needs a model: small_model:model=NAME")
        given["model"] = load(given["model"])
    if name == "retrieval_heads" and heads is None:
        raise HeadwiseError("retrieval_heads needs heads; give a head file, as headwise detect copy writes it")
    if name in ("retrieval_heads", "refresh_every"):
        given["heads"] = heads
    made = kind(**given)
    made.start(model, sorted(model.heads.full_layers))
    return made


def kind_of(name: str) -> Callable[..., Chooser]:
    """The class of a name. Raises `HeadwiseError` with the nearest names."""
    if name not in CHOOSERS:
        near = difflib.get_close_matches(name, CHOOSERS) or CHOOSERS
        raise HeadwiseError(f"unknown chooser {name!r}; use {', '.join(near)}")
    return CHOOSERS[name]


def _given(name: str, rest: str) -> dict[str, Any]:
    known = _options(name)
    found: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in rest.split(","))):
        option, equals, value = (side.strip() for side in part.partition("="))
        if not equals or option not in known:
            listed = f"write option=value with {', '.join(known)}" if known else "it has none"
            raise HeadwiseError(f"chooser {name} has no option {option!r}; {listed}")
        if option in found:
            raise HeadwiseError(f"chooser {name} is given {option} twice")
        try:
            found[option] = known[option](value)
        except ValueError as error:
            what = "a whole number" if known[option] is int else "a number"
            raise HeadwiseError(f"{option} of chooser {name} must be {what}; got {value!r}") from error
    return found


def _options(name: str) -> dict[str, Callable[[str], Any]]:
    """Option -> what turns its word into a value."""
    if name == "small_model":
        return {"model": str}
    parameters = inspect.signature(CHOOSERS[name]).parameters
    return {option: KINDS[p.annotation] for option, p in parameters.items() if p.annotation in KINDS}
