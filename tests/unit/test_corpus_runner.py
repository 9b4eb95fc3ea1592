"""From files to score files in one process: alignment, determinism, resume, refusals, what is damaged and what is shared."""

import gzip
import json
import random
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headwise.corpus import output as output_module
from headwise.corpus import readers
from headwise.corpus.documents import CONFIG_KEY, HASH_KEY, DocumentScore, schema_of, score_batch
from headwise.corpus.local_runner import read_ahead, score_files
from headwise.corpus.options import Config, ScoreOptions
from headwise.corpus.output import Output
from headwise.corpus.readers import UnreadableError
from headwise.heads.errors import HeadwiseError
from headwise.testing.stub_scorer import StubScorer

OPTIONS = ScoreOptions(id_column="id", domain_column="domain", chunk_rows=64, chunk_bytes=1 << 14, workers=2)
STUB = StubScorer(min_tokens=2)


def make_corpus(folder, rows=400, seed=0):
    """Seven files of all kinds with broken rows among them, one cut short, one that is no Parquet. Name -> its rows (None where broken)."""
    draw, truth = random.Random(seed), {}
    for place, name in enumerate(("a.parquet", "b.parquet", "c.jsonl", "sub/d.jsonl.gz", "sub/e.jsonl.zst", "sub/f.ndjson")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        documents = [
            {"text": f"{name} {i} " + "word " * draw.choice((0, 3, 30, 300)), "id": i, "domain": draw.choice(("web", "code"))}
            for i in range(rows + place)
        ]
        broken = {i for i in range(len(documents)) if draw.random() < 0.05}
        if name.endswith("parquet"):
            for i in broken:
                documents[i]["text"] = None
            pq.write_table(pa.Table.from_pylist(documents), path, row_group_size=rows // 3)
        else:
            lines = ["{broken" if i in broken else json.dumps(document) for i, document in enumerate(documents)]
            data = ("\n".join(lines) + "\n").encode()
            if name.endswith(".gz"):
                data = gzip.compress(data, mtime=0)
            path.write_bytes(pa.Codec("zstd").compress(data, asbytes=True) if name.endswith(".zst") else data)
        truth[name] = [None if i in broken else document for i, document in enumerate(documents)]
    (folder / "g.parquet").write_bytes(b"PAR1 no more")
    truth["g.parquet"] = []
    return truth


def tree(folder):
    """Relative path -> bytes of all results; what is under way does not count, but nothing may be left of it."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    assert not [name for name in files if name.startswith(("tmp/", "claims/"))]
    return files


def sidecar(name):
    return f"scores/{name}" if name.endswith(".parquet") else f"scores/{name}.parquet"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return folder, make_corpus(folder)


@pytest.fixture(scope="module")
def result(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("result") / "out"
    return score_files([str(corpus[0])], str(out), lambda: STUB, OPTIONS), out


def slow_scores(documents):
    """The same numbers, chunk by chunk, from whole lists."""
    scores, chunk, size = [], [], 0
    for document in [*documents, "end"]:
        length = len(document["text"]) if isinstance(document, dict) else 0
        if chunk and (document == "end" or len(chunk) == 64 or size + length > 1 << 14):
            scores += STUB.score(STUB.encode(chunk))
            chunk, size = [], 0
        chunk.append(document["text"] if isinstance(document, dict) else None)
        size += length
    return scores


@pytest.mark.parametrize("name", ["a.parquet", "b.parquet"])
def test_scores_are_those_of_a_slow_loop(corpus, result, name):
    table = pq.read_table(result[1] / sidecar(name))
    truth = slow_scores(corpus[1][name])
    for column in ("loss_base", "loss_ref", "score"):
        expected = np.array([getattr(score, column) for score in truth], np.float32)
        np.testing.assert_array_equal(table[column].to_numpy(), expected)
    for column in ("n_tokens", "n_scored", "truncated", "flagged"):
        assert table[column].to_pylist() == [getattr(score, column) for score in truth]


def test_every_row_has_its_row(corpus, result):
    summary, out = result
    for name, truth in corpus[1].items():
        table = pq.read_table(out / sidecar(name))
        assert table.schema.names[:3] == ["row", "id", "domain"]
        assert table["row"].to_pylist() == list(range(len(truth)))
        known = [(i, document) for i, document in enumerate(truth) if document is not None]
        assert [table["id"][i].as_py() for i, _ in known] == [str(document["id"]) for _, document in known]
        assert [table["domain"][i].as_py() for i, _ in known] == [document["domain"] for _, document in known]
        broken = {i for i, document in enumerate(truth) if document is None}
        assert {i for i, score in enumerate(table["score"].to_pylist()) if score is None} == broken
        rejected = out / f"rejected/{name}.jsonl"
        entries = [json.loads(line) for line in rejected.read_text().splitlines()] if rejected.exists() else []
        assert {entry["row"] for entry in entries} - {None} == broken
        assert all(entry.get("line", entry["row"] + 1) == entry["row"] + 1 for entry in entries if entry["row"] is not None)
    assert summary.rows == sum(map(len, corpus[1].values())) == summary.scored + sum(summary.rejected.values())
    assert set(summary.rejected) == {"no text", "broken JSON"}
    assert list(summary.damaged) == ["g.parquet"]
    assert summary.files_scored == 7
    assert summary.complete
    assert any("damaged: g.parquet" in line for line in summary.lines())
    json.dumps(summary.to_json())


def test_files_carry_their_configuration(result):
    out = result[1]
    metadata = pq.read_schema(out / "scores/a.parquet").metadata
    run = json.loads((out / "run.json").read_text())
    assert metadata[HASH_KEY].decode() == run["config_hash"] == Config.of(STUB.description, OPTIONS).hash
    assert json.loads(metadata[CONFIG_KEY]) == run["config"]
    assert run["config"]["scorer"] == STUB.description
    record = json.loads((out / "done/a.parquet.json").read_text())
    assert record["config_hash"] == run["config_hash"]
    assert record["rows"] == 400 == record["scored"] + sum(record["rejected"].values())


@pytest.mark.parametrize("workers", [1, 5])
def test_threads_and_shards_change_no_byte(corpus, result, tmp_path, workers):
    for index in range(3):
        options = ScoreOptions(**{**vars(OPTIONS), "workers": workers, "shard": (index, 3)})
        score_files([str(corpus[0])], str(tmp_path / "out"), lambda: STUB, options)
    assert tree(tmp_path / "out") == tree(result[1])


def test_a_finished_job_does_nothing(corpus, result):
    before = {path: path.stat().st_mtime_ns for path in result[1].rglob("*") if path.is_file()}
    again = score_files([str(corpus[0])], str(result[1]), lambda: STUB, OPTIONS)
    assert (again.files_scored, again.files_done_before, again.rows) == (0, 7, 0)
    assert before == {path: path.stat().st_mtime_ns for path in result[1].rglob("*") if path.is_file()}


class Breaking(StubScorer):
    """Fails in one call."""

    def __init__(self, at, where):
        super().__init__(min_tokens=2)
        self.left, self.where, self.lock = at, where, threading.Lock()

    def _count(self, where):
        with self.lock:
            self.left -= where == self.where
            if self.left < 0:
                raise RuntimeError("out of memory")

    def encode(self, texts):
        self._count("encode")
        return super().encode(texts)

    def score(self, documents):
        self._count("score")
        return super().score(documents)


@pytest.mark.parametrize("where", ["encode", "score"])
@pytest.mark.parametrize("at", [0, 9, 33])
def test_a_scorer_that_fails_stops_the_job_and_the_next_run_completes_it(corpus, result, tmp_path, where, at):
    with pytest.raises(RuntimeError, match="out of memory"):
        score_files([str(corpus[0])], str(tmp_path / "out"), lambda: Breaking(at, where), OPTIONS)
    tree(tmp_path / "out")  # nothing under way is left behind
    assert not [
        thread.name for thread in threading.enumerate() if thread.name in ("read", "claims") or thread.name.startswith("encode")
    ]
    second = score_files([str(corpus[0])], str(tmp_path / "out"), lambda: STUB, OPTIONS)
    assert (second.files_done_before > 0) == (at > 9)
    assert tree(tmp_path / "out") == tree(result[1])


@pytest.mark.parametrize("late", [False, True])
def test_leftovers_of_a_dead_process_are_removed(corpus, result, tmp_path, late):
    """late: the other process wrote and died while this one was already running."""
    out = tmp_path / "out"

    def leave():
        Output(str(out), Config.of(STUB.description, OPTIONS))  # marks the folder, as that process did
        for name in (
            "tmp/scores/a.parquet.abc.tmp",
            "tmp/rejected/sub/d.jsonl.gz.jsonl.def.tmp",
            "tmp/done/sub/f.ndjson.json.123.tmp",
        ):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(b"half")

    class Late(StubScorer):
        def score(self, documents):
            if not (out / "done/a.parquet.json").exists():  # files further behind have not begun
                (out / "tmp/scores/sub").mkdir(parents=True, exist_ok=True)
                (out / "tmp/scores/sub/f.ndjson.parquet.abc.tmp").write_bytes(b"half")
            return super().score(documents)

    leave()
    score_files([str(corpus[0])], str(out), lambda: Late(min_tokens=2) if late else STUB, OPTIONS)
    assert tree(out) == tree(result[1])


def test_another_configuration_is_refused(corpus, result):
    before = tree(result[1])
    for scorer, options in [
        (StubScorer(seed=1, min_tokens=2), OPTIONS),
        (STUB, ScoreOptions(**{**vars(OPTIONS), "chunk_rows": 65})),
    ]:
        with pytest.raises(
            HeadwiseError, match=r"holds scores of another configuration \(run.json: .*\); choose another output"
        ) as caught:
            score_files([str(corpus[0])], str(result[1]), lambda scorer=scorer: scorer, options)
        assert "\n" not in str(caught.value)
    assert tree(result[1]) == before


def test_a_record_of_another_configuration_is_refused(corpus, tmp_path):
    out = tmp_path / "out"
    score_files([str(corpus[0])], str(out), lambda: STUB, OPTIONS)
    record = out / "done/a.parquet.json"
    record.write_text(record.read_text().replace(Config.of(STUB.description, OPTIONS).hash, "0" * 16))
    with pytest.raises(HeadwiseError, match=r"another configuration \(done/a.parquet.json: 0{16}"):
        score_files([str(corpus[0])], str(out), lambda: STUB, OPTIONS)


def test_a_folder_with_other_things_is_refused(corpus, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(HeadwiseError, match="holds other things than scores"):
        score_files([str(corpus[0])], str(tmp_path), lambda: STUB, OPTIONS)


def lines(path, *texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" if text else "broken\n" for text in texts))


def test_a_changed_input_is_scored_again(tmp_path):
    path, out = tmp_path / "in/a.jsonl", tmp_path / "out"
    lines(path, "one", None)
    score_files([str(path)], str(out), StubScorer)
    assert (out / "rejected/a.jsonl.jsonl").exists()
    lines(path, "one", "two", "three")
    summary = score_files([str(path)], str(out), StubScorer)
    assert (summary.files_scored, summary.rows, summary.rejected) == (1, 3, {})
    assert not (out / "rejected/a.jsonl.jsonl").exists()


def test_another_file_of_the_same_name_is_refused(tmp_path):
    lines(tmp_path / "one/a.jsonl", "one")
    lines(tmp_path / "two/a.jsonl", "another")
    score_files([str(tmp_path / "one")], str(tmp_path / "out"), StubScorer)
    before = tree(tmp_path / "out")
    with pytest.raises(
        HeadwiseError, match=r"holds scores of .*one/a.jsonl under the name a.jsonl; choose another output for .*two/a.jsonl"
    ):
        score_files([str(tmp_path / "two")], str(tmp_path / "out"), StubScorer)
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("option", ["text_column", "domain_column", "id_column"])
def test_a_column_that_is_nowhere_is_refused(corpus, tmp_path, option):
    with pytest.raises(HeadwiseError, match=r"no column 'txt' in a.parquet; it has text, id, domain"):
        score_files([str(corpus[0])], str(tmp_path / "out"), StubScorer, ScoreOptions(**{option: "txt"}))
    assert not (tmp_path / "out").exists()


def test_a_file_without_the_column_beside_others_has_null_rows(tmp_path):
    lines(tmp_path / "in/a.jsonl", "one")
    pq.write_table(pa.table({"other": [1, 2]}), tmp_path / "in/b.parquet")
    summary = score_files([str(tmp_path / "in")], str(tmp_path / "out"), StubScorer)
    assert summary.rejected == {"no such column": 2}
    assert pq.read_table(tmp_path / "out/scores/b.parquet")["score"].to_pylist() == [None, None]


def test_files_that_cannot_be_had_are_tried_again_by_the_next_run(corpus, result, tmp_path, monkeypatch):
    read = readers.Reader.rows

    def rows(self):
        for count, row in enumerate(read(self)):
            if self._file.name == "c.jsonl" and count == 200:
                raise UnreadableError("connection lost")
            yield row

    monkeypatch.setattr(readers.Reader, "rows", rows)
    summary = score_files([str(corpus[0])], str(tmp_path / "out"), lambda: STUB, OPTIONS)
    assert summary.unreadable == {"c.jsonl": "connection lost"}
    assert not summary.complete
    assert summary.files_scored == 6
    assert not [name for name in tree(tmp_path / "out") if "c.jsonl" in name]
    monkeypatch.undo()
    assert score_files([str(corpus[0])], str(tmp_path / "out"), lambda: STUB, OPTIONS).complete
    assert tree(tmp_path / "out") == tree(result[1])


def test_processes_that_share_a_folder_do_not_score_a_file_twice(tmp_path):
    for i in range(12):
        lines(tmp_path / f"in/{i}.jsonl", *[f"text {i} {j}" for j in range(40)])
    summaries, barrier = [], threading.Barrier(3)

    def run():
        barrier.wait()
        scorer = StubScorer(tokens_per_second=20_000)
        summaries.append(score_files([str(tmp_path / "in")], str(tmp_path / "out"), lambda: scorer, ScoreOptions(chunk_rows=8)))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(summary.files_scored for summary in summaries) == 12
    assert all(s.files_scored + s.files_done_before + s.files_elsewhere == 12 for s in summaries)
    score_files([str(tmp_path / "in")], str(tmp_path / "alone"), StubScorer, ScoreOptions(chunk_rows=8))
    assert tree(tmp_path / "out") == tree(tmp_path / "alone")


def test_a_file_taken_over_by_another_is_left_to_it(tmp_path, monkeypatch):
    lines(tmp_path / "in/a.jsonl", "one")
    finish = output_module.Sidecar.commit

    def commit(self, damaged):
        self._output.delete(self._table)
        return finish(self, damaged)

    monkeypatch.setattr(output_module.Sidecar, "commit", commit)
    summary = score_files([str(tmp_path / "in")], str(tmp_path / "out"), StubScorer)
    assert (summary.files_scored, summary.files_elsewhere) == (0, 1)
    assert not (tmp_path / "out/done/a.jsonl.json").exists()


def test_an_output_in_another_file_system_has_the_same_bytes(corpus, result):
    import fsspec

    memory = fsspec.filesystem("memory")
    for _ in range(2):
        summary = score_files([str(corpus[0])], "memory://scored", lambda: STUB, OPTIONS)
    assert summary.files_done_before == 7
    found = {path.removeprefix("/scored/"): memory.cat(path) for path in memory.find("/scored")}
    assert found == tree(result[1])
    memory.rm("/scored", recursive=True)


def test_inputs_in_another_file_system_give_the_same_scores(corpus, result, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(corpus[0]), "/remote", recursive=True)
    score_files(["memory://remote"], str(tmp_path / "out"), lambda: STUB, OPTIONS)
    scores = {name: data for name, data in tree(tmp_path / "out").items() if name.startswith(("scores", "rejected"))}
    assert scores == {name: data for name, data in tree(result[1]).items() if name.startswith(("scores", "rejected"))}
    memory.rm("/remote", recursive=True)


def test_progress_grows_to_the_whole(corpus, tmp_path):
    seen = []
    score_files([str(corpus[0])], str(tmp_path / "out"), lambda: STUB, OPTIONS, lambda *told: seen.append(told))
    done = [told[0] for told in seen]
    assert done == sorted(done)
    assert len(set(done)) > 14  # within files too
    assert seen[-1][0] == seen[-1][1] == sum(path.stat().st_size for path in corpus[0].rglob("*") if path.is_file())
    assert "documents" in seen[-1][2]
    assert "rejected" in seen[-1][2]


@pytest.mark.slow
def test_reading_waits_for_scoring(tmp_path):
    lines(tmp_path / "a.jsonl", *[f"text {i}" for i in range(400)])

    class Slow(StubScorer):
        encoded = scored = most = 0

        def encode(self, texts):
            self.encoded += 1
            return super().encode(texts)

        def score(self, documents):
            self.scored += 1
            threading.Event().wait(0.005)
            self.most = max(self.most, self.encoded - self.scored)
            return super().score(documents)

    scorer = Slow()
    score_files([str(tmp_path / "a.jsonl")], str(tmp_path / "out"), lambda: scorer, ScoreOptions(chunk_rows=4, workers=2))
    assert scorer.scored == 100
    assert 1 <= scorer.most <= 2 * 2 + 1  # the queue, and the one waiting to get in


def test_a_scorer_that_miscounts_is_refused(tmp_path):
    lines(tmp_path / "a.jsonl", "one", "two")

    class Short(StubScorer):
        def score(self, documents):
            return super().score(documents)[1:]

    with pytest.raises(HeadwiseError, match="the scorer gave 1 scores of 2 encoded documents for 2 texts"):
        score_files([str(tmp_path / "a.jsonl")], str(tmp_path / "out"), Short)


def test_large_files_are_written_in_few_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(output_module, "GROUP_ROWS", 100)
    lines(tmp_path / "a.jsonl", *[f"text {i}" for i in range(250)])
    score_files([str(tmp_path / "a.jsonl")], str(tmp_path / "out"), StubScorer, ScoreOptions(chunk_rows=30))
    metadata = pq.ParquetFile(tmp_path / "out/scores/a.jsonl.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [100, 100, 50]


def test_score_batch_is_what_the_runner_does(tmp_path):
    texts = [f"text {i}" if i % 3 else None for i in range(50)]
    table = pa.table({"body": texts, "key": list(range(50)), "kind": ["x"] * 50})
    pq.write_table(table, tmp_path / "a.parquet")
    options = ScoreOptions(text_column="body", id_column="key", domain_column="kind")
    score_files([str(tmp_path / "a.parquet")], str(tmp_path / "out"), StubScorer, options)
    batch = score_batch(StubScorer(), table.to_batches()[0], "body", "kind", "key")
    written = pq.read_table(tmp_path / "out/scores/a.parquet").replace_schema_metadata()
    assert written.equals(pa.Table.from_batches([batch]))
    moved = score_batch(StubScorer(), table.to_batches()[0], "body", first_row=7)
    assert moved.schema.equals(schema_of())
    assert moved.column("row").to_pylist() == list(range(7, 57))
    assert score_batch(StubScorer(), table.to_batches()[0].slice(0, 0), "body").num_rows == 0


def test_scores_that_are_no_numbers_become_null_and_real_ones_stay():
    class Odd(StubScorer):
        def score(self, documents):
            nan = float("nan")
            return [DocumentScore(1.0, 0.5, -0.5, 3, 2), DocumentScore(nan, nan, nan, 9, 0, True, True, "too short")]

    batch = score_batch(Odd(), pa.RecordBatch.from_pydict({"text": ["a", "b"]}))
    assert batch.column("score").to_pylist() == [-0.5, None]
    assert batch.column("reason").to_pylist() == [None, "too short"]
    assert batch.column("truncated").to_pylist() == [False, True]


def test_items_made_ahead_come_in_order_and_errors_where_they_occur():
    def items(fails):
        for i in range(50):
            if i == fails:
                raise KeyError("here")
            yield i

    assert list(read_ahead(items(None), 3)) == list(range(50))
    ahead, got = read_ahead(items(20), 3), []
    with pytest.raises(KeyError, match="here"):
        got.extend(item for item in ahead if got.append(item))
    assert got == list(range(20))
    started = read_ahead(items(None), 3)
    next(started)
    started.close()
    assert "read" not in [thread.name for thread in threading.enumerate()]
