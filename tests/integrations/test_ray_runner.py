"""The Ray runner against the local one on the same files, byte for byte; also when a worker is killed in the middle."""

from functools import partial

import pytest

ray = pytest.importorskip("ray")

from headwise.corpus.local_runner import score_files  # noqa: E402
from headwise.corpus.options import RayOptions, ScoreOptions  # noqa: E402
from headwise.corpus.ray_runner import score_files_with_ray  # noqa: E402
from headwise.heads.errors import HeadwiseError  # noqa: E402
from headwise.testing.stub_scorer import StubScorer  # noqa: E402
from tests.unit.test_corpus_runner import make_corpus, tree  # noqa: E402

pytestmark = pytest.mark.slow
OPTIONS = ScoreOptions(id_column="id", domain_column="domain", chunk_rows=64, workers=2)
MAKE = partial(StubScorer, min_tokens=2)


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    make_corpus(folder / "in")
    summary = score_files([str(folder / "in")], str(folder / "local"), MAKE, OPTIONS)
    return folder, summary


def counts(summary):
    return {name: value for name, value in summary.to_json().items() if not name.endswith("seconds")}


@pytest.mark.slow
def test_both_runners_write_the_same_bytes(cluster, local):
    folder, expected = local
    seen = []
    summary = score_files_with_ray(
        [str(folder / "in")], str(folder / "ray"), MAKE, OPTIONS, lambda *told: seen.append(told), RayOptions((1, 2))
    )
    assert tree(folder / "ray") == tree(folder / "local")
    assert counts(summary) == counts(expected)
    assert len(seen) == 7
    assert seen[-1][0] == seen[-1][1]
    again = score_files_with_ray([str(folder / "in")], str(folder / "ray"), MAKE, OPTIONS)
    assert (again.files_scored, again.files_done_before) == (0, 7)
    with pytest.raises(HeadwiseError, match="holds scores of another configuration"):
        score_files_with_ray([str(folder / "in")], str(folder / "ray"), partial(MAKE, seed=1), OPTIONS)


def test_a_killed_worker_changes_nothing(cluster, local):
    folder, expected = local
    marker = folder / "died"
    make = partial(MAKE, die_once=str(marker), die_after=9)  # in the middle of the second file
    summary = score_files_with_ray([str(folder / "in")], str(folder / "killed"), make, OPTIONS)
    assert marker.exists()
    assert tree(folder / "killed") == tree(folder / "local")
    assert summary.files_scored + summary.files_done_before == 7
    assert summary.rows <= expected.rows
