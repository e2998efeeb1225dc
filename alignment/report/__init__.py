"""Reports: a self-contained HTML page of one run, or of several side by side.

``blocks`` is what a page is composed of, ``page`` renders it, ``runs`` reads run folders, ``comparison`` and
``sections`` turn them into rows and blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment.errors import UserError
from alignment.report.blocks import Sample
from alignment.report.comparison import ComparisonRow, compare
from alignment.report.labels import LABELS
from alignment.report.page import PAGE, render, write_page
from alignment.report.runs import read_run, read_runs, shared_folder
from alignment.report.sections import run_page

__all__ = ["LABELS", "PAGE", "ComparisonRow", "Report", "render", "report", "write_page", "write_report_page"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A page that was written, and the runs on it.

    Attributes:
        path: of the page.
        rows: one for each run and player.
        samples: answers of the last run beside its reference's.
    """

    path: Path
    rows: Sequence[ComparisonRow]
    samples: Sequence[Sample]


def report(folders: Sequence[Path], *, output: Path | None = None) -> Report:
    """Write the page of one run, or of several compared.

    Args:
        folders: of the runs, finished or not.
        output: the page; ``None`` for ``report.html`` in the only run, or in the folder that all of them are in.

    Raises:
        UserError: for a folder that is no run, for one given twice, and for runs that share no folder but the root.
    """
    runs = read_runs(folders)
    if output is None:
        place = folders[0] if len(folders) == 1 else shared_folder(folders)
        if place == Path(place.anchor):
            raise UserError("expected runs in one folder, which the page goes to, found none; say where: --output FILE")
        output = place / PAGE
    samples = [sample for track in runs[-1].tracks for sample in track.samples]
    return Report(path=write_page(run_page(runs), output), rows=compare(runs), samples=samples)


def write_report_page(folder: Path) -> Path:
    """Write the page of a run into its folder; no model is loaded.

    Returns:
        The page.

    Raises:
        UserError: if the folder is no run.
    """
    return write_page(run_page([read_run(folder)]), folder / PAGE)
