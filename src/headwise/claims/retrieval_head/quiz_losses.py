"""What questions lose without the top heads, as many random ones and the weakest: one task at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench
from headwise.claims.retrieval_head.quiz import Answers, Asked, Quiz, answer_items, describe_answers
from headwise.claims.retrieval_head.scores import Values
from headwise.claims.retrieval_head.sizes import MODE, Sizes
from headwise.claims.retrieval_head.sweeps import Sweep
from headwise.evaluation.ablation_table import AblationResult
from headwise.evaluation.variants import Kind, Variant, distinct_sets, head_variants
from headwise.heads import HeadScores, HeadSet

FLOOR = 0.3  # share right of the whole model below which a model cannot do a task, and nothing is removed
DRAWS, SAMPLES = 2_000, 2


@dataclass(frozen=True)
class Answered:
    """One task, answered by the whole model and without heads.

    Attributes:
        name: Of the task.
        k: Heads removed.
        able: Whether the whole model can do it; if not, nothing was removed.
        sweep: Shares right (`exact`) at k heads.
        right: Kind -> [item] share right, of none and top.
        details: For pages.
    """

    name: str
    k: int
    able: bool
    sweep: Sweep
    right: dict[str, Values]
    details: dict[str, Any]

    def unable(self) -> Finding:
        """The finding of a claim about a task that the model cannot do."""
        share = self.sweep.row("exact", "none")["mean"]
        return Finding.none(f"gate missed: the whole model answers only {share:.2f} of the questions {self.name}; at least {FLOOR:g} are needed")

    @property
    def loss(self) -> float:
        """Share right that the top heads cost."""
        return float(self.sweep.row("exact", "top", self.k)["drop"])


def answered(
    bench: Bench, scores: HeadScores, sizes: Sizes, quiz: Quiz, scope: str, ks: tuple[int, ...], controls: int, more: tuple[Kind, ...] = ()
) -> Answered:  # fmt: skip
    """One task.

    Args:
        bench: Whose model answers.
        scores: Of its heads, found on other texts.
        sizes: Seed of draws.
        quiz: The questions.
        scope: Where heads are removed.
        ks: Numbers of heads; draws are made for the first of them only.
        controls: Random draws of each kind.
        more: Kinds of draws beside the layer-matched ones.
    """
    model = bench.model
    variants = head_variants(scores, ks[:1], controls, sizes.seed, more)
    variants += tuple(v for v in head_variants(scores, ks[1:], 1, sizes.seed) if v.kind in ("top", "bottom"))
    sets, places = distinct_sets(variants)

    def asked(sets: Sequence[HeadSet]) -> Answers:
        directory = bench.cells(f"{quiz.task}-{scope}-{len(sets)}", describe_answers(model, quiz, sets, MODE, scope))
        return answer_items(model, quiz, sets, MODE, scope, directory)

    able = bool(asked(sets[:1]).marks[..., 0].mean() >= FLOOR)
    if not able:
        variants, sets, places = variants[:1], sets[:1], places[:1]  # a model that cannot do the task has nothing to lose
    found = asked(sets)
    marks, texts = found.marks[places], [found.text[place] for place in places]
    kept = [i for i, variant in enumerate(variants) if variant.k in (0, ks[0])]
    values = {"exact": marks[kept][..., 0], "logprob": found.logprob[places][kept]}
    info = tuple({"item": i} for i in range(len(quiz.items)))
    drawn = tuple(variants[i] for i in kept)
    sweep = Sweep(AblationResult(drawn, info, values, np.empty((len(drawn), 0)), sizes.seed, {}))
    chosen = _places(variants, ks)
    right = {kind: marks[rows, :, 0].mean(axis=0) for kind, rows in chosen.items() if kind in ("none", "top")}
    details = {
        "task": quiz.task,
        "scope": scope,
        "items": len(quiz.items),
        "numbers": list(quiz.numbers),
        "means": {kind: marks[rows].mean(axis=(0, 1)).tolist() for kind, rows in chosen.items()},
        "rows": sweep.table("exact", "logprob"),
        "samples": [_sample(texts, chosen, quiz.items[i], i) for i in range(min(SAMPLES, len(quiz.items)))],
    }
    return Answered(quiz.task, ks[0], able, sweep, right, details)


def _places(variants: Sequence[Variant], ks: tuple[int, ...]) -> dict[str, list[int]]:
    """Rows of each kind at the first number of heads; `top 8` and the like at the others. Only `none` if nothing was removed."""
    kinds: dict[str, list[int]] = {}
    for i, variant in enumerate(variants):
        kinds.setdefault(variant.kind if variant.k in (0, ks[0]) else f"{variant.kind} {variant.k}", []).append(i)
    return kinds


def _sample(texts: Sequence[Sequence[str]], chosen: dict[str, list[int]], item: Asked, i: int) -> dict[str, str]:
    """One question with its answers; the first draw stands for random heads."""
    answers = {kind: texts[rows[0]][i] for kind, rows in chosen.items()}
    return {"context": item.context, "question": item.question, "gold": item.answer, **answers}


def difference_of_losses(a: Answered, b: Answered, seed: int) -> Number:
    """Loss on task a minus loss on task b without the top heads, and its 95 % interval; the items of each are resampled.

    Args:
        a: A task.
        b: Another one.
        seed: Of the resampling.
    """
    rng = np.random.default_rng([seed, 61])
    losses = [one.right["none"] - one.right["top"] for one in (a, b)]
    means: list[NDArray[np.float64]] = [x[rng.integers(len(x), size=(DRAWS, len(x)))].mean(axis=1) for x in losses]
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    return float(losses[0].mean() - losses[1].mean()), float(low), float(high)


def at_most(share: float, task: Answered, steps: Answered, seed: int) -> Finding:
    """The finding of a claim that a task loses at most a share of what written steps lose, and surely less."""
    return Finding(
        {
            "right": task.sweep.mean("exact", "none"),
            "steps_right": steps.sweep.mean("exact", "none"),
            "over_quarter": task.loss - share * steps.loss,
            "difference": difference_of_losses(steps, task, seed),
            "loss": task.sweep.loss("exact", "top", task.k),
            "steps_loss": steps.sweep.loss("exact", "top", steps.k),
            "k": task.k,
        }
    )
