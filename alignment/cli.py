"""The command line: parse, call, print. Every import that costs time stands inside the command that needs it."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import alignment
from alignment.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from alignment.comparisons import Report
    from alignment.crossplay import CrossPlay
    from alignment.doctor import Examination
    from alignment.evaluate import Evaluated
    from alignment.evaluation.scoring import Scored
    from alignment.evaluation.win_matrix import Ranked
    from alignment.iterative import Stage
    from alignment.protocol import ProtocolResult
    from alignment.report import ComparisonRow
    from alignment.report.blocks import Sample
    from alignment.sample import Answered

_EXAMPLE = "\b\nExample: alignment {}"

app = typer.Typer(
    name="alignment",
    help="Align language models with game theory: preference methods as losses over one pipeline.",
    epilog=_EXAMPLE.format("train recipes/quickstart/dpo.yaml"),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
recipes_app = typer.Typer(epilog=_EXAMPLE.format("recipes list"), no_args_is_help=True, rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes", help="The recipes that come with the package.")

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe to set, by their dotted path.")
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run folder, the folder of a model, or a name on the Hub.")
]
CheckpointOption = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Take RUN/checkpoint-N. [default: the final model]")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake becomes one line a mistake on stderr and exit code 2, without a trace."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="alignment")
    except UserError as error:
        _fail(str(error))
    except FileNotFoundError as error:
        _fail(f"no such file: '{error.filename}'" if error.filename else str(error))


def _fail(text: str) -> None:
    console = _console(stderr=True)
    for line in text.splitlines():
        console.print(f"error: {line}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    # Without a terminal a table is as wide as it needs to be, so that it can be searched line by line.
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 240)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"alignment {alignment.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    one_round: Annotated[
        bool, typer.Option("--one-round", help="Finish the next round of an iterative recipe, and stop.")
    ] = False,
) -> None:
    """Train a policy by a recipe.

    \b
    Example: alignment train recipes/quickstart/dpo.yaml training.max_steps=20
    """
    if one_round:
        _run_stage(recipe, overrides, "train")
        return
    from alignment.config import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    _print_notes(loaded.notes)
    from alignment import loop

    loop.run(loaded.recipe)


@app.command()
def rollout(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Sample the answers of an iterative recipe's next round.

    With `judge` and `train --one-round` it makes a round of three processes, which need not share a machine's memory.

    \b
    Example: alignment rollout recipes/inpo/tiny.yaml
    """
    _run_stage(recipe, overrides, "rollout")


@app.command()
def judge(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Compare the answers that `rollout` sampled.

    \b
    Example: alignment judge recipes/inpo/tiny.yaml
    """
    _run_stage(recipe, overrides, "judge")


@app.command()
def annotate(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Store the log-probs of frozen policies (anchors.store: true).

    Of a data set, or of the answers of an iterative recipe's next round.

    \b
    Example: alignment annotate recipes/quickstart/dpo.yaml anchors.store=true
    """
    from alignment.config import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    _print_notes(loaded.notes)
    from alignment import loop

    loop.annotate(loaded.recipe)


def _run_stage(recipe: str, overrides: Sequence[str] | None, stage: "Stage") -> None:
    from alignment.config import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    _print_notes(loaded.notes)
    from alignment import loop

    loop.run_stage(loaded.recipe, stage)


@app.command()
def sft(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Fine-tune on demonstrations, or on preferred responses.

    \b
    Example: alignment sft recipes/sft/tiny_hh.yaml training.max_steps=10
    """
    from alignment.telemetry import silence_telemetry

    silence_telemetry()
    from alignment.config.fitting import load_sft_recipe

    loaded = load_sft_recipe(recipe, overrides or ())
    _print_notes(loaded.notes)
    from alignment.fitting import sft as command

    command.run(loaded.recipe)


@app.command()
def reward(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Train a Bradley-Terry reward model, or one for each group.

    `mixture: {groups: K}` in the recipe finds the groups among the annotators.

    \b
    Example: alignment reward recipes/reward/tiny_hh.yaml training.max_steps=10
    """
    from alignment.telemetry import silence_telemetry

    silence_telemetry()
    from alignment.config.fitting import load_reward_recipe

    loaded = load_reward_recipe(recipe, overrides or ())
    _print_notes(loaded.notes)
    from alignment.fitting import reward as command

    command.run(loaded.recipe)


@app.command()
def sample(
    run: RunArgument,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given again.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Prompts of any shape that recipes read. [default: the run's held-out ones]"),
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(metavar="text|user", help="What a prompt given as a string is. [default: as in the run's data]"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Answer the first so many. [default: all; 10 of held-out ones]")
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="Answers to a prompt.")] = 1,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="0 is greedy. [default: that of the recipe's evaluation, or 1]")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="The longest answer. [default: the recipe's; 256 without one]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed prints the same answers.")] = 0,
    against: Annotated[str | None, typer.Option(metavar="ref", help="Also print the reference's answers.")] = None,
    checkpoint: CheckpointOption = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write AlpacaEval's model_outputs.json, one answer a prompt.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print answers of a run's model, or of any other.

    \b
    Example: alignment sample runs/quickstart/dpo --prompt Hello --against ref
    """
    if role not in (None, "text", "user"):
        raise UserError(f"--role: expected text or user, got '{role}'")
    if against not in (None, "ref"):
        raise UserError(f"--against: expected ref, got '{against}'")
    if output is not None and num > 1:
        raise UserError(f"--num: expected 1 with --output, which holds one answer to a prompt, got {num}")
    import torch

    from alignment import sample as command
    from alignment.trained import find_model

    model = find_model(run, checkpoint=checkpoint)
    with _progress() as progress:
        answered = command.sample(
            model,
            command.Prompts(texts=prompt or (), file=prompts, role=role, limit=limit),
            num_completions=num,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            against_ref=against is not None,
            device="cuda" if torch.cuda.is_available() else "cpu",
            announce=lambda line: typer.echo(line, err=True),
            progress=_bars(progress),
        )
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        outputs = command.model_outputs(answered, model.name)
        output.write_text(json.dumps(outputs, indent=2, ensure_ascii=False) + "\n")
        typer.echo(f"wrote {output}", err=True)
    if as_json:
        typer.echo(json.dumps([item.to_json() for item in answered], indent=2, ensure_ascii=False))
    elif output is None:
        _print_answers(answered)


def _print_answers(answered: "Sequence[Answered]") -> None:
    from rich.text import Text

    console = _console()
    for item in answered:
        console.print(Text.assemble(("prompt  ", "bold"), item.prompt), soft_wrap=True)
        for label, style, texts in (
            ("answer  ", "bold green", item.answers),
            ("ref     ", "bold cyan", item.ref or ()),
        ):
            for text in texts:
                console.print(Text.assemble((label, style), text), soft_wrap=True)
        console.print()


@app.command()
def export(
    run: RunArgument,
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="The folder to write; made if missing.")],
    checkpoint: CheckpointOption = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="float32|bfloat16|float16", help="Of the weights. [default: the recipe's, or as stored]"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Write a run's model as one that loads anywhere.

    An adapter is merged into its base model.

    \b
    Example: alignment export runs/quickstart/dpo models/dpo --dtype bfloat16
    """
    from alignment import export as command
    from alignment.trained import find_model

    if dtype is not None and dtype not in command.DTYPES:
        raise UserError(f"--dtype: expected one of {', '.join(command.DTYPES)}, got '{dtype}'")
    model = find_model(run, checkpoint=checkpoint)
    with _progress() as progress:
        progress.add_task(f"export {model.name}", total=None)
        done = command.export(model, destination, dtype=dtype, force=force)
    typer.echo(done)


@app.command()
def evaluate(recipe: RecipeArgument, overrides: OverridesArgument = None, as_json: AsJson = False) -> None:
    """Answer prompts with policies, and judge the answers.

    Writes answers, annotations, figures with their intervals, a manifest and a page
    into output_dir. Killed and run again, it asks for nothing twice.

    \b
    Example: alignment evaluate recipes/evaluation/textgame.yaml
    """
    from alignment.telemetry import silence_telemetry

    silence_telemetry()
    from alignment.config.evaluation import load_evaluation_recipe

    loaded = load_evaluation_recipe(recipe, overrides or ())
    _print_notes(loaded.notes)
    from alignment import evaluate as command

    with _progress() as progress:
        found = command.evaluate(
            loaded.recipe, announce=lambda line: typer.echo(line, err=True), progress=_bars(progress)
        )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        _print_evaluation(found)
    typer.echo(f"wrote {found.folder}", err=True)


def _print_evaluation(found: "Evaluated") -> None:
    from rich.table import Table

    console = _console()
    columns = ("policy", "opponent", "win rate", "discrete", "wins", "losses", "draws", "unparsable", "length", "lc")
    table = Table(*columns, box=None, pad_edge=False)
    for cell in found.cells:
        lengths = f"{cell.length.mean:.0f} vs {cell.opponent_length.mean:.0f}"
        controlled = None if cell.length_controlled is None else cell.length_controlled["length_controlled_winrate"]
        counts = map(str, (cell.n_wins, cell.n_wins_base, cell.n_draws, cell.n_unparsable))
        rates = (cell.win_rate.describe(100, 1), cell.discrete_win_rate.describe(100, 1))
        table.add_row(cell.policy, cell.opponent, *rates, *counts, lengths, _shown(controlled))
    console.print(table, markup=False)
    for pair in found.comparisons:
        typer.echo(
            f"{pair.first} - {pair.second} against {pair.opponent}: {pair.difference.describe(100, 1)} points, "
            f"p {_shown(pair.p_value)}"
        )
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)


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
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Judgements: JSON, JSON lines or CSV, packed or not.")],
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
        str | None, typer.Option(metavar="NAME", help="AlpacaEval: which model, where the file does not say.")
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
        Path | None, typer.Option(metavar="FILE", help="AlpacaEval 2: the official set, where rows have no number.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="Arena-Hard, MT-Bench pairs: whom the models met.")
    ] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Arena-Hard: answers with style counts, for style control; may come again."),
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
    seed: Annotated[int | None, typer.Option(min=0, help="Of the bootstrap. [default: 0]")] = None,
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
    with _progress() as progress:
        found = scoring.score(kind, file, options, progress=_bars(progress))
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        _print_scores(found)


def _print_scores(found: "Scored") -> None:
    from rich.table import Table

    console = _console()
    console.print(f"{found.kind}, {found.variant}\n", markup=False, highlight=False)
    if found.summary:
        width = max(map(len, found.summary))
        for name, value in found.summary.items():
            typer.echo(f"{name:<{width}}  {_shown(value)}")
    if found.scores:
        table = Table(*found.scores[0], box=None, pad_edge=False)
        for row in found.scores:
            table.add_row(*map(_shown, row.values()))
        console.print(table, markup=False)
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)


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
        int | None, typer.Option(min=2, metavar="N", help="Print so many answers of the last RUN, best to worst.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a page about a run, or one that compares several.

    One HTML file with curves, win rates, answers and costs, of runs that have
    ended or not. No model is loaded.

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
    from rich.table import Table
    from rich.text import Text

    from alignment.report.comparison import columns

    headings, cells = columns(rows)
    table = Table(*headings, box=None, pad_edge=False)
    for row in cells:
        table.add_row(*map(Text, row))
    _console().print(table)


def _print_samples(samples: "Sequence[Sample]", count: int) -> None:
    from rich.text import Text

    from alignment.report.sections import spread

    console = _console()
    for sample in spread(samples, count) if count else ():
        console.print()
        for label, style, text in (
            ("prompt  ", "bold", sample.prompt),
            ("before  ", "bold cyan", sample.right),
            ("after   ", "bold green", f"{sample.left}  (better with probability {sample.win:.2f})"),
        ):
            console.print(Text.assemble((label, style), text), soft_wrap=True)


def _print_notes(notes: Sequence[str]) -> None:
    # Under a launcher every process comes here; one of them speaks.
    if os.environ.get("RANK", "0") == "0":
        for note in notes:
            typer.echo(f"note: {note}", err=True)


@app.command()
def doctor(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows whose token boundary is shown.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Examine a recipe before it is run.

    Looks at data, tokens, numbers and the reference, without loading weights.
    Prints the tokens around the end of the prompt; exits with 2 if a check fails.

    \b
    Example: alignment doctor recipes/quickstart/dpo.yaml
    """
    import dataclasses

    from alignment.config import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    _print_notes(loaded.notes)
    from alignment.doctor import examine

    examination = examine(loaded.recipe, num_rows=rows)
    if as_json:
        typer.echo(json.dumps({"is_sound": examination.is_sound, **dataclasses.asdict(examination)}, indent=2))
    else:
        _print_examination(examination)
    if not examination.is_sound:
        raise typer.Exit(2)


def _print_examination(examination: "Examination") -> None:
    from rich.text import Text

    console = _console()
    for boundary in examination.boundaries:
        line = Text(f"{boundary.source}  ")
        for tokens, end in ((boundary.prompt, " ‖ "), (boundary.completion, "")):
            for token in tokens:
                if token is None:
                    line.append(" … ")
                    continue
                line.append(f"[{token.id} {token.text!r}")
                line.append(f" {token.mark}" if token.mark else "", style="bold cyan")
                line.append("]")
            line.append(end, style="bold")
        console.print(line, soft_wrap=True)
    if examination.boundaries:
        legend = "[id 'text' mark]; ‖ is where the prompt ends and the loss begins\n"
        console.print(legend, markup=False, highlight=False)
    styles = {"ok": "green", "note": "yellow", "fail": "bold red"}
    for finding in examination.findings:
        line = Text.assemble((f"{finding.verdict:<4}", styles[finding.verdict]), f"  {finding.check}: {finding.text}")
        console.print(line, soft_wrap=True)


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

    And what an equilibrium could gain at most: circles against what noise shows, stochastic transitivity, the fit of
    Bradley-Terry; and tastes for position and length, and how far annotators agree.

    \b
    Example: alignment diagnose battles.jsonl "systems=[model_a, model_b]"
    """
    from alignment import comparisons as command

    report = command.diagnose(source, overrides or ())
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        _print_diagnosis(report)


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
        Path, typer.Option(metavar="DIR", help="Verdicts are kept here; a policy that is added meets those here.")
    ] = Path("runs/crossplay"),
    as_json: AsJson = False,
) -> None:
    """Let every policy meet every other, and rank them.

    Simultaneous intervals, ranks, Bradley-Terry, the maximal lottery, exploitability; pairs judged before are not asked
    again.

    \b
    Example: alignment crossplay a=a.json b=b.json --oracle judge.yaml
    """
    import torch

    from alignment import crossplay as command

    read, spec = command.read_policies(policies), command.read_oracle(oracle or ())
    with _progress() as progress:
        result = command.crossplay(
            read, spec, output, device="cuda" if torch.cuda.is_available() else "cpu", progress=_bars(progress)
        )
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2, ensure_ascii=False))
    else:
        _print_crossplay(result)
    typer.echo(f"wrote {output}", err=True)


def _print_crossplay(result: "CrossPlay") -> None:
    from rich.table import Table

    columns = ("policy", "mean win rate", "rank", "95 %", "Elo", "lottery", "exploitability")
    table = Table(*columns, box=None, pad_edge=False)
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
    matches = Table("match", "win rate", "p", "Holm", box=None, pad_edge=False)
    for match in result.tournament.matches:
        names = " against ".join(match.names)
        matches.add_row(names, match.win_rate.describe(), f"{match.p_value:.4f}", f"{match.adjusted:.4f}")
    _print_plain(table)
    _print_plain(matches)
    console = _console()
    for line in result.lines():
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _print_diagnosis(report: "Report") -> None:
    from alignment.comparisons import summary_lines

    console = _console()
    console.print(report.sentence, soft_wrap=True, markup=False, highlight=False)
    console.print()
    if report.ranks:
        _print_ranks(report.ranks)
    for line in summary_lines(report):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _print_ranks(ranks: "Sequence[Ranked]") -> None:
    from rich.table import Table

    table = Table("system", "mean win rate", "rank", "95 %", box=None, pad_edge=False)
    for item in sorted(ranks, key=lambda item: -item.score.mean):
        table.add_row(item.name, item.score.describe(), str(item.rank), f"{item.best} to {item.worst}")
    _print_plain(table)


def _print_plain(table: "Table") -> None:
    """Without blanks at the ends of lines, and with an empty line after it."""
    console = _console()
    with console.capture() as captured:
        console.print(table, markup=False, highlight=False)
    typer.echo("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


@app.command()
def methods(
    as_json: AsJson = False,
    cite: Annotated[str | None, typer.Option(metavar="NAME", help="Print the BibTeX entry of a method, only.")] = None,
) -> None:
    """List the methods.

    The columns: paper, schedule, what the loss needs, which exact answer it reaches, and where it runs.

    \b
    Example: alignment methods --cite inpo
    """
    from alignment.methods import load_card, method_names

    if cite is not None:
        card: Any = load_card(cite)
        typer.echo(card.paper.bibtex(cite))
        return
    described = [_describe_method(name) for name in method_names()]
    if as_json:
        typer.echo(json.dumps(described, indent=2))
        return
    from rich.table import Table

    table = Table("method", "paper", "schedule", "needs", "solution", "status", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for row in described:
        needs = f"{row['feedback']} | {', '.join(row['anchors']) or 'no anchor'} | {row['sampler']}"
        needs += "" if row["opponent"] == "none" else f" vs {row['opponent']}"
        paper = f"{row['title']} ({row['arxiv']})"
        table.add_row(row["name"], paper, row["schedule"], needs, row["solution"], row["status"])
    console = _console()
    console.print(table, markup=False)
    console.print("\nneeds: feedback | frozen log-probs | who samples vs whom. `--json` has the options.", markup=False)


def _describe_method(name: str) -> dict[str, Any]:
    from dataclasses import MISSING, fields
    from typing import get_type_hints

    from alignment.config import card_needs, card_solution, text_gap
    from alignment.methods import load_card

    card: Any = load_card(name)
    needs = card_needs(name)
    types = get_type_hints(card)
    options = [
        {
            "name": spec.name,
            "type": _type_name(types[spec.name]),
            # A missing "default" means that a recipe must set the option.
            **({} if spec.default is MISSING else {"default": spec.default}),
            "paper": spec.metadata["paper"],
        }
        for spec in fields(card)
    ]
    return {
        "name": name,
        "title": card.paper.title,
        "arxiv": card.paper.arxiv,
        "schedule": needs.schedule,
        "feedback": needs.feedback,
        "anchors": list(needs.anchor_columns()),
        "sampler": needs.sampler,
        "opponent": needs.opponent,
        "stages": needs.stages,
        "solution": card_solution(name),
        "status": "games + text" if text_gap(needs) is None else "games",
        "options": options,
    }


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


@app.command()
def game(
    methods: Annotated[str, typer.Option(help="Names with commas; NAME:loss runs a card's own loss.")],
    games: Annotated[str, typer.Option(help="random, cyclic or rps.")] = "random",
    tau: Annotated[float, typer.Option(help="KL strength towards the reference.")] = 0.1,
    lr: Annotated[
        float | None,
        typer.Option(help="Step size on logits.", show_default="0.1 at tau 0.1, 0.02 at 0.01, 2e-4 at 0.001"),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(min=1, help="Full iterations.", show_default="1000 at tau 0.1, 5000 at 0.01, 100000 at 0.001"),
    ] = None,
    seed: Annotated[str, typer.Option(help="Seeds of the random games, with commas.")] = "42",
    num_games: Annotated[int, typer.Option(min=1, help="Random games for each seed.")] = 10,
    num_actions: Annotated[int, typer.Option(min=2, help="Actions of a game.")] = 10,
    output_dir: Annotated[Path, typer.Option(help="Write gaps.json and gap.png here.")] = Path("runs/game"),
    as_json: AsJson = False,
) -> None:
    """Play methods on exact games.

    Prints the duality gap to the known equilibrium after the last iteration, in the protocol of 2503.08942.

    \b
    Example: alignment game --methods egpo,omd --tau 0.01
    """
    from alignment.protocol import run_protocol

    names, seeds = _list(methods, "--methods"), [_integer(item, "--seed") for item in _list(seed, "--seed")]
    with _progress() as progress:
        result = run_protocol(
            games=games,
            methods=names,
            tau=tau,
            lr=lr,
            iterations=iterations,
            seeds=seeds,
            num_games=num_games,
            num_actions=num_actions,
            progress=_bars(progress),
        )
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2))
    else:
        _print_gaps(result)
    for path in result.save(output_dir):
        typer.echo(f"wrote {path}", err=True)


def _list(text: str, option: str) -> list[str]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise UserError(f"{option}: expected a list with commas, got '{text}'")
    return items


def _integer(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{option}: expected integers with commas, got '{text}'") from error


def _progress() -> "AbstractContextManager[Progress]":
    from rich.progress import Progress

    return Progress(console=_console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def _bars(progress: "Progress") -> "Callable[[str, int, int], None]":
    """Moves a bar for each thing that is done."""
    tasks: dict[str, Any] = {}

    def report(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = progress.add_task(name, total=total)
        progress.update(tasks[name], completed=done)

    return report


def _print_gaps(result: "ProtocolResult") -> None:
    from rich.table import Table

    console = _console()
    table = Table("method", "median gap", "max gap", "gradients", "seconds", box=None, pad_edge=False)
    for row in result.rows:
        gradients = f"{row.gradients_per_iteration * result.iterations:,}"
        table.add_row(row.method, f"{row.median:.2e}", f"{row.maximum:.2e}", gradients, f"{row.seconds:.1f}")
    console.print(table)
    header = f"tau {result.tau:g}, lr {result.lr:g}, {result.iterations:,} iterations, step a = {result.step:g}"
    console.print(f"\n{header}; duality gap after the last iteration:", markup=False, highlight=False)
    by_game = Table("game", "start", "OMD stable below", "", box=None, pad_edge=False)
    for row in result.rows:
        by_game.add_column(row.method)
    for index, threshold in enumerate(result.omd_threshold_X.tolist()):
        verdict = "stable" if result.step < threshold else "unstable"
        final = [f"{row.final_gap_X[index].item():.2e}" for row in result.rows]
        by_game.add_row(str(index), f"{result.start_gap_X[index].item():.2e}", f"a = {threshold:.3g}", verdict, *final)
    console.print(by_game, markup=False)


@recipes_app.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """List the shipped recipes, with device and time.

    \b
    Example: alignment recipes list
    """
    from alignment.config import recipes_folder, shipped_recipes

    folder = recipes_folder()
    rows = [
        {"recipe": f"recipes/{path.as_posix()}", "measured": _second_line(folder / path)} for path in shipped_recipes()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    width = max(len(row["recipe"]) for row in rows)
    for row in rows:
        typer.echo(f"{row['recipe']:<{width}}  {row['measured']}")


def _second_line(path: Path) -> str:
    """A recipe opens with two comments: the command that runs it, then the device and the measured time."""
    return path.read_text(encoding="utf-8").splitlines()[1].lstrip("# ")


@recipes_app.command("copy")
def copy_recipes(
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="The folder to copy to; made if missing.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
) -> None:
    """Copy the shipped recipes into a folder, to edit them.

    \b
    Example: alignment recipes copy my-recipes
    """
    from alignment.config import recipes_folder

    folder = recipes_folder()
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    present = [name for name in names if (destination / name).exists()]
    if present and not force:
        more = f" and {len(present) - 1} more" if len(present) > 1 else ""
        raise UserError(f"{destination / present[0]}{more} would be overwritten; name another folder, or add --force")
    for name in names:
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, destination / name)
    typer.echo(f"copied {len(names)} files to {destination}")


if __name__ == "__main__":
    main()
