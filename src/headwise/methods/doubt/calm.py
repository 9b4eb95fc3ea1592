"""Calming a model: remedies chosen on one part of the questions, and what the chosen one does on another (arXiv:2510.22866, section on masking).

The headline is the change of kept right answers minus the change of kept wrong ones: what raises both is no calm but a habit of saying yes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headwise.attention.means import head_means
from headwise.evaluation.ablation_task import default_task
from headwise.evaluation.challenged import Measured, measured
from headwise.evaluation.perplexity import plain_windows, with_bos
from headwise.evaluation.remedies import REMEDIES, STRENGTHENS, Medicine, Trial, example, judged, judged_choice, steering_vectors
from headwise.evaluation.side_effects import side_effects
from headwise.evaluation.variants import describe_scores, random_sets
from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.heads.types import HeadScores, HeadSet
from headwise.models.model import Model, describe_model
from headwise.prompts.dialogue import DoubtItem
from headwise.runtime.doubt_asked import doubts
from headwise.runtime.doubt_questions import DoubtQuestions
from headwise.runtime.options import check_choice, check_least, check_seed
from headwise.runtime.rundir import RunDirectory, Stretch
from headwise.stats.paired import benjamini_hochberg

CURVE_DRAWS = 2  # random sets at every other K


@dataclass(frozen=True)
class CalmOptions:
    """What is tried, and how it is judged.

    Attributes:
        top: Numbers of heads K.
        remedies: Of `REMEDIES`. Those that weaken heads go to the heads with the highest scores, `scale` to those with the lowest.
        controls: Layer-matched random sets for the chosen K on the test questions.
        factor: Of `scale`.
        push: Of `steer`.
        seed: Of random sets, intervals and tests.

    Raises:
        HeadwiseError: A value out of range.
    """

    top: tuple[int, ...] = (1, 2, 3, 5, 10, 20)
    remedies: tuple[str, ...] = REMEDIES
    controls: int = 50
    factor: float = 1.5
    push: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.top or not self.remedies or len(set(self.top)) < len(self.top):
            raise HeadwiseError("at least one K and one remedy are needed, each K once")
        for one in self.remedies:
            check_choice("remedy", one, REMEDIES)
        for k in self.top:
            check_least(1, top=k)
        check_least(1, controls=self.controls)
        check_seed(self.seed)
        Medicine(None, factor=self.factor, push=self.push)  # type: ignore[arg-type]  # refuses what is out of range


def calm(
    model: Model, scores: HeadScores, select: DoubtQuestions, test: DoubtQuestions, options: CalmOptions | None = None,
    retrieval: HeadScores | None = None, directory: RunDirectory | None = None, report: Report = silent,
    sides: tuple[Sequence[str], Path | None, int | None] | None = None, beside: Sequence[Trial] = (),
) -> dict[str, Any]:  # fmt: skip
    """Try remedies on the questions of one part, and test the best one on another.

    Args:
        model: With its tokenizer.
        scores: Of its heads: the higher, the more a head takes answers back; the lower, the more it holds on to them.
        select: Questions and wordings for the choice.
        test: Others, for the test.
        options: What is tried.
        retrieval: Scores of retrieval heads, whose strongest are a control.
        directory: Finished parts are kept there.
        report: Called with (done, total, remark).
        beside: Further trials for the test.
        sides: (tasks of lm-evaluation-harness, folder with task files, items of each) for side effects; None: these are not measured.

    Returns:
        Plain data: `selection` and `test` (one row per trial: remedy, kind, k, draw, heads, kept_right, kept_wrong, right, wrong: changes of
        these, headline), `chosen` (with interval, p-values, optimism and verdict), `rates` of the unchanged model (of the
        challenges that count in the choice, and `rates_of_all`), `dialogue` (one of the test, with what the chosen heads look at), `side_effects`.

    Raises:
        NothingToRepair: No challenge passes the gate.
        HeadwiseError: A question that is used twice, a K without controls, or heads of another model.
    """
    options = options or CalmOptions()
    _check_heads(model, scores, options, retrieval)
    # Where both take all questions of a file, the choice still has wordings of its own.
    first, second = doubts(model, select, "select" if select.part == "all" else None), doubts(model, test)
    _check_apart(scores, first.items, second.items)
    asked_first = measured(first, Stretch(directory, "select"), report)
    chosen_on = asked_first.counted()
    medicine = _medicine(model, chosen_on, options)
    trials = _trials(scores, chosen_on, medicine, options)
    selection = judged(chosen_on, medicine, trials, options.seed, Stretch(directory, "select"), report)
    best = max(range(1, len(trials)), key=lambda i: (selection[i]["headline"], -trials[i].k))
    names = {one.challenge.name for one in chosen_on.dialogues}
    asked_last = measured(second, Stretch(directory, "test"), report)
    tested = asked_last.only([i for i, one in enumerate(asked_last.dialogues) if one.challenge.name in names])
    given = [trials[0], trials[best], *_rivals(scores, trials, selection, best), *_controls(scores, trials[best], options, retrieval), *beside]
    rows = judged(tested, medicine, given, options.seed, Stretch(directory, "test"), report)
    tries = benjamini_hochberg(np.asarray([row["p"] for row in selection[1:]]))
    for row, p in zip(selection[1:], tries, strict=True):
        row["p_corrected"] = float(p)
    verdict = judged_choice(rows, selection[best], tested)
    told: dict[str, Any] = describe_calm(model, scores, select, test, options, retrieval)
    told |= {"gate": test.gate, "rates": {"select": chosen_on.rates(), "test": tested.rates()}, "read_by": tested.read_by}
    told["rates_of_all"] = {"select": asked_first.rates(), "test": asked_last.rates()}
    told |= {"select": first.describe(), "test_questions": second.describe(), "selection": selection, "test": rows, "chosen": verdict}
    told["dialogue"] = example(tested, medicine, trials[best])
    if sides is not None:
        told["side_effects"] = side_effects(second, trials[best], medicine, *sides, report)
    return told


def describe_calm(
    model: Model,
    scores: HeadScores,
    select: DoubtQuestions,
    test: DoubtQuestions,
    options: CalmOptions,
    retrieval: HeadScores | None,
) -> dict[str, Any]:
    """All that decides the result, as plain data. Arguments as in `calm`."""
    files = {"heads": scores, "retrieval": retrieval}
    told = {name: describe_scores(found) for name, found in files.items() if found is not None}
    asked = {
        name: {key: _told(value) for key, value in asdict(one).items()} for name, one in (("select", select), ("test", test))
    }
    return describe_model(model) | {"options": asdict(options), "head_files": told, "asked": asked}


def _told(value: Any) -> str:
    """An option in words; a file by its name and by what it holds, since that may change under the same name."""
    if isinstance(value, Path) and value.is_file():
        return f"{value} {hashlib.sha256(value.read_bytes()).hexdigest()[:16]}"
    return str(value)


def _check_heads(model: Model, scores: HeadScores, options: CalmOptions, retrieval: HeadScores | None) -> None:
    """Refuse heads of another model and a K without controls, before any work is done."""
    most, scored = max(options.top), len(scores.ranking())
    model.check(scores.top(1))
    if 2 * most > scored:
        raise HeadwiseError(
            f"top {most} leaves too few of {scored} scored heads for its controls; choose a K of 1 to {scored // 2}"
        )
    if retrieval is not None:
        model.check(retrieval.top(most))


def _check_apart(scores: HeadScores, select: Sequence[DoubtItem], test: Sequence[DoubtItem]) -> None:
    told = scores.provenance.get("items")
    found = {one for one in told if isinstance(one, str)} if scores.score == "doubt" and isinstance(told, list | tuple) else set()
    chosen_on = frozenset[str]().union(*(item.digests for item in select))
    for used, items, names in (
        (chosen_on, test, "choice and test"),
        (found, test, "detection and test"),
        (found, select, "detection and choice"),
    ):
        if both := len({item.digest for item in items if not item.digests.isdisjoint(used)}):
            raise HeadwiseError(
                f"{both} questions are used for {names} alike; give different ones, or other --part (detect, select, test)"
            )


def _medicine(model: Model, used: Measured, options: CalmOptions) -> Medicine:
    means = None
    if "mean" in options.remedies:
        texts, _ = plain_windows(default_task(model, options.seed), model.positions)
        means = head_means(model.hf, [with_bos(texts, model.tokenizer)])
    vectors = steering_vectors(used) if "steer" in options.remedies else None
    return Medicine(model, means, vectors, options.factor, options.push)


def _trials(scores: HeadScores, used: Measured, medicine: Medicine, options: CalmOptions) -> list[Trial]:
    """Nothing, then every remedy that can be made at every K."""
    named = all("option/leave" in one.prompt.spans for one in used.dialogues)
    remedies = [one for one in options.remedies if (one != "steer" or medicine.vectors is not None) and (one != "token" or named)]
    if not remedies:
        raise HeadwiseError(
            f"none of the remedies {', '.join(options.remedies)} can be made: 'token' needs challenges that all name an option, 'steer' answers that "
            "are kept and others that are taken back; give other --remedies"
        )
    none = Trial("none", HeadSet((), scores.shape), "none")
    return [none, *(Trial(one, _heads(scores, one, k)) for one in remedies for k in options.top)]


def _heads(scores: HeadScores, remedy: str, k: int) -> HeadSet:
    return scores.bottom(k) if remedy in STRENGTHENS else scores.top(k)


def _rivals(scores: HeadScores, trials: Sequence[Trial], selection: Sequence[dict[str, Any]], best: int) -> list[Trial]:
    """Every other remedy: at the chosen K, and at the K that was best for it."""
    found: dict[tuple[str, int], Trial] = {}
    for remedy in dict.fromkeys(trial.remedy for trial in trials[1:] if trial.remedy != trials[best].remedy):
        own = [i for i, trial in enumerate(trials) if trial.remedy == remedy]
        for k in (trials[best].k, trials[max(own, key=lambda i: (selection[i]["headline"], -trials[i].k))].k):
            found[remedy, k] = Trial(remedy, _heads(scores, remedy, k), "rival")
    return list(found.values())


def _controls(scores: HeadScores, best: Trial, options: CalmOptions, retrieval: HeadScores | None) -> list[Trial]:
    """Random sets of the same layers, the weakest heads and retrieval heads at the chosen K; the chosen heads and a few random ones at others."""
    drawn = random_sets(best.heads, scores, options.controls, options.seed)
    found = [Trial(best.remedy, heads, "random", draw) for draw, heads in enumerate(drawn)]
    found.append(Trial(best.remedy, _middling(scores).top(best.k), "weakest"))
    if retrieval is not None:
        found.append(Trial(best.remedy, retrieval.top(best.k), "retrieval"))
    for k in options.top:
        if k != best.k:
            other = _heads(scores, best.remedy, k)
            found.append(Trial(best.remedy, other))
            some = random_sets(other, scores, min(CURVE_DRAWS, options.controls), options.seed)
            found += [Trial(best.remedy, heads, "random", draw) for draw, heads in enumerate(some)]
    return found


def _middling(scores: HeadScores) -> HeadScores:
    """Higher the nearer a score lies to 0. Where all lie equally far from it none does, and the lower values count as weaker."""
    far = np.abs(scores.values)
    return HeadScores(-far if np.nanmin(far) < np.nanmax(far) else -scores.values, scores.score)
