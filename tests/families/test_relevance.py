"""Relevance and candidates for padded batches in every family: the same numbers as for each prompt alone."""

import numpy as np
import pytest
import torch

from headwise.models.model import Model
from headwise.prompts.prompt import Prompt, Span
from headwise.runtime.relevance import candidates, ranks, relevance
from headwise.testing.tiny import TINY_FAMILIES, tiny_model

PROMPTS = [Prompt(tuple(range(5, 5 + length)), {"question": Span(2, 5), "answer/1": Span(6, 8)}) for length in (20, 9, 14)]
TARGETS = [30, 31, 32]


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_padded_batches_are_read_as_single_prompts(family):
    model = Model(tiny_model(family))
    options = {"rule": "gradient", "sources": "weights", "rows": "last", "spans": ["question", "answer/"]}
    together = relevance(model, PROMPTS, TARGETS, **options)
    probable = candidates(model, PROMPTS, [(30, 40)] * 3)
    assert together.heads.shape == (3, *model.heads.shape)
    without = sorted(set(range(model.heads.shape[0])) - set(model.modules))
    assert np.flatnonzero(together.heads.isnan().all(dim=2).all(dim=0).numpy()).tolist() == without
    for place, prompt in enumerate(PROMPTS):
        alone = relevance(model, [prompt], TARGETS[place : place + 1], **options)
        length = len(prompt.ids)
        close = {"rtol": 2e-3, "atol": 2e-5, "equal_nan": True}
        torch.testing.assert_close(together.heads[place], alone.heads[0], **close)
        torch.testing.assert_close(together.tokens[place, :length], alone.tokens[0], **close)
        torch.testing.assert_close(together.sources[place, ..., :length], alone.sources[0], **close)
        torch.testing.assert_close(together.logits[place], alone.logits[0], **close)
        torch.testing.assert_close(probable.log_probs[place], candidates(model, [prompt], [(30, 40)]).log_probs[0], **close)
    assert ranks(model, PROMPTS, [30] * 3) == probable.ranks[:, 0].tolist()
