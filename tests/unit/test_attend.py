"""`attend` against slow loops: every route through it, whole tensors, and the gradient."""

import subprocess
import sys

import pytest
import torch

from headwise.maths import attend as module
from headwise.maths.attend import attend
from tests.reference.attend import slow_attend

BATCH, HEADS, DIM, SCALING = 2, 4, 8, 0.4

# name -> new queries, own keys, shared past, and what else is asked for
CASES = {
    "no past": (5, 5, 0, ()),
    "past inside key": (4, 9, 0, ()),
    "one new token": (1, 7, 0, ()),
    "one token alone": (1, 1, 0, ()),
    "shared past": (4, 4, 6, ()),
    "shared past, one new token": (1, 1, 6, ()),
    "shared past and past inside key": (3, 5, 6, ()),
    "bool mask": (5, 5, 0, ("bool",)),
    "bool mask per head": (5, 5, 0, ("bool per head",)),
    "bool mask, past inside key": (3, 8, 0, ("bool",)),
    "float mask": (5, 5, 0, ("float",)),
    "softcap": (5, 5, 0, ("softcap",)),
    "softcap, bool mask": (5, 5, 0, ("softcap", "bool")),
    "softcap, float mask": (5, 5, 0, ("softcap", "float")),
    "softcap, past inside key": (3, 8, 0, ("softcap",)),
    "softcap, shared past": (3, 3, 6, ("softcap",)),
    "sinks": (5, 5, 0, ("sinks",)),
    "sinks, one new token": (1, 7, 0, ("sinks",)),
    "sinks, past inside key": (3, 8, 0, ("sinks",)),
    "sinks, shared past": (3, 3, 6, ("sinks",)),
    "sinks, bool mask": (5, 5, 0, ("sinks", "bool")),
    "sinks, float mask": (5, 5, 0, ("sinks", "float")),
    "shared past, bool mask": (3, 3, 6, ("bool",)),
    "shared past, float mask": (3, 3, 6, ("float",)),
    "everything": (3, 5, 6, ("bool", "softcap", "sinks")),
}
# The routes that merge two attentions by their log-sum-exp, or scale one by a sink's share of it.
MERGED = {
    "past inside key",
    "shared past",
    "shared past, one new token",
    "shared past and past inside key",
    "sinks",
    "sinks, one new token",
    "sinks, past inside key",
    "sinks, shared past",
}
# The routes that add a float mask to written-out logits.
NAN_CASES = {"softcap, float mask", "shared past, float mask"}
# The routes in which keys shared by the batch meet grouped heads in `grouped_product`.
SHARED_EXPLICIT = {"softcap, shared past", "shared past, bool mask", "shared past, float mask", "everything"}


def make_mask(new, length, asked, generator):
    """Causal, with holes and one row that sees nothing; per batch row and, if asked for, per head."""
    heads = HEADS if "bool per head" in asked else 1
    seen = torch.rand(BATCH, heads, new, length, generator=generator) < 0.7
    seen &= torch.ones(new, length, dtype=torch.bool).tril(length - new)
    seen[..., 0] = True
    seen[0, :, 0] = False  # the only row that sees nothing
    if "float" in asked:
        return torch.randn(seen.shape, generator=generator).masked_fill(~seen, -torch.inf)
    return seen


def make(name, group, dtype=torch.float32):
    """([query, key, value], options) of a case; `group` query heads share one KV head."""
    new, own, past, asked = CASES[name]
    generator = torch.Generator().manual_seed(len(name))

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    kv = HEADS // group
    tensors = [normal(BATCH, HEADS, new, DIM), normal(BATCH, kv, own, DIM), normal(BATCH, kv, own, DIM)]
    options = {"scaling": SCALING}
    if past:
        options["past"] = (normal(1, kv, past, DIM), normal(1, kv, past, DIM))
    if {"bool", "bool per head", "float"} & set(asked):
        options["mask"] = make_mask(new, past + own, asked, generator)
    if "softcap" in asked:
        options["softcap"] = 2.0
    if "sinks" in asked:
        options["sinks"] = normal(HEADS)
    return tensors, options


def check(name, tensors, options, dtype=torch.float32, tolerance=1e-5):
    got = attend(*tensors, **options)
    assert (got.dtype, got.shape) == (dtype, (BATCH, CASES[name][0], HEADS, DIM))
    assert got.is_contiguous()
    torch.testing.assert_close(got.double(), slow_attend(*tensors, **options), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_loops(name, group):
    check(name, *make(name, group))


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_close(name):
    check(name, *make(name, 2, torch.bfloat16), torch.bfloat16, 2e-2)


def transposed(tensor):
    """The same numbers laid out as [B, T, H, d] in memory: what a transformers model hands to its attention function."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


VIEW = "grouped_product calls .view on a transposed query where keys are shared by the batch and heads are grouped"
LAYOUTS = list(CASES)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_in_memory_does_not_matter(name):
    tensors, options = make(name, 2)
    check(name, [transposed(tensor) for tensor in tensors], options)


@pytest.mark.parametrize("name", ["softcap", "everything", "shared past, float mask"])
def test_the_explicit_path_may_be_cut_anywhere(name, monkeypatch):
    monkeypatch.setattr(module, "EXPLICIT_LOGITS", 1)  # one query row at a time
    check(name, *make(name, 2))


@pytest.mark.parametrize("name", CASES)
def test_inputs_are_never_written_to(name):
    tensors, options = make(name, 2)
    inputs = [*tensors, *options.get("past", ()), *(options[n] for n in ("mask", "sinks") if n in options)]
    before = [tensor.clone() for tensor in inputs]
    attend(*tensors, **options)
    assert all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True))


@pytest.mark.parametrize("name", [n for n in CASES if "mask" in n])
def test_a_row_that_sees_nothing_gives_zeros(name):
    tensors, options = make(name, 2)
    assert attend(*tensors, **options)[0, 0].abs().max() == 0


def test_a_huge_sink_takes_everything_and_a_tiny_one_nothing():
    tensors, options = make("past inside key", 2)
    plain = attend(*tensors, **options)
    assert attend(*tensors, **options, sinks=torch.full((HEADS,), 1e4)).abs().max() == 0
    torch.testing.assert_close(attend(*tensors, **options, sinks=torch.full((HEADS,), -1e4)), plain)


LOST = "the kernel's log-sum-exp has no gradient, so the shares of merged parts and of sinks count as constants"
ROUTES = list(CASES)


def check_gradient(name, tensors, options):
    inputs = [*tensors, *options.get("past", ()), *([options["sinks"]] if "sinks" in options else [])]
    for tensor in inputs:
        tensor.requires_grad_()
    weight = torch.randn(BATCH, CASES[name][0], HEADS, DIM, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad((attend(*tensors, **options) * weight).sum(), inputs, allow_unused=True)
    expected = torch.autograd.grad((slow_attend(*tensors, **options) * weight).sum(), inputs)
    for mine, true in zip(got, expected, strict=True):
        assert mine is not None
        torch.testing.assert_close(mine, true, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ROUTES)
def test_gradient_equals_that_of_the_formula(name):
    tensors, options = make(name, 2)
    if "mask" in options:
        options["mask"][0, :, 0, 0] = True if options["mask"].dtype == torch.bool else 0.0
    check_gradient(name, tensors, options)


NAN_GRADIENT = "_explicit hides the NaN of a row of -inf in the result, but softmax still sends it back as gradient"
HIDDEN = [n for n in CASES if "mask" in n]


@pytest.mark.parametrize("name", HIDDEN)
def test_a_row_that_sees_nothing_sends_no_gradient(name):
    check_gradient(name, *make(name, 2))


@pytest.mark.slow
def test_an_empty_past_is_no_past():
    # In a process of its own: today it is killed by a signal.
    code = (
        "import torch; from headwise.maths.attend import attend; x = torch.ones(1, 2, 3, 8);"
        "assert torch.equal(attend(x, x, x, scaling=1.0, past=(x[:, :, :0],) * 2), attend(x, x, x, scaling=1.0))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False).returncode == 0


def test_more_queries_than_positions_are_refused():
    tensors, options = make("no past", 2)
    with pytest.raises(ValueError, match=r"quer"):
        attend(tensors[0], tensors[1][:, :, :3], tensors[2][:, :, :3], **options)
