"""What tests of several rooms need."""

import pytest
from transformers import LlamaForCausalLM

from headwise.heads import HeadwiseError
from headwise.models.forward import cache_argument
from headwise.models.load import load


def with_cache(cache):
    """The argument that hands a cache to a model or to `generate`, whatever this transformers calls it."""
    return {cache_argument(LlamaForCausalLM): cache}


def refused_to_load(source, *parts, kind=HeadwiseError, **options):
    """Loading ends with one short line that holds all parts."""
    with pytest.raises(kind) as caught:
        load(str(source), "cpu", **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    for part in parts:
        assert part in message, message
