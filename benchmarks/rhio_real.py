"""The claims about RHIO (`registered/rhio.py`): unfaithful answers, tuning on both kinds, contrast.

    python benchmarks/rhio_real.py lab --keep FOLDER --json                        # three lab models; an hour and a half on one core
    python benchmarks/rhio_real.py smollm2 --data FOLDER --keep FOLDER --json      # an hour and a half on one core

FOLDER of --data holds `nq-open-oracle`; --keep holds what is finished, so that the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rhio_sets
from common import hardware
from registered import judged
from rhio_sets import Asked, Questions

import headwise as hw
from headwise.attention.plan import attached
from headwise.evaluation.decoders import contrastive_decoder
from headwise.evaluation.grounded import judged_answer
from headwise.heads.errors import HeadwiseError
from headwise.heads.headfile import write_json
from headwise.methods.rhio.file import PairRow, lines_of, read_pairs
from headwise.methods.rhio.filters import Pair, kept_pairs
from headwise.methods.rhio.options import UnfaithfulOptions
from headwise.methods.rhio.run import unfaithful_pairs
from headwise.models.model import Model
from headwise.prompts.control import control_ids, with_control
from headwise.prompts.encoder import PieceEncoder, read_answer
from headwise.prompts.grounded import GroundedRecord
from headwise.prompts.grounded_prompts import GroundedComposer
from headwise.prompts.mentions import mentions
from headwise.prompts.prompt import Prompt
from headwise.runtime.answer import stop_ids
from headwise.runtime.batches import greedy_answers
from headwise.stats.controls import layer_matched_random
from headwise.stats.paired import bootstrap_mean, sign_flip_test
from headwise.train.control import with_control_tokens
from headwise.train.objectives import AnswerLoss
from headwise.train.options import Tuning
from headwise.train.rhio import control_examples
from headwise.train.run import train_to_folder

LAB = ("world-6m", "world-6m-seed1", "world-6m-qwen3")
SHARE, FEW, FEWER, DRAWS, DOSED, ROWS, EARLY = 0.1, 100, 40, 3, 60, 16, 30  # FEWER pairs are enough for a control
LIMIT = {"lab": 48, "smollm2": 24}  # tokens of an answer
# Of both kinds of answers; trainings on faithful ones alone take half as many steps.
TUNING = {
    "lab": Tuning(steps=300, batch=8, accumulate=1, rate=1e-3, length=400, save_every=50),
    "smollm2": Tuning(steps=200, batch=1, accumulate=4, rate=2e-4, length=400, save_every=25),
}
START = {"lab": 150, "smollm2": 75}  # steps on references
ALPHAS = {"lab": (0.1, 0.2, 0.5, 1.0, 2.0), "smollm2": (0.2, 1.0)}
WRONG = ("fabricated", "mis_combined", "unreadable")


def tell(done: float, total: float, remark: str = "") -> None:
    """Progress on standard error."""
    if done == total or int(done) % 25 == 0:
        print(f"{done:g} of {total:g} {remark}", file=sys.stderr, flush=True)


class Speaker(NamedTuple):
    """A model and how it is asked."""

    model: Model
    limit: int

    @property
    def composer(self) -> GroundedComposer:
        """Of its prompts, as in training."""
        return GroundedComposer(PieceEncoder(self.model.tokenizer))

    @property
    def stop(self) -> Any:
        """Ends of an answer: it is one line."""
        return stop_ids(self.model, False, lines=True)

    def greedy(self, prompts: Sequence[Prompt], without: hw.HeadSet | None = None, mode: str = "zero") -> list[str]:
        """Greedy answers."""
        block = nullcontext() if without is None else hw.ablate(self.model, without, mode, "all")
        said: list[tuple[int, ...]] = []
        with attached(self.model), block:
            for start in range(0, len(prompts), ROWS):
                part = [prompt.ids for prompt in prompts[start : start + ROWS]]
                said += greedy_answers(self.model.hf, part, [self.limit] * len(part), self.stop)
        return [read_answer(self.model.tokenizer, ids, self.stop).strip() for ids in said]

    def behind(self, prompts: Sequence[Prompt], which: int) -> list[str]:
        """Greedy answers behind `[POS]` (0) or `[NEG]` (1)."""
        token, head = control_ids(self.model.tokenizer)[which], self.composer.builder.head
        return self.greedy([with_control(prompt, token, head) for prompt in prompts])

    def contrast(self, records: Sequence[GroundedRecord], negative: Any, **rule: Any) -> list[str]:
        """Answers of contrastive decoding."""
        composer = self.composer
        decode = contrastive_decoder(self.model, self.stop, self.limit, negative, composer.builder.head, **rule)
        said = []
        for number, record in enumerate(records, 1):
            said.append(read_answer(self.model.tokenizer, decode(composer.opened(record), composer.closed(record)), self.stop).strip())
            tell(number, len(records), f"contrast {rule}")
        return said


class Run:
    """One model of a set: what is finished lies in its folder."""

    def __init__(self, name: str, which: str, questions: Questions, keep: Path, steps: int | None) -> None:
        self.name, self.which, self.questions, self.keep, self.limit = name, which, questions, keep, LIMIT[which]
        self._few = steps
        self.pairs: dict[str, list[PairRow]] = {}
        self.tables: dict[str, dict[str, Any]] = {}

    def file(self, name: str) -> Path:
        """Where something is kept."""
        return self.keep / f"{self.name}.{name}"

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What a file of JSON holds, made if it is not there."""
        file = self.file(f"{name}.json")
        if not file.exists():
            print(self.name, name, file=sys.stderr, flush=True)
            write_json({"it": make()}, file)
        return json.loads(file.read_text())["it"]

    def train(self, name: str, base: str, rows: Sequence[PairRow], steps: int, plain: bool) -> str:
        """A training; the name that loads its result."""
        folder = self.file(name)
        if not folder.is_dir():
            print(self.name, "training", name, file=sys.stderr, flush=True)
            began, options = time.monotonic(), replace(TUNING[self.which], steps=self._few or steps)
            model, tokens = hw.load(base), ()
            if not plain:
                model = with_control_tokens(model, options.seed)
                tokens = control_ids(model.tokenizer)
            data = control_examples(model, rows, GroundedComposer(PieceEncoder(model.tokenizer)), options.length, plain)
            train_to_folder(model, data, lambda _: AnswerLoss(), options, folder, {"training": name}, base, report=tell, tokens=tokens)
            write_json({"seconds": time.monotonic() - began, "counts": data.counts}, self.file(f"{name}.time.json"), overwrite=True)
        return str(folder / "merged")

    def make_pairs(self, source: str, base: str, heads: hw.HeadSet | None) -> None:
        """Unfaithful answers of a source, filtered."""
        file, about = self.file(f"{source}.jsonl"), self.file(f"{source}.pairs.json")
        if not about.exists():
            print(self.name, "answers", source, file=sys.stderr, flush=True)
            began, model = time.monotonic(), hw.load(base)
            options = UnfaithfulOptions(self.limit, match="length", least_gap=0.0)
            without = None if heads is None else hw.Without(heads, "zero", "all")
            composer = GroundedComposer(PieceEncoder(model.tokenizer))
            found, dropped = unfaithful_pairs(model, self.questions.train, composer, self.questions.checker, without, options, report=tell)
            table = {"gap": gap(found), "right": [int(mentions(one.unfaithful.text, one.record.facts)) for one in found], "dropped": dropped}
            table["texts"] = [one.unfaithful.text for one in found]
            try:
                kept = kept_pairs(found, options)
                table |= {"counts": dict(kept.counts), "table": {k: dict(v) for k, v in kept.table.items()}, "pairs": len(kept.pairs)}
                file.write_bytes(lines_of(kept.pairs))
            except HeadwiseError as problem:
                table |= {"pairs": 0, "why": str(problem)}
            write_json(table | {"seconds": time.monotonic() - began}, about)
        self.tables[source] = json.loads(about.read_text())
        self.pairs[source] = read_pairs(file) if file.exists() else []


def gap(pairs: Sequence[Pair]) -> float:
    """Mean support of the references minus that of the unfaithful answers."""
    return float(np.mean([one.faithful.support - one.unfaithful.support for one in pairs]))


def one_model(run: Run) -> dict[str, Any]:
    """All trainings and answers of a model. said: condition -> texts."""
    lab, steps = run.which == "lab", TUNING[run.which].steps
    refs = [PairRow(one.question, one.documents, one.references[0], "none") for one in run.questions.train]
    start = run.train("start", run.name, refs, START[run.which], plain=True)
    heads_file = run.file("copy.json")
    if not heads_file.exists():
        copies(start, lab).save(heads_file)
    scores = hw.load_heads(heads_file)
    top = scores.top(round(SHARE * scores.values.size))
    sets = {"heads": top, "random": layer_matched_random(top, scores, 0), "swap": None}
    for source, heads in sets.items():
        run.make_pairs(source, start, heads)
    count = len(run.pairs["heads"])
    memory = run.kept("memory", lambda: closed(run, start))
    asked = run.questions.judge(memory)
    said = {"start": run.kept("said.start", lambda: answers(run, start, asked, lambda s, p: s.greedy(p)))}
    if lab:
        said |= doses(run, start, asked, scores)
        early = run.train("early", run.name, refs, EARLY, plain=True)
        said["early"] = run.kept("said.early", lambda: answers(run, early, asked[:DOSED], lambda s, p: s.greedy(p)))
    if count:
        plain = run.train("plain", start, run.pairs["heads"], steps // 2, plain=True)
        said |= plain_answers(run, plain, asked, top)
        for source in sets:
            rows = run.pairs[source][:count]
            if source == "heads" or len(rows) >= FEWER:
                said |= control_answers(run, source, run.train(f"rhio-{source}", start, rows, steps, plain=False), asked)
    again = [found_again(run, name, top) for name in ("plain", "rhio-heads") if run.file(name).is_dir()]
    return {"name": run.name, "asked": asked, "said": said, "tables": run.tables, "pairs": {k: len(v) for k, v in run.pairs.items()},
            "heads": [str(head) for head in top], "found_again": again, "seconds": seconds(run)}  # fmt: skip


def copies(base: str, lab: bool) -> hw.HeadScores:
    """Retrieval heads of a model."""
    return hw.find(hw.load(base), hw.Copy(lengths=[256 if lab else 512], depths=3), report=tell)


def found_again(run: Run, training: str, top: hw.HeadSet) -> dict[str, Any]:
    """How many of the heads that were taken away are the best ones after a training, too."""
    file = run.file(f"{training}.copy.json")
    if not file.exists():
        copies(str(run.file(training) / "merged"), run.which == "lab").save(file)
    return {"training": training, "shared": len(set(top) & set(hw.load_heads(file).top(len(top))))}


def closed(run: Run, base: str) -> list[str]:
    """What the model remembers."""
    if not run.questions.closed:
        return []
    speaker = Speaker(hw.load(base), run.limit)
    return speaker.greedy([speaker.composer.closed(record) for record in run.questions.closed])


def answers(run: Run, base: str, asked: Sequence[Asked], say: Callable[[Speaker, list[Prompt]], list[str]]) -> list[str]:
    """Texts of greedy answers, however they are given."""
    speaker = Speaker(hw.load(base), run.limit)
    return say(speaker, [speaker.composer.opened(one.record) for one in asked])


def doses(run: Run, base: str, asked: Sequence[Asked], scores: hw.HeadScores) -> dict[str, list[str]]:
    """Answers without more and more heads, the best ones and random ones of their layers."""
    said, few = {}, asked[:DOSED]
    tenth = round(SHARE * scores.values.size)
    for count in (2, 4, tenth, round(0.25 * scores.values.size)):
        best = scores.top(count)
        chosen = {"top": best} | {f"random-{seed}": layer_matched_random(best, scores, seed) for seed in range(DRAWS)}
        for which, heads in chosen.items():
            said[f"without.{count}.{which}"] = run.kept(
                f"said.without.{count}.{which}", lambda h=heads: answers(run, base, few, lambda s, p: s.greedy(p, h))
            )
    said["uniform"] = run.kept("said.uniform", lambda: answers(run, base, few, lambda s, p: s.greedy(p, scores.top(tenth), "uniform")))
    return said


def plain_answers(run: Run, base: str, asked: Sequence[Asked], heads: hw.HeadSet) -> dict[str, list[str]]:
    """Plain fine-tuning: greedy, against the model without heads, against the question alone."""
    records = [one.record for one in asked]
    ways: dict[str, Callable[[Speaker, list[Prompt]], list[str]]] = {
        "plain": lambda s, p: s.greedy(p),
        "plain.heads": lambda s, p: s.contrast(records, hw.Without(heads), combine="entropy"),
        "plain.closed": lambda s, p: s.contrast(records, "closed", alpha=0.5),
    }
    return {name: run.kept(f"said.{name}", lambda w=way: answers(run, base, asked, w)) for name, way in ways.items()}


def control_answers(run: Run, source: str, base: str, asked: Sequence[Asked]) -> dict[str, list[str]]:
    """A model with control tokens: behind each of them, and contrasted."""
    records = [one.record for one in asked]
    rules = [{"alpha": alpha} for alpha in (ALPHAS[run.which] if source == "heads" else (0.2,))]
    if source == "heads":
        rules.append({"alpha": 2.0 if run.which == "lab" else 1.0, "plausibility": 0.1})
    ways: dict[str, Callable[[Speaker, list[Prompt]], list[str]]] = {
        f"{source}.0": lambda s, p: s.behind(p, 0), f"{source}.neg": lambda s, p: s.behind(p, 1),
    }  # fmt: skip
    for rule in rules:
        name = f"{source}.{rule['alpha']:g}" + (".cut" if len(rule) > 1 else "")
        ways[name] = lambda s, p, r=rule: s.contrast(records, "control", **r)
    return {name: run.kept(f"said.{name}", lambda w=way: answers(run, base, asked, w)) for name, way in ways.items()}


def seconds(run: Run) -> dict[str, float]:
    """How long each training, and the making of each set of pairs, took."""
    return {file.name.split(".", 1)[1].removesuffix(".json"): json.loads(file.read_text())["seconds"]
            for file in sorted(run.keep.glob(f"{run.name}.*.json")) if file.name.endswith((".time.json", ".pairs.json"))}  # fmt: skip


class Judged(NamedTuple):
    """[asked] numbers of one condition."""

    value: np.ndarray
    words: np.ndarray
    coverage: np.ndarray
    labels: Counter[str]


def judge(found: Mapping[str, Any], condition: str, checker: Any, cell: str = "") -> Judged:
    """Score the texts of a condition, of one cell or of all."""
    asked: Sequence[Asked] = found["asked"]
    both = [(one, text) for one, text in zip(asked, found["said"][condition], strict=False) if not cell or one.cell == cell]
    labels: Counter[str] = Counter()
    values, covered = [], []
    for one, text in both:
        if one.cell == "support":
            told = judged_answer(checker, text, one.record)
            labels.update(told["labels"])
            values.append(told["support"] or 0.0)
            covered.append(told["coverage"])
        else:
            right = mentions(text, one.record.facts) and not (one.wrong and mentions(text, (one.wrong,)))
            values.append(float(right))
            covered.append(float(right))
    return Judged(np.asarray(values), np.asarray([len(text.split()) for _, text in both], float), np.asarray(covered), labels)


class Judge:
    """Comparisons over the questions of all models of a set."""

    def __init__(self, models: Sequence[Mapping[str, Any]], checker: Any) -> None:
        self.models, self.checker = models, checker

    def has(self, *conditions: str) -> bool:
        """Whether every model has them."""
        return all(name in found["said"] for found in self.models for name in conditions)

    def values(self, condition: str, cell: str = "", kind: str = "value") -> np.ndarray:
        """[model, question]."""
        return np.stack([getattr(judge(found, condition, self.checker, cell), kind) for found in self.models])

    def test(self, more: str, less: str, gate: bool, least: float = 0.0, cell: str = "") -> dict[str, Any]:
        """Whether one condition is better than another."""
        if not (gate and self.has(more, less)):
            return {"gate": False}
        a, b = self.values(more, cell), self.values(less, cell)
        few = min(a.shape[1], b.shape[1])
        return {"gate": True, "least": least} | tested(a[:, :few] - b[:, :few])


def tested(change: np.ndarray) -> dict[str, Any]:
    """[model, question] differences: mean over models with its interval and p; p is 1 where the signs of the models differ."""
    each = change.mean(axis=1)
    same = len(set(np.sign(each))) == 1
    p = sign_flip_test(change.mean(axis=0)) if same else 1.0
    return {"difference": [round(value, 4) for value in bootstrap_mean(change.mean(axis=0))], "models": each.round(4).tolist(), "p": p}


def shared(judge: Judge, cell: str, gate: bool, trained: bool) -> dict[str, dict[str, Any]]:
    """The claims that both sets test."""
    pairs = gate and trained
    return {
        "tokens": judge.test("heads.0", "heads.neg", pairs, 0.3, cell),
        "tuning": judge.test("heads.0", "plain", pairs, 0.0, cell),
        "decoding": judge.test("heads.0.2", "heads.0", pairs, 0.0, cell),
        "whole": judge.test("heads.0.2", "plain", pairs, 0.0, cell),
        "not_random": judge.test("heads.0.2", "random.0.2", pairs, 0.0, cell),
        "not_swap": judge.test("heads.0.2", "swap.0.2", pairs, 0.0, cell),
        "training_free": judge.test("plain.heads", "plain", gate, 0.0, cell),
    }


def enough(models: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every model has pairs to learn from."""
    return all(found["pairs"]["heads"] >= FEW and found["tables"]["heads"]["gap"] >= 0.1 for found in models)


def lab_claims(models: Sequence[Mapping[str, Any]], checker: Any) -> dict[str, dict[str, Any]]:
    """What the registered rules need."""
    by = Judge(models, checker)
    gate = bool((by.values("start").mean(axis=1) >= 0.5).all())
    trained = enough(models)
    tenth = len(models[0]["heads"])
    start, away = by.values("start")[:, :DOSED], by.values(f"without.{tenth}.top")
    chance = np.mean([by.values(f"without.{tenth}.random-{seed}") for seed in range(DRAWS)], axis=0)
    errors = [error_distances(found, checker, tenth) for found in models]
    shares = [[share(judge(found, name, checker).labels) for name in (f"without.{tenth}.top", "uniform")] for found in models]
    out = shared(by, "support", gate, trained) | {
        "dose": {"gate": gate, "least": float(start.mean() / 2)} | tested(start - away),
        "dose_control": {"gate": gate, "holds": float((start - chance).mean()) < 0.05, "loss": (start - chance).mean(axis=1).round(4).tolist()},
        "errors": {"gate": gate, "holds": all(own < swap for own, swap in errors), "distances": errors},
        "mode": {"gate": gate, "holds": all(zero > uniform for zero, uniform in shares), "shares": shares},
        "plausibility": by.test("heads.2.cut", "heads.2", gate and trained, 0.0, "support"),
    }
    curve = {alpha: float(by.values(f"heads.{alpha:g}").mean()) for alpha in (0, *ALPHAS["lab"])} if by.has("heads.2") else {}
    best = max(curve, key=lambda alpha: curve[alpha]) if curve else None
    out["alpha"] = {"gate": gate and trained, "holds": best in (0.1, 0.2, 0.5) and curve[2.0] < curve[0], "support": curve}
    out["length"] = length(by) if gate and trained else {"gate": False}
    return out


def error_distances(found: Mapping[str, Any], checker: Any, tenth: int) -> tuple[float, float]:
    """Jensen-Shannon distance to an under-trained model: of the headless model, and of swapped answers."""
    natural = judge(found, "early", checker).labels
    swapped: Counter[str] = Counter()
    for text, record in zip(found["tables"]["swap"]["texts"], rhio_sets.lab().train, strict=True):
        swapped.update(judged_answer(checker, text, record)["labels"])
    own = judge(found, f"without.{tenth}.top", checker).labels
    return jensen_shannon(own, natural), jensen_shannon(swapped, natural)


def jensen_shannon(a: Counter[str], b: Counter[str]) -> float:
    """Distance of the types of wrong sentences, in [0, 1]."""
    p, q = (np.asarray([one[name] for name in WRONG], float) / max(1, sum(one[name] for name in WRONG)) for one in (a, b))
    middle = (p + q) / 2
    parts = [float(sum(x * np.log2(x / m) for x, m in zip(one, middle, strict=True) if x > 0)) for one in (p, q)]
    return round(float(np.sqrt(max(0.0, sum(parts) / 2))), 4)


def share(labels: Counter[str]) -> float:
    """Share of fabricated ones among wrong sentences."""
    return round(labels["fabricated"] / max(1, sum(labels[name] for name in WRONG)), 4)


def length(by: Judge) -> dict[str, Any]:
    """The gain in support at equal length: the intercept of a regression on the change in words."""
    gain = (by.values("heads.0.2") - by.values("plain")).mean(axis=0)
    words = (by.values("heads.0.2", "", "words") - by.values("plain", "", "words")).mean(axis=0)
    rng = np.random.default_rng(0)
    draws = [np.polyfit(words[pick], gain[pick], 1)[1] for pick in rng.integers(0, len(gain), (2000, len(gain)))]
    low, high = np.quantile(draws, [0.025, 0.975])
    covered = float((by.values("heads.0.2", "", "coverage") - by.values("plain", "", "coverage")).mean())
    return {"gate": True, "holds": bool(low > 0 and covered >= -0.05), "intercept": [float(np.polyfit(words, gain, 1)[1]), float(low), float(high)],
            "words": float(words.mean()), "coverage": covered}  # fmt: skip


def real_claims(models: Sequence[Mapping[str, Any]], checker: Any) -> dict[str, dict[str, Any]]:
    """Likewise, of short answers."""
    by = Judge(models, checker)
    gate = bool(by.values("start", "correction").mean() >= 0.3)
    heads, chance = (np.asarray(models[0]["tables"][source]["right"], float) for source in ("heads", "random"))
    resists = by.values("plain", "resistance") if by.has("plain") else np.zeros((1, 0))
    known = resists.shape[1] >= 20 and float(resists.mean()) >= 0.2
    return shared(by, "correction", gate, enough(models)) | {
        "heads_away": {"gate": gate} | tested((chance - heads)[None]),
        "closed": by.test("plain.closed", "plain", gate, 0.0, "correction"),
        "resistance": by.test("plain", "heads.0.2", known and enough(models), 0.0, "resistance"),
    }


def rows(models: Sequence[Mapping[str, Any]], checker: Any) -> list[dict[str, Any]]:
    """One row per condition and cell."""
    by, out = Judge(models, checker), []
    for condition in models[0]["said"]:
        if not by.has(condition):
            continue
        for cell in dict.fromkeys(one.cell for one in models[0]["asked"]):
            values = by.values(condition, cell)
            mean, low, high = bootstrap_mean(values.mean(axis=0))
            out.append({"condition": condition, "cell": cell, "questions": values.shape[1], "mean": mean, "low": low, "high": high,
                        "words": float(by.values(condition, cell, "words").mean()), "coverage": float(by.values(condition, cell, "coverage").mean()),
                        "labels": dict(sum((judge(m, condition, checker, cell).labels for m in models), Counter()))})  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("set", choices=("lab", "smollm2"))
    parser.add_argument("--data", type=Path, help="folder with nq-open-oracle")
    parser.add_argument("--keep", type=Path, required=True, help="finished parts")
    parser.add_argument("--steps", type=int, help="training steps, for a trial; the registered numbers by default")
    parser.add_argument("--only", help="one model of the lab, to make its part alone")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.set == "smollm2" and given.data is None:
        parser.error("smollm2 needs --data FOLDER")
    given.keep.mkdir(parents=True, exist_ok=True)
    questions = rhio_sets.lab() if given.set == "lab" else rhio_sets.real(given.data)
    names = ((given.only,) if given.only else LAB) if given.set == "lab" else ("smollm2",)
    models = [one_model(Run(name, given.set, questions, given.keep, given.steps)) for name in names]
    if given.only:
        return
    make = lab_claims if given.set == "lab" else real_claims
    claims = {f"rhio.{given.set}.{key}": value for key, value in make(models, questions.checker).items()}
    about = [{key: found[key] for key in ("name", "pairs", "heads", "found_again", "seconds")} | {"sources": sources(found)} for found in models]
    found = {"set": given.set, "rows": rows(models, questions.checker), "claims": judged(claims), "models": about, "hardware": hardware()}
    write_json(found, given.keep / f"{given.set}.result.json", overwrite=True)
    if given.json:
        print(json.dumps(found))
        return
    for row in found["rows"]:  # type: ignore[union-attr]
        print("  ".join(f"{key} {value:.3f}" if isinstance(value, float) else f"{value}" for key, value in row.items()))
    for key, each in found["claims"].items():  # type: ignore[union-attr]
        print(f"{key:<28} {each['verdict']}  {each.get('difference', '')}")


def sources(found: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of the unfaithful answers, without their texts."""
    return {source: {key: value for key, value in table.items() if key not in ("texts", "right")} for source, table in found["tables"].items()}


if __name__ == "__main__":
    main()
