"""Head maps of the Atlas: against a slow reference, on a planted head, what counts, what is kept, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headwise.attention.rules import PATENT_NOTICE, RULES
from headwise.heads import HeadwiseError, NoSuccessfulRunError
from headwise.methods.atlas.formula import NORMALIZE, in_context_scores, normalized, span_relevance, standard_error
from headwise.methods.atlas.options import InContext, Parametric, Retrieval, Task
from headwise.methods.atlas.run import measure
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.knowledge import KnowledgeComposer, KnowledgeRecord, read_as
from headwise.prompts.passages import Passage
from headwise.prompts.swaps import NO_PASSAGE
from headwise.report.tables import summary_lines
from headwise.runtime.detector import Run, find
from headwise.runtime.knowledge_asked import ALIKE, CLOSED, LONG, LOST, OPENED
from headwise.runtime.knowledge_questions import FOLLOWED
from headwise.runtime.relevance import candidates, ranks, relevance
from headwise.testing.planted import check_detector, planted_copier, planted_task
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import word_tokenizer
from tests.reference import atlas as slow

NAMES = ("Ada", "Bo", "Cyd", "Dee", "Eve")
SMALL = {"records": 5, "min_records": 2, "followed": "any", "rule": "gradient"}


def record(place):
    """A question whose passage names a person, twice in some."""
    name, other = NAMES[place % 5], NAMES[(place + 1) % 5]
    text = "{0} it is" + ", {0}." * (place % 2 + 1)
    return KnowledgeRecord(
        f"who is {place}", (name,), Passage(text.format(name)), Passage(text.format(other)), other, "person", name=f"q{place}"
    )


RECORDS = [record(place) for place in range(5)]


@pytest.fixture(scope="module")
def model():
    texts = ["Passage 1: Question: Answer: who is", *(read_as(part) for one in RECORDS for part in (one.passage, one.swapped))]
    return Model(tiny_model("llama"), word_tokenizer([*texts, *(one.question for one in RECORDS)]))


def prompts_of(model, wording="plain"):
    composer = KnowledgeComposer(PieceEncoder(model.tokenizer), wording)
    return [(composer.opened(one, swapped=True), composer.closed(one)) for one in RECORDS]


def in_order(scores):
    """Runs in the order of `RECORDS`."""
    return scores.runs[np.argsort([info["name"] for info in scores.run_info])]


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_d_scores_are_those_of_the_slow_reference(model, normalize):
    scores = find(model, InContext(data=RECORDS, normalize=normalize, **SMALL))
    wanted = [
        slow.d_score(model.hf, opened.ids, opened.gold[0], closed.ids, closed.gold[0], normalize)
        for opened, closed in prompts_of(model)
    ]
    np.testing.assert_allclose(in_order(scores), wanted, rtol=1e-3, atol=2e-6)
    np.testing.assert_allclose(scores.values, np.mean(wanted, axis=0), rtol=1e-3, atol=2e-6)
    error = np.std(wanted, axis=0, ddof=1) / 5**0.5
    np.testing.assert_allclose(scores.tables["standard_error"], error, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize(("rows", "positive"), [("all", "pair"), ("last", "pair"), ("all", "token"), ("all", "none")])
def test_task_and_retrieval_relevance_are_those_of_the_slow_reference(model, rows, positive):
    for kind, prefix in ((Task, "question"), (Retrieval, "answer/")):
        scores = find(model, kind(data=RECORDS, rows=rows, positive=positive, **SMALL))
        wanted = []
        for opened, _ in prompts_of(model):
            spans = [span for name, span in opened.spans.items() if name.startswith(prefix)]
            wanted.append(slow.rho(model.hf, opened.ids, opened.gold[0], spans, rows, positive))
        np.testing.assert_allclose(in_order(scores), wanted, rtol=1e-3, atol=2e-6)


def test_the_parametric_list_is_the_other_end_of_the_in_context_list(model):
    context, memory = (find(model, kind(data=RECORDS, **SMALL)) for kind in (InContext, Parametric))
    np.testing.assert_allclose(memory.values, -context.values)
    assert memory.ranking() == context.ranking()[::-1]
    assert (memory.score, context.score) == ("parametric", "in-context")
    np.testing.assert_allclose(context.values, context.tables["opened"] - context.tables["closed"], atol=1e-7)
    assert context.tables["opened"].sum() == pytest.approx(1)
    facts = context.provenance
    assert (facts["rule"], facts["normalize"], facts["records_used"]) == ("gradient", "share", 5)
    assert {"data_digest", "followed", "records_dropped", "model"} <= facts.keys()


@pytest.mark.parametrize("rule", RULES)
def test_the_notice_stands_where_the_rule_needs_it(model, rule):
    lines = summary_lines(
        find(model, Task(data=[*RECORDS, replace(RECORDS[0], question="who is ~")], **SMALL | {"rule": rule, "records": None}))
    )
    assert (PATENT_NOTICE in lines) == (rule in ("cp_lrp", "attnlrp"))
    assert f"left out: 1 where {LOST}" in lines


def test_padding_changes_nothing(model):
    opened = [pair[0] for pair in prompts_of(model)]
    targets = [prompt.gold[0] for prompt in opened]
    together = relevance(model, opened, targets, "gim", sources="weights")
    for place, prompt in enumerate(opened):
        alone = relevance(model, [prompt], [targets[place]], "gim", sources="weights")
        length = len(prompt.ids)
        torch.testing.assert_close(together.heads[place], alone.heads[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(together.signed[place], alone.signed[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(together.tokens[place, :length], alone.tokens[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(together.sources[place, ..., :length], alone.sources[0], rtol=1e-4, atol=1e-6)
        assert not together.sources[place, ..., length:].any()
        assert not together.tokens[place, length:].any()
    assert together.logits.tolist() == pytest.approx(
        [slow.contributions(model.hf, p.ids, t)[2] for p, t in zip(opened, targets, strict=True)], rel=1e-4
    )


def test_a_whole_answer_is_explained_in_one_pass(model):
    composer = KnowledgeComposer(PieceEncoder(model.tokenizer))
    prompt = composer.opened(replace(RECORDS[0], swapped_answer="Bo, Bo."), swapped=True)
    whole = relevance(model, [prompt], [prompt.gold], "gradient")
    steps = [
        relevance(model, [replace(prompt, ids=(*prompt.ids, *prompt.gold[:i]))], [token], "gradient")
        for i, token in enumerate(prompt.gold)
    ]
    assert len(prompt.gold) > 1
    torch.testing.assert_close(whole.signed, sum(step.signed for step in steps), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whole.logits, sum(step.logits for step in steps), rtol=1e-4, atol=1e-6)


def test_only_wanted_spans_have_relevance(model):
    prompt = prompts_of(model)[1][0]
    all_of_it = relevance(model, [prompt], [prompt.gold[0]], "gradient", sources="weights").sources[0]
    part = relevance(model, [prompt], [prompt.gold[0]], "gradient", sources="weights", spans=["answer/"]).sources[0]
    wanted = torch.zeros(len(prompt.ids), dtype=torch.bool)
    for name in ("answer/1", "answer/2", "answer/3"):
        wanted[slice(*prompt.span(name))] = True
    torch.testing.assert_close(part, all_of_it * wanted)


def test_ranks_are_those_of_single_passes(model):
    opened = [pair[0] for pair in prompts_of(model)]
    for targets in ([p.gold[0] for p in opened], [p.gold for p in opened]):
        wanted = []
        for prompt, target in zip(opened, targets, strict=True):
            answer = (target,) if isinstance(target, int) else target
            with torch.no_grad():
                logits = model.hf(torch.tensor([[*prompt.ids, *answer[:-1]]])).logits[0, len(prompt.ids) - 1 :]
            wanted.append(max(int((row > row[token]).sum()) for row, token in zip(logits, answer, strict=True)))
        assert ranks(model, opened, targets) == wanted
    pairs = [(one.gold[0], other.gold[0]) for one, other in zip(opened, opened[::-1], strict=True)]
    found = candidates(model, opened, pairs)
    for prompt, pair, log_probs, ranked in zip(opened, pairs, found.log_probs, found.ranks, strict=True):
        with torch.no_grad():
            row = model.hf(torch.tensor([prompt.ids])).logits[0, -1]
        torch.testing.assert_close(log_probs, row.log_softmax(dim=0)[list(pair)], rtol=1e-4, atol=1e-5)
        assert ranked.tolist() == [int((row > row[token]).sum()) for token in pair]


def planted_records(task):
    """The needles as sentences to be completed, each in a passage between plain sentences; another needle's answer stands in it."""
    found = []
    for place, needle in enumerate(task.needles):
        other = task.needles[place - 1]["answer"]
        lines = task.texts[0].split(". ")[4 * place : 4 * place + 4]
        text = ". ".join([*lines[:2], needle["needle"].rstrip("."), *lines[2:]])
        swapped = text.replace(needle["answer"], other)
        found.append(
            KnowledgeRecord(needle["answer_prefix"], (needle["answer"],), Passage(text), Passage(swapped), other, "code")
        )
    return found


@pytest.mark.parametrize(("kind", "more"), [(InContext, {}), (Retrieval, {"rows": "last"})])
@pytest.mark.parametrize("rule", [rule if rule == "gim" else pytest.param(rule, marks=pytest.mark.slow) for rule in RULES])
@pytest.mark.slow
def test_the_planted_head_is_found(kind, more, rule):
    options = {"wording": "cloze", "followed": "any", "min_records": 8, "rule": rule, **more}
    check_detector(lambda model, task: find(model, kind(data=planted_records(task), **options)))


def test_the_planted_model_gives_the_swapped_answer():
    model, task = Model(*planted_copier()), planted_task()
    scores = find(model, Retrieval(data=planted_records(task), wording="cloze", followed="answer", min_records=8))
    assert scores.provenance["records_used"] == 8
    with pytest.raises(NoSuccessfulRunError, match=f"0 of 8 records can be used, fewer than 1 \\(8 where {CLOSED}\\)"):
        find(model, InContext(data=planted_records(task), wording="cloze", min_records=1))


def test_what_does_not_count_is_counted_by_reason(model):
    alike = replace(RECORDS[0], swapped=Passage("Ada Bo it is"), swapped_answer="Ada Bo")
    lost = replace(RECORDS[0], question="who is ~")
    long = replace(RECORDS[0], swapped=Passage("it is Bo " * 99))
    bare = replace(RECORDS[0], passage=None, swapped=None, swapped_answer="")
    scores = find(model, InContext(data=[*RECORDS, alike, lost, long, bare], **SMALL | {"records": None}))
    assert scores.provenance["records_dropped"] == {ALIKE: 1, LOST: 1, LONG: 1, NO_PASSAGE: 1}
    assert len(scores.runs) == 5
    with pytest.raises(NoSuccessfulRunError) as caught:
        find(model, Retrieval(data=RECORDS, followed="first", rule="gradient"))
    assert OPENED in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_interrupted_run_continues(model, tmp_path, monkeypatch):
    monkeypatch.setattr("headwise.methods.atlas.run.STRETCH", 2)
    options = InContext(data=RECORDS, **SMALL)
    whole = find(model, options)
    calls = []

    def stop(done, total, remark):
        calls.append(done)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find(model, options, directory=tmp_path / "run", report=stop)
    assert len(list((tmp_path / "run").glob("*.npz"))) == 2
    monkeypatch.setattr(
        "headwise.methods.atlas.run.relevance", lambda *args, **more: calls.append("again") or relevance(*args, **more)
    )
    assert find(model, options, directory=tmp_path / "run") == whole
    assert calls.count("again") == 2  # one stretch of one record: with the passage, and without
    assert find(model, Parametric(data=RECORDS, **SMALL), directory=tmp_path / "run").values == pytest.approx(-whole.values)
    with pytest.raises(HeadwiseError, match="belongs to a run with other options"):
        find(model, replace(options, seed=1), directory=tmp_path / "run")


def test_both_kinds_of_maps_come_from_one_run(model):
    both = measure(model, Task(data=RECORDS, **SMALL), ("contrast", "sources"), Run())
    assert {"opened", "closed", "task", "retrieval"} <= both.tables.keys()
    scores = find(model, Retrieval(data=RECORDS, **SMALL))
    np.testing.assert_allclose(both.tables["retrieval"], scores.runs)


def test_records_without_a_passage_get_one_if_wanted(model):
    bare = [
        KnowledgeRecord(f"who is {place} it is", (NAMES[place % 5],), kind="person", subject=str(place)) for place in range(5)
    ]
    with pytest.raises(HeadwiseError, match=r"swapped in a passage \(5 where there is no passage\)"):
        find(model, InContext(data=bare, wording="cloze", **SMALL))
    scores = find(model, InContext(data=bare, wording="cloze", make_passages=2, **SMALL))
    assert scores.provenance["make_passages"] == 2
    assert len(scores.runs) == 5


def test_examples_are_not_asked(model):
    scores = find(model, InContext(data=RECORDS, shots=2, **SMALL))
    assert len(scores.runs) == 3
    assert len(scores.provenance["examples"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no questions were given; give --data FILE"),
        ({"data": RECORDS, "rule": "lrp"}, "unknown rule 'lrp'; use gradient, gim, cp_lrp or attnlrp"),
        ({"data": RECORDS, "followed": "best"}, "unknown followed 'best'"),
        ({"data": RECORDS, "normalize": "sum"}, "unknown normalize 'sum'"),
        ({"data": RECORDS, "records": 10}, "10 records at most cannot be 50 at least"),
        ({"data": RECORDS, "records": 0}, "records must be a whole number of at least 1"),
        ({"data": RECORDS, "seed": -1}, "seed"),
        ({"data": RECORDS, "wording": "poem"}, "unknown wording 'poem'"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(HeadwiseError, match=message):
        InContext(**options)


def test_data_that_are_refused(model, tmp_path):
    with pytest.raises(HeadwiseError, match="cannot read questions from"):
        find(model, InContext(data=tmp_path / "none.jsonl"))
    with pytest.raises(HeadwiseError, match="data must be the path of a file, or KnowledgeRecords"):
        find(model, InContext(data=[1, 2]))
    with pytest.raises(
        HeadwiseError, match=r"holds 0 questions whose answer can be swapped in a passage \(1 where there is no passage\)"
    ):
        find(model, InContext(data=[KnowledgeRecord("who", ("I",))]))
    with pytest.raises(HeadwiseError, match="unknown rows 'first'"):
        Task(data=RECORDS, rows="first")
    with pytest.raises(HeadwiseError, match="unknown positive 'both'"):
        Retrieval(data=RECORDS, positive="both")
    assert set(FOLLOWED) == {"first", "top5", "top10", "answer", "any"}


tables = arrays(np.float64, (3, 2, 4), elements=st.floats(0.1, 9))


@given(opened=tables, closed=tables, logits=arrays(np.float64, 3, elements=st.floats(-9, -0.1)))
def test_properties_of_the_formulas(opened, closed, logits):
    shares = normalized(opened, logits, "share")
    np.testing.assert_allclose(shares.sum(axis=(1, 2)), 1)
    np.testing.assert_allclose(normalized(3 * opened, logits, "share"), shares)
    np.testing.assert_allclose(normalized(opened, logits, "logit") * -logits[:, None, None], opened)
    assert normalized(opened, logits, "none") is opened
    np.testing.assert_allclose(in_context_scores(opened, closed), -in_context_scores(closed, opened))
    np.testing.assert_allclose(in_context_scores(shares, shares), 0)
    assert (standard_error(opened) <= np.ptp(opened, axis=0) / 2 + 1e-9).all()
    assert np.isnan(standard_error(opened[:1])).all()
    np.testing.assert_allclose(span_relevance(opened, [(0, 1), (1, 4)]), opened.sum(axis=-1))
    assert not span_relevance(opened, []).any()


def test_heads_that_are_not_there_count_nothing():
    opened = np.array([[[1.0, 3.0], [np.nan, np.nan]]])
    np.testing.assert_allclose(normalized(opened, np.ones(1), "share"), [[[0.25, 0.75], [np.nan, np.nan]]])
    with pytest.raises(HeadwiseError, match="unknown normalize"):
        normalized(opened, np.ones(1), "sum")
