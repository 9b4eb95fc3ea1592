"""The matrix of detectors and tasks in `headwise claims show`: found among results, drawn, or refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.claims.results import Result
    from headwise.report.transfer_matrix import TransferMatrix

EXPERIMENT = "transfer"


def with_matrix(results: Iterable[Result]) -> list[Result]:
    """Those that hold a matrix and belong to the ledger that is installed."""
    return [one for one in results if one.experiment == EXPERIMENT and one.details and not one.old]


def matrices(results: Iterable[Result]) -> dict[str, TransferMatrix]:
    """Name of a model (with a word if it is quick) -> its matrix, of all results that hold one."""
    from headwise.claims.transfer.declared import OWN
    from headwise.report.transfer_matrix import read_matrix

    found = {}
    for one in with_matrix(results):
        name = str(one.model["name"])
        found[f"{name} (quick)" if one.quick else name] = read_matrix(one.details, OWN, name)
    return found


def check_picture(path: Path) -> None:
    """Refuse a name before any work is done."""
    from headwise.cli import options as o
    from headwise.report.canvas import check_suffix, require_matplotlib

    check_suffix(path)
    require_matplotlib()
    o.check_file(path, "--picture")


def write_picture(found: Mapping[str, TransferMatrix], path: Path) -> None:
    """Draw the one matrix that there is.

    Raises:
        HeadwiseError: There is none, or there are several.
    """
    if not found:
        raise HeadwiseError(
            "no result of this version of the ledger holds the matrix of detectors and tasks that --picture draws; headwise claims run "
            f"--experiment {EXPERIMENT} measures it"
        )
    if len(found) > 1:
        raise HeadwiseError(f"--picture draws the matrix of one model and there are those of {', '.join(found)}; choose one with --model")
    from headwise.report.transfer_figure import transfer_figure

    [(name, matrix)] = found.items()
    transfer_figure(matrix, path, f"Which heads are the same? {name}")
