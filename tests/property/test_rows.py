"""Properties of `row_statistics`, most of them on whole numbers: float32 is exact there, so ties are real ties."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwise.maths.rows import row_statistics

CLOSE = {"atol": 2e-5, "rtol": 2e-5}
many = settings(max_examples=60)


@dataclass(frozen=True)
class Case:
    query: torch.Tensor
    keys: torch.Tensor
    options: dict = field(default_factory=dict)

    @property
    def length(self):
        return self.keys.shape[2]

    def statistics(self, keys=None, query=None, **changes):
        return row_statistics(
            self.query if query is None else query, [self.keys] if keys is None else keys, **{**self.options, **changes}
        )


@st.composite
def cases(draw, whole=True, shared=False, hidden=True):
    """Random rows and keys; whole = small whole numbers (many ties), else normal ones. hidden = a mask may hide whole rows."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, groups, group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))
    length, dim = draw(st.integers(1, 24)), draw(st.sampled_from([1, 2, 8]))
    rows = draw(st.integers(1, length))

    def tensor(*shape):
        if whole:
            return torch.randint(-2, 3, shape, generator=generator).float()
        return 3 * torch.randn(shape, generator=generator)

    options = {"scaling": draw(st.sampled_from([0.25, 0.5, 1.0]))}
    if draw(st.booleans()):
        seen = torch.rand((draw(st.sampled_from([1, batch])), 1, rows, length), generator=generator)
        seen = seen < draw(st.sampled_from([0.1, 0.5, 0.9]))
        if not hidden:
            seen[..., 0] = True
        options["mask"] = seen
    if draw(st.booleans()):
        options["softcap"] = draw(st.sampled_from([20.0, 50.0]))
    if draw(st.booleans()):
        options["sinks"] = tensor(groups * group)
    return Case(tensor(batch, groups * group, rows, dim), tensor(1 if shared else batch, groups, length, dim), options)


@st.composite
def cuts(draw, length):
    """Increasing cut points 0 ... length, so that neighbours bound non-empty stretches that cover everything."""
    inner = draw(st.sets(st.integers(1, length - 1), max_size=4)) if length > 1 else set()
    return [0, *sorted(inner), length]


@st.composite
def spans(draw, length):
    """Any spans, overlapping or empty."""
    bound = st.integers(0, length)
    return [tuple(sorted(pair)) for pair in draw(st.lists(st.tuples(bound, bound), max_size=3))]


def split(keys, points):
    return [keys[:, :, a:b] for a, b in pairwise(points)]


def same(got, expected, exact=True):
    if exact:
        assert torch.equal(got.argmax, expected.argmax)
    torch.testing.assert_close(got.lse, expected.lse, **CLOSE)
    torch.testing.assert_close(got.mass, expected.mass, **CLOSE)


def dense(case, spans=()):
    """The same statistics from the whole attention matrix, in float64."""
    query, keys, options = case.query.double(), case.keys.double(), case.options
    heads, rows, length = query.shape[1], query.shape[2], case.length
    keys = keys.expand(query.shape[0], -1, -1, -1).repeat_interleave(heads // keys.shape[1], dim=1)
    logits = options["scaling"] * torch.einsum("bhrd,bhsd->bhrs", query, keys)
    if "softcap" in options:
        logits = options["softcap"] * torch.tanh(logits / options["softcap"])
    causal = torch.ones(rows, length, dtype=torch.bool).tril(length - rows)
    logits = logits.masked_fill(~options.get("mask", causal), -torch.inf)
    highest = logits.amax(dim=-1, keepdim=True)
    position = torch.arange(length).expand(logits.shape)
    # Rounding by 1e-9 puts logits that are equal in whole numbers, but not after einsum's sums and tanh, back together.
    ties = (logits >= highest - 1e-9) & logits.isfinite()
    argmax = position.masked_fill(~ties, length).amin(dim=-1)
    if "sinks" in options:
        sink = options["sinks"].double().view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
        logits = torch.cat([logits, sink], dim=-1)
    weights = torch.nan_to_num(logits.softmax(dim=-1))
    mass = [weights[..., start:stop].sum(dim=-1) for start, stop in spans]
    mass = torch.stack(mass, dim=-1) if mass else torch.zeros(*argmax.shape, 0)
    return torch.where(argmax == length, -1, argmax), logits.logsumexp(dim=-1), mass


def equals_dense(case, wanted, exact):
    got = case.statistics(spans=wanted)
    argmax, lse, mass = dense(case, wanted)
    if exact:
        assert torch.equal(got.argmax, argmax)
    torch.testing.assert_close(got.lse.double(), lse, **CLOSE)
    torch.testing.assert_close(got.mass.double(), mass.double(), **CLOSE)
    assert not got.lse.isnan().any()
    assert not got.mass.isnan().any()
    assert (got.argmax.dtype, got.lse.dtype, got.mass.dtype) == (torch.int64, torch.float32, torch.float32)


@many
@given(cases(), st.data())
def test_equals_a_dense_softmax_and_ties_give_the_lowest_position(case, data):
    equals_dense(case, data.draw(spans(case.length)), exact=True)


@many
@given(cases(whole=False), st.data())
def test_equals_a_dense_softmax_on_real_numbers(case, data):
    # The argmax of real numbers may hang on the last bit, so it is compared on whole numbers only.
    equals_dense(case, data.draw(spans(case.length)), exact=False)


@many
@given(cases(), st.data())
def test_the_block_size_does_not_matter(case, data):
    wanted = data.draw(spans(case.length))
    block = data.draw(st.integers(1, case.length + 2))
    same(case.statistics(spans=wanted, block=block), case.statistics(spans=wanted))


@many
@given(cases(), st.data())
def test_the_split_into_segments_does_not_matter(case, data):
    wanted, points = data.draw(spans(case.length)), data.draw(cuts(case.length))
    block = data.draw(st.integers(1, case.length))
    same(case.statistics(keys=split(case.keys, points), spans=wanted, block=block), case.statistics(spans=wanted))


@many
@given(cases(whole=False, hidden=False), st.data())
def test_masses_of_a_partition_and_the_sink_sum_to_one(case, data):
    points = data.draw(cuts(case.length))
    got = case.statistics(spans=list(pairwise(points)), block=data.draw(st.integers(1, case.length)))
    total = got.mass.sum(dim=-1)
    if "sinks" in case.options:
        total = total + torch.exp(case.options["sinks"].view(1, -1, 1) - got.lse)
    torch.testing.assert_close(total, torch.ones_like(total), **CLOSE)
    assert got.mass.min() >= 0
    assert got.mass.max() <= 1 + 1e-5


@many
@given(cases(), st.sampled_from([0.125, 0.5, 2.0, 3.0, 7.0]))
def test_argmax_ignores_positive_scaling_of_the_query(case, factor):
    options = {k: v for k, v in case.options.items() if k != "softcap"}  # a cap may flatten large logits to one number
    case = replace(case, options=options)
    assert torch.equal(case.statistics(query=case.query * factor).argmax, case.statistics().argmax)


@many
@given(cases(), st.sampled_from([15.0, 30.0, 100.0]))
@pytest.mark.slow
def test_argmax_ignores_a_softcap(case, cap):
    # Logits reach 32, in steps of 1/4 or more; caps this wide keep neighbours apart in float32.
    assert torch.equal(case.statistics(softcap=cap).argmax, case.statistics(softcap=None).argmax)


@many
@given(cases(), st.data())
def test_rows_that_see_nothing(case, data):
    batch, heads, rows, _ = case.query.shape
    mask = torch.ones(batch, 1, rows, case.length, dtype=torch.bool)
    row = data.draw(st.integers(0, rows - 1))
    mask[0, :, row] = False
    got = case.statistics(mask=mask, spans=[(0, case.length)], block=data.draw(st.integers(1, case.length)))
    assert (got.argmax[0, :, row] == -1).all()
    assert (got.mass[0, :, row] == 0).all()
    # All that is left is the sink, where there is one.
    expected = case.options.get("sinks", torch.full((heads,), -torch.inf))
    torch.testing.assert_close(got.lse[0, :, row], expected)
    assert not got.lse.isnan().any()
    assert not got.mass.isnan().any()
    visible = mask[:, :, :, 0].expand(batch, heads, rows)
    assert (got.argmax[visible] >= 0).all()


@many
@given(cases(shared=True), st.data())
def test_shared_keys_equal_expanded_keys(case, data):
    wanted = data.draw(spans(case.length))
    expanded = case.keys.expand(case.query.shape[0], -1, -1, -1)
    same(case.statistics(spans=wanted), case.statistics(keys=[expanded], spans=wanted))
    # A shared past in front of keys of one's own: the shape of every suffix pass.
    points = data.draw(cuts(case.length))
    mixed = [part if i == 0 else part.expand(case.query.shape[0], -1, -1, -1) for i, part in enumerate(split(case.keys, points))]
    same(case.statistics(keys=mixed, spans=wanted), case.statistics(spans=wanted))


@many
@given(cases(), st.data())
def test_inputs_are_never_written_to(case, data):
    before = case.query.clone(), case.keys.clone()
    case.statistics(spans=data.draw(spans(case.length)))
    assert torch.equal(case.query, before[0])
    assert torch.equal(case.keys, before[1])


VIEW = "grouped_product calls .view on a transposed query where keys are shared by the batch and heads are grouped"


@pytest.mark.parametrize("shared", [False, True])
def test_the_layout_of_the_query_in_memory_does_not_matter(shared):
    # transformers hands [B, T, H, d] seen as [B, H, T, d] to its attention function.
    query, keys = torch.randn(2, 5, 4, 8).transpose(1, 2), torch.randn(1 if shared else 2, 2, 7, 8)
    case = Case(query, keys, {"scaling": 0.3})
    same(case.statistics(spans=[(1, 4)]), case.statistics(query=query.contiguous(), spans=[(1, 4)]))
