"""Linear layers given a few rows: the same numbers, only where it pays, and nothing left behind."""

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from headwise.attention.few_rows import LEAST, few_rows
from headwise.models.forward import forward
from headwise.testing.tiny import tiny_model


@pytest.fixture
def hf(monkeypatch):
    monkeypatch.setattr("headwise.attention.few_rows.LEAST", 1)
    return tiny_model("qwen2")  # queries, keys and values have biases


def hooks(hf):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in hf.modules())


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
def test_passes_are_what_they_were(hf, rows, monkeypatch):
    ids = torch.randint(2, 96, (rows, 9), generator=torch.Generator().manual_seed(0))

    def run():
        cache = DynamicCache(config=hf.config)
        return torch.cat([forward(hf, ids[:, :7], cache).logits, forward(hf, ids[:, 7:8], cache).logits, forward(hf, ids[:, 8:], cache).logits], 1)

    seen, plain = [], nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda x, *rest: seen.append(x.numel() // x.shape[-1]) or plain(x, *rest))
    wanted, before = run(), len(seen)
    with few_rows(hf):
        got = run()
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=1e-5)
    assert (0 in seen[before:]) == (rows in (2, 3, 4))  # the layers themselves are given no rows
    assert 0 not in seen[:before]


def test_gradients_flow_as_without_the_block(hf):
    ids = torch.tensor([[5, 6], [7, 8]])
    hf(ids).logits.sum().backward()
    wanted = [p.grad.clone() for p in hf.parameters()]
    hf.zero_grad()
    with few_rows(hf):
        hf(ids).logits.sum().backward()
    assert all(torch.equal(p.grad, old) for p, old in zip(hf.parameters(), wanted, strict=True))


def test_nothing_is_left_behind(hf):
    before, ids = hooks(hf), torch.tensor([[5], [6]])
    with torch.no_grad():
        wanted = hf(ids).logits
    with few_rows(hf):
        assert hooks(hf) > before
    with pytest.raises(ZeroDivisionError), few_rows(hf):
        _ = 1 / 0
    assert hooks(hf) == before
    with torch.no_grad():
        assert torch.equal(hf(ids).logits, wanted)


def test_a_layer_that_failed_forgets_what_it_was_given():
    layer = nn.Linear(256, LEAST // 256, bias=False)
    with torch.no_grad(), few_rows(wrapped := Holder(layer)):
        layer.weight.requires_grad_(False)
        with pytest.raises(RuntimeError):
            layer(torch.ones(2, 1, 255))
        assert wrapped.layer(torch.ones(1, 1, 256)).shape == (1, 1, LEAST // 256)


def test_layers_of_other_kinds_run_as_they_are():
    class Own(nn.Linear):
        pass

    wide = Holder(nn.ModuleList([Own(512, 512), nn.Linear(512, 512, dtype=torch.bfloat16), nn.Linear(8, 8)]))
    before = hooks(wide)
    with few_rows(wide):
        assert hooks(wide) == before


class Holder(nn.Module):
    """Looks like a model of transformers."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.config = layer, None
