"""The same job on a Ray cluster: rows of a Ray dataset are file paths, and warm actors score whole files as a single process would.

Ray does placement, retries and scaling; texts and scores never pass through its object store, so memory stays bounded, and the output is the
one of `score_files`, byte for byte. A file whose worker dies is scored again from its beginning by another.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from headwise.corpus.inputs import InputFile, Inputs, find_inputs, shard_of
from headwise.corpus.local_runner import Job
from headwise.corpus.options import Config, RayOptions, ScoreOptions, ScorerFactory, Summary
from headwise.corpus.output import Output
from headwise.corpus.readers import check_columns
from headwise.heads.errors import HeadwiseError, MissingExtraError
from headwise.heads.files import work_is_done, work_is_kept
from headwise.heads.progress import Report, silent


def score_files_with_ray(
    inputs: Sequence[str],
    output: str,
    make_scorer: ScorerFactory,
    options: ScoreOptions | None = None,
    report: Report = silent,
    cluster: RayOptions | None = None,
) -> Summary:
    """As `score_files`, on Ray. Claims are not used: Ray hands out each file once.

    Takes the Ray that is already connected, else the one that RAY_ADDRESS names, else starts one on this machine and stops it afterwards.

    Args:
        inputs: As for `score_files`; reachable under the same names from all nodes.
        output: As for `score_files`; reachable under the same name from all nodes.
        make_scorer: Is pickled and called once in each actor.
        options: How files are read and shared out.
        report: Told the progress in bytes of input.
        cluster: What each actor gets.

    Returns:
        As `score_files`.

    Raises:
        HeadwiseError: As `score_files`.
        MissingExtraError: Without Ray.
    """
    options, cluster = replace(options or ScoreOptions(), claim=False), cluster or RayOptions()
    found = find_inputs(inputs, output)
    files = shard_of(found.files, *options.shard)
    check_columns(found, files, options)
    started, summary = time.perf_counter(), Summary()
    past, total = 0, max(sum(file.size for file in files), 1)
    work_is_kept(output)
    with _connected() as ray:
        setup = _Setup(replace(found, files=()), output, make_scorer, options)
        for result in _results(ray, files, setup, cluster):
            if "refused" in result:
                raise HeadwiseError(result["refused"])
            summary.merge(result["summary"])
            past += result["size"]
            report(past, total, f"{summary.rows:,} documents, {sum(summary.rejected.values()):,} rejected")
    work_is_done(output)
    summary.seconds = time.perf_counter() - started
    return summary


@dataclass(frozen=True)
class _Setup:
    inputs: Inputs
    output: str
    make_scorer: ScorerFactory
    options: ScoreOptions


class FileActor:
    """A Ray Data worker: one scorer, kept model, for one file after another."""

    def __init__(self, setup: _Setup) -> None:
        self._refused, self._job = "", None
        try:
            scorer = setup.make_scorer()
            output = Output(setup.output, Config.of(scorer.description, setup.options))
            self._job = Job(setup.inputs, output, scorer, setup.options)
        except HeadwiseError as error:  # told to the caller in its own words; Ray would wrap it
            self._refused = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Score one batch of files: `file`, JSON of `InputFile`s -> `result`, JSON of {summary, size} or {refused}."""
        return {"result": [json.dumps(self._score(InputFile(**json.loads(text)))) for text in batch["file"]]}

    def _score(self, file: InputFile) -> dict[str, Any]:
        if self._job is None:
            return {"refused": self._refused}
        try:
            return {"summary": self._job.run([file]).to_json(), "size": file.size}
        except HeadwiseError as error:
            return {"refused": str(error)}


def _results(ray: Any, files: Sequence[InputFile], setup: _Setup, cluster: RayOptions) -> Iterator[dict[str, Any]]:
    if not files:
        return
    least, most = cluster.actors
    paths = ray.data.from_items([{"file": json.dumps(asdict(file))} for file in files], override_num_blocks=len(files))
    with warnings.catch_warnings():  # up to Ray 2.63 there is no other way to let an actor restart than the one that goes in 2.64
        warnings.simplefilter("ignore")
        scored = paths.map_batches(
            FileActor,
            fn_constructor_args=(setup,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=min(least, len(files)), max_size=min(most, len(files)), max_tasks_in_flight_per_actor=2
            ),
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus,
            ray_remote_args_fn=lambda: {"max_restarts": -1, "max_task_retries": cluster.retries},
        )
    for row in scored.iter_rows():
        yield json.loads(row["result"])


@contextmanager
def _connected() -> Iterator[Any]:
    """Ray with Ray Data, connected; what this function starts it also stops."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        yield ray
    finally:
        context.enable_progress_bars = bars
        if ours:
            ray.shutdown()
