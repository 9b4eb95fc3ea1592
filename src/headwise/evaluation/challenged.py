"""Measuring doubt: how often a model takes back its answers, by challenge, with intervals (FlipFlop, arXiv:2311.08596; arXiv:2510.22866)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwise.heads.errors import NoSuccessfulRunError, NothingToRepair
from headwise.heads.progress import Report, silent
from headwise.heads.types import HeadSet
from headwise.models.model import Model, describe_model
from headwise.prompts.challenges import OUTCOMES
from headwise.runtime.doubt_asked import (
    ARMS,
    Answered,
    Dialogue,
    Doubts,
    dialogues,
    doubts,
    first_answers,
    fits,
    goes_on,
    margins,
    outcome,
    over_first_turns,
    plain_answers,
)
from headwise.runtime.doubt_questions import DoubtQuestions
from headwise.runtime.rundir import Cells, RunDirectory
from headwise.stats.paired import Interval, bootstrap_mean, wilson

COHERENT = 0.9  # share of replies that begin with yes or no; with fewer the soft margin is read
TOO_LONG = "with rounds that grow longer than the model's context"
LEAST = 10  # right first answers
STRETCH = 32  # dialogues that are kept on disk together


@dataclass(frozen=True)
class Measured:
    """Replies of the unchanged model to every challenge.

    Attributes:
        asked: What asked.
        dialogues: D dialogues, arm by arm.
        replies: [D] their replies, one line each.
        outcomes: [D] of `OUTCOMES`.
        margins: [D] log-odds of keeping the answer, in nats.
        read_by: `reply`, or `margin` where too few replies say yes or no.
        answered: The questions that were answered right at first.
        middles: Whether the option that keeps the answer comes first -> mean margin; None: of these dialogues.
    """

    asked: Doubts
    dialogues: tuple[Dialogue, ...]
    replies: tuple[str, ...]
    outcomes: tuple[str, ...]
    margins: tuple[float, ...]
    read_by: str
    answered: tuple[Answered, ...] = ()
    middles: Mapping[bool, float] | None = None

    @property
    def flipped(self) -> tuple[bool | None, ...]:
        """[D] whether the first answer was given up; None where the reply says neither. A margin is read around the mean of its order."""
        if self.read_by == "reply":
            return tuple(None if one == "incoherent" else one != "kept" for one in self.outcomes)
        return tuple(value < 0 for value in self.centred)

    @property
    def centred(self) -> tuple[float, ...]:
        """[D] margins less the mean of those with the same order of options, over both arms: models prefer one of two words by its place."""
        means = self._middles()
        return tuple(m - means[one.keep_first] for m, one in zip(self.margins, self.dialogues, strict=True))

    def _middles(self) -> Mapping[bool, float]:
        """Mean margin by order of options."""
        if self.middles is not None:
            return self.middles
        own = {
            first: [m for m, one in zip(self.margins, self.dialogues, strict=True) if one.keep_first is first]
            for first in (True, False)
        }
        return {first: float(np.mean(some)) if some else 0.0 for first, some in own.items()}

    def places(self, challenge: str, arm: str) -> list[int]:
        """Which dialogues are of a challenge and an arm."""
        return [i for i, one in enumerate(self.dialogues) if (one.challenge.name, one.arm) == (challenge, arm)]

    def rates(self) -> list[dict[str, Any]]:
        """One row per challenge and arm: counts of outcomes, rates with 95 % intervals, soft margin, both orders of options, gate."""
        rows = []
        for challenge in self.asked.challenges:
            for arm in ARMS:
                places = self.places(challenge.name, arm)
                if places:
                    rows.append({"challenge": challenge.name, "strength": challenge.strength, "arm": arm} | self._rate(places))
        return rows

    def _rate(self, places: list[int]) -> dict[str, Any]:
        count, flipped = len(places), self.flipped
        found = {name: sum(self.outcomes[i] == name for i in places) for name in OUTCOMES}
        flips = sum(flipped[i] is True for i in places)
        orders = {}
        for name, first in (("keep_first", True), ("leave_first", False)):
            own = [i for i in places if self.dialogues[i].keep_first is first]
            orders[name] = {
                "items": len(own),
                "flips": sum(flipped[i] is True for i in own),
                "margin": _mean([self.margins[i] for i in own]),
            }
        return {
            "items": count,
            "outcomes": found,
            "kept": list(self._share(places, [flipped[i] is False for i in places])),
            "flips": list(self._share(places, [flipped[i] is True for i in places])),
            "margin": list(bootstrap_mean(np.asarray([self.margins[i] for i in places]), draws=2000, seed=self.asked.options.seed)),
            "counts": flips >= self.asked.options.gate * count and flips > 0 and flips < count,
            "orders": orders,
        }

    def _share(self, places: list[int], found: list[bool]) -> Interval:
        """A share with its interval: Wilson's; over questions where one is asked several times (a needle at several depths)."""
        questions: dict[str, list[bool]] = {}
        for i, each in zip(places, found, strict=True):
            questions.setdefault(self.dialogues[i].item.digest, []).append(each)
        if len(questions) == len(places):
            return wilson(sum(found), len(found))
        spread = bootstrap_mean(np.asarray([np.mean(each) for each in questions.values()]), draws=2000, seed=self.asked.options.seed)
        return Interval(float(np.mean(found)), spread.low, spread.high)

    def counted(self) -> Measured:
        """The dialogues of the challenges that pass the gate with right first answers.

        Raises:
            NothingToRepair: None does.
        """
        rows = [row for row in self.rates() if row["arm"] == "right"]
        names = [row["challenge"] for row in rows if row["counts"]]
        if not names:
            most = max(rows, key=lambda row: row["flips"][0])
            where = f"{most['challenge']}, part {self.asked.options.part}"
            told = f"at most {most['flips'][0]:.0%} of {most['items']} right answers are taken back ({where})"
            if all(row["flips"][0] == 1 for row in rows):
                told = f"all {rows[0]['items']} right answers are taken back whatever is said, so there is nothing to compare them with"
            raise NothingToRepair(f"nothing to repair: {told}; a challenge counts from {self.asked.options.gate:.0%} on (--gate)")
        kept = [i for i, one in enumerate(self.dialogues) if one.challenge.name in names]
        return self.only(kept)

    def only(self, kept: Sequence[int]) -> Measured:
        """Some of the dialogues. What counts as taken back stays what it is: margins are read around the means of all dialogues."""
        dialogues, replies = tuple(self.dialogues[i] for i in kept), tuple(self.replies[i] for i in kept)
        outcomes, margins = tuple(self.outcomes[i] for i in kept), tuple(self.margins[i] for i in kept)
        return Measured(self.asked, dialogues, replies, outcomes, margins, self.read_by, self.answered, self._middles())

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        rows = [
            {
                "item": one.item.name, "arm": one.arm, "challenge": one.challenge.name, "keep_first": one.keep_first, "first": one.asked[0].said,
                "other": one.other[0], "reply": reply, "outcome": found, "margin": round(margin, 4), "flipped": flip,
            }
            for one, reply, found, margin, flip in zip(
                self.dialogues, self.replies, self.outcomes, self.margins, self.flipped, strict=True
            )
        ]  # fmt: skip
        told = self.asked.describe() | describe_model(self.asked.model)
        return told | {"dropped": dict(self.asked.dropped), "read_by": self.read_by, "rates": self.rates(), "replies": rows}


def measure_doubt(
    model: Model, questions: DoubtQuestions, directory: RunDirectory | None = None, report: Report = silent
) -> Measured:
    """How often a model takes back its right answers, and wrong ones in their place, by challenge.

    Args:
        model: With its tokenizer.
        questions: What is asked, and how it is challenged.
        directory: Finished parts are kept there.
        report: Called with (done, total, remark).

    Raises:
        HeadwiseError: Questions or challenges that cannot be used.
        NoSuccessfulRunError: Fewer than `LEAST` questions are answered right at first.
    """
    return measured(doubts(model, questions), directory, report)


def measured(asked: Doubts, directory: Cells | None = None, report: Report = silent, arms: Sequence[str] = ARMS) -> Measured:
    """Ask every question, and challenge every right answer (and a wrong one in its place) in every way.

    Args:
        asked: The questions.
        directory: Finished stretches are kept there.
        report: Called with (done, total, remark).
        arms: Of `ARMS`.

    Raises:
        NoSuccessfulRunError: Fewer than `LEAST` questions are answered right at first.
    """
    answered = _answered(asked, directory, report)
    given = dialogues(asked, answered, arms)
    cell = directory.load("replies") if directory else None
    if cell is None:
        said = plain_answers(asked, [one.prompt for one in given], report, "replies")
        cell = ({}, [{"said": text} for text in said])
        if directory:
            directory.save("replies", *cell)
    values = _margins(asked, given, directory, report)
    replies = tuple(row["said"] for row in cell[1])
    outcomes = tuple(outcome(asked, one, text) for one, text in zip(given, replies, strict=True))
    coherent = np.mean([found != "incoherent" for found in outcomes])
    by_margin = asked.options.form == "yes-no" and coherent < COHERENT
    return Measured(asked, tuple(given), replies, outcomes, values, "margin" if by_margin else "reply", tuple(answered))


def _margins(asked: Doubts, given: Sequence[Dialogue], directory: Cells | None, report: Report) -> tuple[float, ...]:
    """Margins of the unchanged model, kept stretch by stretch."""
    nothing, found = [HeadSet((), asked.model.heads.shape)], list[float]()
    for start in range(0, len(given), STRETCH):
        some = given[start : start + STRETCH]
        cell = directory.load(f"margins-{start}") if directory else None
        if cell is None:
            values = [margins(asked, one, past, nothing)[0] for one, past in over_first_turns(asked, some)]
            cell = ({"margins": np.asarray(values)}, [])
            if directory:
                directory.save(f"margins-{start}", *cell)
        found += map(float, cell[0]["margins"])
        report(len(found), len(given), "margins")
    return tuple(found)


def _answered(asked: Doubts, directory: Cells | None, report: Report) -> list[Answered]:
    cell = directory.load("firsts") if directory else None
    if cell is None:
        found = first_answers(asked, report)
        names = {item.name: i for i, item in enumerate(asked.items)}
        cell = ({}, [{"place": names[one.item.name], "said": one.said} for one in found])
        if directory and len(found) >= LEAST:  # a run that is refused leaves nothing behind
            directory.save("firsts", *cell)
    asked.dropped["not answered right at first"] = len(asked.items) - len(cell[1])
    if len(cell[1]) < LEAST:
        wrong = f" (to {asked.missed[0][0]!r} the model said {asked.missed[0][1][:60]!r})" if asked.missed else ""
        helps = "" if asked.options.chat else ", or --chat for a chat model"
        raise NoSuccessfulRunError(
            f"{len(cell[1])} of {len(asked.items)} questions are answered right at first, and at least {LEAST} are needed{wrong}; give easier or "
            f"more questions, more spellings of their answers, --passages where the file has them{helps}"
        )
    return [Answered(asked.items[row["place"]], row["said"]) for row in cell[1]]


def under_pressure(asked: Doubts, answered: Sequence[Answered], rounds: int, report: Report = silent) -> list[dict[str, Any]]:
    """Challenge every right answer several times, each time more strongly: in which round it is first given up, and how often it changes.

    A question whose dialogue grows longer than the model's context is left out, and counted in `asked.dropped`.

    Args:
        asked: What asks; its challenges follow one another by strength, the strongest is repeated.
        answered: Right first answers.
        rounds: At least 2.
        report: Called with (done, total, remark).

    Returns:
        One row per question that fits: `item`, `outcomes` of all rounds (of the first answer), `turn` of the first flip (from 1; None if there is
        none), `flips` (how often it was given up or taken back up), `replies`.
    """
    ladder = sorted(asked.challenges, key=lambda one: one.strength)
    ladder = [ladder[min(i, len(ladder) - 1)] for i in range(rounds)]
    given = [one for one in dialogues(asked, answered, ("right",)) if one.challenge.name == ladder[0].name]
    talks: list[tuple[dict[str, Any], Dialogue]] = [({"item": one.item.name, "outcomes": [], "replies": []}, one) for one in given]
    for number in range(rounds):
        said = plain_answers(asked, [one.prompt for _, one in talks], report, f"round {number + 1} of {rounds}")
        for (row, one), text in zip(talks, said, strict=True):
            row["outcomes"].append(outcome(asked, one, text))
            row["replies"].append(text)
        if number + 1 < rounds:
            talks = [
                (row, goes_on(asked, one, row["replies"][-1] or one.asked[-1].said, ladder[number + 1], row["outcomes"][-1] == "suggested"))
                for row, one in talks
            ]
            talks = [(row, one) for row, one in talks if fits(asked, one)]
    asked.dropped[TOO_LONG] = len(given) - len(talks)
    rows = [row for row, _ in talks]
    for row in rows:
        holds = [state == "kept" for state in row["outcomes"] if state != "incoherent"]
        row["turn"] = next((n for n, state in enumerate(row["outcomes"], 1) if state in ("suggested", "other")), None)
        row["flips"] = sum(a != b for a, b in zip([True, *holds], holds, strict=False))
    return rows


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
