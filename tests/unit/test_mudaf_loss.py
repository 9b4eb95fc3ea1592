"""Contrastive losses on chosen heads (MuDAF, QRRanker): values against loops, what gradients reach, padding, and what is refused."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwise.attention.capture import Capture, Captured, capture
from headwise.attention.depth import run_to_layer
from headwise.heads import HeadScores, HeadSet, HeadwiseError
from headwise.maths.contrastive import Marked, counts, info_nce, max_min
from headwise.methods.mudaf.loss import Apart, MudafLoss
from headwise.methods.query.loss import RankLoss
from headwise.testing.tiny import tiny_model
from tests.reference import mudaf as slow

HEADS = [(2, 5), (1, 2), (1, 3), (0, 7)]  # 4 query heads per KV head: L1H2 and L1H3 share one
LENGTH, PAD = 24, 5
IDS = torch.randint(2, 96, (2, LENGTH), generator=torch.Generator().manual_seed(4))
SPANS, GOLD = ((1, 5), (5, 8), (9, 15), (15, 16)), (False, True, False, True)
MARKED = [Marked(0, (18, LENGTH), SPANS, GOLD), Marked(1, (20, LENGTH), SPANS[:3], GOLD[:3])]
APART = [Apart(0, (1, 2, 3), (True, False, True)), Apart(4, (5, 6), (False, True))]
LENGTHS = [6, 11, 3, 7, 4, 9, 1]
FORMS = [("per_head", "mean"), ("concat", "mean"), ("per_head", "lse")]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def seen_by(model, ids, **options):
    with capture(model) as seen:
        model(input_ids=ids, use_cache=False, **options)
    return seen


def texts(padding=0):
    """Seven texts of `LENGTHS`, padded on the right with tokens of their own."""
    width = max(LENGTHS) + padding
    return torch.randint(2, 96, (len(LENGTHS), width), generator=torch.Generator().manual_seed(6))


def of_place(seen, row, start, stop):
    """layer -> keys [G][tokens][d] of one row."""
    return {layer: one.keys[0][row, :, start:stop].double() for layer, one in seen.by_layer.items()}


def asking(seen, row, position):
    return {layer: (one.query[row, :, position].double(), one.scaling) for layer, one in seen.by_layer.items()}


def by_loops(seen, heads, form, questions, lengths=None, keep_start=False, **more):
    losses = []
    for one in questions:
        if isinstance(one, Marked):
            question = asking(seen, one.row, one.query[1] - 1)
            passages = [of_place(seen, one.row, *span) for span in one.passages]
        else:
            question = asking(seen, one.anchor, lengths[one.anchor] - 1)
            skipped = [0 if keep_start or lengths[row] == 1 else 1 for row in one.passages]
            passages = [of_place(seen, row, start, lengths[row]) for row, start in zip(one.passages, skipped, strict=True)]
        losses.append(slow.mudaf(heads, 4, question, passages, one.gold, sim=form[0], pool=form[1], **more))
    return sum(losses) / len(losses)


# ---- values


@pytest.mark.parametrize("form", FORMS)
def test_losses_in_context_are_the_loops(model, form):
    seen = seen_by(model, IDS)
    found = MudafLoss(HEADS, sim=form[0], pool=form[1])(seen, MARKED)
    assert found.rows == 2
    assert found.loss.item() == pytest.approx(by_loops(seen, HEADS, form, MARKED), rel=1e-4)
    assert found.loss.dtype == torch.float32


@pytest.mark.parametrize("keep_start", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_losses_of_texts_read_apart_are_the_loops(model, form, keep_start):
    seen = seen_by(model, texts())
    found = MudafLoss(HEADS, sim=form[0], pool=form[1], mode="separate", keep_start=keep_start)(seen, APART, LENGTHS)
    assert found.loss.item() == pytest.approx(by_loops(seen, HEADS, form, APART, LENGTHS, keep_start), rel=1e-4)


def test_heads_are_put_together_layer_by_layer_whatever_order_they_are_given_in(model):
    seen = seen_by(model, IDS)
    one, other = (MudafLoss(heads, sim="concat") for heads in (HEADS, HeadSet.of(HEADS[::-1], (4, 8))))
    assert one.heads == ((0, 7), (1, 2), (1, 3), (2, 5))
    assert one.deepest == 2
    assert torch.equal(one(seen, MARKED).loss, other(seen, MARKED).loss)


def test_the_temperature_divides_the_cosine(model):
    seen = seen_by(model, IDS)
    for temperature in (0.02, 1.0):
        found = MudafLoss(HEADS, temperature)(seen, MARKED).loss.item()
        assert found == pytest.approx(by_loops(seen, HEADS, FORMS[0], MARKED, temperature=temperature), rel=1e-4)


def test_the_loss_of_masses_is_info_nce_of_what_the_model_attends_to(model):
    weights = slow.attention(model, IDS[0].tolist())
    wanted = []
    for layer, head in HEADS:
        masses = [float(weights[layer][head, -1, start:stop].sum()) for start, stop in SPANS]
        wanted.append(slow.info_nce([math.log(mass) for mass in masses], GOLD))
    found = MudafLoss(HEADS, pool="lse")(seen_by(model, IDS), MARKED[:1]).loss.item()
    assert found == pytest.approx(sum(wanted) / len(wanted), rel=1e-4)


def test_the_rank_loss_is_that_of_full_attention(model):
    seen, wanted = seen_by(model, IDS), []
    loss = RankLoss(HEADS, 0.2)
    for one in MARKED:
        masses, value = slow.ranking(slow.attention(model, IDS[one.row].tolist()), HEADS, one.query, one.passages, one.gold, 0.2)
        torch.testing.assert_close(loss.scores(seen, one), torch.tensor(masses), atol=1e-5, rtol=1e-4)
        wanted.append(value)
    found = loss(seen, MARKED)
    assert (found.loss.item(), found.rows) == (pytest.approx(sum(wanted) / 2, rel=1e-3), 2)


def test_a_question_may_stand_in_the_middle_of_a_text(model):
    early = Marked(0, (16, 19), SPANS, GOLD)
    long, short = seen_by(model, IDS), seen_by(model, IDS[:, :19])
    for loss in (MudafLoss(HEADS), MudafLoss(HEADS, pool="lse"), RankLoss(HEADS)):
        torch.testing.assert_close(loss(long, [early]).loss, loss(short, [early]).loss)


def test_a_model_in_bfloat16_is_scored_in_float32(model):
    half = copy.deepcopy(model).bfloat16()
    seen = seen_by(half, IDS)
    for form in FORMS:
        found = MudafLoss(HEADS, sim=form[0], pool=form[1])(seen, MARKED).loss
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(by_loops(seen, HEADS, form, MARKED), rel=1e-4)  # a sum in bfloat16 is off by 1e-2
    assert RankLoss(HEADS)(seen, MARKED).loss.dtype == torch.float32


# ---- padding

LOSSES = {
    "mean": MudafLoss(HEADS),
    "concat": MudafLoss(HEADS, sim="concat"),
    "lse": MudafLoss(HEADS, pool="lse"),
    "rank": RankLoss(HEADS),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", LOSSES)
def test_padded_rows_give_what_they_give_alone(model, name, side):
    alone = [LOSSES[name](seen_by(model, IDS[one.row : one.row + 1]), [one._replace(row=0)]).loss for one in MARKED]
    shift = PAD if side == "left" else 0
    ids = torch.full((2, LENGTH + PAD), 1)
    mask = torch.zeros_like(ids)
    ids[0, shift : shift + LENGTH], ids[1] = IDS[0], torch.cat([IDS[1], IDS[1, :PAD]])
    mask[0, shift : shift + LENGTH], mask[1] = 1, 1
    moved = MARKED[0]._replace(
        query=tuple(place + shift for place in MARKED[0].query),
        passages=tuple((start + shift, stop + shift) for start, stop in MARKED[0].passages),
    )
    found = LOSSES[name](seen_by(model, ids, attention_mask=mask), [moved, MARKED[1]])
    torch.testing.assert_close(found.loss, torch.stack(alone).mean(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_texts_read_apart_do_not_feel_their_padding(model, form):
    loss = MudafLoss(HEADS, sim=form[0], pool=form[1], mode="separate")
    wide = texts(padding=4)
    wide[:, : max(LENGTHS)] = texts()
    torch.testing.assert_close(loss(seen_by(model, wide), APART, LENGTHS).loss, loss(seen_by(model, texts()), APART, LENGTHS).loss)
    same = Apart(0, (1, 2), (True, False))
    torch.testing.assert_close(loss(seen_by(model, texts()), [same]).loss, loss(seen_by(model, texts()), [same], [11] * 7).loss)


def test_questions_without_both_kinds_of_passages_count_nothing(model):
    none, every = MARKED[0]._replace(gold=(False,) * 4), MARKED[0]._replace(gold=(True,) * 4)
    for loss in (MudafLoss(HEADS), RankLoss(HEADS)):
        seen = seen_by(model, IDS)
        mixed, alone = loss(seen, [none, MARKED[1], every]), loss(seen, MARKED[1:])
        assert (mixed.rows, mixed.loss.item()) == (1, alone.loss.item())
        empty = loss(seen, [none])
        assert (empty.rows, empty.loss.item()) == (0, 0.0)
        empty.loss.backward()  # a step of such questions alone is a step of nothing, not an error
        assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().max() == 0
        model.zero_grad(set_to_none=True)


# ---- gradients


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_reaches_what_the_card_says(model, name):
    """Section 3.3: for a head in layer l all blocks below, and of layer l its input norm and the rows of the head in q_proj and k_proj."""
    loss = MudafLoss([(2, 5)], sim=LOSSES[name].sim, pool=LOSSES[name].pool) if name != "rank" else RankLoss([(2, 5)])
    found = gradients(model, loss(seen_by(model, IDS), MARKED).loss)
    own = {name.removeprefix("model.layers.2.") for name in found if ".layers.2." in name}
    assert own == {"input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight"}
    below = {n for n, _ in model.named_parameters() if ".layers.0." in n or ".layers.1." in n or "embed" in n}
    assert set(found) == below | {f"model.layers.2.{part}" for part in own}
    for part, head in (("q_proj", 5), ("k_proj", 1)):
        rows = found[f"model.layers.2.self_attn.{part}.weight"].unflatten(0, (-1, 16)).abs().amax(dim=(1, 2))
        assert (rows > 0).nonzero().flatten().tolist() == [head]


@pytest.mark.parametrize("mode", ["in_context", "separate"])
def test_heads_are_trained_one_by_one_too(model, mode):
    """Claim 7: in the released code the loss per head is detached, and k_proj gets nothing."""
    apart = mode == "separate"
    seen = seen_by(model, texts() if apart else IDS)
    found = gradients(model, MudafLoss(HEADS, mode=mode)(seen, APART if apart else MARKED, LENGTHS if apart else None).loss)
    for layer in (0, 1, 2):
        assert found[f"model.layers.{layer}.self_attn.k_proj.weight"].abs().max() > 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_layers_above_need_not_run(model, name):
    wanted = gradients(model, LOSSES[name](seen_by(model, IDS), MARKED).loss)
    ran = []
    hooks = [layer.mlp.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, layer in enumerate(model.model.layers)]
    with capture(model) as seen:
        run_to_layer(model, LOSSES[name].deepest, IDS, gradients=True)
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1]
    found = gradients(model, LOSSES[name](seen, MARKED).loss)
    assert found.keys() == wanted.keys()
    for part, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[part], atol=1e-6, rtol=1e-4)


def test_a_pass_to_a_layer_keeps_no_graph_unless_asked(model):
    for options in ({}, {"gradients": True}):
        with capture(model) as seen, torch.set_grad_enabled(not options):
            run_to_layer(model, 2, IDS, **options)
        assert not seen.by_layer[2].query.requires_grad
    with torch.no_grad():  # nothing is asked of a pass that is only measured
        assert MudafLoss(HEADS)(seen, MARKED).rows == 2


def checkpointed(hf, reentrant):
    enable = getattr(hf, "activation_checkpointing_enable", None) or hf.gradient_checkpointing_enable  # its name up to transformers 5.23
    enable({"use_reentrant": reentrant})


@pytest.mark.parametrize("to_layer", [False, True])
def test_checkpointing_that_cuts_the_loss_off_is_refused_and_the_other_form_trains(model, to_layer):
    twin = copy.deepcopy(model).train()
    wanted = gradients(twin, MudafLoss(HEADS)(seen_by(twin, IDS), MARKED).loss)

    def run(hf):
        if to_layer:
            run_to_layer(hf, 2, IDS, gradients=True)
        else:
            hf(input_ids=IDS, use_cache=False)

    checkpointed(twin, reentrant=False)
    with capture(twin) as seen:
        run(twin)
        found = gradients(twin, MudafLoss(HEADS)(seen, MARKED).loss)
    assert found.keys() == wanted.keys()
    for part, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[part], atol=1e-6, rtol=1e-4)
    checkpointed(twin, reentrant=True)
    twin.enable_input_require_grads()
    with capture(twin) as seen:
        run(twin)
    for loss in (MudafLoss(HEADS), RankLoss(HEADS)):
        with pytest.raises(HeadwiseError, match=r"layer 0 have no gradient.*give it use_reentrant=False") as error:
            loss(seen, MARKED)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mean", "lse", "rank"])
def test_a_few_steps_teach_a_head_to_pick_the_gold_passage(name):
    """Only q_proj and k_proj of its layer learn."""
    model = tiny_model("llama")
    loss = RankLoss([(2, 5)]) if name == "rank" else MudafLoss([(2, 5)], pool=name)
    weights = [getattr(model.model.layers[2].self_attn, part).weight for part in ("q_proj", "k_proj")]
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is weight for weight in weights))
    optimizer, values = torch.optim.Adam(weights, lr=0.02), []
    questions = [one._replace(gold=(False, True, False, False)[: len(one.gold)]) for one in MARKED]
    before = RankLoss([(2, 5)]).scores(seen_by(model, IDS), questions[0])
    for _ in range(12):
        with capture(model) as seen:
            run_to_layer(model, 2, IDS, gradients=True)
            found = loss(seen, questions).loss
            optimizer.zero_grad()
            found.backward()
        optimizer.step()
        values.append(found.item())
    assert values[-1] < 0.5 * values[0]
    after = RankLoss([(2, 5)]).scores(seen_by(model, IDS), questions[0])
    assert after[1] / after.sum() > before[1] / before.sum() + 0.1


def test_the_model_is_as_before(model):
    before, name = model(IDS).logits, model.config._attn_implementation
    with capture(model) as seen:
        run_to_layer(model, 2, IDS, gradients=True)
        MudafLoss(HEADS)(seen, MARKED).loss.backward()
    model.zero_grad(set_to_none=True)
    assert model.config._attn_implementation == name
    assert torch.equal(model(IDS).logits, before)


# ---- maths

NUMBERS = st.lists(st.tuples(st.floats(-9, 9, width=32), st.booleans()), min_size=2, max_size=8).filter(lambda rows: counts([g for _, g in rows]))


@given(NUMBERS, st.floats(-5, 5))
def test_info_nce_is_the_loop_and_knows_only_differences(rows, shift):
    values, gold = torch.tensor([v for v, _ in rows]), [g for _, g in rows]
    found = info_nce(values, gold)
    assert found.item() == pytest.approx(slow.info_nce(values.tolist(), gold), rel=1e-4, abs=1e-5)
    assert info_nce(values + shift, gold).item() == pytest.approx(found.item(), rel=1e-3, abs=1e-4)
    order = torch.randperm(len(gold))
    torch.testing.assert_close(info_nce(values[order], [gold[i] for i in order]), found, atol=1e-5, rtol=1e-4)
    assert info_nce(values + 2 * torch.tensor(gold), gold) <= found  # gold passages higher, loss lower


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=6), st.integers(1, 4), st.integers(-3, 3))
def test_scores_are_stretched_whatever_their_unit(numbers, factor, shift):
    values = torch.tensor(numbers, dtype=torch.float32)
    found = max_min(values)
    assert (found.min(), found.max()) == (0, 1 if len(set(numbers)) > 1 else 0)
    torch.testing.assert_close(max_min(values * factor + shift), found)


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": []}, "no heads were given to train"),
        ({"heads": "L0H1"}, "heads are wanted and 'L0H1' was given"),
        ({"heads": HeadScores([[0.0, 1.0]], "copy")}, "heads are wanted and scores were given"),
        ({"heads": ["0.1"]}, "'0.1' is not a head"),
        ({"temperature": 0.0}, "the temperature must be above 0; got 0"),
        ({"temperature": math.nan}, "got nan"),
        ({"sim": "all"}, "unknown sim 'all'; use per_head or concat"),
        ({"pool": "max"}, "unknown pool 'max'; use mean or lse"),
        ({"mode": "apart"}, "unknown mode 'apart'; use in_context or separate"),
        ({"pool": "lse", "sim": "concat"}, "it goes with sim per_head, not with concat"),
        ({"pool": "lse", "temperature": 0.05}, "no temperature; leave temperature out"),
        ({"keep_start": True}, "keep_start goes with mode separate"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, message):
    with pytest.raises(HeadwiseError, match=message) as error:
        MudafLoss(**{"heads": HEADS} | options)
    assert "\n" not in str(error.value)
    if set(options) <= {"heads", "temperature"}:
        with pytest.raises(HeadwiseError, match=message):
            RankLoss(**{"heads": HEADS} | options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": (True,)}, "1 flags say which of 4 passages are gold"),
        ({"row": 2}, r"the question \[18, 24\) of row 2 lies outside a batch of 2 rows with positions 0 to 23"),
        ({"query": (18, 25)}, "lies outside a batch"),
        ({"query": (20, 20)}, "lies outside a batch"),
        ({"passages": ((1, 5), (4, 8), (9, 15), (15, 16))}, r"passage \[4, 8\) of row 0 is empty, overlaps another one"),
        ({"passages": ((1, 5), (5, 5), (9, 15), (15, 16))}, r"passage \[5, 5\)"),
        ({"passages": ((1, 5), (5, 8), (9, 15), (15, 19))}, "does not end before the question at 18"),
        ({"passages": ((-1, 5), (5, 8), (9, 15), (15, 16))}, r"passage \[-1, 5\)"),
    ],
)
def test_marks_that_do_not_fit_are_refused(model, change, message):
    seen = seen_by(model, IDS)
    for loss in (MudafLoss(HEADS), RankLoss(HEADS)):
        with pytest.raises(HeadwiseError, match=message) as error:
            loss(seen, [MARKED[0]._replace(**change)])
        assert "\n" not in str(error.value)


def test_other_wrong_requests(model):
    seen, apart = seen_by(model, IDS), MudafLoss(HEADS, mode="separate")
    for call, message in (
        (lambda: MudafLoss(HEADS)(seen, APART), "mode in_context takes Marked questions"),
        (lambda: apart(seen, MARKED), "mode separate takes Apart questions"),
        (lambda: apart(seen, APART), r"rows \(4, 5, 6\) do not all exist|rows \(0, 1, 2, 3\) do not all exist"),
        (lambda: apart(seen, [Apart(0, (1,), (True, False))]), "2 flags say which of 1 passages"),
        (lambda: apart(seen, [Apart(0, (1,), (True,))], [3]), "lengths must be one number of 1 to 24 tokens for each of 2 rows"),
        (lambda: apart(seen, [Apart(0, (1,), (True,))], [3, 25]), "lengths must be"),
        (lambda: MudafLoss([(4, 0)])(seen, MARKED), "the pass has no attention head L4H0"),
        (lambda: RankLoss([(0, 8)])(seen, MARKED), "the pass has no attention head L0H8"),
        (lambda: MudafLoss(HEADS)(Capture(), MARKED), "run the model inside the block, at least up to layer 0"),
    ):
        with pytest.raises(HeadwiseError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_passages_in_the_padding_are_refused(model):
    mask = torch.ones_like(IDS)
    mask[0, :PAD] = 0
    seen = seen_by(model, IDS, attention_mask=mask)
    for loss in (MudafLoss(HEADS), MudafLoss(HEADS, pool="lse"), RankLoss(HEADS)):
        with pytest.raises(HeadwiseError, match="do not see all of its passages"):
            loss(seen, MARKED)


def test_keys_of_a_shared_past_count_too():
    """Two segments of keys, the first of which all rows share; positions are those of the whole text."""
    torch.manual_seed(0)
    query, past, new = torch.randn(2, 4, 3, 8), torch.randn(1, 2, 6, 8), torch.randn(2, 2, 3, 8)
    whole = torch.cat([past.expand(2, -1, -1, -1), new], dim=2)
    seen, wanted = Capture(), Capture()
    seen.by_layer[0] = Captured(query, (past, new), 0.3, query)
    wanted.by_layer[0] = Captured(torch.cat([torch.zeros(2, 4, 6, 8), query], dim=2), (whole,), 0.3, query)
    questions = [Marked(row, (7, 9), ((0, 2), (3, 7)), (True, False)) for row in (0, 1)]
    with torch.no_grad():
        for loss in (MudafLoss([(0, 1), (0, 3)]), MudafLoss([(0, 3)], pool="lse"), RankLoss([(0, 0)])):
            torch.testing.assert_close(loss(seen, questions).loss, loss(wanted, questions).loss)
        with pytest.raises(HeadwiseError, match="with positions 6 to 8"):
            RankLoss([(0, 0)])(seen, [questions[0]._replace(query=(5, 7), passages=((0, 2), (3, 5)))])
