"""Choosing a share of a scored corpus: which rows are chosen (a file beside each score file), the cuts, and a manifest.

    OUT/selected/.choice            marks the folder as ours; one without it must be new or empty
    OUT/selected/<name>.parquet     the rows of OUT/scores/<name>.parquet, and so of the input, in the same order: row int64, selected bool
    OUT/selected/thresholds.json    cuts and shares of every domain
    OUT/selected/manifest.json      written last: inputs, configuration, options, counts; a folder with it is complete
    OUT/selected/rows/<name>        if asked for: the chosen rows of each input, in its own format

A reader keeps rows by `selected`; nothing is joined or sorted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwise.corpus.arrow import pa, pq
from headwise.corpus.documents import HASH_KEY
from headwise.corpus.folder import LOCK, Folder
from headwise.corpus.inputs import safe_name
from headwise.corpus.manifest import manifest, tables
from headwise.corpus.options import ChoiceOptions
from headwise.corpus.originals import Originals
from headwise.corpus.tables import ScoreFiles
from headwise.corpus.thresholds import COLUMNS, Counts, Thresholds, find_thresholds, keys_of
from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report, silent

MARKER, MARK = ".choice", b"headwise choice 1\n"
OWN_FOLDERS = ("scores", "done", "rejected", "claims", "tmp")  # of a scored corpus


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
    """Choose from the scores in `out` and write the choice. The same scores and options give the same bytes.

    Args:
        out: Folder or URL with the scores.
        options: What is chosen.
        into: Folder or URL for the choice (default: OUT/selected).
        copy: Also write the chosen rows of the inputs.
        inputs: Where the inputs are, if not where they were.
        overwrite: Replace an older choice.
        report: Told the rows of each reading.

    Returns:
        The manifest and, in it, `thresholds`.

    Raises:
        HeadwiseError: For an existing choice (unless `overwrite`), a folder with other things, one in which another process writes, scores of
            different configurations, or if no document can be ranked.
    """
    options = options or ChoiceOptions()
    files, folder = ScoreFiles(out), Folder(into or f"{out.rstrip('/')}/selected")
    if folder == files.out or any(folder.within(files.out.below(name)) for name in OWN_FOLDERS):
        raise HeadwiseError(f"{into} is where the scores are; give another --output")
    _check_free(folder, overwrite)
    originals = Originals(files, inputs) if copy else None
    if originals is not None:
        for name in files.names:
            originals.file(name)  # refuses what is missing before any work
    cuts = find_thresholds(files, options, report)
    with folder.alone("choosing into"):
        _check_free(folder, overwrite)  # nobody was faster
        with folder.whole(MARKER) as stream:
            stream.write(MARK)
        _delete_older(folder, files)
        counts = Counts(len(cuts.domains.names) * options.strata)
        chosen = {name: _write(files, name, folder, cuts, counts, originals, report) for name in files.names}
        found = tables(cuts, counts.values)
        folder.write_json("thresholds.json", found)
        result = manifest(files, cuts, counts.values, {name: one._asdict() for name, one in chosen.items()})
        folder.write_json("manifest.json", result)
    return {**result, "thresholds": found}


class Written(NamedTuple):
    """What was written of one score file.

    Attributes:
        selected: Documents that were chosen.
        not_copied: Chosen rows of a damaged input that could not be read back; 0 if none were to be copied.
    """

    selected: int
    not_copied: int


def _check_free(folder: Folder, overwrite: bool) -> None:
    """Refuse an older choice, unless it may be replaced, and a folder that no choice has made."""
    if folder.read(MARKER) != MARK:
        manifested = folder.read_json("manifest.json") if folder.has("manifest.json") else None
        made = isinstance(manifested, dict) and "headwise_selection" in manifested  # by a headwise without the mark
        lock = (f"{LOCK}.json", f".{LOCK}.json.", ".clock-")  # of a process that is about to write the mark
        if not made and any(
            not name.startswith(lock) and not name.startswith(f".{MARKER}.") for name in folder.names(hidden=True)
        ):
            raise HeadwiseError(f"{folder.location} holds files, but no choice; give another --output, or an empty folder")
    if not overwrite and folder.has("manifest.json"):
        raise HeadwiseError(f"{folder.location} holds a choice; give another --output or --overwrite (results are never merged)")


def _delete_older(folder: Folder, files: ScoreFiles) -> None:
    """Remove an older choice, also an unfinished one: files that this one does not write would be taken for its own."""
    manifested = _older_names(folder)
    folder.delete("manifest.json")  # first: without it the folder is unfinished
    for name in {*files.names, *manifested}:
        for older in (name, f"rows/{name}", f"rows/{name.removesuffix('.parquet')}"):
            folder.delete(older)
    folder.delete("thresholds.json")


def _older_names(folder: Folder) -> list[str]:
    """The score files that a finished choice lists; nothing for a manifest that is broken, and no name that cannot be one of ours."""
    found = list[str]()
    with contextlib.suppress(HeadwiseError, KeyError, TypeError):
        for entry in folder.read_json("manifest.json")["files"]:
            if safe_name(entry["name"], "a score file").endswith(".parquet"):
                found.append(entry["name"])
    return found


def _write(
    files: ScoreFiles,
    name: str,
    folder: Folder,
    cuts: Thresholds,
    counts: Counts,
    originals: Originals | None,
    report: Report,
) -> Written:
    """Write the choice of one score file."""
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
    if not (originals and total):  # of an input without a chosen row nothing is copied
        return Written(total, 0)
    with folder.whole(f"rows/{originals.file(name).name}") as sink:
        return Written(total, total - originals.copy(name, np.concatenate(masks), sink))
