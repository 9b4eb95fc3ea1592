"""Choosing a share of a scored corpus: a file of yes and no beside each score file, the cuts, and a manifest.

    OUT/selected/<name>.parquet     the rows of OUT/scores/<name>.parquet, and so of the input, in the same order: row int64, selected bool
    OUT/selected/thresholds.json    cuts and shares of every domain
    OUT/selected/manifest.json      written last: inputs, configuration, options, counts; a folder with it is complete
    OUT/selected/rows/<name>        on demand: the chosen rows of each input, in its own format

A reader keeps rows by `selected`; nothing is joined or sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.corpus.arrow import pa, pq
from headwise.corpus.documents import HASH_KEY
from headwise.corpus.folder import Folder
from headwise.corpus.manifest import manifest, tables
from headwise.corpus.options import ChoiceOptions
from headwise.corpus.originals import Originals
from headwise.corpus.tables import ScoreFiles
from headwise.corpus.thresholds import COLUMNS, Counts, Thresholds, find_thresholds, keys_of
from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report, silent


def choose(
    out: str,
    options: ChoiceOptions | None = None,
    into: str | None = None,
    *,
    copy: bool = False,
    inputs: Sequence[str] = (),
    overwrite: bool = False,
    report: Report = silent,
) -> dict[str, Any]:
    """Choose from the scores in `out` and write the choice to `into` (OUT/selected); returns the manifest and, in it, `thresholds`.

    out, into: folders or URLs. copy: also write the chosen rows of the inputs; inputs: where these are, if not where they were. The same scores
    and options give the same bytes. report(done, total, reading) is told the rows of each reading. Raises `HeadwiseError` for an existing
    choice (unless `overwrite`), for scores of different configurations, or if no document can be ranked.
    """
    options = options or ChoiceOptions()
    files, folder = ScoreFiles(out), Folder(into or f"{out.rstrip('/')}/selected")
    if folder == files.out or folder == files.out.below("scores"):
        raise HeadwiseError(f"{into} is where the scores are; give another --output")
    if folder.read_json("manifest.json") is not None and not overwrite:
        raise HeadwiseError(f"{folder.location} holds a choice; give another --output or --overwrite (results are never merged)")
    originals = Originals(files, inputs) if copy else None
    if originals is not None:
        for name in files.names:
            originals.file(name)  # refuses what is missing before any work
    cuts = find_thresholds(files, options, report)
    folder.delete("manifest.json")
    counts = Counts(len(cuts.domains.names) * options.strata)
    chosen = {name: _write(files, name, folder, cuts, counts, originals, report) for name in files.names}
    found = tables(cuts, counts.values)
    folder.write_json("thresholds.json", found)
    result = manifest(files, cuts, counts.values, chosen)
    folder.write_json("manifest.json", result)
    return {**result, "thresholds": found}


def _write(
    files: ScoreFiles,
    name: str,
    folder: Folder,
    cuts: Thresholds,
    counts: Counts,
    originals: Originals | None,
    report: Report,
) -> int:
    """Write the choice of one score file; returns how many documents were chosen."""
    schema = pa.schema([("row", pa.int64()), ("selected", pa.bool_())], metadata={HASH_KEY: files.config.encode()})
    total, masks = 0, list[NDArray[np.bool_]]()
    with folder.whole(name) as sink, pq.ParquetWriter(sink, schema) as writer:
        for batch in files.read(name, COLUMNS):
            keys = keys_of(batch, name, cuts.domains, cuts.options)
            chosen = cuts.takes(keys)
            counts.add(keys, cuts.groups(keys), chosen)
            total += int(chosen.sum())
            writer.write_batch(pa.record_batch([batch.column("row").cast(pa.int64()), pa.array(chosen)], schema=schema))
            if originals:
                masks.append(chosen)
            report(sum(counts.values["documents"]), files.total, "writing")
    if originals:
        with folder.whole(f"rows/{originals.file(name).name}") as sink:
            originals.copy(name, np.concatenate(masks) if masks else np.zeros(0, dtype=bool), sink)
    return total
