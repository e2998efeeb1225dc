"""Commands that say how good something is: policies, judgements, runs, preferences."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignment.cli.app import app
from alignment.cli.arguments import AsJson, OverridesArgument, RecipeArgument
from alignment.cli.printing import bars, open_console, plain_table, print_notes, print_plain, progress_bar

if TYPE_CHECKING:
    from alignment.comparisons import Report
    from alignment.crossplay import CrossPlay
    from alignment.evaluate import Evaluated
    from alignment.evaluation.scoring import Scored
    from alignment.evaluation.win_matrix import Ranked
    from alignment.mt_bench import MTBenchResult
    from alignment.report import ComparisonRow
    from alignment.report.blocks import Sample


@app.command()
def evaluate(recipe: RecipeArgument, overrides: OverridesArgument = None, as_json: AsJson = False) -> None:
    """Answer prompts with policies, and judge the answers.

    Writes answers, annotations, figures with their intervals, a manifest and a page
    into output_dir. Killed and run again, it asks for nothing twice. A recipe may
    also ask for MT-Bench, or for a lower bound on how far a policy can be exploited.

    \b
    Example: alignment evaluate recipes/evaluation/textgame.yaml
    """
    from alignment.telemetry import silence_telemetry

    silence_telemetry()
    from alignment.config.evaluation import MTBenchRecipe, load_evaluation_recipe

    loaded = load_evaluation_recipe(recipe, overrides or ())
    print_notes(loaded.notes)
    found: Evaluated | MTBenchResult
    with progress_bar() as progress:
        if isinstance(loaded.recipe, MTBenchRecipe):
            from alignment.mt_bench import evaluate_mt_bench

            found = evaluate_mt_bench(loaded.recipe, progress=bars(progress))
            show = partial(_print_mt_bench, found)
        else:
            from alignment import evaluate as command

            found = command.evaluate(
                loaded.recipe, announce=lambda line: typer.echo(line, err=True), progress=bars(progress)
            )
            show = partial(_print_evaluation, found)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        show()
        print_notes(found.notes)
    typer.echo(f"wrote {found.folder}", err=True)


def _print_evaluation(found: "Evaluated") -> None:
    columns = ("policy", "opponent", "win rate", "discrete", "wins", "losses", "draws", "unparsable", "length", "lc")
    table = plain_table(*columns)
    for cell in found.cells:
        lengths = f"{cell.length.mean:.0f} vs {cell.opponent_length.mean:.0f}"
        controlled = None if cell.length_controlled is None else cell.length_controlled["length_controlled_winrate"]
        counts = map(str, (cell.n_wins, cell.n_wins_base, cell.n_draws, cell.n_unparsable))
        rates = (cell.win_rate.describe(100, 1), cell.discrete_win_rate.describe(100, 1))
        table.add_row(cell.policy, cell.opponent, *rates, *counts, lengths, _shown(controlled))
    if found.cells:
        open_console().print(table)
    for pair in found.comparisons:
        typer.echo(
            f"{pair.first} - {pair.second} against {pair.opponent}: {pair.difference.describe(100, 1)} points, "
            f"p {_shown(pair.p_value)}"
        )
    for certificate in found.certificates:
        typer.echo(certificate.sentence)


def _print_mt_bench(found: "MTBenchResult") -> None:
    from alignment.report.mt_bench import grade_tables, win_tables

    for block in (*grade_tables(found.graded), *win_tables(found.compared)):
        table = plain_table(*block.columns)
        for row in block.rows:
            table.add_row(*(f"{cell:.0f}" if isinstance(cell, float) else cell or "-" for cell in row))
        print_plain(table)


@app.command()
def score(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="alpaca_eval1, alpaca_eval2, arena_hard_v0.1, arena_hard_v2.0, mt_bench, judge_quality or "
            "reward_bench.",
        ),
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Judgements: JSON, JSON lines or CSV, also gzipped.")],
    difficulty: Annotated[
        Path | None, typer.Option(metavar="FILE", help="AlpacaEval 2: difficulties of the instructions.")
    ] = None,
    regularizer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="AlpacaEval 2: the regularising judgements, df_gamed.csv.")
    ] = None,
    c: Annotated[
        float | None, typer.Option("--c", metavar="C", help="AlpacaEval 2: fit at this C. [default: cross-validate]")
    ] = None,
    cross_validate: Annotated[
        bool, typer.Option("--cross-validate", help="AlpacaEval 2: choose C by 5-fold cross-validation, and fit.")
    ] = False,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="AlpacaEval 2: published weights; nothing is fitted.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="AlpacaEval: name of the model, if the file does not say.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="NAME", help="AlpacaEval 2: predict the rate against this model of --weights.")
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(
            metavar="id|positional",
            help="AlpacaEval 2: look difficulties up by instruction, or by row as alpaca_eval does. [default: id]",
        ),
    ] = None,
    instructions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="AlpacaEval 2: the official set, if rows have no number.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="Arena-Hard, MT-Bench pairs: whom the models met.")
    ] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Arena-Hard: answers with style counts, for style control; may be repeated."),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(metavar="prompt|battle", help="Arena-Hard: what the bootstrap resamples. [default: prompt]"),
    ] = None,
    bootstrap: Annotated[
        int | None,
        typer.Option(
            min=2, metavar="N", help="Samples of the bootstrap. [default: none; Arena-Hard 1000, with style 100]"
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the bootstrap. [default: 0]")] = None,
    as_json: AsJson = False,
) -> None:
    """Score judgements that exist already.

    AlpacaEval 1 and 2, Arena-Hard, MT-Bench, judges on gold pairs, reward models,
    each by the arithmetic of its benchmark. docs/evaluation.md has the formats.

    \b
    Example: alignment score alpaca_eval1 annotations.json
    """
    from alignment.evaluation import scoring

    options = scoring.Options(
        model=model,
        difficulty=difficulty,
        regularizer=regularizer,
        weights=weights,
        against=against,
        instructions=instructions,
        index=index,
        c=c,
        cross_validate=cross_validate or None,
        baseline=baseline,
        answers=tuple(answers) if answers else None,
        unit=unit,
        bootstrap=bootstrap,
        seed=seed,
    )
    with progress_bar() as progress:
        found = scoring.score(kind, file, options, progress=bars(progress))
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        _print_scores(found)


def _print_scores(found: "Scored") -> None:
    typer.echo(f"{found.kind}, {found.variant}\n")
    if found.summary:
        width = max(map(len, found.summary))
        for name, value in found.summary.items():
            typer.echo(f"{name:<{width}}  {_shown(value)}")
    if found.scores:
        table = plain_table(*found.scores[0])
        for row in found.scores:
            table.add_row(*map(_shown, row.values()))
        open_console().print(table)
    print_notes(found.notes)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 0.01 or value == 0.0 else f"{value:.2g}"
    return "-" if value is None else str(value)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="A run folder; several are compared.")],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page. [default: report.html in RUN, or in the folder that all share]"),
    ] = None,
    answers: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Print N answers of the last RUN, from best to worst.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a page about a run, or one that compares several.

    One HTML file with curves, win rates, answers and costs; a run need not have
    ended. No model is loaded.

    \b
    Example: alignment report runs/quickstart/dpo runs/quickstart/egpo
    """
    from alignment.report import report as command

    done = command(runs, output=output)
    if as_json:
        typer.echo(json.dumps([row.to_json() for row in done.rows], indent=2))
    else:
        _print_comparison(done.rows)
        _print_samples(done.samples, answers or 0)
    typer.echo(f"wrote {done.path}", err=True)


def _print_comparison(rows: "Sequence[ComparisonRow]") -> None:
    from alignment.report.comparison import columns

    headings, cells = columns(rows)
    table = plain_table(*headings)
    for row in cells:
        table.add_row(*row)
    open_console().print(table)


def _print_samples(samples: "Sequence[Sample]", count: int) -> None:
    from rich.text import Text

    from alignment.report.sections import spread

    console = open_console()
    for sample in spread(samples, count) if count else ():
        console.print()
        for label, style, text in (
            ("prompt  ", "bold", sample.prompt),
            ("before  ", "bold cyan", sample.right),
            ("after   ", "bold green", f"{sample.left}  (better with probability {sample.win:.2f})"),
        ):
            console.print(Text.assemble((label, style), text), soft_wrap=True)


@app.command()
def diagnose(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|ORACLE",
            help="Preference data of any shape that recipes read; a YAML file with data.preferences or an oracle; a "
            "JSON table of preferences or wins; or kind=matrix.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Keys of the source, such as columns, labels and systems."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether preferences go in circles.

    Begins with a sentence: can a method that looks for an equilibrium help, and how much at most? Then circles beside
    what noise alone would show, stochastic transitivity, the fit of Bradley-Terry, tastes for position and length, and
    how far annotators agree.

    \b
    Example: alignment diagnose battles.jsonl "systems=[model_a, model_b]"
    """
    from alignment import comparisons as command

    report = command.diagnose(source, overrides or ())
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        _print_diagnosis(report)


def _print_diagnosis(report: "Report") -> None:
    from alignment.comparisons import summary_lines

    typer.echo(report.sentence)
    typer.echo()
    if report.ranks:
        _print_ranks(report.ranks)
    for line in summary_lines(report):
        typer.echo(line)


def _print_ranks(ranks: "Sequence[Ranked]") -> None:
    table = plain_table("system", "mean win rate", "rank", "95 %")
    for item in sorted(ranks, key=lambda item: -item.score.mean):
        table.add_row(item.name, item.score.describe(), str(item.rank), f"{item.best} to {item.worst}")
    print_plain(table)


@app.command()
def crossplay(
    policies: Annotated[
        list[str],
        typer.Argument(metavar="NAME=FILE", help="Answers of each policy: AlpacaEval's model_outputs.json."),
    ],
    oracle: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|KEY=VALUE", help="Who judges: a YAML file, or keys of an oracle; may be given again."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Keeps verdicts: with one more policy only its pairs are judged.")
    ] = Path("runs/crossplay"),
    as_json: AsJson = False,
) -> None:
    """Let every policy meet every other, and rank them.

    Prints win rates with simultaneous intervals, ranks, Bradley-Terry strengths, the maximal lottery and
    exploitabilities. Pairs judged before are not judged again.

    \b
    Example: alignment crossplay a=a.json b=b.json --oracle judge.yaml
    """
    import torch

    from alignment import crossplay as command

    read, spec = command.read_policies(policies), command.read_oracle(oracle or ())
    with progress_bar() as progress:
        result = command.crossplay(
            read, spec, output, device="cuda" if torch.cuda.is_available() else "cpu", progress=bars(progress)
        )
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2, ensure_ascii=False))
    else:
        _print_crossplay(result)
    typer.echo(f"wrote {output}", err=True)


def _print_crossplay(result: "CrossPlay") -> None:
    columns = ("policy", "mean win rate", "rank", "95 %", "Elo", "lottery", "exploitability")
    table = plain_table(*columns)
    for item in sorted(result.tournament.standings, key=lambda item: -item.ranked.score.mean):
        table.add_row(
            item.name,
            item.ranked.score.describe(),
            str(item.ranked.rank),
            f"{item.ranked.best} to {item.ranked.worst}",
            "infinite" if item.elo is None else item.elo.describe(digits=0),
            f"{item.weight:.3f}",
            item.exploitability.describe(),
        )
    matches = plain_table("match", "win rate", "p", "Holm")
    for match in result.tournament.matches:
        names = " against ".join(match.names)
        matches.add_row(names, match.win_rate.describe(), f"{match.p_value:.4f}", f"{match.adjusted:.4f}")
    print_plain(table)
    print_plain(matches)
    for line in result.lines():
        typer.echo(line)
