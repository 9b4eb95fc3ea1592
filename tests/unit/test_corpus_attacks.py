"""Folders of others, changed records, names that point elsewhere, files made to exhaust the machine: refused in one line, or counted."""

import gzip
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from headwise.heads import HeadwiseError
from headwise.testing.stub_scorer import StubScorer

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from headwise.corpus import readers  # noqa: E402
from headwise.corpus.choose import choose  # noqa: E402
from headwise.corpus.documents import HASH_KEY  # noqa: E402
from headwise.corpus.inputs import find_inputs  # noqa: E402
from headwise.corpus.local_runner import score_files  # noqa: E402
from headwise.corpus.options import ChoiceOptions, ScoreOptions  # noqa: E402
from headwise.corpus.originals import Originals  # noqa: E402
from headwise.corpus.output import read_record  # noqa: E402
from headwise.corpus.readers import Reader, check_columns  # noqa: E402
from headwise.corpus.tables import ScoreFiles  # noqa: E402

WORDS = "the wind grew colder and the road went on over the hills to the mill "


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(path, **options):
    found = find_inputs([str(path)])
    reader = Reader(found.filesystem, found.files[0], ScoreOptions(**options))
    return list(reader.rows()), reader.damaged


def one_line(error, *parts):
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


@pytest.fixture
def scored(tmp_path):
    """A folder of two inputs, and their scores."""
    given = tmp_path / "given"
    (given / "deep").mkdir(parents=True)
    texts = [{"text": WORDS * (1 + i % 7) + str(i), "n": i} for i in range(60)]
    (given / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    pq.write_table(pa.Table.from_pylist(texts), given / "deep" / "b.parquet", row_group_size=20)
    score_files([str(given)], str(tmp_path / "out"), StubScorer)
    return given, tmp_path / "out"


# ---- folders of others


@pytest.mark.parametrize("content", [{"notes.txt": b"mine"}, {"tmp/notes.txt": b"mine"}, {"scores/a.parquet": b"mine"}])
def test_scores_are_not_put_beside_things_of_others(scored, tmp_path, content):
    for name, data in content.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True)
        (tmp_path / "own" / name).write_bytes(data)
    with pytest.raises(HeadwiseError) as error:
        score_files([str(scored[0])], str(tmp_path / "own"), StubScorer)
    one_line(error, "holds other things than scores")
    assert tree(tmp_path / "own") == content


@pytest.mark.parametrize("text", ["", "[", "[]", "3", '{"config_hash": 1}', "[" * 100_000])
def test_a_run_json_of_others_is_refused(scored, tmp_path, text):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "run.json").write_text(text)
    with pytest.raises(HeadwiseError) as error:
        score_files([str(scored[0])], str(tmp_path / "own"), StubScorer)
    one_line(error, "run.json")
    assert tree(tmp_path / "own") == {"run.json": text.encode()}


def test_a_choice_never_replaces_files_of_others(scored, tmp_path):
    given, out = scored
    before = tree(given)
    for overwrite in (False, True):
        with pytest.raises(HeadwiseError) as error:
            choose(str(out), into=str(given), overwrite=overwrite)  # the folder of the inputs
        one_line(error, "holds files, but no choice")
    for inside in ("scores", "done", "tmp/x", "scores/deep"):
        with pytest.raises(HeadwiseError, match="is where the scores are"):
            choose(str(out), into=str(out / inside))
    assert tree(given) == before


def test_an_older_choice_leaves_nothing_behind_and_what_others_put_there_stays(scored):
    _, out = scored
    choose(str(out), ChoiceOptions(share=0.5), copy=True)
    (out / "selected" / "notes.txt").write_text("mine")
    assert (out / "selected" / "rows" / "a.jsonl").exists()
    choose(str(out), ChoiceOptions(share=0.5), overwrite=True)
    assert sorted(tree(out / "selected")) == [
        ".choice", "a.jsonl.parquet", "deep/b.parquet", "manifest.json", "notes.txt", "thresholds.json",
    ]  # fmt: skip


# ---- changed records


def change(out, of, **changes):
    path = out / "done" / f"{of}.json"
    record = json.loads(path.read_text())
    for key, value in changes.items():
        if key in ("path", "version"):
            record["input"][key] = value
        else:
            record[key] = value
    path.write_text(json.dumps(record))


def test_a_record_with_another_name_writes_nothing_elsewhere(scored, tmp_path):
    _, out = scored
    for name in ("../../../evil.jsonl", "/tmp/evil.jsonl", "deep/../../x.jsonl", "other.jsonl"):
        change(out, "a.jsonl", name=name)
        before = tree(tmp_path)
        with pytest.raises(HeadwiseError) as error:
            choose(str(out), copy=True, into=str(tmp_path / "chosen"))
        one_line(error, "the done record of a.jsonl is broken", "score it again")
        assert tree(tmp_path) == before


def test_a_record_cannot_pull_another_file_into_a_report(scored, tmp_path):
    given, out = scored
    secret = tmp_path / "home" / "a.jsonl"
    secret.parent.mkdir()
    size = (given / "a.jsonl").stat().st_size
    secret.write_text(json.dumps({"text": "secret"}).ljust(size))
    version = json.loads((out / "done" / "a.jsonl.json").read_text())["input"]["version"]
    for path in (secret, tmp_path / "home" / "b.jsonl"):
        change(out, "a.jsonl", path=str(path), version=version)
        assert Originals(ScoreFiles(str(out))).texts("a.jsonl.parquet", [0]) == [None]
    change(out, "a.jsonl", path=str(given / "a.jsonl"))
    assert Originals(ScoreFiles(str(out))).texts("a.jsonl.parquet", [0]) == [WORDS + "0"]


def test_a_touched_input_is_found_by_name_only(scored):
    given, out = scored
    os.utime(given / "a.jsonl", (1, 1))
    with pytest.raises(HeadwiseError) as error:
        choose(str(out), copy=True)
    one_line(error, "a.jsonl.parquet was touched since it was scored; say where the inputs are now with --inputs")
    assert choose(str(out), copy=True, inputs=[str(given)])["all"]["chosen"] > 0


PYTHON_WORDS = re.compile(r"Error\(|[Nn]oneType|object has no|subscriptable|'(int|str|list|dict)'|codec")
BROKEN_RECORDS = [
    b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, {"name": 3}, {"path": 3}, {"version": None}, {"version": {"size": 1}},
    {"version": {"size": -1, "mtime_ns": 1, "tag": None}}, {"version": {"size": 1, "mtime_ns": "x", "tag": None}}, {"rows": -1},
    {"rows": 1.5}, {"rows": True}, {"scored": 10**9}, {"tokens": float("nan")}, {"rejected": []}, {"rejected": {"x": -1}}, {"damaged": 3},
    {"config_hash": None},
]  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN_RECORDS, ids=lambda value: str(value)[:40])
def test_a_broken_record_counts_as_unfinished_and_is_refused_by_a_copy(scored, broken):
    given, out = scored
    whole = tree(out)
    path = out / "done" / "a.jsonl.json"
    if isinstance(broken, bytes):
        path.write_bytes(broken)
    else:
        change(out, "a.jsonl", **broken)
    with pytest.raises(HeadwiseError) as error:
        read_record(path.read_bytes(), "a.jsonl")
    one_line(error, "done/a.jsonl.json")
    assert not PYTHON_WORDS.search(str(error.value))
    with pytest.raises(HeadwiseError) as error:
        choose(str(out), copy=True)
    one_line(error, "a.jsonl")
    assert not PYTHON_WORDS.search(str(error.value))
    if broken != {"config_hash": None}:
        assert score_files([str(given)], str(out), StubScorer).files_scored == 1
        assert tree(out) == whole


def changed_scores(out, **columns):
    path = out / "scores" / "a.jsonl.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.schema.names.index(name), name, values)
    pq.write_table(table.replace_schema_metadata(table.schema.metadata), path)


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"score": pa.array(["x"] * 60)}, "another kind of column 'score'"),
        ({"flagged": pa.array([1] * 60)}, "another kind of column 'flagged'"),
        ({"domain": pa.array([[1]] * 60)}, "another kind of column 'domain'"),
        ({"n_tokens": pa.array([-1] * 60)}, "-1 to -1 in column 'n_tokens'"),
        ({"n_tokens": pa.array([2**40] * 60)}, "in column 'n_tokens'"),
        ({"row": pa.array([-5] * 60)}, "in column 'row'"),
        ({"score": pa.array([float("inf")] * 60)}, "an infinite number in column 'score'"),
    ],
)
def test_score_files_with_impossible_columns(scored, columns, part):
    changed_scores(scored[1], **columns)
    with pytest.raises(HeadwiseError) as error:
        choose(str(scored[1]))
    one_line(error, "a.jsonl.parquet", part)


@pytest.mark.parametrize("metadata", [b"", b"[", b"[]", b"\xff", b'{"reading": 3}', b'{"reading": {"text_column": 3}}'])
def test_score_files_with_a_broken_description(scored, metadata):
    path = scored[1] / "scores" / "a.jsonl.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(table.schema.metadata | {b"headwise.config": metadata}), path)
    try:
        assert ScoreFiles(str(scored[1])).text_column == "text"
    except HeadwiseError as error:
        assert "does not say how it was scored" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "changes",
    [{"share": 7}, {"share": "x"}, {"strata": 1.5}, {"flagged": 1}, {"seed": -1}, {"extra": 1}, {"min_loss": float("inf")}],
)
def test_options_of_a_changed_manifest(changes):
    good = ChoiceOptions().to_json()
    assert ChoiceOptions.from_json(json.loads(json.dumps(good)), "m") == ChoiceOptions()
    with pytest.raises(HeadwiseError) as error:
        ChoiceOptions.from_json(good | changes, "m")
    one_line(error, "m ", "choose again")
    for data in (None, [], 3, {}):
        with pytest.raises(HeadwiseError, match="does not hold the options"):
            ChoiceOptions.from_json(data, "m")


# ---- several processes at once

CHOOSER = """
import sys
from headwise.corpus.choose import choose
from headwise.corpus.options import ChoiceOptions
from headwise.heads.errors import HeadwiseError
try:
    choose(sys.argv[1], ChoiceOptions(rank="random", seed=int(sys.argv[2])), overwrite=True, copy=True)
except HeadwiseError as error:
    sys.exit(str(error))
"""


def write_many(out, files=6, rows=4000):
    rng = np.random.default_rng(0)
    (out / "scores").mkdir(parents=True)
    for i in range(files):
        score = rng.standard_normal(rows).astype(np.float32)
        columns = {"row": np.arange(rows), "domain": ["d"] * rows, "loss_base": np.ones(rows, np.float32), "score": score}
        columns |= {"n_tokens": np.full(rows, 9), "flagged": np.zeros(rows, bool)}
        pq.write_table(pa.table(columns).replace_schema_metadata({HASH_KEY: b"abc"}), out / "scores" / f"{i}.parquet")


@pytest.mark.slow
def test_choices_side_by_side_never_mix(tmp_path):
    out = tmp_path / "out"
    write_many(out)
    expected = {}
    for seed in range(3):
        choose(str(out), ChoiceOptions(rank="random", seed=seed), into=str(tmp_path / f"alone{seed}"))
        expected[seed] = tree(tmp_path / f"alone{seed}")
    assert len({json.dumps(sorted(map(str, one.items()))) for one in expected.values()}) == 3
    code = CHOOSER.replace(", copy=True", "")
    for _ in range(2):
        running = [
            subprocess.Popen([sys.executable, "-c", code, str(out), str(seed)], stderr=subprocess.PIPE, text=True)
            for seed in range(3)
        ]
        errors = [process.communicate(timeout=120)[1] for process in running]
        assert 0 in [process.returncode for process in running]
        for error in filter(None, errors):
            assert "another process is choosing into" in error
        seed = json.loads((out / "selected" / "manifest.json").read_text())["options"]["seed"]
        assert tree(out / "selected") == expected[seed]


@pytest.mark.slow
def test_the_lock_of_a_dead_process_is_taken_over_and_its_rest_removed(tmp_path):
    out = tmp_path / "out"
    write_many(out, files=2, rows=200)
    code = CHOOSER.replace(", copy=True", "").replace("try:", "import os, signal\nfrom headwise.corpus import choose as c\n"
        "c.tables = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\ntry:", 1)  # fmt: skip
    killed = subprocess.run([sys.executable, "-c", code, str(out), "0"], check=False)
    assert killed.returncode == -9
    (out / "selected" / f".0.parquet.{'a' * 32}.tmp").write_bytes(b"half")
    assert (out / "selected" / ".lock.json").exists()
    started = time.monotonic()
    choose(str(out))
    assert time.monotonic() - started < 30
    assert sorted(tree(out / "selected")) == [".choice", "0.parquet", "1.parquet", "manifest.json", "thresholds.json"]


def test_a_living_owner_of_the_lock_is_respected(tmp_path):
    from headwise.corpus.folder import Folder

    out = tmp_path / "out"
    write_many(out, files=1, rows=50)
    with Folder(str(out / "selected")).alone("choosing into"), pytest.raises(HeadwiseError) as error:
        choose(str(out))
    one_line(error, "another process is choosing into", "wait for it, or give another --output")
    choose(str(out))


# ---- damaged inputs and copies


def test_a_copy_of_a_corpus_with_damaged_parquet_skips_and_counts(tmp_path):
    given, out = tmp_path / "given", tmp_path / "out"
    given.mkdir()
    rng = np.random.default_rng(0)
    rows = [{"text": WORDS + str(i), "blob": rng.bytes(300)} for i in range(600)]
    pq.write_table(pa.Table.from_pylist(rows), given / "a.parquet", row_group_size=200, compression="none", use_dictionary=False)
    (given / "b.parquet").write_bytes(b"PAR1 no table")
    (given / "c.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows))
    data = bytearray((given / "a.parquet").read_bytes())
    place = data.index(rows[250]["blob"])  # in the second row group, in a column that is not scored
    header = pq.ParquetFile(given / "a.parquet").metadata.row_group(1).column(1).data_page_offset
    data[header : header + 12] = b"\xff" * 12
    assert header < place
    (given / "a.parquet").write_bytes(data)
    summary = score_files([str(given)], str(out), StubScorer)
    assert list(summary.damaged) == ["b.parquet"]
    result = choose(str(out), ChoiceOptions(share=1.0), copy=True)
    entries = {entry["name"]: entry for entry in result["files"]}
    assert entries["b.parquet"] == {"name": "b.parquet", "rows": 0, "selected": 0, "not_copied": 0}
    assert (entries["a.parquet"]["selected"], entries["a.parquet"]["not_copied"]) == (600, 200)
    copied = pq.read_table(out / "selected" / "rows" / "a.parquet")
    assert copied["text"].to_pylist() == [row["text"] for row in rows[:200] + rows[400:]]
    assert not (out / "selected" / "rows" / "b.parquet").exists()
    assert len((out / "selected" / "rows" / "c.jsonl").read_text().splitlines()) == 600


# ---- text files


def test_a_text_file_is_one_document(tmp_path):
    given, out = tmp_path / "books", tmp_path / "out"
    (given / "old").mkdir(parents=True)
    texts = {"a.txt": "\ufeffOne line\u2028and\r\nanother.\n\n", "old/b.txt.gz": WORDS * 9}
    (given / "a.txt").write_text(texts["a.txt"], newline="")
    (given / "old" / "b.txt.gz").write_bytes(gzip.compress(texts["old/b.txt.gz"].encode()))
    (given / "c.txt").write_bytes(b"\xff\xfe")
    (given / "d.txt").write_text("")
    (given / "e.txt.gz").write_bytes(gzip.compress((WORDS * 999).encode())[:-20])
    rows, damaged = rows_of(given / "a.txt")
    assert [row.text for row in rows] == [texts["a.txt"].removeprefix("\ufeff")]
    assert damaged is None
    summary = score_files([str(given)], str(out), StubScorer, ScoreOptions(domain_from="folder"))
    assert (summary.rows, summary.scored) == (5, 2)
    assert summary.rejected == {"not UTF-8": 1, "no text": 1, "damaged file": 1}
    assert list(summary.damaged) == ["e.txt.gz"]
    choose(str(out), ChoiceOptions(share=1.0, flagged=True), copy=True)
    assert (out / "selected" / "rows" / "a.txt").read_bytes() == (given / "a.txt").read_bytes().removeprefix("\ufeff".encode())
    assert gzip.decompress((out / "selected" / "rows" / "old" / "b.txt.gz").read_bytes()).decode() == texts["old/b.txt.gz"]
    with pytest.raises(HeadwiseError, match=r"no column 'kind' in a\.txt; it has text"):
        score_files([str(given)], str(tmp_path / "other"), StubScorer, ScoreOptions(domain_column="kind"))


def test_a_text_file_longer_than_the_longest_line_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST_LINE", 1000)
    (tmp_path / "a.txt").write_text("x" * 1001)
    rows, _ = rows_of(tmp_path / "a.txt")
    assert [(row.text, row.problem[0]) for row in rows] == [(None, "line too long")]


# ---- columns inside columns

NESTED = [
    {"text": "a", "metadata": {"source": "web", "id": 1, "deep": {"er": "x"}}},
    {"text": "b", "metadata": None},
    {"text": "c", "metadata": {"source": None, "id": None, "deep": None}},
    {"text": "d", "metadata": {"source": "books", "id": 4, "deep": {"er": "y"}}},
]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_nested_columns(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(NESTED), path)
    else:
        path.write_text("\r\n".join(map(json.dumps, NESTED)))
    rows, _ = rows_of(path, domain_column="metadata.source", id_column="metadata.id")
    assert [(row.text, row.domain, row.id) for row in rows] == [
        ("a", "web", "1"),
        ("b", None, None),
        ("c", None, None),
        ("d", "books", "4"),
    ]
    rows, _ = rows_of(path, text_column="metadata.deep.er")
    assert [row.text for row in rows] == ["x", None, None, "y"]
    found = find_inputs([str(path)])
    with pytest.raises(
        HeadwiseError, match=r"no column 'metadata\.src' in .*; it has text, (metadata\.(source|id|deep\.er)(, |$)){3}"
    ):
        check_columns(found, found.files, ScoreOptions(domain_column="metadata.src"))
    check_columns(found, found.files, ScoreOptions(domain_column="metadata.source"))


def test_a_column_with_a_dot_in_its_name_comes_first(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a", "m.s": "plain", "m": {"s": "nested"}}))
    pq.write_table(pa.Table.from_pylist([{"text": "a", "m.s": "plain"}]), tmp_path / "b.parquet")
    for name in ("a.jsonl", "b.parquet"):
        assert [row.domain for row in rows_of(tmp_path / name, domain_column="m.s")[0]] == ["plain"]


def test_several_members_of_gzip_and_line_ends_of_windows(tmp_path):
    lines = [json.dumps({"text": f"{i}\u2028\u0085\x0b"}, ensure_ascii=False) for i in range(5)]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(gzip.compress(f"{line}\r\n".encode()) for line in lines))
    rows, damaged = rows_of(tmp_path / "a.jsonl.gz")
    assert [row.text for row in rows] == [f"{i}\u2028\u0085\x0b" for i in range(5)]
    assert damaged is None


def test_a_byte_order_mark_is_no_part_of_a_line(tmp_path):
    joined = b"".join(b"\xef\xbb\xbf" + json.dumps({"text": text}).encode() + b"\n" for text in "xy")
    (tmp_path / "joined.jsonl").write_bytes(joined)
    assert [row.text for row in rows_of(tmp_path / "joined.jsonl")[0]] == ["x", "y"]
    for name, pack in (("a.jsonl", bytes), ("b.jsonl.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(b"\xef\xbb\xbf" + json.dumps({"text": "x", "k": "d"}).encode()))
        assert [row.text for row in rows_of(tmp_path / name)[0]] == ["x"]
        found = find_inputs([str(tmp_path / name)])
        with pytest.raises(HeadwiseError, match=r"it has text, k$"):
            check_columns(found, found.files, ScoreOptions(domain_column="nowhere"))


# ---- what exhausts a machine


@pytest.mark.slow
def test_a_file_that_unpacks_to_far_more_than_its_size_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MOST_UNPACKED", 1 << 20)
    line = json.dumps({"text": "x" * 1000}).encode() + b"\n"
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(line * 20_000))  # 20 MB in some 60 KB
    rows, damaged = rows_of(tmp_path / "bomb.jsonl.gz")
    assert "unpacks to more than 200 times its size" in damaged
    assert 900 < len(rows) < 14_000
    rng = np.random.default_rng(0)
    fine = b"".join(json.dumps({"text": rng.bytes(30).hex()}).encode() + b"\n" for _ in range(30_000))
    (tmp_path / "fine.jsonl.gz").write_bytes(gzip.compress(fine))
    rows, damaged = rows_of(tmp_path / "fine.jsonl.gz")
    assert (len(rows), damaged) == (30_000, None)


def test_deep_json_and_lone_surrogates_are_rows_without_a_text(tmp_path):
    lines = [
        "[" * 200_000,
        '{"text": ' + "[" * 100_000,
        '{"a":' * 50_000,
        '{"text": "\\ud800"}',
        '{"text": "x", "k": "\\udc00"}',
        "9" * 5000,
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows, _ = rows_of(tmp_path / "a.jsonl", domain_column="k")
    assert [row.problem and row.problem[0] for row in rows] == ["broken JSON"] * 3 + ["not valid text", None, "broken JSON"]
    assert rows[4][:2] == ("x", None)
    deep = {"text": "x"}
    for _ in range(50):
        deep = {"text": "x", "d": deep}
    (tmp_path / "b.jsonl").write_text(json.dumps(deep))
    found = find_inputs([str(tmp_path / "b.jsonl")])
    check_columns(found, found.files, ScoreOptions(domain_column="d.d.text"))


# ---- a full disk

FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
from headwise.corpus.choose import choose
from headwise.corpus.local_runner import score_files
from headwise.heads.errors import HeadwiseError
from headwise.testing.stub_scorer import StubScorer
try:
    score_files([sys.argv[1]], sys.argv[2], StubScorer) if sys.argv[3] == "score" else choose(sys.argv[2], copy=True)
except HeadwiseError as error:
    sys.exit(str(error))
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["score", "choose"])
def test_a_disk_without_room_is_one_line_and_the_same_call_goes_on(tmp_path, what):
    given, out = tmp_path / "given", tmp_path / "out"
    given.mkdir()
    rng = np.random.default_rng(0)
    (given / "a.jsonl").write_text("".join(json.dumps({"text": rng.bytes(60).hex()}) + "\n" for _ in range(3000)))
    if what == "choose":
        score_files([str(given)], str(out), StubScorer)
    done = subprocess.run([sys.executable, "-c", FULL, str(given), str(out), what], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "could not" in done.stderr or "could not be written" in done.stderr
    assert "large" in done.stderr
    if what == "score":
        assert score_files([str(given)], str(out), StubScorer).rows == 3000
    choose(str(out), copy=True)
    assert not [path for path in tree(out) if path.endswith(".tmp")]
