"""Copy heads of a model, found once for all experiments that compare with them."""

from __future__ import annotations

import headwise as hw
from headwise.claims.experiment import Bench, NotTestable
from headwise.heads.errors import NoSuccessfulRunError
from headwise.prompts.needles import bundled_needles

COPY_HEADS = "copy heads (of 16 detection needles, 3 depths, 512 and 1,024 tokens; lab models: 256)"


def copy_heads(bench: Bench) -> hw.HeadScores:
    """Copy scores from needles whose wordings are not those of any test.

    Raises:
        NotTestable: The model answers none of them.
    """
    lengths = bench.pick([512, 1024], [256]) if bench.real else [256]
    needles = bundled_needles("detect")
    options = hw.Copy(lengths=lengths, depths=bench.pick(3, 1), needles=bench.pick(needles, needles[:4]), seed=bench.seed)
    try:
        return bench.find(options)
    except NoSuccessfulRunError as why:
        raise NotTestable(f"it has no copy heads: {why}") from why
