"""What a run folder holds, as far as it holds it: read without a model, and without trust in how the run ended."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.config.parsing import parse_text
from alignment.errors import UserError
from alignment.report.blocks import Estimate, Sample

_FILES = ("recipe.yaml", "metrics.jsonl", "summary.json")
_PLACES = ("step", "iteration", "round", "epoch")
_EVALUATION = "eval_"

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of the log.

    Attributes:
        at: iterations since the start of the run, over all rounds.
        values: what was logged; not every one is finite.
    """

    at: float
    values: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """What one policy went through.

    Attributes:
        name: of its player; empty for the only one.
        lines: of the log, in order.
        rounds: iteration at which each round after the first begins, and its number.
        before: metrics on held-out prompts at the start.
        after: the same at the end.
        average: the same of the average of the weights, where one is kept.
        samples: answers of the last evaluation beside the reference's.
    """

    name: str
    lines: Sequence[Line]
    rounds: Sequence[tuple[float, int]]
    before: Metrics
    after: Metrics
    average: Metrics
    samples: Sequence[Sample]

    def logged(self, metric: str) -> list[tuple[float, float]]:
        """Values of a metric by iteration; of two at one iteration the later one."""
        return list({line.at: line.values[metric] for line in self.lines if metric in line.values}.items())

    def evaluated(self, metric: str) -> list[tuple[float, float]]:
        """The same of a metric on held-out prompts."""
        return self.logged(f"{_EVALUATION}{metric}")

    def metrics(self) -> list[str]:
        """Every name in the log, without what only says where a line stands."""
        names = dict.fromkeys(name for line in self.lines for name in line.values)
        return [name for name in names if name not in _PLACES]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run folder.

    Attributes:
        name: what distinguishes it from the runs beside it.
        folder: where it is.
        recipe: its text; empty if there is none.
        tree: the recipe's values.
        versions: of what it ran on.
        tracks: one for each player.
        seconds: of training; ``None`` if nothing says it.
        oracle_calls: verdicts that were trained on, by the summary of a run that has ended; of others, what its oracles
            answered so far; ``None`` likewise.
        oracles: what each costly oracle answered and cost.
        left_out: (stage, reason, number of rows) of the data.
        has_ended: whether the summary of a finished run is there.
        faults: what is missing or unreadable, a sentence each.
    """

    name: str
    folder: Path
    recipe: str
    tree: Mapping[str, Any]
    versions: Mapping[str, str]
    tracks: Sequence[Track]
    seconds: float | None
    oracle_calls: int | None
    oracles: Sequence[Mapping[str, Any]]
    left_out: Sequence[tuple[str, str, int]]
    has_ended: bool
    faults: Sequence[str]

    @property
    def method(self) -> str | None:
        """The name of its method; ``None`` for a run without one."""
        name = (self.tree.get("method") or {}).get("name")
        return None if name is None else str(name)

    @property
    def money(self) -> float | None:
        """Spent on oracles; ``None`` where none has a price."""
        spent = [float(oracle["money"]) for oracle in self.oracles if oracle.get("money")]
        return sum(spent) if spent else None

    def label(self, track: Track) -> str:
        """The name of one of its tracks beside those of other runs."""
        return f"{self.name}/{track.name}" if track.name else self.name


def is_run(folder: Path) -> bool:
    """Whether a folder holds anything that a run writes."""
    return any((folder / name).exists() for name in _FILES)


def read_run(folder: Path, *, name: str | None = None) -> Run:
    """Read a run folder.

    Args:
        folder: of any run, finished or not.
        name: what to call it; ``None`` for the folder's own name.

    Raises:
        UserError: if it is no run folder, or its recipe is not YAML.
    """
    if not folder.is_dir():
        raise UserError(f"expected a run folder, found no folder '{folder}'")
    if not is_run(folder):
        inside = sorted(str(path.parent) for path in folder.glob("**/recipe.yaml") if is_run(path.parent))
        hint = f"; runs below it: {', '.join(inside[:5])}" if inside else ""
        raise UserError(f"{folder}: expected a run folder, which holds {', '.join(_FILES)}; found none of them{hint}")
    faults: list[str] = []
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8") if (folder / "recipe.yaml").exists() else ""
    tree = parse_text(recipe, str(folder / "recipe.yaml")) if recipe else {}
    if not recipe:
        faults.append("recipe.yaml is missing: what was run is not known.")
    summary = _read_json(folder / "summary.json", faults)
    if summary is None:
        faults.append("summary.json is missing: the run has not ended. Figures at the end are those of its last line.")
    found = summary or {}
    players = sorted(path.parent.name for path in folder.glob("*/round-1") if path.is_dir())
    tracks = [_read_track(folder / player, player, found, faults) for player in players or [""]]
    oracles = _read_json(folder / "oracle.json", faults) or []
    return Run(
        name=name or folder.resolve().name,
        folder=folder,
        recipe=recipe,
        tree=tree if isinstance(tree, dict) else {},
        versions=_read_json(folder / "versions.json", faults) or {},
        tracks=tracks,
        seconds=_seconds(found, tracks),
        oracle_calls=_calls(found, oracles, tracks),
        oracles=oracles,
        left_out=list(_left_out(_read_json(folder / "data_report.json", faults) or {})),
        has_ended=summary is not None,
        faults=faults,
    )


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs, each named by what its path has of its own.

    Raises:
        UserError: as :func:`read_run`, and for a run that is given twice.
    """
    resolved = [folder.resolve() for folder in folders]
    twice = [folder for folder, path in zip(folders, resolved, strict=True) if resolved.count(path) > 1]
    if twice:
        raise UserError(f"expected different run folders, got '{twice[0]}' twice")
    if len(folders) == 1:
        return [read_run(folders[0])]
    shared = shared_folder(folders)
    return [
        read_run(folder, name=path.relative_to(shared).as_posix())
        for folder, path in zip(folders, resolved, strict=True)
    ]


def shared_folder(folders: Sequence[Path]) -> Path:
    """The lowest folder that all of them are in."""
    parents = [folder.resolve().parent for folder in folders]
    return next(place for place in (parents[0], *parents[0].parents) if all(p.is_relative_to(place) for p in parents))


def _read_track(folder: Path, player: str, summary: Mapping[str, Any], faults: list[str]) -> Track:
    prefix = f"{player}." if player else ""
    rounds = sorted(
        (int(path.name.removeprefix("round-")), path) for path in folder.glob("round-*") if path.name[6:].isdigit()
    )
    lines: list[Line] = []
    begins: list[tuple[float, int]] = []
    offset = 0.0
    for number, place in rounds or [(0, folder)]:
        if lines:
            begins.append((offset, number))
        for path in [*sorted(place.glob("fit-*/metrics.jsonl")), place / "metrics.jsonl"]:
            lines.extend(_read_log(path, offset, faults))
            offset = max([offset, *(line.at for line in lines)])
    if not lines:
        faults.append(f"{prefix}metrics.jsonl is missing or empty: there are no curves.")
    evaluated = [line for line in lines if any(name.startswith(_EVALUATION) for name in line.values)]
    # Where training came before the first evaluation, nothing is known of the start.
    first = [_held_out(line) for line in evaluated[:1] if line.at == 0]
    last = [_held_out(line) for line in evaluated[-1:]]
    before, after, average = (_numbers(summary.get(key) or {}, prefix) for key in ("before", "after", "average"))
    places = [folder / "samples.jsonl", *(place / "samples.jsonl" for _, place in reversed(rounds))]
    samples = next((path for path in places if path.exists()), None)
    return Track(
        name=player,
        lines=lines,
        rounds=begins,
        # The summary of a run in rounds holds win rates only.
        before=dict(*first) | before,
        after=dict(*last) | after,
        average=average,
        samples=[] if samples is None else list(_read_samples(samples, faults)),
    )


def _held_out(line: Line) -> Metrics:
    return {
        name.removeprefix(_EVALUATION): value for name, value in line.values.items() if name.startswith(_EVALUATION)
    }


def _read_log(path: Path, offset: float, faults: list[str]) -> Iterator[Line]:
    for number, item in _read_rows(path, faults):
        at = item.get("iteration", item.get("step"))
        if not isinstance(at, int | float):
            faults.append(f"{path.name}, line {number}: expected an iteration or a step, found none; left out.")
            continue
        yield Line(at=offset + float(at), values=_numbers(item, ""))


def _read_samples(path: Path, faults: list[str]) -> Iterator[Sample]:
    for number, item in _read_rows(path, faults):
        try:
            sample = Sample(
                prompt=str(item["prompt"]),
                left=str(item["policy"]),
                right=str(item["ref"]),
                win=float(item["win"]),
                members=[(str(name), float(value)) for name, value in (item.get("members") or {}).items()],
            )
        except (KeyError, TypeError, ValueError) as error:
            faults.append(f"{path.name}, line {number}: expected prompt, ref, policy and win ({error}); left out.")
            continue
        if math.isfinite(sample.win):
            yield sample
        else:
            faults.append(f"{path.name}, line {number}: expected a probability, found {sample.win}; left out.")


def _read_rows(path: Path, faults: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, with their numbers; a line may be torn where the run was killed."""
    if not path.exists():
        return
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        try:
            item = json.loads(text)
        except json.JSONDecodeError:
            item = None
        if isinstance(item, dict):
            yield number, item
        elif text.strip():
            faults.append(f"{path.name}, line {number}: expected a JSON object, found {text[:40]!r}; left out.")


def _read_json(path: Path, faults: list[str]) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        faults.append(f"{path.name}: expected JSON ({error}); not read.")
        return None


def _numbers(item: Mapping[str, Any], prefix: str) -> dict[str, float]:
    # Exact types: True is no number.
    return {
        name.removeprefix(prefix): float(value)
        for name, value in item.items()
        if type(value) in (int, float) and name.startswith(prefix)
    }


def _seconds(summary: Mapping[str, Any], tracks: Sequence[Track]) -> float | None:
    if "seconds" in summary:
        return float(summary["seconds"])
    timed = [line.values["train_runtime"] for track in tracks for line in track.lines if "train_runtime" in line.values]
    return sum(timed) if timed else None


def _calls(summary: Mapping[str, Any], oracles: Sequence[Mapping[str, Any]], tracks: Sequence[Track]) -> int | None:
    """By the summary, by the accounts, or, of a run that has not ended, by the last line that says it."""
    if "oracle_calls" in summary:
        return int(summary["oracle_calls"])
    counted = [oracle["calls"] for oracle in oracles if "calls" in oracle]
    logged = [line.values["oracle_calls"] for track in tracks for line in track.lines if "oracle_calls" in line.values]
    return int(sum(counted)) if counted else int(logged[-1]) if logged else None


def _left_out(report: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    for stage, reasons in report.items():
        for reason, sources in reasons.items():
            yield stage, reason, len(sources)


# Rates by group and by member of a panel ------------------------------------------------------------------------------

_MEMBER = re.compile(r"win_rate_vs_ref_(.+)_low")
_GROUP = re.compile(r"exact_win_rate_(.+)")


def win_rate(metrics: Metrics, name: str = "win_rate_vs_ref") -> Estimate | None:
    """A measured rate with its interval."""
    value = metrics.get(name)
    if value is None or not math.isfinite(value):
        return None
    return Estimate(value=value, low=metrics.get(f"{name}_low"), high=metrics.get(f"{name}_high"))


def member_rates(metrics: Metrics) -> dict[str, Estimate]:
    """The measured rate by each member of a panel."""
    found = (_MEMBER.fullmatch(name) for name in metrics)
    names = [match[1] for match in found if match and match[1] != "worst"]
    rates = {name: win_rate(metrics, f"win_rate_vs_ref_{name}") for name in names}
    return {name: rate for name, rate in rates.items() if rate is not None}


def group_rates(metrics: Metrics) -> dict[str, Estimate]:
    """The exact rate of each group of annotators."""
    found = {match[1]: value for name, value in metrics.items() if (match := _GROUP.fullmatch(name))}
    return {name: Estimate(value=value) for name, value in found.items() if name != "worst" and math.isfinite(value)}


def rates_by_group(metrics: Metrics) -> dict[str, Estimate]:
    """The rate of each group of annotators, or else of each member of the panel."""
    return group_rates(metrics) or member_rates(metrics)


def worst_rate(metrics: Metrics) -> tuple[str, Estimate] | None:
    """Who gains least of those, and its rate."""
    rates = rates_by_group(metrics)
    return min(rates.items(), key=lambda item: item[1].value) if rates else None
