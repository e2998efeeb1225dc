"""Commands about the methods themselves, and their play on exact games."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignment.cli.app import app
from alignment.cli.arguments import AsJson, read_integer, split_list
from alignment.cli.printing import bars, open_console, plain_table, progress_bar

if TYPE_CHECKING:
    from alignment.protocol import ProtocolResult


@app.command()
def methods(
    as_json: AsJson = False,
    cite: Annotated[str | None, typer.Option(metavar="NAME", help="Print only the BibTeX entry of a method.")] = None,
) -> None:
    """List the methods.

    The columns: paper, schedule, what the loss needs, which exact answer it reaches, and where it runs. Their words are
    explained in docs/methods/README.md.

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
    table = plain_table("method", "paper", "schedule", "needs", "solution", "status")
    table.columns[0].no_wrap = True
    for row in described:
        needs = f"{row['feedback']} | {', '.join(row['anchors']) or 'no anchor'} | {row['sampler']}"
        needs += "" if row["opponent"] == "none" else f" vs {row['opponent']}"
        paper = f"{row['title']} ({row['arxiv']})"
        table.add_row(row["name"], paper, row["schedule"], needs, row["solution"], row["status"])
    open_console().print(table)
    typer.echo("\nneeds: feedback | frozen log-probs | who samples vs whom. `--json` has the options.")


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
    methods: Annotated[
        str,
        typer.Option(
            help="Names with commas; inpo, nash_md and nash_mp play their exact update, NAME:loss their loss."
        ),
    ],
    games: Annotated[str, typer.Option(help="random, cyclic or rps (rock, paper, scissors).")] = "random",
    tau: Annotated[float, typer.Option(help="KL strength towards the reference.")] = 0.1,
    lr: Annotated[
        float | None,
        typer.Option(help="Step size on logits.", show_default="0.1 at tau 0.1, 0.02 at 0.01, 2e-4 at 0.001"),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Iterations, of both stages where there are two.",
            show_default="1000 at tau 0.1, 5000 at 0.01, 100000 at 0.001",
        ),
    ] = None,
    seed: Annotated[str, typer.Option(help="Seeds of the random games, with commas.")] = "42",
    num_games: Annotated[int, typer.Option(min=1, help="Random games for each seed.")] = 10,
    num_actions: Annotated[int, typer.Option(min=2, help="Actions of a game.")] = 10,
    output_dir: Annotated[Path, typer.Option(help="Write gaps.json and gap.png here.")] = Path("runs/game"),
    as_json: AsJson = False,
) -> None:
    """Play methods on exact games.

    Prints the duality gap (0 at the equilibrium) after the last iteration, in the protocol of 2503.08942, and on which
    games one-step mirror descent (omd) is unstable.

    \b
    Example: alignment game --methods egpo,omd --tau 0.01
    """
    from alignment.protocol import run_protocol

    names, seeds = (
        split_list(methods, "--methods"),
        [read_integer(item, "--seed") for item in split_list(seed, "--seed")],
    )
    with progress_bar() as progress:
        result = run_protocol(
            games=games,
            methods=names,
            tau=tau,
            lr=lr,
            iterations=iterations,
            seeds=seeds,
            num_games=num_games,
            num_actions=num_actions,
            progress=bars(progress),
        )
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2))
    else:
        _print_gaps(result)
    for path in result.save(output_dir):
        typer.echo(f"wrote {path}", err=True)


def _print_gaps(result: "ProtocolResult") -> None:
    console = open_console()
    table = plain_table("method", "median gap", "max gap", "gradients", "seconds")
    for row in result.rows:
        gradients = f"{row.gradients_per_iteration * result.iterations:,}"
        table.add_row(row.method, f"{row.median:.2e}", f"{row.maximum:.2e}", gradients, f"{row.seconds:.1f}")
    console.print(table)
    header = f"tau {result.tau:g}, lr {result.lr:g}, {result.iterations:,} iterations, step a = {result.step:g}"
    typer.echo(f"\n{header}; duality gap after the last iteration:")
    by_game = plain_table("game", "start", "OMD stable below", "")
    for row in result.rows:
        by_game.add_column(row.method)
    for index, threshold in enumerate(result.omd_threshold_X.tolist()):
        verdict = "stable" if result.step < threshold else "unstable"
        final = [f"{row.final_gap_X[index].item():.2e}" for row in result.rows]
        by_game.add_row(str(index), f"{result.start_gap_X[index].item():.2e}", f"a = {threshold:.3g}", verdict, *final)
    console.print(by_game)
