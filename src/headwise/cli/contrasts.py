"""The words of `--contrast`: `heads:FILE,top=8,alpha=0.5`, `prompt:FILE,alpha=0.2,plausibility=0.1`, `model:NAME,combine=adaptive`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwise.cli import options as o
from headwise.cli.cache_methods import given_options, read_float, read_int, read_str
from headwise.cli.notes import hold
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.heads.types import HeadScores, HeadSet
    from headwise.models.model import Model
    from headwise.runtime.contrast import Contrasted

Reader = Callable[[str, str], Any]
RULE: Mapping[str, Reader] = {"combine": read_str, "alpha": read_float, "plausibility": read_float, "cap": read_float}
DRAW: Mapping[str, Reader] = {"temperature": read_float, "top_p": read_float, "seed": read_int}
HEADS: Mapping[str, Reader] = {"top": read_int, "mode": read_str, "scope": read_str}
KINDS = {"heads": ("FILE", HEADS), "prompt": ("FILE", {}), "model": ("NAME", {})}
MANY = 0.15  # share of the heads from which a model without them writes little that makes sense


@dataclass(frozen=True)
class Words:
    """What `--contrast` says.

    Attributes:
        text: As it was written.
        kind: `heads`, `prompt` or `model`.
        source: The file or the model.
        rule: Options of `contrastive_generate`, those of a draw among them.
        heads: Options of a branch without heads.
        scores: The head file, read; None for other kinds.
        prompt: Text of the negative prompt; None for other kinds.
    """

    text: str
    kind: str
    source: str
    rule: Mapping[str, Any]
    heads: Mapping[str, Any]
    scores: HeadScores | None
    prompt: str | None


def parse_contrast(text: str) -> Words:
    """Everything that the words say, checked as far as it can be without a model.

    Args:
        text: `kind:source` or `kind:source,option=value,...`.

    Raises:
        HeadwiseError: A kind, option or value that does not exist, something missing, or a file that cannot be read.
    """
    kind, _, rest = text.strip().partition(":")
    if kind not in KINDS:
        raise HeadwiseError(f"unknown contrast {kind!r}; write heads:FILE,top=8 or prompt:FILE or model:NAME")
    what, own = KINDS[kind]
    source, _, words = rest.partition(",")
    if not source.strip() or "=" in source:
        raise HeadwiseError(f"{kind} needs a {what.lower()} right behind the colon: {kind}:{what},alpha=0.5")
    given = given_options(kind, words, {**own, **RULE, **DRAW})
    if kind == "heads" and "top" not in given:
        raise HeadwiseError("heads needs a number of heads: heads:FILE,top=8")
    from headwise.maths.contrast import Contrast
    from headwise.runtime.branches import Without
    from headwise.runtime.contrast import check_draw

    heads = {name: given.pop(name) for name in HEADS if name in given}
    Contrast(**{name: given[name] for name in RULE if name in given})
    check_draw(given.get("temperature", 0.0), given.get("top_p", 1.0), given.get("seed", 0))
    Without((), **{name: heads[name] for name in ("mode", "scope") if name in heads})
    scores = o.read_scores(Path(source)) if kind == "heads" else None
    if scores is not None:
        scores.top(heads["top"])  # refuses more than there are
    return Words(text, kind, source, given, heads, scores, _text(source) if kind == "prompt" else None)


def _text(source: str) -> str:
    from headwise.cli.generate import prompt_text

    return prompt_text(None, Path(source), "the negative prompt")


def answered(model: Model, words: Words, prompt: Any, encode: Callable[[str], Any], device: str, dtype: str, limit: int) -> Contrasted:
    """The answer to a prompt.

    Args:
        model: The model.
        words: What `--contrast` says.
        prompt: Ids of the prompt.
        encode: Text of a negative prompt -> its ids, as the prompt's were made.
        device: For a weaker model.
        dtype: Likewise.
        limit: Longest answer in tokens.

    Raises:
        HeadwiseError: A branch that does not fit the model.
    """
    from headwise.runtime.contrast import contrastive_generate

    negative: Any
    if words.scores is not None:
        negative = _without(model, words)
    elif words.prompt is not None:
        negative = encode(words.prompt)
    else:
        # An adapter, or a file of a GGUF folder, belongs to the first model alone.
        negative = o.loaded_quietly(words.source, device, dtype, None, **o.shared("trust_remote_code", "offline"))
    return contrastive_generate(model, prompt, negative, **words.rule, max_new_tokens=limit)


def _without(model: Model, words: Words) -> Any:
    from headwise.runtime.branches import Without

    if words.scores is None:
        raise HeadwiseError(f"{words.text} names no heads")
    heads: HeadSet = words.scores.top(words.heads["top"])
    share = len(heads) / (model.heads.shape[1] * len(model.modules))
    if share > MANY:
        hold(f"{share:.0%} of the heads are taken away; a model without so many writes little that makes sense (RHIO took 9.8% of Llama-2's)")
    return Without(heads, **{name: words.heads[name] for name in ("mode", "scope") if name in words.heads})


def facts_of(words: Words, made: Contrasted, tokens: int) -> dict[str, Any]:
    """What is said beside the text: settings, and alpha token by token where it changes.

    Args:
        words: What `--contrast` says.
        made: The answer.
        tokens: Of the prompt.

    Returns:
        Plain data.
    """
    from headwise.maths.contrast import Contrast

    rule = Contrast(**{name: words.rule[name] for name in RULE if name in words.rule})
    name = Path(words.source).name if words.kind != "model" else words.source
    contrast = {"negative": words.kind, "source": name, **words.heads, **vars(rule), **{k: v for k, v in words.rule.items() if k in DRAW}}
    alphas = {} if rule.combine == "fixed" else {"alphas": [round(alpha, 6) for alpha in made.alphas]}
    return {"text": made.text, "new_tokens": len(made.ids), "tokens": tokens, "contrast": contrast, **alphas}


def fact_line(facts: Mapping[str, Any]) -> str:
    """One line about the contrast, for people."""
    contrast, alphas = facts["contrast"], facts.get("alphas")
    alpha = f"alpha {contrast['alpha']:g}" if alphas is None else f"mean alpha {sum(alphas) / len(alphas):.3f} ({contrast['combine']})"
    return f"contrast with {contrast['negative']} {contrast['source']}, {alpha}; faithful to its prompt is not the same as true"
