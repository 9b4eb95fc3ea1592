"""Training of adapters: exact resume, rows that learn, the Trainer's steps against a loop written out."""

import math

import pytest
import torch

from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadSet
from headwise.models.model import Model, as_model
from headwise.prompts.prompt import Span
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from headwise.train.examples import TrainExample, collate
from headwise.train.lora import with_lora
from headwise.train.objectives import AnswerLoss, answer_loss
from headwise.train.options import Tuning
from headwise.train.trainer import COMPLETE, Order
from headwise.train.tuning import tune

FEW = {"steps": 6, "batch": 2, "accumulate": 2, "rank": 4, "save_every": 2, "rate": 1e-2}


def examples(count=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        length = 12 + number % 3
        ids = torch.randint(2, 96, (length,), generator=generator).tolist()
        made.append(TrainExample((*ids, 1), length - 3, Span(8, length - 3), (Span(1, 4), Span(4, 8)), (True, False), name=str(number)))
    return made


class Nan(AnswerLoss):
    def __call__(self, call, batch):
        return {"loss": answer_loss(call, batch) * float("nan")}


def weights(model):
    return {name: p.detach().clone() for name, p in model.adapter.named_parameters() if p.requires_grad}


def trained(states=None, model_type="llama", **changes):
    options = Tuning(**(FEW | changes))
    model = with_lora(as_model(tiny_model(model_type)), options, HeadSet.of([(1, 3), (3, 0)], (4, 8)) if options.rows else None)
    rows = tune(model, examples(), AnswerLoss(), options, states)
    return model, rows


@torch.no_grad()
def test_the_loss_is_that_of_each_answer_alone():
    hf = tiny_model("llama")
    batch = collate(examples(3))
    expected = []
    for one in batch.examples:
        logits = hf(torch.tensor([one.ids])).logits[0].log_softmax(-1)
        tokens = [-float(logits[i - 1, one.ids[i]]) for i in range(one.answer, len(one.ids))]
        expected.append(sum(tokens) / len(tokens))
    assert float(answer_loss(hf, batch)) == pytest.approx(sum(expected) / 3, rel=1e-5)


@pytest.mark.slow
def test_the_trainer_takes_the_steps_of_a_loop_written_out():
    model, rows = trained(steps=3, warmup=0.0)
    options = Tuning(**(FEW | {"steps": 3, "warmup": 0.0}))
    own = with_lora(as_model(tiny_model("llama")), options)
    wanted = [p for p in own.adapter.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(wanted, lr=options.rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    order, place = Order(examples(), options), 0
    for step in range(3):
        optimiser.param_groups[0]["lr"] = options.rate * 0.5 * (1 + math.cos(math.pi * step / 3))
        optimiser.zero_grad()
        for _ in range(options.accumulate):
            batch = collate([order[place + i] for i in range(options.batch)])
            (answer_loss(own.adapter, batch) / options.accumulate).backward()
            place += options.batch
        torch.nn.utils.clip_grad_norm_(wanted, 1.0)
        optimiser.step()
    for name, value in weights(model).items():
        torch.testing.assert_close(value, weights(own)[name], rtol=1e-4, atol=1e-6)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_weights(tmp_path):
    whole, rows = trained()

    class Killed(BaseException):
        pass

    def kill(done, total, remark):
        if done == 5:
            raise Killed

    options = Tuning(**FEW)
    model = with_lora(as_model(tiny_model("llama")), options)
    with pytest.raises(Killed):
        tune(model, examples(), AnswerLoss(), options, tmp_path / "states", kill)
    (tmp_path / "states" / "checkpoint-4" / COMPLETE).unlink()  # as if it was killed while the fourth was being written
    again = with_lora(as_model(tiny_model("llama")), options)
    continued = tune(again, examples(), AnswerLoss(), options, tmp_path / "states")
    assert continued == rows
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name]), name
    assert not any(module.training for module in again.adapter.modules())


@pytest.mark.parametrize("model_type", ["llama", "qwen3_next", "phi3", "gpt_neox", "gpt2", "olmo2"])
@pytest.mark.slow
def test_only_rows_of_the_chosen_heads_learn(model_type):
    model, _ = trained(model_type=model_type, rows=True, parts=("query", "key"), steps=2)
    before = tiny_model(model_type)
    for name, module in model.adapter.get_base_model().named_modules():
        if not hasattr(module, "lora_B"):
            continue
        changed = (module.lora_B["default"].weight != 0).any(dim=1)
        assert 0 < int(changed.sum()) <= 2 * model.heads.head_dim, name
    ids = torch.tensor([examples()[0].ids])
    assert not torch.equal(model.hf(ids).logits, before(ids).logits)


@pytest.mark.parametrize("model_type", TINY_FAMILIES)
@pytest.mark.slow
def test_every_family_learns(model_type):
    model, rows = trained(model_type=model_type, steps=2)
    assert all(bool((value != 0).any()) for name, value in weights(model).items() if "lora_B" in name)
    assert all(math.isfinite(row["loss"]) for row in rows)


@pytest.mark.slow
def test_taking_the_adapter_away_leaves_the_model_as_it_was():
    hf = tiny_model("llama")
    before = {name: value.clone() for name, value in hf.state_dict().items()}
    options = Tuning(**FEW)
    model = with_lora(as_model(hf), options)
    tune(model, examples(), AnswerLoss(), options)
    model.adapter.unload()
    assert before.keys() == hf.state_dict().keys()
    assert all(torch.equal(value, hf.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be"), ({"rate": 1.0}, "rate must lie"), ({"warmup": 1}, "warmup in"), ({"parts": ()}, "parts must name"),
        ({"parts": ("mlp",)}, "parts must name"), ({"rows": True}, "set parts to query"), ({"batch": True}, "batch must be"), ({"seed": -1}, "seed"),
        ({"length": 8}, "length must be"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(HeadwiseError, match=message):
        Tuning(**options)


@pytest.mark.slow
def test_what_cannot_be_trained_is_refused():
    plain = as_model(tiny_model("llama"))
    with pytest.raises(HeadwiseError, match="no adapter to train"):
        tune(plain, examples(), AnswerLoss(), Tuning(**FEW))
    with pytest.raises(HeadwiseError, match="rows needs the heads"):
        with_lora(plain, Tuning(rows=True, parts=("query",)))
    model = with_lora(plain, Tuning(**FEW))
    with pytest.raises(HeadwiseError, match="an adapter already"):
        with_lora(model, Tuning(**FEW))
    with pytest.raises(HeadwiseError, match="no example"):
        tune(model, [], AnswerLoss(), Tuning(**FEW))
    with pytest.raises(HeadwiseError, match="loss of step 1 is nan"):
        tune(model, examples(), Nan(), Tuning(**FEW))
    assert isinstance(model, Model)
