"""Estimates of cost against what scoring everything gives."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headwise.corpus import estimate as module
from headwise.corpus.estimate import Machine, estimate_cost
from headwise.corpus.local_runner import score_files
from headwise.corpus.options import ScoreOptions
from headwise.heads.errors import HeadwiseError
from headwise.testing.stub_scorer import StubScorer

SPEED = 2e6


def corpus(folder, files, kind, rows=300):
    """Files of unequal length whose documents differ in length between files and within."""
    folder.mkdir()
    draw = np.random.default_rng(3)
    codec = pa.Codec("zstd")
    for place in range(files):
        lengths = draw.integers(20, 400 + 40 * (place % 5), rows * (1 + place % 3))
        texts = [draw.integers(97, 123, length, np.uint8).tobytes().decode() for length in lengths]
        if kind == "parquet":
            pq.write_table(pa.table({"text": texts}), folder / f"{place:02}.parquet")
            continue
        data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
        (folder / f"{place:02}.jsonl{kind}").write_bytes(codec.compress(data, asbytes=True) if kind else data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "", ".zst"])
@pytest.mark.parametrize("files", [4, 30])
def test_the_truth_lies_near_the_interval(tmp_path, files, kind):
    corpus(tmp_path / "in", files, kind)
    truth = score_files([str(tmp_path / "in")], str(tmp_path / "out"), StubScorer)
    guess = estimate_cost([str(tmp_path / "in")], StubScorer(), rows=1000)
    width = guess.tokens_high - guess.tokens_low
    assert guess.tokens_low <= guess.tokens <= guess.tokens_high
    assert abs(guess.tokens - truth.tokens) < width  # 95 % of draws lie within half of it
    assert width < 0.35 * truth.tokens
    assert guess.documents == pytest.approx(truth.rows, rel=0.15)
    assert guess.sampled_files <= module.FILES
    assert not list(tmp_path.glob("in/*.tmp"))


@pytest.mark.slow
def test_long_files_are_not_read_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOK", 200)
    for kind in ("parquet", ""):
        corpus(tmp_path / f"in{kind}", 2, kind, rows=4000)
        truth = score_files([str(tmp_path / f"in{kind}")], str(tmp_path / f"out{kind}"), StubScorer)
        guess = estimate_cost([str(tmp_path / f"in{kind}")], StubScorer(), rows=400)
        assert guess.documents == pytest.approx(truth.rows, rel=0.1)
        assert guess.tokens == pytest.approx(truth.tokens, rel=0.15)


@pytest.mark.slow
def test_speed_hours_and_machines(tmp_path):
    corpus(tmp_path / "in", 3, "parquet")
    scorer = StubScorer(tokens_per_second=100_000)
    machines = [Machine("fast", tokens_per_second=SPEED), Machine("by arithmetic", flop_per_second=4e14, flop_per_token=7.6e9)]
    guess = estimate_cost([str(tmp_path / "in")], scorer, ScoreOptions(workers=1), rows=600, machines=machines)
    assert guess.speed == pytest.approx(100_000, rel=0.2)
    assert guess.speed_low <= guess.speed <= guess.speed_high
    assert guess.hours == pytest.approx(guess.tokens / min(guess.speed, guess.encode_speed) / 3600)
    assert guess.hours_low <= guess.hours <= guess.hours_high
    assert [row["hours"] for row in guess.table] == pytest.approx(
        [guess.tokens / SPEED / 3600, guess.tokens / (4e14 / 7.6e9) / 3600]
    )
    assert [row["for_one_day"] for row in guess.table] == [1, 1]
    assert any("as given" in sentence for sentence in guess.assumed)
    text = "\n".join(guess.lines())
    assert "fast: 2,000,000 tokens/s" in text
    assert "assumed: all files were looked at" in text
    json.dumps(guess.to_json())


def test_the_number_of_devices_for_a_day():
    row = module._row(Machine("x", tokens_per_second=1000.0), 1000.0 * 3600 * 49)
    assert row["hours"] == pytest.approx(49)
    assert row["for_one_day"] == 3


def test_the_same_seed_draws_the_same_sample(tmp_path):
    corpus(tmp_path / "in", 20, "parquet", rows=50)
    guesses = [estimate_cost([str(tmp_path / "in")], StubScorer(), rows=100, seed=seed) for seed in (0, 0, 1)]
    assert guesses[0].tokens == guesses[1].tokens != guesses[2].tokens
    assert guesses[0].tokens_low == guesses[1].tokens_low


def test_one_thread_that_tokenises_slowly_is_what_counts(tmp_path):
    corpus(tmp_path / "in", 1, "parquet")

    class Slow(StubScorer):
        def encode(self, texts):
            module.time.sleep(0.2)
            return super().encode(texts)

    guess = estimate_cost([str(tmp_path / "in")], Slow(), ScoreOptions(workers=1))
    assert guess.hours == pytest.approx(guess.tokens / guess.encode_speed / 3600)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "give tokens_per_second, or flop_per_second and flop_per_token"),
        ({"flop_per_second": 1.0}, "give tokens_per_second, or"),
        ({"tokens_per_second": 1.0, "flop_per_second": 1.0, "flop_per_token": 1.0}, "give tokens_per_second, or"),
        ({"tokens_per_second": 0.0}, "speeds must be positive"),
        ({"tokens_per_second": float("nan")}, "speeds must be positive"),
    ],
)
def test_machines_refused(wrong, message):
    with pytest.raises(HeadwiseError, match=message):
        Machine("x", **wrong)


def test_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n')
    with pytest.raises(HeadwiseError, match="none of the 1 sampled rows has a text"):
        estimate_cost([str(tmp_path)], StubScorer())
    with pytest.raises(HeadwiseError, match="at least 2 rows; got 1"):
        estimate_cost([str(tmp_path)], StubScorer(), rows=1)
    with pytest.raises(HeadwiseError, match="no column 'x'"):
        estimate_cost([str(tmp_path)], StubScorer(), ScoreOptions(text_column="x"))
