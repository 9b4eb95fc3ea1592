"""Every command on real input."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from headwise.heads import HeadId, HeadScores, load_heads, save_heads
from tests.cli.test_refusals import check_refused


@pytest.mark.slow
def test_detect_finds_the_planted_head_and_draws_it(planted, headwise, tmp_path):
    done = headwise("detect", planted.model, *planted.own, "--lengths", "90,120", "--depths", "3")
    assert done.code == 0, done.err
    path = tmp_path / "headwise-out" / "model.copy.json"
    scores = load_heads(path)
    assert scores.ranking()[0] == HeadId(1, 2)
    assert scores.values[1, 2] > 0.9
    assert len(scores.runs) == 2 * 3 * 8
    assert path.with_suffix(".heatmap.png").read_bytes().startswith(b"\x89PNG")
    assert "L1H2" in done.out
    assert not path.with_name(path.name + ".run").exists()


@pytest.mark.slow
def test_detect_options_reach_the_run(planted, headwise, tmp_path):
    common = ["detect", planted.model, *planted.own, "--lengths", "90", "--depths", "2", "--json"]
    plain = json.loads(headwise(*common, "-o", "a.json").out)
    assert plain["top"][0]["head"] == "L1H2"
    headwise(
        *common,
        "-o",
        "b.json",
        "--rule",
        "multiset",
        "--match",
        "position",
        "--min-recall",
        "0.2",
        "--max-new-tokens",
        "9",
        "--seed",
        "3",
    )
    options = load_heads(tmp_path / "b.json").provenance["options"]
    assert options == {
        "rule": "multiset", "match": "position", "min_recall": 0.2, "max_new_tokens": 9, "ignore_eos": False, "until_stable": False
    }
    assert load_heads(tmp_path / "b.json").provenance["grid"]["seed"] == 3
    headwise(*common, "-o", "c.json", "--template", "{context}\nquestion: {question}\nanswer: {answer_prefix}")
    assert load_heads(tmp_path / "c.json").provenance["template"].startswith("{context}\nquestion")


@pytest.mark.slow
def test_paper_grid_has_twenty_lengths_ten_depths_three_needles(planted, headwise, tmp_path):
    done = headwise("detect", planted.model, *planted.own, "--paper-grid", "-o", "p.json", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["runs"] == 600
    assert len({cell["length"] for cell in load_heads(tmp_path / "p.json").provenance["cells"]}) == 20


@pytest.mark.slow
def test_needle_measures_the_grid(planted, headwise, tmp_path):
    done = headwise("needle", planted.model, *planted.own, "--lengths", "90", "--depths", "3", "-o", "n.json", "--json")
    result = json.loads(done.out)
    assert result["exact"] > 0.9
    assert result["runs"] == 24
    assert (tmp_path / "n.png").exists()
    shown = headwise("show", "n.json", "--json")
    assert json.loads(shown.out)["exact"] == result["exact"]


@pytest.mark.slow
def test_show_draws_all_pictures(heads, headwise, tmp_path):
    done = headwise("show", heads, "-o", tmp_path / "pictures", "--format", "svg", "--top", "3")
    assert done.code == 0, done.err
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["planted.distribution.svg", "planted.grid.svg", "planted.heatmap.svg"]
    assert "L1H2" in done.out


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["zero", "uniform", "mean"])
def test_ablation_of_the_planted_head_ends_recall(planted, heads, headwise, tmp_path, mode):
    done = headwise(
        "ablate", planted.model, *planted.own, "--heads", heads, "--top", "1", "--mode", mode, "--lengths", "90", "--depths", "2",
        "--controls", "3", "--max-new-tokens", "8", "-o", "a.json", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = {(row["metric"], row["kind"], row["k"]): row["mean"] for row in json.loads(done.out)["summary"]}
    assert rows["recall", "none", 0] > 0.9
    assert rows["recall", "top", 1] < 0.2
    assert rows["recall", "random", 1] > 0.9
    assert (tmp_path / "a.png").exists()
    assert headwise("show", "a.json").code == 0


@pytest.mark.slow
def test_perplexity_can_be_left_out(planted, heads, headwise, tmp_path, monkeypatch):
    from headwise.evaluation import perplexity

    monkeypatch.setattr(perplexity, "window_losses", None)  # nothing may call it
    done = headwise(
        "ablate", planted.model, *planted.own, "--heads", heads, "--top", "1", "--lengths", "90", "--depths", "1",
        "--controls", "1", "--no-perplexity", "-o", "a.json", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert {row["metric"] for row in json.loads(done.out)["summary"]} == {"recall", "exact", "logprob"}
    assert headwise("show", "a.json").code == 0


def test_export_writes_a_plain_checkpoint(planted, heads, headwise, tmp_path):
    done = headwise("export", planted.model, "--heads", heads, "--top", "1", "--mode", "zero", "-o", tmp_path / "without")
    assert done.code == 0, done.err
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (planted.model, tmp_path / "without"))
    width = before.config.head_dim
    columns = slice(2 * width, 3 * width)
    assert torch.count_nonzero(after.model.layers[1].self_attn.o_proj.weight[:, columns]) == 0
    assert torch.equal(before.model.layers[0].self_attn.o_proj.weight, after.model.layers[0].self_attn.o_proj.weight)


def test_convert_there_and_back(heads, headwise, tmp_path):
    assert headwise("convert", heads, "wu.json", "--to", "wu").code == 0
    assert headwise("convert", "wu.json", "back.json").code == 0
    np.testing.assert_allclose(load_heads(tmp_path / "back.json").values, load_heads(heads).values, atol=1e-5)


def test_convert_keeps_tables_or_says_what_is_left_out(headwise, tmp_path):
    save_heads(HeadScores(np.arange(8.0).reshape(2, 4), "gate", provenance={"model": "m"}, tables={"lift": np.ones((2, 4))}), tmp_path / "a.json")
    assert headwise("convert", "a.json", "b.json").out == "b.json: 2 layers x 4 heads, gate score, format headwise\n"
    assert load_heads(tmp_path / "b.json") == load_heads(tmp_path / "a.json")
    said = headwise("convert", "a.json", "c.json", "--to", "wu").out.splitlines()
    assert said[1] == "left out, because format wu has no place for it: table lift, provenance"
    assert json.loads(headwise("convert", "a.json", "d.tsv", "--to", "duo", "--json").out)["left_out"] == ["table lift", "provenance"]


@pytest.mark.slow
def test_convert_states_the_shape_of_bare_lists_and_of_kv_tables(planted, headwise, tmp_path):
    (tmp_path / "list.json").write_text('{"1-2": [0.5], "0-1": [0.25]}')
    assert "2 x 3 is a guess; state the model's with --shape LAYERSxHEADS" in headwise("convert", "list.json", "a.json").out
    assert "the shape is a guess from the heads that the file lists" in headwise("show", "list.json").out
    told = json.loads(headwise("show", "list.json", "--json").out)
    assert (told["shape_guessed"], told["tables"]) == (True, [])
    said = headwise("export", planted.model, "-o", "out", "--heads", "list.json", "--top", "1").err
    assert "headwise convert FILE NEW.json --shape 2x4" in said
    assert json.loads(headwise("convert", "list.json", "b.json", "--shape", "2x4", "--json").out)["shape_guessed"] is False
    assert headwise("export", planted.model, "-o", "out", "--heads", "b.json", "--top", "1").code == 0
    (tmp_path / "kv.tsv").write_text("0.5\t1\n0.25\t0\n")
    assert headwise("convert", "kv.tsv", "kv.json").code == 0
    said = headwise("ablate", planted.model, *planted.own, "--heads", "kv.json", "--top", "1", "--lengths", "120").err
    assert "headwise convert FILE NEW.json --group 2" in said, said
    for file in ("kv.tsv", "kv.json"):  # also a table that was converted before
        assert headwise("convert", file, f"wide-{file}.json", "--group", "2").code == 0
        assert load_heads(tmp_path / f"wide-{file}.json").values.tolist() == [[0.5, 0.5, 1, 1], [0.25, 0.25, 0, 0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "2"], "--shape takes layers x query heads, like 32x32; got '2'"),
        (["--shape", "2x0"], "--shape takes layers x query heads"),
        (["--shape", "9999999x9999999"], "no model has"),
        (["--shape", "1x4"], "they cannot stand for 1 x 4"),
        (["--group", "2"], "of query heads already"),
        (["--group", "0"], "the group must be at least 1"),
    ],
)
def test_convert_refuses_in_one_line(headwise, tmp_path, options, message):
    (tmp_path / "list.json").write_text('{"1-2": [0.5], "0-1": [0.25]}')
    done = headwise("convert", "list.json", "a.json", *options)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert message in done.err
    assert not (tmp_path / "a.json").exists()


def test_names_in_files_send_nothing_to_the_terminal(headwise, tmp_path):
    bad = "\x1b]0;title\x07\x1b[2Jcopy\u202e"
    scores = HeadScores(np.arange(8.0).reshape(2, 4), bad, provenance={"model": bad})
    save_heads(scores, tmp_path / "a.json")
    for done in (headwise("convert", "a.json", "b.json"), headwise("convert", "a.json", "c" + bad, "--to", bad)):
        assert not set("\x1b\x07\u202e") & set(done.out + done.err)
        assert "copy" in done.out + done.err
    done = headwise("convert", "n" * 5000 + ".json", "b.json")
    assert done.code == 2
    assert len(done.err) < 700
    assert done.err.endswith("\n")


@pytest.mark.slow
def test_info(planted, headwise):
    facts = json.loads(headwise("info", planted.model, "--json").out)
    assert (facts["layers"], facts["heads"], facts["model_type"]) == (2, 4, "llama")
    assert (facts["logit_scale"], facts["logit_cap"], facts["query_layout"]) == (1.0, None, "separate")
    assert facts["parts"]["mlp"] == "mlp"
    assert len(facts["fingerprint"]) == 16
    families = json.loads(headwise("info", "--families", "--json").out)
    assert "qwen3_next" in families["supported"]
    assert "mamba" in families["refused"]
    assert "llama" in headwise("info", planted.model).out


@pytest.mark.slow
def test_an_lm_eval_task_with_heads_ablated(planted, heads, headwise, tmp_path, monkeypatch):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [
        {"text": "the river was slow and wide in that year so we took a boat"},
        {"text": "men were cutting wood near our road"},
    ]
    (tasks / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tasks / "plain.yaml").write_text(
        "task: plain_text\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tasks / 'rows.jsonl'}}}, cache_dir: {tasks / 'cache'}}}\n"
        'test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list: [{metric: bits_per_byte}]\n"
    )
    from headwise.evaluation import lm_eval as module

    real, asked = module.run_lm_eval, []

    def once(*given):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(given)
        return real(*given)

    command = (
        "ablate", planted.model, "--heads", heads, "--task", "lm-eval:plain_text", "--include-path", tasks, "--top", "1", "-o", "l.json",
        "--json",
    )  # fmt: skip
    monkeypatch.setattr(module, "run_lm_eval", once)
    assert headwise(*command).code == 130
    monkeypatch.setattr(module, "run_lm_eval", lambda *given: asked.append(given) or real(*given))
    done = headwise(*command)
    assert done.code == 0, done.err
    assert len(asked) == 3  # two of three runs were there already
    assert not list(tmp_path.glob("*.run"))
    runs = json.loads((tmp_path / "l.json").read_text())["runs"]
    assert [(run["kind"], run["k"]) for run in runs] == [("none", 0), ("top", 1), ("random", 1)]
    assert runs[1]["ablation"]["heads"] == ["L1H2"]
    assert runs[0]["results"]["plain_text"]["bits_per_byte,none"] > 0


@pytest.mark.parametrize("command", ["export", "rank", "generate", "ablate", "select score", "steer copy", "bench decode", "trace fit"])
def test_heads_of_another_model_that_do_not_fit_are_one_line(planted, headwise, tmp_path, command):
    """What the command may do with such heads is not said where it ends in an error."""
    (tmp_path / "t.jsonl").write_text('{"id": "q", "text": "the river", "question": "what?", "answers": ["a"]}\n')
    save_heads(HeadScores(np.arange(1.0, 13.0).reshape(3, 4) / 12, "copy", provenance={"model": "other-7b"}), tmp_path / "h.json")
    words = {
        "export": ["export", planted.model, "-o", "out"],
        "rank": ["rank", planted.model, "--queries", "t.jsonl", "--passages", "t.jsonl", "-o", "r.trec"],
        "generate": ["generate", planted.model, "--prompt", "the river was slow " * 20, "--cache", "compresskv:heads=h.json,budget=40"],
        "ablate": ["ablate", planted.model, *planted.own, "-o", "a.json"],
        "select score": ["select", "score", "t.jsonl", "-m", planted.model, "-o", "scores"],
        "steer copy": ["steer", "copy", planted.model, "--prompt", "the river", "--span", "river"],
        "bench decode": ["bench", "decode", planted.model, "--choosers", "heads", "--budgets", "64", "-o", "d.json"],
        "trace fit": ["trace", "fit", planted.model, "--data", "t.jsonl", "--top", "2", "-o", "p.json"],
    }[command]  # fmt: skip
    check_refused(headwise(*words, *(["--heads", "h.json"] if command != "generate" else [])), "3 layers x 4 heads")


def test_what_was_held_is_told_before_the_first_piece_of_work(capsys):
    """Also where progress is hidden; what a command ending in an error held is gone."""
    from headwise.cli.notes import held, hold
    from headwise.cli.progress import progress

    hold("a note")
    with progress("working", hidden=True) as report:
        report(0, 2, "")
        assert capsys.readouterr().err == ""
        report(1, 2, "")
        assert capsys.readouterr().err == "headwise: a note\n"
        report(2, 2, "")
    hold("another")
    held.clear()
    with progress("working", hidden=True) as report:
        report(1, 1, "")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["export", "rank", "generate", "ablate", "select score"])
@pytest.mark.slow
def test_heads_of_another_model_are_told(planted, headwise, tmp_path, command):
    (tmp_path / "q.jsonl").write_text('{"id": "q", "text": "the river"}\n')
    (tmp_path / "p.jsonl").write_text('{"id": "a", "text": "the old mill"}\n{"id": "b", "text": "the slow river"}\n')
    (tmp_path / "t.jsonl").write_text('{"text": "the slow river ran on and on"}\n')
    scores = HeadScores(np.arange(1.0, 9.0).reshape(2, 4) / 8, "copy", provenance={"model": "other-7b"})
    own = HeadScores(scores.values, "copy", provenance={"model": "somebody/model"})  # as the folder of the planted model is called
    unknown = HeadScores(scores.values, "copy")
    for name, given in (("other", scores), ("own", own), ("unknown", unknown)):
        save_heads(given, tmp_path / f"{name}.json")
        heads = f"{name}.json"
        words = {
            "export": ["export", planted.model, "--heads", heads, "--top", "1", "-o", f"out-{name}"],
            "rank": ["rank", planted.model, "--queries", "q.jsonl", "--passages", "p.jsonl", "--heads", heads, "--top", "1", "-o", f"{name}.trec"],
            "generate": ["generate", planted.model, "--prompt", "the river was slow " * 20, "--cache", f"compresskv:heads={heads},budget=40"],
            "ablate": ["ablate", planted.model, *planted.own, "--heads", heads, "--top", "1", "--controls", "1", "--no-perplexity",
                       "--lengths", "90", "--depths", "1", "-o", f"{name}-ablation.json"],
            "select score": ["select", "score", "t.jsonl", "-m", planted.model, "--heads", heads, "--top", "1", "-o", f"scores-{name}"],
        }[command]  # fmt: skip
        done = headwise(*words)
        assert done.code == 0, done.err
        told = [line for line in done.err.splitlines() if line.startswith("headwise: these heads")]
        line = "headwise: these heads were found in other-7b, and model runs; heads of another model rarely have the same work"
        assert told == ([line] if name == "other" else [])
