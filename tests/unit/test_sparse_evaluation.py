"""Quality of sparse decoding: equal to full attention where the budget holds everything, ordered as it must be elsewhere, and resumable."""

import numpy as np
import pytest
import torch

from headwise.cli.choosers import chooser_of
from headwise.cli.options import installed
from headwise.evaluation.contexts import Context, Question
from headwise.evaluation.sparse import Rival, Running, measure_cells
from headwise.evaluation.sparse_rows import mean_rows
from headwise.evaluation.tasks import ENTRIES, json_extraction_contexts
from headwise.heads import HeadwiseError
from headwise.models.load import load
from headwise.models.names import bundled_model
from headwise.prompts.records import as_json, overlap_of_records, read_records
from headwise.runtime.rundir import RunDirectory

GOLD = {"Ada Lin": "123", "Bo Ruz": "456", "Cy Tal": "789"}
HEADS = [(0, 0), (1, 1)]


@pytest.fixture(scope="module")
def model():
    return load(str(bundled_model()))


def ids_of(model, count, seed=0):
    size = model.hf.config.vocab_size
    return tuple(np.random.default_rng(seed).integers(10, size, count).tolist())


def rival(model, name, budget):
    return Rival(name, budget, lambda: chooser_of(name, model, HEADS))


def measure_sparse(model, rivals, *given, **more):
    """Mean rows of a run."""
    return mean_rows(measure_cells(model, rivals, *given, **more), [(one.name, one.budget) for one in rivals])


@pytest.mark.parametrize(
    ("said", "score"),
    [
        (as_json(GOLD), 1.0),
        (as_json(dict(reversed(GOLD.items()))), 1.0),
        (as_json({"Ada Lin": "123", "Bo Ruz": "456"}), 2 / 3),
        (as_json(GOLD | {"Dee Om": "111"}), 3 / 4),
        (as_json(GOLD | {"Cy Tal": "788"}), 2 / 4),
        (as_json(GOLD)[:-5], 2 / 3),
        ('{"name":"Ada Lin","number":"123"}', 1 / 3),
        ("Ada Lin: 123", 0.0),
        ("", 0.0),
    ],
)
def test_records_are_scored_by_intersection_over_union(said, score):
    assert overlap_of_records(said, GOLD) == pytest.approx(score)


def test_a_record_that_is_written_twice_counts_once():
    assert len(read_records(as_json(GOLD) * 2)) == 3


@pytest.mark.slow
def test_json_extraction_asks_for_ten_records_of_the_text(model):
    [context] = json_extraction_contexts(model, "json_extraction", 1280, 1, seed=3)
    [question] = context.questions
    wanted, text = read_records(question.gold), model.tokenizer.decode(context.ids)
    assert len(wanted) == ENTRIES == len(question.places)
    assert all(f"{name}: {number}" in text for name, number in wanted)
    assert not wanted & read_records(model.tokenizer.decode(question.rest))
    assert question.judge(question.gold) == 1.0
    assert [context.ids, question.rest] == [
        (again := json_extraction_contexts(model, "json_extraction", 1280, 1, seed=3)[0]).ids, again.questions[0].rest,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["streaming", "random", "oracle", "previous_query", "pages", "anchor_layers", "retrieval_heads", "refresh_every"]
)
def test_a_budget_above_the_context_is_full_attention(model, name):
    running = Running(90, ids_of(model, 90), 12)
    full, row = measure_sparse(model, [rival(model, name, 200)], [running], HEADS)
    assert (full["agreement"], row["agreement"], row["perplexity_ratio"]) == (1.0, 1.0, 1.0)
    assert (row["mass"], row["mass_heads"], row["recall"]) == (1.0, 1.0, None)
    assert row["bytes_read"] == row["bytes_full"] == full["bytes_full"]


def test_the_oracle_keeps_more_than_chance_and_reads_the_budget(model):
    running = Running(300, ids_of(model, 300), 8)
    full, oracle, random = measure_sparse(model, [rival(model, name, 48) for name in ("oracle", "random")], [running], HEADS)
    assert random["mass"] < oracle["mass"] < 1
    assert random["recall"] == pytest.approx(random["recall_by_chance"], abs=0.1)
    assert oracle["recall"] > 0.8
    assert random["overlap"] < oracle["overlap"]
    layers, groups = len(model.heads.full_layers), model.heads.kv_heads
    width = (
        model.hf.config.head_dim
        if getattr(model.hf.config, "head_dim", None)
        else model.hf.config.hidden_size // model.heads.shape[1]
    )
    assert oracle["bytes_read"] == layers * groups * 48 * 2 * width * 4
    assert full["bytes_read"] == full["bytes_full"] == oracle["bytes_full"]
    assert 0 < oracle["bytes_moved"] < oracle["bytes_read"]
    assert full["bytes_chosen_by"] == random["bytes_chosen_by"] == 0
    assert oracle["bytes_chosen_by"] == oracle["bytes_full"] / 2  # keys without values
    assert len(oracle["recall_by_layer"]) == layers
    assert np.mean(oracle["recall_by_layer"]) == pytest.approx(oracle["recall"])


def test_layers_that_read_everything_have_no_recall(model):
    [_, row] = measure_sparse(model, [rival(model, "anchor_layers:every=2", 48)], [Running(120, ids_of(model, 120), 4)])
    layers = len(model.heads.full_layers)
    assert [value is None for value in row["recall_by_layer"]] == [i % 2 == 0 for i in range(layers)]


def asked(model, judge):
    question = Question(ids_of(model, 4, 5), 3, judge, None)
    return Context("toy", 100, ids_of(model, 96), (question,), frozenset())


def test_answers_equal_the_full_model_where_all_fits_and_are_not_asked_where_it_fails(model):
    said = []
    [_, row] = measure_sparse(model, [rival(model, "pages", 200)], [asked(model, lambda text: said.append(text) or 1.0)])
    assert said[0] == said[1] != ""
    assert (row["score"], row["full_score"], row["gate"]) == (1.0, 1.0, "passed")
    said.clear()
    [full, row] = measure_sparse(model, [rival(model, "pages", 200)], [asked(model, lambda text: said.append(text) or 0.2)])
    assert len(said) == 1
    assert (full["score"], full["gate"], row["gate"]) == (0.2, "not testable", "not testable")
    assert "score" not in row


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(model, tmp_path):
    contexts, seen = [Running(120, ids_of(model, 120), 6)], []
    rivals = [rival(model, name, 48) for name in ("streaming", "pages")]
    whole = measure_sparse(model, rivals, contexts)
    directory = RunDirectory(tmp_path / "run", {"a": 1})
    measure_sparse(model, rivals[:1], contexts, directory=directory)
    made = [Rival(one.name, one.budget, lambda one=one: seen.append(one.name) or one.make()) for one in rivals]
    assert measure_sparse(model, made, contexts, directory=directory) == whole
    assert seen == ["pages"]


@pytest.mark.slow
def test_cells_are_kept_per_context_and_rows_are_their_means(model):
    contexts = [Running(120, ids_of(model, 120, seed), 6) for seed in range(3)]
    rivals = [rival(model, name, 48) for name in ("streaming", "oracle")]
    cells = measure_cells(model, rivals, contexts)
    assert [(cell["chooser"], cell["budget"], cell["context"]) for cell in cells] == [
        ("full", None, 0), ("full", None, 1), ("full", None, 2),
        *((name, 48, i) for i in range(3) for name in ("streaming", "oracle")),
    ]  # fmt: skip
    assert all(isinstance(value, int | float | str | None) for cell in cells for name, value in cell.items() if name != "recall_by_layer")
    rows = mean_rows(cells, [("streaming", 48), ("oracle", 48)])
    assert rows == measure_sparse(model, rivals, contexts)
    own = [cell for cell in cells if cell["chooser"] == "oracle"]
    assert rows[2]["mass"] == pytest.approx(np.mean([cell["mass"] for cell in own]))
    change = [cell["loss"] - cell["full_loss"] for cell in own]
    assert rows[2]["perplexity_ratio"] == pytest.approx(np.exp(np.mean(change)))
    low, high = rows[2]["perplexity_ratio_interval"]
    assert np.exp(min(change)) <= low <= rows[2]["perplexity_ratio"] <= high <= np.exp(max(change))
    low, high = rows[1]["mass_interval"]
    assert low < rows[1]["mass"] < high


def made_up(context, chooser, **numbers):
    return {"task": "toy", "length": 9, "context": context, "chooser": chooser, "budget": None if chooser == "full" else 5} | numbers


def test_means_of_made_up_cells():
    cells = [made_up(i, "full", score=1.0) for i in range(2)]
    cells += [made_up(0, "a", score=0.0, recall=None, by=[0.2, None]), made_up(1, "a", score=1.0, recall=0.5, by=[0.4, None])]
    full, one, other = mean_rows(cells, [("a", 5), ("b", 5)])
    assert (full["gate"], one["gate"], other["gate"]) == ("passed",) * 3
    assert not {"score", "score_interval"} & other.keys()
    assert (one["score"], one["recall"], one["by"]) == (0.5, 0.5, [pytest.approx(0.3), None])
    assert (one["score_interval"], one["recall_interval"]) == ([0.0, 1.0], None)  # a single context has no interval
    assert mean_rows(cells[:1], [("a", 5)])[0]["score_interval"] is None
    assert mean_rows(cells[:2], [("a", 5)])[1]["gate"] == "not testable"


@pytest.mark.slow
def test_greedy_text_is_decoded_freely(model, tmp_path):
    """Against a plain loop over the model; where the budget holds all of it, nothing changes."""
    ids, steps = ids_of(model, 120, 1), 30
    context = Running(120, ids, steps, free=True)
    directory = RunDirectory(tmp_path / "run", {"a": 1})
    rivals = [rival(model, "pages", 200), rival(model, "random", 40)]
    full, same, other = measure_sparse(model, rivals, [context], directory=directory)
    text = list(ids[: 120 - steps - 1])
    with torch.no_grad():
        for _ in range(steps + 1):
            text.append(int(model.hf(torch.tensor([text])).logits[0, -1].argmax()))
    assert directory.load("greedy-120-0-full")[1][0]["choices"] == text[-steps:]
    for row in (full, same):
        assert (row["task"], row["agreement_greedy"], row["equal_greedy"], row["agreement_greedy_interval"]) == ("greedy", 1.0, 1.0, None)
    assert 0 < other["agreement_greedy"] <= other["equal_greedy"] < 1
    assert "mass" not in other
    assert other["bytes_read"] < full["bytes_read"]


def test_choosers_by_name(model):
    assert chooser_of("pages:size=8", model).name == "pages"
    assert set(installed("choosers")) >= {
        "distilled",
        "streaming",
        "random",
        "oracle",
        "previous_query",
        "pages",
        "anchor_layers",
        "retrieval_heads",
        "refresh_every",
    }
    for text, part in (
        ("page", "use pages"), ("pages:width=3", "no option 'width'"), ("pages:size=x", "whole number"), ("pages:size=0", "at least one"),
        ("oracle:a=1", "it has none"), ("pages:size=1,size=2", "twice"), ("retrieval_heads", "needs heads"), ("small_model", "model=NAME"),
        ("distilled", "file=FILE"), ("distilled:file=nothing", "no such file"), ("distilled:stretch=1", "yes or no"),
    ):  # fmt: skip
        with pytest.raises(HeadwiseError, match=part):
            chooser_of(text, model)
