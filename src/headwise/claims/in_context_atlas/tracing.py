"""Where an answer was read, by the probe and its rivals in one run, on the same items: see `trace_sets` and `trace_rivals`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.in_context_atlas.trace_findings import areas, probe_findings, table, top_passage, usable
from headwise.claims.in_context_atlas.trace_rivals import Rivals
from headwise.claims.in_context_atlas.trace_sets import Item, hotpot, natural_questions, nq_part, popqa
from headwise.heads import HeadwiseError, NoSuccessfulRunError
from headwise.methods.atlas.options import Retrieval
from headwise.methods.trace.answer import probe_for
from headwise.methods.trace.fit import fit_probe, prepare
from headwise.methods.trace.options import FitOptions
from headwise.models.model import describe_model
from headwise.prompts.encoder import PieceEncoder, newline_ids
from headwise.prompts.knowledge import KnowledgeComposer, KnowledgeRecord
from headwise.prompts.prompt import Prompt
from headwise.prompts.swaps import swap_answers
from headwise.runtime.head_probe import Probe
from headwise.runtime.token_cases import read_newest
from headwise.stats.ranks import spearman

FIRST = 24  # items of the first try, left out
NQ_SHOTS, SHORT = 3, 40  # solved examples in front, whose passages have at most so many words
PASSAGES, WORDS = 4, 60
SUBSETS = 6  # random halves of the passages per item that weights are learned on
RULES = ("gradient", "gim", "attnlrp")
PROBE_HEADS = {"real": 48, "lab": 6}


@dataclass(frozen=True)
class Source:
    """Items of one kind.

    Attributes:
        name: Of the set.
        items: That are traced.
        learning: That weights per head are learned on.
        examples: Solved questions in front of each.
        classes: Whether it is also asked what tells read from remembered; an item that is not usable then costs one pass only.
    """

    name: str
    items: Sequence[Item]
    learning: Sequence[Item]
    examples: Sequence[KnowledgeRecord] = ()
    classes: bool = True


class Tracer:
    """Traces the items of a model one after the other; each is kept."""

    def __init__(self, bench: Bench, probe: Probe, source: Source) -> None:
        self.bench, self.model, self.probe, self.source = bench, bench.model, probe, source
        self.rivals = Rivals(self.model, probe, probe.heads, RULES)
        self.composer = KnowledgeComposer(PieceEncoder(self.model.tokenizer), examples=source.examples)
        self.endings = frozenset((*self.rivals.special, *newline_ids(self.model.tokenizer), *self.model.stop_ids))
        told: dict[str, Any] = {"model": describe_model(self.model), "weights": probe.weights, "heads": [str(head) for head in probe.heads]}
        told |= {"items": [item.name for item in source.items], "rules": RULES, "subsets": SUBSETS}
        self.kept = bench.cells(f"traced-{source.name}", told)

    def once(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A row that is kept, or made now."""
        found = self.kept.load(key)
        if found is None:
            found = {}, [make()]
            self.kept.save(key, *found)
        return found[1][0]

    def rows(self) -> list[dict[str, Any]]:
        """One row per item."""
        self.rivals.learned = np.array(self.once("weights", self.weights)["weights"])
        out = []
        for number, item in enumerate(self.source.items):
            out.append(self.once(f"item{number:04d}", lambda item=item, number=number: self.row(item, number)))  # type: ignore[misc]
            self.bench.report(number + 1, len(self.source.items), self.source.name)
        return out

    def weights(self) -> dict[str, Any]:
        """Weights per head from ablations, on items of their own."""
        prompts = [item.prompt(self.composer) for item in self.source.learning]
        return {"weights": self.rivals.learn([(prompt, prompt.gold) for prompt in prompts], SUBSETS).tolist()}

    def row(self, item: Item, number: int) -> dict[str, Any]:
        """All rivals on one item."""
        prompt, classes = item.prompt(self.composer), self.source.classes
        told = self.told(item, prompt) if classes else {}
        if classes and not usable([told]):
            return told
        said = self.rivals.all(prompt, prompt.gold, item.record.question, item.answer, number)
        drops = said["leave_one_out"].passages
        rows = {}
        for name, one in said.items():
            best, rank = int(np.argmax(one.passages)), float(spearman(np.array(one.passages), np.array(drops)))
            told_rank = None if np.isnan(rank) else rank
            rows[name] = {"top1": best in item.gold, "drop": drops[best], "spearman": told_rank, "offset": one.offset, "read": one.read}
        return {"rivals": rows, **told, **(self.classes(item, prompt) if classes else {})}

    def told(self, item: Item, prompt: Prompt) -> dict[str, Any]:
        """Whether an item is usable: ranks of the answer to be read and of the remembered one among the next tokens."""
        new, old = self.composer.first_token(item.answer), self.composer.first_token(item.record.answers[0])
        seen = read_newest(self.model, self.probe.heads, [prompt], self.probe.weights)
        return {"same": new == old, "read_rank": int(seen.ranks([new])[0]), "remembered_rank": int(seen.ranks([old])[0])}

    def classes(self, item: Item, prompt: Prompt) -> dict[str, Any]:
        """The remembered answer's score on the same rows, and scores of words said beside strange passages and without any."""
        out: dict[str, Any] = {"paired": self.rivals.candidate(prompt, self.composer.first_token(item.record.answers[0]))}
        for name, other in (("unrelated", item.without_gold(self.composer)), ("closed", self.composer.closed(item.record))):
            token = int(read_newest(self.model, self.probe.heads, [other]).logits[0].argmax())
            own = token not in self.endings and (name == "closed" or token not in other.ids)
            out[name] = self.rivals.candidate(other, token) if own else None
        return out

    def remembered(self, records: Sequence[KnowledgeRecord]) -> dict[str, Any]:
        """Questions without passages: how many of the words that the model says are called read."""
        said = []
        for record in records:
            prompt = self.composer.closed(record)
            seen = read_newest(self.model, self.probe.heads, [prompt], self.probe.weights)
            token = int(seen.logits[0].argmax())
            if token not in self.endings:
                said.append(float(self.probe.probability(seen.features([token]).astype(float))[0]))
        called = [p > self.probe.band[1] for p in said]
        return {"words": len(said), "called_read": float(np.mean(called)) if called else None}


def measure(bench: Bench) -> Measured:
    """Claims about NQ, HotpotQA and PopQA."""
    nq, hotpotqa, questions = (bench.folder(name) for name in ("nq-open-oracle", "hotpotqa-distractor", "popqa-1000"))
    items, some, asked, learning = bench.pick((200, 200, 60, 10), (24, 6, 10, 3))
    known = [one for one in nq_part(nq, "weights") if one.passage and len(one.passage.text.split()) <= SHORT]
    examples = sorted(known, key=lambda record: len(record.passage.text) if record.passage else 0)[:NQ_SHOTS]
    learned = natural_questions(nq, "weights", PASSAGES, WORDS, learning)
    probe = probe_of(bench, swap_answers(nq_part(nq, "train"), seed=1), NQ_SHOTS)
    sources = (
        Source("nq", natural_questions(nq, "test", PASSAGES, WORDS, FIRST + items)[FIRST:], learned, examples),
        Source("hotpotqa", hotpot(hotpotqa, PASSAGES, WORDS, FIRST + some)[FIRST:], learned, examples, classes=False),
    )
    tracers = [Tracer(bench, probe, source) for source in sources]
    rows = [tracer.rows() for tracer in tracers]
    found = probe_findings("nq", rows[0], probe) | {"trace.top1_passage.hotpotqa": top_passage(rows[1])}
    told = tracers[0].once("popqa", lambda: tracers[0].remembered(popqa(questions, asked)))
    share = told["called_read"]
    remembered = Finding.none("the model says no word") if share is None else Finding({"called_read": share, "words": float(told["words"])})
    details = described("nq", rows[0], probe) | {"hotpotqa": {"items": len(rows[1]), "rivals": table(rows[1])}}
    return Measured(found | {"trace.popqa_is_remembered.popqa": remembered}, details | about(probe))


def described(name: str, rows: Sequence[Any], probe: Probe) -> dict[str, Any]:
    """The tables of one set of items with a swapped passage."""
    good = usable(rows)
    return {name: {"items": len(rows), "usable": len(good), "rivals": table(good), "auc": areas(good, probe) if good else {}}}


def about(probe: Probe) -> dict[str, Any]:
    """What is told of the probe."""
    told = {name: probe.facts.get(name) for name in ("auc", "accuracy", "calibration_error", "records", "localisation")}
    return {"probe": told | {"heads": [str(head) for head in probe.heads]}}


def probe_of(bench: Bench, records: Sequence[KnowledgeRecord], shots: int) -> Probe:
    """The probe that comes with headwise for the model; else one that is fitted now, on heads that are found on other records.

    Raises:
        NotTestable: Too few records can be used.
    """
    try:
        return probe_for(bench.model, None)
    except HeadwiseError:  # none was made for these weights
        pass
    few, most = bench.pick((64, 900), (16, 200))
    options = Retrieval(
        data=records[::4], rows="last", followed="top5", shots=shots, records=few, min_records=min(few, 50), seed=bench.seed
    )
    others = [record for number, record in enumerate(records) if number % 4]
    try:
        scores = bench.find(options)
        heads = scores.top(min(PROBE_HEADS[bench.kind], int((~np.isnan(scores.values)).sum())))
        fitting = prepare(bench.model, others, heads, FitOptions(shots=shots, records=most, seed=bench.seed))
        return fit_probe(fitting, bench.cells("probe", fitting.describe()), bench.report)
    except NoSuccessfulRunError as why:
        raise NotTestable(f"needs a probe for this model: {why}") from why
