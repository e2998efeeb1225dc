"""What is read of a run folder, whole or not."""

import json
import math
from pathlib import Path

import pytest

from alignment.errors import UserError
from alignment.report.runs import read_run, read_runs, worst_rate
from tests.report.folders import evaluation, log_of_a_game, rate, training, write_jsonl, write_run


def test_a_whole_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "egpo"))
    (track,) = run.tracks
    assert (run.name, run.method, run.seconds, run.oracle_calls, run.has_ended) == ("egpo", "egpo", 30.0, 7200, True)
    assert track.evaluated("exact_gap") == [(0, 0.1), (20, 0.01), (40, 0.001)]
    assert track.logged("loss") == [(10, 0.9), (20, 0.8), (40, 0.7)]
    assert (track.before["exact_gap"], track.after["exact_gap"]) == (0.1, 0.001)
    assert worst_rate(track.after) is not None and worst_rate(track.after)[0] == "minority"  # type: ignore[index]
    assert len(track.samples) == 11 and not run.faults


def test_the_later_of_two_values_at_one_iteration_counts(tmp_path: Path) -> None:
    log = [evaluation(0, loss=1.0), evaluation(0, loss=2.0)]
    assert read_run(write_run(tmp_path / "run", log=log)).tracks[0].evaluated("loss") == [(0, 2.0)]


def test_a_torn_line_is_left_out_and_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "summary.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "los')
    run = read_run(folder)
    assert not run.has_ended
    assert run.tracks[0].after["exact_gap"] == 0.001, "the last evaluation stands in for the summary"
    assert run.tracks[0].before["exact_gap"] == 0.1
    assert run.seconds == 12.5, "of the trainer"
    assert any("metrics.jsonl, line 8" in text for text in run.faults)
    assert any("has not ended" in text for text in run.faults)


def test_without_a_first_evaluation_nothing_is_known_of_the_start(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", log=log_of_a_game()[3:])
    (folder / "summary.json").unlink()
    assert not read_run(folder).tracks[0].before


def test_nan_is_read(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", log=[training(1, loss=math.nan), training(2, loss=1.0)]))
    assert math.isnan(run.tracks[0].logged("loss")[0][1])


def test_samples_that_cannot_be_shown_are_said_by_line(tmp_path: Path) -> None:
    whole = {"prompt": "p", "ref": "r", "policy": "a\u2028b", "win": 0.5}
    folder = write_run(tmp_path / "run", samples=[whole])
    lines = [json.dumps(whole, ensure_ascii=False), json.dumps(whole | {"win": math.nan}), '{"prompt": "p"}']
    (folder / "samples.jsonl").write_text("\n".join(lines))
    run = read_run(folder)
    assert [sample.left for sample in run.tracks[0].samples] == ["a\u2028b"], "one line, whatever it holds"
    assert [text.partition(":")[0] for text in run.faults] == ["samples.jsonl, line 2", "samples.jsonl, line 3"]


@pytest.mark.parametrize("name", ["recipe.yaml", "metrics.jsonl", "summary.json"])
def test_what_is_missing_is_said(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).unlink()
    assert any(name in text for text in read_run(folder).faults)


def test_a_broken_file_is_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "summary.json").write_text('{"before": ')
    (folder / "oracle.json").write_text("[")
    said = " ".join(read_run(folder).faults)
    assert "summary.json: expected JSON" in said and "oracle.json: expected JSON" in said


def test_rounds_follow_one_another(tmp_path: Path) -> None:
    """Two rounds of 20 iterations, the second of two fits of which the first has 5."""
    folder = write_run(tmp_path / "run", log=[], summary={"before": {}, "after": rate("win_rate_vs_ref", 0.6)})
    (folder / "metrics.jsonl").unlink()
    (folder / "samples.jsonl").unlink()
    for place, log in {
        "round-1": [training(10, loss=3.0), evaluation(20, win_rate_vs_ref=0.55)],
        "round-2/fit-1": [training(5, loss=2.0)],
        "round-2": [training(10, loss=1.0), evaluation(20, win_rate_vs_ref=0.6, kl_to_ref=0.3)],
    }.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / place / "metrics.jsonl", log)
    write_jsonl(folder / "round-2/samples.jsonl", [{"prompt": "p", "ref": "r", "policy": "a", "win": 1.0}])
    run = read_run(folder)
    (track,) = run.tracks
    assert track.logged("loss") == [(10, 3.0), (25, 2.0), (35, 1.0)]
    assert track.evaluated("win_rate_vs_ref") == [(20, 0.55), (45, 0.6)]
    assert track.rounds == [(20, 2)]
    assert (track.after["win_rate_vs_ref_low"], track.after["kl_to_ref"]) == (0.5, 0.3)
    assert len(track.samples) == 1 and not run.faults


def test_players_are_tracks_of_their_own(tmp_path: Path) -> None:
    after = {f"{name}.{key}": value for name in "ab" for key, value in rate("win_rate_vs_ref", 0.6).items()}
    folder = write_run(tmp_path / "run", log=[], summary={"before": {}, "after": after | {"b.win_rate_vs_ref": 0.7}})
    (folder / "metrics.jsonl").unlink()
    for name in "ab":
        (folder / name / "round-1").mkdir(parents=True)
        write_jsonl(folder / name / "round-1/metrics.jsonl", [training(1, loss=1.0)])
    run = read_run(folder)
    assert [run.label(track) for track in run.tracks] == ["run/a", "run/b"]
    assert [track.after["win_rate_vs_ref"] for track in run.tracks] == [0.6, 0.7]


def test_calls_are_those_of_the_summary_or_of_the_accounts_or_of_the_log(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", log=[training(1, oracle_calls=5)], summary={"before": {}, "after": {}})
    assert read_run(folder).oracle_calls == 5
    accounts = [{"oracle": "judge", "calls": 6, "money": 0.5}, {"oracle": "rule", "calls": 1, "money": 0.0}]
    (folder / "oracle.json").write_text(json.dumps(accounts))
    run = read_run(folder)
    assert (run.oracle_calls, run.money) == (7, 0.5)
    (folder / "summary.json").write_text(json.dumps({"before": {}, "after": {}, "oracle_calls": 8}))
    assert read_run(folder).oracle_calls == 8


def test_runs_are_named_by_what_differs(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a" / "egpo"), write_run(tmp_path / "b" / "egpo")]
    assert [run.name for run in read_runs(folders)] == ["a/egpo", "b/egpo"]


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a run folder, found no folder 'none'"):
        read_run(Path("none"))
    with pytest.raises(UserError, match=r"holds recipe\.yaml, metrics\.jsonl, summary\.json; found none of them$"):
        read_run(tmp_path)
    write_run(tmp_path / "egpo")
    with pytest.raises(UserError, match=r"runs below it: .*egpo"):
        read_run(tmp_path)


def test_a_run_given_twice(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with pytest.raises(UserError, match="twice"):
        read_runs([folder, tmp_path / "run" / "." / ".." / "run"])
