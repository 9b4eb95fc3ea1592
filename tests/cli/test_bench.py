"""`headwise bench cache`: a table, a figure and a result, for tasks, RULER's files and questions of the user."""

import gzip
import json

import numpy as np
import pytest

from headwise.heads import HeadwiseError, PromptError
from headwise.models.names import bundled_model
from headwise.prompts.encoder import newline_ids
from headwise.prompts.questions import read_questions
from headwise.report.compression import compression_tables, draw_recall, held_line, recall_figure
from headwise.report.console import print_all
from tests.cli.test_refusals import check_refused
from tests.unit.test_compression_eval import ruler_rows

SMALL = ("--lengths", 256, "--items", 2, "--tasks", "world.needle,world.passages", "--questions", 2)


@pytest.fixture(scope="module")
def lab():
    return str(bundled_model())


@pytest.mark.slow
def test_methods_and_budgets_are_measured_beside_the_full_cache(planted, headwise, tmp_path):
    done = headwise(
        "bench", "cache", planted.model, *SMALL, "--methods", "snapkv,oracle,random:budget=30,seed=4",
        "--budgets", "0.2,40", "-o", "r.json",
    )  # fmt: skip
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "r.json").read_text())
    rows = result["rows"]
    assert len(rows) == 2 * 2 * 6
    assert [(row["method"], row["budget"]) for row in rows[:6]] == [
        ("full", None), ("snapkv", 0.2), ("snapkv", 40), ("oracle", 0.2), ("oracle", 40), ("random:budget=30,seed=4", 30),
    ]  # fmt: skip
    assert [(row["task"], row["question"]) for row in rows[::6]] == [
        ("world.needle", "inside"), ("world.needle", "outside"), ("world.passages", "inside"), ("world.passages", "outside"),
    ]  # fmt: skip
    for row in rows:
        assert (row["n"], row["asked"], row["length"]) == (2, 4, 256)
        assert row["positions"] == {40: 40, 30: 30}.get(row["budget"], row["positions"])
        if row["method"] == "oracle" and row["budget"] == 40 and row["task"] == "world.needle":
            assert row["survival"] == 1.0
    assert result["model"] == "model"
    assert (result["items"], result["seed"], result["source"]) == (2, 0, None)
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    for part in ("world.needle, 256 tokens, question inside", "random:", "oracle", "of full", "r.json"):
        assert part.casefold() in done.out.casefold()


@pytest.mark.slow
def test_the_same_command_gives_the_same_bytes(lab, headwise, tmp_path):
    given = (
        "bench",
        "cache",
        lab,
        "--lengths",
        200,
        "--items",
        2,
        "--tasks",
        "world.needle",
        "--methods",
        "random",
        "--budgets",
        "0.3",
    )
    for name in ("a.json", "b.json"):
        done = headwise(*given, "--question", "outside", "-o", name, "--json")
        assert done.code == 0, done.err
        assert len(json.loads(done.out)["rows"]) == 2
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    check_refused(headwise(*given, "-o", "a.json"), "a.json exists")


@pytest.mark.slow
def test_rule_z5_takes_gates_with_a_measured_order(lab, headwise, tmp_path, monkeypatch):
    from headwise.heads import HeadScores, load_heads, save_heads
    from headwise.methods.duo import options

    monkeypatch.setattr(options, "TEXTS", 2)
    monkeypatch.setattr(options, "ORDER_TEXTS", 1)
    found = headwise(
        "detect", "gate", lab, "--lengths", "200,240", "--steps", 2, "--sinks", 4, "--recent", 16, "--layer-order", "-o", "g.json", "--json"
    )
    assert found.code == 0, found.err
    gates = load_heads(tmp_path / "g.json")
    order = np.argsort(gates.tables["layer_order"]).tolist()
    assert sorted(order) == list(range(8))
    done = headwise(
        "bench", "cache", lab, *SMALL[:4], "--tasks", "world.needle", "--question", "inside", "--json", "-o", "r.json",
        "--methods", "zigzag:heads=g.json,rule=Z5,keep=0.25,sinks=4,recent=16",
    )  # fmt: skip
    assert done.code == 0, done.err
    heads = json.loads((tmp_path / "r.json").read_text())["rows"][1]["survival_heads"]
    assert all(np.ptp(row) == 0 for row in heads)  # one kind of head per layer
    assert [layer for layer, row in enumerate(heads) if row[0] == 1] == sorted(order[-2:])
    save_heads(HeadScores(gates.values, "gate"), tmp_path / "plain.json")
    done = headwise("bench", "cache", lab, *SMALL, "--methods", "zigzag:heads=plain.json,rule=Z5")
    check_refused(done, "for rule Z5, gates with a measured order of layers")


@pytest.mark.slow
def test_ruler_s_files(planted, headwise, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "given").mkdir()
    path = tmp_path / "given" / "niah.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ruler_rows(4)), path)
    done = headwise(
        "bench", "cache", planted.model, "--ruler", path, "--items", 3, "--methods", "snapkv", "--budgets", "24", "-o", "r.json"
    )
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert {row["task"] for row in rows} == {"niah_single_1"}
    assert [row["exact"] for row in rows if row["method"] == "full"] == [1.0, 1.0]
    assert {row["n"] for row in rows} == {3}


@pytest.mark.slow
def test_the_oracle_is_left_out_where_the_answers_have_no_known_place(planted, headwise, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    one, other = ruler_rows(2)
    known = [one | {"answer": " ".join(one["answer"])}]
    parquet.write_table(pyarrow.Table.from_pylist(known), tmp_path / "one.parquet")
    parquet.write_table(
        pyarrow.Table.from_pylist([*known, other | {"task": "niah_single_1", "answer": "x"}]), tmp_path / "two.parquet"
    )
    given = ("bench", "cache", planted.model, "--methods", "snapkv,oracle", "--budgets", "24", "--question", "outside")
    done = headwise(*given, "--ruler", "one.parquet", "-o", "one.json")
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "one.json").read_text())["rows"]
    assert [(row["method"], row["exact"]) for row in rows if row["method"] != "snapkv"] == [("full", 1.0), ("oracle", 1.0)]
    assert [row["survival"] for row in rows if row["method"] == "oracle"] == [1.0]
    done = headwise(*given, "--ruler", "two.parquet", "-o", "two.json")
    assert done.code == 0, done.err
    assert "oracle is left out of niah_single_1: it needs the place of every answer, and 1 have none" in " ".join(
        done.out.split()
    )
    assert [row["method"] for row in json.loads((tmp_path / "two.json").read_text())["rows"]] == ["full", "snapkv"]


def own_questions(path, **changes):
    rows = [
        {"context": row["context"], "question": "what?", "answer": " ".join(row["answer"]), "answer_prefix": row["answer_prefix"]}
        for row in ruler_rows(3)
    ]
    rows[0]["id"] = "first"
    rows[2]["context"] = rows[1]["context"]
    path.write_text("\ufeff" + "\n".join(json.dumps(row | changes) for row in rows), encoding="utf-8")
    return path


def test_questions_of_the_user_and_their_answers(planted, headwise, tmp_path):
    path = own_questions(tmp_path / "mine.jsonl")
    done = headwise(
        "bench", "cache", planted.model, "--data", path, "--methods", "streamingllm,oracle", "--budgets", "24", "--question", "outside",
        "--max-new-tokens", "6", "-o", "r.json",
    )  # fmt: skip
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["source"], result["gate"], result["max_new_tokens"]) == ("mine.jsonl", "passed", 6)
    assert [(one["id"], one["context"]) for one in result["answers"]] == [("first", 0), ("2", 1), ("3", 1)]
    full = result["rows"][0]
    assert (full["task"], full["n"], full["asked"]) == ("mine.jsonl", 2, 3)
    for one in result["answers"]:
        said = {answer["method"]: answer for answer in one["said"]}
        assert {"full", "streamingllm"} <= set(said)
        for answer in one["said"]:
            assert answer["right"] == float(one["gold"].casefold() in answer["text"].casefold())
    assert [[said["right"] for said in one["said"] if said["method"] == "full"] for one in result["answers"]] == [
        [1.0],
        [1.0],
        [0.0],
    ]
    assert "oracle is left out of mine.jsonl" in " ".join(done.out.split())  # the third answer is not in the text


def test_questions_of_the_user_may_be_packed(tmp_path):
    path = own_questions(tmp_path / "mine.jsonl")
    (tmp_path / "mine.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read_questions(tmp_path / "mine.jsonl.gz") == read_questions(path)
    path.write_text(json.dumps({"context": "a", "question": "b", "answer": "\ud83d"}))
    with pytest.raises(PromptError, match="line 1: the text holds half of a surrogate pair"):
        read_questions(path)


@pytest.mark.slow
def test_what_the_full_cache_cannot_answer_is_not_compared(planted, headwise, tmp_path):
    path = own_questions(tmp_path / "mine.jsonl", answer="nobody knows")
    given = ("bench", "cache", planted.model, "--data", path, "--methods", "snapkv", "--budgets", "24", "--question", "outside")
    done = headwise(*given, "-o", "r.json")
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["gate"] == "failed"
    assert [(gate["gate"], gate["answered"], gate["low"], gate["high"]) for gate in result["gates"]] == [
        ("failed", "0 of 3", 0.0, 0.0)
    ]
    assert {row["gate"] for row in result["rows"]} == {"failed"}
    assert (
        " ".join(done.out.split()).count("not measurable: the full cache answers 0 of 3, and 30% are needed for a comparison")
        == 2
    )
    done = headwise(*given, "--min-full", "0", "-o", "zero.json", "--json")
    assert json.loads(done.out)["gate"] == "passed"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: no valid JSON"),
        ("[1]", "line 1: a question is an object like"),
        ('{"context": "a", "question": "b"}', "line 1: answer must be a text or a list of texts"),
        ('{"context": "a", "question": " ", "answer": "c"}', "line 1: question must be a text that is not empty"),
        ('{"context": "a", "question": "b", "answer": []}', "line 1: answer must be"),
        ('{"context": "a", "question": "b", "answer": "c", "id": [1]}', "id a text or a number"),
        (
            '{"context": "a", "question": "b", "answer": "c", "id": 2}\n{"context": "a", "question": "b", "answer": "c"}',
            "two questions '2'",
        ),
        ("", "holds no question"),
        ('{"context": "' + "the river " * 700 + '", "question": "b", "answer": "c"}', "question '1' of q.jsonl needs"),
    ],
)
def test_broken_questions_are_refused(planted, headwise, tmp_path, line, message):
    (tmp_path / "q.jsonl").write_text(line)
    check_refused(headwise("bench", "cache", planted.model, "--data", "q.jsonl", "--methods", "snapkv"), message)


def test_a_line_ends_at_a_line_feed_only(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"context": "a\u2028b", "question": "q", "answer": ["x", "y "]}\n', encoding="utf-8")
    (one,) = read_questions(tmp_path / "q.jsonl")
    assert (one.context, one.answers, one.id) == ("a\u2028b", ("x", "y"), "1")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["--methods", "magic"], ["unknown cache method 'magic'", "snapkv"]),
        (
            ["--methods", "headkv"],
            ["headkv needs a head file: headkv:heads=FILE", "headwise-out/", ".semantic.json", "run: headwise detect semantic"],
        ),
        (["--methods", "zigzag"], ["zigzag needs a head file", ".gate.json", "run: headwise detect gate"]),
        (["--methods", "headkv:heads=h.json,preset=mine"], ["h.json"]),
        (["--methods", "oracle:window=3"], ["the oracle takes no options"]),
        (["--ruler", "x.parquet"], ["--ruler has its own texts and questions", "--tasks has no meaning"]),
        (["--data", "x.jsonl"], ["--data has its own texts and questions"]),
        (["--data", "x.jsonl", "--ruler", "x.parquet"], ["either --ruler or --data"]),
        (["--chat"], ["--chat goes with --ruler or --data"]),
        (["--chat-template-args", "{}"], ["--chat-template-args goes with --chat"]),
        (["--max-new-tokens", "4"], ["--max-new-tokens goes with --data"]),
        (["--min-full", "30"], ["--min-full is a share between 0 and 1; got 30"]),
        (["--budgets", "2.5"], ["--budgets must be a whole number of positions", "'2.5'"]),
        (["--budgets", "5"], ["does not hold"]),
        (["--lengths", "x"], ["--lengths takes positive whole numbers"]),
        (["--lengths", "9999"], ["9999 tokens", "positions"]),
        (["--tasks", "riddle"], ["unknown task 'riddle'"]),
        (["--items", "0"], ["at least 1"]),
        (["--questions", "0"], ["at least 1"]),
        (["--question", "beside"], ["'beside'", "inside or outside"]),
        (["--split", "exam"], ["exam"]),
        (["--seed", "-1"], ["seed"]),
    ],
)
def test_wrong_input_is_refused_in_one_line(lab, headwise, given, parts, tmp_path):
    check_refused(headwise("bench", "cache", lab, "--lengths", 200, "--items", 1, "--tasks", "world.needle", *given), *parts)
    assert not (tmp_path / "headwise-out").exists()


def test_missing_files_are_named(lab, headwise):
    check_refused(headwise("bench", "cache", lab, "--ruler", "x.parquet"), "no such parquet file: x.parquet")
    check_refused(headwise("bench", "cache", lab, "--data", "x.jsonl"), "cannot read questions from x.jsonl")


# The report


def row(method, budget, exact, nbytes, **more):
    known = {
        "task": "needle",
        "length": 256,
        "question": "inside",
        "n": 4,
        "low": max(0, exact - 0.1),
        "high": min(1, exact + 0.1),
    }
    known |= {"difference": None if budget is None else exact - 1, "p": 0.5, "survival": exact, "bytes_full": 1e6}
    return known | {"method": method, "budget": budget, "exact": exact, "bytes": nbytes} | more


RESULT = {
    "model": "some model",
    "rows": [
        row("full", None, 1.0, 1.01e6), row("a", 0.1, 0.5, 1e5), row("a", 0.2, 0.75, 2e5), row("b", 32, 0.25, 3e5),
        row("full", None, 1.0, 1.01e6, question="outside"), row("a", 0.1, 0.0, 1e5, question="outside", survival=None),
    ],
}  # fmt: skip


def test_the_tables(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_all(*compression_tables(RESULT))
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["full", "–", "1.00", "0.90–1.00", "–", "–", "1.00", "1.01", "MB", "101.0%"] in lines
    assert ["a", "0.2", "0.75", "0.65–0.85", "-0.25", "0.5", "0.75", "200", "kB", "20.0%"] in lines
    assert ["b", "32", "0.25", "0.15–0.35", "-0.75", "0.5", "0.25", "300", "kB", "30.0%"] in lines
    assert ["a", "0.1", "0.00", "0.00–0.10", "-1.00", "0.5", "–", "100", "kB", "10.0%"] in lines
    assert [line for line in out.splitlines() if "contexts" in line] == [
        f"needle, 256 tokens, question {place}, 4 contexts" for place in ("inside", "outside")
    ]


def test_what_is_not_measurable_is_marked_in_table_and_figure(capsys):
    note = "not measurable: the full cache answers 0 of 4, and 30% are needed for a comparison"
    result = RESULT | {"gates": [{"task": "needle", "length": 256, "question": "outside", "note": note}]}
    print_all(*compression_tables(result))
    out = capsys.readouterr().out
    assert out.count(note) == 1
    assert out.index("question outside") < out.index(note)
    titles = [axes.get_title() for axes in draw_recall(result).axes if axes.get_visible()]
    assert titles == ["needle, 256 tokens, question inside", "needle, 256 tokens, question outside\n(not measurable)"]


@pytest.mark.slow
def test_the_figure(tmp_path):
    figure = draw_recall(RESULT)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == [
        "needle, 256 tokens, question inside",
        "needle, 256 tokens, question outside",
    ]
    lines = {line.get_label(): line for line in panels[0].lines}
    assert list(lines["a"].get_xdata()) == [0.1, 0.2]
    assert list(lines["a"].get_ydata()) == [0.5, 0.75]
    assert list(lines["full"].get_ydata()) == [1.0, 1.0]
    assert lines["a"].get_color() != lines["b"].get_color()
    recall_figure(RESULT, tmp_path / "one.svg")
    recall_figure(RESULT, tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    with pytest.raises(HeadwiseError, match="no result of a cache benchmark"):
        draw_recall({"rows": [{"task": "x"}]})
    with pytest.raises(HeadwiseError, match="no result of a cache benchmark"):
        compression_tables({})


def test_the_line_about_what_is_held():
    facts = {"positions": 40.25, "tokens": 400, "nbytes": 4.2e6, "formula": 2.1e6, "full": 2.1e7, "skipped_layers": []}
    held = "held 40.2 of 400 positions per KV head, 2.1 MB of 21 MB (10.0%); 4.2 MB of memory with positions and spare room"
    assert held_line(facts) == held
    assert held_line(facts | {"skipped_layers": [0, 2]}).endswith("; layers 0, 2 not counted")


def test_answers_of_a_prompt_do_not_end_at_a_line_break_only(planted):
    """The micro-world's stop tokens hold line breaks, those of `generate` and of RULER do not."""
    from headwise.models.load import load
    from headwise.runtime.answer import stop_ids

    loaded = load(planted.model)
    assert stop_ids(loaded) - newline_ids(loaded.tokenizer) == {loaded.tokenizer.eos_token_id}
