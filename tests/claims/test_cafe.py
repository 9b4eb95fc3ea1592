"""Claims of CAFE: verdicts of made-up results, choices and hidden evidence against loops, quick runs, resume."""

import math
from itertools import count

import numpy as np
import pytest
import torch

from headwise.claims import ledger
from headwise.claims.cafe import exact
from headwise.claims.cafe.answers import NO_EVIDENCE, NO_HOP, Asked, Asker, answerable, contains, right_rows
from headwise.claims.cafe.declared import REAL
from headwise.claims.cafe.evidence import ALL, RANDOM, SUM, UNION, recall_findings, recall_rows
from headwise.claims.cafe.findings import answer_findings, passed
from headwise.claims.cafe.measure import ask_all
from headwise.claims.cafe.stages import Counts, Stages, coarse_heads, fine_examples, keep, part, recalled, shares_of
from headwise.claims.claim import HELD, NOT_HELD, NOT_TESTABLE, judge
from headwise.claims.experiment import Bench, NotTestable
from headwise.claims.passage_sets import Labelled
from headwise.claims.run import plan, run
from headwise.heads import HeadScores, HeadSet
from headwise.methods.cafe.evidence import evidence_scores
from headwise.models.load import load
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.passages import Passage, PassageComposer, RankingExample
from headwise.runtime.passage_table import PassageTable
from headwise.runtime.passages import Scoring
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from tests.reference import cafe as slow

CLAIMS = {claim.key: claim for claim in REAL}
CONDITIONS = (
    "direct", "stage 2 only", "without passages", "stage 1 only", "stage 1 only, best first", "stage 1 only, random order",
    "stage 1 only, random heads", "both stages", "both stages, delta 50", "steered to wrong passages", NO_EVIDENCE, NO_HOP,
)  # fmt: skip


def table(questions=5, layers=3, heads=4, passages=6, seed=0):
    """What heads pay to passages, made up; each question lacks some of the last passages."""
    rng = np.random.default_rng(seed)
    raw = rng.random((questions, layers, heads, passages)).astype(np.float32) ** 4
    lengths = np.full((questions, passages), 5)
    gold = np.zeros((questions, passages), bool)
    for i in range(questions):
        gold[i, rng.permutation(3)[: 1 + i % 2]] = True
        lengths[i, passages - i % 3 :] = 0
        raw[i, ..., lengths[i] == 0] = np.nan
    return PassageTable(raw, raw.copy(), gold, lengths, 0, Scoring(), None, ())


def stages_of(made, counts=None):
    counts = counts or Counts()
    scores, coarse = coarse_heads(made, counts)
    return Stages(counts, scores, coarse, scores.top(counts.fine))


def verdicts(found, family="cafe", name="hotpotqa"):
    findings = {f"{family}.{claim}.{name}": one for claim, one in found.items() if f"{family}.{claim}.{name}" in CLAIMS}
    assert findings
    return {key.split(".")[1]: one.verdict for key, one in judge(CLAIMS, findings).items()}


def right(**shares):
    """Rows of 40 questions: by default everything but the answer without passages is right half of the time."""
    rows = {name: np.array([1.0, 0.0] * 20) for name in CONDITIONS} | {"without passages": np.zeros(40)}
    return rows | {name.replace("_", " "): np.array([1.0] * ones + [0.0] * (40 - ones)) for name, ones in shares.items()}


# ---- verdicts


def test_registered_claims_are_all_there():
    keys = [claim.key for claim in REAL]
    assert sum(key.startswith("cafe.") for key in keys) == 12 + 5
    assert sum(key.startswith("cafe-start.") for key in keys) == 5
    assert CLAIMS["cafe.recall_above_all.nq"].rule == ("difference >= 0.1",)
    assert CLAIMS["cafe.recall_above_random.nq"].rule == ("difference > 0",)
    places = " ".join(claim.place for claim in ledger.claims().values() if claim.card == "cafe")
    assert all(str(number) in places for number in range(1, 10))


@pytest.mark.parametrize(("gap", "verdict"), [(0.2, HELD), (0.05, NOT_HELD)])
def test_more_evidence_than_all_heads_by_a_tenth(gap, verdict):
    rows = {UNION: np.linspace(0.6, 0.8, 30), RANDOM: np.full(30, 0.3)}
    rows |= {ALL: rows[UNION] - gap, SUM: rows[UNION]}
    told = verdicts(recall_findings(rows, 0.001))
    assert told == {"recall_above_all": verdict, "recall_above_random": HELD, "union_as_good_as_sum": HELD}


def test_answers_are_not_testable_if_plain_ones_are_wrong():
    rows = {name: np.zeros(40) for name in ("direct", "stage 2 only", "without passages")}
    assert not passed(rows)
    told = verdicts(answer_findings(rows, [{}] * 40)) | verdicts(answer_findings(rows, [{}] * 40), "cafe-more")
    assert set(told.values()) == {NOT_TESTABLE}
    assert len(told) == 12


def test_answers_are_judged_by_paired_differences():
    rows = right(stage_1_only=36) | {"both stages": np.array([1.0] * 37 + [0.0] * 3)}
    rows |= {NO_EVIDENCE: np.zeros(40), NO_HOP: rows["direct"], "both stages, delta 50": np.zeros(40)}
    said = [{"evidence pointed at": "0.5" if number % 2 else "1.0"} for number in range(40)]
    assert passed(rows)
    found = answer_findings(rows, said)
    told = verdicts(found)
    assert told["stage1_above_direct"] == told["best_last_above_best_first"] == told["wrong_candidates_hurt"] == HELD
    assert told["both_above_stage1"] == told["steering_above_direct"] == NOT_HELD  # one question more; no difference
    more = verdicts(found, "cafe-more")
    assert more == {
        "stage1_dominates": HELD, "order": NOT_HELD, "delta_curve": HELD, "infinite_delta_hurts": HELD,
        "question_reads_evidence": HELD, "evidence_reads_no_evidence": HELD,
    }  # fmt: skip
    assert found["infinite_delta_hurts"].numbers["questions"] == 20


def test_a_huge_delta_has_nothing_to_hurt_where_no_evidence_is_missed():
    found = answer_findings(right(), [{"evidence pointed at": "1.0"}] * 40)
    assert found["infinite_delta_hurts"].missing


# ---- choices


def test_kept_passages_and_recall_equal_loops():
    made = table()
    stages = stages_of(made)
    rows, p = recall_rows(made, stages, {})
    for i, shares in enumerate(shares_of(made)):
        there = made.lengths[i] > 0
        beta = [slow.shares([made.raw[i, h.layer, h.head, there].tolist()], [5] * there.sum(), "sum")[0] for h in sorted(stages.coarse)]
        union, gamma = slow.votes(beta, 2), slow.relevance(beta)
        kept = sorted(union, key=lambda d: (gamma[d], -d))
        assert keep(shares, stages.coarse, 2) == kept
        gold = {d for d in range(there.sum()) if made.gold[i, d]}
        assert rows[UNION][i] == recalled(kept, made.gold[i, there]) == len(gold & set(union)) / len(gold)
        every = [sum(float(shares[a, b, d]) for a in range(3) for b in range(4)) for d in range(there.sum())]
        best = sorted(range(len(every)), key=lambda d: (-every[d], d))[: len(union)]
        assert rows[ALL][i] == len(gold & set(best)) / len(gold)
    assert 0.001 <= p <= 1


def test_parts_of_a_table_score_alone():
    made = table()
    assert np.array_equal(evidence_scores(part(made, 1, 4)).runs, evidence_scores(made).runs[1:4])


def test_too_few_heads_are_no_error():
    with pytest.raises(NotTestable, match="at least 8 heads"):
        coarse_heads(table(layers=1), Counts())
    made = table(2)
    made.gold[:] = False
    made.gold[:, 5] = True
    examples = [RankingExample("q", tuple(Passage(str(i)) for i in range(6)), frozenset({5}))] * 2
    made.raw[..., 5] = 0
    with pytest.raises(NotTestable, match="none of the labelled questions"):
        fine_examples(examples, made, HeadSet.of([(0, 0)], (3, 4)), Counts(m1=1))


def test_words_of_the_right_answer_stand_together():
    assert contains("It was New York.", "new york")
    assert not contains("It was northern", "no")
    assert not contains("york new", "New York")
    example = RankingExample("q", (Passage("the city of Rome"), Passage("yes")), frozenset({0}))
    assert answerable(Labelled(example, ("Rome",)))
    assert not answerable(Labelled(example, ("yes",)))
    assert not answerable(Labelled(example, ("Paris",)))


# ---- answers


@pytest.fixture(scope="module")
def asker():
    model = Model(tiny_model("llama", max_position_embeddings=512), character_tokenizer())
    scores = HeadScores(np.arange(np.prod(model.heads.shape), dtype=float).reshape(model.heads.shape), "evidence", 3)
    stages = Stages(Counts(), scores, scores.top(4), scores.top(2))
    return Asker(model, PassageComposer(PieceEncoder(model.tokenizer)), stages, 3)


@pytest.fixture(scope="module")
def asked(asker):
    texts = ("red door", "the key is blue", "wind over the old mill", "stone")
    question = Labelled(RankingExample("where is the key", tuple(map(Passage, texts)), frozenset({0, 2})), ("blue",))
    shape = (*asker.model.heads.shape, 4)
    return Asked(question, np.random.default_rng(0).dirichlet(np.ones(4), shape[:2]).reshape(shape), 0)


def greedy(asker, ids, keep):
    """Answer by full passes with a mask of what each row keeps seeing; `keep` is called with the number of tokens."""
    text = list(ids)
    for _ in range(asker.limit):
        text.append(int(slow.logits_with_mask(asker.model.hf, text, torch.zeros(len(text), len(text)), keep(len(text)))[-1].argmax()))
        if text[-1] in asker.stop:
            break
    return asker._decoded(tuple(text[len(ids) :]))


def test_hidden_evidence_equals_a_hard_mask(asker, asked):
    question = asked.question.ranking
    prompt = asker.composer.passages(question.passages)
    ids = (*prompt.ids, *asker.composer.query(question.query).ids)
    first, later = (tuple(prompt.span(f"passage/{i + 1}")) for i in sorted(question.gold))

    def question_blind(length):
        seen = torch.ones(length, length, dtype=torch.bool)
        for start, stop in (first, later):
            seen[len(prompt.ids) :, start:stop] = False
        return seen

    def later_blind(length):
        seen = torch.ones(length, length, dtype=torch.bool)
        seen[later[0] : later[1], first[0] : first[1]] = False
        return seen

    said = asker.hidden(asked)
    assert said == {NO_EVIDENCE: greedy(asker, ids, question_blind), NO_HOP: greedy(asker, ids, later_blind)}
    assert asker.plain(asked)["direct"] == greedy(asker, ids, lambda length: torch.ones(length, length, dtype=torch.bool))


def test_every_condition_is_asked_for(asker, asked):
    said = asker.plain(asked) | asker.staged(asked) | asker.hidden(asked)
    assert set(CONDITIONS) <= set(said)
    assert 0 <= float(said["evidence pointed at"]) <= 1
    rows = right_rows([said, {"direct": "blue"}], [asked, asked])
    assert rows["direct"][1] == 1
    assert math.isnan(rows["both stages"][1])


class Scripted(Asker):
    """Answers without a model; breaks down at one call."""

    def __init__(self, asker, stop_at=-1):
        self.stages, self.limit, self._calls, self._stop_at = asker.stages, asker.limit, count(), stop_at

    def _said(self, asked, names):
        if next(self._calls) == self._stop_at:
            raise KeyboardInterrupt
        return {name: "blue" if name != "without passages" else "" for name in names}

    def plain(self, asked):
        return self._said(asked, CONDITIONS[:3])

    def staged(self, asked):
        return self._said(asked, CONDITIONS[3:10]) | {"evidence pointed at": "1.0"}

    def hidden(self, asked):
        return self._said(asked, CONDITIONS[10:])


def test_a_killed_run_goes_on_with_the_same_answers(tmp_path, asker, asked):
    every = [asked._replace(number=number) for number in range(4)]

    def bench(name):
        return Bench("tiny", "lab", lambda: asker.model, tmp_path / name)

    whole = ask_all(bench("whole"), "set", Scripted(asker), every, {}, contains)
    with pytest.raises(KeyboardInterrupt):
        ask_all(bench("killed"), "set", Scripted(asker, 6), every, {}, contains)
    rest = Scripted(asker)
    assert ask_all(bench("killed"), "set", rest, every, {}, contains) == whole
    assert next(rest._calls) == 12 - 6


# ---- quick runs


def quick(name, model, folder, report=None):
    planned = plan([model], ledger.chosen(names=[name]), folder, quick=True)
    (path,) = run(planned, folder, load=load, **({"report": report} if report else {}))
    return path.read_bytes()


@pytest.mark.slow
def test_steering_is_exact_on_a_lab_model(tmp_path):
    import json

    found = json.loads(quick("cafe-exact", "lab-6m", tmp_path))["findings"]
    assert all(found[f"cafe-exact.{name}"]["numbers"]["largest_difference"] < 1e-3 for name in ("reused_passages", "additive_mask", "infinite_delta"))
    assert found["cafe-exact.zero_delta"]["numbers"]["largest_difference"] == 0


def test_what_a_family_cannot_show_is_not_testable():
    rows = [{"effect": 1.0, "infinite effect": 1.0, "reused_passages": 0.0, "zero_delta": 0.0}]
    for family in ("gemma2", "qwen3_next"):
        model = Model(tiny_model(family), character_tokenizer())
        found = exact.findings(model, rows)
        assert found["cafe-exact.additive_mask"].missing
        assert found["cafe-exact.pre_scale_inert"].missing
        assert not found["cafe-exact.reused_passages"].missing


@pytest.mark.slow
def test_a_killed_run_of_the_micro_world_ends_with_the_same_bytes(tmp_path):
    pytest.importorskip("headwise_lab")

    def kill(done, total, remark):
        if "answers plain" in remark:
            raise KeyboardInterrupt

    whole = quick("cafe-world", "world-6m", tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        quick("cafe-world", "world-6m", tmp_path / "killed", kill)
    assert quick("cafe-world", "world-6m", tmp_path / "killed") == whole
