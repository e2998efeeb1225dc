"""The page of a run, the comparison of several, and the command."""

import errno
import json
import math
import os
import time
from pathlib import Path

import pytest

from alignment.cli import main
from alignment.errors import UserError
from alignment.report import report, write_report_page
from alignment.report.blocks import Curves, Fold, Matrix, Samples, Scatter, Table
from alignment.report.runs import read_runs
from alignment.report.sections import run_page
from tests.report.folders import metrics_at, rate, training, write_run
from tests.report.reading import Reading


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [write_run(tmp_path / "runs" / "egpo"), write_run(tmp_path / "runs" / "dpo", method="dpo")]


def command(*arguments: object) -> object:
    """What `alignment report` exits with."""
    with pytest.raises(SystemExit) as stopped:
        main(["report", *map(str, arguments)])
    return stopped.value.code


def blocks_of(folders: list[Path], section: str) -> list[object]:
    (found,) = [item for item in run_page(read_runs(folders)).sections if item.title == section]
    return list(found.blocks)


def test_a_page_stands_in_the_run_folder(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "egpo")
    started = time.process_time()
    path = write_report_page(folder)
    assert time.process_time() - started < 1.0
    assert path == folder / "report.html"
    text = Reading(path.read_text()).text
    for said in ("0.600", "95 %: 0.500 to 0.700, 30 prompts", "from 0.1: 1.0% is left", "minority", "7,200", "30 s"):
        assert said in text
    assert not list(folder.glob("*.partial"))
    assert write_report_page(folder).read_text() == path.read_text(), "the same files give the same page"


def test_the_page_of_a_long_run_is_not_long(tmp_path: Path) -> None:
    """1,000 lines of 20 metrics, in seconds of the CPU."""
    log = [training(number, loss=1.0, **{f"metric_{n}": number * n for n in range(20)}) for number in range(1_000)]
    folder = write_run(tmp_path / "long", log=log)
    started = time.process_time()
    path = write_report_page(folder)
    assert time.process_time() - started < 1.0
    assert path.stat().st_size < 1_000_000


def test_the_gap_is_drawn_on_a_logarithmic_axis(tmp_path: Path) -> None:
    (gap, *_) = blocks_of([write_run(tmp_path / "egpo")], "Learning curves")
    assert isinstance(gap, Curves) and gap.log
    assert [list(series.points) for series in gap.series] == [[(0, 0.1), (20, 0.01), (40, 0.001)]]


def test_what_never_changes_is_a_row_and_no_curve(tmp_path: Path) -> None:
    log = [training(number, loss=1.0, oracle_retries=0, oracle_calls=number) for number in (1, 2, 3)]
    (fold,) = [
        block
        for block in blocks_of([write_run(tmp_path / "egpo", log=log)], "Learning curves")
        if isinstance(block, Fold)
    ]
    curve, table = fold.blocks
    assert isinstance(curve, Curves) and curve.title == "Oracle calls, training"
    assert isinstance(table, Table) and table.rows == [["oracle retries", 0]]


def test_several_runs_share_their_curves(two: list[Path]) -> None:
    curves = [block for block in blocks_of(two, "Learning curves") if isinstance(block, Curves)]
    assert {tuple(series.name for series in curve.series) for curve in curves} == {("egpo", "dpo")}
    assert {"Duality gap, exact", "Win rate against the reference", "Training loss"} <= {item.title for item in curves}


def test_win_rates_stand_with_their_intervals(two: list[Path]) -> None:
    (matrix, _) = blocks_of(two, "Win rates")
    assert isinstance(matrix, Matrix)
    assert matrix.columns == ["oracle", "exact", "schools, exact", "minority, exact"]
    (first, _) = matrix.cells
    assert first[0] is not None and (first[0].low, first[0].value, first[0].high) == pytest.approx((0.5, 0.6, 0.7))
    assert first[3] is not None and first[3].low is None


def test_members_of_a_panel_have_columns_with_intervals(tmp_path: Path) -> None:
    after = rate("win_rate_vs_ref", 0.6) | rate("win_rate_vs_ref_brief", 0.7) | rate("win_rate_vs_ref_worst", 0.5)
    folder = write_run(tmp_path / "run", log=[], summary={"before": {}, "after": after})
    (matrix, _) = blocks_of([folder], "Win rates")
    assert isinstance(matrix, Matrix) and matrix.columns == ["oracle", "brief"]


def test_recipes_that_differ_say_where(two: list[Path]) -> None:
    (table, *_) = blocks_of(two, "Recipes and versions")
    assert isinstance(table, Table)
    assert [list(row) for row in table.rows] == [["method.name", "egpo", "dpo"]], "output_dir always differs"


def test_samples_are_spread_from_best_to_worst(tmp_path: Path) -> None:
    (samples,) = blocks_of([write_run(tmp_path / "run")], "Answers")
    assert isinstance(samples, Samples)
    assert [sample.win for sample in samples.samples] == [1.0, 0.9, 0.7, 0.6, 0.4, 0.3, 0.1, 0.0]


def test_lengths_and_wins_are_summed_up(tmp_path: Path) -> None:
    """Answer n is 3n characters against two: longer from n = 1 on, where wins of .1 to 1 average to .55."""
    text = Reading(write_report_page(write_run(tmp_path / "run")).read_text()).text
    assert "Longer answers (10) win 0.55 on average; shorter ones (1) win 0.00 on average." in text


def test_markup_in_prompts_answers_and_recipes_is_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    folder = write_run(tmp_path / "run", samples=[{"prompt": evil, "ref": evil, "policy": evil, "win": 0.5}])
    (folder / "recipe.yaml").write_text(f"method:\n  name: '{evil}'\noutput_dir: '{evil}'\n")
    (folder / "versions.json").write_text(json.dumps({evil: evil}))
    (folder / "data_report.json").write_text(json.dumps({evil: {evil: [evil]}}))
    (folder / "oracle.json").write_text(json.dumps([{"oracle": evil, evil: 1}]))
    reading = Reading(write_report_page(folder).read_text())
    assert not reading.all("script")
    assert reading.text.count(evil) >= 10


@pytest.mark.parametrize("kept", ["recipe.yaml", "metrics.jsonl", "summary.json"])
def test_one_file_is_enough_for_a_page(tmp_path: Path, kept: str) -> None:
    folder = write_run(tmp_path / "run")
    for path in folder.iterdir():
        if path.name != kept:
            path.unlink()
    text = Reading(write_report_page(folder).read_text()).text
    assert "Not there." in text


def test_a_run_that_was_never_evaluated_says_how_to_have_it(tmp_path: Path) -> None:
    log = [training(1, loss=1.0)]
    folder = write_run(tmp_path / "run", log=log, summary={"before": {}, "after": {}}, samples=[])
    text = Reading(write_report_page(folder).read_text()).text
    assert "No win rate against the reference was measured." in text
    assert "evaluation: {every: 50, oracle: ...}" in text
    assert "No answers are kept" in text


def test_a_run_without_a_policy_has_no_answers(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "reward", log=[training(1, loss=1.0)], summary={"before": {}, "after": {"margin": 1.0}}
    )
    (folder / "recipe.yaml").write_text("policy: {tiny: {}}\n")
    titles = [section.title for section in run_page(read_runs([folder])).sections]
    assert titles == ["At a glance", "Learning curves", "Cost", "Recipe and versions"]


def test_metrics_that_are_no_numbers_make_a_page(tmp_path: Path) -> None:
    wrong = {name: math.nan for name in metrics_at(40)}
    log = [training(1, loss=math.nan, grad_norm=math.inf)]
    folder = write_run(tmp_path / "run", log=log, summary={"before": metrics_at(0), "after": wrong})
    text = Reading(write_report_page(folder).read_text()).text
    assert "1 not drawn for being not a finite number" in text


def test_a_known_failure_is_a_warning(tmp_path: Path) -> None:
    before, after = {"margin": 0.0}, {"margin": 0.001, "accuracy": 0.5}
    folder = write_run(tmp_path / "run", log=[], summary={"before": before, "after": after})
    assert "Warning. Nothing moved" in Reading(write_report_page(folder).read_text()).text


def test_rows_of_the_comparison(two: list[Path]) -> None:
    done = report(two)
    assert done.path == two[0].parent / "report.html"
    first, second = done.rows
    assert (first.run, first.method, second.run) == ("egpo", "egpo", "dpo")
    assert (first.gap_start, first.gap_end, first.win_rate) == (0.1, 0.001, pytest.approx(0.6))
    assert (first.worst_group, first.worst_win_rate) == ("minority", pytest.approx(0.4))
    assert first.kl_to_ref == pytest.approx(0.3), "the exact one"


def test_runs_without_a_common_folder_need_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [write_run(tmp_path / name) for name in "ab"]
    monkeypatch.setattr("alignment.report.shared_folder", lambda _: Path("/"))
    with pytest.raises(UserError, match="--output FILE"):
        report(folders)
    assert report(folders, output=tmp_path / "x" / "page.html").path.exists()


def test_the_command_prints_the_table_and_where_the_page_is(
    two: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*two) == 0
    out, err = capsys.readouterr()
    assert err == f"wrote {two[0].parent / 'report.html'}\n"
    heading, *rows = out.splitlines()
    assert heading.split()[:4] == ["run", "method", "gap", "win"]
    assert "0.1 → 0.001" in rows[0] and "0.600 (0.500 to 0.700)" in rows[0] and "0.400 minority" in rows[0]
    assert "money" not in heading, "no run has spent any"


def test_the_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = metrics_at(40) | {"exact_gap": math.nan}
    folder = write_run(tmp_path / "run", log=[], summary={"before": metrics_at(0), "after": after})
    assert command(folder, "--json", "--output", tmp_path / "page.html") == 0
    (row,) = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (row["gap_start"], row["gap_end"], row["oracle_calls"]) == (0.1, None, None)
    assert (tmp_path / "page.html").exists() and not (folder / "report.html").exists()


def test_the_command_refuses_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_page_that_cannot_be_written_names_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the file that stands in for it meanwhile, which is not left behind either."""
    run, folder = write_run(tmp_path / "run"), tmp_path / "folder"
    folder.mkdir()
    before = sorted(tmp_path.iterdir())
    assert command(run, "--output", folder) == 2
    assert (
        f"error: {folder}: expected a file for the page, found a folder; write {folder}/report"
        in capsys.readouterr().err
    )

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(source))

    monkeypatch.setattr(os, "replace", full)
    assert command(run, "--output", tmp_path / "page.html") == 2
    assert f"error: '{tmp_path}/page.html': No space left on device" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_of_very_many_answers_some_are_drawn(tmp_path: Path) -> None:
    """1,200 are more than twice 500: every third."""
    samples = [{"prompt": "p", "ref": "r", "policy": "a" * (number % 7), "win": 0.5} for number in range(1200)]
    (scatter,) = blocks_of([write_run(tmp_path / "run", samples=samples)], "Length")
    assert isinstance(scatter, Scatter)
    assert len(scatter.series[0].points) == 400 and "of 1,200 evenly chosen" in scatter.caption
