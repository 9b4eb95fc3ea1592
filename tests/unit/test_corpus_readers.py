"""Rows and chunks of files, whole and damaged, against a slow reading of the same bytes."""

import gzip
import itertools
import json

import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwise.corpus import readers
from headwise.corpus.inputs import find_inputs
from headwise.corpus.options import ScoreOptions
from headwise.corpus.readers import Reader, UnreadableError, check_columns
from headwise.heads.errors import HeadwiseError

OPTIONS = ScoreOptions(id_column="id", domain_column="domain", chunk_rows=100)
TEXTS = ["plain", "", "ünï", "x" * 3000, "a\nb"]


def reader_of(path, options=OPTIONS, domain=None):
    found = find_inputs([str(path)])
    return Reader(found.filesystem, found.files[0], options, domain)


def packed(data, suffix):
    if suffix == ".gz":
        return gzip.compress(data, mtime=0)
    return pa.Codec("zstd").compress(data, asbytes=True) if suffix == ".zst" else data


def lines_of(count):
    return [json.dumps({"text": f"{i} {TEXTS[i % 5]}", "id": i, "domain": f"d{i % 3}"}) for i in range(count)]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_lines(tmp_path, suffix, end):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed(b"\xef\xbb\xbf" + ((end or "\n").join(lines_of(1000)) + end).encode(), suffix))
    reader = reader_of(path)
    rows = list(reader.rows())
    assert [(row.text, row.id, row.domain, row.problem) for row in rows] == [
        (f"{i} {TEXTS[i % 5]}", str(i), f"d{i % 3}", None) for i in range(1000)
    ]
    assert reader.damaged is None
    assert reader.position == 1.0


BAD_LINES = {
    '{"text": "ok"}': None,
    "{": "broken JSON",
    "": "blank line",
    "  ": "blank line",
    "[1]": "not a JSON object",
    "null": "not a JSON object",
    "[" * 100_000: "broken JSON",
    '{"other": "x"}': "no such column",
    '{"text": null}': "no text",
    '{"text": 3}': "not a text",
    '{"text": ["x"]}': "not a text",
    '{"text": "\\ud800"}': "not valid text",
    '{"text": "\\ud83d\\ude00"}': None,
    '{"text": "x", "text": null}': "no text",
    b'{"text": "\xff"}': "not UTF-8",
    b'{"text": "\xed\xa0\x80"}': "not UTF-8",
}


def test_bad_lines_are_rows_with_a_reason(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in BAD_LINES) + b"\n")
    rows = list(reader_of(path).rows())
    assert [row.problem and row.problem[0] for row in rows] == list(BAD_LINES.values())
    assert all((row.text is None) == (row.problem is not None) for row in rows)


def test_domains_and_ids_that_are_no_names(tmp_path):
    given = ["x", 3, None, True, 1.5, [1], "\ud800"]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": "t", "id": value, "domain": value}) for value in given))
    assert [(row.id, row.domain) for row in reader_of(path).rows()] == [(v, v) for v in ("x", "3", None, None, None, None, None)]


def test_long_lines_are_dropped_and_the_next_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "STEP", 64)
    monkeypatch.setattr(readers, "LONGEST_LINE", 1000)
    good = json.dumps({"text": "good"})
    path = tmp_path / "a.jsonl"
    for length in (900, 1100, 5000):
        for end in ("\n" + good, ""):
            path.write_text(good + "\n" + json.dumps({"text": "x" * length}) + end)
            reasons = [row.problem and row.problem[0] for row in reader_of(path).rows()]
            assert reasons == [None, None if length < 1000 else "line too long", *([None] if end else [])]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_cut_stream_gives_the_lines_before_the_cut(tmp_path, suffix):
    lines = lines_of(3000)
    whole = packed("\n".join(lines).encode(), suffix)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    results = []
    for _ in range(2):
        reader = reader_of(path)
        rows = list(reader.rows())
        results.append(rows)
        assert reader.damaged
        assert "\n" not in reader.damaged
    assert results[0] == results[1]
    assert 0 < len(rows) < 3000
    assert [row.text for row in rows] == [json.loads(line)["text"] for line in lines[: len(rows)]]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("data", [b"", b"PAR1", b"not at all", b"\x1f\x8b\x08"])
def test_garbage_has_no_rows(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    reader = reader_of(tmp_path / name)
    assert list(reader.rows()) == []
    assert reader.damaged is not None or (data == b"" and name != "a.parquet")  # an empty stream is an empty file


def parquet(path, count=1000, group=300, kind=None, **columns):
    texts = [None if i % 10 == 9 else f"{i} {TEXTS[i % 5]}" for i in range(count)]
    table = pa.table(
        {"text": pa.array(texts, kind), "id": list(range(count)), "domain": [f"d{i % 3}" for i in range(count)], **columns}
    )
    pq.write_table(table, path, row_group_size=group, compression="zstd")
    return texts


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()])
def test_parquet(tmp_path, kind):
    texts = parquet(tmp_path / "a.parquet", kind=kind)
    rows = list(reader_of(tmp_path / "a.parquet").rows())
    assert [row.text for row in rows] == texts
    assert [row.problem for row in rows] == [("no text", "") if text is None else None for text in texts]
    assert [(row.id, row.domain) for row in rows] == [(str(i), f"d{i % 3}") for i in range(1000)]
    assert [row.size for row in rows] == [len((text or "").encode()) for text in texts]


def test_parquet_with_texts_that_are_none(tmp_path):
    path = tmp_path / "a.parquet"
    for column, reasons in [
        (pa.array([1, None]), ["not a text", "no text"]),
        (pa.array([b"x", None], pa.binary()), ["not a text", "no text"]),
        (pa.array([None, None]), ["no text", "no text"]),
        (pa.array([b"\xff", b"ok"], pa.binary()).view(pa.string()), ["not valid text", None]),
    ]:
        pq.write_table(pa.table({"text": column}), path)
        assert [row.problem and row.problem[0] for row in reader_of(path).rows()] == reasons
    pq.write_table(pa.table({"other": [1, 2, 3]}), path)
    assert [row.problem for row in reader_of(path).rows()] == [("no such column", "text")] * 3


def test_a_damaged_row_group_keeps_its_rows_and_spares_the_others(tmp_path):
    path = tmp_path / "a.parquet"
    texts = parquet(path)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    for i in range(start, start + column.total_compressed_size):
        data[i] ^= 0x5A
    path.write_bytes(data)
    reader = reader_of(path)
    rows = list(reader.rows())
    assert len(rows) == 1000
    assert [row.text for row in rows[:300]] == texts[:300]
    assert [row.text for row in rows[600:]] == texts[600:]
    assert {row.problem[0] for row in rows[300:600]} == {"row group cannot be read"}
    assert reader.damaged.startswith("row group 1: ")


class Failing:
    """A file system whose files break off."""

    def __init__(self, fails):
        self.fails = fails

    def _open(self, file):
        outer = self

        class File:
            def __getattr__(self, name):
                return getattr(file, name)

            def read(self, size=None):
                if file.tell() >= outer.fails:
                    raise OSError("connection lost")
                return file.read(size)

        return File()

    def open_input_stream(self, path, compression=None):
        return self._open(fs.LocalFileSystem().open_input_file(path))

    open_input_file = open_input_stream


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("fails", [0, 60_000])
def test_bytes_that_cannot_be_had_are_no_damage(tmp_path, name, fails):
    path = tmp_path / name
    if name == "a.parquet":
        parquet(path, 10_000)
    else:
        path.write_bytes(
            packed("\n".join(f"{line}{i * 7919**3}" for i, line in enumerate(lines_of(30_000))).encode(), path.suffix)
        )
    found = find_inputs([str(path)])
    assert path.stat().st_size > 60_000
    with pytest.raises(UnreadableError, match="connection lost"):
        list(Reader(Failing(fails), found.files[0], OPTIONS).rows())


@settings(max_examples=50)
@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 9), st.integers(1, 100))
def test_chunks_cover_all_rows_within_their_bounds(tmp_path_factory, lengths, most_rows, most_bytes):
    path = tmp_path_factory.mktemp("x") / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(["x" * length for length in lengths], pa.string())}), path)
    chunks = list(reader_of(path, ScoreOptions(chunk_rows=most_rows, chunk_bytes=most_bytes), "whole").chunks())
    sizes = [[len(text) for text in chunk.texts] for chunk in chunks]
    assert [size for chunk in sizes for size in chunk] == lengths
    assert [chunk.first for chunk in chunks] == [sum(map(len, sizes[:i])) for i in range(len(sizes))]
    assert all(len(chunk) <= most_rows and (sum(chunk) <= most_bytes or len(chunk) == 1) for chunk in sizes)
    for before, after in itertools.pairwise(sizes):  # no chunk ends before it must
        assert len(before) == most_rows or sum(before) + after[0] > most_bytes
    assert all(chunk.domains == ["whole"] * len(chunk.texts) for chunk in chunks)


def test_columns_seen(tmp_path):
    parquet(tmp_path / "a.parquet", 3)
    (tmp_path / "b.jsonl").write_text("broken\n[1]\n" + json.dumps({"u": 1, "v": 2}))
    (tmp_path / "c.jsonl.gz").write_bytes(b"garbage")
    found = find_inputs([str(tmp_path)])
    for file, there in zip(found.files, (["text", "id", "domain"], ["u", "v"], None), strict=True):
        if there is None:
            check_columns(found, [file], ScoreOptions(text_column="nowhere"))
            continue
        with pytest.raises(HeadwiseError, match=f"no column 'nowhere' in {file.name}; it has {', '.join(there)}$"):
            check_columns(found, [file], ScoreOptions(text_column="nowhere"))
        for name in there:
            check_columns(found, [file], ScoreOptions(text_column=name))
