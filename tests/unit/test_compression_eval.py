"""Recall against bytes, with a model that copies exactly what it can still see; drawing of contexts; RULER's files."""

import math
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headwise.caches.controls import Full, Oracle
from headwise.caches.groups import Window
from headwise.caches.kept_cache import compress
from headwise.caches.kept_layer import Keep
from headwise.evaluation.compression import Candidate, measure_compression
from headwise.evaluation.contexts import Context, Question, data_contexts, longest, ruler_contexts
from headwise.evaluation.reading import continuation, size_of
from headwise.heads import HeadwiseError, MissingExtraError, PromptError
from headwise.methods.snapkv.press import SnapKV
from headwise.methods.streamingllm.press import StreamingLLM
from headwise.models.load import load
from headwise.models.model import Model
from headwise.models.names import bundled_model
from headwise.prompts.encoder import PieceEncoder, newline_ids
from headwise.prompts.prompt import Span
from headwise.prompts.questions import OwnQuestion
from headwise.prompts.ruler import COLUMNS, RulerRow, read_ruler, string_match
from headwise.stats.metrics import exact_match
from headwise.testing.planted import planted_copier, planted_task
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from headwise_lab.contexts import TASKS, draw_contexts
from tests.helpers import with_cache

FILLER = 40  # words in front of and behind the needles


@pytest.fixture(scope="module")
def model():
    model, tokenizer = planted_copier(kv_heads=2)
    return Model(model, tokenizer)


@pytest.fixture(scope="module")
def lab():
    return load(str(bundled_model()))


@pytest.fixture(scope="module")
def contexts(model):
    """Six texts with two needles each; a question is the beginning of a needle's sentence."""
    encoder, task = PieceEncoder(model.tokenizer), planted_task()
    words = task.texts[0].split()
    found = []
    for i in range(6):
        ids, questions = list(encoder.bos), []
        for needle in (task.needles[i], task.needles[(i + 1) % 8]):
            ids += encoder.encode(" ".join(words[FILLER * i : FILLER * (i + 1)]) + " " + needle["answer_prefix"])
            answer = encoder.encode(" " + needle["answer"] + ".")
            span = Span(len(ids), len(ids) + len(answer))
            ids += answer
            rest = encoder.encode(" " + needle["answer_prefix"])
            questions.append(Question(rest, 6, partial(exact, gold=needle["answer"]), span))
        ids += encoder.encode(" " + " ".join(words[:FILLER]))
        found.append(Context("needle", 128, tuple(ids), tuple(questions), newline_ids(model.tokenizer)))
    return found


def exact(said, gold):
    return float(exact_match(said, gold))


def oracle(prompt, budget=24):
    positions = tuple(i for span in prompt.spans.values() for i in range(span.start, span.stop))
    return Oracle(positions=positions, budget=budget)


CANDIDATES = [
    Candidate("full", None, Full()),
    Candidate("oracle", 24, oracle),
    Candidate("snapkv", 24, SnapKV(budget=24)),
    Candidate("streamingllm", 0.2, StreamingLLM(compression_ratio=0.8)),
]


@pytest.fixture(scope="module")
def rows(model, contexts):
    return {(row["question"], row["method"]): row for row in measure_compression(model, CANDIDATES, contexts).rows}


@pytest.mark.slow
def test_the_full_cache_and_the_oracle_answer_and_streaming_does_not(rows):
    for question in ("inside", "outside"):
        full, told, streaming = (rows[question, name] for name in ("full", "oracle", "streamingllm"))
        assert full["exact"] == told["exact"] == 1.0
        assert full["survival"] == told["survival"] == 1.0
        assert streaming["exact"] == streaming["survival"] == 0.0
        assert (full["difference"], full["p"]) == (None, None)
        assert (told["difference"], told["p"]) == (0.0, 1.0)
        assert streaming["difference"] == -1.0
        assert streaming["p"] == 2 / 2**6
        assert (full["n"], full["asked"]) == (6, 12)
    assert rows["inside", "snapkv"]["survival"] > rows["outside", "snapkv"]["survival"]  # it has seen the question
    assert rows["inside", "snapkv"]["exact"] > rows["outside", "snapkv"]["exact"]


def test_rows_tell_sizes_heads_and_where_they_come_from(rows, contexts, model):
    tokens = np.mean([len(context.ids) for context in contexts])
    for (question, name), row in rows.items():
        assert row["low"] <= row["exact"] <= row["high"]
        assert np.shape(row["survival_heads"]) == model.heads.shape[:1] + (2,)
        assert np.mean(row["survival_heads"]) == pytest.approx(row["survival"])
        assert (row["task"], row["length"], row["seed"]) == ("needle", 128, 0)
        assert row["budget"] == {"full": None, "oracle": 24, "snapkv": 24, "streamingllm": 0.2}[name]
        assert row["bytes_formula"] < row["bytes"] <= 1.05 * row["bytes_formula"]
        if question == "outside":
            assert row["bytes_full"] == pytest.approx(tokens * 2 * 2 * 2 * 128 * 4)
    assert rows["outside", "full"]["positions"] == pytest.approx(tokens)
    assert rows["outside", "snapkv"]["positions"] == 24
    assert rows["outside", "snapkv"]["bytes_formula"] == 24 * 2 * 2 * 2 * 128 * 4
    assert rows["outside", "streamingllm"]["positions"] == pytest.approx(0.2 * tokens, rel=0.02)


class Streams:
    """A window of its own prefill."""

    def __init__(self, prefill):
        self.prefill = prefill

    def check(self, layout):
        pass

    def streams(self, layer, layout):
        return [Keep((0,)), Keep((1,), None, Window(3, 20))]

    def kept(self, view):
        return self.streams(view.layer, view.model)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("family", ["gemma2", "qwen3_next"])
def test_one_reading_for_all_methods_is_a_prefill_of_each(family):
    """Answers, what is held and bytes are those of the method's own block."""
    hf = tiny_model(family)
    numbers = SimpleNamespace(decode=lambda ids, **_: " ".join(map(str, ids)))
    model = Model(hf, numbers)
    made = torch.Generator().manual_seed(3)
    ids, rest = (tuple(torch.randint(2, 96, (n,), generator=made).tolist()) for n in (60, 5))
    heard = []

    def judge(said):
        heard.append(said)
        return 1.0

    context = Context("x", None, ids, (Question(rest, 4, judge, Span(20, 24)),), frozenset())
    methods = [Full(), SnapKV(budget=20), Streams("dense"), Streams("windowed"), Streams("chunked")]
    found = measure_compression(model, [Candidate(str(i), None, m) for i, m in enumerate(methods)], [context]).rows
    expected, held = [], []
    for protocol in ("inside", "outside"):
        for method in methods:
            with compress(hf, method) as cache:
                prompt = torch.tensor([ids + rest if protocol == "inside" else ids])
                logits = cache.prefill(prompt)
                held.append(size_of(cache))
                if protocol == "outside":
                    logits = hf(input_ids=torch.tensor([rest]), **with_cache(cache)).logits[:, -1]
                expected.append(" ".join(map(str, continuation(hf, cache, logits, (), 4))))
    assert heard == expected
    assert [(row["positions"], row["bytes"]) for row in found] == [(size.positions, size.nbytes) for size in held]


def test_a_limit_and_a_stop_token_end_an_answer(model, contexts):
    context = contexts[0]
    with compress(model.hf, Full()) as cache:
        ids = torch.tensor([context.ids + context.questions[0].rest])
        logits = cache.prefill(ids)
        first = int(logits.argmax())
        assert continuation(model.hf, cache.fork(), logits, {first}, 9) == (first,)
        assert continuation(model.hf, cache.fork(), logits, (), 1) == (first,)
        said = continuation(model.hf, cache.fork(), logits, (), 4)
        assert len(said) == 4
        assert continuation(model.hf, cache, logits, {said[2]}, 9) == said[:3]


def test_unknown_places_of_answers_give_no_survival(model, contexts):
    context = contexts[0]._replace(questions=tuple(q._replace(answer=None) for q in contexts[0].questions))
    for row in measure_compression(model, CANDIDATES[:1], [context]).rows:
        assert row["survival"] is row["survival_heads"] is None
        assert row["exact"] == 1.0


def test_an_answer_from_two_places_survives_by_the_share_of_both(model, contexts):
    """The oracle is told both, and a cache that holds one of two equally long places holds half."""
    first, second = contexts[0].questions
    both = first._replace(also=(second.answer,))
    context = contexts[0]._replace(questions=(both,))
    told = []

    def one_of_them(prompt):
        told.append(dict(prompt.spans))
        span = prompt.spans["answer/2"]
        return Oracle(positions=tuple(range(span.start, span.stop)), budget=12 + span.length, sinks=4, window=8)

    candidates = [CANDIDATES[0], Candidate("one", None, one_of_them)]
    full, one = measure_compression(model, candidates, [context], ["outside"], min_full=0).rows
    assert told == [{"answer/1": first.answer, "answer/2": second.answer}]
    assert full["survival"] == 1.0
    assert one["survival"] == pytest.approx(second.answer.length / (first.answer.length + second.answer.length))


def test_the_model_is_left_as_it_was(model, contexts):
    ids = torch.tensor([contexts[0].ids])
    with torch.no_grad():
        before = model.hf(ids).logits
        measure_compression(model, CANDIDATES, contexts[:1], ["inside"])
        assert torch.equal(model.hf(ids).logits, before)
        assert model.hf.config._attn_implementation != "headwise"


@pytest.mark.parametrize(
    ("candidates", "protocols", "message"),
    [(CANDIDATES, ["beside"], "'beside'; use inside or outside"), ([], ["inside"], "at least one method")],
)
def test_what_cannot_be_measured_is_refused(model, contexts, candidates, protocols, message):
    with pytest.raises(HeadwiseError, match=message):
        measure_compression(model, candidates, contexts, protocols)


# Drawing


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("questions", [1, 3])
def test_drawn_prompts_fill_the_length_and_hold_their_answers(lab, task, questions):
    found = draw_contexts(lab, task, 400, 5, questions, seed=1)
    assert [len(context.questions) for context in found] == [questions] * 5
    sizes = [longest(context) for context in found]
    assert max(sizes) <= 400
    assert np.mean(sizes) > 0.8 * 400
    assert len({context.ids for context in found}) == 5
    for context in found:
        text = lab.tokenizer.decode(context.ids)
        for question in context.questions:
            answer = lab.tokenizer.decode(context.ids[question.answer.start : question.answer.stop])
            assert question.judge(answer.strip() + ('".' if task == "key_value" else ".") + "\nQuestion") == 1.0
            assert question.judge("nobody knows") == 0.0
            asked = lab.tokenizer.decode(question.rest)
            assert asked.count("Question:") == (4 if task == "key_value" else 1)
            assert asked.rstrip().endswith("Answer:" if task != "key_value" else '"')
            assert "Question:" not in text


def test_the_same_seed_draws_the_same(lab):
    draw = partial(draw_contexts, lab, "needle", 256, 3)
    assert [c.ids for c in draw(seed=1)] == [c.ids for c in draw(seed=1)] != [c.ids for c in draw(seed=2)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("riddle", 256, 3), "unknown task 'riddle'; use needle, key_value, passages"),
        (("needle", 256, 0), "at least 1"),
        (("needle", 256, 2, 0), "at least 1"),
        (("needle", 10**6, 2), "positions; choose"),
        (("needle", 20, 2), "no needle prompt with 1 questions fits into 20 tokens"),
    ],
)
def test_what_cannot_be_drawn_is_refused(lab, given, message):
    with pytest.raises(HeadwiseError, match=message):
        draw_contexts(lab, *given)


# RULER


def ruler_rows(count=3):
    task = planted_task()
    words = task.texts[0].split()
    return [
        {
            "context": " ".join([*words[:30], needle["needle"], *words[30:60]]),
            "question": " what is it?",
            "answer_prefix": " " + needle["answer_prefix"],
            "answer": needle["answer"].split(),
            "max_new_tokens": 8,
            "task": "niah_single_1",
        }
        for needle in task.needles[:count]
    ]


@pytest.fixture
def parquet(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def write(rows, name="rows.parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
        return tmp_path / name

    return write


def test_ruler_files_are_read_and_answered(model, parquet):
    rows = read_ruler(parquet(ruler_rows()))
    assert rows[0] == RulerRow(
        ruler_rows()[0]["context"], " what is it?", rows[0].answer_prefix, tuple(ruler_rows()[0]["answer"]), 8, "niah_single_1"
    )
    contexts = ruler_contexts(model, rows)
    found = {row["method"]: row for row in measure_compression(model, [CANDIDATES[0], CANDIDATES[3]], contexts, ["outside"]).rows}
    assert found["full"]["exact"] == 1.0
    assert found["streamingllm"]["exact"] == 0.0
    assert (found["full"]["task"], found["full"]["length"], found["full"]["survival"]) == ("niah_single_1", None, None)


def test_ruler_answers_may_be_one_text_and_tasks_unnamed(parquet):
    row = ruler_rows(1)[0] | {"answer": "one"}
    del row["task"]
    assert read_ruler(parquet([row], "vt.parquet"))[0][3:] == (("one",), 8, "vt")


@pytest.mark.parametrize(
    ("task", "said", "score"),
    [
        ("niah_multivalue", "It is 12 and 34.", 1.0),
        ("niah_multivalue", "it is 12", 0.5),
        ("niah_multivalue", "", 0.0),
        ("qa_1", "12 it is", 1.0),
        ("qa_2", "nothing", 0.0),
    ],
)
def test_string_match(task, said, score):
    assert string_match(said, RulerRow("", "", "", ("12", "34"), 5, task)) == score
    assert string_match("PARIS", RulerRow("", "", "", ("Paris",), 5, "vt")) == 1.0


def test_broken_ruler_files_are_refused(model, parquet, tmp_path):
    with pytest.raises(PromptError, match="no such parquet file"):
        read_ruler(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(PromptError, match="cannot be read as parquet"):
        read_ruler(tmp_path / "bad.parquet")
    for name in COLUMNS:
        row = ruler_rows(1)[0]
        del row[name]
        with pytest.raises(PromptError, match=f"no column {name}; it needs context"):
            read_ruler(parquet([row]))
    for change, message in (
        ({"answer": []}, "answer must be a text or a list"),
        ({"answer": [""]}, "answer must be a text or a list"),
        ({"context": ""}, "must be texts"),
        ({"max_new_tokens": 0}, "at least 1; got 0"),
    ):
        with pytest.raises(PromptError, match=message):
            read_ruler(parquet([ruler_rows(1)[0] | change]))
    with pytest.raises(HeadwiseError, match="1024 positions"):
        ruler_contexts(model, [RulerRow("the river " * 600, " what?", " it is", ("x",), 5, "vt")])
    with pytest.raises(PromptError, match="no chat template"):
        ruler_contexts(model, [RulerRow("the river", " what?", " it is", ("x",), 5, "vt")], chat=True)


def test_variables_of_the_chat_template_reach_the_questions():
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{{ mood | default('calm') }}: {{ messages[0]['content'] }}"
    model = Model(tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=512), tokenizer)
    asked = OwnQuestion("the river is wide", "what is wide?", ("the river",), "1")
    ruler = RulerRow("the river", " what?", " it is", ("x",), 5, "vt")
    for contexts in (partial(data_contexts, model, [asked], "mine", 4, True), partial(ruler_contexts, model, [ruler], True)):
        calm, glad = (tokenizer.decode(list(contexts(given)[0].ids)) for given in (None, {"mood": "glad"}))
        assert (calm[:4], glad[:4]) == ("calm", "glad")


def test_without_pyarrow_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'headwise\[parquet\]'"):
        read_ruler(tmp_path / "rows.parquet")


def test_the_formula_of_a_half_precision_cache_is_half():
    model = tiny_model("llama")
    sizes = []
    for dtype in (torch.float32, torch.bfloat16):
        with compress(model.to(dtype), SnapKV(budget=20)) as cache, torch.no_grad():
            cache.prefill(torch.randint(2, 96, (1, 50), generator=torch.Generator().manual_seed(1)))
            sizes.append(size_of(cache))
    model.float()
    assert sizes[0].formula == 2 * sizes[1].formula == 20 * 4 * 2 * 2 * 16 * 4
    assert math.isclose(sizes[0].full / sizes[1].full, 2)
