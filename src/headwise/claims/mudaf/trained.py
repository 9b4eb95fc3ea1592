"""Heads of several scores are trained, and what that does to heads, answers and text, beside plain fine-tuning on the same examples."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

import headwise as hw
from headwise.attention.plan import attached
from headwise.caches.shared import fork, full_cache
from headwise.claims.copy_heads import copy_heads
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.mudaf.judged import Trained, details, findings
from headwise.claims.mudaf.passages import Parts, real
from headwise.evaluation.perplexity import perplexity, text_windows
from headwise.heads.errors import HeadwiseError
from headwise.methods.mudaf.loss import MudafLoss
from headwise.models.model import Model, describe_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import Haystack, bundled_texts
from headwise.prompts.passages import RankingExample
from headwise.runtime.answer import decode_one
from headwise.runtime.runner import prefill
from headwise.stats.controls import layer_matched_random
from headwise.stats.metrics import units
from headwise.stats.ranks import spearman
from headwise.train.examples import TrainExample, prepared
from headwise.train.head_loss import HeadLoss
from headwise.train.objectives import AnswerLoss, Objective
from headwise.train.options import Tuning
from headwise.train.run import train_to_folder

TOP, LIMIT, LONG = 8, 16, 2048
LAB_TUNING = Tuning(steps=100, batch=8, accumulate=1, rate=1e-3, length=1024, save_every=50)
REAL_TUNING = Tuning(steps=50, batch=1, accumulate=4, rate=2e-4, length=1400, save_every=25)
ARTICLES = {"the", "a", "an"}


class Condition(NamedTuple):
    """One training.

    Attributes:
        name: Of it.
        heads: That are trained; None: plain fine-tuning.
        alpha: Weight of their loss.
        pool: See `MudafLoss`.
    """

    name: str
    heads: hw.HeadSet | None
    alpha: float = 0.7
    pool: str = "mean"


def measure(bench: Bench) -> Measured:
    """Real questions, one model."""
    sizes = bench.pick((64, 400, 60), (6, 8, 6))
    tuning = replace(bench.pick(REAL_TUNING, replace(REAL_TUNING, steps=2, accumulate=1)), seed=bench.seed)
    model = Trainings(bench, real(bench).first(*sizes), tuning).result()
    return Measured(findings("smollm2", [model]), details([model]))


def question_first(bench: Bench) -> Measured:
    """Nobody measures it."""
    raise NotTestable("needs prompts with the question in front of the passages: the prompt builder puts it behind them")


def plain_words(text: str) -> list[str]:
    """Words of the first line without articles and stops."""
    line = text.strip().split("\n")[0]
    return [word for word in units(line.casefold()) if word not in ARTICLES and any(c.isalnum() for c in word)]


@dataclass
class Trainings:
    """All trainings of one model, measured; what is finished is kept.

    Attributes:
        bench: Of the model.
        given: Questions; of those that are judged only such as fit into the model count.
        tuning: Of every training.
        more: Whether other numbers of heads, other alphas and the loss on attention mass are trained, too.
    """

    bench: Bench
    given: Parts
    tuning: Tuning
    more: bool = False

    @cached_property
    def chat(self) -> bool:
        """Real models are asked through their chat template, where they have one."""
        return self.bench.real and bool(getattr(self.bench.model.tokenizer, "chat_template", None))

    @cached_property
    def parts(self) -> Parts:
        """The questions.

        Raises:
            NotTestable: Too few of them fit.
        """
        fits = [one for one in self.given.judge if self._prompts([one])]
        if not fits or not self.given.find or not self.given.train:
            raise NotTestable(f"none of the questions that are judged fits into {self.bench.model.positions} positions")
        return self.given._replace(judge=fits)

    def _prompts(self, records: Sequence[RankingExample]) -> tuple[TrainExample, ...]:
        model = self.bench.model
        try:
            return prepared(model, records, min(LONG, (model.positions or LONG) - LIMIT), self.chat).examples
        except HeadwiseError:  # none of them fits
            return ()

    @cached_property
    def scores(self) -> hw.HeadScores:
        """MDQA scores on the questions for finding."""
        scores = self.bench.find(hw.Mdqa(data=self.parts.find, chat=self.chat))
        if len(scores.ranking()) < 3 * TOP:
            raise NotTestable(f"needs {3 * TOP} heads that see all passages: {TOP} strong, {TOP} middling and {TOP} weak ones")
        return scores

    def copies(self) -> hw.HeadScores | None:
        """Copy scores; None where the model solves no needle."""
        try:
            return copy_heads(self.bench)
        except NotTestable:
            return None

    @cached_property
    def windows(self) -> torch.Tensor:
        """Plain text that no prompt uses."""
        texts = Haystack(bundled_texts(), PieceEncoder(self.bench.model.tokenizer))
        return text_windows(texts, self.bench.pick(24, 4), 256, (0.9, 1.0))

    def conditions(self) -> list[Condition]:
        """Plain, the best heads, middling, weak and random ones; and what `more` asks for."""
        scores, ranked = self.scores, self.scores.ranking()
        best = scores.top(TOP)
        found = [
            Condition("plain", None),
            Condition("best", best),
            Condition("middle", hw.HeadSet.of(ranked[TOP : 2 * TOP], scores.shape)),
            Condition("weak", hw.HeadSet.of(ranked[-TOP:], scores.shape)),
            Condition("random", layer_matched_random(best, scores, self.bench.seed)),
        ]
        if self.more:
            found += [Condition(f"alpha-{alpha:g}", best, alpha) for alpha in (0.3, 1.0)]
            found += [Condition(f"top-{k}", scores.top(k)) for k in (1, 2, 4)] + [Condition("top-all", hw.HeadSet.of(ranked, scores.shape))]
            found.append(Condition("lse", best, pool="lse"))
        return found

    def result(self) -> Trained:
        """What the claims need."""
        copies, chosen = self.copies(), self.conditions()
        best = self.scores.top(TOP)
        measured = {"before": self.measured(None)} | {one.name: self.measured(one) for one in chosen}
        found: dict[str, Any] = {"best_f1": float(np.nanmax(self.scores.values)), "recall": 0.0}
        if copies is not None:
            both = ~np.isnan(self.scores.values) & ~np.isnan(copies.values)
            shared = len(set(best) & set(copies.top(TOP)))
            found["recall"] = copies.provenance["solved"] / copies.provenance["runs"]
            found |= {"jaccard": shared / (2 * TOP - shared), "spearman": spearman(self.scores.values[both], copies.values[both])}
        heads = {one.name: tuple((head.layer, head.head) for head in one.heads or best) for one in chosen}
        return Trained(self.bench.name, measured, heads | {"before": heads["plain"]}, found)

    def measured(self, condition: Condition | None) -> dict[str, Any]:
        """A finished training, measured; None: the model as it is."""
        name = condition.name if condition else "before"
        told = {"tuning": asdict(self.tuning), "chat": self.chat, "questions": [[one.query for one in part] for part in self.parts]}
        cells = self.bench.cells("measured", told | describe_model(self.bench.model))
        kept = cells.load(name)
        if kept is None:
            folder = self.bench.work / "trainings" / name
            model = self.bench.model if condition is None else self.trained(condition)
            arrays, perplex = self.numbers(model)
            kept = arrays, [{"perplexity": perplex}]
            cells.save(name, *kept)
            shutil.rmtree(folder, ignore_errors=True)
        return kept[0] | kept[1][0]

    def trained(self, condition: Condition) -> Model:
        """The model after a training; a killed one goes on in its folder."""
        bench, folder = self.bench, self.bench.work / "trainings" / condition.name
        if not folder.is_dir():
            model = bench.load()
            try:
                data = prepared(model, self.parts.train, self.tuning.length, self.chat, self.bench.seed)
            except HeadwiseError as why:
                raise NotTestable(str(why)) from why

            def objective(adapted: Model) -> Objective:
                if condition.heads is None:
                    return AnswerLoss()
                return HeadLoss(adapted, MudafLoss(condition.heads, pool=condition.pool), condition.alpha)

            heads = [] if condition.heads is None else [str(head) for head in condition.heads]
            story = {"condition": condition.name, "alpha": condition.alpha, "pool": condition.pool, "trained_heads": heads}
            folder.parent.mkdir(parents=True, exist_ok=True)
            train_to_folder(model, data, objective, self.tuning, folder, story, bench.name, report=bench.report)
        return hw.load(str(folder / "merged"))

    def numbers(self, model: Model) -> tuple[dict[str, np.ndarray], float]:
        """F1 [question, layer, head] and answers [question] on the part that is judged; perplexity of novels."""
        scores = hw.find(model, hw.Mdqa(data=self.parts.judge, chat=self.chat), report=self.bench.report)
        arrays = {"f1": np.nan_to_num(np.asarray(scores.runs)).round(6), **self.answers(model)}
        return arrays, perplexity(model.hf, self.windows)

    def answers(self, model: Model) -> dict[str, np.ndarray]:
        """1 per question that is answered exactly, with all heads (`answers`), and without the best from the last prompt token on (`ablated`)."""
        found: dict[str, list[int]] = {"answers": [], "ablated": []}
        for number, (one, example) in enumerate(zip(self.parts.judge, self._prompts(self.parts.judge), strict=True), 1):
            ids = example.ids[: example.answer]
            with torch.no_grad(), attached(model.hf):
                past = full_cache(model.hf)
                prefill(model.hf, past, ids[:-1])  # read once for both
                for key, heads in (("answers", None), ("ablated", self.scores.top(TOP))):
                    block = nullcontext() if heads is None else hw.ablate(model, heads, scope="answer", answer_from=len(ids) - 1)
                    with block:
                        said = decode_one(model.hf, fork(past), ids, model.stop_ids, LIMIT)
                    text = plain_words(str(model.tokenizer.decode(said, skip_special_tokens=True)))
                    found[key].append(int(any(text == plain_words(answer) for answer in one.answers)))
            self.bench.report(number, len(self.parts.judge), "answers")
        return {key: np.asarray(values, dtype=np.int8) for key, values in found.items()}
