"""Head scores of other projects: the real published files, and round trips through every format."""

import gzip
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headwise.heads import HeadFileError, HeadId, HeadScores, HeadwiseError, load_heads
from headwise.heads.formats import FORMATS, on_grid, spread, write_foreign

DATA = Path(__file__).parents[1] / "data" / "published-head-scores"
HEADKV = DATA / "headkv" / "Mistral-7B-Instruct-v0.2_retrieval_reasoning_heads.json.gz"
DUO = DATA / "duo-attention" / "Mistral-7B-Instruct-v0.2" / "full_attention_heads.tsv"
NAN = float("nan")


@pytest.fixture(scope="module")
def published():
    """The HeadKV file as plain JSON, read without headwise."""
    return json.loads(gzip.decompress(HEADKV.read_bytes()))


def test_headkv_equals_plain_json(published):
    scores = load_heads(HEADKV)
    assert scores.shape == (32, 32)
    assert scores.runs.shape == (76, 32, 32)
    assert len(published) == 32 * 32
    for key, numbers in published.items():
        layer, head = map(int, key.split("-"))
        assert scores.values[layer, head] == pytest.approx(sum(numbers) / len(numbers), abs=1e-12)
        np.testing.assert_allclose(scores.runs[:, layer, head], numbers, rtol=1e-6)


def test_headkv_top_heads(published):
    strongest = sorted(published, key=lambda key: -sum(published[key]) / len(published[key]))[:10]
    assert [f"{layer}-{head}" for layer, head in load_heads(HEADKV).top(10)] == strongest
    # Also as plain numbers, so that a mistake shared by both computations is seen.
    assert strongest[:3] == ["18-0", "7-18", "19-9"]


def test_headkv_says_where_it_came_from():
    assert load_heads(HEADKV).provenance == {"imported_from": HEADKV.name, "format": "layer-head lists"}


def test_duo_equals_the_plain_table():
    scores = load_heads(DUO)
    assert (scores.shape, scores.score, scores.runs) == ((32, 8), "gate", None)
    rows = [[float(cell) for cell in line.split("\t")] for line in DUO.read_text().splitlines()]
    np.testing.assert_array_equal(scores.values, rows)
    assert json.loads(DUO.with_name("config.json").read_text())["model_name"].endswith("Mistral-7B-Instruct-v0.2")
    assert scores.provenance["columns"] == "KV heads"


def test_duo_columns_are_repeated_to_query_heads():
    kv = load_heads(DUO)
    query = spread(kv, 4)
    assert query.shape == load_heads(HEADKV).shape
    for layer, head in np.ndindex(32, 32):
        assert query.values[layer, head] == kv.values[layer, head // 4]
    assert query.provenance["columns"] == "query heads"


@pytest.fixture
def scores():
    runs = np.random.default_rng(0).uniform(-1, 1, size=(3, 2, 4)).round(6).astype(np.float32)
    return HeadScores(runs.astype(np.float64).mean(axis=0), "copy", runs=runs)


@pytest.mark.parametrize("format", ["wu", "headkv"])
def test_round_trip_of_lists(tmp_path, scores, format):
    write_foreign(scores, tmp_path / "heads.json", format)
    got = load_heads(tmp_path / "heads.json")
    np.testing.assert_allclose(got.values, scores.values, atol=1e-6)
    np.testing.assert_array_equal(got.runs, scores.runs)
    assert got.ranking() == scores.ranking()


@pytest.mark.parametrize("format", ["wu", "headkv"])
def test_round_trip_without_runs_leaves_unscored_heads_out(tmp_path, format):
    values = np.array([[NAN, 0.25], [0.5, 0.125]])
    write_foreign(HeadScores(values, "copy"), tmp_path / "heads.json", format)
    assert json.loads((tmp_path / "heads.json").read_text()) == {"0-1": [0.25], "1-0": [0.5], "1-1": [0.125]}
    np.testing.assert_array_equal(load_heads(tmp_path / "heads.json").values, values)


def test_round_trip_of_duo(tmp_path, scores):
    write_foreign(scores, tmp_path / "heads.tsv", "duo")
    got = load_heads(tmp_path / "heads.tsv")
    np.testing.assert_allclose(got.values, scores.values, atol=5e-7)
    assert got.score == "gate"


@pytest.mark.slow
def test_round_trip_of_the_published_files(tmp_path):
    for source, name, format in ((HEADKV, "headkv.json", "headkv"), (HEADKV, "wu.json", "wu"), (DUO, "duo.tsv", "duo")):
        scores = load_heads(source)
        write_foreign(scores, tmp_path / name, format)
        got = load_heads(tmp_path / name)
        np.testing.assert_allclose(got.values, scores.values, atol=1e-6)
        assert got.top(5).heads == scores.top(5).heads
        assert (got.runs is None) == (scores.runs is None)


def test_lists_of_different_lengths_keep_their_means(tmp_path):
    # Wu et al. append one value per successful run; a file may hold heads with more runs than others, and heads with none.
    path = tmp_path / "heads.json"
    path.write_text('{"1-2": [0.5, 0.25], "L0H0": [1], "0-1": []}')
    got = load_heads(path)
    np.testing.assert_array_equal(got.values, [[1, NAN, NAN], [NAN, NAN, 0.375]])
    assert got.runs is None


def test_existing_files_and_unknown_formats_are_refused(tmp_path, scores):
    (tmp_path / "heads.json").write_text("mine")
    with pytest.raises(HeadFileError, match="exists; give another name"):
        write_foreign(scores, tmp_path / "heads.json", "wu")
    assert (tmp_path / "heads.json").read_text() == "mine"
    with pytest.raises(HeadFileError, match=f"unknown head format 'csv'; known: {', '.join(FORMATS)}"):
        write_foreign(scores, tmp_path / "heads.csv", "csv")
    assert not (tmp_path / "heads.csv").exists()


BROKEN = {
    "words.tsv": ("1.0\tone\n", "not a table of numbers separated by tabs"),
    "ragged.tsv": ("1\t2\n3\n", "not a table of numbers separated by tabs"),
    "empty.tsv": ("", "one row of finite gates per layer"),
    "blank.tsv": ("\n \n", "one row of finite gates per layer"),
    "nan.tsv": ("nan\t1\n", "one row of finite gates per layer"),
    "infinite.tsv": ("inf\t1\n", "one row of finite gates per layer"),
    "commas.tsv": ("1,2\n3,4\n", "not a table of numbers separated by tabs"),
    "table.json": ("1\t2\n3\t4\n", "no valid JSON"),
    "numbers.json": ('{"0-0": 0.5}', "object of lists per 'LAYER-HEAD'"),
    "mixed.json": ('{"0-0": [0.5], "model": "tiny"}', "object of lists per 'LAYER-HEAD'"),
    "key.json": ('{"layer0": [0.5]}', "'layer0' is not a head"),
    "negative.json": ('{"-1-0": [0.5]}', "'-1-0' is not a head"),
    "words.json": ('{"0-0": ["much"]}', "is not a head file"),
    "nested.json": ('{"0-0": [[0.5]]}', "is not a head file"),
    "null.json": ('{"0-0": [null]}', "is not a head file"),
    "nan.json": ('{"0-0": [NaN]}', "not a finite number"),
    "infinite.json": ('{"0-0": [0.5, 1e999]}', "not a finite number"),
    "text.json": ('{"0-0": ["0.5"]}', "'0.5' is no number"),
    "true.json": ('{"0-0": [true]}', "True is no number"),
    "whole.json": ('{"0-0": [' + "9" * 400 + "]}", "is not a head file"),
    "endless.json": ('{"' + "9" * 5000 + '-0": [0.5]}', "is not a head"),
    "wide.json": ('{"0-999999999": [0.5]}', "names L0H999999999, which no model has"),
    "runs.json": ('{"999-999": [' + ",".join(["0.5"] * 200) + "]}", "which no model has with 200 runs"),
    "again.json": ('{"0-0": [0.5], "0-0": [0.7]}', "the name '0-0' stands there twice"),
    "half.json": ('{"\\ud800": [0.5]}', "is not a head"),
    "wide.tsv": ("1\t" * 1_000_001 + "1\n", "more numbers than any model has heads"),
    "long.tsv": ("1\n" * 1_000_001, "more numbers than any model has heads"),
    "plain.json.gz": ('{"0-0": [0.5]}', "cannot read a head file from"),
}


def check_refused(path, message):
    with pytest.raises(HeadFileError, match=message) as error:
        load_heads(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", BROKEN)
def test_malformed_files_are_refused(tmp_path, name):
    text, message = BROKEN[name]
    (tmp_path / name).write_text(text)
    check_refused(tmp_path / name, message)


def test_a_truncated_download_is_refused(tmp_path):
    path = tmp_path / "heads.json.gz"
    path.write_bytes(HEADKV.read_bytes()[:100_000])
    check_refused(path, "cannot read a head file from")


def test_a_damaged_download_is_refused(tmp_path):
    raw = bytearray(HEADKV.read_bytes())
    raw[1_000:1_200] = b"\xff" * 200
    path = tmp_path / "heads.json.gz"
    path.write_bytes(raw)
    check_refused(path, "cannot read a head file from")


def test_duo_never_writes_a_number_for_an_unscored_head(tmp_path):
    # The table has no sign for "not scored", so the only honest answers are a refusal and a cell that reads back as NaN.
    path = tmp_path / "heads.tsv"
    with suppress(HeadFileError):
        write_foreign(HeadScores(np.array([[NAN, -1.0, 0.5]]), "gate"), path, "duo")
    assert not path.exists() or np.isnan(load_heads(path).values[0, 0])


def test_lists_leave_unscored_runs_out(tmp_path):
    runs = np.array([[[NAN, 0.25]], [[0.5, 0.75]]], dtype=np.float32)
    write_foreign(HeadScores(np.array([[0.5, 0.5]]), "copy", runs=runs), tmp_path / "heads.json", "wu")
    np.testing.assert_array_equal(load_heads(tmp_path / "heads.json").values, [[0.5, 0.5]])


def test_a_head_named_twice_is_refused(tmp_path):
    path = tmp_path / "heads.json"
    path.write_text('{"0-0": [0.5], "L0H0": [0.75], "0-1": [1]}')
    check_refused(path, "twice")


def test_an_absurd_head_number_is_refused(tmp_path):
    path = tmp_path / "heads.json"
    # More than any address space holds: a size that a machine might really hand out would end the test run.
    path.write_text('{"0-0": [0.5], "99999999-99999999": [0.7]}')
    check_refused(path, "99999999")


def test_a_list_without_a_grid_says_that_its_shape_is_a_guess(tmp_path):
    path = tmp_path / "heads.json"
    path.write_text('{"1-2": [0.5, 0.25], "0-0": [1, 1]}')
    scores = load_heads(path)
    assert (scores.shape, scores.provenance["shape_guessed"]) == ((2, 3), True)
    with pytest.raises(HeadwiseError, match=r"does not name all heads: headwise convert FILE NEW\.json --shape 4x8"):
        scores.top(1).check_fits((4, 8), "tiny")
    placed = on_grid(scores, (4, 8))
    assert "shape_guessed" not in placed.provenance
    assert (placed.shape, placed.runs.shape) == ((4, 8), (2, 4, 8))
    assert placed.top(2).heads == scores.top(2).heads == ((0, 0), (1, 2))
    assert np.isnan(placed.values).sum() == 30
    placed.top(1).check_fits((4, 8), "tiny")
    for small in ((1, 8), (4, 2)):
        with pytest.raises(HeadFileError, match="name heads of at least 2 layers x 3 heads; they cannot stand for"):
            on_grid(scores, small)
    with pytest.raises(HeadwiseError, match="no model has"):
        on_grid(scores, (10**6, 10**6))
    assert on_grid(load_heads(HEADKV), (32, 32)) == load_heads(HEADKV)  # names all its heads
    with pytest.raises(HeadFileError, match="have 32 layers x 32 heads; they cannot stand for 40 x 32"):
        on_grid(load_heads(HEADKV), (40, 32))


def test_only_tables_per_kv_head_are_spread():
    kv = replace(load_heads(DUO), tables={"t": load_heads(DUO).values}, runs=load_heads(DUO).values[None].astype(np.float32))
    wide = spread(kv, 4)
    assert (wide.shape, wide.runs.shape, wide.tables["t"].shape) == ((32, 32), (1, 32, 32), (32, 8))
    with pytest.raises(HeadFileError, match="of query heads already"):
        spread(wide, 4)
    for wrong in (0, -1):
        with pytest.raises(HeadFileError, match="at least 1 query head per KV head"):
            spread(kv, wrong)
    with pytest.raises(HeadwiseError, match="no model has"):
        spread(kv, 10**9)


def test_what_a_format_cannot_hold_is_said(tmp_path, scores):
    full = replace(scores, run_info=({"n": 1},) * 3, provenance={"model": "m"}, tables={"lift": np.zeros((2, 4))})
    assert write_foreign(full, tmp_path / "a.json", "wu") == ["table lift", "run descriptions", "provenance"]
    assert write_foreign(full, tmp_path / "a.tsv", "duo") == ["table lift", "run descriptions", "provenance", "runs"]
    assert write_foreign(scores, tmp_path / "b.json", "wu") == []


def test_head_ids_of_the_published_list_parse(published):
    assert {HeadId.parse(key) for key in published} == set(map(HeadId._make, np.ndindex(32, 32)))
