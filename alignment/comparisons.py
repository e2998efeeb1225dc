"""``alignment diagnose``: from files, data blocks and known tables to what they say about order and circles."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field

from alignment.config import DataSource
from alignment.config.compose import apply_overrides, compose
from alignment.config.problems import check_block
from alignment.data import Row, prompt_text, read_battles
from alignment.errors import UserError
from alignment.evaluation.cycles import Diagnosis, diagnose_matrix
from alignment.evaluation.intervals import Estimate
from alignment.evaluation.judgements import (
    Agreement,
    Judgement,
    agreements,
    longer_rate,
    majority,
    position_rate,
    prompt_tables,
    systems_matrix,
)
from alignment.evaluation.prompt_cycles import GamesDiagnosis, PromptDiagnosis, diagnose_games, diagnose_prompts
from alignment.evaluation.win_matrix import Ranked, counted_matrix, exact_matrix, rank_intervals
from alignment.oracles import build_oracle, check_oracle, preference_matrix
from alignment.preparation import read_source

Tree = Mapping[str, Any]

_READ_WITH_SYSTEMS = ("path", "columns", "labels", "limit", "systems", "separator")


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class ComparisonSource(DataSource):
    """A source of comparisons: the keys of a recipe's source, and who wrote what.

    Attributes:
        systems: the columns that name the systems, or one that holds both names; ``None``: responses are compared, and
            each prompt is a game of its own.
        separator: between two names in one column.
    """

    systems: Annotated[str | tuple[str, ...] | None, BeforeValidator(_listed)] = None
    separator: str = Field(default="_", min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What comparisons say.

    Attributes:
        source: what was read.
        num_judgements: verdicts, of all annotators.
        num_prompts: prompts that they are about.
        systems: of the table of systems, by the majority of annotators; ``None`` where nothing names systems.
        ranks: of the systems.
        energy_by_annotator: cyclic energy of each annotator's own table, where there are several.
        prompts: of the responses of each prompt.
        agreement: of every two annotators.
        first_wins: how often the item that is listed first wins; ``None`` where the order says nothing.
        longer_wins: how often the longer text wins.
        notes: what the reader should know.
    """

    source: str
    num_judgements: int
    num_prompts: int
    systems: Diagnosis | None = None
    ranks: tuple[Ranked, ...] = ()
    energy_by_annotator: Mapping[str, float] = field(default_factory=dict)
    prompts: PromptDiagnosis | GamesDiagnosis | None = None
    agreement: tuple[Agreement, ...] = ()
    first_wins: Estimate | None = None
    longer_wins: Estimate | None = None
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """Can a method that looks for an equilibrium help here, and how much at most."""
        found = self.systems if self.systems is not None else self.prompts
        if found is None:
            return (
                "Nothing can be said about a Nash method: every row is one judge's order of its responses, which goes "
                "in no circle, whatever the judge's preferences do."
            )
        return found.sentence

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers that JSON cannot hold become null."""
        tree: dict[str, Any] = {
            "source": self.source,
            "sentence": self.sentence,
            "num_judgements": self.num_judgements,
            "num_prompts": self.num_prompts,
            "notes": self.notes,
            "agreement": [asdict(item) for item in self.agreement],
            "first_wins": None if self.first_wins is None else asdict(self.first_wins),
            "longer_wins": None if self.longer_wins is None else asdict(self.longer_wins),
            "systems": None if self.systems is None else describe_table(self.systems),
            "ranks": [asdict(item) for item in self.ranks],
            "energy_by_annotator": dict(self.energy_by_annotator),
            "prompts": None if self.prompts is None else {"kind": self.prompts.kind, **asdict(self.prompts)},
        }
        return dict(plain(tree))


def describe_table(found: Diagnosis) -> dict[str, Any]:
    """A diagnosis of a table as a tree."""
    lottery = None if found.lottery is None else dict(zip(found.matrix.names, found.lottery.weights_K, strict=True))
    return {
        "kind": found.kind,
        "names": found.matrix.names,
        "wins": found.matrix.wins_KK,
        "low": found.low_KK,
        "high": found.high_KK,
        "counts": None if found.matrix.is_exact else found.matrix.counts_KK,
        "circles": [asdict(circle) for circle in found.circles],
        "num_triples": found.num_triples,
        "circles_by_chance": found.circles_by_chance,
        "circles_p_value": found.circles_p_value,
        "is_cyclic": found.is_cyclic,
        "consistence": found.consistence,
        "transitivity": asdict(found.transitivity),
        "hodge": None if found.hodge is None else asdict(found.hodge),
        "hodge_margins": asdict(found.hodge_margins),
        "cyclic_energy": None if found.cyclic_energy is None else asdict(found.cyclic_energy),
        "discs": found.discs,
        "bradley_terry": asdict(found.fit),
        "lottery": lottery,
        "best": found.best,
        "challenger": found.challenger,
        "gain": asdict(found.gain),
    }


def plain(value: Any) -> Any:
    """A tree of what JSON can hold: arrays become lists, nan and infinities null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summary_lines(report: Report) -> list[str]:
    """What the numbers are, a line each."""
    lines = [f"{report.num_judgements:,} verdicts on {report.num_prompts:,} prompts"] if report.num_judgements else []
    if report.systems is not None:
        lines += table_lines(report.systems)
    if report.energy_by_annotator:
        shares = ", ".join(f"{name} {100.0 * share:.1f} %" for name, share in report.energy_by_annotator.items())
        lines.append(f"cyclic energy by annotator: {shares}")
    lines += [
        f"agreement of {one} and {other}: {item.share:.3f} of {item.num_pairs:,} pairs, kappa {item.kappa:.3f}"
        for item in report.agreement
        for one, other in [item.annotators]
    ]
    if report.first_wins is not None:
        lines.append(f"listed first wins: {report.first_wins.describe()} (1/2: no taste for a position)")
    if report.longer_wins is not None:
        lines.append(f"longer wins: {report.longer_wins.describe()} (1/2: no taste for length)")
    return [*lines, *(f"note: {note}" for note in report.notes)]


def table_lines(found: Diagnosis) -> list[str]:
    """A diagnosis of a table, a line for each measure."""
    broken = found.transitivity
    lines = [
        f"circles: {len(found.circles)} of {found.num_triples} triples; noise around Bradley-Terry shows "
        f"{found.circles_by_chance:.2f} on average, and as many with probability {found.circles_p_value:.3f}",
        *(
            f"  {' > '.join((*circle.names, circle.names[0]))}: in {circle.frequency:.0%} of tables drawn around this"
            f"{', surely' if circle.is_certain else ''}"
            for circle in found.circles
        ),
        f"stochastic transitivity, broken by {broken.num_chains} chains: weak {broken.weak:.1%}, moderate "
        f"{broken.moderate:.1%}, strong {broken.strong:.1%}",
    ]
    if found.hodge is not None and found.cyclic_energy is not None:
        lines.append(
            f"logits: gradient {found.hodge.gradient:.1%}, curl {found.hodge.curl:.1%}, harmonic "
            f"{found.hodge.harmonic:.1%}; cyclic energy {found.cyclic_energy.describe(100.0, 1)} %"
        )
    else:
        lines.append(
            f"P - 1/2: cyclic energy {found.hodge_margins.cyclic:.1%}; a known probability of 0 or 1 has no logit"
        )
    if found.discs is not None:
        lines.append(f"discs: {', '.join(f'{share:.1%}' for share in found.discs) or 'none'}")
    fit = found.fit
    statistic = "" if fit.g2 is None else f"G2 {fit.g2:.2f} on {fit.degrees} degrees of freedom, p {fit.p_value:.3f}, "
    lines.append(
        f"Bradley-Terry: {statistic}largest error of a cell {fit.max_error:.3f}"
        f"{'' if fit.is_finite else ', some strengths infinite'}"
    )
    if found.lottery is not None:
        named = zip(found.matrix.names, found.lottery.weights_K, strict=True)
        lines.append(f"maximal lottery: {', '.join(f'{name} {weight:.3f}' for name, weight in named if weight > 5e-4)}")
    return lines


def diagnose(source: str, overrides: Sequence[str]) -> Report:
    """Diagnose what is named on the command line.

    Args:
        source: a YAML file with ``data.preferences`` (a recipe, or that block alone) or with ``oracle``; a JSON file
            with ``preferences`` or ``wins``; any file that recipes read; or, with ``=`` in it, the first key of an
            oracle.
        overrides: ``key=value`` of the block that is read: of a source for files, of a recipe for YAML, of an oracle.

    Raises:
        UserError: for keys that are not known, files that cannot be read, and oracles without known responses.
    """
    if "=" in source:
        tree, _ = apply_overrides({}, [source, *overrides])
        return _diagnose_oracle(tree.get("oracle", tree), "the oracle")
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        composed = compose(source, overrides)
        composed.raise_problems()
        block = composed.tree.get("data")
        preferences = block.get("preferences") if isinstance(block, dict) else None
        if preferences is not None:
            blocks = preferences if isinstance(preferences, list) else [preferences]
            return _diagnose_sources([_checked(item) for item in blocks])
        if isinstance(composed.tree.get("oracle"), dict):
            return _diagnose_oracle(composed.tree["oracle"], source)
        raise UserError(f"{source}: expected data.preferences or an oracle of kind matrix, found neither")
    table = _read_table(path)
    if table is None:
        tree, _ = apply_overrides({"path": source}, overrides)
        return _diagnose_sources([_checked(tree)])
    if overrides:
        raise UserError(f"{source}: expected no keys beside a table, got {overrides[0]!r}; they are for data files")
    if "preferences" in table:
        return _diagnose_oracle({"kind": "matrix", "path": source}, source)
    names = table.get("items", table.get("responses"))
    if not isinstance(names, list):
        raise UserError(f"{source}: expected 'items' beside 'wins', found {', '.join(table)}")
    matrix = counted_matrix([str(name) for name in names], _numbers(table["wins"], source))
    return Report(
        source=source,
        num_judgements=int(matrix.num_prompts),
        num_prompts=int(matrix.num_prompts),
        systems=diagnose_matrix(matrix),
        ranks=rank_intervals(matrix),
        notes=("counts are taken for independent verdicts",),
    )


def _checked(tree: Any) -> ComparisonSource:
    source, problems = check_block(ComparisonSource, tree, tuple(ComparisonSource.model_fields))
    if source is None:
        raise UserError("\n".join(problems.values()))
    unread = sorted(source.model_fields_set - set(_READ_WITH_SYSTEMS)) if source.systems is not None else []
    if unread:
        raise UserError(f"{unread[0]}: nothing reads it with systems; remove it")
    return source


def _read_table(path: Path) -> dict[str, Any] | None:
    """The object of a JSON file with a table of ``preferences`` or of ``wins``, else ``None``."""
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if text.strip() else None
    except ValueError as error:
        raise UserError(f"{path}: expected one JSON value, found {error}") from None
    is_table = isinstance(content, dict) and ("preferences" in content or "wins" in content)
    return content if is_table else None


def _numbers(table: Any, source: str) -> Any:
    try:
        return np.asarray(table, dtype=np.float64)
    except (ValueError, TypeError):
        raise UserError(f"{source}: expected a square table of numbers in 'wins'") from None


def _diagnose_oracle(spec: Tree, source: str) -> Report:
    """An oracle whose responses are known, or one made of such: it can be asked about all of them."""
    known = _known_texts(spec)
    if known is None:
        raise UserError(
            f"{source}: expected an oracle of kind matrix or textgame, or one made of such, whose responses are known, "
            f"got kind {spec.get('kind')!r}; `alignment crossplay` asks any oracle about answers that you have"
        )
    prompts, responses = known
    oracle = build_oracle(spec)
    # One prompt at a time: the text game has a million pairs.
    tables = [
        preference_matrix(oracle, [prompt], [group])[0].numpy()
        for prompt, group in zip(prompts, responses, strict=True)
    ]
    if len(prompts) > 1:
        games = diagnose_games(np.stack(tables))
        return Report(source=source, num_judgements=0, num_prompts=len(prompts), prompts=games)
    matrix = exact_matrix(responses[0], tables[0])
    return Report(
        source=source, num_judgements=0, num_prompts=1, systems=diagnose_matrix(matrix), ranks=rank_intervals(matrix)
    )


def _known_texts(spec: Any) -> tuple[Sequence[str], Sequence[Sequence[str]]] | None:
    """The prompts and the responses to each that the first part of an oracle has an opinion on; ``None`` for any."""
    if not isinstance(spec, Mapping):
        return None
    if spec.get("kind") == "textgame":
        # It loads a language model.
        from alignment.textgame import build_world

        world = build_world()
        return world.questions, world.answers
    if spec.get("kind") == "matrix":
        checked = check_oracle(spec)
        table = _read_table(Path(checked.model_dump()["path"])) or {}
        responses = [str(name) for name in table["responses"]]
        prompts = [str(text) for text in table.get("prompts") or [""]]
        return prompts, [responses] * len(prompts)
    members = spec.get("members", ())
    parts = [_known_texts(member) for member in (members.values() if isinstance(members, Mapping) else members)]
    return parts[0] if parts and None not in parts else None


def _diagnose_sources(sources: Sequence[ComparisonSource]) -> Report:
    named = {source.systems is not None for source in sources}
    if len(named) > 1:
        raise UserError("data.preferences: expected systems in all sources or in none, found both")
    name = ", ".join(path for source in sources for path in source.path)
    return _diagnose_systems(sources, name) if named == {True} else _diagnose_responses(sources, name)


def _diagnose_systems(sources: Sequence[ComparisonSource], name: str) -> Report:
    judgements = []
    for source in sources:
        assert source.systems is not None
        battles = read_battles(
            source.path,
            systems=source.systems,
            separator=source.separator,
            columns=source.columns,
            labels=source.labels,
            limit=source.limit,
        )
        judgements += [
            Judgement(
                prompt=battle.prompt,
                left=battle.systems[0],
                right=battle.systems[1],
                win=battle.win,
                annotator=battle.annotator,
                lengths=battle.lengths,
            )
            for battle in battles
        ]
    votes = majority(judgements)
    matrix = systems_matrix(votes)
    first_wins = position_rate(judgements, is_named=True)
    return Report(
        source=name,
        num_judgements=len(judgements),
        num_prompts=len({one.prompt for one in votes}),
        systems=diagnose_matrix(matrix),
        ranks=rank_intervals(matrix),
        energy_by_annotator=_energies(judgements),
        agreement=_agreements(judgements),
        first_wins=first_wins,
        longer_wins=longer_rate(votes),
        notes=()
        if first_wins is not None
        else (
            "no pair of systems is listed in both orders: a taste for a position could not be told from the systems",
        ),
    )


def _energies(judgements: Sequence[Judgement]) -> dict[str, float]:
    names = dict.fromkeys(one.annotator for one in judgements if one.annotator is not None)
    if len(names) < 2:
        return {}
    own = {
        name: diagnose_matrix(systems_matrix(majority([one for one in judgements if one.annotator == name])))
        for name in names
    }
    return {name: found.cyclic_energy.mean for name, found in own.items() if found.cyclic_energy is not None}


def _agreements(judgements: Sequence[Judgement]) -> tuple[Agreement, ...]:
    """Of annotators who gave one verdict on each pair; the same pair twice is one verdict, the more frequent one."""
    names = dict.fromkeys(one.annotator for one in judgements if one.annotator is not None)
    return agreements(
        [
            Judgement(prompt=one.prompt, left=one.left, right=one.right, win=one.win, annotator=name)
            for name in names
            for one in majority([judgement for judgement in judgements if judgement.annotator == name])
        ]
    )


def _diagnose_responses(sources: Sequence[ComparisonSource], name: str) -> Report:
    judgements: list[Judgement] = []
    notes: list[str] = []
    shows_order, num_lists = True, 0
    for source in sources:
        result = read_source(DataSource.model_validate(source.model_dump(exclude={"systems", "separator"})))
        notes.append(result.summary())
        # The other formats put the winner first.
        shows_order &= set(result.formats) == {"labelled"}
        num_lists += sum(row.scores is not None or bool(row.panel) for row in result.rows)
        judgements += [one for row in result.rows if row.scores is None and not row.panel for one in _compared(row)]
    if num_lists:
        notes.append(f"{num_lists:,} rows are orders by one judge's scores or ranks: left out, they go in no circle")
    if not judgements and not num_lists:
        raise UserError(
            f"{name}: expected comparisons of responses, found none ({'; '.join(notes)}); give pairs, ranks or scores, "
            "or verdicts on systems (systems: [A, B])"
        )
    if not judgements:
        return Report(source=name, num_judgements=0, num_prompts=0, notes=tuple(notes))
    return Report(
        source=name,
        num_judgements=len(judgements),
        num_prompts=len({one.prompt for one in judgements}),
        prompts=diagnose_prompts(prompt_tables(judgements)),
        agreement=_agreements(judgements),
        first_wins=position_rate(judgements, is_named=False) if shows_order else None,
        longer_wins=longer_rate(majority(judgements)),
        notes=tuple(notes),
    )


def _compared(row: Row) -> list[Judgement]:
    found = []
    for comparison in row.comparisons:
        first, second = sorted((comparison.winner, comparison.loser))
        texts = row.responses[first], row.responses[second]
        if texts[0] == texts[1]:
            continue
        found.append(
            Judgement(
                prompt=str(prompt_text(row)),
                left=texts[0],
                right=texts[1],
                win=comparison.probability if comparison.winner == first else 1.0 - comparison.probability,
                annotator=row.annotator,
                lengths=(len(texts[0]), len(texts[1])),
            )
        )
    return found
