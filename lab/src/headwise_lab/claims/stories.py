"""Negative control: a trained model that cannot retrieve has no retrieval heads, and the detector says so."""

from __future__ import annotations

from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.retrieval_head.sizes import sizes_of
from headwise.claims.retrieval_head.untrained import heads_without_retrieval
from headwise.models.load import load


def measure(bench: Bench) -> Measured:
    """stories260K in place of the bench's model: `examples/convert_stories260k.py` of the source checkout makes its folder."""
    folder = bench.folder("stories260K")
    if not (folder / "config.json").is_file():
        raise NotTestable("needs a transformers checkpoint of stories260K; examples/convert_stories260k.py of the source checkout makes it")
    found = heads_without_retrieval(load(str(folder), "cpu", "float32"), sizes_of(bench))
    return Measured({"heads-stories.none": Finding(found)}, found)
