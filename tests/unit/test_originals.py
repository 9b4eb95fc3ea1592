"""Rows read back from the inputs of a scored corpus: texts of some, and whole chosen rows in the format of the input."""

import gzip
import json
import os

import numpy as np
import pytest

from headwise.corpus.documents import DocumentScore, Encoded
from headwise.heads import HeadwiseError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from headwise.corpus.choose import choose  # noqa: E402
from headwise.corpus.local_runner import score_files  # noqa: E402
from headwise.corpus.options import ChoiceOptions, ScoreOptions  # noqa: E402
from headwise.corpus.originals import Originals  # noqa: E402
from headwise.corpus.tables import ScoreFiles  # noqa: E402


class LengthScorer:
    """A document's score is a number that it ends with; no model."""

    description = {"scorer": "stub"}  # noqa: RUF012

    def encode(self, texts):
        return [
            Encoded(np.arange(0 if t is None else int(t.split()[-1]), dtype=np.int32), None if t else "no text") for t in texts
        ]

    def score(self, documents):
        sizes = [len(document.ids) for document in documents]
        return [DocumentScore(1.0, 1.0 + n, float(n), n, n) if n else DocumentScore.missing("no text") for n in sizes]


def lines(count):
    return [{"text": f"Ünïcode text {i % 7 + 1}", "domain": "ab"[i % 2], "more": {"i": i}} for i in range(count)]


@pytest.fixture
def scored(tmp_path):
    """Four inputs of all kinds with unusable rows in them, scored by the stub."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    pq.write_table(
        pa.Table.from_pylist([*lines(40), {"text": None, "domain": "a", "more": {"i": -1}}]),
        folder / "a.parquet",
        row_group_size=9,
    )
    texts = [json.dumps(row, ensure_ascii=False) for row in lines(30)]
    texts[3:3] = ["not json", ""]
    (folder / "b.jsonl").write_text("\n".join(texts))  # no line break at the end
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(("\n".join(texts) + "\n").encode()))
    with pa.CompressedOutputStream(str(folder / "d.jsonl.zst"), "zstd") as stream:
        stream.write(("\ufeff" + "\r\n".join(texts)).encode())
    score_files([str(folder)], str(out), LengthScorer, ScoreOptions(domain_column="domain"))
    return folder, out, texts


def test_texts_of_some_rows(scored):
    _, out, texts = scored
    originals = Originals(ScoreFiles(str(out)))
    assert originals.texts("a.parquet", [39, 0, 8, 9, 40]) == [f"Ünïcode text {n}" for n in (5, 1, 2, 3)] + [None]
    for name in ("b.jsonl", "c.jsonl.gz", "d.jsonl.zst"):
        assert originals.texts(f"{name}.parquet", [31, 0, 3, 5]) == [
            json.loads(texts[31])["text"], json.loads(texts[0])["text"], None, json.loads(texts[5])["text"]
        ]  # fmt: skip


def read_rows(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    with pa.input_stream(str(path), compression="detect") as stream:
        return [json.loads(line) for line in stream.read().decode().split("\n") if line]


def test_chosen_rows_are_copied_in_the_format_of_the_input(scored):
    folder, out, _ = scored
    result = choose(str(out), ChoiceOptions(share=0.3), copy=True)
    total = 0
    for file in sorted(folder.iterdir()):
        sidecar = file.name if file.suffix == ".parquet" else f"{file.name}.parquet"
        taken = pq.read_table(out / "selected" / sidecar)["selected"].to_numpy()
        if file.suffix == ".parquet":
            rows = pq.read_table(file).to_pylist()
        else:
            with pa.input_stream(str(file), compression="detect") as stream:
                rows = stream.read().decode().removeprefix("\ufeff").split("\n")[: len(taken)]
        expected = [row if isinstance(row, dict) else json.loads(row) for row, yes in zip(rows, taken, strict=True) if yes]
        copied = read_rows(out / "selected" / "rows" / file.name)
        assert copied == expected
        total += len(copied)
    assert total == result["all"]["chosen"] > 30
    schema = pq.read_schema(out / "selected" / "rows" / "a.parquet")
    assert schema == pq.read_schema(folder / "a.parquet")


def test_inputs_that_moved_or_changed(scored, tmp_path):
    folder, out, _ = scored
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    gone = Originals(ScoreFiles(str(out)))
    assert gone.texts("a.parquet", [0]) == [None]
    with pytest.raises(HeadwiseError, match=r"a.parquet is not where it was; say where the inputs are now with --inputs"):
        choose(str(out), copy=True)
    assert not (out / "selected").exists()
    found = Originals(ScoreFiles(str(out)), [str(moved)])
    assert found.texts("b.jsonl.parquet", [0]) == ["Ünïcode text 1"]
    choose(str(out), copy=True, inputs=[str(moved)])
    with open(moved / "b.jsonl", "a") as file:
        file.write("\n{}")
    changed = Originals(ScoreFiles(str(out)), [str(moved)])
    assert changed.texts("b.jsonl.parquet", [0]) == [None]
    with pytest.raises(HeadwiseError, match="has changed since it was scored"):
        changed.file("b.jsonl.parquet")


def test_a_file_that_breaks_off_gives_the_rows_in_front_of_the_break(tmp_path):
    texts = [json.dumps({"text": f"{os.urandom(40).hex()} {i % 5 + 1}"}) for i in range(4000)]
    whole = gzip.compress(("\n".join(texts) + "\n").encode())
    (tmp_path / "x.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    summary = score_files([str(tmp_path / "x.jsonl.gz")], str(out), LengthScorer)
    assert summary.damaged
    result = choose(str(out), ChoiceOptions(share=1.0), copy=True)
    copied = read_rows(out / "selected" / "rows" / "x.jsonl.gz")
    assert [json.dumps(row) for row in copied] == texts[: len(copied)]
    assert len(copied) == result["all"]["chosen"] > 1000
