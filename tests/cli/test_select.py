"""`headwise select`: a corpus scored, chosen from and reported; the same bytes again; wrong input in one line."""

import gzip
import json

import numpy as np
import pytest

from headwise.heads import HeadScores, save_heads
from tests.cli.test_refusals import check_refused

pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def corpus(planted, tmp_path):
    """Two files of words that the planted model knows, one of them with a broken line; and a head file."""
    words = (planted.haystack / "text.txt").read_text().split()
    rng = np.random.default_rng(0)
    folder = tmp_path / "given"
    folder.mkdir()
    for name in ("a", "b"):
        rows = [
            {"text": " ".join(rng.choice(words, rng.integers(70, 140))), "kind": "xy"[i % 2], "id": f"{name}{i}"}
            for i in range(20)
        ]
        texts = [json.dumps(row) for row in rows]
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join([*texts, "{"][: 21 if name == "b" else 20]).encode()))
    values = np.array([[0.0, 0.1, 0.2, 0.3], [0.9, 0.8, 0.0, 0.0]])
    save_heads(HeadScores(values, "proxy"), folder / "heads.json")
    save_heads(HeadScores(values[:, :3], "proxy"), folder / "other.json")
    return folder


@pytest.fixture
def scored(planted, corpus, headwise):
    done = headwise("select", "score", corpus, *score_options(planted, corpus), "--domain", "kind", "--id", "id", "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def score_options(planted, corpus):
    return ["-o", "scores", "--heads", corpus / "heads.json", "--model", planted.model, "--top", "2"]


@pytest.mark.slow
def test_score_choose_report(planted, corpus, headwise, scored, tmp_path):
    assert scored["heads"] == ["L1H0", "L1H1"]
    assert (scored["rows"], scored["scored"], scored["rejected"]) == (41, 40, {"broken JSON": 1})
    assert scored["complete"]
    table = pq.read_table(tmp_path / "scores" / "scores" / "a.jsonl.gz.parquet")
    assert table["id"].to_pylist() == [f"a{i}" for i in range(20)]
    assert set(table["domain"].to_pylist()) == {"x", "y"}
    before = {path: path.read_bytes() for path in (tmp_path / "scores" / "scores").iterdir()}
    again = headwise("select", "score", corpus, *score_options(planted, corpus), "--domain", "kind", "--id", "id")
    assert again.code == 0
    assert "2 files were done before" in again.out
    assert {path: path.read_bytes() for path in (tmp_path / "scores" / "scores").iterdir()} == before

    chosen = headwise("select", "choose", "scores", "--share", "0.25", "--copy")
    assert chosen.code == 0, chosen.err
    assert "25.0%" in chosen.out
    manifest = json.loads((tmp_path / "scores" / "selected" / "manifest.json").read_text())
    assert manifest["all"]["chosen"] == 10
    assert manifest["options"]["share"] == 0.25
    copied = gzip.decompress((tmp_path / "scores" / "selected" / "rows" / "a.jsonl.gz").read_bytes())
    assert len(copied.splitlines()) == manifest["files"][0]["selected"]
    random = headwise("select", "choose", "scores", "--rank", "random", "--seed", "3", "-o", "scores/random", "--json")
    assert json.loads(random.out)["options"]["rank"] == "random"

    done = headwise("select", "report", "scores")
    assert done.code == 0, done.err
    page = (tmp_path / "scores.html").read_text()
    assert "25% of each domain" in page
    text = json.loads(copied.splitlines()[0])["text"]
    assert "highest scores" in page.lower()
    assert text[:40] in page
    done = headwise("select", "report", "scores", "--selection", "scores/random", "-o", "r.html", "--documents", "0", "--json")
    assert set(json.loads(done.out)["correlations"]) == {"x", "y"}
    assert "by random" in (tmp_path / "r.html").read_text()


@pytest.mark.slow
def test_estimate_writes_nothing(planted, corpus, headwise, tmp_path):
    given = ["--heads", corpus / "heads.json", "--model", planted.model, "--top", "2", "--estimate"]
    done = headwise("select", "score", corpus, *given, "--machine", "H100=250000", "--machine", "big=4e14:7.6e9")
    assert done.code == 0, done.err
    for part in ("tokens/s", "hours", "H100: 250,000 tokens/s", "big: 52,632 tokens/s"):
        assert part in done.out
    assert {path.name for path in tmp_path.iterdir()} == {"given"}


@pytest.mark.slow
def test_the_share_of_heads_is_rounded_up(planted, corpus, headwise):
    done = headwise("select", "score", corpus, "-o", "s", "--heads", corpus / "heads.json", "--model", planted.model, "--json")
    assert json.loads(done.out)["heads"] == ["L1H0"]  # 5 % of 8 heads


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["score", "IN", "-o", "o", "--model", "MODEL"], ["name the heads with --heads", "detect proxy"]),
        (["score", "IN", "--heads", "HEADS", "--model", "MODEL"], ["--output FOLDER"]),
        (["score", "/no/where", "GOOD"], ["no such file or folder: /no/where"]),
        (["score", "IN", "GOOD", "--heads", "/no/heads.json"], ["no such head file"]),
        (["score", "IN", "GOOD", "--heads", "OTHER"], ["2 layers x 3 heads", "2 x 4"]),
        (["score", "IN", "GOOD", "--top", "7"], ["--top 7 takes heads with a score of 0", "only 5 heads"]),
        (["score", "IN", "GOOD", "--share", "0"], ["share of heads must lie in (0, 1]; got 0"]),
        (["score", "IN", "GOOD", "--mode", "blur"], ["'blur'"]),
        (["score", "IN", "GOOD", "--text", "body"], ["no column 'body'", "text, kind, id"]),
        (["score", "IN", "GOOD", "--max-len", "99999"], ["max_len 99999 is more than the model's 1024 positions"]),
        (["score", "IN", "GOOD", "--runner", "spark"], ["unknown runner 'spark'; use local or ray"]),
        (["score", "IN", "GOOD", "--runner", "ray", "--actors", "many"], ["--actors is a number or least:most", "'many'"]),
        (["score", "IN", "GOOD", "--shard", "4/4"], ["a shard is i/n", "'4/4'"]),
        (["score", "IN", "GOOD", "--estimate", "--machine", "H100"], ["--machine is NAME=TOKENS/S", "'H100'"]),
        (["score", "IN", "GOOD", "--domain", "kind", "--domain-from", "file"], ["not from both"]),
        (["choose", "/no/scores"], ["/no/scores holds no score file", "select score"]),
        (["choose", "IN", "--share", "1.5"], ["share must lie in (0, 1]; got 1.5"]),
        (["choose", "IN", "--by", "bytes"], ["unknown unit 'bytes'"]),
        (["choose", "IN", "--rank", "best"], ["unknown ranking 'best'"]),
        (["choose", "IN", "--strata", "0"], ["length strata must lie in 1 to 256"]),
        (["report", "/no/scores"], ["/no/scores holds no score file"]),
        (["report", "IN", "--documents", "-1"], ["number of documents must be 0 or more"]),
        (["report", "IN", "-o", "IN"], ["is a folder"]),
    ],
    ids=lambda value: " ".join(value[:5]) if isinstance(value, list) else None,
)
def test_wrong_input_is_refused_in_one_line(planted, corpus, headwise, tmp_path, arguments, parts):
    good = ["-o", "out", "--model", planted.model]
    good += [] if "--heads" in arguments else ["--heads", corpus / "heads.json"]
    names = {"IN": corpus, "MODEL": planted.model, "HEADS": corpus / "heads.json", "OTHER": corpus / "other.json"}
    given = [part for name in arguments for part in (good if name == "GOOD" else [names.get(name, name)])]
    check_refused(headwise("select", *given), *parts)
    assert {path.name for path in tmp_path.iterdir()} == {"given"}


@pytest.mark.usefixtures("scored")
@pytest.mark.slow
def test_results_are_not_overwritten_unless_asked(headwise, tmp_path):
    for command, written in (("choose", "holds a choice"), ("report", "exists")):
        assert headwise("select", command, "scores").code == 0
        check_refused(headwise("select", command, "scores"), written, "--overwrite")
        assert headwise("select", command, "scores", "--overwrite").code == 0
    check_refused(
        headwise("select", "report", "scores", "--selection", "nowhere", "-o", "x.html"), "nowhere holds no finished choice"
    )


@pytest.mark.usefixtures("scored")
@pytest.mark.slow
def test_scores_of_two_kinds_never_mix(planted, corpus, headwise, tmp_path):
    other = [
        "-o",
        "scores",
        "--heads",
        corpus / "heads.json",
        "--model",
        planted.model,
        "--top",
        "1",
        "--domain",
        "kind",
        "--id",
        "id",
    ]
    check_refused(headwise("select", "score", corpus, *other), "scores of another configuration")
    other[1] = "second"
    assert headwise("select", "score", corpus, *other).code == 0
    assert headwise("select", "choose", "scores").code == 0
    (tmp_path / "second" / "scores" / "b.jsonl.gz.parquet").replace(tmp_path / "scores" / "scores" / "b.jsonl.gz.parquet")
    check_refused(headwise("select", "choose", "scores", "--overwrite"), "never mix")
    manifest = tmp_path / "second" / "selected" / "manifest.json"
    manifest.parent.mkdir()
    manifest.write_text((tmp_path / "scores" / "selected" / "manifest.json").read_text())
    (tmp_path / "second" / "selected" / "thresholds.json").write_text("{}")
    check_refused(headwise("select", "report", "second"), "was chosen from other scores")
