"""`headwise lab properties`: verdicts follow from the data, on models whose heads are known and on made-up results."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from headwise.evaluation.variants import head_variants
from headwise.heads import HeadId, HeadScores, HeadSet, HeadwiseError, PromptError
from headwise.models.load import load
from headwise.models.model import Model
from headwise.models.names import bundled_model
from headwise.prompts.needles import read_needles
from headwise.testing.planted import planted_copier, planted_task
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from headwise_lab.properties import (
    answers,
    causal,
    control,
    detection,
    document,
    dynamic,
    intrinsic,
    reasoning,
    sparse,
    universal,
    verdict,
)
from headwise_lab.properties.detection import Evidence, needle_task
from headwise_lab.properties.lab_models import (
    EXTENDED,
    FAMILY,
    OTHER,
    SEED,
    TEXT,
    LabModel,
    bundled_names,
    choose_models,
    relation,
)
from headwise_lab.properties.run import measure_properties
from headwise_lab.properties.settings import Settings, near_share
from headwise_lab.properties.verdict import Check, verdict_of
from headwise_lab.report.page import page, write_page

DOCUMENT = Path(__file__).parents[2] / "docs" / "properties.md"
QUICK = Settings(lengths=(120, 5000), depths=2, needles=4, top=(1, 2), controls=3, ablation_length=120, ablation_depths=1, items=3, item_controls=2,
                 all_controls=2, step_length=120)  # fmt: skip


def check(holds, main=True):
    return Check("m", "what", "1", "rule", holds, main)


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ([], "not measured"),
        ([check(None)], "not measured"),
        ([check(True, main=False)], "not measured"),
        ([check(True), check(None)], "holds"),
        ([check(True), check(False, main=False)], "partly"),
        ([check(True), check(False)], "partly"),
        ([check(False), check(True, main=False)], "does not hold"),
    ],
)
def test_a_verdict_follows_from_its_checks(checks, expected):
    assert verdict_of(checks) == expected


def model_of(name, **recipe):
    return LabModel(name, "", {"rows": "world", "family": "llama", "start": None, **recipe})


def evidence(name, values, needles=6, runs=4, noise=0.0, seed=0, **recipe):
    """Runs scattered around given scores."""
    rng = np.random.default_rng(seed)
    table = np.clip(values + noise * rng.normal(size=(needles * runs, *values.shape)), 0, 1).astype(np.float32)
    info = tuple({"needle": i // runs} for i in range(len(table)))
    cells = [{"exact": True, "success": True, "recall": 1.0}] * len(table)
    provenance = {"runs": len(table), "solved": len(table), "cells": cells, "grid": {"lengths": [128]}}
    scores = HeadScores(table.mean(axis=0).astype(float), "copy", 1, table, info, provenance)
    return Evidence(model_of(name, **recipe), values.shape, 512, scores)


@pytest.fixture
def values():
    table = np.zeros((8, 8))
    table[3, 1], table[5, 6] = 0.9, 0.4
    return table


def test_relations_come_from_recipes():
    base, long = model_of("world-6m"), model_of("world-6m-long", start="world-6m")
    assert relation(base, long) == EXTENDED
    assert relation(model_of("other", seed=1), long) == SEED
    assert relation(base, model_of("q", family="qwen3")) == FAMILY
    assert relation(base, model_of("lab-6m", rows="needles")) == TEXT
    assert relation(base, LabModel("x", "")) == OTHER


def test_models_are_named_or_refused(tmp_path):
    assert [model.name for model in choose_models(())] == bundled_names()
    assert choose_models(["lab-6m", "lab-6m"])[0].recipe["rows"] == "needles"
    with pytest.raises(HeadwiseError, match=r"unknown model 'lab-7m'.*did you mean .*lab-6m"):
        choose_models(["lab-7m"])
    assert not choose_models(["lab-6m"])[0].real
    with pytest.raises(HeadwiseError, match="same name"):
        choose_models(["lab-6m", f"{bundled_model()}/../lab-6m"])


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.05, 4), (0.1, 8), (0.9, 16), (3 / 64, 2)])
def test_the_number_of_heads_nearest_to_a_share(share, expected):
    assert near_share((1, 2, 4, 8, 16), 64, share) == expected


def test_settings_are_checked():
    with pytest.raises(HeadwiseError, match="seed must be 0 or more"):
        Settings(seed=-1)
    with pytest.raises(HeadwiseError, match="items must be at least 1"):
        Settings(items=0)
    assert Settings(seed=4).quick().seed == 4


def test_universal_counts_models_with_heads(values):
    good, bad = evidence("a", values), evidence("b", values * 0.1)
    assert verdict_of(universal.judge([good, replace(good, model=model_of("c"))]).checks) == "holds"
    assert verdict_of(universal.judge([good]).checks) == "partly"
    assert verdict_of(universal.judge([bad]).checks) == "does not hold"
    unsolved = Evidence(model_of("d"), (8, 8), 512, why="no successful run")
    found = universal.judge([unsolved])
    assert verdict_of(found.checks) == "not measured"
    assert found.checks[0].note == "no successful run"


def test_sparse_depends_on_the_share(values):
    assert verdict_of(sparse.judge([evidence("a", values)]).checks) == "holds"
    assert verdict_of(sparse.judge([evidence("a", np.clip(values + np.eye(8) * 0.3, 0, 1))]).checks) == "partly"
    assert verdict_of(sparse.judge([evidence("a", np.full((8, 8), 0.5), noise=0.01)]).checks) == "does not hold"


def test_intrinsic_tells_a_continuation_from_another_model(values):
    rng = np.random.default_rng(0)
    base = evidence("world-6m", values, noise=0.1)
    long = evidence("world-6m-long", values, noise=0.1, seed=1, start="world-6m")
    shuffled = evidence("other", rng.permutation(values.ravel()).reshape(8, 8), noise=0.1, seed=2)
    found = intrinsic.judge([base, long, shuffled], 0)
    assert verdict_of(found.checks) == "holds"
    pair = next(pair for pair in found.data["pairs"] if pair["relation"] == EXTENDED)
    assert pair["pearson"] > 0.95
    assert 0.9 < pair["ceiling"] <= 1
    assert pair["shuffled"][0] < pair["shuffled"][1] < pair["pearson"]
    assert verdict_of(intrinsic.judge([base, shuffled], 0).checks) == "not measured"
    stranger = replace(shuffled, model=long.model)
    assert verdict_of(intrinsic.judge([base, stranger], 0).checks) == "does not hold"


def test_reliability_grows_with_needles_and_falls_with_noise(values):
    clear, noisy = (intrinsic.reliability(evidence("a", values, needles=8, noise=n), 0) for n in (0.05, 1.5))
    assert noisy < clear <= 1
    assert np.isnan(intrinsic.reliability(evidence("a", values, needles=2), 0))


def test_jaccard_by_hand():
    sets = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0], [0, 0, 0]], dtype=bool)
    assert dynamic.jaccard(sets)[0].tolist() == pytest.approx([1, 1 / 3, 0, 0])
    assert dynamic.jaccard(sets)[2, 3] == 1


def test_context_dependence_is_seen_only_where_it_is():
    rng = np.random.default_rng(0)
    info = tuple({"needle": i // 5} for i in range(30))
    by_needle = np.repeat(rng.random((6, 2, 8)) < 0.5, 5, axis=0).astype(np.float32)
    by_chance = (rng.random((30, 2, 8)) < 0.5).astype(np.float32)
    for runs, least, most in ((by_needle, 0.0, 0.01), (by_chance, 0.02, 1.0)):
        found = dynamic.context_dependence(HeadScores(runs.mean(axis=0).astype(float), "copy", 1, runs, info), 0)
        assert least < found["p"] <= most
    one = HeadScores(by_chance.mean(axis=0).astype(float), "copy", 1, by_chance, tuple({"needle": 0} for _ in info))
    assert dynamic.context_dependence(one, 0) == {}


def ablation_rows(top, random):
    """A summary with needle recall 1 for the whole model."""
    rows = [{"metric": m, "kind": "none", "k": 0, "mean": 1.0, "low": 1.0, "high": 1.0} for m in ("recall", "perplexity")]
    for k in (4, 8):
        for kind, mean in (("top", top), ("random", random), ("bottom", 1.0)):
            row = {"metric": "recall", "kind": kind, "k": k, "mean": mean, "low": mean, "high": mean, "drop": 1 - mean}
            rows += [row | {"p_paired": 0.01, "p_rank": 0.04, "draws": [mean] * 20}]
            rows += [{"metric": "perplexity", "kind": kind, "k": k, "mean": 1.05, "draws": [1.05]}]
    return rows


@pytest.mark.parametrize(
    ("top", "random", "expected"), [(0.1, 0.95, "holds"), (0.1, 0.5, "partly"), (0.9, 0.9, "does not hold"), (0.0, 0.7, "holds")]
)
def test_causal_needs_a_loss_that_random_heads_do_not_cause(values, top, random, expected):
    found = evidence("a", values)
    halved = 4 if top < 0.5 else None
    found.ablation = {"name": "a", "heads": 64, "items": 9, "needles": 3, "near_paper": 4, "near_over": 8, "halved_at": halved,
                      "rows": ablation_rows(top, random)}  # fmt: skip
    assert verdict_of(causal.judge([found]).checks) == expected
    assert verdict_of(causal.judge([evidence("b", values)]).checks) == "not measured"


def reasoning_of(name, whole, top):
    """Tasks with 40 questions; whole and top: shares right of written steps and of facts known by heart."""
    tasks = []
    for task, before, after in (("steps", whole[0], top[0]), ("closed_book", whole[1], top[1]), ("direct", 0.1, 0.1)):
        right = {kind: (np.arange(40) < share * 40).astype(float).tolist() for kind, share in (("none", before), ("top", after))}
        rows = [{"metric": "exact", "kind": "none", "k": 0, "mean": before}]
        rows += [{"metric": "exact", "kind": kind, "k": 8, "mean": mean, "p_paired": 0.001, "low": mean, "high": mean, "draws": [mean]}
                 for kind, mean in (("top", after), ("random", before), ("bottom", before))]  # fmt: skip
        means = {"none": [before], "top": [after], "random": [before]}
        tasks.append({"task": task, "scope": "answer", "items": 40, "rows": rows, "right": right, "means": means, "samples": []})
    return {"name": name, "k": 8, "heads": 64, "tasks": tasks}


@pytest.mark.parametrize(
    ("whole", "top", "expected"),
    [
        ((0.9, 1.0), (0.1, 1.0), "holds"),
        ((0.9, 1.0), (0.1, 0.5), "partly"),
        ((0.9, 1.0), (0.9, 0.5), "does not hold"),
        ((0.2, 1.0), (0.0, 1.0), "not measured"),
    ],
)
def test_reasoning_compares_steps_with_memory(values, whole, top, expected):
    found = evidence("a", values)
    found.reasoning = reasoning_of("a", whole, top)
    assert verdict_of(reasoning.judge([found], 0).checks) == expected


def test_weak_heads_that_break_written_steps_are_told(values):
    found = evidence("a", values)
    found.reasoning = reasoning_of("a", (0.9, 1.0), (0.1, 1.0))
    steps = found.reasoning["tasks"][0]
    next(row for row in steps["rows"] if row["kind"] == "bottom")["mean"] = 0.2
    checks = reasoning.judge([found], 0).checks
    weakest = next(check for check in checks if check.what == "two-hop with steps, weakest heads")
    assert (weakest.value, weakest.holds, weakest.main) == ("0.90 → 0.20", False, False)
    assert verdict_of(checks) == "partly"


def test_direct_answers_below_the_floor_are_not_judged(values):
    found = evidence("a", values)
    found.reasoning = reasoning_of("a", (0.9, 1.0), (0.1, 1.0))
    direct = next(check for check in reasoning.judge([found], 0).checks if check.what == "two-hop, direct")
    assert direct.holds is None
    assert "answers only 0.10" in direct.note


@pytest.fixture(scope="module")
def tiny():
    model = tiny_model("llama", max_position_embeddings=2048)
    return Model(model, character_tokenizer())


@pytest.mark.parametrize("scope", ["answer", "all"])
def test_answers_without_heads_are_those_of_one_set_at_a_time(tiny, scope):
    quiz = answers.lab_quiz(tiny, "closed_book", 2, 0)
    scores = HeadScores(np.random.default_rng(0).random((4, 8)), "copy")
    sets = [variant.heads for variant in head_variants(scores, (4,), 2, 0)]
    found = answers.answer_items(tiny, quiz, sets, "zero", scope)
    assert found.marks.shape == (len(sets), 2, 1)
    for row, heads in enumerate(sets):
        alone = answers.answer_items(tiny, quiz, [heads], "zero", scope)
        assert alone.text[0] == found.text[row]
        assert alone.logprob[0] == pytest.approx(found.logprob[row], abs=1e-3)
    assert len({round(float(value), 4) for value in found.logprob[:, 0]}) > 2
    whole = answers.answer_items(tiny, quiz, [HeadSet((), (4, 8))], "zero", scope)
    assert whole.text[0] == found.text[0]


def test_items_are_new_and_of_the_test_split(tiny):
    items = answers.draw_items(tiny, "steps", 4, 0)
    assert len({item.example.context_text for item in items}) == 4
    assert {item.example.split for item in items} == {"test"}
    assert all("So:" in item.example.turns[-1].answer_text for item in items)
    assert (
        answers.draw_items(tiny, "steps", 4, 0)[0].prompt == items[0].prompt != answers.draw_items(tiny, "steps", 4, 1)[0].prompt
    )


def test_an_untrained_copy_leaves_the_model_and_the_seed_alone(tiny):
    before, state = tiny.hf.lm_head.weight.clone(), torch.get_rng_state()
    copy = control.untrained(tiny, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(tiny.hf.lm_head.weight, before)
    assert not torch.equal(copy.hf.lm_head.weight, before)
    assert torch.equal(copy.hf.lm_head.weight, control.untrained(tiny, 0).hf.lm_head.weight)


def test_missing_stories_are_a_reason(tmp_path):
    with pytest.raises(HeadwiseError, match=r"no stories260K in .*; give its folder with --stories"):
        control.load_stories(tmp_path)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The planted model in a folder."""
    folder = tmp_path_factory.mktemp("planted") / "planted"
    model, tokenizer = planted_copier(layers=3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def own_texts(monkeypatch, tmp_path):
    """Needles and a haystack that the planted model can read, in place of the bundled ones; no stories260K."""
    task = planted_task()
    (tmp_path / "needles.jsonl").write_text("\n".join(json.dumps(dict(needle)) for needle in task.needles))
    needles = read_needles(tmp_path / "needles.jsonl")
    monkeypatch.setattr(detection, "bundled_needles", lambda split: needles[:4] if split == "detect" else needles[4:])
    monkeypatch.setattr(detection, "bundled_texts", lambda: list(task.texts))
    monkeypatch.setattr(control, "STORIES", tmp_path / "none")


def test_lengths_that_do_not_fit_are_left_out(planted, own_texts):
    model = load(str(planted))
    assert needle_task(model, "detect", (120, 5000), (0.5,), QUICK).grid.lengths == (120,)
    with pytest.raises(PromptError, match="no context length of"):
        needle_task(model, "detect", (5000,), (0.5,), QUICK)


@pytest.mark.slow
def test_the_planted_head_is_found_removed_and_reported(planted, own_texts, tmp_path):
    models = [LabModel("planted", str(planted))]
    result = measure_properties(models, QUICK, work=tmp_path / "work", heads=tmp_path / "heads")
    found = {one["key"]: one for one in result["properties"]}
    assert [row["head"] for row in found["universal"]["data"]["models"][0]["top"][:1]] == [str(HeadId(1, 2))]
    assert found["universal"]["data"]["models"][0]["over_0.1"] == 1
    assert found["causal"]["data"]["models"][0]["halved_at"] == 1
    steps = found["dynamic"]["data"]["models"][0]["steps"]
    assert steps["heads"] == ["L1H2"]
    assert all(active == [0] for answer in steps["answers"] for active in answer["active"])
    assert found["control"]["verdict"] == "holds"
    assert found["intrinsic"]["verdict"] == found["reasoning"]["verdict"] == "not measured"
    assert (tmp_path / "heads" / "planted.json").is_file()
    again = measure_properties(models, QUICK, work=tmp_path / "work")
    assert json.dumps(again, sort_keys=True) == json.dumps(result, sort_keys=True)
    assert again["settings"]["seed"] == 0
    json.dumps(result, allow_nan=False)
    paths = write_page(result, tmp_path / "page.html", tmp_path / "figures")
    assert all(path.stat().st_size > 1000 for path in paths)


def made_up(values):
    """A whole result without any model."""
    from headwise_lab.properties.run import _result

    found = evidence("<b>world</b>-6m", values, noise=0.1)
    found.ablation = {"name": found.name, "heads": 64, "items": 9, "needles": 3, "near_paper": 4, "near_over": 8, "halved_at": 4,
                      "rows": ablation_rows(0.1, 0.9)}  # fmt: skip
    found.reasoning = reasoning_of(found.name, (0.9, 1.0), (0.1, 1.0))
    found.reasoning["tasks"][0]["samples"] = [
        {"context": "a <i> b", "question": "q & a?", "gold": "x", "none": "x", "top": "</p>"}
    ]
    controls = [{"name": "untrained", "runs": 4, "solved": 0, "over_0.1": 0, "forced_max": 0.02, "forced_over_0.1": 0}]
    return json.loads(json.dumps(_result([found], controls, Settings())))


class Tags(HTMLParser):
    """Open tags, ids and links of a document."""

    VOID = ("meta", "br", "img", "use", "path", "rect", "image")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.seen = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[name] for name in ("href", "src", "xlink:href") if name in values]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(values, tmp_path):
    result = made_up(values)
    text = write_page(result, tmp_path / "page.html")[0].read_text()
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    assert len(set(tags.ids)) == len(tags.ids)
    assert all(link.startswith("#") and link[1:] in tags.ids for link in tags.links)
    assert not {"script", "img", "link", "iframe"} & set(tags.seen)
    assert "url(http" not in text
    assert "@import" not in text
    assert "<b>world</b>" not in text
    assert "&lt;b&gt;world&lt;/b&gt;-6m" in text
    assert "a &lt;i&gt; b" in text
    assert "prefers-color-scheme:dark" in text
    assert 'name="viewport"' in text
    assert tags.seen.count("svg") == tags.seen.count("figure") >= 8
    assert not re.search(r"#ffffff|#222222", text.split("</style>")[1], re.IGNORECASE)


def test_a_page_without_figures_still_tells_its_verdicts(values):
    text = page(made_up(values), {})
    for one in ("Universal", "Sparse", "Intrinsic", "Dynamic", "Causal", "Reasoning", "Negative control"):
        assert f"<b>{one}</b>" in text


def test_the_document_is_filled_and_filled_again(values):
    result = made_up(values)
    once = document.fill(DOCUMENT.read_text(), result)
    assert document.fill(once, result) == once
    for one in result["properties"]:
        assert f"Verdict: **{one['verdict']}**" in once
    assert "No result has been filled in yet" not in once
    assert "| controls | 20 |" in once
    with pytest.raises(HeadwiseError, match="no result of"):
        document.fill(once, {"summary": []})
    with pytest.raises(HeadwiseError, match="block 'nothing'"):
        document.fill("<!-- properties: nothing -->\n<!-- end -->", result)


def test_the_document_is_written_by_its_command(values, tmp_path, monkeypatch):
    (tmp_path / "result.json").write_text(json.dumps(made_up(values)))
    (tmp_path / "doc.md").write_text(DOCUMENT.read_text())
    monkeypatch.setattr("sys.argv", ["document", str(tmp_path / "result.json"), str(tmp_path / "doc.md")])
    document.main()
    assert "Verdict: **" in (tmp_path / "doc.md").read_text()
    (tmp_path / "result.json").write_text("[")
    with pytest.raises(SystemExit, match="was not written into"):
        document.main()


def test_wrong_input_is_one_line(monkeypatch, capsys, tmp_path):
    from headwise.cli.main import run

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "properties.json").write_text("{}")
    (tmp_path / "file").write_text("")
    for arguments, part in (
        (["lab-7m", "-o", "out"], "unknown model 'lab-7m'"),
        (["lab-6m", "--data", "nowhere", "-o", "out"], "no relations in nowhere"),
        (["--seed", "-1", "-o", "out"], "seed must be 0 or more"),
        (["-o", "old"], "properties.json exists"),
        (["-o", "file"], "file is a file"),
        (["--stories", "nowhere", "-o", "out"], "no stories260K in nowhere"),
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["headwise", "lab", "properties", *arguments])
        with pytest.raises(SystemExit) as stopped:
            run()
        lines = capsys.readouterr().err.strip().splitlines()
        assert (stopped.value.code, len(lines)) == (2, 1), (arguments, lines)
        assert lines[0].startswith("headwise: error:")
        assert part in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_range_is_short():
    assert verdict.span_of([0.5]) == "0.50"
    assert verdict.span_of([0.5, 0.25]) == "0.25–0.50"
