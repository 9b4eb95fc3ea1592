"""Choosing from score files: exact shares per domain, strata, controls, ties, what is not ranked, what is refused."""

import json

import numpy as np
import pytest
from scipy import stats

from headwise.heads import HeadwiseError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from headwise.corpus.choose import choose  # noqa: E402
from headwise.corpus.documents import HASH_KEY  # noqa: E402
from headwise.corpus.options import ChoiceOptions  # noqa: E402


def random_rows(count, seed=0, domains=("web", "math"), ties=False):
    rng = np.random.default_rng(seed)
    score = rng.standard_normal(count).astype(np.float32)
    return {
        "row": np.arange(count),
        "domain": [domains[i] for i in rng.integers(len(domains), size=count)],
        "loss_base": rng.uniform(0.5, 5, count).astype(np.float32),
        "score": np.round(score) if ties else score,
        "n_tokens": rng.integers(1, 3000, count),
        "flagged": np.zeros(count, dtype=bool),
    }


def write_scores(out, name, rows, config="abc", drop=()):
    path = out / "scores" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({key: value for key, value in rows.items() if key not in drop})
    pq.write_table(table.replace_schema_metadata({HASH_KEY: config} if config else {}), path, row_group_size=100)


def selected(folder, name):
    table = pq.read_table(folder / f"{name}.parquet")
    assert table.schema.names == ["row", "selected"]
    return table["row"].to_numpy(), table["selected"].to_numpy()


@pytest.fixture
def corpus(tmp_path):
    """Two files, one in a folder; the rows of both together, and where they come from."""
    parts = {"a": random_rows(700, 1), "deep/b": random_rows(300, 2)}
    for name, rows in parts.items():
        write_scores(tmp_path, name, rows)
    return tmp_path, parts


def flat(parts, chosen):
    """All columns of all files, and the chosen rows of `chosen` (a folder)."""
    columns = {key: np.concatenate([np.asarray(rows[key]) for rows in parts.values()]) for key in next(iter(parts.values()))}
    return columns, np.concatenate([selected(chosen, name)[1] for name in parts])


def test_the_best_fifth_of_each_domain(corpus):
    out, parts = corpus
    result = choose(str(out))
    rows, taken = flat(parts, out / "selected")
    for row in result["thresholds"]["domains"]:
        mine = rows["domain"] == row["domain"]
        k = round(0.2 * mine.sum())
        best = np.sort(rows["score"][mine])[::-1][:k]
        assert np.sort(rows["score"][mine & taken])[::-1].tolist() == best.tolist()
        assert row["threshold"] == best[-1]
        assert (row["documents"], row["ranked"], row["chosen"]) == (mine.sum(), mine.sum(), k)
        assert row["document_share"] == k / mine.sum()
        assert row["token_share"] == rows["n_tokens"][mine & taken].sum() / rows["n_tokens"][mine].sum()
    assert selected(out / "selected", "deep/b")[0].tolist() == list(range(300))
    assert result["all"]["chosen"] == taken.sum() == sum(file["selected"] for file in result["files"])
    assert [file["name"] for file in result["files"]] == ["a.parquet", "deep/b.parquet"]
    assert result["config"] == "abc"
    assert result["readings"] == 3
    assert json.loads((out / "selected" / "thresholds.json").read_text()) == result["thresholds"]


def test_by_tokens(corpus):
    out, parts = corpus
    result = choose(str(out), ChoiceOptions(by="tokens", share=0.3))
    rows, taken = flat(parts, out / "selected")
    for row in result["thresholds"]["domains"]:
        mine = rows["domain"] == row["domain"]
        wanted = round(0.3 * rows["n_tokens"][mine].sum())
        last = rows["n_tokens"][mine & (rows["score"] == np.float32(row["threshold"]))].item()
        assert row["chosen_tokens"] - last < wanted <= row["chosen_tokens"]  # without the last document it would not be enough
        assert rows["score"][mine & taken].min() > rows["score"][mine & ~taken].max()


@pytest.mark.parametrize(("rank", "key"), [("longest", "n_tokens"), ("perplexity", "loss_base")])
def test_controls_that_rank(corpus, rank, key):
    out, parts = corpus
    result = choose(str(out), ChoiceOptions(rank=rank, share=0.1))
    rows, taken = flat(parts, out / "selected")
    value = rows[key].astype(float) * (-1 if rank == "perplexity" else 1)
    for row in result["thresholds"]["domains"]:
        mine = rows["domain"] == row["domain"]
        assert (mine & taken).sum() == round(0.1 * mine.sum())
        assert value[mine & taken].min() >= value[mine & ~taken].max()
        assert row["threshold"] == abs(value[mine & taken].min())


def test_random_is_exact_seeded_and_unrelated_to_scores(corpus):
    out, parts = corpus
    found = []
    for seed in (0, 0, 1):
        choose(str(out), ChoiceOptions(rank="random", seed=seed), overwrite=True)
        rows, taken = flat(parts, out / "selected")
        assert taken.sum() == sum(round(0.2 * (rows["domain"] == d).sum()) for d in ("web", "math"))
        found.append(taken)
    assert (found[0] == found[1]).all()
    assert (found[0] & found[2]).sum() < 0.4 * found[0].sum()
    assert abs(stats.pointbiserialr(found[0], rows["score"]).statistic) < 0.12


def test_ties_are_broken_to_the_exact_share_and_do_not_depend_on_other_files(tmp_path):
    write_scores(tmp_path, "a", random_rows(1000, 3, ("web",), ties=True))
    result = choose(str(tmp_path))
    assert result["all"]["chosen"] == 200
    assert result["readings"] > 3
    again = choose(str(tmp_path), overwrite=True)
    assert again == result


def test_the_same_scores_give_the_same_bytes(corpus):
    out, _ = corpus
    choose(str(out))
    choose(str(out), into=str(out / "second"))
    for path in (out / "selected").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (out / "second" / path.relative_to(out / "selected")).read_bytes()


def test_length_strata_take_the_length_out_of_the_choice(tmp_path):
    rows = random_rows(4000, 4, ("web",))
    rows["score"] = (np.log(rows["n_tokens"]) + 0.3 * rows["score"]).astype(np.float32)
    write_scores(tmp_path, "a", rows)
    correlation = []
    for strata in (1, 10):
        result = choose(str(tmp_path), ChoiceOptions(strata=strata), overwrite=True)
        taken = selected(tmp_path / "selected", "a")[1]
        correlation.append(stats.spearmanr(taken, rows["n_tokens"]).statistic)
    parts = result["thresholds"]["domains"][0]["strata"]
    assert len(parts) == 10
    assert all(abs(part["documents"] - 400) < 40 for part in parts)  # edges lie between length codes
    assert [part["chosen"] for part in parts] == [round(0.2 * part["ranked"]) for part in parts]
    ends = [part["up_to_tokens"] for part in parts]
    assert ends[-1] is None
    assert ends[:-1] == sorted(ends[:-1])
    start = 0
    for part in parts[:-1]:
        inside = (rows["n_tokens"] > start) & (rows["n_tokens"] <= part["up_to_tokens"])
        assert inside.sum() == part["documents"]
        start = part["up_to_tokens"]
    assert correlation[0] > 0.5
    assert abs(correlation[1]) < 0.2 * correlation[0]


def test_documents_without_a_score_flagged_ones_and_low_losses_are_not_ranked(tmp_path):
    rows = random_rows(500, 5, ("web",))
    rows["score"][:100] = np.nan
    rows["loss_base"][:100] = np.nan
    rows["flagged"][:200] = True
    rows["loss_base"][200:250] = 0.1
    rows["score"][200:250] = 99
    write_scores(tmp_path, "a", rows)
    result = choose(str(tmp_path), ChoiceOptions(min_loss=0.2, share=1.0))
    assert (result["all"]["documents"], result["all"]["ranked"], result["all"]["chosen"]) == (500, 250, 250)
    assert selected(tmp_path / "selected", "a")[1].nonzero()[0].tolist() == list(range(250, 500))
    for rank in ("random", "longest", "perplexity"):  # controls draw from the same documents
        assert choose(str(tmp_path), ChoiceOptions(rank=rank, min_loss=0.2), overwrite=True)["all"]["ranked"] == 250
    assert choose(str(tmp_path), ChoiceOptions(flagged=True, share=1.0), overwrite=True)["all"]["chosen"] == 400


def test_null_values_and_missing_domains(tmp_path):
    rows = random_rows(10, 6)
    rows |= {"domain": [None] * 10, "score": [None, *rows["score"][1:].tolist()], "flagged": [None, *[False] * 9]}
    write_scores(tmp_path, "a", rows)
    result = choose(str(tmp_path), ChoiceOptions(share=1.0))
    assert [row["domain"] for row in result["thresholds"]["domains"]] == [""]
    assert result["all"]["chosen"] == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0}, r"share must lie in \(0, 1\]; got 0"),
        ({"share": 1.5}, "got 1.5"),
        ({"share": float("nan")}, "got nan"),
        ({"by": "bytes"}, "unknown unit 'bytes'; a share is of docs or tokens"),
        ({"rank": "best"}, "unknown ranking 'best'; choose one of score, random"),
        ({"strata": 0}, "length strata must lie in 1 to 256; got 0"),
        ({"min_loss": -1}, "--min-loss must be 0 or more"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(HeadwiseError, match=message):
        ChoiceOptions(**options)


def test_refusals(tmp_path):
    with pytest.raises(HeadwiseError, match="holds no score file; make them first"):
        choose(str(tmp_path))
    write_scores(tmp_path, "a", random_rows(10))
    with pytest.raises(HeadwiseError, match="is where the scores are"):
        choose(str(tmp_path), into=str(tmp_path / "scores"))
    write_scores(tmp_path, "b", random_rows(10), config="other")
    with pytest.raises(HeadwiseError, match=r"b\.parquet was scored with other options"):
        choose(str(tmp_path))
    write_scores(tmp_path, "b", random_rows(10), config="")
    with pytest.raises(HeadwiseError, match="does not say how it was scored"):
        choose(str(tmp_path))
    write_scores(tmp_path, "b", random_rows(10), drop=("flagged",))
    with pytest.raises(HeadwiseError, match="no column 'flagged'"):
        choose(str(tmp_path))
    (tmp_path / "scores" / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(HeadwiseError, match="cannot be read as Parquet"):
        choose(str(tmp_path))
    assert not (tmp_path / "selected").exists()


def test_a_corpus_with_nothing_to_rank_and_one_with_too_many_domains(tmp_path):
    rows = random_rows(300)
    rows["flagged"][:] = True
    write_scores(tmp_path, "a", rows)
    with pytest.raises(HeadwiseError, match=r"no document of .* can be ranked"):
        choose(str(tmp_path))
    write_scores(tmp_path, "a", random_rows(2000, domains=[f"d{i}" for i in range(300)]))
    with pytest.raises(HeadwiseError, match="more than 256 domains"):
        choose(str(tmp_path))
    write_scores(tmp_path, "a", random_rows(300))
    with pytest.raises(HeadwiseError, match="2 domains x 200 strata are more than 256"):
        choose(str(tmp_path), ChoiceOptions(strata=200))


def test_a_choice_is_not_overwritten_unless_asked_and_stays_unfinished_without_a_manifest(corpus):
    out, _ = corpus
    choose(str(out))
    with pytest.raises(HeadwiseError, match="holds a choice; give another --output or --overwrite"):
        choose(str(out))
    (out / "selected" / "manifest.json").unlink()  # as after a kill
    choose(str(out))
