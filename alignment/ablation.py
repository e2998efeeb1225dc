"""``alignment ablate``: every cell is a run of its own by ``accelerate launch``, and all of them end in one table.

Nothing is run twice. A cell's folder holds ``cell.yaml``, its resolved recipe, and, once it has ended,
``summary.json``: a cell with both is finished, one of another recipe is refused. A cell that was killed goes on from
its last whole checkpoint, or begins anew; one that failed is kept, shown, and tried again by the next call. Whoever
works on a cell holds a lock that the launched process inherits: what outlived a killed call is waited for, not doubled.
"""

import csv
import dataclasses
import fcntl
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from alignment.checkpoints import STATE_FILE
from alignment.config.ablation import Cell, LoadedAblation
from alignment.config.parsing import parse_text
from alignment.errors import UserError
from alignment.evaluation.ablations import Ablated, Outcome, choose, summarise
from alignment.files import write_json, write_whole
from alignment.progress import Announce, Progress
from alignment.report import PAGE, write_page
from alignment.report.ablation import ablation_page, forest, markdown
from alignment.report.page import render_figure
from alignment.report.runs import read_run
from alignment.values import differences, leaves, nearest

Launch = Callable[[Path, Sequence[str]], Sequence[str]]
"""The recipe of a cell and overrides -> the command that trains by it."""

RECIPE, SUMMARY, LOG = "cell.yaml", "summary.json", "log.txt"
_ONE_PROCESS = ("--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
_ERROR = re.compile(r"error: |(?![\w.]*(?:ChildFailed|CalledProcess))[\w.]*(?:Error|Exception|Interrupt)\b")


def ablate(
    loaded: LoadedAblation, *, jobs: int, announce: Announce, progress: Progress, launch: Launch | None = None
) -> Ablated:
    """Run what has not ended, choose the settings that are tuned, and write tables, figures and a page.

    Args:
        loaded: a checked ablation.
        jobs: cells at a time.
        announce: is told in a line what begins and ends.
        progress: called with what is done, how much of it, and how much there is.
        launch: in place of ``accelerate launch``.

    Raises:
        UserError: if a folder holds a run of another recipe; nothing has been run then. If the first cell that ends
            lacks the figure that decides; no other is begun then.
    """
    recipe = loaded.recipe
    folder = Path(recipe.output_dir)
    for cell in loaded.cells:
        _has_ended(cell)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ablation.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    metric, better = next(iter(recipe.metrics.items()))
    work = partial(_work, metric=metric, launch=launch or _launcher(loaded.launcher, jobs), announce=announce)
    outcomes: dict[str, Outcome] = {}

    def run_all(what: str, cells: Sequence[Cell]) -> None:
        outcomes.update({cell.name: _outcome(cell, metric) for cell in cells})
        todo = [cell for cell in cells if outcomes[cell.name].state == "open"]
        num_done = len(cells) - len(todo)
        announce(f"{what}: {len(cells)} cells, {num_done} of them finished before")
        _check_metrics(recipe.metrics, cells, outcomes)
        # Closed at once by an error, for no other cell may begin.
        with closing(_in_parallel(work, todo, jobs)) as ended:
            for number, outcome in enumerate(ended, start=num_done + 1):
                outcomes[outcome.name] = outcome
                progress(what, number, len(cells))
                _write(folder, loaded, list(outcomes.values()))
                _check_metrics(recipe.metrics, cells, outcomes)

    tuning = [cell for cell in loaded.cells if cell.is_tuning]
    if tuning:
        run_all("tuning", tuning)
    chosen = {(item.variant, item.trial) for item in choose(list(outcomes.values()), metric, better) if item.is_chosen}
    compared = [cell for cell in loaded.cells if not cell.is_tuning]
    run_all("comparison", [cell for cell in compared if not tuning or (cell.variant, cell.trial) in chosen])
    return _write(folder, loaded, list(outcomes.values()))


def _check_metrics(metrics: Collection[str], cells: Sequence[Cell], outcomes: Mapping[str, Outcome]) -> None:
    """Refuse a name that is none of the figures of any cell so far, once no further one can have it.

    Without the first one, which decides, every cell fails at its end. The others need not be there for every method.
    """
    ended = [cell for cell in cells if outcomes[cell.name].state != "open" and _has_ended(cell)]
    if not ended:
        return
    known = {name: None for cell in ended for name in _figures(cell)}
    decides = next(iter(metrics)) if all(outcome.state != "finished" for outcome in outcomes.values()) else None
    has_all_kinds = {_kind(cell) for cell in ended} == {_kind(cell) for cell in cells}
    for metric in metrics:
        if metric not in known and (metric == decides or has_all_kinds):
            raise UserError(
                f"metrics.{metric}: expected a figure of {SUMMARY}, found {', '.join(known) or 'none'} in "
                f"{ended[0].folder}{nearest(metric, known)}; cells that have ended are kept"
            )


def _kind(cell: Cell) -> tuple[str, ...]:
    """Equal for cells that have the same figures: of one method, by recipes of the same keys."""
    tree = cell.recipe.model_dump(exclude_none=True)
    return cell.recipe.method["name"], *(key for key, _ in leaves(tree))


def _in_parallel(work: Callable[[Cell], Outcome], cells: Sequence[Cell], jobs: int) -> Generator[Outcome]:
    """What becomes of cells, in the order in which they end; after an interruption no other begins."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, cell) for cell in cells]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


# One cell -------------------------------------------------------------------------------------------------------------


def _has_ended(cell: Cell) -> bool:
    """Whether the run of a cell is there whole.

    Raises:
        UserError: if it is that of another recipe, or the folder is not one of an ablation.
    """
    if cell.folder.exists() and not (cell.folder / RECIPE).exists() and any(cell.folder.iterdir()):
        raise UserError(f"{cell.folder}: expected a folder of this ablation, found other files; move them away")
    if not (cell.folder / SUMMARY).exists():
        return False
    differing = _changed_since(cell)
    if differing:
        named = [f"{key} ({then} then, {now} now)" for key, (then, now) in differing.items()]
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        raise UserError(
            f"{cell.folder}: expected a run of the cell '{cell.name}', found one with other values of "
            f"{', '.join(named[:3])}{more}; set them back, or give another output_dir"
        )
    return True


def _changed_since(cell: Cell) -> dict[str, tuple[Any, Any]]:
    """What differs between the recipe that a folder was begun with and the cell's."""
    path, now = cell.folder / RECIPE, cell.recipe.to_yaml()
    then = path.read_text(encoding="utf-8") if path.exists() else "{}"
    if then == now:
        return {}
    found = differences(parse_text(then, str(path)), parse_text(now, cell.name))
    # The folder is where it is, whatever it is called from here.
    return {key: values for key, values in found.items() if key != "output_dir"}


def _work(cell: Cell, *, metric: str, launch: Launch, announce: Announce) -> Outcome:
    """Run a cell, or wait for who does."""
    exit_code = None
    with _alone(cell, announce) as lock:
        # Whoever held the lock may have ended it.
        if not _has_ended(cell):
            announce(f"{cell.name}: begins")
            exit_code = _train(cell, launch, lock)
    outcome = _outcome(cell, metric, exit_code=exit_code)
    if outcome.state == "failed":
        announce(f"{outcome.name}: failed, {outcome.error}; {outcome.folder}/{LOG}")
    else:
        announce(f"{outcome.name}: ended, {outcome.seconds:,.0f} s of training, {outcome.oracle_calls:,} verdicts")
    return outcome


def _train(cell: Cell, launch: Launch, lock: int) -> int:
    """Launch a cell; the exit code."""
    _prepare(cell)
    overrides = ["training.disable_tqdm=true"]
    if any(cell.folder.glob(f"checkpoint-*/{STATE_FILE}")):
        overrides.append("training.resume_from_checkpoint=last")
    command = launch(cell.folder / RECIPE, overrides)
    with (cell.folder / LOG).open("wb") as log:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock], check=False
        )
    return done.returncode


@contextmanager
def _alone(cell: Cell, announce: Announce) -> Iterator[int]:
    """Wait until nobody else works on a cell; the lock is free when every process that inherited it has ended."""
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(cell.folder.with_name(f".{cell.folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            announce(f"{cell.name}: another process is at work on it; waiting for its end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def _prepare(cell: Cell) -> None:
    """A folder with the cell's recipe; what was begun by the same recipe stays, for it may have checkpoints."""
    if _changed_since(cell):
        shutil.rmtree(cell.folder, ignore_errors=True)
    cell.folder.mkdir(exist_ok=True)
    write_whole(cell.folder / RECIPE, cell.recipe.to_yaml())


def _launcher(config: Path | None, jobs: int) -> Launch:
    """``accelerate launch``, by a configuration or for one process."""
    options = list(_ONE_PROCESS) if config is None else ["--config_file", str(config)]
    if config is not None and jobs > 1:
        # Two launches must not meet at the port that is the same for all.
        options += ["--main_process_port", "0"]

    def launch(recipe: Path, overrides: Sequence[str]) -> list[str]:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", *options]
        return [*command, "-m", "alignment", "train", str(recipe), *overrides]

    return launch


def _outcome(cell: Cell, metric: str, *, exit_code: int | None = None) -> Outcome:
    """What became of a cell; ``exit_code`` is ``None`` of one that was not run by this call."""
    known: dict[str, Any] = {
        "variant": cell.variant,
        "trial": cell.trial,
        "seed": cell.seed,
        "is_tuning": cell.is_tuning,
        "folder": str(cell.folder),
    }
    if not _has_ended(cell):
        if exit_code is None:
            return Outcome(**known, state="open")
        return Outcome(**known, state="failed", error=f"{_last_error(cell.folder / LOG)} (exit code {exit_code})")
    summary = _summary(cell)
    end = _figures(cell)
    if not math.isfinite(end.get(metric, math.nan)):
        found = f"{end[metric]}" if metric in end else ", ".join(end) or "none"
        return Outcome(**known, state="failed", error=f"expected a finite {metric} in {SUMMARY}, found {found}")
    return Outcome(
        **known,
        state="finished",
        figures={name: value for name, value in end.items() if math.isfinite(value)},
        start={name: value for name, value in summary["before"].items() if math.isfinite(value)},
        seconds=summary["seconds"],
        oracle_calls=summary["oracle_calls"],
        money=read_run(cell.folder).money,
    )


def _summary(cell: Cell) -> dict[str, Any]:
    return dict(json.loads((cell.folder / SUMMARY).read_text(encoding="utf-8")))


def _figures(cell: Cell) -> dict[str, float]:
    """Those that a cell ended with."""
    summary = _summary(cell)
    # The theory of a method whose recipe keeps an average is about that.
    return dict(summary.get("average", summary["after"]))


def _last_error(log: Path) -> str:
    """The last line that speaks of an error, or else the last one."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if _ERROR.match(line)]
    return (said or lines or ["it said nothing"])[-1]


# All of them ----------------------------------------------------------------------------------------------------------


def _write(folder: Path, loaded: LoadedAblation, outcomes: Sequence[Outcome]) -> Ablated:
    """Everything that is known so far, as JSON, CSV, Markdown, a figure and a page."""
    recipe = loaded.recipe
    found = summarise(
        outcomes,
        variants=list(dict.fromkeys(cell.variant for cell in loaded.cells)),
        metrics=recipe.metrics,
        seeds=recipe.seeds,
        budget=loaded.budget,
        tolerance=recipe.budget.tolerance,
    )
    write_json(folder / "results.json", found.to_json())
    for name, items in (("table", found.rows), ("comparisons", found.comparisons), ("runs", found.outcomes)):
        _write_csv(folder / f"{name}.csv", [dict(leaves(dataclasses.asdict(item))) for item in items])
    (folder / "table.md").write_text(markdown(found), encoding="utf-8")
    (folder / "figure.svg").write_text(render_figure(forest(found)), encoding="utf-8")
    write_page(ablation_page(folder.resolve().name, found, recipe=recipe.to_yaml()), folder / PAGE)
    return found


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Numbers as they are, under the dotted keys of ``results.json``."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
