"""Commands that train a policy or a model, stage by stage or whole, and the one that looks before."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from alignment.cli.app import app
from alignment.cli.arguments import AsJson, OverridesArgument, RecipeArgument
from alignment.cli.printing import bars, open_console, plain_table, print_notes, print_plain, progress_bar
from alignment.errors import UserError

if TYPE_CHECKING:
    from alignment.config import Recipe
    from alignment.doctor import Examination
    from alignment.evaluation.ablations import Ablated
    from alignment.iterative import Stage
    from alignment.planning import Plan


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    one_round: Annotated[
        bool, typer.Option("--one-round", help="Do what the next round of an iterative recipe lacks, and stop.")
    ] = False,
) -> None:
    """Train a policy by a recipe.

    \b
    Example: alignment train recipes/quickstart/ipo.yaml training.max_steps=20
    """
    if one_round:
        _run_stage(recipe, overrides, "train")
        return
    checked = _load(recipe, overrides)
    from alignment import loop

    loop.run(checked)


@app.command()
def rollout(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Sample the answers of an iterative recipe's next round.

    `rollout`, `judge` and `train --one-round` make a round in three processes, which may run on different machines.

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

    On a data set, or on the answers of an iterative recipe's next round.

    \b
    Example: alignment annotate recipes/dpo/tiny.yaml anchors.store=true
    """
    checked = _load(recipe, overrides)
    from alignment import loop

    loop.annotate(checked)


def _run_stage(recipe: str, overrides: Sequence[str] | None, stage: "Stage") -> None:
    checked = _load(recipe, overrides)
    from alignment import loop

    loop.run_stage(checked, stage)


def _load(recipe: str, overrides: Sequence[str] | None) -> "Recipe":
    """Before what runs it is imported, which takes seconds: a mistake is shown at once."""
    from alignment.config import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    print_notes(loaded.notes)
    return loaded.recipe


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
    print_notes(loaded.notes)
    from alignment.fitting import sft as command

    command.run(loaded.recipe)


@app.command()
def reward(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Train a Bradley-Terry reward model, or one for each group.

    With `mixture: {groups: K}` in the recipe the groups are found among the annotators.

    \b
    Example: alignment reward recipes/reward/tiny_hh.yaml training.max_steps=10
    """
    from alignment.telemetry import silence_telemetry

    silence_telemetry()
    from alignment.config.fitting import load_reward_recipe

    loaded = load_reward_recipe(recipe, overrides or ())
    print_notes(loaded.notes)
    from alignment.fitting import reward as command

    command.run(loaded.recipe)


@app.command()
def ablate(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Cells that run at the same time.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Compare settings over seeds, at the same budget.

    Each cell, a setting with a seed, is a run by accelerate launch. Writes tables,
    figures and a page into output_dir; killed and run again, it repeats no finished
    cell. Exits with 1 if a cell failed.

    \b
    Example: alignment ablate recipes/ablations/methods_equal_budget.yaml --jobs 2
    """
    from alignment.config.ablation import load_ablation

    loaded = load_ablation(recipe, overrides or ())
    print_notes(loaded.notes)
    from alignment import ablation as command

    with progress_bar() as progress:
        found = command.ablate(
            loaded, jobs=jobs, announce=lambda line: typer.echo(line, err=True), progress=bars(progress)
        )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        _print_ablation(found)
    typer.echo(f"wrote {loaded.recipe.output_dir}", err=True)
    if found.failed:
        raise typer.Exit(1)


def _print_ablation(found: "Ablated") -> None:
    from alignment.report.ablation import comparisons_table, tuning_table, variants_table

    for headings, rows in (tuning_table(found), variants_table(found), comparisons_table(found)):
        if rows:
            table = plain_table(*headings)
            for row in rows:
                table.add_row(*row)
            print_plain(table)
    print_notes(found.notes)


@app.command()
def doctor(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows to show, with their tokens around the boundary.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Examine a recipe before it is run.

    Looks for faults that train without an error: in data, tokens, numbers and the
    reference. Loads no weights. Prints the tokens around the end of the prompt; exits
    with 2 if a check fails.

    \b
    Example: alignment doctor recipes/quickstart/dpo.yaml
    """
    import dataclasses

    checked = _load(recipe, overrides)
    from alignment.doctor import examine

    examination = examine(checked, num_rows=rows)
    if as_json:
        typer.echo(json.dumps({"is_sound": examination.is_sound, **dataclasses.asdict(examination)}, indent=2))
    else:
        _print_examination(examination)
    if not examination.is_sound:
        raise typer.Exit(2)


def _print_examination(examination: "Examination") -> None:
    from rich.text import Text

    console = open_console()
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
        typer.echo(legend)
    styles = {"ok": "green", "note": "yellow", "fail": "bold red"}
    for finding in examination.findings:
        line = Text.assemble((f"{finding.verdict:<4}", styles[finding.verdict]), f"  {finding.check}: {finding.text}")
        console.print(line, soft_wrap=True)


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    accelerate: Annotated[
        str | None, typer.Option(metavar="FILE", help="Configuration of accelerate launch. [default: one process]")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Processes, each with a device. [default: as in --accelerate]"),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="80GB", help="Memory of a device: says if the run fits.")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(metavar="X", help="10^12 operations a second that a device sustains; adds hours.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Training rows, if the data are elsewhere.")
    ] = None,
    responses: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Responses of a prompt, if the data are elsewhere.")
    ] = None,
    config_of: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Folder with the config.json of the policy's model, if it is elsewhere."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate memory, tokens, questions and time.

    Loads no weights, fetches nothing, asks no oracle. The formulas that it prints are explained in docs/scaling.md.

    \b
    Example: alignment plan recipes/dpo/tiny.yaml --memory 80GB
    """
    from alignment.config.launch import read_launch

    checked = _load(recipe, overrides)
    device = None if memory is None else _read_memory(memory)
    if tflops is not None and not 0 < tflops < math.inf:
        raise UserError(f"--tflops: expected a number above 0, got {tflops:g}")
    from alignment import planning

    found = planning.plan(
        checked,
        read_launch(accelerate, processes),
        config_of=config_of,
        rows=rows,
        responses=responses,
        memory=device,
    )
    if as_json:
        typer.echo(json.dumps(found.to_json(memory=device, tflops=tflops), indent=2))
    else:
        _print_plan(found, device, tflops)


_UNITS = {"GB": 10**9, "GiB": 2**30}


def _read_memory(text: str) -> int:
    number = text.rstrip("GiB")
    unit = text.removeprefix(number)
    try:
        size = float(number) * _UNITS[unit]
    except (KeyError, ValueError):
        size = math.nan
    if not 0 < size < math.inf:
        raise UserError(f"--memory: expected a number of GB or GiB, such as 80GB, got '{text}'")
    return int(size)


def _print_plan(found: "Plan", memory: int | None, tflops: float | None) -> None:
    unit, scale = ("GB", 1e9) if found.peak >= 1e9 else ("MB", 1e6)

    def size(count: float) -> str:
        return f"{count / scale:,.2f}" if count else ""

    typer.echo(f"{found.model}: {found.parameters:,} parameters, {found.trained:,} trained; {found.launch.describe()}")
    samples = any(line.sampling for line in found.lines)
    table = plain_table(f"\n{unit} of a device", "\ntraining", *(["\nsampling"] if samples else []))
    table.add_column("")
    for line in (*found.lines, found.total):
        sizes = (line.training, line.sampling) if samples else (line.training,)
        table.add_row(line.name, *map(size, sizes), line.formula)
    print_plain(table)
    if memory is not None:
        verdict = "it fits" if found.peak <= memory else "it does not fit"
        typer.echo(f"{verdict}: {size(found.peak)} of {size(memory)} {unit}, without what CUDA itself takes")
    table = plain_table("\nof the whole run", "")
    for name, text in _sums(found, tflops):
        table.add_row(name, text)
    print_plain(table)
    print_notes(found.notes)


def _sums(found: "Plan", tflops: float | None) -> Iterator[tuple[str, str]]:
    work = found.work
    counts = {
        "rows that are trained on": found.rows,
        "optimizer steps": work.optimizer_steps,
        "tokens trained on": work.trained_tokens,
        "  of them of responses": work.scored_tokens,
        "tokens sampled, at most": work.sampled_tokens,
        "verdicts in the data": work.verdicts,
        "questions to the oracle": work.questions,
        "requests to judges": work.requests,
        "their price, at most": None if work.money is None else round(work.money, 2),
        "10^15 operations: training": _peta(work.training_flops),
        "  frozen policies": _peta(work.frozen_flops),
        "  sampling": _peta(work.sampling_flops),
    }
    for name, count in counts.items():
        if count != 0:
            yield name, "unknown" if count is None else f"{count:,.15g}"
    if tflops is not None:
        hours = found.hours(tflops)
        yield f"hours at {tflops:g} x 10^12 a second", "unknown" if hours is None else f"{hours:,.2f}"


def _peta(operations: float | None) -> float | None:
    """In 10^15, to three digits."""
    return None if operations is None else float(f"{operations / 1e15:.3g}")
