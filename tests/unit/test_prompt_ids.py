"""Ids of prompts of every kind stay what they were: a change here changes the numbers of every method."""

import hashlib
import json

import numpy as np
import pytest

from headwise.methods.duo.prompts import VaultOptions, vault_texts
from headwise.methods.influence.options import Proxy
from headwise.methods.influence.prompts import ProxyPrompts
from headwise.prompts import Haystack, NeedleComposer, PieceEncoder, bundled_needles, bundled_texts
from headwise.prompts.grid import GridOptions, Task, group_specs, make_group
from headwise.prompts.passages import Passage, PassageComposer
from headwise_lab.microworld import make_example, to_prompt, to_row
from tests.reference.tokenizers import KINDS

CHATML = "<|im_start|>user\n{{ messages[0]['content'] }}<|im_end|>\n<|im_start|>assistant\n"
PASSAGES = [Passage("Ada keeps the key of the tower.", "The tower"), Passage(" The road is long."), Passage("Mills grind.")]
TEXTS = [text[:60_000] for text in bundled_texts()]
# Unigram vocabularies are trained with chance, so they are not among them.
PINNED = {
    "byte_level-needle": "9e49b7468b134cde",
    "byte_level-needle-chat": "1bca531da0943b56",
    "byte_level-passage": "0d9fdc5edc37cf23",
    "byte_level-passage-chat": "51421f6b80de064c",
    "byte_level-proxy": "10788ce6407786f4",
    "byte_level-vault": "149a183517ba8d4f",
    "byte_level-world": "53097c482ce101b7",
    "byte_level_without_bos-needle": "64887b003deef575",
    "byte_level_without_bos-needle-chat": "1d1e975047bf9c9a",
    "byte_level_without_bos-passage": "adf727a4a7135f03",  # changed with score version 3: a line break in front of the first passage
    "byte_level_without_bos-passage-chat": "34252298bdd5703b",
    "byte_level_without_bos-proxy": "d1acf8958a24fe7c",
    "byte_level_without_bos-vault": "eae772133980a6f6",
    "byte_level_without_bos-world": "d36e949dd31df817",
    "llama2_like-needle": "9cf371bb80f8b6e0",
    "llama2_like-needle-chat": "35fe7c9eea3d3e33",
    "llama2_like-passage": "8fbb04c6e6a60dbe",
    "llama2_like-passage-chat": "f563bc10cd7dca5f",
    "llama2_like-proxy": "2c7980ef3b08eece",
    "llama2_like-vault": "89c9aa323702246b",
    "llama2_like-world": "aa0302408add1452",
    "words-passage": "b39cffa861f17e05",
    "words-passage-chat": "07b82507f930b46f",
    "words-world": "9757c0adf62f3e81",
    "characters-needle": "08fa52f110e475bf",
    "characters-needle-chat": "ef5f1b5db1e8c4d2",
    "characters-passage": "8b68b53d1e9e0440",
    "characters-passage-chat": "40e419fe141b38b3",
    "characters-proxy": "c046e3d5ad00b480",
    "characters-vault": "8e4d6814bba36275",
    "characters-world": "caf04129774fb31e",
}


def said(prompt):
    """Everything of a prompt as plain data, but the span `official` of queries, which has lost the separator in front of it since."""
    return [prompt.ids, sorted((name, *span) for name, span in prompt.spans.items() if name != "official"), prompt.gold]


def needle_prompts(encoder, chat):
    grid = GridOptions((700, 900), (0.0, 0.3, 1.0), windows=2, part=(0.0, 0.9), seed=3)
    task = Task(bundled_needles("detect")[:3], Haystack(TEXTS, encoder), NeedleComposer(encoder, chat=chat), grid)
    groups = [make_group(spec, task, None) for spec in group_specs(grid, 3)]
    return [[said(prompt) for prompt in group.prompts] for group in groups]


def passage_prompts(encoder, chat):
    made = []
    for layout in ("plain", "instructed"):
        composer = PassageComposer(encoder, layout, chat)
        made += [said(composer.passages(PASSAGES)), said(composer.query(" Who keeps\n the key?")), composer.overhead]
    return made


def proxy_prompts(encoder, chat):
    prompts = ProxyPrompts(TEXTS, encoder, Proxy(length=1500, samples=2, key_length=8, seed=1))
    return [said(prompts[i]) for i in range(2)]


def vault_prompts(encoder, chat):
    options = VaultOptions((1500, 2000), keys=3, words=4, seed=2)
    return [[text.ids, text.labels] for text in vault_texts(Haystack(TEXTS, encoder), encoder, options, 2)]


def world_prompts(encoder, chat):
    made = []
    for task in ("key_value", "needle", "passages", "two_hop", "reask", "contradiction", "grounded", "passkey"):
        example = make_example(task, "test", np.random.default_rng([5, 60]))
        ids, marks = to_row(example, encoder.encode)
        made += [ids, marks.tolist()] + [said(to_prompt(example, encoder.encode, turn, encoder.bos, True)) for turn in (0, -1)]
    return made


MAKERS = {f.__name__: f for f in (needle_prompts, passage_prompts, proxy_prompts, vault_prompts, world_prompts)}


def digest(case):
    kind, name, *chat = case.split("-")
    tokenizer = KINDS[kind]()
    tokenizer.chat_template = CHATML
    made = MAKERS[f"{name}_prompts"](PieceEncoder(tokenizer), bool(chat))
    return hashlib.sha256(json.dumps(made).encode()).hexdigest()[:16]


@pytest.mark.parametrize("case", PINNED)
def test_ids_spans_and_gold_are_those_of_the_first_edition(case):
    assert digest(case) == PINNED[case]
