"""Contrastive decoding against two separate full passes per step; its processor for `generate`; streaming; what is refused."""

import copy

import pytest
import torch

import headwise
from headwise import ContrastProcessor, Model, Prompt, Without, contrastive_generate
from headwise.heads import HeadSet, HeadwiseError
from headwise.models.model import as_model
from headwise.runtime.branches import negative_of, opened
from headwise.testing.planted import planted_copier
from headwise.testing.tiny import tiny_model
from tests.reference import contrast as slow

IDS = [5, 9, 33, 70, 12, 41, 8, 66, 23, 50, 17, 88]
HEADS = [(0, 1), (1, 3), (3, 6)]
NEGATIVES = {
    "zero": (Without(HEADS), (set(HEADS), "zero", "answer")),
    "zero everywhere": (Without(HEADS, scope="all"), (set(HEADS), "zero", "all")),
    "uniform": (Without(HEADS, "uniform"), (set(HEADS), "uniform", "answer")),
    "uniform everywhere": (Without(HEADS, "uniform", "all"), (set(HEADS), "uniform", "all")),
    "shorter prompt": ([5, 9, 40], [5, 9, 40]),
    "longer prompt": ([3, *IDS, 7, 60, 61], [3, *IDS, 7, 60, 61]),
    "control token": ([4, *IDS[1:]], [4, *IDS[1:]]),
    "control token at the end": ([*IDS[:-1], 90], [*IDS[:-1], 90]),
    "one token": ([44], [44]),
}
RULES = {"fixed": (0.6, None), "entropy": (0.5, 1.5), "adaptive": (2.0, None), "routed": (0.8, None)}


@pytest.fixture(scope="module")
def hf():
    made = tiny_model("llama")
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = 1
    return made


@pytest.fixture(scope="module")
def weaker():
    return tiny_model("llama", seed=7, num_hidden_layers=2)


def generated(hf, ids, count, *processors):
    options = {"max_new_tokens": count, "do_sample": False, "logits_processor": list(processors)}
    return hf.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64), **options)[0, len(ids) :].tolist()


@pytest.mark.parametrize("name", NEGATIVES)
def test_both_branches_are_those_of_separate_passes(hf, name):
    given, plain = NEGATIVES[name]
    answer, model = [60, 3, 77], as_model(hf)
    with torch.no_grad(), opened(model, tuple(IDS), negative_of(model, given, tuple(IDS))) as advance:
        got = torch.stack([advance(token) for token in (None, *answer)])
    wanted = torch.stack([torch.stack(pair) for pair in slow.pairs(hf, IDS, plain, answer)])
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)
    assert (got[:, 0] - got[:, 1]).abs().amax(dim=-1).min() > 1e-3


QUICK = ("zero", "shorter prompt")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in NEGATIVES])
@pytest.mark.parametrize("combine", RULES)
def test_answers_are_those_of_separate_passes(hf, name, combine):
    (given, plain), (alpha, cap) = NEGATIVES[name], RULES[combine]
    made = contrastive_generate(hf, IDS, given, alpha, 0.1, combine, cap=cap, max_new_tokens=3)
    said, weights = slow.generate(hf, IDS, plain, 3, combine, alpha, 0.1, cap)
    assert list(made.ids) == said
    assert made.alphas == pytest.approx(weights, abs=1e-4)
    assert made.text is None  # no tokenizer
    processor = ContrastProcessor(hf, given, alpha, 0.1, combine, cap=cap)
    assert generated(hf, IDS, 3, processor) == said
    assert processor.alphas == pytest.approx(weights, abs=1e-4)


@pytest.mark.parametrize("combine", RULES)
def test_a_weaker_model_is_the_other_branch(hf, weaker, combine):
    alpha, cap = RULES[combine]
    made = contrastive_generate(hf, IDS, weaker, alpha, combine=combine, cap=cap, max_new_tokens=4)
    said, weights = slow.generate(hf, IDS, None, 4, combine, alpha, None, cap, weaker)
    assert list(made.ids) == said
    assert made.alphas == pytest.approx(weights, abs=1e-4)
    assert generated(hf, IDS, 4, ContrastProcessor(hf, weaker, alpha, combine=combine, cap=cap)) == said


def test_a_larger_vocabulary_is_cut_to_the_tokens_of_both(hf):
    wide = tiny_model("llama", seed=3, vocab_size=104)
    _, tokenizer = planted_copier()
    first, second = Model(hf, tokenizer), Model(wide, tokenizer)
    with torch.no_grad(), opened(first, tuple(IDS), negative_of(first, second)) as advance:
        assert advance(None).shape == (2, 96)
    with torch.no_grad(), opened(second, tuple(IDS), negative_of(second, first)) as advance:
        assert advance(None).shape == (2, 96)
    assert max(generated(wide, IDS, 3, ContrastProcessor(second, first, 0.5))) < 96


@pytest.mark.parametrize("name", NEGATIVES)
def test_without_a_weight_the_answer_is_the_models_own(hf, name):
    plain = generated(hf, IDS, 6)
    assert list(contrastive_generate(hf, IDS, NEGATIVES[name][0], 0, max_new_tokens=6).ids) == plain
    moved = contrastive_generate(hf, IDS, NEGATIVES[name][0], 3.0, max_new_tokens=6)
    assert list(moved.ids) != plain


def test_the_model_is_bit_for_bit_what_it_was(hf, weaker):
    before = {key: value.clone() for key, value in hf.state_dict().items()}
    config, logits, said = copy.deepcopy(hf.config.to_dict()), hf(torch.tensor([IDS])).logits, generated(hf, IDS, 5)
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in hf.modules())
    for given in (*(given for given, _ in NEGATIVES.values()), weaker):
        contrastive_generate(hf, IDS, given, max_new_tokens=2)
        ContrastProcessor(hf, given)(torch.tensor([IDS]), logits[:, -1].detach())
    with pytest.raises(ZeroDivisionError):
        contrastive_generate(Model(hf, planted_copier()[1]), IDS, Without(HEADS), stream=lambda _: 1 / 0)
    assert hf.config.to_dict() == config
    assert hooks == sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in hf.modules())
    assert all(torch.equal(value, before[key]) for key, value in hf.state_dict().items())
    assert torch.equal(hf(torch.tensor([IDS])).logits, logits)
    assert generated(hf, IDS, 5) == said


def test_prompts_may_be_prompts_and_tensors(hf):
    wanted = contrastive_generate(hf, IDS, IDS[1:], max_new_tokens=3)
    for prompt, negative in ((Prompt(tuple(IDS), {}, ()), Prompt(tuple(IDS[1:]), {}, ())), (torch.tensor(IDS), torch.tensor(IDS[1:]))):
        assert contrastive_generate(hf, prompt, negative, max_new_tokens=3) == wanted
    assert contrastive_generate(as_model(hf), IDS, Without(HeadSet.of(HEADS, (4, 8))), max_new_tokens=3) == contrastive_generate(
        hf, IDS, Without(["L0H1", "L1H3", (3, 6)]), max_new_tokens=3
    )


def test_draws_depend_on_the_seed_alone(hf):
    options = {"alpha": 0.5, "temperature": 1.5, "max_new_tokens": 8}
    first = contrastive_generate(hf, IDS, IDS[1:], seed=1, **options)
    assert contrastive_generate(hf, IDS, IDS[1:], seed=1, **options) == first
    assert contrastive_generate(hf, IDS, IDS[1:], seed=2, **options) != first
    greedy = contrastive_generate(hf, IDS, IDS[1:], alpha=0.5, max_new_tokens=8)
    assert contrastive_generate(hf, IDS, IDS[1:], seed=1, top_p=1e-6, **options).ids == greedy.ids


def test_an_answer_ends_with_the_models_stop_token_and_where_positions_end(hf):
    said = contrastive_generate(hf, IDS, IDS[1:], max_new_tokens=6).ids
    hf.generation_config.eos_token_id = said[2]
    try:
        assert contrastive_generate(Model(hf), IDS, IDS[1:], max_new_tokens=6).ids == said[: said.index(said[2]) + 1]
    finally:
        hf.generation_config.eos_token_id = None
    long = [5, *range(2, 90)] * 3
    assert len(contrastive_generate(hf, IDS, long[:254], max_new_tokens=9).ids) == 3  # of 256 positions; the last token needs none
    assert len(contrastive_generate(hf, IDS, Without(HEADS), max_new_tokens=9).ids) == 9


def test_pieces_of_a_stream_are_the_text():
    hf, tokenizer = planted_copier()
    model, pieces = Model(hf, tokenizer), []
    made = contrastive_generate(model, "the river was slow and the river", "the river", max_new_tokens=8, stream=pieces.append)
    assert "".join(pieces) == made.text
    assert len(pieces) > 2
    assert all(pieces)
    assert made.text == contrastive_generate(model, "the river was slow and the river", "the river", max_new_tokens=8).text


def test_a_stream_never_gives_away_half_a_character():
    model = headwise.load("lab-6m")
    whole = model.tokenizer.encode("a – b é", add_special_tokens=False)
    assert len(whole) > 5  # of several bytes
    from headwise.runtime.contrast import _Pieces

    sent = []
    pieces = _Pieces(model.tokenizer, sent.append)
    for count in range(1, len(whole) + 1):
        pieces.add(whole[:count])
    assert pieces.end(whole) == "".join(sent) == model.tokenizer.decode(whole)
    assert not any("\ufffd" in piece for piece in sent)
    sent.clear()
    pieces = _Pieces(model.tokenizer, sent.append)
    broken = model.tokenizer.encode("–", add_special_tokens=False)[:-1]
    pieces.add(broken)
    assert pieces.end(broken) == "".join(sent) == "\ufffd"  # the answer ends there


def test_text_is_encoded_as_generate_does():
    model = headwise.load("lab-6m")
    text = "The key is red. The door is blue. The key is"
    assert contrastive_generate(model, text, Without([(2, 3)]), 0, max_new_tokens=5).text == model.generate(text, 5)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"prompt": "the river"}, "a prompt that is a text needs a tokenizer"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": 7}, "the prompt must be a text, a Prompt or a list of token ids; got 7"),
        ({"prompt": [5, 1.5]}, "the prompt must be a text"),
        ({"prompt": [5, 96]}, "token id 96 is outside of the model's vocabulary"),
        ({"prompt": [5] * 257}, "the prompt has 257 tokens, but llama has 256 positions; shorten it"),
        ({"negative": IDS}, "both prompts have the same tokens, so there is nothing to contrast"),
        ({"negative": []}, "the negative prompt is empty"),
        ({"negative": [(0, 1)]}, "the negative prompt must be a text, a Prompt or a list of token ids"),
        ({"negative": HeadSet.of(HEADS, (4, 8))}, "write headwise.Without(heads)"),
        ({"negative": Without([])}, "needs at least one head"),
        ({"negative": Without([(9, 9)])}, "L9H9"),
        ({"negative": tiny_model("llama", vocab_size=80)}, "have different vocabularies"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1; got 0"),
        ({"max_new_tokens": True}, "max_new_tokens must be at least 1"),
        ({"temperature": -1}, "temperature must be at least 0; got -1"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1; got 0"),
        ({"seed": -1}, "the seed must be a whole number from 0"),
        ({"stream": print}, "streaming text needs a tokenizer"),
        ({"combine": "magic"}, "unknown rule 'magic'"),
    ],
)
def test_wrong_input_is_refused_in_one_line(hf, change, part):
    with pytest.raises(HeadwiseError) as caught:
        contrastive_generate(hf, **{"prompt": IDS, "negative": Without(HEADS)} | change)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_that_is_refused(hf):
    with pytest.raises(HeadwiseError, match="the weaker model is the model itself"):
        contrastive_generate(hf, IDS, Model(hf))
    with pytest.raises(HeadwiseError, match="knows the modes zero, uniform; got 'mean'"):
        Without(HEADS, "mean")
    with pytest.raises(HeadwiseError, match="unknown scope 'some'; use all, answer"):
        Without(HEADS, scope="some")
    broken = tiny_model("llama")
    with torch.no_grad():
        broken.lm_head.weight[3] = torch.nan
    for negative in (Without(HEADS), IDS[1:], hf):
        with pytest.raises(HeadwiseError, match="not finite"):
            contrastive_generate(broken, IDS, negative)


def test_a_processor_serves_one_text_of_one_row(hf):
    options = {"max_new_tokens": 3, "do_sample": False}
    both = torch.tensor([IDS, IDS])
    for ids, more in ((both, {}), (both[:1], {"num_beams": 2})):
        with pytest.raises(HeadwiseError, match="takes one row; this call of generate has 2"):
            hf.generate(ids, attention_mask=torch.ones_like(ids), logits_processor=[ContrastProcessor(hf, IDS[1:])], **options, **more)
    processor = ContrastProcessor(hf, IDS[1:])
    generated(hf, IDS, 3, processor)
    with pytest.raises(HeadwiseError, match="make a ContrastProcessor for each call of generate"):
        generated(hf, IDS, 3, processor)
    with pytest.raises(HeadwiseError, match="both prompts have the same tokens"):
        generated(hf, IDS, 3, ContrastProcessor(hf, IDS))


def test_tables_that_differ_by_length_are_not_put_into_one_batch():
    hf = tiny_model("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}, max_position_embeddings=16)
    model = as_model(hf)
    object.__setattr__(model, "positions", 64)
    long = [5, *range(2, 30)]
    with pytest.raises(HeadwiseError, match="these texts need different ones; make them equally long"):
        contrastive_generate(model, IDS, long, max_new_tokens=2)
    assert len(contrastive_generate(model, IDS, IDS[2:], max_new_tokens=2).ids) == 2
