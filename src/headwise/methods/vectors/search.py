"""The scale of function vectors: chosen on a development part of the questions, measured on the others, beside random heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwise.attention.vectors import HeadVectors, check_insertion, insert
from headwise.evaluation.steered import steered_answers
from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.heads.types import Heads, HeadScores, HeadSet
from headwise.models.model import Model
from headwise.prompts.prompt import Prompt
from headwise.stats.controls import layer_matched_random
from headwise.stats.metrics import begins_with
from headwise.stats.paired import bootstrap_mean, mcnemar, rank_p, sign_flip_test

SCALES = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0)  # of the paper
Judge = Callable[[str, Sequence[str]], bool]


class VectorItem(NamedTuple):
    """A prompt in which vectors shall bring about an answer.

    Attributes:
        prompt: Without the task; its gold ids may be empty.
        wanted: Answers that count.
    """

    prompt: Prompt
    wanted: tuple[str, ...]


class _Variant(NamedTuple):
    vectors: HeadVectors
    scale: float


@dataclass(frozen=True)
class SearchOptions:
    """How the scale is searched.

    Attributes:
        scales: Candidates, different finite numbers.
        mode: `replace` or `add`.
        development: Share of the items that the scale is chosen on, in (0, 1); at least one item, and at least one is left.
        controls: Draws of random heads of the same layers, measured at the chosen scale; 0 for none.
        seed: Of the split and of the draws.
        max_new_tokens: Longest answer in tokens.

    Raises:
        HeadwiseError: A value that is none of these.
    """

    scales: tuple[float, ...] = SCALES
    mode: str = "replace"
    development: float = 0.2
    controls: int = 20
    seed: int = 0
    max_new_tokens: int = 8

    def __post_init__(self) -> None:
        check_insertion(self.mode, self.scales)
        if not self.scales or len(set(self.scales)) != len(self.scales):
            raise HeadwiseError(f"scales must be different numbers, at least one; got {list(self.scales)}")
        if not 0 < self.development < 1:
            raise HeadwiseError(f"the development part must lie in (0, 1); got {self.development:g}")
        for name, least in (("controls", 0), ("seed", 0), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise HeadwiseError(f"{name} must be at least {least}; got {getattr(self, name)}")


@dataclass(frozen=True)
class SearchResult:
    """What a search found. Items of the development part are in no other number.

    Attributes:
        scale: The chosen one: most development items answered as wanted; of equal ones that nearest to 1.
        development: Scale -> share of development items answered as wanted.
        plain: [item] bool, the reported items without vectors.
        steered: [item] bool, with the vectors at the chosen scale.
        controls: [draw, item] bool, vectors of random heads of the same layers at that scale.
        examples: (prompt's place, answer without, answer with vectors) of the reported items.
    """

    scale: float
    development: dict[float, float]
    plain: NDArray[np.bool_]
    steered: NDArray[np.bool_]
    controls: NDArray[np.bool_]
    examples: tuple[tuple[int, str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers: shares with 95 % intervals, McNemar's p against no vectors, a sign-flip and a rank p against the random draws."""
        out: dict[str, Any] = {
            "scale": self.scale,
            "development": [{"scale": scale, "share": share} for scale, share in self.development.items()],
            "items": len(self.plain),
            "plain": bootstrap_mean(self.plain.astype(float))._asdict(),
            "steered": bootstrap_mean(self.steered.astype(float))._asdict(),
            "p_mcnemar": mcnemar(self.plain, self.steered),
        }
        if len(self.controls):
            shares = self.controls.mean(axis=1)
            out["random"] = {"draws": shares.tolist(), "mean": float(shares.mean())}
            out["p_paired"] = sign_flip_test(self.steered - self.controls.mean(axis=0), "greater")
            out["p_rank"] = rank_p(-float(self.steered.mean()), -shares)
        return out


def wanted_first(answer: str, wanted: Sequence[str]) -> bool:
    """Whether an answer begins with one that is wanted, see `begins_with`."""
    return any(begins_with(answer, one) for one in wanted)


def search_scale(
    model: Model,
    every: HeadVectors,
    heads: Heads,
    items: Sequence[VectorItem],
    options: SearchOptions | None = None,
    judge: Judge = wanted_first,
    report: Report = silent,
) -> SearchResult:
    """Choose the scale of function vectors on some items, and measure it on the others.

    Args:
        model: With its tokenizer.
        every: Vectors of all heads of one prompt (`extract_vectors(model, None, prompt)`): random heads get theirs from the same prompt.
        heads: The chosen heads.
        items: At least two.
        options: Scales, mode, split, controls.
        judge: judge(answer, wanted answers).
        report: Called with (done, total, remark).

    Raises:
        HeadwiseError: Fewer than two items, heads without a vector, too few other heads for the controls.
    """
    options = options or SearchOptions()
    chosen = HeadSet.of(heads, every.heads.shape, "given heads")
    draws = random_vectors(every, chosen, options.controls, options.seed)
    own, rest = split(len(items), options.development, options.seed)
    ask = partial(_ask, model, options, judge)
    work = len(own) + len(rest)
    tried, _ = ask(
        [items[i] for i in own],
        [_Variant(every.of(chosen), scale) for scale in options.scales],
        lambda done, _, __: report(done, work, "choosing the scale"),
    )
    shares = dict(zip(options.scales, tried.mean(axis=0).tolist(), strict=True))
    scale = min(options.scales, key=lambda one: (-shares[one], abs(one - 1), one))
    variants = [_Variant(vectors, scale) for vectors in (every.of(chosen), *draws)]
    reported = [items[i] for i in rest]
    plain, before = ask(reported, [None], silent)
    steered, after = ask(reported, variants, lambda done, _, __: report(len(own) + done, work, "measuring it on the other items"))
    examples = tuple((i, a[0], b[0]) for i, a, b in zip(rest, before, after, strict=True))
    return SearchResult(scale, shares, plain[:, 0], steered[:, 0], steered[:, 1:].T, examples)


def random_vectors(every: HeadVectors, chosen: HeadSet, draws: int, seed: int) -> list[HeadVectors]:
    """Vectors of random heads of the same layers, all from the prompt that gave the others.

    Args:
        every: Vectors of all heads.
        chosen: The heads to match.
        draws: How many.
        seed: Of the draws.

    Raises:
        HeadwiseError: Too few other heads.
    """
    pool = HeadScores(np.where(every.heads.mask(), 1.0, np.nan), "pool")
    return [every.of(layer_matched_random(chosen, pool, [seed, draw])) for draw in range(draws)]


def split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Disjoint places of a development part and of the rest, each in ascending order, at least one in both.

    Raises:
        HeadwiseError: Fewer than two items.
    """
    if count < 2:
        raise HeadwiseError(f"the scale needs items to be chosen on and others to be measured on; got {count}, give at least 2")
    order = np.random.default_rng([seed, 18]).permutation(count).tolist()
    size = min(max(1, round(share * count)), count - 1)
    return sorted(order[:size]), sorted(order[size:])


def _ask(
    model: Model, options: SearchOptions, judge: Judge, items: Sequence[VectorItem], variants: Sequence[Any], report: Report
) -> tuple[NDArray[np.bool_], list[list[str]]]:
    """([item, variant] answered as wanted, the answers); the variant None is the model as it is."""

    def enter(chosen: Sequence[Any], last: int) -> AbstractContextManager[Any]:
        if chosen[0] is None:
            return nullcontext()
        return insert(model, [one.vectors for one in chosen], options.mode, [one.scale for one in chosen], last)

    prompts = [item.prompt for item in items]
    found = steered_answers(model, prompts, variants, enter, max_new_tokens=options.max_new_tokens, report=report)
    texts = [[one.text for one in answers] for answers in found]
    right = [[judge(text, item.wanted) for text in row] for row, item in zip(texts, items, strict=True)]
    return np.asarray(right, dtype=bool), texts
