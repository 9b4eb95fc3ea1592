"""Formulas of relevance: identities of the method's card, attention whose backward pass is written out, closed forms of altered gradients."""

import pytest
import torch
from torch.testing import assert_close

from headwise.heads import HeadwiseError
from headwise.maths.altered import SLOPES, scaled_gradient, slope_of, tanh_slope, with_slope
from headwise.maths.relevance import POSITIVE, source_relevance
from headwise.maths.tempered import Inputs, tempered_attention

SHAPES = {"heads": 6, "groups": 2, "length": 13, "width": 5}
CASES = {
    "plain": {},
    "window": {"mask": "window"},
    "left-padded": {"mask": "left"},
    "cap": {"softcap": 1.5},
    "sinks": {"sinks": True},
    "cap and window": {"softcap": 1.5, "mask": "window"},
    "new rows only": {"rows": 4},
}


def mask_of(kind, rows, length):
    seen = torch.ones(rows, length, dtype=torch.bool).tril(length - rows)[None, None].repeat(2, 1, 1, 1)
    if kind == "window":
        return seen & seen.flip(-1).flip(-2).transpose(-1, -2).new_ones(rows, length).triu(length - rows - 3)
    seen[1, :, :, :4] = False  # rows 0-3 of the second text see nothing
    return seen


def inputs(case, seed=0, dtype=torch.float64):
    generator, options = torch.Generator().manual_seed(seed), CASES[case]
    rows = options.get("rows", SHAPES["length"])

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_(True)

    query = normal(2, SHAPES["heads"], rows, SHAPES["width"])
    key = normal(2, SHAPES["groups"], SHAPES["length"], SHAPES["width"])
    value = normal(2, SHAPES["groups"], SHAPES["length"], SHAPES["width"])
    sinks = normal(SHAPES["heads"]).detach() if options.get("sinks") else None
    mask = mask_of(options["mask"], rows, SHAPES["length"]) if "mask" in options else None
    return Inputs(query, key, value, mask, sinks, 0.7, options.get("softcap"))


def dense(given, temperature=1.0, cap_is_identity=False):
    """Attention by full matrices: weights [B, H, T, S] and output [B, T, H, width]; rows that see nothing give 0."""
    each = given.query.shape[1] // given.key.shape[1]
    key, value = (tensor.repeat_interleave(each, dim=1) for tensor in (given.key, given.value))
    logits = given.query @ key.transpose(-1, -2) * given.scaling
    if given.softcap is not None:
        capped = given.softcap * torch.tanh(logits / given.softcap)
        logits = logits * (capped / logits).detach() if cap_is_identity else capped
    rows, length = logits.shape[-2:]
    seen = torch.ones(rows, length, dtype=torch.bool).tril(length - rows) if given.mask is None else given.mask
    logits = logits.masked_fill(~seen, -1e30)

    def softmax(heat):
        scaled = logits / heat
        if given.sinks is not None:
            scaled = torch.cat([scaled, (given.sinks / heat).view(1, -1, 1, 1).expand(*scaled.shape[:-1], 1)], dim=-1)
        return scaled.softmax(dim=-1)[..., :length] * seen

    weights, soft = softmax(1.0), softmax(temperature)
    weights = weights if temperature == 1 else weights.detach() + temperature * (soft - soft.detach())
    return weights, (weights @ value).transpose(1, 2)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_written_out_backward_pass_is_that_of_full_matrices(case, identity, temperature, monkeypatch):
    monkeypatch.setattr("headwise.maths.tempered.BLOCK", 2**9)
    monkeypatch.setattr("headwise.maths.tempered.row_blocks.__defaults__", (1.0, 2**9, None))
    given = inputs(case)
    gradient = torch.randn(2, given.query.shape[2], 6, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    gradient[1, :4] = 0 if case == "left-padded" else gradient[1, :4]
    expected = dense(given, temperature, identity)[1]
    wanted = torch.autograd.grad(expected, [given.query, given.key, given.value], gradient)
    out = tempered_attention(given, temperature, identity)
    if case == "left-padded":  # what the kernel gives to rows that see nothing is nobody's business
        assert_close(out[0], expected[0])
    else:
        assert_close(out, expected, atol=1e-5, rtol=1e-4)  # values with a cap are made in float32
    for found, right in zip(torch.autograd.grad(out, [given.query, given.key, given.value], gradient), wanted, strict=True):
        assert_close(found, right)


def test_only_values_have_gradients_where_weights_are_constants():
    given = inputs("cap")
    constant = given._replace(query=given.query.detach(), key=given.key.detach())
    gradient = torch.randn(2, 13, 6, 5, dtype=torch.float64)
    (found,) = torch.autograd.grad(tempered_attention(constant), [given.value], gradient)
    (right,) = torch.autograd.grad(dense(given)[1], [given.value], gradient)
    assert_close(found, right)


@pytest.mark.parametrize("case", CASES)
def test_identities_of_the_card(case):
    given = inputs(case)
    weights, out = dense(given)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (slopes,) = torch.autograd.grad(out, [weights], gradient, retain_graph=True)
    weights, out = weights.detach(), out.detach()
    given = given._replace(query=given.query.detach(), key=given.key.detach(), value=given.value.detach())
    own = weights * slopes
    expanded = given.value.repeat_interleave(3, dim=1)
    assert_close(slopes, gradient.transpose(1, 2) @ expanded.transpose(-1, -2))  # (a)
    assert_close(own.sum(dim=-1), (out * gradient).sum(dim=-1).transpose(1, 2))  # (b)
    values = expanded.detach().requires_grad_(True)
    kernel = tempered_attention(given._replace(key=given.key.repeat_interleave(3, dim=1), value=values))
    (kernel,) = torch.autograd.grad(kernel, [values], gradient)
    assert_close((values.detach() * kernel).sum(dim=-1), own.sum(dim=2))  # (c)
    right = {"pair": own.clamp(min=0).sum(dim=2), "token": own.sum(dim=2).clamp(min=0), "none": own.sum(dim=2)}
    for positive in POSITIVE:
        for block in (1, 2**9, 2**21):
            assert_close(source_relevance(given, gradient, positive=positive, block=block), right[positive])
    rows = torch.rand(2, out.shape[1], generator=torch.Generator().manual_seed(4)) < 0.5
    columns = torch.tensor([1, 2, 7, 12])
    part = (own * rows[:, None, :, None]).clamp(min=0).sum(dim=2)
    found = source_relevance(given, gradient, rows=rows, columns=columns, block=2**9)
    assert_close(found[..., columns], part[..., columns])
    assert float(found.sum()) == pytest.approx(float(found[..., columns].sum()))


def test_no_gradient_means_no_relevance_and_no_work():
    given = inputs("plain")
    assert not source_relevance(given, torch.zeros(2, 13, 6, 5, dtype=torch.float64)).any()
    with pytest.raises(HeadwiseError, match="unknown positive part 'both'; use pair, token, none"):
        source_relevance(given, torch.ones(2, 13, 6, 5, dtype=torch.float64), positive="both")


def test_closed_forms_are_the_value_over_the_input():
    import torch.nn.functional as F

    named = {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "relu": F.relu,
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "relu_squared": lambda x: F.relu(x).square(),
    }
    assert set(named) == set(SLOPES)
    x = torch.cat([torch.linspace(-8, 8, 1000, dtype=torch.float64), torch.tensor([1e-12, -1e-9, 1e-5], dtype=torch.float64)])
    for name, function in named.items():
        assert slope_of(function) is SLOPES[name]
        assert_close(SLOPES[name](x), function(x) / x)
    assert slope_of(F.mish) is None
    assert slope_of(torch.tanh) is None
    assert_close(tanh_slope(x), torch.tanh(x) / x)
    assert float(tanh_slope(torch.zeros(1))) == 1


def test_altered_gradients_leave_values_alone():
    x = torch.randn(7, requires_grad=True)
    assert torch.equal(scaled_gradient(x, 0.25), x)
    assert torch.equal(torch.autograd.grad(scaled_gradient(x, 0.25).sum(), x)[0], torch.full((7,), 0.25))
    assert scaled_gradient(x, 1) is x
    assert not scaled_gradient(x, 0).requires_grad
    value = torch.nn.functional.silu(x)
    assert torch.equal(with_slope(x, value, torch.sigmoid), value)
    assert_close(torch.autograd.grad(with_slope(x, value, torch.sigmoid).sum(), x)[0], torch.sigmoid(x))
