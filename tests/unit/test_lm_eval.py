"""lm-evaluation-harness on local task files, with a tiny model, offline."""

import json
import socket
import sys
from importlib.metadata import version

import pytest

from headwise.attention import ablate
from headwise.evaluation.lm_eval import run_lm_eval
from headwise.heads import HeadSet, HeadwiseError, MissingExtraError
from headwise.models.model import Model
from headwise.report.console import lm_eval_table
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer

pytestmark = pytest.mark.slow

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
TEXT = """
task: tiny_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}, cache_dir: {cache}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""
GROUP = """
group: tiny_group
task: [tiny_choice, tiny_text]
aggregate_metric_list: [{{metric: acc, filter_list: none}}]
"""


@pytest.fixture(scope="module")
def model():
    model = tiny_model("llama")
    return Model(model, character_tokenizer())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"what is {i} and {i + 2}?", "choices": [" one", " two", " six"], "label": i % 3} for i in range(9)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, text in (("choice", CHOICE), ("text", TEXT), ("group", GROUP)):
        (folder / f"{name}.yaml").write_text(text.format(rows=folder / "rows.jsonl", cache=folder / "cache"))
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def numbers(result):
    return result["results"]["tiny_text"]["bits_per_byte,none"], result["results"]["tiny_choice"]["acc,none"]


@pytest.mark.slow
def test_an_ablation_changes_the_numbers_and_is_recorded(model, folder):
    tokens = len(model.tokenizer)
    plain = run_lm_eval(model, ["tiny_choice", "tiny_text"], include_path=folder)
    heads = HeadSet.of([(0, i) for i in range(8)], model.heads.shape, "layer 0")
    with ablate(model.hf, heads, mode="zero", scope="all"):
        cut = run_lm_eval(model, ["tiny_choice", "tiny_text"], include_path=folder, heads=heads, mode="zero")
    assert plain["ablation"] is None
    assert cut["ablation"] == {"mode": "zero", "scope": "all", "heads": [f"L0H{i}" for i in range(8)], "chosen_by": "layer 0"}
    assert abs(numbers(plain)[0] - numbers(cut)[0]) > 1e-3
    assert all(0 <= numbers(result)[1] <= 1 for result in (plain, cut))
    assert numbers(run_lm_eval(model, ["tiny_choice", "tiny_text"], include_path=folder)) == numbers(plain)
    assert (plain["tasks"], plain["model_type"], plain["limit"]) == (["tiny_choice", "tiny_text"], "llama", None)
    json.dumps(cut, allow_nan=False)
    assert len(model.tokenizer) == tokens


def test_versions_of_packages_and_of_task_definitions_are_kept_apart(model, folder):
    result = run_lm_eval(model, ["tiny_choice"], limit=2, include_path=folder)
    assert set(result["versions"]) == {"headwise", "torch", "transformers", "numpy", "lm-eval"}
    assert result["versions"]["torch"] == version("torch")
    assert set(result["task_versions"]) == {"tiny_choice"}


def test_a_group_shows_all_metrics_of_all_its_tasks(model, folder):
    found = run_lm_eval(model, ["tiny_group"], limit=3, include_path=folder)
    assert set(found["results"]) == {"tiny_group", "tiny_choice", "tiny_text"}
    table = lm_eval_table([{"kind": "none", "k": 0, "draw": 0, **found}, {"kind": "random", "k": 2, "draw": 0, **found}])
    columns = {column.header: list(column.cells) for column in table.columns}
    tasks = [str(cell) for cell in columns["task"]]
    assert sorted(tasks[:3]) == ["tiny_choice", "tiny_group", "tiny_text"]
    assert columns["heads ablated"] == ["none", "", "", "random 2 (draw 1)", "", ""]
    choice, group, text = (tasks.index(name) for name in ("tiny_choice", "tiny_group", "tiny_text"))
    assert columns["acc"][choice] == columns["acc"][group] != ""
    assert (columns["acc"][text], columns["bits_per_byte"][choice]) == ("", "")
    assert float(columns["bits_per_byte"][text]) == pytest.approx(found["results"]["tiny_text"]["bits_per_byte,none"], rel=1e-3)


def test_limit(model, folder):
    result = run_lm_eval(model, ["tiny_choice"], limit=4, include_path=folder)
    assert result["n-samples"]["tiny_choice"]["effective"] == 4
    assert (result["limit"], result["tasks"]) == (4, ["tiny_choice"])


def test_wrong_input_is_refused(model, folder):
    heads = HeadSet.of([(0, 1)], model.heads.shape)
    with pytest.raises(HeadwiseError, match="lm-eval knows no task 'no_such_task'"):
        run_lm_eval(model, ["tiny_choice", "no_such_task"], include_path=folder)
    with pytest.raises(HeadwiseError, match="no ablate block is open"):
        run_lm_eval(model, ["tiny_choice"], include_path=folder, heads=heads, mode="zero")
    with pytest.raises(HeadwiseError, match="give both heads and mode"):
        run_lm_eval(model, ["tiny_choice"], include_path=folder, heads=heads)


def test_a_missing_extra_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"lm-eval is not installed; install it with: pip install 'headwise\[lm-eval\]'"):
        run_lm_eval(model, ["arc_easy"])
