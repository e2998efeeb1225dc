"""``alignment crossplay``: every policy against every other on shared prompts, each pair judged once in a lifetime.

A folder holds what was judged: a file of AlpacaEval rows for each pair of policies, with a manifest that says by which
oracle and of which answers it was made, and the oracle's ledger. Another policy in the same folder is judged against
those that are there, and nothing else is asked.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from alignment.artefacts import Artefact
from alignment.comparisons import describe_table, plain, table_lines
from alignment.config.compose import apply_overrides, compose, take_back
from alignment.errors import UserError
from alignment.evaluation.alpaca import annotations, read_model_outputs
from alignment.evaluation.published import read_records
from alignment.evaluation.tournament import Tournament, analyse_tournament
from alignment.evaluation.win_matrix import judged_matrix
from alignment.files import write_json, write_json_lines
from alignment.folders import oracle_accounts
from alignment.oracles import Accounts, PanelOracle, ask, build_oracle, deciding_keys, oracle_name
from alignment.progress import Progress, chunked
from alignment.report import PAGE, write_page
from alignment.report.crossplay import crossplay_page
from alignment.types import Oracle

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
# Questions between two moves of the bar.
_AT_ONCE = 64
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The answers of a policy, in AlpacaEval's ``model_outputs.json``.

    Attributes:
        name: of the policy.
        path: of the file.
        answers: instruction -> answer.
    """

    name: str
    path: Path
    answers: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """A hash of instructions and answers, in whatever order they stand."""
        return hashlib.sha256(json.dumps(sorted(self.answers.items())).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The verdicts on two policies.

    Attributes:
        names: in alphabetical order.
        wins: instruction -> probability that the first one's answer is better, both orders averaged.
        num_same: instructions to which both gave the same text: ties that nobody was asked about.
        num_unparsable: replies of a judge without a verdict, which count as ties.
    """

    names: tuple[str, str]
    wins: Mapping[str, float]
    num_same: int
    num_unparsable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossPlay:
    """A round robin and its analysis.

    Attributes:
        pairs: the verdicts.
        num_prompts: shared by all policies.
        num_new: questions of this call: pairs of answers that no earlier call had judged.
        tournament: the analysis.
    """

    pairs: tuple[Judged, ...]
    num_prompts: int
    num_new: int
    tournament: Tournament

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        draws = [
            {
                "names": pair.names,
                "wins": sum(win > 0.5 for win in pair.wins.values()),
                "draws": sum(win == 0.5 for win in pair.wins.values()),
                "losses": sum(win < 0.5 for win in pair.wins.values()),
                "same_text": pair.num_same,
                "unparsable": pair.num_unparsable,
            }
            for pair in self.pairs
        ]
        return dict(
            plain(
                {
                    "num_prompts": self.num_prompts,
                    "num_new": self.num_new,
                    "sentence": self.tournament.table.sentence,
                    "standings": [asdict(item) for item in self.tournament.standings],
                    "matches": [asdict(item) for item in self.tournament.matches],
                    "lottery_exploitability": asdict(self.tournament.lottery_exploitability),
                    "verdicts": draws,
                    "table": describe_table(self.tournament.table),
                }
            )
        )

    def lines(self) -> list[str]:
        """What stands below the table of policies."""
        first = [f"{self.num_prompts:,} prompts, {self.num_new:,} new pairs of answers judged"]
        unread = sum(pair.num_unparsable for pair in self.pairs)
        if unread:
            first.append(f"{unread:,} replies of the judge had no verdict and count as ties")
        return [*first, *table_lines(self.tournament.table), self.tournament.table.sentence]


def read_policies(arguments: Sequence[str]) -> tuple[Outputs, ...]:
    """The policies that ``NAME=FILE`` name, on the same prompts.

    Raises:
        UserError: for a name that is none or stands twice, a file that cannot be read, a row without instruction or
            answer, an instruction that stands twice, and policies whose prompts differ; the first ones are named.
    """
    policies = []
    for argument in arguments:
        name, equals, path = argument.partition("=")
        # Two underscores stand between the names in the file of a pair.
        if not equals or not _NAME.fullmatch(name) or "__" in name or not path:
            raise UserError(
                "expected NAME=model_outputs.json with a name of letters, digits, dots, dashes and single underscores, "
                f"got '{argument}'"
            )
        rows = read_model_outputs(Path(path))
        answers = {text: row.text("output") for text, row in rows.items()}
        policies.append(Outputs(name=name, path=Path(path), answers=answers))
    names = [policy.name for policy in policies]
    twice = [name for name in names if names.count(name) > 1]
    if len(policies) < 2 or twice:
        found = f"'{twice[0]}' twice" if twice else f"{len(policies)}"
        raise UserError(f"expected two policies at least, with different names, got {found}")
    first = policies[0]
    for policy in policies[1:]:
        missing = [text for text in first.answers if text not in policy.answers]
        further = [text for text in policy.answers if text not in first.answers]
        if missing or further:
            said = [
                f"{len(texts):,} {what} ({_quote(texts)})"
                for texts, what in ((missing, "of its prompts missing"), (further, "others"))
                if texts
            ]
            raise UserError(
                f"{policy.path}: expected the {len(first.answers):,} prompts of {first.path}, found "
                f"{' and '.join(said)}; sample all policies on the same prompts"
            )
    return tuple(policies)


def read_oracle(values: Sequence[str]) -> dict[str, Any]:
    """The block of an oracle: a YAML file, that holds it under ``oracle`` or alone, and ``key=value`` to set in it.

    Raises:
        UserError: if there is nothing, or a panel: its members are asked one by one.
    """
    files = [value for value in values if "=" not in value]
    overrides = [value for value in values if "=" in value]
    if not values or len(files) > 1:
        found = f"{len(files)} files" if files else "nothing"
        raise UserError(
            f"--oracle: expected one YAML file, or the keys of an oracle, got {found}; give --oracle judge.yaml, or "
            "--oracle kind=rule --oracle rule=shorter"
        )
    block: Mapping[str, Any] = {}
    if files:
        composed = compose(files[0], ())
        composed.raise_problems()
        block = composed.tree.get("oracle", composed.tree)
    spec, _ = apply_overrides(block, overrides)
    # Of what is asked here nothing should be asked again.
    return {"ledger": True, **take_back(spec)}


def crossplay(
    policies: Sequence[Outputs], spec: Mapping[str, Any], folder: Path, *, device: str, progress: Progress
) -> CrossPlay:
    """Judge what was not judged yet, and analyse the round robin.

    Args:
        policies: on the same prompts.
        spec: an ``oracle:`` block.
        folder: of the verdicts; made if missing.
        device: of the oracle's models.
        progress: called with the pair, what is done of it, and how much there is.

    Raises:
        UserError: if the folder holds verdicts on these policies that another oracle gave, or on other answers.
        BudgetError: if the oracle's budget ends; what was judged is kept.
    """
    ordered = sorted(policies, key=lambda policy: policy.name)
    artefacts = {
        (first.name, second.name): Artefact(
            path=folder / "pairs" / f"{first.name}__{second.name}.jsonl",
            made_by={
                "oracle": deciding_keys(spec),
                "answers": {first.name: first.fingerprint, second.name: second.fingerprint},
            },
        )
        for first, second in combinations(ordered, 2)
    }
    # All of them before the first question: a folder of something else costs nothing.
    missing = [names for names, artefact in artefacts.items() if not artefact.is_finished()]
    by_name = {policy.name: policy for policy in ordered}
    num_new = 0
    if missing:
        with oracle_accounts(folder) as accounts:
            oracle = build_oracle(spec, device, accounts)
            if isinstance(oracle, PanelOracle):
                raise UserError(
                    "--oracle: expected one oracle, got a panel; ask each member in a folder of its own, or their mean "
                    "as kind: mixture"
                )
            for names in missing:
                met = by_name[names[0]], by_name[names[1]]
                num_new += _judge(oracle, oracle_name(spec), *met, artefacts[names], accounts, progress)
    pairs = tuple(_read_pair(names, artefact) for names, artefact in artefacts.items())
    place = {policy.name: k for k, policy in enumerate(ordered)}
    rows = [
        (place[pair.names[0]], place[pair.names[1]], win, text) for pair in pairs for text, win in pair.wins.items()
    ]
    first_N, second_N, wins_N, prompts_N = zip(*rows, strict=True)
    matrix = judged_matrix([policy.name for policy in ordered], first_N, second_N, wins_N, prompts_N)
    result = CrossPlay(
        pairs=pairs,
        num_prompts=len(ordered[0].answers),
        num_new=num_new,
        tournament=analyse_tournament(matrix),
    )
    write_json(folder / "crossplay.json", result.to_json())
    page = crossplay_page(
        folder.resolve().name,
        result.tournament,
        num_prompts=result.num_prompts,
        # The last one stands by itself.
        lines=result.lines()[:-1],
        oracle=oracle_name(spec),
    )
    write_page(page, folder / PAGE)
    return result


def _judge(
    oracle: Oracle,
    annotator: str,
    first: Outputs,
    second: Outputs,
    artefact: Artefact,
    accounts: Accounts,
    progress: Progress,
) -> int:
    """Ask about two policies and write the verdicts as AlpacaEval's rows, in which 2 means that ``output_2`` wins."""
    asked = [text for text in first.answers if first.answers[text] != second.answers[text]]
    wins = dict.fromkeys(first.answers, 0.5)
    name, before = f"{first.name} against {second.name}", accounts.spent.unparsable
    for chunk in chunked(asked, _AT_ONCE, name, progress):
        answers_N = ask(
            oracle, chunk, [first.answers[text] for text in chunk], [second.answers[text] for text in chunk]
        )
        wins |= zip(chunk, answers_N.tolist(), strict=True)
    rows = annotations(
        list(wins),
        [first.answers[text] for text in wins],
        [second.answers[text] for text in wins],
        [1.0 - win for win in wins.values()],
        generator_1=first.name,
        generator_2=second.name,
        annotator=annotator,
    )
    write_json_lines(artefact.path, rows)
    artefact.finish(oracle_questions=len(asked), unparsable=accounts.spent.unparsable - before)
    return len(asked)


def _read_pair(names: tuple[str, str], artefact: Artefact) -> Judged:
    rows = read_records(artefact.path)
    for row in rows:
        found = row.text("generator_1"), row.text("generator_2")
        if found != names:
            raise UserError(
                f"{artefact.path}: expected verdicts on {' and '.join(names)}, found {' and '.join(found)} in "
                f"{row.source}; delete the file, and the pair is judged again"
            )
    return Judged(
        names=names,
        wins={row.text("instruction"): 2.0 - row.number("preference") for row in rows},
        num_same=sum(row.text("output_1") == row.text("output_2") for row in rows),
        num_unparsable=int(artefact.notes()["unparsable"]),
    )


def _quote(texts: Sequence[str]) -> str:
    shown = ", ".join(repr(text if len(text) <= 60 else f"{text[:57]}...") for text in texts[:_SHOWN])
    return shown + (", ..." if len(texts) > _SHOWN else "")
