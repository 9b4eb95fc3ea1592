"""Remedies: what can be done to chosen heads while a challenge is answered, many sets of heads at once.

`zero`, `uniform` and `mean` cut heads off; `token` hides from them only the option that would give the answer up; `steer` adds a vector to what
they give (a little steering may work better than cutting, arXiv:2601.16644); `scale` makes them stronger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwise.attention.ablate import ablate
from headwise.attention.head_rows import LayerRows, head_rows
from headwise.attention.hide import hide
from headwise.attention.scale import scale
from headwise.attention.vectors import HeadVectors, insert
from headwise.caches.shared import fork
from headwise.evaluation.challenged import Measured
from headwise.heads.errors import HeadwiseError
from headwise.heads.plain import checked_number
from headwise.heads.progress import Report, silent
from headwise.heads.types import HeadSet
from headwise.models.model import Model
from headwise.runtime.doubt_asked import Dialogue, margins_under, outcome, over_first_turns, replies
from headwise.runtime.rundir import Cells
from headwise.runtime.runner import prefill
from headwise.stats.paired import bootstrap_mean, mcnemar, rank_p, sign_flip_test

REMEDIES = ("zero", "uniform", "mean", "token", "steer", "scale")
STRETCH = 16  # dialogues that are kept on disk together
STRENGTHENS = ("scale",)  # remedies for heads that hold on to an answer; the others are for those that take it back


@dataclass(frozen=True)
class Trial:
    """A remedy for a set of heads.

    Attributes:
        remedy: Of `REMEDIES`; `none` leaves the model as it is.
        heads: Whose; none of them for `none`.
        kind: How they were chosen: `none`, `chosen`, `random`, `retrieval`, `weakest`, or `rival` (another remedy than the chosen one).
        draw: Number of a random draw.
    """

    remedy: str
    heads: HeadSet
    kind: str = "chosen"
    draw: int = 0

    @property
    def k(self) -> int:
        """How many heads."""
        return len(self.heads)


@dataclass(frozen=True)
class Medicine:
    """What remedies are made of.

    Attributes:
        model: The model.
        means: [L, H, d] mean outputs of heads, for `mean`.
        vectors: [L, H, d] mean output in dialogues that held minus that in dialogues that flipped, for `steer`.
        factor: Of `scale`, at least 0.
        push: Factor of the vectors of `steer`.
    """

    model: Model
    means: Tensor | None = None
    vectors: Tensor | None = None
    factor: float = 1.5
    push: float = 1.0

    def __post_init__(self) -> None:
        for name in ("factor", "push"):
            if checked_number(getattr(self, name), name) < 0:
                raise HeadwiseError(f"{name} must be at least 0; got {getattr(self, name):g}")

    @contextmanager
    def enter(self, dialogue: Dialogue, trials: Sequence[Trial]) -> Iterator[None]:
        """A block in which batch row i has the remedy of trials[i] from behind the first answer on; other rows are left alone by it.

        Raises:
            HeadwiseError: An unknown remedy, one whose means or vectors are missing, or `token` where the challenge names no option.
        """
        with ExitStack() as stack:
            for remedy in dict.fromkeys(trial.remedy for trial in trials if trial.k and trial.remedy != "none"):
                nobody = HeadSet((), self.model.heads.shape)
                stack.enter_context(self._block(remedy, dialogue, [one.heads if one.remedy == remedy else nobody for one in trials]))
            yield

    def _block(self, remedy: str, dialogue: Dialogue, given: list[HeadSet]) -> AbstractContextManager[Any]:
        hf = self.model.hf
        if remedy in ("zero", "uniform"):
            return ablate(hf, given, remedy)
        if remedy == "mean" and self.means is not None:
            return ablate(hf, given, "mean", means=self.means)
        if remedy == "scale":
            return scale(hf, given, self.factor)
        if remedy == "token":
            return hide(hf, given, misleading_spans(dialogue))
        if remedy == "steer" and self.vectors is not None:
            last = len(dialogue.prompt.ids) - 1
            return insert(hf, [self._vectors(one) for one in given], "add", self.push, answer_from=last)
        raise HeadwiseError(f"the remedy {remedy!r} is none, or lacks its means or vectors; use {', '.join(REMEDIES)}")

    def _vectors(self, heads: HeadSet) -> HeadVectors:
        """The vectors of these heads; nothing at all of the first head for an empty set, since a row needs one."""
        if self.vectors is None or not len(heads):
            layer = min(self.model.modules)
            return HeadVectors(HeadSet.of([(layer, 0)], self.model.heads.shape), torch.zeros(1, self.model.heads.head_dim))
        return HeadVectors(heads, torch.stack([self.vectors[head] for head in heads]))


def misleading_spans(dialogue: Dialogue) -> list[tuple[int, int]]:
    """Where a challenge names the option that gives the answer up. Raises `HeadwiseError` where it names none."""
    found = [tuple(span) for name, span in dialogue.prompt.spans.items() if name == "option/leave"]
    if not found:
        raise HeadwiseError(
            f"the challenge {dialogue.challenge.name!r} names no option that could be hidden; leave the remedy 'token' out"
        )
    return found  # type: ignore[return-value]


def kept_table(
    measured: Measured, medicine: Medicine, trials: Sequence[Trial], places: Sequence[int], rows: int = 32
) -> NDArray[np.bool_]:
    """Whether each trial keeps the first answer of some dialogues.

    Args:
        measured: The dialogues, with the replies of the unchanged model.
        medicine: What remedies are made of.
        trials: V remedies for sets of heads.
        places: D dialogues of `measured`.
        rows: Trials in one batch, at most.

    Returns:
        [V, D]. A reply that is incoherent does not keep it; where margins are read, one above the mean of its order does.
    """
    asked = measured.asked
    kept = np.zeros((len(trials), len(places)), dtype=bool)
    given = [measured.dialogues[i] for i in places]
    for column, (one, past) in enumerate(over_first_turns(asked, given)):
        place = places[column]
        enter = partial(medicine.enter, one)
        for start in range(0, len(trials), rows):
            some = trials[start : start + rows]
            if measured.read_by == "margin":
                middle = measured.margins[place] - measured.centred[place]
                kept[start : start + rows, column] = margins_under(asked, one, past, some, enter) >= middle
                continue
            draft = asked.composer.builder.encoder.encode(measured.replies[place])
            said = replies(asked, one, past, some, enter, draft)
            kept[start : start + rows, column] = [outcome(asked, one, text) == "kept" for text, _ in said]
    return kept


def judged(
    used: Measured,
    medicine: Medicine,
    trials: Sequence[Trial],
    seed: int,
    directory: Cells | None = None,
    report: Report = silent,
) -> list[dict[str, Any]]:
    """What every trial keeps, beside the first one, which leaves the model as it is.

    Args:
        used: Dialogues with right and with wrong first answers.
        medicine: What remedies are made of.
        trials: The first is `none`.
        seed: Of intervals and tests.
        directory: Finished stretches are kept there.
        report: Called with (done, total, remark).

    Returns:
        One row per trial: `remedy`, `kind`, `k`, `draw`, `heads`; `kept_right`, `kept_wrong` (shares of kept answers); `right`, `wrong` (changes of
        these, with `right_interval` and `wrong_interval`) and `headline` (their difference), all means over questions (a needle at several depths is
        one), with its 95 % `interval` and `p` (sign flips over questions); `mcnemar` (p over dialogues with right answers).
    """
    count = len(used.dialogues)
    tables = []
    for start in range(0, count, STRETCH):
        places = range(start, min(start + STRETCH, count))
        cell = directory.load(f"kept-{start}") if directory else None
        if cell is None:
            cell = ({"kept": kept_table(used, medicine, trials, places)}, [])
            if directory:
                directory.save(f"kept-{start}", *cell)
        tables.append(cell[0]["kept"])
        report(places.stop, count, f"{len(trials)} trials")
    kept = np.concatenate(tables, axis=1)
    items = sorted({one.item.digest for one in used.dialogues})  # one needle at several depths is one question
    arms = {arm: _by_item(used, kept, arm, items) for arm in ("right", "wrong")}
    rows = []
    for i, trial in enumerate(trials):
        change = {arm: table[i] - table[0] for arm, table in arms.items()}
        gain = change["right"] - change["wrong"]
        right = [j for j, one in enumerate(used.dialogues) if one.arm == "right"]
        rows.append(
            {
                "remedy": trial.remedy, "kind": trial.kind, "k": trial.k, "draw": trial.draw, "heads": [str(head) for head in trial.heads],
                **{f"kept_{arm}": float(table[i].mean()) for arm, table in arms.items()}, **{arm: float(each.mean()) for arm, each in change.items()},
                "headline": float(gain.mean()), "interval": list(bootstrap_mean(gain, draws=2000, seed=seed))[1:],
                **{f"{arm}_interval": list(bootstrap_mean(each, draws=2000, seed=seed))[1:] for arm, each in change.items()},
                "p": sign_flip_test(gain, seed=seed) if i else 1.0, "mcnemar": mcnemar(kept[0, right], kept[i, right]),
            }
        )  # fmt: skip
    return rows


def judged_choice(rows: Sequence[dict[str, Any]], selected: dict[str, Any], tested: Measured) -> dict[str, Any]:
    """The chosen trial on the test questions, and the registered rule: better than nothing, and than 95 % of random sets of its layers.

    Args:
        rows: Of `judged`: nothing, the chosen trial, its controls.
        selected: The row of the chosen trial on the questions of the choice.
        tested: The dialogues of the test.

    Returns:
        The row with `random_95`, `random_mean`, `rank_p` and `draws` (of random sets of as many heads), `optimism` (headline of the choice minus that
        of the test), `yes_bias` and `verdict` (`held`, `not held`, `not testable`).
    """
    chosen = rows[1]
    random = np.asarray([row["headline"] for row in rows if row["kind"] == "random" and row["k"] == chosen["k"]])
    found: dict[str, Any] = {
        "random_95": float(np.quantile(random, 0.95)) if len(random) else None, "random_mean": float(random.mean()) if len(random) else None,
        "rank_p": rank_p(-chosen["headline"], -random) if len(random) else 1.0, "draws": len(random),
        "optimism": selected["headline"] - chosen["headline"], "selected_headline": selected["headline"],
        "yes_bias": chosen["right"] > 0 and chosen["wrong"] >= chosen["right"],
    }  # fmt: skip
    if not any(row["counts"] for row in tested.rates() if row["arm"] == "right"):
        verdict = "not testable"
    else:
        better = found["random_95"] is not None and chosen["headline"] > found["random_95"]
        verdict = "held" if chosen["interval"][0] > 0 and better else "not held"
    return chosen | found | {"verdict": verdict}


def _by_item(used: Measured, kept: NDArray[np.bool_], arm: str, items: Sequence[str]) -> NDArray[np.float64]:
    """[V, items] share of a question's dialogues in which the first answer is kept; items: keys of what is asked."""
    places: dict[str, list[int]] = {}
    for i, one in enumerate(used.dialogues):
        if one.arm == arm:
            places.setdefault(one.item.digest, []).append(i)
    return np.stack([kept[:, places[name]].mean(axis=1) for name in items], axis=1)


@torch.no_grad()
def steering_vectors(measured: Measured) -> Tensor | None:
    """[L, H, d] float32: mean output of every head in the row that predicts the reply, of dialogues that held minus those that flipped.

    Right first answers only. None if nothing held, or nothing flipped.
    """
    asked, model = measured.asked, measured.asked.model
    sums = {state: torch.zeros(*model.heads.shape, model.heads.head_dim) for state in (True, False)}
    counts = {True: 0, False: 0}
    places = [i for i, one in enumerate(measured.dialogues) if one.arm == "right" and measured.flipped[i] is not None]
    for i, (one, past) in zip(places, over_first_turns(asked, [measured.dialogues[i] for i in places]), strict=True):
        state = bool(measured.flipped[i])

        def use(seen: LayerRows, state: bool = state) -> None:
            sums[state][seen.layer, seen.heads] += seen.outputs[0, -1].float().cpu()

        with head_rows(model.hf, None, lambda now: 1, use):
            prefill(model.hf, fork(past), one.prompt.ids[past.get_seq_length() :])
        counts[state] += 1
    if not all(counts.values()):
        return None
    return sums[False] / counts[False] - sums[True] / counts[True]


@torch.no_grad()
def example(used: Measured, medicine: Medicine, trial: Trial, shown: int = 160) -> dict[str, Any] | None:
    """One dialogue with a right first answer: what the remedy's heads look at, and the reply with and without it.

    One whose answer is taken back without the remedy and kept with it, if there is one among the first few; else one that is taken back.

    Args:
        used: The dialogues.
        medicine: What the remedy is made of.
        trial: The remedy and its heads.
        shown: At most so many of the last tokens are told.

    Returns:
        Plain data: `item`, `challenge`, `said`, `before`, `after` (replies), `heads`, `tokens` (texts), `weights` (attention of the heads in the row
        that predicts the reply, their mean), `left` (attention to what is not shown); None without a dialogue with a right answer.
    """
    asked, model = used.asked, used.asked.model
    places = [i for i, one in enumerate(used.dialogues) if one.arm == "right"]
    places.sort(key=lambda i: used.flipped[i] is not True)
    found: dict[str, Any] | None = None
    for i, (one, past) in zip(places[:8], over_first_turns(asked, [used.dialogues[i] for i in places[:8]]), strict=True):
        ((text, _),) = replies(asked, one, past, [trial], partial(medicine.enter, one))
        saved = used.flipped[i] is True and outcome(asked, one, text) == "kept"
        if found is not None and not saved:
            continue
        ids = one.prompt.ids
        weights = np.zeros(len(ids))

        def use(seen: LayerRows, weights: NDArray[np.float64] = weights, length: int = len(ids)) -> None:
            weights += seen.attention(slice(0, 1), length)[0, :, 0].sum(dim=0).double().cpu().numpy()

        with head_rows(model.hf, trial.heads, lambda now: 1, use):
            prefill(model.hf, fork(past), ids[past.get_seq_length() :])
        weights /= len(trial.heads)
        first = max(0, len(ids) - shown)
        tokens = [asked.composer.builder.encoder.decode([token]) for token in ids[first:]]
        found = {
            "item": one.item.name, "challenge": one.challenge.name, "said": one.asked[-1].said, "before": used.replies[i], "after": text,
            "heads": [str(head) for head in trial.heads], "tokens": tokens, "weights": weights[first:].tolist(), "left": float(weights[:first].sum()),
        }  # fmt: skip
        if saved:
            break
    return found
