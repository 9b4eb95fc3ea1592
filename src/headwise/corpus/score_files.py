"""Scoring a corpus: files in, one row-aligned score file each out. The one function that commands and programs call."""

from __future__ import annotations

from collections.abc import Sequence

from headwise.corpus.inputs import InputFile, Inputs, find_inputs, shard_of
from headwise.corpus.local_runner import Job
from headwise.corpus.options import Config, ScoreOptions, ScorerFactory, Summary
from headwise.corpus.output import Output
from headwise.corpus.readers import columns_of
from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report, silent

LOOKED_AT = 3  # files whose columns are looked at before the work begins


def score_files(
    inputs: Sequence[str], output: str, make_scorer: ScorerFactory, options: ScoreOptions | None = None, report: Report = silent
) -> Summary:
    """Score all documents of `inputs` in this process; the same call continues where an earlier one was stopped.

    inputs: files, folders, globs or URLs (`inputs.find_inputs`). output: a folder or URL (`output.Output`). make_scorer: makes the scorer, here.
    report(done, total, remark): progress in bytes of input. Damaged files and rows are counted in the summary and never stop the job.

    Raises `HeadwiseError` for inputs that name nothing, for columns that are nowhere, and for an output of another configuration;
    `MissingExtraError` without pyarrow (when this module is imported).
    """
    options = options or ScoreOptions()
    found = find_inputs(inputs, output)
    files = shard_of(found.files, *options.shard)
    check_columns(found, files, options)
    scorer = make_scorer()
    place = Output(output, Config.of(scorer.description, options))
    return Job(found, place, scorer, options, report).run(files)


def check_columns(inputs: Inputs, files: Sequence[InputFile], options: ScoreOptions) -> None:
    """Refuse a column that none of the first files has: a misspelt name would give a corpus without scores."""
    seen = [(file, columns) for file in files[:LOOKED_AT] if (columns := columns_of(inputs.filesystem, file))]
    for name in (options.text_column, options.domain_column, options.id_column):
        if name is not None and seen and not any(name in columns for _, columns in seen):
            file, columns = seen[0]
            raise HeadwiseError(f"no column {name!r} in {file.name}; it has {', '.join(columns)}")
