"""Readers of answers by heads: scores against loops over attention matrices, a planted head that tells, and its controls."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from headwise.evaluation.head_reader import (
    ReaderOptions,
    ReaderResult,
    ReadSentence,
    describe_reader,
    read_answers,
    sentence_ids,
    sentence_scores,
)
from headwise.heads import HeadSet, HeadwiseError
from headwise.heads.errors import NoSuccessfulRunError
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grounded import GroundedRecord, JudgedAnswer, JudgedSentence, read_grounded
from headwise.prompts.grounded_prompts import GroundedComposer
from headwise.prompts.passages import Passage
from headwise.prompts.prompt import Prompt, Span
from headwise.report.faithful_tables import reader_table
from headwise.runtime.rundir import RunDirectory
from headwise.stats.ranks import auc
from headwise.testing.planted import COMMON, planted_copier
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from tests.reference import head_reader as reference

DATA = Path(__file__).parents[1] / "data" / "grounded"
HEADS = HeadSet.of([(0, 1), (3, 2), (3, 0)], (4, 8))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_scores_are_those_of_whole_attention_matrices(family, pool):
    hf = tiny_model(family)
    shape = (hf.config.num_hidden_layers, hf.config.num_attention_heads)
    heads = HeadSet.of([(0, 1), (3, 2), (3, 0)], shape)
    rng = np.random.default_rng(0)
    ids = tuple(int(i) for i in rng.integers(4, 7, 30))  # few different tokens: some are copied by chance
    sentences = [tuple(int(i) for i in rng.integers(4, 7, size)) for size in (3, 1, 5)]
    prompt = Prompt(ids, {"passage/1": Span(2, 9), "passage/2": Span(12, 20), "query": Span(21, 25)})
    before = state(hf)
    found = sentence_scores(Model(hf), prompt, sentences, [heads, HeadSet.of([(1, 1)], shape)], pool)
    assert all(torch.equal(value, before[name]) for name, value in hf.state_dict().items())
    eager = AutoModelForCausalLM.from_config(hf.config, attn_implementation="eager").eval()
    eager.load_state_dict(hf.state_dict())
    for i, chosen in enumerate((heads, [(1, 1)])):
        attention, copying = reference.sentence_scores(eager, ids, [(2, 9), (12, 20)], sentences, list(chosen), pool)
        assert found[0, i] == pytest.approx(attention, abs=1e-5)
        assert found[1, i] == pytest.approx(copying)
    assert found.shape == (2, 2, 3)
    assert found[1].any(), "nothing is copied, so copying is not tested"
    assert ((found >= 0) & (found <= 1)).all()


def test_a_sentence_is_encoded_as_it_follows_the_prompt():
    composer = GroundedComposer(PieceEncoder(character_tokenizer()))
    prompt = composer.opened(GroundedRecord("why", (Passage("so"),)))
    found = sentence_ids(composer, prompt, ["One  thing.", "Two."])
    decode = composer.encoder.decode
    assert [decode(ids) for ids in found] == [" One thing.", " Two."]
    assert decode((*prompt.ids, *found[0], *found[1])).endswith("Answer: One thing. Two.")


@pytest.fixture(scope="module")
def planted():
    """A model whose head L1H2 looks back at what followed the last two words, and answers that it can find or not."""
    words = [f"{a}{b}{c}q" for a in "bdfgkl" for b in "aeiou" for c in "mnpr"]
    hf, tokenizer = planted_copier(texts=[" ".join(words), "Passage 1: 2: 3: Question: Answer:"])
    model, rng = Model(hf, tokenizer), np.random.default_rng(0)
    records = []
    for number in range(16):
        drawn = rng.permutation(words)
        told, strange = drawn[:6], drawn[6:12]
        filler = " ".join(rng.choice(COMMON.split(), size=12))
        document = Passage(f"{filler} {' '.join(told)} . {' '.join(rng.choice(COMMON.split(), size=8))}")
        sentences = [JudgedSentence(" ".join(told) + " .", 1.0), JudgedSentence(" ".join(strange) + " .", 0.0)]
        order = rng.permutation(2)
        answer = JudgedAnswer(tuple(sentences[i] for i in order), "made up")
        records.append(GroundedRecord("what is it", (document,), judged=(answer,), name=str(number)))
    return model, records, GroundedComposer(PieceEncoder(tokenizer)), HeadSet.of([(1, 2)], model.heads.shape)


OPTIONS = ReaderOptions(controls=3)


@pytest.fixture(scope="module")
def result(planted):
    model, records, composer, heads = planted
    return read_answers(model, heads, records, composer, OPTIONS)


def rows_of(result):
    return {(row["score"], row["heads"]): row for row in result.rows()}


def test_a_planted_head_tells_which_sentences_are_in_the_document(result):
    rows = rows_of(result)
    for score in ("attention", "copying"):
        row = rows[score, "chosen"]
        assert (row["supported"], row["unsupported"]) == (16, 16)
        assert row["auc"] == 1
        assert row["p_rank"] == 1 / 4  # before each of three draws
        assert rows[score, "random"]["auc"] < 0.9
        drawn = np.asarray([getattr(one, score)[1:] for one in result.sentences])
        labels = np.asarray([one.supported for one in result.sentences])
        areas = [auc(drawn[labels, i], drawn[~labels, i]) for i in range(3)]
        row = rows[score, "random"]
        assert (row["auc"], row["low"], row["high"]) == pytest.approx((np.mean(areas), min(areas), max(areas)))
    assert rows["length", ""]["auc"] == 0.5  # all sentences are as long
    assert rows["lexical overlap", ""]["auc"] == 1
    copied = [one.copying[0] for one in result.sentences if one.supported]
    assert min(copied) > 0.4  # all tokens but the first ones of a sentence
    assert len(rows) == 6


def made(heads, supported, **more):
    return ReadSentence(more.pop("record", 0), "s", supported, more.pop("on_evidence", True), (heads, 0.5), (0.0, 0.0), more.pop("words", 3), 0.5)


@pytest.mark.slow
def test_sentences_without_evidence_are_told_apart():
    """What nobody found evidence for is often no claim at all: a score that sees no more than that must not look good on evidence."""
    some = [made(0.9, True, record=0), made(0.9, False, record=1), made(0.8, True, record=2), made(0.8, False, record=3)]
    bare = [made(0.1, False, record=i, on_evidence=False, words=9) for i in range(4, 8)]
    result = ReaderResult("m", (*some, *bare), {}, ReaderOptions(controls=1))
    rows = {(row["judged"], row["score"]): row for row in result.rows() if row["heads"] != "random"}
    assert rows["all", "attention"]["auc"] > 0.8
    assert rows["all", "length"]["auc"] > 0.8
    assert rows["on evidence", "attention"]["auc"] == 0.5
    assert rows["on evidence", "attention"]["unsupported"] == 2
    assert {row["judged"] for row in replace(result, sentences=tuple(some)).rows()} == {"all"}  # nothing to tell apart


def test_one_kind_of_sentence_has_no_curve():
    result = ReaderResult("m", (made(0.9, True), made(0.2, True)), {}, ReaderOptions(controls=1))
    assert [row["auc"] for row in result.rows()] == [None] * 4
    assert reader_table(result.to_json()).row_count == 4


def test_partly_supported_counts_as_not_supported_and_unjudged_as_nothing():
    model = Model(tiny_model("llama", max_position_embeddings=2048), character_tokenizer())
    composer = GroundedComposer(PieceEncoder(model.tokenizer))
    result = read_answers(model, HEADS, read_grounded(DATA / "expertqa.jsonl"), composer, OPTIONS)
    told = {one.text: (one.supported, one.on_evidence) for one in result.sentences}
    assert told == {
        "Herons nest in colonies.": (True, True),
        "They lay three eggs.": (False, True),
        "They never move.": (False, True),
        "Thanks.": (False, False),
    }
    assert result.dropped == {"no documents": 1}
    assert {row["judged"] for row in result.rows()} == {"all", "on evidence"}


def test_an_interrupted_run_goes_on_where_it_stopped(planted, result, tmp_path):
    model, records, composer, heads = planted
    told = describe_reader(model, heads, records, composer, OPTIONS)
    seen = []

    def stop(done, total, _):
        seen.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_answers(model, heads, records, composer, OPTIONS, RunDirectory(tmp_path / "run", told), stop)
    assert seen == [(1, 16), (2, 16)]
    again = read_answers(model, heads, records, composer, OPTIONS, RunDirectory(tmp_path / "run", told))
    assert (again.sentences, again.provenance) == (result.sentences, result.provenance)
    again.save(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["chosen_heads"] == ["L1H2"]


def test_answers_that_cannot_be_read_are_counted(planted):
    model, records, composer, heads = planted
    one = records[0]
    unjudged = JudgedAnswer(tuple(replace(sentence, support=None) for sentence in one.judged[0].sentences))
    given = [one, replace(one, documents=()), replace(one, judged=(unjudged,)), replace(one, documents=(Passage("river " * 2000),))]
    found = read_answers(model, heads, given, composer, OPTIONS)
    assert found.dropped == {"no documents": 1, "no judged sentence": 1, "longer than the model's context": 1}
    with pytest.raises(NoSuccessfulRunError, match=r"no judged answer can be read \(no documents: 1\)"):
        read_answers(model, heads, given[1:2], composer, OPTIONS)
    with pytest.raises(NoSuccessfulRunError, match="the file holds no judged answers"):
        read_answers(model, heads, [replace(one, judged=())], composer, OPTIONS)


def test_what_is_refused(planted):
    model, records, composer, heads = planted
    prompt = composer.opened(records[0])
    with pytest.raises(HeadwiseError, match="at least one head"):
        sentence_scores(model, prompt, [(5,)], [HeadSet((), model.heads.shape)])
    with pytest.raises(HeadwiseError, match="sentences of at least one token"):
        sentence_scores(model, prompt, [(5,), ()], [heads])
    with pytest.raises(HeadwiseError, match="no documents"):
        sentence_scores(model, composer.closed(records[0]), [(5,)], [heads])
    with pytest.raises(HeadwiseError, match="1024 positions"):
        sentence_scores(model, prompt, [(5,) * 1100], [heads])
    with pytest.raises(HeadwiseError, match="belong"):
        read_answers(model, HeadSet.of([(0, 0)], (3, 3)), records, composer)
    with pytest.raises(HeadwiseError, match="unknown pool 'sum'; use mean or max"):
        ReaderOptions(pool="sum")
    with pytest.raises(HeadwiseError, match="controls must be a whole number of at least 1"):
        ReaderOptions(controls=0)
