"""What tests of several rooms need."""

from transformers import LlamaForCausalLM

from headwise.models.forward import cache_argument


def with_cache(cache):
    """The argument that hands a cache to a model or to `generate`, whatever this transformers calls it."""
    return {cache_argument(LlamaForCausalLM): cache}
