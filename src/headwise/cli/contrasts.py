"""The words of `--contrast` and of decoders: `heads:FILE,top=8,alpha=0.5`, `prompt:FILE,plausibility=0.1`, `model:NAME`, `control`, `closed`."""

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
    from headwise.runtime.branches import Without
    from headwise.runtime.contrast import Contrasted

Reader = Callable[[str, str], Any]
RULE: Mapping[str, Reader] = {"combine": read_str, "alpha": read_float, "plausibility": read_float, "cap": read_float}
DRAW: Mapping[str, Reader] = {"temperature": read_float, "top_p": read_float, "seed": read_int}
HEADS: Mapping[str, Reader] = {"top": read_int, "mode": read_str, "scope": read_str}
# Kind -> what stands right behind its colon (nothing: options alone) and its own options.
SHARED: Mapping[str, tuple[str, Mapping[str, Reader]]] = {"heads": ("FILE", HEADS), "model": ("NAME", {}), "control": ("", {})}
KINDS = {**SHARED, "prompt": ("FILE", {})}  # of `headwise generate --contrast`
DECODERS = {**SHARED, "closed": ("", {})}  # of `headwise bench faithful --decoders`, where a question has documents that can be left out
MANY = 0.15  # share of the heads from which a model without them writes little that makes sense


@dataclass(frozen=True)
class Words:
    """What `--contrast` says.

    Attributes:
        text: As it was written.
        kind: `heads`, `prompt`, `model`, `control` or `closed`.
        source: The file or the model; empty for kinds that need none.
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


def parse_contrast(text: str, kinds: Mapping[str, tuple[str, Mapping[str, Reader]]] = KINDS) -> Words:
    """Everything that the words say, checked as far as it can be without a model.

    Args:
        text: `kind:source` or `kind:source,option=value,...`; for a kind without a source `kind` or `kind:option=value,...`.
        kinds: `KINDS` or `DECODERS`.

    Raises:
        HeadwiseError: A kind, option or value that does not exist, something missing, or a file that cannot be read.
    """
    kind, _, rest = text.strip().partition(":")
    if kind not in kinds:
        raise HeadwiseError(f"unknown {'decoder' if kinds is DECODERS else 'contrast'} {kind!r}; write {_known(kinds)}")
    what, own = kinds[kind]
    source, _, words = rest.partition(",") if what else ("", "", rest)
    if what and (not source.strip() or "=" in source):
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
    return Words(text.strip(), kind, source, given, heads, scores, _text(source) if kind == "prompt" else None)


def _known(kinds: Mapping[str, tuple[str, Any]]) -> str:
    plain = "plain or " if kinds is DECODERS else ""
    return plain + " or ".join(f"{kind}:{what}{',top=8' * (kind == 'heads')}" if what else f"{kind}:alpha=0.5" for kind, (what, _) in kinds.items())


def _text(source: str) -> str:
    from headwise.cli.generate import prompt_text

    return prompt_text(None, Path(source), "the negative prompt")


def answered(
    model: Model, words: Words, prompt: Any, encode: Callable[[str], Any], head: Callable[[], Any], device: str, dtype: str, limit: int
) -> Contrasted:
    """The answer to a prompt.

    Args:
        model: The model.
        words: What `--contrast` says.
        prompt: Ids of the prompt.
        encode: Text of a negative prompt -> its ids, as the prompt's were made.
        head: Ids that stand in front of what the user says, where a control token can stand there.
        device: For a weaker model.
        dtype: Likewise.
        limit: Longest answer in tokens.

    Raises:
        HeadwiseError: A branch that does not fit the model.
    """
    from headwise.runtime.contrast import contrastive_generate
    from headwise.runtime.control import control_prompts

    negative: Any
    if words.kind == "control":
        prompt, negative = control_prompts(model, prompt, head())
    elif words.prompt is not None:
        negative = encode(words.prompt)
    else:
        negative = branch_of(model, words, device, dtype)
    return contrastive_generate(model, prompt, negative, **words.rule, max_new_tokens=limit)


def branch_of(model: Model, words: Words, device: str, dtype: str) -> Without | Model:
    """The negative branch of `heads` or `model`. Arguments and errors as for `answered`."""
    from headwise.runtime.branches import Without

    if words.scores is None:
        # An adapter, or a file of a GGUF folder, belongs to the first model alone.
        return o.loaded_quietly(words.source, device, dtype, None, **o.shared("trust_remote_code", "offline"))
    heads = words.scores.top(words.heads["top"])
    warn_of_many(heads, model)
    return Without(model.check(heads), **{name: words.heads[name] for name in ("mode", "scope") if name in words.heads})


def warn_of_many(heads: HeadSet, model: Model) -> None:
    """One line if so many heads are taken away that little sense is left."""
    share = len(heads) / (model.heads.shape[1] * len(model.modules))
    if share > MANY:
        hold(f"{share:.0%} of the heads are taken away; a model without so many writes little that makes sense (RHIO took 9.8% of Llama-2's)")


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
    source = {"source": name} if words.source else {}
    contrast = {"negative": words.kind, **source, **words.heads, **vars(rule), **{k: v for k, v in words.rule.items() if k in DRAW}}
    alphas = {} if rule.combine == "fixed" else {"alphas": [round(alpha, 6) for alpha in made.alphas]}
    return {"text": made.text, "new_tokens": len(made.ids), "tokens": tokens, "contrast": contrast, **alphas}


def fact_line(facts: Mapping[str, Any]) -> str:
    """One line about the contrast, for people."""
    contrast, alphas = facts["contrast"], facts.get("alphas")
    alpha = f"alpha {contrast['alpha']:g}" if alphas is None else f"mean alpha {sum(alphas) / len(alphas):.3f} ({contrast['combine']})"
    branch = " ".join(contrast[name] for name in ("negative", "source") if name in contrast)
    return f"contrast with {branch}, {alpha}; faithful to its prompt is not the same as true"
