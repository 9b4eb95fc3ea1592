"""`headwise detect --score proxy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headwise.cli import options as o
from headwise.cli.progress import progress
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.heads import HeadScores
    from headwise.methods.influence.prompts import ProxyOptions
    from headwise.runtime.rundir import RunDirectory

PAPER_LENGTH = 4096
SHORT = 1024  # below it, keys and values are shorter than the paper's, so that several pairs fit
SHORT_KEY, SHORT_VALUE = 8, 12


def proxy_heads(
    model: str | None,
    device: str,
    dtype: str,
    revision: str | None,
    path: Path,
    lengths: str | None,
    samples: int,
    pairs: int | None,
    key_length: int | None,
    haystack: Path | None,
    rule: str | None,
    gate: float,
    seed: int,
    json: bool,
) -> tuple[HeadScores, RunDirectory]:
    """Proxy scores of all heads, and where the finished parts lie: beside `path`."""
    from headwise.methods.influence.prompts import ProxyPrompts
    from headwise.methods.influence.proxy import ProxyScoring, describe_run, proxy_scores
    from headwise.prompts.encoder import PieceEncoder
    from headwise.prompts.haystack import bundled_texts, read_texts
    from headwise.runtime.rundir import RunDirectory

    given = None if lengths is None else o.numbers(lengths, "lengths")
    if given is not None and len(given) != 1:
        raise HeadwiseError(f"--score proxy takes one length, that of prompt and answer together; got {lengths}")
    scoring = ProxyScoring(rule or "set", least_accuracy=gate)
    texts = bundled_texts() if haystack is None else read_texts(haystack)
    loaded = o.load(model, device, dtype, revision)
    length = given[0] if given else min(PAPER_LENGTH, loaded.positions or PAPER_LENGTH)
    prompts = ProxyPrompts(texts, PieceEncoder(loaded.tokenizer), _sized(length, samples, pairs, key_length, seed))
    directory = RunDirectory(path.with_name(path.name + ".run"), describe_run(loaded, prompts, scoring))
    with progress("detecting", hidden=json) as report:
        return proxy_scores(loaded, prompts, scoring, directory, report), directory


def _sized(length: int, samples: int, pairs: int | None, key_length: int | None, seed: int) -> ProxyOptions:
    """The paper's keys and values, or shorter ones in short prompts."""
    from headwise.methods.influence.prompts import ProxyOptions

    paper = ProxyOptions()
    short = length < SHORT
    return ProxyOptions(
        length=length,
        samples=samples,
        key_length=key_length or (SHORT_KEY if short else paper.key_length),
        value_tokens=SHORT_VALUE if short else paper.value_tokens,
        pairs=pairs,
        seed=seed,
    )
