"""The head file: what is written is what is read, and every broken file is one clear line."""

import errno
import gzip
import json
import os
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from headwise.heads import HeadFileError, HeadScores, headfile, load_heads, save_heads

NAN = float("nan")
INFO = ({"depth": 0.5, "needle": "a"}, {"depth": 1.0, "needle": "b"})
PROVENANCE = {"model": "tiny", "options": {"seeds": [0, 1]}, "note": "é"}


def table(**changes):
    options = {
        "values": np.array([[0.1, NAN, 0.3], [0.4, 0.5, -2.0]]),
        "score": "query",
        "score_version": 3,
        "runs": np.array([[[0.1, NAN, 0.2], [0.4, 0.5, -2.0]], [[0.1, NAN, 0.4], [NAN, 0.5, -2.0]]], dtype=np.float32),
        "run_info": INFO,
        "provenance": PROVENANCE,
    }
    return HeadScores(**(options | changes))


def plain(**changes):
    """The smallest valid file as data, to be broken in one place."""
    data = {
        "headwise_schema": 1,
        "score": "copy",
        "score_version": 1,
        "layers": 1,
        "heads": 2,
        "values": [[0.5, None]],
        "provenance": {},
    }
    return data | changes


@pytest.fixture
def path(tmp_path):
    return tmp_path / "heads.json"


def test_round_trip(path):
    save_heads(table(), path)
    got = load_heads(path)
    np.testing.assert_array_equal(got.values, table().values)
    np.testing.assert_array_equal(got.runs, table().runs)
    assert (got.values.dtype, got.runs.dtype) == (np.float64, np.float32)
    assert (got.score, got.score_version, got.run_info, got.provenance) == ("query", 3, INFO, PROVENANCE)


def test_values_keep_all_digits(path):
    values = np.random.default_rng(0).normal(size=(4, 5))
    save_heads(table(values=values, runs=None, run_info=()), path)
    np.testing.assert_array_equal(load_heads(path).values, values)


def test_runs_without_info_and_no_runs(path, tmp_path):
    save_heads(table(run_info=()), path)
    assert load_heads(path).run_info == ({}, {})
    save_heads(table(runs=None, run_info=()), tmp_path / "none.json")
    assert load_heads(tmp_path / "none.json").runs is None
    save_heads(table(runs=np.zeros((0, 2, 3), np.float32), run_info=()), tmp_path / "empty.json")
    assert load_heads(tmp_path / "empty.json").runs.shape == (0, 2, 3)


def test_the_file_is_strict_json_with_null_for_missing(path):
    save_heads(table(), path)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    data = json.loads(path.read_text("utf-8"), parse_constant=refuse)
    assert data["values"] == [[0.1, None, 0.3], [0.4, 0.5, -2.0]]
    assert data["runs"][1] == {"info": INFO[1], "values": [[0.1, None, 0.4], [None, 0.5, -2.0]]}
    assert (data["headwise_schema"], data["layers"], data["heads"]) == (2, 2, 3)


def test_writing_makes_the_folder(tmp_path):
    save_heads(table(), tmp_path / "a" / "b" / "heads.json")
    assert load_heads(tmp_path / "a" / "b" / "heads.json").shape == (2, 3)


def test_an_existing_file_is_refused(path):
    path.write_text("mine")
    with pytest.raises(HeadFileError, match=r"heads\.json exists; give another name or --overwrite \(results are never merged\)"):
        save_heads(table(), path)
    assert path.read_text() == "mine"


def test_overwrite_replaces_and_never_merges(path):
    save_heads(table(), path)
    save_heads(HeadScores(np.array([[0.5, NAN]]), "copy"), path, overwrite=True)
    got = load_heads(path)
    np.testing.assert_array_equal(got.values, [[0.5, NAN]])
    assert (got.score, got.score_version, got.runs, got.run_info, got.provenance) == ("copy", 1, None, (), {})
    assert "needle" not in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["heads.json"]


def nested(depth):
    return {"a": nested(depth - 1)} if depth else 1


BROKEN = {
    "empty": ("", "no valid JSON"),
    "not json": ("{'a': 1}", "no valid JSON"),
    "truncated": (json.dumps(plain())[:-20], "no valid JSON .*line 1"),
    "a list": ("[1, 2]", "expected a headwise file or an object of lists"),
    "a number": ("3", "expected a headwise file or an object of lists"),
    "an empty object": ("{}", "expected a headwise file or an object of lists"),
    "newer schema": (json.dumps(plain(headwise_schema=3)), "has schema 3; this headwise reads 1 to 2; update headwise"),
    "schema true": (json.dumps(plain(headwise_schema=True)), "has schema True; this headwise reads 1 to 2"),
    "schema null": (json.dumps(plain(headwise_schema=None)), "has schema None; this headwise reads 1 to 2"),
    "schema text": (json.dumps(plain(headwise_schema="1")), "has schema '1'; this headwise reads 1 to 2"),
    "infinity": (json.dumps(plain(values=[[float("inf"), 1]])), "finite numbers or null"),
    "minus infinity": (json.dumps(plain(values=[[float("-inf"), 1]])), "finite numbers or null"),
    "overflow": (json.dumps(plain()).replace("0.5", "1e999"), "finite numbers or null"),
    "infinite run": (json.dumps(plain(runs=[{"info": {}, "values": [[float("inf"), None]]}])), "finite numbers or null"),
    "layers": (json.dumps(plain(layers=2)), r"the table is \(1, 2\), the header says \(2, 2\)"),
    "heads": (json.dumps(plain(heads=3)), r"the table is \(1, 2\), the header says \(1, 3\)"),
    "ragged": (json.dumps(plain(values=[[1, 2], [3]], layers=2)), "broken head file"),
    "flat": (json.dumps(plain(values=[1, 2])), "broken head file"),
    "no table": (json.dumps(plain(values=[])), "broken head file"),
    "words": (json.dumps(plain(values=[["a", "b"]])), "broken head file"),
    "version": (json.dumps(plain(score_version="new")), "broken head file"),
    "version a fraction": (json.dumps(plain(score_version=1.5)), "whole numbers"),
    "version true": (json.dumps(plain(score_version=True)), "whole numbers"),
    "layers true": (json.dumps(plain(layers=True)), "whole numbers"),
    "score a number": (json.dumps(plain(score=3)), "score must be a text"),
    "score half a pair": (json.dumps(plain(score="\ud800")), "half of a surrogate pair"),
    "values true": (json.dumps(plain(values=[[True, 1]])), "True is no number"),
    "values as texts": (json.dumps(plain(values=[["0.5", 1]])), "'0.5' is no number"),
    "values an object": (json.dumps(plain(values={"0": [1, 2]})), "no list"),
    "too many layers": (json.dumps(plain(layers=10**12)), "the header says"),
    "a number without end": (json.dumps(plain()).replace("0.5", "9" * 5000), "no valid JSON"),
    "a large whole number": (json.dumps(plain()).replace("0.5", "9" * 400), "broken head file"),
    "named twice": ('{"headwise_schema": 2, "score": "copy", "score": "query"}', "the name 'score' stands there twice"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "deep provenance": (json.dumps(plain(provenance=nested(70))), "nested more than 64 deep"),
    "deep info": (json.dumps(plain(runs=[{"info": nested(70), "values": [[1, 2]]}])), "nested more than 64 deep"),
    "provenance half a pair": (json.dumps(plain(provenance={"model": ["a\udfff"]})), "half of a surrogate pair"),
    "provenance name half a pair": (json.dumps(plain(provenance={"a": {"\udfff": 1}})), "half of a surrogate pair"),
    "provenance infinite": (json.dumps(plain(provenance={"a": [float("inf")]})), "not finite"),
    "info a list": (json.dumps(plain(runs=[{"info": [], "values": [[1, 2]]}])), "info of a run is no object"),
    "tables missing": (json.dumps(plain(headwise_schema=2)), "broken head file .*tables"),
    "tables a list": (json.dumps(plain(headwise_schema=2, tables=[])), "broken head file"),
    "table of words": (json.dumps(plain(headwise_schema=2, tables={"t": [["a", 1]]})), "'a' is no number"),
    "table ragged": (json.dumps(plain(headwise_schema=2, tables={"t": [[1, 2], 3]})), "broken head file"),
    "table of another shape": (json.dumps(plain(headwise_schema=2, tables={"t": [[1, 2, 3]]})), r"must be \[layer\]"),
    "table infinite": (json.dumps(plain(headwise_schema=2, tables={"t": [1e400]})), "finite numbers"),
    "table name half a pair": (json.dumps(plain(headwise_schema=2, tables={"\ud800": [1]})), "half of a surrogate pair"),
    "old table of another shape": (json.dumps(plain(provenance={"lift": [[1, 2, 3]]})), r"must be \[layer\]"),
    "old order without layers": (json.dumps(plain(provenance={"layer_order": [0, 5]})), "layer_order must name layers"),
    "provenance": (json.dumps(plain(provenance=3)), "broken head file"),
    "runs are numbers": (json.dumps(plain(runs=[1, 2])), "broken head file"),
    "runs without info": (json.dumps(plain(runs=[{"values": [[1, 2]]}])), "broken head file"),
    "run of another size": (json.dumps(plain(runs=[{"info": {}, "values": [[1, 2, 3]]}])), "broken head file"),
}
BROKEN |= {
    f"without {key}": (json.dumps({k: v for k, v in plain().items() if k != key}), f"broken head file .*{key}")
    for key in ("score", "score_version", "layers", "heads", "values", "provenance")
}


def check_refused(path, message):
    with pytest.raises(HeadFileError, match=message) as error:
        load_heads(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not re.search(r"Error\(|NoneType|subscriptable|sequence", str(error.value))


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_one_clear_error(path, case):
    text, message = BROKEN[case]
    path.write_text(text)
    check_refused(path, message)


def test_the_file_that_the_broken_ones_start_from_is_valid(path):
    path.write_text(json.dumps(plain()))
    np.testing.assert_array_equal(load_heads(path).values, [[0.5, NAN]])


@pytest.mark.parametrize("tables", [{"lift": [[1.5, NAN, 0], [2, 3, 4]], "mean": [[0.1], [0.2]], "order": [NAN, 0]}, {}])
def test_tables_are_what_was_written(path, tables):
    runs = np.array([[[0.25, NAN, 0.5], [0.5, 0.5, -2]]] * 2, np.float32)
    save_heads(table(tables=tables, runs=runs), path)
    assert load_heads(path) == table(tables=tables, runs=runs)
    assert json.loads(path.read_text("utf-8"))["headwise_schema"] == 2
    table(tables=tables, runs=runs).save(path, overwrite=True)
    assert load_heads(path) == table(tables=tables, runs=runs)


def test_the_tables_of_old_files_are_found_in_their_provenance(path):
    old = {"lift": [[1, None]], "mean_gates": [[0.5]], "layer_order": [0], "model": "tiny"}
    path.write_text(json.dumps(plain(provenance=old)))
    got = load_heads(path)
    assert got.provenance == {"model": "tiny"}
    assert {name: rows.tolist() for name, rows in got.tables.items() if name != "lift"} == {
        "mean_gates": [[0.5]],
        "layer_order": [0],
    }
    np.testing.assert_array_equal(got.tables["lift"], [[1, NAN]])
    path.write_text(json.dumps(plain(values=[[1, 2], [3, 4], [5, 6]], layers=3, provenance={"layer_order": [2, 0]})))
    np.testing.assert_array_equal(load_heads(path).tables["layer_order"], [1, NAN, 0])  # layer 2 comes first, 1 never


@pytest.mark.parametrize("packed", [False, True])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path, packed):
    for name, text in (("a.json", json.dumps(plain())), ("w.json", '{"0-0": [0.5], "0-1": [1]}'), ("g.tsv", "0.5\t1\n")):
        raw = b"\xef\xbb\xbf" + text.encode()
        file = tmp_path / (f"{name}.gz" if packed and not name.endswith("tsv") else name)
        file.write_bytes(gzip.compress(raw) if file.suffix == ".gz" else raw)
        assert load_heads(file).values[0, 0] == 0.5


@pytest.mark.parametrize("packed", [False, True])
def test_what_unpacks_without_end_is_refused_early(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(headfile, "MOST_BYTES", 2**20)
    file = tmp_path / ("bomb.json.gz" if packed else "bomb.json")
    file.write_bytes(gzip.compress(b" " * 2**26) if packed else b" " * 2**21)
    tracemalloc.start()
    check_refused(file, "it has more than 1 MiB .unpacked., and no such file needs as much")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize(
    "changes",
    [
        {"score": "\ud800"},
        {"provenance": {"model": ("\udfff",)}},
        {"provenance": nested(70)},
        {"provenance": {"rate": float("inf")}},
        {"run_info": ({"needle": "\ud800"},) * 2},
        {"tables": {"\ud800": [1, 2]}},
    ],
)
def test_what_could_not_be_read_again_is_not_written(path, changes):
    with pytest.raises(HeadFileError, match="these scores cannot be written: "):
        save_heads(table(**changes), path)
    assert not path.exists()


def test_results_are_told_apart_by_their_content(path):
    path.write_text('{"summary": 1}')
    assert headfile.load_result(path) == ("ablation", {"summary": 1})
    path.write_text('{"cells": []}')
    assert headfile.load_result(path) == ("needle", {"cells": []})
    save_heads(table(), path, overwrite=True)
    assert headfile.load_result(path)[0] == "heads"
    path.write_text("[" * 100_000)
    with pytest.raises(HeadFileError, match="nested too deeply"):
        headfile.load_result(path)


def test_a_missing_file_a_folder_and_binary_data_are_refused(path, tmp_path):
    check_refused(path, "no such head file")
    check_refused(tmp_path, "cannot read a head file from")
    path.write_bytes(b"\x80\xff\x00")
    check_refused(path, r"cannot read a head file from .*, line 1: byte 0x80 is not UTF-8")


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_changes_nothing(path, monkeypatch, step, existing):
    if existing:
        save_heads(HeadScores(np.array([[0.5, 0.1]]), "copy"), path)
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(
        HeadFileError, match=r"could not write .*heads\.json: No space left on device; the file is as it was before"
    ):
        save_heads(table(), path, overwrite=True)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


def test_core_needs_neither_torch_nor_transformers():
    # A fresh interpreter: in this one torch has long been imported by another test.
    code = "import sys, headwise.heads; print([m for m in ('torch', 'transformers', 'scipy', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_transposed_run_is_refused(path):
    path.write_text(json.dumps(plain(runs=[{"info": {}, "values": [[1], [2]]}])))
    check_refused(path, "broken head file")


def test_a_number_too_large_for_a_float_is_refused(path):
    path.write_text(json.dumps(plain(values=[[10**400, 1]])))
    check_refused(path, "broken head file")


def test_nested_junk_is_refused(path):
    path.write_text("[" * 200_000)
    check_refused(path, "not a head file")


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadFileError, match="could not write"):
        save_heads(table(), tmp_path / "file" / "heads.json")


@pytest.mark.parametrize(
    "scores",
    [
        HeadScores(np.array([[np.inf, 1.0]]), "copy"),
        HeadScores(np.array([[0.5, 1.0]]), "copy", provenance={"seed": np.int64(3)}),
        HeadScores(np.array([[0.5, 1.0]]), "copy", provenance={"rate": NAN}),
    ],
    ids=["infinite score", "numpy integer in provenance", "NaN in provenance"],
)
def test_scores_that_json_cannot_hold_are_refused_clearly(path, scores):
    with pytest.raises(HeadFileError):
        save_heads(scores, path)
