"""Cache methods as words of the command line: `snapkv:budget=256,window=16`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from headwise.cli.options import method_named, output_path
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.caches.kept_layer import Compressor

Budget = int | float  # positions per KV head, or a share of the prompt


def parse_cache(text: str, budget: Budget | None = None) -> Compressor:
    """The method that some words name.

    Args:
        text: `name` or `name:option=value,...`; options are those of the method's class. heads=FILE is a head file, layer_errors=FILE a file of
            layer errors, budget=256 are positions per KV head, budget=0.1 is the share of the prompt that is kept.
        budget: Used if the words name none.

    Raises:
        HeadwiseError: A name, option or value that does not exist, or an option that is missing.
    """
    name, _, rest = text.strip().partition(":")
    kind, known = _class_of(name), known_options(name)
    values = given_options(name, rest, known)
    if "budget" in known and (chosen := values.pop("budget", budget)) is not None:
        values |= sized(chosen)
    elif "budget" in known:
        raise HeadwiseError(f"{name} needs a budget: {name}:budget=256 (positions) or {name}:budget=0.1 (share of the prompt)")
    for option, parameter in _parameters(kind).items():
        if parameter.default is parameter.empty and option not in values:
            what = "a head file" if option == "heads" else option
            raise HeadwiseError(f"{name} needs {what}: {name}:{option}={'FILE' if option == 'heads' else '...'}")
    made: Compressor = kind(**values)
    return made


def given_options(name: str, words: str, known: Mapping[str, Callable[[str, str], Any]]) -> dict[str, Any]:
    """Option -> value.

    Args:
        name: Whose options they are, for messages.
        words: `option=value,option=value`.
        known: Option -> what turns its text into a value, as `known_options` gives it.

    Raises:
        HeadwiseError: An option that is not known or stands there twice, or a value that does not fit.
    """
    given: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in words.split(","))):
        option, equals, value = (side.strip() for side in part.partition("="))
        if not equals or option not in known:
            raise HeadwiseError(f"{name} has no option {option!r}; write option=value with {_listed(known)}")
        if option in given:
            raise HeadwiseError(f"{name}:{words} gives {option} twice")
        given[option] = value
    return {option: known[option](option, value) for option, value in given.items()}


def with_heads(text: str, model: str | None) -> str:
    """The words of a method that needs a head file and names none, with the file that `headwise detect` writes for the model by default.

    Args:
        text: `name` or `name:option=value,...`.
        model: As the user named it; None: the default model.

    Raises:
        HeadwiseError: There is no such file; what to run is said.
    """
    name, colon, rest = text.strip().partition(":")
    kind = _class_of(name)
    detector = getattr(kind, "found_by", None)
    if detector is None or any(part.partition("=")[0].strip() == "heads" for part in rest.split(",")):
        return text
    path = output_path(None, model, detector, overwrite=True)
    if not path.is_file():
        command = f"headwise detect {detector} {model or ''}".strip()
        raise HeadwiseError(
            f"{name} needs a head file: {name}:heads=FILE. Without one it takes {path}, which does not exist yet; to make it, run: {command}"
        )
    return f"{name}:heads={path}{',' if colon else ''}{rest}"


def shown(texts: Sequence[str]) -> list[str]:
    """Methods as results call them: files without their folders, unless two would look alike."""
    short = [",".join(_without_folder(part) for part in text.split(",")) for text in texts]
    return [one if short.count(one) == 1 else text for one, text in zip(short, texts, strict=True)]


def _without_folder(part: str) -> str:
    option, equals, value = part.partition("=")
    return f"{option}={Path(value).name}" if equals and option.split(":")[-1].strip() in ("heads", "layer_errors") else part


def known_options(name: str) -> Mapping[str, Callable[[str, str], Any]]:
    """Option -> what turns its text into a value. Raises `HeadwiseError` for an unknown method."""
    kind = _class_of(name)
    hints = get_type_hints(kind)
    readers = {option: _reader(hints[option]) for option in _parameters(kind)}
    readers.pop("compression_ratio", None)  # said by the budget
    readers |= {
        option: reader for option, reader in (("budget", read_budget), ("layer_errors", _layer_errors)) if option in readers
    }
    return {option: reader for option, reader in readers.items() if reader is not None}


def split_specs(text: str) -> list[str]:
    """`a:x=1,y=2,b` -> [`a:x=1,y=2`, `b`]: a part without a name of its own belongs to the method in front of it."""
    found: list[str] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if found and "=" in part and ":" not in part.split("=")[0]:
            found[-1] += ("," if ":" in found[-1] else ":") + part
        else:
            found.append(part)
    return found


def read_budget(option: str, text: str) -> Budget:
    """A whole number of positions, or a share of the prompt between 0 and 1 with a dot."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    if "." in text and (share := read_float(option, text)) > 0 and share < 1:
        return share
    raise HeadwiseError(
        f"{option} must be a whole number of positions (256) or a share of the prompt below 1 (0.1); got {text!r}"
    )


def sized(budget: Budget) -> dict[str, Any]:
    """The budget as a press takes it."""
    return {"budget": budget} if isinstance(budget, int) else {"compression_ratio": round(1 - budget, 12)}


def _class_of(name: str) -> Any:
    return method_named("presses", name)


def _parameters(kind: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(kind).parameters


def _listed(known: Mapping[str, Any]) -> str:
    return ", ".join(known) or "none: it has no options"


def read_int(option: str, text: str) -> int:
    """A whole number. Raises `HeadwiseError` for anything else."""
    try:
        return int(text)
    except ValueError as error:
        raise HeadwiseError(f"{option} must be a whole number; got {text!r}") from error


def read_float(option: str, text: str) -> float:
    """A number. Raises `HeadwiseError` for anything else."""
    try:
        return float(text)
    except ValueError as error:
        raise HeadwiseError(f"{option} must be a number; got {text!r}") from error


def _bool(option: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise HeadwiseError(f"{option} must be true or false; got {text!r}")
    return text == "true"


def _heads(option: str, text: str) -> Any:
    from headwise.heads import load_heads

    return load_heads(Path(text))


def _layer_errors(option: str, text: str) -> Any:
    from headwise.methods.compresskv.layer_errors import LayerErrors

    return LayerErrors.load(Path(text)).profile()


def read_str(option: str, text: str) -> str:
    """The text itself."""
    return text


def _reader(hint: Any) -> Callable[[str, str], Any] | None:
    """For options of one plain type, or of none, and for scores of heads; others cannot be written in a word."""
    from headwise.heads.types import HeadScores

    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    if HeadScores in kinds:
        return _heads
    plain: dict[Any, Callable[[str, str], Any]] = {int: read_int, float: read_float, bool: _bool, str: read_str}
    return plain.get(kinds[0]) if len(kinds) == 1 else None
