"""The page of an evaluation: who beat whom, by how much, and what it was made by."""

from collections.abc import Iterator, Sequence

from alignment.evaluation.certificates import Exploited
from alignment.evaluation.intervals import Estimate as Rate
from alignment.evaluation.matches import Cell, Match, PairedComparison
from alignment.report.blocks import (
    Bars,
    Block,
    Code,
    Estimate,
    Fact,
    Facts,
    Mark,
    Note,
    Page,
    Sample,
    Samples,
    Section,
    Table,
)
from alignment.report.sections import spread

_SHOWN = 6
_EVEN = Mark(value=0.5, label="even")


def evaluation_page(
    name: str,
    cells: Sequence[Cell],
    comparisons: Sequence[PairedComparison],
    matches: Sequence[Match],
    certificates: Sequence[Exploited],
    *,
    prompts: Sequence[str],
    notes: Sequence[str],
    manifest: str,
) -> Page:
    """The page.

    Args:
        name: of the evaluation.
        cells: figures of each policy against each opponent.
        comparisons: of two policies against the same opponent.
        matches: the answers and verdicts behind the cells, in their order.
        certificates: lower bounds on exploitabilities.
        prompts: what was asked.
        notes: what a reader of the figures must know.
        manifest: what the figures were made by.
    """
    sections = [
        Section(title="Win rates", blocks=list(_overview(cells))),
        Section(title="Exploitability", blocks=list(_bounds(certificates))),
        Section(title="Notes", blocks=[Note(text=note) for note in notes]),
        Section(title="Policies compared", blocks=list(_comparisons(comparisons))),
        Section(title="Length", blocks=list(_lengths(cells))),
        Section(title="Categories and groups", blocks=list(_parts(cells))),
        Section(title="Answers", blocks=[_samples(match, prompts) for match in matches]),
        Section(title="Made by", blocks=[Code(title="manifest.json", text=manifest, folded=True)]),
    ]
    opponents = ", ".join(dict.fromkeys(found.opponent for found in cells))
    against = f" against {opponents}" if cells else ""
    return Page(
        title=name,
        kind="Evaluation",
        lead=f"{len(prompts):,} prompts{against}; intervals of 95 %, the unit is the prompt",
        sections=[section for section in sections if section.blocks],
    )


def _overview(cells: Sequence[Cell]) -> Iterator[Block]:
    if not cells:
        return
    best = max(cells, key=lambda found: found.win_rate.mean)
    has_one_opponent = len({found.opponent for found in cells}) == 1
    yield Facts(
        facts=[
            Fact(
                label=f"{best.policy} against {best.opponent}",
                value=f"{100 * best.win_rate.mean:.1f} %",
                note=f"{best.win_rate.describe(100, 1).partition(' ')[2]}",
            ),
            Fact(label="prompts", value=f"{best.win_rate.num_prompts:,}"),
            Fact(label="unparsable verdicts", value=f"{sum(found.n_unparsable for found in cells):,}"),
        ]
    )
    yield Bars(
        title=f"Win rate against {best.opponent}" if has_one_opponent else "Win rate",
        groups=[(found.policy if has_one_opponent else _label(found), [_estimate(found.win_rate)]) for found in cells],
        names=["win rate"],
        caption="Mean probability that the policy's answer is preferred; a draw is one half.",
        upright=[_EVEN],
        end=1.0,
    )
    yield Table(
        title="Figures",
        columns=["policy", "opponent", "win rate, %", "discrete, %", "wins", "losses", "draws", "same", "unparsable"],
        rows=[
            [
                found.policy,
                found.opponent,
                found.win_rate.describe(100, 1),
                found.discrete_win_rate.describe(100, 1),
                float(found.n_wins),
                float(found.n_wins_base),
                float(found.n_draws),
                float(found.n_identical),
                float(found.n_unparsable),
            ]
            for found in cells
        ],
        caption="Same: equal answers, which nobody is asked about. Unparsable: replies of the judge without a verdict.",
    )


def _bounds(certificates: Sequence[Exploited]) -> Iterator[Block]:
    if not certificates:
        return
    yield Bars(
        title="Won by the adversary, above one half",
        groups=[(_attack(found), [_won(found)]) for found in certificates],
        names=["exploitability"],
        caption="What the adversary has shown: the policy's exploitability is not below it.",
        end=0.5,
    )
    yield Table(
        title="Lower bounds, points of 50",
        columns=["policy", "adversary", "at least", "shown", "best of", "judgements", "training verdicts"],
        rows=[
            [
                found.policy,
                found.adversary,
                f"{100.0 * found.certificate.bound:.1f}",
                found.certificate.exploitability.describe(100, 1),
                None if found.best_of is None else float(found.best_of),
                float(found.certificate.num_judgements),
                None if found.training_verdicts is None else float(found.training_verdicts),
            ]
            for found in certificates
        ],
        caption="At least: wrong with 5 % at most, over prompts. Nobody has shown that more is out of reach.",
    )


def _attack(found: Exploited) -> str:
    chosen = None if found.best_of is None else f"best of {found.best_of}"
    attacker = None if found.adversary == found.policy else found.adversary
    return ", ".join(part for part in (found.policy, attacker, chosen) if part)


def _won(found: Exploited) -> Estimate:
    shown = found.certificate.exploitability
    return Estimate(value=max(0.0, shown.mean), low=max(0.0, shown.low), high=max(0.0, shown.high))


def _comparisons(comparisons: Sequence[PairedComparison]) -> Iterator[Block]:
    if comparisons:
        yield Table(
            title="",
            columns=["first", "second", "against", "difference of win rates, points", "p"],
            rows=[
                [found.first, found.second, found.opponent, found.difference.describe(100, 1), found.p_value]
                for found in comparisons
            ],
            caption="Paired by prompt: what a prompt does to both cancels. p: of no difference, by Holm for all rows.",
        )


def _lengths(cells: Sequence[Cell]) -> Iterator[Block]:
    if not cells:
        return
    yield Table(
        title="",
        columns=["policy", "opponent", "characters", "opponent's characters", "win rate at equal length, %", "variant"],
        rows=[
            [
                found.policy,
                found.opponent,
                found.length.mean,
                found.opponent_length.mean,
                _controlled(found),
                None if found.length_controlled is None else str(found.length_controlled["variant"]),
            ]
            for found in cells
        ],
    )


def _controlled(found: Cell) -> str | None:
    figures = found.length_controlled
    if figures is None:
        return None
    rate = f"{figures['length_controlled_winrate']:.1f}"
    if "lc_low" not in figures:
        return rate
    if figures["lc_low"] is None:
        return f"{rate} (no interval: all verdicts agree)"
    return f"{rate} [{figures['lc_low']:.1f}, {figures['lc_high']:.1f}]"


def _parts(cells: Sequence[Cell]) -> Iterator[Block]:
    for found in cells:
        for what, rates in (("category", found.categories), ("group", found.groups)):
            if rates:
                lowest = ""
                if what == "group" and found.worst_group is not None:
                    name, rate = found.worst_group
                    lowest = f" Lowest: {name}, {rate.describe(100, 1)} %."
                yield Bars(
                    title=f"{_label(found)}, by {what}",
                    groups=[(name, [_estimate(rate)]) for name, rate in rates.items()],
                    names=["win rate"],
                    caption=f"All these intervals hold at once with 95 %.{lowest}",
                    upright=[_EVEN],
                    end=1.0,
                )


def _samples(match: Match, prompts: Sequence[str]) -> Samples:
    met = [
        Sample(
            prompt=str(prompt),
            left=ours[0],
            right=theirs[0],
            win=float(wins_GK[0].mean()),
            members=list(zip(match.members, wins_GK[0].tolist(), strict=False)) if match.members else [],
        )
        for prompt, ours, theirs, wins_GK in zip(prompts, match.ours, match.theirs, match.wins_PGK, strict=True)
    ]
    return Samples(
        title=f"{match.policy} vs {match.opponent}",
        left=match.policy,
        right=match.opponent,
        samples=spread(met, _SHOWN),
        caption="From the clearest win to the clearest loss.",
    )


def _label(found: Cell) -> str:
    return f"{found.policy} vs {found.opponent}"


def _estimate(rate: Rate) -> Estimate:
    return Estimate(value=rate.mean, low=rate.low, high=rate.high)
