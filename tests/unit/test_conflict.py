"""Conflict curves: a planted head reads the passage's answer, and what goes with it."""

import json
from contextlib import nullcontext

import numpy as np
import pytest

from headwise.evaluation.conflict import ConflictOptions, conflict_curves, describe_conflict, usable_records
from headwise.evaluation.steered import steered_answers
from headwise.heads import HeadScores, HeadSet, HeadwiseError
from headwise.heads.headfile import load_result
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.knowledge import KnowledgeComposer, KnowledgeRecord, KnowledgeWording
from headwise.prompts.passages import Passage
from headwise.report.ablation_curves import draw_ablation_curves
from headwise.report.tables import ablation_table
from headwise.runtime.rundir import RunDirectory
from headwise.testing.planted import planted_copier, planted_task

BARE = KnowledgeWording(passage="", before_question="", after_question="")
OPTIONS = ConflictOptions(top=(1,), controls=2, least=4, max_new_tokens=4)


@pytest.fixture(scope="module")
def planted():
    return Model(*planted_copier())


@pytest.fixture(scope="module")
def composer(planted):
    return KnowledgeComposer(PieceEncoder(planted.tokenizer), BARE)


def records(count=5):
    """The passage says a needle's answer; another needle's answer stands for what is remembered."""
    task = planted_task()
    words = task.texts[0].split()
    found = []
    for i, needle in enumerate(task.needles[:count]):
        said, known = Passage(" ".join([*words[9 * i : 9 * i + 30], needle["needle"]])), task.needles[(i + 1) % 8]["answer"]
        found.append(
            KnowledgeRecord(needle["answer_prefix"], (known,), None, said, needle["answer"], kind="name", name=f"needle {i}")
        )
    return found


def scores(best, second=(0, 3)):
    values = np.zeros((2, 4))
    values[best], values[second] = 2, 1
    return HeadScores(values, "given")


@pytest.fixture(scope="module")
def result(planted, composer):
    return conflict_curves(planted, {"context": scores((1, 2)), "memory": scores((1, 0))}, records(), composer, OPTIONS)


def rows(result, metric):
    return {(row["kind"], row["k"]): row for row in result.summary() if row["metric"] == metric}


def test_the_passage_is_no_longer_read_without_the_planted_head(result):
    found = rows(result, "context_passage")
    assert found["none", 0]["mean"] == 1
    assert found["top", 1]["mean"] == 0
    assert found["top", 1]["change"] == -1
    assert found["top", 1]["p_mcnemar"] == 2 / 2**5
    assert found["top", 1]["p_rank"] == pytest.approx(1 / 3)
    assert found["random", 1]["mean"] == 1
    assert len(found["random", 1]["draws"]) == 2
    other = rows(
        result, "memory_passage"
    )  # the other kind of heads does nothing here; the planted head is one of its random draws
    assert other["none", 0]["mean"] == other["top", 1]["mean"] == 1
    assert other["top", 1]["p_mcnemar"] == 1
    assert {row["mean"] for row in rows(result, "context_memory").values()} == {0.0}
    assert all(variant.kind != "bottom" for variants in result.variants.values() for variant in variants)


def test_the_result_is_a_file_that_show_takes(result, tmp_path):
    result.save(tmp_path / "c.json")
    kind, data = load_result(tmp_path / "c.json")
    assert kind == "ablation"
    assert data == json.loads(json.dumps(result.to_json()))
    assert data["items"] == 5
    assert data["dropped"] == {}
    assert np.array(data["values"]["context"]["passage"]).shape == (4, 5)
    draw_ablation_curves(data)
    assert ablation_table(data).row_count == 8
    with pytest.raises(HeadwiseError, match="exists"):
        result.save(tmp_path / "c.json")


def test_an_interrupted_run_goes_on_where_it_stopped(planted, composer, result, tmp_path):
    heads = {"context": scores((1, 2)), "memory": scores((1, 0))}
    told = describe_conflict(planted, heads, records(), composer, OPTIONS)
    seen = []

    def stop(done, total, _):
        seen.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conflict_curves(planted, heads, records(), composer, OPTIONS, RunDirectory(tmp_path / "run", told), stop)
    assert seen == [(1, 5), (2, 5)]
    assert len(list((tmp_path / "run").glob("*.npz"))) == 2
    again = conflict_curves(planted, heads, records(), composer, OPTIONS, RunDirectory(tmp_path / "run", told))
    assert again.to_json() == result.to_json()


def test_scope_answer_reads_each_prompt_once_and_says_the_same_here(planted, composer, result):
    """The planted head works at the last token only, so the scope does not matter."""
    options = ConflictOptions(top=(1,), controls=2, least=4, max_new_tokens=4, scope="answer")
    found = conflict_curves(planted, {"context": HeadSet.of([(1, 2), (0, 3)], (2, 4))}, records(), composer, options)
    assert found.values.keys() == {"context"}
    for kind, k in (("none", 0), ("top", 1)):
        assert rows(found, "context_passage")[kind, k]["mean"] == rows(result, "context_passage")[kind, k]["mean"]


def test_records_that_set_nothing_against_memory_are_dropped_and_counted(planted, composer):
    task = planted_task()
    one = records(1)[0]
    first, second = task.needles[0]["answer"].split()[:2]
    extra = [
        KnowledgeRecord(one.question, one.answers, name="without"),
        KnowledgeRecord(one.question, (one.swapped_answer + " old",), None, one.swapped, one.swapped_answer),
        KnowledgeRecord(one.question, (f"{first} old",), None, Passage(f"the {first} {second}"), f"{first} {second}"),
        KnowledgeRecord(one.question, one.answers, None, Passage(task.texts[0] + f" {one.swapped_answer}"), one.swapped_answer),
    ]
    kept, dropped = usable_records(planted, [*records(4), *extra], composer, OPTIONS)
    assert kept == records(4)
    assert dropped == {
        "no swapped passage": 1,
        "one answer contains the other": 1,
        "both answers begin with the same token": 1,
        "longer than the model's context": 1,
    }
    with pytest.raises(HeadwiseError, match=r"3 of 4 records can be used, and at least 4 are needed \(no swapped passage: 1\)"):
        usable_records(planted, [*records(3), extra[0]], composer, OPTIONS)
    knows = ConflictOptions(top=(1,), least=1, known=True, max_new_tokens=4)
    with pytest.raises(HeadwiseError, match=r"0 of 5 records can be used, .*\(not known without a passage: 5"):
        usable_records(planted, records(), composer, knows)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top": (0,)}, "top must name different numbers of heads"),
        ({"top": (2, 2)}, "top must name different numbers of heads"),
        ({"mode": "mean"}, "unknown ablation mode 'mean'; use zero, uniform"),
        ({"scope": "some"}, "unknown ablation scope 'some'; use all, answer"),
        ({"controls": 0}, "controls must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"least": 0}, "least must be at least 1"),
    ],
)
def test_options_check_themselves(given, message):
    with pytest.raises(HeadwiseError, match=message):
        ConflictOptions(**given)


def test_unknown_kinds_and_other_models_are_refused(planted, composer):
    for heads, message in (
        ({}, "conflict curves take the heads of context and memory; got none"),
        ({"copy": scores((1, 2))}, "got copy"),
        ({"context": HeadScores(np.random.default_rng(0).random((3, 4)), "x")}, "belong to a model of 3 layers x 4 heads"),
        ({"context": HeadScores(np.ones((2, 4)), "x")}, "have the same x score"),
    ):
        with pytest.raises(HeadwiseError, match=message):
            conflict_curves(planted, heads, records(), composer, OPTIONS)


def test_k_goes_up_to_a_tenth_of_the_heads(planted, composer):
    values = np.random.default_rng(0).random((2, 4))
    options = ConflictOptions(controls=1, least=1, max_new_tokens=1)
    found = conflict_curves(planted, {"context": HeadScores(values, "x")}, records(1), composer, options)
    assert {variant.k for variant in found.variants["context"]} == {0, 1}


def test_answers_come_by_prompt_and_variant(planted, composer):
    prompts = [composer.opened(record, swapped=True) for record in records(3)]
    found = steered_answers(planted, prompts, [None, None], lambda chosen, last: nullcontext(), max_new_tokens=4)
    assert [[one.text.strip(" .\n") for one in row] for row in found] == [[record.swapped_answer] * 2 for record in records(3)]
    assert all(row[0].gold_logprob > -3 for row in found)
