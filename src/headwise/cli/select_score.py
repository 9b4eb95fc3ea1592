"""What `headwise select score` runs: the heads of a file, the scorer they make, the runner, the estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwise.cli import options as o
from headwise.cli.progress import progress
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.corpus.documents import DocumentScorer
    from headwise.corpus.estimate import Machine
    from headwise.corpus.options import ScoreOptions, Summary
    from headwise.corpus.ray_runner import RayOptions
    from headwise.heads.types import HeadSet


def read_heads(path: Path, top: int | None, share: float) -> HeadSet:
    """The `top` strongest heads of a head file, or a share of all (rounded up; the paper takes 5 %).

    Refused if one of them scored 0: what is left of a choice then is the order of heads (card, section 4).
    """
    from headwise.heads.headfile import load_heads
    from headwise.methods.influence.proxy import top_share

    scores = load_heads(path)
    if top is None:
        return top_share(scores, share)
    chosen = scores.top(top)
    if not scores.values[chosen.heads[-1]] > 0:
        positive = int((scores.values > 0).sum())
        raise HeadwiseError(f"--top {top} takes heads with a score of 0; only {positive} heads of {path} score above 0")
    return chosen


@dataclass(frozen=True)
class Job:
    """How to make the scorer; can be sent to another process. limits: options of `AttentionInfluence`."""

    model: str | None
    device: str
    dtype: str
    revision: str | None
    heads: HeadSet
    mode: str
    limits: tuple[tuple[str, Any], ...]

    def make(self) -> DocumentScorer:
        """Load the model and make its scorer. Raises `HeadwiseError` for heads of another model and wrong limits."""
        from headwise.methods.influence.scorer import AttentionInfluence

        loaded = o.load(self.model, self.device, self.dtype, self.revision)
        loaded.check(self.heads)
        return AttentionInfluence(loaded, self.heads, self.mode, **dict(self.limits))


def make_scorer(job: Job) -> DocumentScorer:
    """`job.make`, by a name that can be sent to another process."""
    return job.make()


def ask_ray(actors: str, cpus: float, gpus: float) -> RayOptions:
    """`N` or `least:most` actors of so many cores and GPUs."""
    from headwise.corpus.ray_runner import RayOptions

    least, _, most = actors.partition(":")
    if not (least.isdecimal() and (most or least).isdecimal()):
        raise HeadwiseError(f"--actors is a number or least:most, like 4 or 1:8; got {actors!r}")
    return RayOptions((int(least), int(most or least)), cpus, gpus)


def run_score(
    inputs: Sequence[str], output: str, job: Job, options: ScoreOptions, cluster: RayOptions | None, json: bool
) -> Summary:
    """Score, and say what was done."""
    from headwise.report.console import print_all

    make = partial(make_scorer, job)
    with progress("scoring", hidden=json) as report:
        if cluster is None:
            from headwise.corpus.local_runner import score_files

            summary = score_files(inputs, output, make, options, report)
        else:
            from headwise.corpus.ray_runner import score_files_with_ray

            summary = score_files_with_ray(inputs, output, make, options, report, cluster)
    if json:
        o.print_json({"scores": output, "heads": [str(head) for head in job.heads], **summary.to_json()})
    else:
        print_all(*summary.lines(), f"scores  {output}")
    return summary


def run_estimate(inputs: Sequence[str], job: Job, options: ScoreOptions, rows: int, machines: Sequence[str], json: bool) -> None:
    """Measure a sample and say what the whole would take."""
    from headwise.corpus.estimate import estimate_cost
    from headwise.report.console import print_all

    known = [_machine(text) for text in machines]
    found = estimate_cost(inputs, job.make(), options, rows, machines=known)
    if json:
        o.print_json(found.to_json())
        return
    print_all(*found.lines())


def _machine(text: str) -> Machine:
    from headwise.corpus.estimate import Machine

    name, _, value = text.partition("=")
    speed, _, cost = value.partition(":")
    try:
        if cost:
            return Machine(name, flop_per_second=float(speed), flop_per_token=float(cost))
        return Machine(name, tokens_per_second=float(speed))
    except HeadwiseError:
        raise
    except ValueError as error:
        raise HeadwiseError(
            f"--machine is NAME=TOKENS/S or NAME=FLOPS:FLOP_PER_TOKEN, like H100=250000 or H100=4e14:7.6e9; got {text!r}"
        ) from error
