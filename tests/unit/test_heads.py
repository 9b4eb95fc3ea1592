"""HeadId, HeadScores, HeadSet: reading, ranking, and every input they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwise.heads import HeadId, HeadScores, HeadSet, HeadwiseError

NAN = float("nan")


def scores(rows, **options):
    return HeadScores(np.asarray(rows, dtype=np.float64), "copy", **options)


@pytest.mark.parametrize("text", ["L17H24", "l17h24", "17-24", "  L17H24\n", "L017H0024"])
def test_parse_reads_both_spellings(text):
    assert HeadId.parse(text) == HeadId(17, 24)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_str_and_parse_are_inverse(layer, head):
    assert HeadId.parse(str(HeadId(layer, head))) == (layer, head)


def test_str_is_the_written_form():
    assert str(HeadId(0, 31)) == "L0H31"
    assert f"{HeadId(17, 24)}" == "L17H24"


@pytest.mark.parametrize("text", ["", "L17", "17", "17-", "-24", "L-1H3", "-1-3", "1-2-3", "L1.5H2", "LxHy", "H3L4", "1,2"])
def test_parse_refuses_by_name(text):
    with pytest.raises(HeadwiseError, match=r"is not a head; write it as L17H24 or 17-24 \(layer, head, both from 0\)") as error:
        HeadId.parse(text)
    assert repr(text) in str(error.value)


def test_ranking_is_strongest_first():
    assert scores([[0.1, 0.9], [0.5, -2.0]]).ranking() == [(0, 1), (1, 0), (0, 0), (1, 1)]


def test_ties_keep_layer_and_head_order():
    table = scores([[0.5, 0.2, 0.5], [0.2, 0.5, 0.2]])
    assert table.ranking() == [(0, 0), (0, 2), (1, 1), (0, 1), (1, 0), (1, 2)]
    assert table.top(2).heads == ((0, 0), (0, 2))


def test_unscored_heads_are_never_ranked():
    table = scores([[NAN, 0.1], [0.3, NAN]])
    assert table.ranking() == [(1, 0), (0, 1)]
    assert all(isinstance(number, int) for head in table.ranking() for number in head)
    assert (0, 0) not in table.top(2)
    with pytest.raises(HeadwiseError, match="top 3 asked for, but the file scores 2 heads; choose 1 to 2"):
        table.top(3)


@given(st.lists(st.one_of(st.none(), st.integers(-3, 3)), min_size=6, max_size=6))
def test_ranking_equals_a_plain_sort(numbers):
    table = np.array([NAN if n is None else n for n in numbers]).reshape(2, 3)
    known = [(i // 3, i % 3) for i, n in enumerate(numbers) if n is not None]
    if len(known) == 0 or (len(known) > 1 and len({table[h] for h in known}) == 1):
        with pytest.raises(HeadwiseError):
            scores(table).ranking()
    else:
        assert scores(table).ranking() == sorted(known, key=lambda h: (-table[h], h))


def test_top_bottom_and_above():
    table = scores([[0.1, 0.9, NAN], [0.5, -2.0, 0.5]])
    assert table.top(2).heads == ((0, 1), (1, 0))
    assert table.bottom(2).heads == ((1, 1), (0, 0))
    assert table.above(0.1).heads == ((0, 1), (1, 0), (1, 2))
    assert table.above(0.9).heads == ()
    assert (table.top(2).shape, table.top(2).chosen_by) == ((2, 3), "top 2 by copy score")
    assert table.bottom(1).chosen_by == "bottom 1 by copy score"
    assert table.above(0.1).chosen_by == "copy score above 0.1"


@pytest.mark.parametrize("which", ["top", "bottom"])
@pytest.mark.parametrize("k", [0, -1, 5])
def test_impossible_counts_are_refused(which, k):
    with pytest.raises(HeadwiseError, match=f"{which} {k} asked for, but the file scores 4 heads; choose 1 to 4"):
        getattr(scores([[1, 2], [3, 4]]), which)(k)


@pytest.mark.parametrize("value", [0.0, 0.25])
@pytest.mark.parametrize("use", [HeadScores.ranking, lambda s: s.top(1), lambda s: s.bottom(1), lambda s: s.above(-1)])
def test_constant_scores_rank_nothing(value, use):
    # A published head list turned out to be the tie order of zeros.
    with pytest.raises(HeadwiseError, match=rf"all 3 heads have the same copy score \({value:g}\); that is no ranking"):
        use(scores([[value, value], [NAN, value]]))


def test_one_scored_head_is_a_ranking():
    assert scores([[NAN, 0.0]]).ranking() == [(0, 1)]


@pytest.mark.parametrize("use", [HeadScores.ranking, lambda s: s.top(1), lambda s: s.above(0)])
def test_a_table_without_scores_is_refused(use):
    with pytest.raises(HeadwiseError, match="no head has a copy score, so there is nothing to rank"):
        use(scores([[NAN, NAN]]))


def test_frequency_is_the_share_of_runs_above_zero():
    runs = np.array([[[0.0, 0.5, 0.1, NAN]], [[0.0, 0.0, 0.2, NAN]]], dtype=np.float32)
    table = scores([[0.0, 0.25, 0.15, NAN]], runs=runs)
    np.testing.assert_array_equal(table.frequency, [[0.0, 0.5, 1.0, NAN]])


@pytest.mark.parametrize("runs", [None, np.zeros((0, 1, 2), dtype=np.float32)])
def test_frequency_without_runs_is_refused(runs):
    with pytest.raises(HeadwiseError, match="the copy scores hold no per-run values, so there is no activation frequency"):
        _ = scores([[0.1, 0.2]], runs=runs).frequency


def test_runs_of_another_shape_are_refused():
    with pytest.raises(HeadwiseError, match=r"per-run values of shape \(2, 1\) beside scores of shape \(1, 2\)"):
        scores([[0.1, 0.2]], runs=np.zeros((3, 2, 1), dtype=np.float32))


def test_a_wrong_number_of_run_descriptions_is_refused():
    with pytest.raises(HeadwiseError, match="1 run descriptions for 2 runs"):
        scores([[0.1, 0.2]], runs=np.zeros((2, 1, 2), dtype=np.float32), run_info=({"depth": 0.5},))


@pytest.mark.parametrize("shape", [(4,), (2, 2, 1)])
def test_scores_must_be_a_table(shape):
    with pytest.raises(HeadwiseError, match=rf"a \[layer, head\] table; got {len(shape)} dimensions"):
        scores(np.zeros(shape))


def test_head_set_behaves_like_an_ordered_set():
    heads = HeadSet.of([(1, 2), (np.int64(0), np.int64(1))], (2, 3), "by hand")
    assert list(heads) == [(1, 2), (0, 1)]
    assert (len(heads), heads.shape, heads.chosen_by) == (2, (2, 3), "by hand")
    assert HeadId(1, 2) in heads
    assert (0, 1) in heads
    assert (0, 0) not in heads
    assert all(type(head) is HeadId and type(head.layer) is int for head in heads)
    assert heads == HeadSet((HeadId(1, 2), HeadId(0, 1)), (2, 3), "by hand")


def test_mask_marks_exactly_the_chosen_heads():
    mask = HeadSet.of([(1, 2), (0, 1)], (2, 3)).mask()
    assert mask.dtype == bool
    assert mask.tolist() == [[False, True, False], [False, False, True]]
    assert HeadSet((), (2, 3)).mask().tolist() == [[False] * 3] * 2


@pytest.mark.parametrize("head", [(2, 0), (0, 3), (-1, 0), (0, -1)])
def test_heads_outside_the_model_are_refused(head):
    with pytest.raises(HeadwiseError, match=f"head L{head[0]}H{head[1]} lies outside a model of 2 layers x 3 heads"):
        HeadSet.of([(0, 0), head], (2, 3))


def test_duplicates_are_refused():
    with pytest.raises(HeadwiseError, match="names a head twice"):
        HeadSet.of([(0, 0), (1, 1), (0, 0)], (2, 3))


def test_check_fits_names_both_shapes_and_the_model():
    heads = HeadSet.of([(0, 0)], (2, 3))
    heads.check_fits((2, 3), "tiny")
    message = r"belong to a model of 2 layers x 3 heads, but tiny has 3 x 2; detect the heads of this model first"
    with pytest.raises(HeadwiseError, match=message):
        heads.check_fits((3, 2), "tiny")
