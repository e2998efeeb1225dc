"""Commands on a trained model: its answers, its weights."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignment.cli.app import app
from alignment.cli.arguments import AsJson, CheckpointOption, RunArgument
from alignment.cli.printing import bars, open_console, progress_bar
from alignment.errors import UserError

if TYPE_CHECKING:
    from alignment.sample import Answered


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
        typer.Option(
            metavar="text|user",
            help="A prompt is raw text, or the user's turn of a chat. [default: as in the run's data]",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Answer the first N prompts. [default: all; of held-out ones 10]"),
    ] = None,
    num: Annotated[int, typer.Option(min=1, metavar="N", help="Answers to each prompt.")] = 1,
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="T", help="0 is greedy. [default: that of the recipe's evaluation, or 1]"),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens of an answer, at most. [default: the recipe's; 256 without one]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same model and seed print the same answers.")] = 0,
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
    with progress_bar() as progress:
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
            progress=bars(progress),
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

    console = open_console()
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
        typer.Option(
            metavar="float32|bfloat16|float16", help="Type of the weights. [default: the recipe's, or as stored]"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Write a run's model as one that loads anywhere.

    An adapter is merged into its base model.

    \b
    Example: alignment export runs/quickstart/dpo models/dpo --dtype bfloat16
    """
    from alignment import export as command
    from alignment.models import DTYPES
    from alignment.trained import find_model

    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype: expected one of {', '.join(DTYPES)}, got '{dtype}'")
    model = find_model(run, checkpoint=checkpoint)
    with progress_bar() as progress:
        progress.add_task(f"export {model.name}", total=None)
        done = command.export(model, destination, dtype=dtype, force=force)
    typer.echo(done)
