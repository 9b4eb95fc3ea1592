"""Unfaithful answers of a model without heads, trainings on both kinds of answers, and what the trained models say."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import numpy as np

import headwise as hw
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.rhio.judged import Spoken, details, real_findings
from headwise.claims.rhio.questions import Asked, Questions, real
from headwise.claims.rhio.speaker import Speaker
from headwise.evaluation.grounded import judged_answer
from headwise.heads.errors import HeadwiseError, NoSuccessfulRunError
from headwise.methods.rhio.file import PairRow, lines_of, read_pairs
from headwise.methods.rhio.filters import Pair, kept_pairs
from headwise.methods.rhio.options import UnfaithfulOptions
from headwise.methods.rhio.run import unfaithful_pairs
from headwise.models.model import Model, describe_model
from headwise.prompts.control import control_ids
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grounded_prompts import GroundedComposer
from headwise.prompts.mentions import mentions
from headwise.prompts.needles import bundled_needles
from headwise.stats.controls import layer_matched_random
from headwise.train.control import with_control_tokens
from headwise.train.objectives import AnswerLoss
from headwise.train.options import Tuning
from headwise.train.rhio import control_examples
from headwise.train.run import train_to_folder

SHARE, FEWER, DRAWS = 0.1, 40, 3  # of the heads that are taken away; pairs that are enough for a control; random sets of a dose
Base = Callable[[], Model]
Way = Callable[[Speaker], list[str]]


class Sizes(NamedTuple):
    """How much is run. Whole sizes are those that were registered.

    Attributes:
        tuning: Of trainings on both kinds of answers; those on faithful ones alone take half as many steps.
        start: Steps on references.
        limit: Tokens of an answer.
        alphas: Weights of the contrast.
        length: Of needles that find heads.
        least: Pairs that a control must leave to be trained on.
        early: Steps of an under-trained model, and questions without more and more heads; 0: none of both.
        dosed: Questions that are asked without more and more heads.
    """

    tuning: Tuning
    start: int
    limit: int
    alphas: tuple[float, ...]
    length: int
    least: int = FEWER
    early: int = 0
    dosed: int = 60


REAL = Sizes(Tuning(steps=200, batch=1, accumulate=4, rate=2e-4, length=400, save_every=25), 75, 24, (0.2, 1.0), 512)


def quick(sizes: Sizes) -> Sizes:
    """The small version of some sizes: no training learns anything in it."""
    tuning = replace(sizes.tuning, steps=2, accumulate=1, batch=2)
    return sizes._replace(tuning=tuning, start=2, length=256, least=1, early=min(sizes.early, 1), dosed=4)


def measure(bench: Bench) -> Measured:
    """Short answers of a real model."""
    questions = real(bench)
    spoken = Run(bench, questions, bench.pick(REAL, quick(REAL))).result()
    return Measured(real_findings([spoken], questions.checker), details([spoken], questions.checker))


@dataclass
class Run:
    """All trainings and answers of one model; what is finished is kept.

    Attributes:
        bench: Of the model.
        questions: To learn from and to be judged on.
        sizes: How much is run.
    """

    bench: Bench
    questions: Questions
    sizes: Sizes

    @cached_property
    def cells(self) -> Any:
        """Where answers are kept."""
        told = {"tuning": asdict(self.sizes.tuning), "start": self.sizes.start, "limit": self.sizes.limit}
        asked = [record.question for record in (*self.questions.train, *self.questions.closed)]
        return self.bench.cells("said", told | {"questions": asked} | describe_model(self.bench.model))

    def kept(self, name: str, make: Callable[[], list[str]]) -> list[str]:
        """Texts under a name, made if they are not there."""
        found = self.cells.load(name)
        if found is None:
            found = {}, [{"said": text} for text in make()]
            self.cells.save(name, *found)
        return [row["said"] for row in found[1]]

    def said(self, base: Base, ways: Mapping[str, Way]) -> dict[str, list[str]]:
        """What a model answers in several ways; it is loaded, and trained, only if an answer is missing."""
        speaker = cache(lambda: self.speaker(base))
        return {name: self.kept(name, lambda w=way: w(speaker())) for name, way in ways.items()}  # type: ignore[misc]

    def speaker(self, base: Base) -> Speaker:
        """How a model is asked."""
        return Speaker(base(), self.sizes.limit, self.bench.report)

    def train(self, name: str, base: Base, rows: Sequence[PairRow], steps: int, plain: bool) -> Base:
        """What loads the result of a training, which runs when it is first asked for."""
        folder = self.bench.work / "trainings" / name

        def load() -> Model:  # anew each time: a training changes the model that it is given
            if not folder.is_dir():
                options, model = replace(self.sizes.tuning, steps=max(1, steps), seed=self.bench.seed), base()
                tokens: tuple[int, ...] = ()
                if not plain:
                    model = with_control_tokens(model, options.seed)
                    tokens = control_ids(model.tokenizer)
                data = control_examples(model, rows, GroundedComposer(PieceEncoder(model.tokenizer)), options.length, plain)
                folder.parent.mkdir(parents=True, exist_ok=True)
                train_to_folder(
                    model, data, lambda _: AnswerLoss(), options, folder, {"training": name}, name, report=self.bench.report, tokens=tokens
                )  # fmt: skip
            return hw.load(str(folder / "merged"))

        return load

    def forget(self, name: str) -> None:
        """Delete a training whose answers are kept: its checkpoint is as large as the model."""
        shutil.rmtree(self.bench.work / "trainings" / name, ignore_errors=True)

    def copies(self, name: str, base: Base) -> hw.HeadScores:
        """Retrieval heads of a model."""
        needles, depths = bundled_needles("detect"), self.bench.pick(3, 1)
        options = hw.Copy(lengths=[self.sizes.length], depths=depths, needles=self.bench.pick(needles, needles[:4]), seed=self.bench.seed)
        try:
            return hw.find(base(), options, directory=self.bench.work / f"copy-{name}", report=self.bench.report)
        except NoSuccessfulRunError as why:
            raise NotTestable(f"{why} (after tuning on references)") from why

    def make_pairs(self, source: str, base: Base, heads: hw.HeadSet | None) -> tuple[list[PairRow], dict[str, Any]]:
        """Unfaithful answers of a source, filtered, and what is told of them."""
        file, found = self.bench.work / f"{source}.jsonl", self.cells.load(f"pairs-{source}")
        if found is None:
            model, checker = base(), self.questions.checker
            options = UnfaithfulOptions(self.sizes.limit, match="length", least_gap=0.0)
            without = None if heads is None else hw.Without(heads, "zero", "all")
            composer = GroundedComposer(PieceEncoder(model.tokenizer))
            try:
                pairs, dropped = unfaithful_pairs(model, self.questions.train, composer, checker, without, options, report=self.bench.report)
            except HeadwiseError as why:  # documents that do not fit, references that are too long
                raise NotTestable(str(why)) from why
            labels: Counter[str] = Counter()
            for pair in pairs:
                labels.update(judged_answer(checker, pair.unfaithful.text, pair.record)["labels"])
            right = [int(mentions(one.unfaithful.text, one.record.facts)) for one in pairs]
            told: dict[str, Any] = {"gap": gap(pairs), "right": right, "dropped": dict(dropped), "labels": dict(labels)}
            file.unlink(missing_ok=True)
            try:
                kept = kept_pairs(pairs, options)
                told |= {"counts": dict(kept.counts), "table": {key: dict(value) for key, value in kept.table.items()}, "pairs": len(kept.pairs)}
                file.write_bytes(lines_of(kept.pairs))
            except HeadwiseError as problem:
                told |= {"pairs": 0, "why": str(problem)}
            found = {}, [told]
            self.cells.save(f"pairs-{source}", *found)
        return (read_pairs(file) if file.exists() else []), found[1][0]

    def result(self) -> Spoken:
        """All trainings and answers, in an order in which every one is needed by the next."""
        sizes = self.sizes
        refs = [PairRow(one.question, one.documents, one.references[0], "none") for one in self.questions.train]
        start = self.train("start", self.bench.load, refs, sizes.start, plain=True)
        scores = self.copies("start", start)
        top = scores.top(max(1, round(SHARE * scores.values.size)))
        sets = {"heads": top, "random": layer_matched_random(top, scores, self.bench.seed), "swap": None}
        made = {source: self.make_pairs(source, start, heads) for source, heads in sets.items()}
        memory = self.kept("memory", lambda: self.speaker(start).closed(self.questions.closed)) if self.questions.closed else []
        asked = self.questions.judge(memory)
        records = [one.record for one in asked]
        said = self.said(start, {"start": lambda s: s.opened(records)})
        if sizes.early:
            said |= self.doses(start, refs, asked, scores)
        rows, again = made["heads"][0], {}
        if rows:
            plain = self.train("plain", start, rows, sizes.tuning.steps // 2, plain=True)
            said |= self.said(plain, plain_ways(records, top))
            again["plain"] = self.found_again("plain", plain, top)
            self.forget("plain")
            for source, (own, _) in made.items():
                if source == "heads" or len(own) >= sizes.least:
                    base = self.train(f"rhio-{source}", start, own[: len(rows)], sizes.tuning.steps, plain=False)
                    said |= self.said(base, control_ways(source, records, sizes.alphas))
                    if source == "heads":
                        again["rhio"] = self.found_again("rhio", base, top)
                    self.forget(f"rhio-{source}")
        tables = {source: told for source, (_, told) in made.items()}
        return Spoken(self.bench.name, asked, said, tables, [str(head) for head in top], again)

    def found_again(self, name: str, base: Base, top: hw.HeadSet) -> int:
        """How many of the heads that were taken away are the best ones after a training, too; -1 where no needle is solved any more."""

        def shared() -> list[str]:
            try:
                return [str(len(set(top) & set(self.copies(name, base).top(len(top)))))]
            except NotTestable:
                return ["-1"]

        return int(self.kept(f"shared-{name}", shared)[0])

    def doses(self, start: Base, refs: Sequence[PairRow], asked: Sequence[Asked], scores: hw.HeadScores) -> dict[str, list[str]]:
        """Answers without more and more heads, the best ones and random ones of their layers; and those of an under-trained model."""
        few, size, ways = [one.record for one in asked[: self.sizes.dosed]], scores.values.size, dict[str, Way]()
        tenth = max(1, round(SHARE * size))
        for count in sorted({2, 4, tenth, round(0.25 * size)}):
            best = scores.top(count)
            chosen = {"top": best} | {f"random-{seed}": layer_matched_random(best, scores, seed) for seed in range(DRAWS)}
            for which, heads in chosen.items():
                ways[f"without.{count}.{which}"] = partial(Speaker.opened, records=few, without=heads)
        ways["uniform"] = partial(Speaker.opened, records=few, without=scores.top(tenth), mode="uniform")
        early = self.train("early", self.bench.load, refs, self.sizes.early, plain=True)
        said = self.said(start, ways) | self.said(early, {"early": lambda s: s.opened(few)})
        self.forget("early")
        return said


def plain_ways(records: Sequence[Any], heads: hw.HeadSet) -> dict[str, Way]:
    """Plain fine-tuning: greedy, against the model without heads, against the question alone."""
    return {
        "plain": lambda s: s.opened(records),
        "plain.heads": lambda s: s.contrast(records, hw.Without(heads), combine="entropy"),
        "plain.closed": lambda s: s.contrast(records, "closed", alpha=0.5),
    }


def control_ways(source: str, records: Sequence[Any], alphas: Sequence[float]) -> dict[str, Way]:
    """A model with control tokens: behind each of them, and contrasted; with every alpha where it has learnt from the heads."""
    whole = source == "heads"
    rules: list[dict[str, Any]] = [{"alpha": alpha} for alpha in (alphas if whole else (0.2,))]
    if whole:
        rules.append({"alpha": max(alphas), "plausibility": 0.1})
    ways: dict[str, Way] = {f"{source}.0": lambda s: s.behind(records, 0), f"{source}.neg": lambda s: s.behind(records, 1)}
    for rule in rules:
        name = f"{source}.{rule['alpha']:g}" + (".cut" if len(rule) > 1 else "")
        ways[name] = lambda s, r=rule: s.contrast(records, "control", **r)  # type: ignore[misc]
    return ways


def gap(pairs: Sequence[Pair]) -> float:
    """Mean support of the references minus that of the unfaithful answers."""
    return float(np.mean([one.faithful.support - one.unfaithful.support for one in pairs])) if pairs else 0.0
