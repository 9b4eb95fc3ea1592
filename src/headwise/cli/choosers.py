"""Choosers of `headwise.sparse_decode` by name, with options as words: `pages:size=16`. They are entry points, so that others can add some."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwise.cli import options as o
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import Heads

if TYPE_CHECKING:
    from headwise.attention.sparse import Chooser
    from headwise.models.model import Model

MODEL, FILE, HEADS = "model", "file", "heads"  # options that are not written as numbers


def chooser_of(text: str, model: Model, heads: Heads | None = None) -> Chooser:
    """The chooser that some words name, checked against a model.

    Args:
        text: `name` or `name:option=value,...`; options are those of the chooser's class. `small_model` takes `model=NAME`, `distilled` `file=FILE`.
        model: That will run.
        heads: For choosers that take heads: `retrieval_heads`, which needs some, and `refresh_every`, which uses them if there are some.

    Raises:
        HeadwiseError: A name, option or value that does not exist, something missing, or a chooser that does not fit the model.
    """
    name, _, rest = text.strip().partition(":")
    kind = o.method_named("choosers", name)
    known = inspect.signature(kind).parameters
    given = _given(name, rest, {option: _reader(p) for option, p in known.items() if option != HEADS})
    for option, example in ((MODEL, "NAME"), (FILE, "FILE")):
        if option in known and option not in given:
            raise HeadwiseError(f"{name} needs a {option}: {name}:{option}={example}")
    if MODEL in given:
        from headwise.models.load import load

        given[MODEL] = load(given[MODEL])
    if HEADS in known:
        if heads is None and known[HEADS].default is inspect.Parameter.empty:
            raise HeadwiseError(f"{name} needs heads; give a head file, as headwise detect copy writes it")
        given[HEADS] = heads
    made: Chooser = kind(**given)
    made.start(model, sorted(model.heads.full_layers))
    return made


def file_digests(text: str) -> dict[str, str]:
    """Fingerprints of the files and folders that choosers are read from; a name says nothing about what has been trained into it since.

    Args:
        text: Choosers separated by commas, each accepted by `chooser_of`.
    """
    import hashlib

    from headwise.cli.cache_methods import split_specs

    options = [part.partition("=") for spec in split_specs(text) for part in spec.partition(":")[2].split(",")]
    found = dict[str, str]()
    for name in (value.strip() for option, _, value in options if option.strip() == FILE):
        path, digest = Path(name), hashlib.sha256()
        for file in sorted(part for part in path.iterdir() if part.is_file()) if path.is_dir() else [path]:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        found[name] = digest.hexdigest()[:16]
    return found


def _given(name: str, rest: str, known: dict[str, Callable[[str], Any]]) -> dict[str, Any]:
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
            what = {int: "a whole number", float: "a number"}.get(known[option], "yes or no")  # type: ignore[call-overload]
            raise HeadwiseError(f"{option} of chooser {name} must be {what}; got {value!r}") from error
    return found


def _reader(parameter: inspect.Parameter) -> Callable[[str], Any]:
    """What turns the word of an option into its value, by the option's default."""
    kinds: dict[type, Callable[[str], Any]] = {bool: _yes, int: int, float: float}
    return kinds.get(type(parameter.default), str)


def _yes(word: str) -> bool:
    if word.lower() not in ("yes", "no"):
        raise ValueError(word)
    return word.lower() == "yes"
