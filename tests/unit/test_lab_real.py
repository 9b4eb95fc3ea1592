"""`headwise lab properties` on a model that is not of the lab: its questions, its retests, its verdicts and its page."""

import gzip
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from headwise.heads import HeadScores, HeadwiseError, NoSuccessfulRunError
from headwise.models.model import Model
from headwise.stats.agreement import pearson
from headwise.stats.metrics import begins_with
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from headwise_lab.eval_tasks import NotMeasured
from headwise_lab.properties import facts, intrinsic, paraphrased, reasoning
from headwise_lab.properties.detection import Evidence, at_length
from headwise_lab.properties.facts import BELONGS, CAPITAL, RELATIONS, Asker, read_relations
from headwise_lab.properties.lab_models import CHAT, LONGER, NEEDLES, LabModel, choose_models
from headwise_lab.properties.run import _result
from headwise_lab.properties.settings import RealSettings, Settings
from headwise_lab.properties.verdict import verdict_of
from headwise_lab.report.page import write_page

SMALL = RealSettings(facts=12, two_step=6, item_controls=3, item_k=4, item_beside=2, candidates=30)
COUNTRIES = [f"land{letter}" for letter in "abcdefghijklmnop"]


def relation_rows():
    """Sixteen pairs per relation; things belong to the countries whose capitals are known."""
    for name in RELATIONS:
        subjects = COUNTRIES if name == CAPITAL else [f"{name[:3]}{i}x" for i in range(16)]
        objects = COUNTRIES if name in BELONGS else [f"{name[-4:]}o{chr(97 + i)}" for i in range(16)]
        samples = [{"subject": one, "object": other} for one, other in zip(subjects, objects, strict=True)]
        yield {
            "name": name,
            "prompt_templates": ["{} has"],
            "prompt_templates_zs": ["{} has", "what has {}? it has"],
            "samples": samples,
        }


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "relations-lre"
    folder.mkdir()
    lines = "\n".join(json.dumps(row) for row in relation_rows())
    (folder / "relations.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return tmp_path


@pytest.fixture(scope="module")
def tiny():
    return Model(tiny_model("llama", max_position_embeddings=2048), character_tokenizer(), "tiny")


@pytest.fixture
def knows_all(monkeypatch):
    """Every fact counts as known, which needs no model."""

    monkeypatch.setattr(Asker, "_right", lambda self, asked, quiz, name: list(asked))


def test_a_folder_without_a_recipe_is_a_real_model(tmp_path, tiny):
    folder = tmp_path / "mine"
    tiny.hf.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    real, lab = choose_models([str(folder), "lab-6m"])
    assert (real.name, real.real, real.recipe) == ("mine", True, {})
    assert not lab.real
    assert real.load().name == "mine"
    (folder / "recipe.json").write_text("{}")
    assert not choose_models([str(folder)])[0].real
    (folder / "recipe.json").write_text("{")
    with pytest.raises(HeadwiseError, match="is no recipe"):
        choose_models([str(folder)])


def test_relations_are_read_or_refused_in_one_line(data, tmp_path):
    found = read_relations(data)
    assert list(found) == list(RELATIONS)
    assert (found[CAPITAL].stated, found[CAPITAL].asked, len(found[CAPITAL].pairs)) == ("{} has", "what has {}? it has", 16)
    with pytest.raises(HeadwiseError, match=r"no relations in .*nowhere"):
        read_relations(tmp_path / "nowhere")
    for text, part in (
        ("{", "holds no LRE relations"),
        ('{"name": "country capital city"}', "holds no LRE relations"),
        ("", "lacks the relation"),
    ):
        (tmp_path / "relations.jsonl").write_text(text)
        with pytest.raises(HeadwiseError, match=part) as refused:
            read_relations(tmp_path)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("answer", "wanted", "expected"),
    [
        ("Paris.", "Paris", True),
        (" the United States", "United States", True),
        ("paris", "Paris", True),
        ("Rome", "Paris", False),
        ("", "Paris", False),
    ],
)
def test_an_answer_begins_with_what_is_wanted(answer, wanted, expected):
    assert begins_with(answer, wanted) is expected


def test_written_steps_are_judged_by_their_end():
    judge = facts.right_step
    assert judge("Japan", "Tokyo", "Japan, and the capital of Japan is Tokyo.") == (1, 1)
    assert judge("Japan", "Tokyo", "China, and the capital of China is Tokyo.") == (1, 0)
    assert judge("Japan", "Tokyo", "Japan, and the capital of Japan is Osaka.\nTokyo is Tokyo") == (0, 1)
    assert judge("Japan", "Tokyo", "Tokyo") == (0, 0)


def test_no_answer_stands_in_an_example_and_the_gold_one_is_right(tiny, data, knows_all):
    quizzes = {quiz.task: quiz for quiz in Asker(tiny, read_relations(data), SMALL, None).quizzes()}
    assert {task: len(quiz.items) for task, quiz in quizzes.items()} == {
        "steps": 6,
        "direct": 6,
        "closed_book": 12,
        "contradiction": 12,
    }
    decode = tiny.tokenizer.decode
    for task, quiz in quizzes.items():
        for item in quiz.items:
            text, gold = decode(item.prompt.ids), decode(item.prompt.gold)
            front = text.removesuffix(item.question).removesuffix(item.context + "\n")
            assert text.endswith(item.question)
            assert gold == f" {item.answer}.\n"
            assert item.judge(gold.strip()) == ((1, 0) if task == "contradiction" else (1,) * len(quiz.numbers))
            assert item.answer not in front
            assert 3 <= front.count(".\n") <= 6
    said = quizzes["contradiction"].items[0]
    assert said.context == f"Passage: {said.question.removeprefix('what has ').split('?')[0]} has {said.answer}."
    countries = Counter(item.answer.split(",")[0] for item in quizzes["steps"].items)
    assert [item.answer.rsplit(" ", 1)[1] for item in quizzes["steps"].items] == [item.answer for item in quizzes["direct"].items]
    assert set(countries) <= set(COUNTRIES)


def test_the_same_seed_asks_the_same(tiny, data, knows_all):
    def ids(seed):
        quizzes = Asker(tiny, read_relations(data), replace(SMALL, seed=seed), None).quizzes()
        return [item.prompt.ids for quiz in quizzes for item in quiz.items]

    assert ids(0) == ids(0) != ids(1)


def test_a_model_that_knows_nothing_is_not_measured(tiny, data, tmp_path):
    few = replace(SMALL, candidates=2)
    with pytest.raises(NotMeasured, match="tiny knows too few facts for steps, direct, closed_book, contradiction"):
        Asker(tiny, read_relations(data), few, tmp_path / "work").quizzes()
    scores = HeadScores(np.random.default_rng(0).random((4, 8)), "copy")
    assert "--data" in reasoning.measure_real(tiny, scores, few, None, None)["why"]
    assert "knows too few" in reasoning.measure_real(tiny, scores, few, data, tmp_path / "work")["why"]


@pytest.mark.slow
def test_tasks_that_a_model_cannot_do_lose_nothing(tiny, data, knows_all, tmp_path):
    scores = HeadScores(np.random.default_rng(0).random((4, 8)), "copy")
    found = Evidence(LabModel("tiny", "", real=True), (4, 8), 2048, scores)
    found.reasoning = reasoning.measure_real(tiny, scores, SMALL, data, tmp_path)
    assert [task["task"] for task in found.reasoning["tasks"]] == ["steps", "direct", "closed_book", "contradiction"]
    assert all(set(task["right"]) == {"none"} for task in found.reasoning["tasks"])
    assert verdict_of(reasoning.judge([found], 0).checks) == "not measured"
    assert reasoning.measure_real(tiny, scores, SMALL, data, tmp_path) == found.reasoning  # from the kept parts


@pytest.mark.slow
def test_draws_of_both_kinds_are_compared_where_the_model_can(tiny, data, knows_all, monkeypatch):
    monkeypatch.setattr(reasoning, "FLOOR", 0.0)
    scores = HeadScores(np.random.default_rng(0).random((4, 8)), "copy")
    found = reasoning.measure_real(tiny, scores, SMALL, data, None)
    for task in found["tasks"]:
        assert set(task["right"]) == {"none", "top", "bottom", "random", "any_layer", "top 2", "bottom 2"}
        kinds = Counter((row["kind"], row["k"]) for row in task["rows"] if row["metric"] == "exact")
        assert kinds == Counter([("none", 0), *((kind, 4) for kind in ("top", "bottom", "random", "any_layer"))])
        assert len(next(row for row in task["rows"] if row["kind"] == "any_layer")["draws"]) == 3


def runs_of(values, noise, seed, length=512, needles=6, runs=4, solved=None):
    rng = np.random.default_rng(seed)
    table = np.clip(values + noise * rng.normal(size=(needles * runs, *values.shape)), 0, 1).astype(np.float32)
    info = tuple({"needle": i // runs, "length": length} for i in range(len(table)))
    cells = [{"exact": True, "success": True, "recall": 1.0, "length": length}] * len(table)
    total = len(table) if solved is None else round(len(table) / solved)
    provenance = {"runs": total, "solved": len(table), "cells": cells, "grid": {"lengths": [length]}}
    return HeadScores(table.mean(axis=0).astype(float), "copy", 1, table, info, provenance)


def real_evidence(noise=0.05):
    values = np.zeros((8, 8))
    values[3, 1], values[5, 6], values[6, 2] = 0.9, 0.4, 0.6
    found = Evidence(LabModel("real", "", real=True), (8, 8), 8192, runs_of(values, noise, 0))
    found.retests = {LONGER: runs_of(values, noise, 1, 4096), CHAT: runs_of(values, noise, 2), NEEDLES: runs_of(values, noise, 3)}
    return found, values


def test_a_retest_holds_fails_or_is_not_measured():
    found, values = real_evidence()
    judged = intrinsic.judge([found], 0)
    assert verdict_of(judged.checks) == "holds"
    assert [pair["relation"] for pair in judged.data["pairs"]] == [LONGER, CHAT, NEEDLES]
    for pair in judged.data["pairs"]:
        assert pair["pearson"] == pytest.approx(pearson(found.scores.values, found.retests[pair["relation"]].values))
        assert pair["shuffled"][1] < pair["pearson"] <= pair["ceiling"] + 0.01
    found.retests[CHAT] = runs_of(values.T, 0.05, 4)
    assert verdict_of(intrinsic.judge([found], 0).checks) == "partly"
    found.retests = {CHAT: runs_of(values, 0.05, 2, solved=0.4), LONGER: "no successful run"}
    judged = intrinsic.judge([found], 0)
    assert verdict_of(judged.checks) == "not measured"
    assert [check.note for check in judged.checks] == ["only 24 of 60 runs solved", "no successful run"]


def test_scores_of_one_length():
    short, long = runs_of(np.full((2, 2), 0.3), 0.0, 0), runs_of(np.full((2, 2), 0.9), 0.0, 0, 1024)
    cells = [*short.provenance["cells"], *long.provenance["cells"]]
    both = HeadScores(
        np.full((2, 2), 0.6),
        "copy",
        1,
        np.concatenate([short.runs, long.runs]),
        (*short.run_info, *long.run_info),
        {"cells": cells},
    )
    assert at_length(both, 1024).values == pytest.approx(0.9)
    assert at_length(both, 1024).provenance["solved"] == 24
    with pytest.raises(NoSuccessfulRunError, match="no run at 99 tokens"):
        at_length(both, 99)


def paraphrased_of(literal, other, p=0.001):
    def part(mean, whole):
        rows = [{"metric": "recall", "kind": kind, "k": k, "mean": m, "low": m, "high": m}
                for kind, k, m in (("none", 0, whole), ("top", 8, 0.1), ("bottom", 8, whole), ("random", 8, whole))]  # fmt: skip
        return {"recall": {"mean": mean, "low": mean, "high": mean}, "rows": rows}

    sets = {"literal": part(literal, literal), "paraphrased": part(other, other)}
    return {"name": "real", "lengths": [128, 512], "needles": 24, "k": 8, "difference": {"p": p}, **sets}


@pytest.mark.parametrize(
    ("literal", "other", "expected", "measured"),
    [(0.9, 0.3, "holds", 2), (0.9, 0.85, "does not hold", 3), (0.5, 0.1, "not measured", 0), (0.9, 0.7, "does not hold", 2)],
)
def test_paraphrased_needles_are_judged_behind_gates(literal, other, expected, measured):
    found, _ = real_evidence()
    found.paraphrased = paraphrased_of(literal, other)
    checks = paraphrased.judge([found]).checks
    assert verdict_of(checks) == expected
    assert sum(check.holds is not None for check in checks) == measured
    found.paraphrased = {}
    assert verdict_of(paraphrased.judge([found]).checks) == "not measured"


@pytest.mark.slow
def test_the_page_of_a_real_model_has_its_own_figures(tmp_path):
    found, _ = real_evidence()
    found.paraphrased = paraphrased_of(0.9, 0.3)
    kinds = ("top", "bottom", "random", "any_layer", "norm")
    rows = [{"metric": "recall", "kind": "none", "k": 0, "mean": 1.0, "low": 1.0, "high": 1.0}]
    rows += [{"metric": "recall", "kind": kind, "k": k, "mean": 0.2, "low": 0.1, "high": 0.3, "drop": 0.8, "draws": [0.2], "p_paired": 0.01,
              "p_rank": 0.5} for kind in kinds for k in (4, 8)]  # fmt: skip
    rows += [{**row, "metric": "perplexity"} for row in rows if row["kind"] not in ("any_layer", "norm")]
    modes = {mode: [row for row in rows if row["metric"] == "recall"] for mode in ("zero", "uniform", "mean")}
    found.ablation = {"name": "real", "heads": 64, "items": 9, "needles": 3, "mode": "zero", "near_paper": 4, "near_over": 8, "halved_at": 4,
                      "rows": rows, "modes": modes}  # fmt: skip
    controls = [{"name": "untrained", "why": "not run"}]
    result = json.loads(json.dumps(_result([found], controls, Settings(), RealSettings())))
    causal = next(one for one in result["properties"] if one["key"] == "causal")
    whats = [check["what"] for check in causal["checks"]]
    assert {f"random heads of {kind} cost less" for kind in ("any layer", "the same output norm")} <= set(whats)
    assert {"recall, mode uniform", "recall, mode mean"} <= set(whats)
    assert "paraphrased" in [one["key"] for one in result["properties"]]
    written = {path.name for path in write_page(result, tmp_path / "page.html", tmp_path / "figures")}
    assert {"modes-real.png", "paraphrased-real.png", "intrinsic-pairs.png", "ablation-real.png"} <= written
    text = (tmp_path / "page.html").read_text()
    assert "longer contexts" in text
    assert "real models: long_length" in text
