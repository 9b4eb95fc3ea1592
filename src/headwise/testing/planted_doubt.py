"""A model that takes answers back, made by hand: one known head reads what is suggested, another holds on to what the passage says.

Words that can be answers carry a mark. The doubting head looks for the nearest marked word, so that behind a challenge it says what was
suggested, and the holding head for the farthest one, which stands in the passage; the doubting head speaks louder. A calming word, which says
nothing, draws the doubting head wherever it stands: those answers are kept. What is near is told by a pair of dimensions that turns slowly.
All other heads rest on the first token; the rest is small noise.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from headwise.heads.errors import HeadwiseError
from headwise.heads.plain import checked_seed
from headwise.heads.types import HeadId
from headwise.models.model import Model
from headwise.prompts.challenges import FORMS, PARTS, read_wordings
from headwise.prompts.knowledge import KnowledgeRecord
from headwise.prompts.passages import Passage
from headwise.testing.tokenizers import word_tokenizer

CODE = 36  # dimensions of a token's random code
HEAD_DIM = 128
THETA = 1e30  # neighbouring frequencies differ by a factor of 3, so both slowly turning and practically fixed dimensions exist
NEAR, FIXED = 5, 24  # the pair that tells distances up to 200 tokens; the first of the dimensions that do not turn
# Attention logits: a marked word, its distance, the first token, the calming word.
FOUND, SLOPE, REST, CALM = 1000.0, 1000.0, 60.0, 2000.0
# What the two heads add to the logit of a word in front of the last norm, and the line break where nothing is found.
LOUD, LOW, BREAK = 6.0, 3.0, 1.5
CALMING = "truly"


class Places(NamedTuple):
    """Where things stand in the residual stream.

    Attributes:
        code: Code of the token itself.
        said: Code of the token that is to be said.
        always: 2 at every token.
        first: 2 at the first token of a text.
        answer: 1 at a word that can be an answer.
        calm: 1 at the calming word.
        filler: What brings the squared length of every embedding to 8.
    """

    code: slice = slice(0, CODE)
    said: slice = slice(CODE, 2 * CODE)
    always: int = 2 * CODE
    first: int = 2 * CODE + 1
    answer: int = 2 * CODE + 2
    calm: int = 2 * CODE + 3
    filler: int = 2 * CODE + 4


P = Places()
WIDTH = 2 * CODE + 8


class PlantedDoubt(NamedTuple):
    """A model that takes answers back.

    Attributes:
        model: With its tokenizer.
        records: Questions with a passage each and a wrong answer. It answers all of them right at first.
        doubting: The head that reads what is suggested.
        holding: The head that reads the passage.
    """

    model: Model
    records: tuple[KnowledgeRecord, ...]
    doubting: HeadId
    holding: HeadId


def planted_doubt(
    count: int = 120, calm: float = 0.3, layers: int = 2, heads: int = 4, doubting: tuple[int, int] = (1, 2), holding: tuple[int, int] = (0, 1),
    seed: int = 0, texts: tuple[str, ...] = (),
) -> PlantedDoubt:  # fmt: skip
    """A Llama model in which one head takes answers back that another one holds on to, and what it can be asked.

    It is asked with passages and the bundled challenges. Where a challenge suggests an answer it says that, unless the passage holds the
    calming word; where none is suggested it stays with its own answer.

    Args:
        count: How many records, at least 2.
        calm: Share of them whose passage holds the calming word, in [0, 1].
        layers: Of the model.
        heads: Query heads per layer.
        doubting: (layer, head) that reads what is suggested.
        holding: (layer, head) that reads the passage; another one, in the same layer or below, so that its keys are those of plain words.
        seed: Of words, codes and noise.
        texts: More words for the vocabulary.

    Raises:
        HeadwiseError: Heads that cannot be planted there, too few or too many records, or a seed out of range.
    """
    inside = all(0 <= layer < layers and 0 <= head < heads for layer, head in (doubting, holding))
    if not inside or doubting == holding or holding[0] > doubting[0]:
        raise HeadwiseError(
            f"two heads of {layers} layers x {heads} heads are needed, the holding one in the same layer or below"
        )
    if count < 2 or not 0 <= calm <= 1:
        raise HeadwiseError(f"at least 2 records and a share of calm in [0, 1] are needed; got {count} and {calm:g}")
    records = _records(count, calm, seed)
    answers = sorted({word for record in records for word in (*record.answers, record.wrong)})
    wordings = read_wordings()
    said = [one.template(form, part) for one in wordings.challenges for form in one.forms for part in PARTS]
    said += [re.sub(r"[\[\]{}]", " ", text) for text in said] + [
        *wordings.yes,
        *wordings.no,
        *FORMS,
        "The answer is Passage 1: Question: Answer:",
    ]
    shown = [f"{record.question}? {record.passage.text}" for record in records if record.passage]
    tokenizer = word_tokenizer([*said, *shown, " ".join(answers), *texts])
    hf = _noise_model(tokenizer, layers, heads, seed)
    with torch.no_grad():
        codes = _embed(hf, tokenizer, answers, seed)
        for layer, block in enumerate(hf.model.layers):
            _keys_and_values(block.self_attn, heads)
            for head in range(heads):
                kind = {doubting: 1.0, holding: -1.0}.get((layer, head), 0.0)
                _query(block.self_attn, head, kind)
        _speak(hf.model.layers[doubting[0]].self_attn, doubting[1], LOUD)
        _speak(hf.model.layers[holding[0]].self_attn, holding[1], LOW)
        _say(hf.lm_head.weight, tokenizer, codes)
    return PlantedDoubt(Model(hf, tokenizer), records, HeadId(*doubting), HeadId(*holding))


def _records(count: int, calm: float, seed: int) -> tuple[KnowledgeRecord, ...]:
    """Made-up names and words, none of which occurs twice."""
    rng = np.random.default_rng([checked_seed(seed), 67])
    syllables = [a + b for a in "bdfgklmprstvz" for b in "aeiou"]
    made = [a + b for a in syllables for b in syllables]
    if 3 * count > 2 * len(made):
        raise HeadwiseError(f"at most {2 * len(made) // 3} records can be made; got {count}")
    words = [str(word) for word in rng.permutation([f"{word}{end}" for word in made for end in "xn"])]
    records = []
    for i in range(count):
        name, right, wrong = words[3 * i : 3 * i + 3]
        calming = f"{CALMING} " if i < calm * count else ""
        told = f"{calming}{name} hides {right}."
        records.append(KnowledgeRecord(f"which word goes with {name}", (right,), Passage(told), name=f"record {i}", wrong=wrong))
    return tuple(records)


def _noise_model(tokenizer: Any, layers: int, heads: int, seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=-(-WIDTH // heads) * heads, intermediate_size=16, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, head_dim=HEAD_DIM, max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": THETA}, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    hf = LlamaForCausalLM(config).float().eval()
    hf.config._name_or_path = "planted-doubt"
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.0003, generator=generator)
    return hf


def _embed(hf: Any, tokenizer: Any, answers: list[str], seed: int) -> Tensor:
    """Token codes [V, CODE], unit length; the first token and the calming word have none, so that they say nothing."""
    weight, vocabulary = hf.model.embed_tokens.weight, tokenizer.get_vocab()
    codes = torch.randn(len(tokenizer), CODE, generator=torch.Generator().manual_seed(seed + 1))
    codes /= codes.norm(dim=1, keepdim=True)
    calming = [vocabulary[word] for word in (CALMING, f" {CALMING}") if word in vocabulary]
    codes[[tokenizer.bos_token_id, *calming]] = 0
    weight.zero_()
    weight[:, P.code] = codes
    weight[:, P.always] = 2
    weight[tokenizer.bos_token_id, P.first] = 2
    weight[calming, P.calm] = 1
    weight[[vocabulary[space + word] for word in answers for space in ("", " ")], P.answer] = 1
    weight[:, P.filler] = (8 - weight.square().sum(dim=1)).clamp(min=0).sqrt()
    return codes


def _keys_and_values(attention: Any, heads: int) -> None:
    """Keys: whether a word can be an answer, once turning with the position, whether it calms, whether it is the first. Values: the token."""
    for head in range(heads):
        start = head * HEAD_DIM
        key, value = (p.weight[start : start + HEAD_DIM] for p in (attention.k_proj, attention.v_proj))
        key[NEAR, P.answer] += 1
        key[FIXED, P.answer] += 1
        key[FIXED + 1, P.calm] += 1
        key[FIXED + 2, P.first] += 1
        value[:CODE, P.code] += torch.eye(CODE)


def _query(attention: Any, head: int, near: float) -> None:
    """Look for the nearest (1) or the farthest (-1) word that can be an answer, or rest on the first token (0)."""
    rows = attention.q_proj.weight[head * HEAD_DIM : (head + 1) * HEAD_DIM]
    # Query and key are read behind a norm, which multiplies a row of squared length 8 by the root of width / 8.
    unit = HEAD_DIM**0.5 * 8 / attention.q_proj.weight.shape[1]
    rows[FIXED + 2, P.always] += REST * unit / 4
    if near:
        rows[FIXED, P.always] += FOUND * unit / 2
        rows[HEAD_DIM // 2 + NEAR, P.always] += near * SLOPE * unit / 2
        rows[FIXED + 1, P.always] += (CALM * unit / 2) * (near > 0)


def _speak(attention: Any, head: int, loud: float) -> None:
    """Write the code of the token that the head looks at, so many times."""
    columns = attention.o_proj.weight[:, head * HEAD_DIM : (head + 1) * HEAD_DIM]
    columns[P.said, :CODE] += torch.eye(CODE) * loud * (8 / attention.q_proj.weight.shape[1]) ** 0.5


def _say(weight: Tensor, tokenizer: Any, codes: Tensor) -> None:
    """Say what was read; a line break behind a word that can be an answer, or if nothing was read; never a special token."""
    weight[:, P.said] += codes
    line_break = tokenizer.get_vocab()["\n"]
    weight[line_break] = 0
    weight[line_break, P.always] = BREAK / 2
    weight[line_break, P.answer] = 3 * LOUD
    weight[:3] = 0
