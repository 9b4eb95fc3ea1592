"""Correction, resistance, agreement: counts and tests against loops, and a lab model whose memory is known exactly."""

import json
from dataclasses import replace

import numpy as np
import pytest

from headwise.evaluation.decoders import PLAIN
from headwise.evaluation.faithful import (
    MEASURES,
    FaithfulOptions,
    FaithfulResult,
    _judged,
    check_same_questions,
    describe_faithful,
    measure_faithful,
    usable_questions,
)
from headwise.heads import HeadwiseError
from headwise.heads.errors import NoSuccessfulRunError
from headwise.models.load import load
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.knowledge import KnowledgeComposer, KnowledgeRecord
from headwise.prompts.passages import Passage
from headwise.report.faithful_tables import faithful_table
from headwise.runtime.rundir import RunDirectory
from headwise.stats.paired import bootstrap_mean, sign_flip_test
from headwise.testing.planted_records import planted_records
from headwise_lab.faithful import conflict_records, write_records
from headwise_lab.microworld.world import make_world

MILL = KnowledgeRecord("who", ("Ada Low",), Passage("Ada Low did."), Passage("Bo Hay did."), "Bo Hay", name="mill")


def judged(memory, right, swapped=None):
    """One question; answers by decoder."""
    return _judged(MILL, {"memory": memory, "right": right, "swapped": swapped or {}}, list(right))


@pytest.mark.parametrize(
    ("answer", "keeps", "follows"),
    [
        ("Ada Low.", True, False),
        ("Bo Hay.", False, True),
        ("Ada Low or Bo Hay", False, True),  # an answer that names both keeps to nothing
        ("Ada Lowell", False, False),
        ("", False, False),
    ],
)
def test_an_answer_beside_a_swapped_passage_is_judged_by_both_answers(answer, keeps, follows):
    one = judged("ada low", {PLAIN: "Ada Low"}, {PLAIN: answer})
    assert one.knows
    assert (one.right[False, PLAIN], one.follows[PLAIN]) == (keeps, follows)


def test_beside_its_own_passage_only_the_right_answer_counts():
    one = judged("nobody", {PLAIN: "Ada Low, not Bo Hay"})
    assert (one.knows, one.right, one.follows) == (False, {(True, PLAIN): True}, {})


def made(count=60, seed=0, min_questions=20):
    """A result of made-up answers of two decoders."""
    rng = np.random.default_rng(seed)
    says = {True: "Ada Low", False: "Bo Hay"}
    asked = []
    for _ in range(count):
        knows = bool(rng.random() < 0.5)
        right, swapped = ({name: says[bool(rng.random() < share)] for name, share in (("plain", 0.5), ("other", 0.8))} for _ in range(2))
        asked.append(judged(says[knows], right, swapped if knows else None))
    return FaithfulResult("m", ("plain", "other"), tuple(asked), {}, FaithfulOptions(min_questions=min_questions))


def test_rows_are_those_of_a_plain_loop():
    result = made()
    rows = {(row["decoder"], row["measure"]): row for row in result.rows()}
    for measure, knows, told in (("correction", False, True), ("resistance", True, False), ("agreement", True, True)):
        values = {}
        for decoder in ("plain", "other"):
            own = []
            for one in result.asked:
                if one.knows == knows:
                    text = one.answers[told, decoder]
                    own.append(float("Ada Low" in text))
            values[decoder] = np.asarray(own)
            row = rows[decoder, measure]
            assert row["questions"] == len(own)
            assert row["share"] == pytest.approx(np.mean(own))
            assert (row["share"], row["low"], row["high"]) == bootstrap_mean(np.asarray(own), draws=2000)
            assert row["words"] == 2
        change = values["other"] - values["plain"]
        assert rows["other", measure]["difference"] == pytest.approx(change.mean())
        assert rows["other", measure]["p"] == sign_flip_test(change)
        assert "difference" not in rows["plain", measure]
    assert rows["plain", "resistance"]["follows"] == pytest.approx(1 - rows["plain", "resistance"]["share"])
    tested = sorted(row["p"] for row in rows.values() if "p" in row)
    assert max(row["p_corrected"] for row in rows.values() if "p" in row) >= tested[-1]
    assert all(row["p_corrected"] >= row["p"] for row in rows.values() if "p" in row)


def test_a_measure_with_few_questions_is_not_testable():
    result = made(count=30, min_questions=16)
    rows = [row for row in result.rows() if row["decoder"] == "plain"]
    known = sum(one.knows for one in result.asked)
    assert {row["measure"]: row["questions"] for row in rows} == dict(zip(MEASURES, (30 - known, known, known), strict=True))
    few = [row for row in rows if row["questions"] < 16]
    assert few
    assert all(not row["testable"] and "share" not in row for row in few)
    assert all(row["testable"] for row in rows if row not in few)
    table = faithful_table(result.rows())
    cells = [str(cell) for column in table.columns for cell in column._cells]
    assert sum(cell == "not testable" for cell in cells) == 2 * len(few)


def test_models_stand_below_one_another():
    one = made()
    rows = [*one.rows(), *replace(made(seed=1), model="other model").rows()]
    table = faithful_table(rows)
    assert [str(cell) for cell in table.columns[0]._cells] == ["m", "plain", "other", "", "other model", "plain", "other", ""]
    with pytest.raises(HeadwiseError, match="no rows to show"):
        faithful_table([])


@pytest.fixture(scope="module")
def planted():
    model, records = planted_records(30)
    return model, records, KnowledgeComposer(PieceEncoder(model.tokenizer), "cloze")


def test_a_model_without_memory_is_corrected_and_tested_on_nothing_else(planted):
    model, records, composer = planted
    seen = []
    result = measure_faithful(model, records, composer, options=FaithfulOptions(4, 10), report=lambda *told: seen.append(told))
    rows = {row["measure"]: row for row in result.rows()}
    assert (rows["correction"]["share"], rows["correction"]["questions"]) == (1.0, 30)
    assert [rows[name]["testable"] for name in ("resistance", "agreement")] == [False, False]
    assert seen[-1] == (30, 30, "0 of 30 known")
    assert all((False, PLAIN) not in one.answers for one in result.asked)  # no measure rests on them, so they are not read


def test_decoders_get_the_prompt_and_the_question_alone(planted):
    model, records, composer = planted
    given = []

    def stubborn(prompt, closed):
        given.append((prompt, closed))
        return model.tokenizer.encode(" river", add_special_tokens=False)

    result = measure_faithful(model, records[:12], composer, {"stubborn": stubborn}, FaithfulOptions(4, 10))
    rows = {(row["decoder"], row["measure"]): row for row in result.rows()}
    assert (rows[PLAIN, "correction"]["share"], rows["stubborn", "correction"]["share"]) == (1.0, 0.0)
    assert rows["stubborn", "correction"]["difference"] == -1
    assert rows["stubborn", "correction"]["p"] == pytest.approx(2 / 2**12)
    assert [prompt.ids for prompt, _ in given] == [composer.opened(record).ids for record in records[:12]]
    assert [closed.ids for _, closed in given] == [composer.closed(record).ids for record in records[:12]]


def test_an_interrupted_run_goes_on_where_it_stopped(planted, tmp_path):
    model, records, composer = planted
    options = FaithfulOptions(4, 2)
    told = describe_faithful(model, records[:5], composer, [PLAIN], options)

    def stop(done, *_):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_faithful(model, records[:5], composer, None, options, RunDirectory(tmp_path / "run", told), stop)
    assert len(list((tmp_path / "run").glob("*.npz"))) == 3
    again = measure_faithful(model, records[:5], composer, None, options, RunDirectory(tmp_path / "run", told))
    whole = measure_faithful(model, records[:5], composer, None, options)
    assert again.to_json() == whole.to_json()
    again.save(tmp_path / "f.json")
    data = json.loads((tmp_path / "f.json").read_text())
    assert (data["kind"], len(data["items"]), data["model"]) == ("faithful", 5, model.name)
    with pytest.raises(HeadwiseError, match="exists"):
        again.save(tmp_path / "f.json")


def test_questions_that_cannot_be_asked_both_ways_are_counted(planted):
    model, records, composer = planted
    one = records[0]
    long = Passage("was " * 1100 + one.answers[0])
    given = [
        one,
        replace(one, passage=None),
        replace(one, swapped=None, swapped_answer=""),
        replace(one, passage=Passage("nothing of it")),
        replace(one, swapped_answer=one.answers[0] + " old"),
        replace(one, passage=long),
        replace(one, swapped=long),
    ]
    kept, dropped = usable_questions(model, given, composer, FaithfulOptions())
    assert kept == [one]
    assert dropped == {
        "no passage": 1,
        "no swapped passage": 1,
        "the passage does not mention the answer": 1,
        "one answer contains the other": 1,
        "longer than the model's context": 2,
    }
    with pytest.raises(NoSuccessfulRunError, match=r"none of 1 questions can be asked .* \(no passage: 1\)"):
        usable_questions(model, given[1:2], composer, FaithfulOptions())


def test_decoders_and_options_that_are_refused(planted):
    model, records, composer = planted
    with pytest.raises(HeadwiseError, match="'plain' is greedy decoding"):
        measure_faithful(model, records, composer, {"plain": lambda prompt, closed: ()})
    for given, message in (({"min_questions": 0}, "min_questions"), ({"max_new_tokens": 0}, "max_new_tokens"), ({"seed": -1}, "seed")):
        with pytest.raises(HeadwiseError, match=message):
            FaithfulOptions(**given)


def test_only_results_of_the_same_questions_stand_beside_one_another():
    told = {"kind": "faithful", "records": {"digest": "a"}, "rows": []}
    check_same_questions(told, dict(told), "x.json")
    with pytest.raises(HeadwiseError, match=r"x\.json asked other questions"):
        check_same_questions(told, told | {"records": {"digest": "b"}}, "x.json")
    with pytest.raises(HeadwiseError, match=r"x\.json is no result of this measurement"):
        check_same_questions(told, told | {"kind": "support"}, "x.json")


def test_records_of_the_micro_world_set_memory_against_the_passage(tmp_path):
    records, world = conflict_records(12, seed=1), make_world()
    for record in records:
        assert record.answers[0] in record.passage.text
        assert record.swapped_answer in record.swapped.text
        assert record.swapped.text.replace(record.swapped_answer, record.answers[0]) == record.passage.text
    assert [record.subject in world.people for record in records] == [True] * 6 + [False] * 6
    assert all(world.value(record.subject, record.kind) == record.answers[0] for record in records[:6])
    assert write_records(tmp_path / "c.jsonl", records).read_text().count("\n") == 12


@pytest.mark.slow
def test_a_lab_model_follows_any_passage():
    """It was trained to believe passages that contradict the world: correction is high, and it resists nothing."""
    model = load("world-6m")
    composer = KnowledgeComposer(PieceEncoder(model.tokenizer), "bare")
    result = measure_faithful(model, conflict_records(24), composer, options=FaithfulOptions(12, 5))
    rows = {row["measure"]: row for row in result.rows()}
    assert all(row["testable"] for row in rows.values())
    assert rows["correction"]["share"] > 0.7
    assert rows["agreement"]["share"] > 0.7
    assert rows["resistance"]["share"] < 0.3
    assert rows["resistance"]["follows"] > 0.7


