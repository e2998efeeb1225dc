"""The page of a cross-play: who beats whom, how the policies rank, and whether they go in circles."""

from collections.abc import Iterator, Sequence

from alignment.evaluation.cycles import Diagnosis
from alignment.evaluation.tournament import Match, Standing, Tournament
from alignment.report.blocks import Bars, Block, Code, Estimate, Fact, Facts, Matrix, Note, Page, Section, Table


def crossplay_page(name: str, tournament: Tournament, *, num_prompts: int, lines: Sequence[str], oracle: str) -> Page:
    """The page.

    Args:
        name: of the cross-play.
        tournament: the analysis.
        num_prompts: shared by all policies.
        lines: what the command says below its tables.
        oracle: who judged.
    """
    standings = sorted(tournament.standings, key=lambda item: -item.ranked.score.mean)
    return Page(
        title=name,
        kind="Cross-play",
        lead=f"{len(standings)} policies on {num_prompts:,} prompts, judged by {oracle}; intervals of 95 %",
        sections=[
            Section(title="Standings", blocks=list(_standings(standings, tournament))),
            Section(title="Who beats whom", blocks=[_matrix(tournament.table), _matches(tournament.matches)]),
            Section(title="Circles", blocks=[Code(title="What the table says", text="\n".join(lines))]),
        ],
    )


def _standings(standings: Sequence[Standing], tournament: Tournament) -> Iterator[Block]:
    first = standings[0]
    lottery = max(standings, key=lambda item: item.weight)
    gain = tournament.table.gain
    yield Facts(
        facts=[
            Fact(
                label="highest mean win rate",
                value=first.name,
                note=f"{first.ranked.score.describe()}, rank {first.ranked.best} to {first.ranked.worst}",
            ),
            Fact(
                label="most of the maximal lottery",
                value=lottery.name,
                note=f"{lottery.weight:.3f}; nobody beats the lottery by more than "
                f"{100 * tournament.lottery_exploitability.high:.1f} points",
            ),
            Fact(
                label="an equilibrium can gain",
                value=f"{100 * gain.mean:.1f} points",
                note=f"{100 * gain.low:.1f} to {100 * gain.high:.1f} of 50",
            ),
        ]
    )
    yield Note(text=tournament.table.sentence)
    yield Bars(
        title="Mean win rate against the others",
        groups=[
            (
                item.name,
                [Estimate(value=item.ranked.score.mean, low=item.ranked.score.low, high=item.ranked.score.high)],
            )
            for item in standings
        ],
        names=["mean win rate"],
        end=1.0,
    )
    yield Table(
        title="Ranks and solution concepts",
        columns=["policy", "rank", "95 %", "Elo", "lottery", "exploitability"],
        rows=[
            [
                item.name,
                float(item.ranked.rank),
                f"{item.ranked.best} to {item.ranked.worst}",
                "infinite" if item.elo is None else item.elo.describe(digits=0),
                item.weight,
                item.exploitability.describe(),
            ]
            for item in standings
        ],
        caption="Lottery: the weight in the mixture that no policy beats. Exploitability: by how much its worst "
        "opponent's win rate exceeds one half.",
    )


def _matrix(table: Diagnosis) -> Matrix:
    names = table.matrix.names
    return Matrix(
        title="Win rates",
        corner="row against column",
        rows=names,
        columns=names,
        cells=[
            [
                None
                if i == j
                else Estimate(
                    value=float(table.matrix.wins_KK[i, j]),
                    low=float(table.low_KK[i, j]),
                    high=float(table.high_KK[i, j]),
                )
                for j in range(len(names))
            ]
            for i in range(len(names))
        ],
        caption="All intervals hold at once with 95 %; ▲ and ▼: the whole interval lies on one side of one half.",
    )


def _matches(matches: Sequence[Match]) -> Table:
    return Table(
        title="Matches",
        columns=["first", "second", "win rate of the first", "p", "Holm"],
        rows=[
            [*match.names, match.win_rate.describe(), f"{match.p_value:.4f}", f"{match.adjusted:.4f}"]
            for match in matches
        ],
        caption="Each with an interval of its own. p: of no difference; Holm: corrected for all matches.",
    )
