"""A model with one retrieval head that we put there by hand, the text it can be asked about, and a check of any detector on it.

Layer 0, heads 0 and 1 look exactly one and two tokens back (their logits depend on the distance alone, through the fast-turning
dimensions of RoPE) and write down what they see. The planted head looks for the place whose two previous tokens are the current
one and the one before it (an induction head on two tokens, in dimensions that hardly turn) and says the token at that place. It
rests on the first token if there is no such place. All other heads always rest on the first token. The rest is small noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from headwise.heads.errors import HeadwiseError
from headwise.heads.plain import checked_seed
from headwise.heads.types import HeadScores
from headwise.models.model import Model
from headwise.testing.tokenizers import SPECIAL, word_tokenizer

CODE = 36  # dimensions of a token's random code
HEAD_DIM = 128
THETA = 1e30  # neighbouring frequencies differ by a factor of 3, so both fast and practically fixed dimensions exist
FAST, SLOW = 8, 24  # the first FAST rotation pairs tell distances; pairs from SLOW on turn by less than 1e-6 in 100,000 tokens
DISTANCE, MATCH, REST, SINK = 60.0, 100.0, 180.0, 40.0  # attention logits: per fast pair, per matching token, resting places
SAY, BREAK = 5.5, 2.1  # unembedding weights of a copied token and of the line break
SENTENCE_END = (".", "!", "?", " .", " !", " ?")

COMMON = """the river was slow and wide in that year so we took a boat to see old town again before snow came down from hills
while men were cutting wood near our road they spoke of bread light horses rain children music stone gardens winter birds"""
NAMES = "alder birch cedar dogwood elder fir hazel juniper larch maple oak poplar rowan spruce walnut yew"
NEEDLES = 8


class Places(NamedTuple):
    """Where things stand in the residual stream.

    Attributes:
        code: Code of the token itself.
        one_back: Code of the token before it.
        two_back: Code of the token before that.
        said: Code of the token that the planted head has copied.
        always: 2 at every token.
        first: 2 at the first token of a text.
        end: 1 where a sentence ends.
        filler: What brings the squared length of every embedding to 8.
    """

    code: slice = slice(0, CODE)
    one_back: slice = slice(CODE, 2 * CODE)
    two_back: slice = slice(2 * CODE, 3 * CODE)
    said: slice = slice(3 * CODE, 4 * CODE)
    always: int = 4 * CODE
    first: int = 4 * CODE + 1
    end: int = 4 * CODE + 2
    filler: int = 4 * CODE + 3


P = Places()
WIDTH = 4 * CODE + 4
TURN = torch.tensor([THETA ** (-i / (HEAD_DIM // 2)) for i in range(FAST)])
RESTING = HEAD_DIM // 2 + SLOW + CODE  # the dimension in which heads recognise the first token


@dataclass(frozen=True)
class PlantedTask:
    """What a planted model can be asked about.

    Attributes:
        texts: The haystack.
        needles: Mappings with needle, question, answer, answer_prefix.
    """

    texts: tuple[str, ...]
    needles: tuple[Mapping[str, str], ...]


def planted_task(seed: int = 0, sentences: int = 300) -> PlantedTask:
    """Plain sentences, and needles of three made-up words each, which occur nowhere else.

    Args:
        seed: Of sentences and words.
        sentences: How many sentences the haystack has.

    Returns:
        One text, and `NEEDLES` needles.

    Raises:
        HeadwiseError: A seed out of range.
    """
    rng = np.random.default_rng([checked_seed(seed), 7])
    lines = [" ".join(rng.choice(COMMON.split(), size=rng.integers(6, 13))) + "." for _ in range(sentences)]
    syllables = [a + b for a in "bdfgklmprstvz" for b in "aeiou"]
    words = rng.permutation([a + b + "x" for a in syllables for b in syllables])[: 3 * NEEDLES].reshape(NEEDLES, 3)
    needles = []
    for name, code in zip(rng.permutation(NAMES.split()), words, strict=False):
        prefix, answer = f"the secret of {name} is", " ".join(code)
        question = f"what is the secret of {name}?"
        needles.append({"needle": f"{prefix} {answer}.", "question": question, "answer": answer, "answer_prefix": prefix})
    return PlantedTask((" ".join(lines),), tuple(needles))


def planted_copier(
    layers: int = 2,
    heads: int = 4,
    layer: int = 1,
    head: int = 2,
    seed: int = 0,
    *,
    kv_heads: int | None = None,
    positions: int = 1024,
    texts: Iterable[str] = (),
    noise: float = 0.003,
) -> tuple[Any, Any]:
    """A Llama model in which only head (layer, head) copies, exactly, up to 8,000 tokens.

    It continues whatever it has read before: asked with the first words of a needle's sentence (the answer prefix) it says the
    rest. It ends an answer with a line break after a full stop, or at once if it finds nothing.

    Args:
        layers: At least 2; layer 0 holds the two heads that look back.
        heads: Query heads per layer, at least 2.
        layer: Where the head is planted, from 1.
        head: Where the head is planted.
        seed: Of the noise, the token codes and the task.
        kv_heads: KV heads per layer (default: one per query head).
        positions: Longest context in tokens.
        texts: More words for its vocabulary, besides those of `planted_task(seed)`.
        noise: Standard deviation of all other weights.

    Returns:
        (model, tokenizer), the model float32 in evaluation mode.

    Raises:
        HeadwiseError: The head cannot be planted there, or the seed is out of range.
    """
    if not (1 <= layer < layers and 0 <= head < heads and heads >= 2):
        raise HeadwiseError(
            f"cannot plant L{layer}H{head} in {layers} layers x {heads} heads; choose layer 1 to {layers - 1} and head 0 to "
            f"{heads - 1}, and give at least 2 heads (layer 0 holds the two heads that look back)"
        )
    task = planted_task(seed)
    vocabulary = [text for needle in task.needles for text in needle.values()]
    tokenizer = word_tokenizer([*task.texts, *vocabulary, "Question: Answer: question: answer:", *texts])
    model = _noise_model(tokenizer, layers, heads, kv_heads or heads, positions, seed, noise)
    with torch.no_grad():
        codes = _embed(model, tokenizer, seed)
        for block in model.model.layers:
            _read_everything(block.self_attn, kv_heads or heads)
            for index in range(heads):
                _rest(block.self_attn, index, SINK)
        for index, place in ((0, P.one_back), (1, P.two_back)):
            _look_back(model.model.layers[0].self_attn, index, index + 1, place)
        _copy(model.model.layers[layer].self_attn, head)
        _say(model.lm_head.weight, tokenizer, codes)
    return model, tokenizer


def check_detector(detect: Callable[[Model, PlantedTask], HeadScores]) -> None:
    """Check that a detector puts the planted head on top of its ranking, wherever the head was planted.

    Args:
        detect: Called as detect(model, task) with a planted model, and the texts and needles to ask it about.

    Raises:
        HeadwiseError: It does not; the message says what it found.
    """
    for layers, heads, layer, head, kv_heads in ((2, 4, 1, 2, 4), (3, 4, 2, 0, 2), (3, 6, 1, 5, 6)):
        model, tokenizer = planted_copier(layers, heads, layer, head, kv_heads=kv_heads)
        scores = detect(Model(model, tokenizer), planted_task())
        where = f"the head planted at L{layer}H{head} in {layers} layers x {heads} heads"
        if scores.shape != (layers, heads):
            raise HeadwiseError(f"the detector gave {scores.shape[0]} x {scores.shape[1]} scores, not one per head, for {where}")
        if np.isnan(scores.values[layer, head]):
            raise HeadwiseError(f"the detector gave no score to {where}")
        best = scores.ranking()[0]
        own, second = scores.values[layer, head], np.nanmax(np.delete(scores.values.ravel(), layer * heads + head))
        if not own > second:
            raise HeadwiseError(f"the detector missed {where}: it scores {own:.3g}, another head ({best}) {second:.3g}")


def _noise_model(tokenizer: Any, layers: int, heads: int, kv_heads: int, positions: int, seed: int, noise: float) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    if heads % kv_heads:
        raise HeadwiseError(f"{heads} heads cannot share {kv_heads} KV heads; use a divisor of {heads}")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=-(-WIDTH // heads) * heads,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=positions,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).float().eval()
    model.config._name_or_path = "planted-copier"
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, noise, generator=generator)
    return model


def _embed(model: Any, tokenizer: Any, seed: int) -> Tensor:
    """Token codes [V, CODE], unit length (the first token has none); every row of the embedding has squared length 8."""
    weight = model.model.embed_tokens.weight
    codes = torch.randn(len(tokenizer), CODE, generator=torch.Generator().manual_seed(seed + 1))
    codes /= codes.norm(dim=1, keepdim=True)
    bos = tokenizer.bos_token_id
    codes[bos] = 0
    weight.zero_()
    weight[:, P.code] = codes
    weight[:, P.always] = 2
    weight[bos, P.first] = 2
    vocabulary = tokenizer.get_vocab()
    weight[[vocabulary[end] for end in SENTENCE_END if end in vocabulary], P.end] = 1
    weight[:, P.filler] = (8 - weight.square().sum(dim=1)).sqrt()
    return codes


def _read_everything(attention: Any, kv_heads: int) -> None:
    """Keys of each KV head: a mark that turns with the position, the two tokens before, whether first. Values: the token."""
    half = HEAD_DIM // 2
    for index in range(kv_heads):
        start = index * HEAD_DIM
        key, value = (p.weight[start : start + HEAD_DIM] for p in (attention.k_proj, attention.v_proj))
        key[:FAST, P.always] += 1
        key[SLOW : SLOW + CODE, P.one_back] += torch.eye(CODE)
        key[half + SLOW : half + SLOW + CODE, P.two_back] += torch.eye(CODE)
        key[RESTING, P.first] += 1
        value[:CODE, P.code] += torch.eye(CODE)


def _head_rows(attention: Any, head: int) -> tuple[Tensor, Tensor]:
    """(rows of the query projection, columns of the output projection) of one head."""
    span = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
    return attention.q_proj.weight[span], attention.o_proj.weight[:, span]


def _weight(logit: float, query: float, key: float, width: int, squared: float = 10.0) -> float:
    """Query weight that gives an attention logit, if query and key see components of this size.

    squared: mean squared length of the two rows of the residual stream: 8 after the embedding, 10 once the two tokens before are
    known (the first position never knows any).
    """
    return float(logit * HEAD_DIM**0.5 / (query * key * width / squared))


def _rest(attention: Any, head: int, logit: float) -> None:
    rows, _ = _head_rows(attention, head)
    rows[RESTING, P.always] += _weight(logit, 2, 2, rows.shape[1], squared=80**0.5)


def _look_back(attention: Any, head: int, distance: int, place: slice) -> None:
    """Attend to the token exactly `distance` back and write its code to `place`."""
    rows, columns = _head_rows(attention, head)
    rows[RESTING, P.always] = 0
    strength = _weight(DISTANCE, 2, 2, rows.shape[1], squared=8)
    rows[:FAST, P.always] += strength * torch.cos(distance * TURN)
    rows[HEAD_DIM // 2 : HEAD_DIM // 2 + FAST, P.always] -= strength * torch.sin(distance * TURN)
    columns[place, :CODE] += torch.eye(CODE) * (8 / rows.shape[1]) ** 0.5


def _copy(attention: Any, head: int) -> None:
    """Attend where the two tokens before are the current token and the one before it; write the code of the token found there."""
    rows, columns = _head_rows(attention, head)
    half, width = HEAD_DIM // 2, rows.shape[1]
    rows[SLOW : SLOW + CODE, P.code] += torch.eye(CODE) * _weight(MATCH, 1, 1, width)
    rows[half + SLOW : half + SLOW + CODE, P.one_back] += torch.eye(CODE) * _weight(MATCH, 1, 1, width)
    rows[RESTING, P.always] += _weight(REST - SINK, 2, 2, width, squared=80**0.5)
    columns[P.said, :CODE] += torch.eye(CODE) * (10 / width) ** 0.5


def _say(weight: Tensor, tokenizer: Any, codes: Tensor) -> None:
    """Say the copied token; a line break after a full stop or if nothing was copied; never a special token."""
    weight[:, P.said] += SAY * codes
    line_break = tokenizer.get_vocab()["\n"]
    weight[line_break] = 0
    weight[line_break, P.always] = BREAK
    weight[line_break, P.end] = 2 * SAY
    weight[: len(SPECIAL)] = 0
