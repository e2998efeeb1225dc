"""The page of one run, or of several beside one another: what was read, as blocks."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from alignment.diagnosis import known_failures
from alignment.methods import load_card, method_names
from alignment.report.blocks import (
    Bars,
    Block,
    Code,
    Curves,
    Estimate,
    Fact,
    Facts,
    Fold,
    Mark,
    Matrix,
    Note,
    Page,
    Sample,
    Samples,
    Scatter,
    Section,
    Series,
    Table,
)
from alignment.report.comparison import columns, compare
from alignment.report.labels import TOTALS, in_order, label_of
from alignment.report.runs import Run, Track, group_rates, member_rates, rates_by_group, win_rate, worst_rate
from alignment.report.scales import number
from alignment.values import leaves

_SAMPLES_OF_ONE, _SAMPLES_OF_EACH = 8, 4
# Of a scatter: more would hide one another.
_MOST_POINTS = 500
_EVEN = Mark(value=0.5, label="even")
_HOW_TO_EVALUATE = "To have it, give the recipe evaluation: {every: 50, oracle: ...} and held-out prompts."


@dataclass(frozen=True, slots=True)
class _Shown:
    """A policy on the page, by the name that tells it from the others."""

    name: str
    run: Run
    track: Track


def run_page(runs: Sequence[Run]) -> Page:
    """What a run did, or how several compare."""
    shown = [_Shown(run.label(track), run, track) for run in runs for track in run.tracks]
    alone = len(shown) == 1
    sections = {
        "At a glance": _overview(shown[0]) if alone else _comparison(runs),
        "Learning curves": _curves(shown),
    }
    # A reward model answers nothing.
    if any(run.method or not run.tree for run in runs):
        sections |= {"Win rates": _win_rates(shown), "Length": _lengths(shown), "Answers": _answers(shown)}
    sections |= {
        "Cost": _cost(runs),
        "Recipe and versions" if len(runs) == 1 else "Recipes and versions": _recipes(runs),
    }
    return Page(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared",
        kind="Report of a run" if len(runs) == 1 else "Comparison of runs",
        lead=_lead(runs[0]) if len(runs) == 1 else ", ".join(run.name for run in runs),
        sections=[Section(title=title, blocks=list(blocks)) for title, blocks in sections.items()],
    )


def _lead(run: Run) -> str:
    parts = [run.method] if run.method else []
    parts += _paper(run.method)
    schedule = run.tree.get("schedule") or {}
    parts += [str(schedule[key]) for key in ("kind",) if key in schedule]
    parts += [f"{len(run.tracks)} players"] if len(run.tracks) > 1 else []
    last = max((line.at for track in run.tracks for line in track.lines), default=0.0)
    rounds = max((track.rounds[-1][1] for track in run.tracks if track.rounds), default=0)
    parts.append(f"{number(last)} iterations" + (f" in {rounds} rounds" if rounds else ""))
    parts += [f"seed {run.tree['seed']}"] if "seed" in run.tree else []
    return " · ".join(parts)


def _paper(method: str | None) -> list[str]:
    # A method outside the tree would have to be imported.
    if method not in method_names():
        return []
    paper = cast(Any, load_card(method)).paper
    return [f"{paper.title} (arXiv {paper.arxiv})"]


# At a glance ----------------------------------------------------------------------------------------------------------


def _overview(shown: _Shown) -> Iterator[Block]:
    run, track = shown.run, shown.track
    if facts := list(_facts(run, track)):
        yield Facts(facts=facts)
    yield from _faults([run])
    # A round has no evaluation before it; a win rate against the reference needs none.
    after = {name: value for name, value in track.after.items() if name in track.before or "win_rate" in name}
    for text in known_failures(track.before, after):
        yield Note(text=f"{text[0].upper()}{text[1:]}.", kind="warning")
    if rows := list(_held_out_rows(track)):
        headings = ["metric", "before", "after", "change", *(["average of weights"] if track.average else [])]
        yield Table(title="On held-out prompts", columns=headings, rows=[row[: len(headings)] for row in rows])
    else:
        yield Note(text="Nothing was measured on held-out prompts.", kind="missing")


def _facts(run: Run, track: Track) -> Iterator[Fact]:
    before, after = track.before, track.after
    if (rate := win_rate(after)) is not None:
        prompts = f", {number(after['win_rate_num_prompts'])} prompts" if "win_rate_num_prompts" in after else ""
        interval = (
            ""
            if rate.low is None or rate.high is None
            else f"against ref, 95 %: {rate.low:.3f} to {rate.high:.3f}{prompts}"
        )
        yield Fact(label="Win rate", value=f"{rate.value:.3f}", note=interval)
    if math.isfinite(after.get("exact_win_rate", math.nan)):
        start = f"{before['exact_win_rate']:.3f} at the start" if "exact_win_rate" in before else ""
        yield Fact(label="Win rate, exact", value=f"{after['exact_win_rate']:.3f}", note=start)
    if math.isfinite(end := after.get("exact_gap", math.nan)):
        start_gap = before.get("exact_gap", math.nan)
        left = f"from {start_gap:.3g}: {end / start_gap:.1%} is left" if start_gap > 0.0 else ""
        yield Fact(label="Duality gap, exact", value=f"{end:.3g}", note=left)
    if (worst := worst_rate(after)) is not None:
        yield Fact(label="Worst group", value=f"{worst[1].value:.3f}", note=f"{worst[0]}, win rate")
    for name, how in (("exact_kl_to_ref", "nats, exact"), ("kl_to_ref", "nats, on held-out prompts")):
        if math.isfinite(after.get(name, math.nan)):
            yield Fact(label="KL to the reference", value=f"{after[name]:.3g}", note=how)
            break
    if run.oracle_calls is not None:
        yield Fact(label="Verdicts learned from", value=f"{run.oracle_calls:,}", note=_money(run))
    if run.seconds is not None:
        yield Fact(label="Training time", value=_duration(run.seconds))


def _money(run: Run) -> str:
    return "" if run.money is None else f"{run.money:.4f} spent"


def _duration(seconds: float) -> str:
    units = ((3600.0, "h", 7200.0), (60.0, "min", 600.0))
    size, unit = next(((size, unit) for size, unit, least in units if seconds >= least), (1.0, "s"))
    return f"{seconds / size:.3g} {unit}"


def _held_out_rows(track: Track) -> Iterator[list[float | str | None]]:
    for name in in_order(track.after):
        start, end = track.before.get(name), track.after[name]
        change = None if start is None else f"{end - start:+.4g}"
        yield [label_of(name), start, end, change, track.average.get(name)]


def _faults(runs: Sequence[Run]) -> Iterator[Block]:
    for run in runs:
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        for text in run.faults:
            yield Note(text=f"{prefix}{text}")


def _comparison(runs: Sequence[Run]) -> Iterator[Block]:
    headings, rows = columns(compare(runs))
    shared = len(runs) < sum(len(run.tracks) for run in runs)
    cost = " Calls, money and seconds are those of the whole run, over all its players." if shared else ""
    caption = (
        "Gap: exact, from the start to the end, regularised by the recipe's tau. Win rate: against the reference on "
        f"held-out prompts, with its 95 % interval. KL: to the reference, nats.{cost}"
    )
    yield Table(title="", columns=headings, rows=rows, caption=caption)
    yield from _faults(runs)


# Curves ---------------------------------------------------------------------------------------------------------------


def _curves(shown: Sequence[_Shown]) -> Iterator[Block]:
    if not any(item.track.lines for item in shown):
        yield Note(text="Nothing was logged: there is no metrics.jsonl with lines in it.", kind="missing")
        return
    only = shown[0] if len(shown) == 1 else None
    drawn: list[Curves] = [
        _shared("Duality gap, exact", shown, _of("exact_gap"), log=True),
        _win_rate_curve(shown),
        *([_group_curve(only.track)] if only else []),
        _shared("KL to the reference, nats", shown, _first_of("exact_kl_to_ref", "kl_to_ref")),
        *(_curves_of_one(only.track) if only else _curves_of_several(shown)),
    ]
    yield from (curve for curve in drawn if curve.series)
    if only:
        taken = {"exact_gap", "exact_kl_to_ref", "kl_to_ref", "loss", "accuracy", "chosen_logps", "rejected_logps"}
        rest = in_order(dict.fromkeys(name.removeprefix("eval_") for name in only.track.metrics()))
        names = [name for name in rest if name not in taken and name not in TOTALS and "win_rate" not in name]
        if names:
            yield Fold(title="Everything else that was logged", blocks=_everything(only.track, names))


def _everything(track: Track, names: Sequence[str]) -> list[Block]:
    """A curve for each metric that moves, and a table of the others."""
    still = {name: value for name in names if (value := _constant(track, name)) is not None}
    blocks: list[Block] = [_both(track, name) for name in names if name not in still]
    if still:
        rows: list[list[float | str | None]] = [[label_of(name), value] for name, value in still.items()]
        blocks.append(Table(title="Never changed", columns=["metric", "value"], rows=rows))
    return blocks


def _constant(track: Track, name: str) -> float | None:
    """The one value of a metric that was logged more than once; ``None`` where there are others, or no second line."""
    values = [value for _, value in (*track.logged(name), *track.evaluated(name))]
    return values[0] if len(values) > 1 and len(set(values)) == 1 else None


def _of(metric: str) -> Callable[[Track], Sequence[tuple[float, float]]]:
    return lambda track: track.evaluated(metric)


def _first_of(*metrics: str) -> Callable[[Track], Sequence[tuple[float, float]]]:
    return lambda track: next((points for name in metrics if (points := track.evaluated(name))), [])


def _shared(
    title: str,
    shown: Sequence[_Shown],
    points_of: Callable[[Track], Sequence[tuple[float, float]]],
    *,
    log: bool = False,
    caption: str = "",
) -> Curves:
    """A line for each policy that has points."""
    series = [Series(name=item.name, points=points) for item in shown if (points := points_of(item.track))]
    return Curves(title=title, x="iteration", series=series, caption=caption, log=log, upright=_rounds(shown))


def _rounds(shown: Sequence[_Shown]) -> list[Mark]:
    """Where rounds begin; of several policies only if all have the same."""
    every = [item.track.rounds for item in shown]
    same = every[0] if all(list(rounds) == list(every[0]) for rounds in every) else []
    return [Mark(value=at, label=f"round {number}" if len(same) < 6 else "") for at, number in same]


def _win_rate_curve(shown: Sequence[_Shown]) -> Curves:
    series = []
    for item in shown:
        track = item.track
        name = "sampled, with its 95 % interval" if len(shown) == 1 else item.name
        if points := track.evaluated("win_rate_vs_ref"):
            low, high = (dict(track.evaluated(f"win_rate_vs_ref_{end}")) for end in ("low", "high"))
            band = [(x, low[x], high[x]) for x, _ in points if x in low and x in high]
            series.append(Series(name=name, points=points, band=band if len(shown) <= 3 else ()))
        exact = track.evaluated("exact_win_rate")
        if exact and (len(shown) == 1 or not points):
            series.append(Series(name="exact" if len(shown) == 1 else f"{item.name}, exact", points=exact))
    return Curves(
        title="Win rate against the reference",
        x="iteration",
        series=series,
        across=[_EVEN],
        upright=_rounds(shown),
        caption="Shaded: 95 % intervals." if any(item.band for item in series) and len(shown) > 1 else "",
    )


def _group_curve(track: Track) -> Curves:
    """The win rate by each group, or by each member of a panel."""
    if groups := group_rates(track.after):
        names = {name: f"exact_win_rate_{name}" for name in groups}
    else:
        names = {name: f"win_rate_vs_ref_{name}" for name in member_rates(track.after)}
    series = [Series(name=name, points=track.evaluated(metric)) for name, metric in names.items()]
    title = "Win rate by group, exact" if groups else "Win rate by member of the panel"
    return Curves(title=title, x="iteration", series=[item for item in series if item.points], across=[_EVEN])


def _curves_of_one(track: Track) -> list[Curves]:
    logps = [
        Series(name=f"{name}, held out", points=points)
        for name in ("chosen", "rejected")
        if (points := track.evaluated(f"{name}_logps"))
    ] or [
        Series(name=name, points=points) for name in ("chosen", "rejected") if (points := track.logged(f"{name}_logps"))
    ]
    return [
        _both(track, "loss"),
        _both(track, "accuracy"),
        Curves(title="Log-probs, nats", x="iteration", series=logps, upright=_marks(track)),
    ]


def _curves_of_several(shown: Sequence[_Shown]) -> list[Curves]:
    differ = len({item.run.method for item in shown}) > 1
    caption = "Losses of different methods measure different things: read each line by itself." if differ else ""
    return [
        _shared("Training loss", shown, lambda track: track.logged("loss"), caption=caption),
        _shared("Accuracy on held-out pairs", shown, _of("accuracy")),
    ]


def _both(track: Track, name: str) -> Curves:
    """A metric on what is trained on, and on what is held out."""
    pairs = (("training", track.logged(name)), ("held out", track.evaluated(name)))
    series = [Series(name=which, points=points) for which, points in pairs if points]
    title = label_of(name)
    lone = f", {series[0].name}" if len(series) == 1 and name not in ("learning_rate", "grad_norm") else ""
    return Curves(title=f"{title[0].upper()}{title[1:]}{lone}", x="iteration", series=series, upright=_marks(track))


def _marks(track: Track) -> list[Mark]:
    return [Mark(value=at, label=f"round {number}") for at, number in track.rounds[:5]]


# Win rates, length, answers -------------------------------------------------------------------------------------------


def _win_rates(shown: Sequence[_Shown]) -> Iterator[Block]:
    rows = {item.name: _rates(item.track) for item in shown}
    names = list(dict.fromkeys(name for rates in rows.values() for name in rates))
    if not names:
        yield Note(text=f"No win rate against the reference was measured. {_HOW_TO_EVALUATE}", kind="missing")
        return
    yield Matrix(
        title="Against the reference, at the end",
        corner="policy",
        rows=list(rows),
        columns=names,
        cells=[[rates.get(name) for name in names] for rates in rows.values()],
        caption="0.5 is even. ▲ the whole interval, or the exact figure, is above one half; ▼ below. Under a figure "
        "stands its 95 % interval over prompts; figures without one are exact.",
    )
    groups = list(dict.fromkeys(name for item in shown for name in rates_by_group(item.track.after)))
    if groups:
        many = len(shown) > 1
        yield Bars(
            title="Who gains",
            groups=[(group, [rates_by_group(item.track.after).get(group) for item in shown]) for group in groups],
            names=[item.name for item in shown] if many else ["win rate"],
            caption="Win rate against the reference as each group, or each member of the panel, sees it.",
            upright=[_EVEN],
            end=1.0,
        )


def _rates(track: Track) -> dict[str, Estimate]:
    """All rates at the end by what the column is called."""
    after = track.after
    exact = after.get("exact_win_rate", math.nan)
    measured = win_rate(after)
    return {
        **({} if measured is None else {"oracle": measured}),
        **member_rates(after),
        **({"exact": Estimate(value=exact)} if math.isfinite(exact) else {}),
        **{f"{name}, exact": rate for name, rate in group_rates(after).items()},
    }


def _lengths(shown: Sequence[_Shown]) -> Iterator[Block]:
    sampled = [item for item in shown if item.track.samples]
    if not sampled:
        yield Note(text="No answers are kept (samples.jsonl): lengths are not known.", kind="missing")
    for item in sampled:
        samples = item.track.samples
        points = [(float(len(sample.left) - len(sample.right)), sample.win) for sample in samples]
        longer = [win for difference, win in points if difference > 0]
        shorter = [win for difference, win in points if difference < 0]
        said = [
            f"{name} ({len(wins)}) win {sum(wins) / len(wins):.2f} on average"
            for name, wins in (("longer answers", longer), ("shorter ones", shorter))
            if wins
        ]
        text = "; ".join(said) or "all answers are as long as the reference's"
        of = f": {item.name}" if len(shown) > 1 else ""
        shown_of = f", of {number(len(points))} evenly chosen" if len(points) > _MOST_POINTS else ""
        yield Scatter(
            title=f"Length against preference{of}",
            x="characters more than the reference's answer",
            y="P(policy beats reference)",
            series=[Series(name=item.name, points=points[:: -(-len(points) // _MOST_POINTS)])],
            caption=f"A point is an answer{shown_of}. {text[0].upper()}{text[1:]}.",
            across=[_EVEN],
            upright=[Mark(value=0.0, label="")],
        )


def _answers(shown: Sequence[_Shown]) -> Iterator[Block]:
    sampled = [item for item in shown if item.track.samples]
    if not sampled:
        yield Note(text=f"No answers are kept (samples.jsonl). {_HOW_TO_EVALUATE}", kind="missing")
    alone = len(shown) == 1
    for item in sampled:
        kept, every = spread(item.track.samples, _SAMPLES_OF_ONE if alone else _SAMPLES_OF_EACH), item.track.samples
        block = Samples(
            title="",
            left="policy",
            right="reference",
            samples=kept,
            caption=f"{len(kept)} of {number(len(every))} answers of the last evaluation, from the best verdict to the "
            "worst in even steps. The figure is the probability that the policy's answer beats the reference's, "
            "by the oracle, and by each member of a panel.",
        )
        yield block if alone else Fold(title=f"Answers of {item.name}", blocks=[block])


def spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    """So many, at least two, from the highest verdict to the lowest in even steps: nobody picked them."""
    ranked = sorted(samples, key=lambda sample: -sample.win)
    if len(ranked) <= most:
        return ranked
    return [ranked[round(index * (len(ranked) - 1) / (most - 1))] for index in range(most)]


# What it took ---------------------------------------------------------------------------------------------------------


def _cost(runs: Sequence[Run]) -> Iterator[Block]:
    rows: list[list[float | str | None]] = [
        ["verdicts learned from", *(run.oracle_calls for run in runs)],
        ["money", *(run.money for run in runs)],
        ["seconds of training", *(run.seconds and round(run.seconds, 1) for run in runs)],
    ]
    named = [run.name for run in runs] if len(runs) > 1 else ["of the run"]
    caption = "" if any(run.money for run in runs) else "Money is known for oracles whose recipe has prices."
    yield Table(title="", columns=["cost", *named], rows=rows, caption=caption)
    asked = [_by_oracle(run, "By oracle" if len(runs) == 1 else run.name) for run in runs if run.oracles]
    yield from asked if len(runs) == 1 else [Fold(title="By oracle", blocks=asked)] if asked else []


def _by_oracle(run: Run, title: str) -> Table:
    counted = list(dict.fromkeys(name for oracle in run.oracles for name in oracle if _is_count(oracle[name])))
    return Table(
        title=title,
        columns=["count", *(str(oracle.get("oracle")) for oracle in run.oracles)],
        rows=[[name.replace("_", " "), *(oracle.get(name) for oracle in run.oracles)] for name in counted],
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _recipes(runs: Sequence[Run]) -> Iterator[Block]:
    if len(runs) > 1:
        yield from _differences(runs)
    for run in runs:
        if run.recipe:
            title = "recipe.yaml, as resolved" if len(runs) == 1 else run.name
            yield Code(title=title, text=run.recipe.rstrip(), folded=len(runs) > 1)
        else:
            yield Note(text=f"{run.name} has no recipe.yaml.", kind="missing")
    yield from _versions(runs)


def _differences(runs: Sequence[Run]) -> Iterator[Block]:
    trees = [{key: str(value) for key, value in leaves(run.tree) if value != {}} for run in runs]
    keys = [key for key in dict.fromkeys(key for tree in trees for key in tree) if key != "output_dir"]
    rows = [[key, *(tree.get(key) for tree in trees)] for key in keys if len({tree.get(key) for tree in trees}) > 1]
    if rows:
        yield Table(title="Where they differ", columns=["key", *(run.name for run in runs)], rows=rows)
    else:
        yield Note(text="The recipes are the same but for their output_dir.")


def _versions(runs: Sequence[Run]) -> Iterator[Block]:
    known = [run for run in runs if run.versions]
    if known:
        names = list(dict.fromkeys(name for run in known for name in run.versions))
        same = all(dict(run.versions) == dict(known[0].versions) for run in known)
        columns_of = known[:1] if same else known
        yield Table(
            title="Versions",
            columns=["package", *(["version"] if same else [run.name for run in known])],
            rows=[[name, *(run.versions.get(name) for run in columns_of)] for name in names],
        )
    else:
        yield Note(text="There is no versions.json.", kind="missing")
    for run in runs:
        of = f" of {run.name}" if len(runs) > 1 else ""
        if run.left_out:
            yield Table(
                title=f"Rows{of} that were left out",
                columns=["stage", "reason", "rows"],
                rows=[[stage, reason, float(count)] for stage, reason, count in run.left_out],
            )
