"""``alignment evaluate`` of MT-Bench: two turns, each graded from 1 to 10, or compared with an opponent's.

The second message is asked with the first answer before it. Answers and judgements are FastChat's files, and the
figures are what :mod:`alignment.evaluation.mt_bench` reads in them. Nothing is paid for twice, as in
:mod:`alignment.evaluate`.

Differs from FastChat: the words of the judge's templates are ours, and one serves both turns; all categories have one
temperature; two conversations that are the same are a tie that nobody is asked about.

Sources: 2306.05685 and the code of FastChat.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from alignment.answering import Player, check_sampler, discard_chunks, find_player, sample_answers
from alignment.artefacts import Artefact
from alignment.config.evaluation import MTBenchJudgeSpec, MTBenchRecipe
from alignment.evaluation.manifests import (
    digest,
    fingerprint,
    freeze_manifest,
    read_manifest,
    versions,
)
from alignment.evaluation.mt_bench import (
    Compared,
    Graded,
    PairwiseScore,
    SingleScore,
    is_judged,
    pairwise_scores,
    parse_rating,
    single_scores,
)
from alignment.evaluation.mt_bench_files import (
    REFERENCED,
    Question,
    Texts,
    answer_row,
    conversation,
    read_answers,
    read_questions,
    shown_alone,
    shown_together,
)
from alignment.evaluation.published import Record, read_records
from alignment.files import write_json, write_json_lines
from alignment.folders import oracle_accounts
from alignment.oracles.kept import KeptOracle
from alignment.oracles.ledger import Accounts, Verdict
from alignment.oracles.ledger import Question as Asked
from alignment.oracles.templates import PAIR, SINGLE, fill_template
from alignment.progress import Progress, chunked
from alignment.report import PAGE, write_page
from alignment.report.mt_bench import mt_bench_page

RESULTS = "results.json"
# Questions between two movements of the bar.
_ASKED_AT_ONCE = 64
_TURNS = (1, 2)
# Of two conversations that do not differ.
_SAME = Verdict(0.5, "")

Score = TypeVar("Score", SingleScore, PairwiseScore)


@dataclass(frozen=True, slots=True, kw_only=True)
class MTBenchResult:
    """What MT-Bench found.

    Attributes:
        folder: where everything stands.
        manifest: a hash of what made the figures.
        graded: of each policy, best first.
        compared: of each policy with each opponent.
        notes: what a reader of the figures must know.
    """

    folder: Path
    manifest: str
    graded: tuple[Graded, ...]
    compared: tuple[Compared, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """What ``results.json`` holds."""
        return {
            "manifest": self.manifest,
            "single": [found.to_json() for found in self.graded],
            "pairwise": [found.to_json() for found in self.compared],
            "notes": list(self.notes),
        }


def evaluate_mt_bench(recipe: MTBenchRecipe, *, progress: Progress) -> MTBenchResult:
    """Answer both turns, judge, and write figures, FastChat's files and a page into ``output_dir``.

    Args:
        recipe: a checked one.
        progress: called with what is done, how much of it, and how much there is.

    Raises:
        UserError: if questions or answers do not fit one another, the folder holds another evaluation, or the judge
            fails for good.
    """
    folder, spec = Path(recipe.output_dir), recipe.prompts
    check_sampler(recipe.sampling)
    whole = read_questions(Path(spec.path), references=None if spec.references is None else Path(spec.references))
    questions = whole[: spec.limit]
    players = [
        find_player(name, policy, lambda path: read_answers(path, whole, questions))
        for name, policy in recipe.policies.items()
    ]
    freeze_manifest(folder, _manifest(recipe, questions, players))
    (folder / "evaluation.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    with oracle_accounts(folder) as accounts:
        grader = _open_grader(recipe.judge, accounts) if recipe.grades else None
        referee = _open_referee(recipe.judge, accounts) if recipe.opponents else None
        freeze_manifest(folder, {"judges": [entry["identity"] for entry in accounts.summary()]})
        answers = {player.name: _answers(player, recipe, questions, folder, progress) for player in players}
        graded = () if grader is None else _grade(grader, recipe, questions, answers, progress)
        compared = () if referee is None else _compare(referee, recipe, questions, answers, progress)
        freeze_manifest(folder, {"cost": accounts.summary()})
    manifest = read_manifest(folder)
    judged = MTBenchResult(
        folder=folder,
        manifest=fingerprint(manifest),
        graded=graded,
        compared=compared,
        notes=tuple(_notes(recipe, len(whole), answers, graded, compared)),
    )
    write_json(folder / RESULTS, judged.to_json())
    page = mt_bench_page(
        folder.resolve().name,
        graded,
        compared,
        num_questions=len(questions),
        judge=recipe.judge.model,
        notes=judged.notes,
        manifest=json.dumps(manifest, indent=1, ensure_ascii=False),
    )
    write_page(page, folder / PAGE)
    return judged


def _manifest(recipe: MTBenchRecipe, questions: Sequence[Question], players: Sequence[Player]) -> dict[str, Any]:
    """What decides the figures, as far as it is known before anybody is asked."""
    asked = [[question.id, question.category, question.turns, question.reference] for question in questions]
    return {
        "prompts": {
            **recipe.prompts.model_dump(exclude_none=True),
            "num_prompts": len(questions),
            "sha256": digest(asked),
        },
        "policies": {player.name: player.identity for player in players},
        "opponents": recipe.opponents,
        "grades": recipe.grades,
        "sampling": None if recipe.sampling is None else recipe.sampling.model_dump(),
        "order": "both; a win is one in both",
        "seed": recipe.seed,
        "versions": versions(*recipe.engine_packages),
    }


def _answers(
    player: Player, recipe: MTBenchRecipe, questions: Sequence[Question], folder: Path, progress: Progress
) -> tuple[Texts, ...]:
    """Both answers to each question, in FastChat's ``model_answer/<model>.jsonl``."""
    sampling = None if player.is_given or recipe.sampling is None else recipe.sampling.model_dump()
    asked = digest([[question.id, question.turns] for question in questions])
    made_by = {"policy": player.identity, "prompts": asked, "sampling": sampling, "seed": recipe.seed}
    artefact = Artefact(folder / "model_answer" / f"{player.name}.jsonl", made_by)
    if not artefact.is_finished():
        given = player.given if player.is_given else _sample(player, recipe, questions, artefact, progress)
        rows = [
            answer_row(question, player.name, (first, second))
            for question, (first, second) in zip(questions, given, strict=True)
        ]
        write_json_lines(artefact.path, rows)
        artefact.finish()
        discard_chunks(artefact)
    return read_answers(artefact.path, questions, questions)


def _sample(
    player: Player, recipe: MTBenchRecipe, questions: Sequence[Question], artefact: Artefact, progress: Progress
) -> list[Texts]:
    """Answers to all first messages, then with these to all second ones."""
    assert recipe.sampling is not None
    sample = partial(
        sample_answers, player, spec=recipe.sampling, artefact=artefact, seed=recipe.seed, progress=progress
    )
    groups = sample([conversation(question) for question in questions], part="first answers")
    first = [text for (text,) in groups]
    rows = [conversation(question, answer) for question, answer in zip(questions, first, strict=True)]
    second = [text for (text,) in sample(rows, part="second answers")]
    return list(zip(first, second, strict=True))


class _GradeReader:
    """The grade in a reply."""

    request: Mapping[str, Any] = MappingProxyType({})

    def read(self, choice: Any) -> float | None:
        return parse_rating(choice.message.content or "")


class _WinnerReader:
    """FastChat's reading of a comparison: it looks for A, then for B, then for a tie."""

    request: Mapping[str, Any] = MappingProxyType({})

    def read(self, choice: Any) -> float | None:
        text = choice.message.content or ""
        return next((win for label, win in (("[[A]]", 1.0), ("[[B]]", 0.0), ("[[C]]", 0.5)) if label in text), None)


def _open_grader(spec: MTBenchJudgeSpec, accounts: Accounts) -> KeptOracle:
    return spec.open(
        accounts,
        template=spec.read_grade_template(),
        placeholders=SINGLE,
        max_tokens=spec.max_tokens,
        reader=_GradeReader(),
        reads={"verdict": "mt_bench_grade"},
    )


def _open_referee(spec: MTBenchJudgeSpec, accounts: Accounts) -> KeptOracle:
    return spec.open(
        accounts,
        template=spec.read_pair_template(),
        max_tokens=spec.max_tokens,
        reader=_WinnerReader(),
        reads={"verdict": "mt_bench_pair"},
    )


def _grade(
    judge: KeptOracle,
    recipe: MTBenchRecipe,
    questions: Sequence[Question],
    answers: Mapping[str, Sequence[Texts]],
    progress: Progress,
) -> tuple[Graded, ...]:
    """Have every answer graded."""
    items = [
        (name, question, turn, Asked(*shown_alone(question, texts, turn)))
        for name, conversations in answers.items()
        for question, texts in zip(questions, conversations, strict=True)
        for turn in _TURNS
    ]
    verdicts = _ask(judge, [asked for *_, asked in items], "grades", progress)
    rows = [
        {
            "question_id": question.id,
            "model": name,
            "judge": [recipe.judge.model, "grade"],
            "user_prompt": _text(judge, asked, SINGLE),
            "judgment": verdict.reply,
            "score": -1 if verdict.probability is None else verdict.probability,
            "turn": turn,
        }
        for (name, question, turn, asked), verdict in zip(items, verdicts, strict=True)
    ]
    records = _written(recipe, "single", rows)
    return tuple(
        Graded(
            score=score,
            categories=_parts(
                [record for record in records if record.name("model") == score.model],
                _category(questions),
                lambda part: single_scores(part)[0],
            ),
        )
        for score in single_scores(records)
    )


def _compare(
    judge: KeptOracle,
    recipe: MTBenchRecipe,
    questions: Sequence[Question],
    answers: Mapping[str, Sequence[Texts]],
    progress: Progress,
) -> tuple[Compared, ...]:
    """Have every policy compared with every opponent, with either of them shown first."""
    meetings = [(name, opponent) for opponent in recipe.opponents for name in recipe.policies if name != opponent]
    # Two opponents meet once.
    pairs = [pair for place, pair in enumerate(meetings) if pair[::-1] not in meetings[:place]]
    items = [
        (pair, question, turn, shown_together(question, ours, theirs, turn))
        for pair in pairs
        for question, ours, theirs in zip(questions, *(answers[name] for name in pair), strict=True)
        for turn in _TURNS
    ]
    asked = [
        Asked(prompt, *shown)
        for *_, (prompt, ours, theirs) in items
        for shown in ((ours, theirs), (theirs, ours))
        if ours != theirs
    ]
    found = dict(zip(asked, _ask(judge, asked, "comparisons", progress), strict=True))

    def game(name: str, asked: Asked, shown: tuple[str, str]) -> dict[str, Any]:
        """A row's columns of one of the two orders."""
        verdict = found.get(asked, _SAME)
        winner = {1.0: shown[0], 0.0: shown[1], 0.5: "tie", None: "error"}[verdict.probability]
        text = _text(judge, asked, PAIR) if asked in found else ""
        return {f"{name}_winner": winner, f"{name}_user_prompt": text, f"{name}_judgment": verdict.reply}

    rows = [
        {
            "question_id": question.id,
            "model_1": first,
            "model_2": second,
            **game("g1", Asked(prompt, ours, theirs), ("model_1", "model_2")),
            **game("g2", Asked(prompt, theirs, ours), ("model_2", "model_1")),
            "judge": [recipe.judge.model, "pair"],
            "turn": turn,
        }
        for (first, second), question, turn, (prompt, ours, theirs) in items
    ]
    records = _written(recipe, "pair", rows)
    return tuple(
        _compared(
            opponent,
            [record for record in records if {record.name("model_1"), record.name("model_2")} == {name, opponent}],
            questions,
        )
        for name, opponent in meetings
    )


def _compared(opponent: str, records: Sequence[Record], questions: Sequence[Question]) -> Compared:
    def score(part: Sequence[Record]) -> PairwiseScore:
        return pairwise_scores(part, baseline=opponent)[0]

    return Compared(
        opponent=opponent,
        score=score(records),
        turns=_parts(records, lambda record: record.name("turn"), score),
        categories=_parts(records, _category(questions), score),
    )


def _ask(judge: KeptOracle, questions: Sequence[Asked], what: str, progress: Progress) -> list[Verdict]:
    chunks = chunked(questions, _ASKED_AT_ONCE, what, progress)
    return [verdict for chunk in chunks for verdict in judge.verdicts(chunk)]


def _text(judge: KeptOracle, asked: Asked, placeholders: tuple[str, ...]) -> str:
    """What the judge has read."""
    texts = [[text] for text in (asked.prompt, *asked.answers)]
    return next(fill_template(judge.account.identity["template"], *texts, placeholders=placeholders))


def _written(recipe: MTBenchRecipe, kind: str, rows: Sequence[Mapping[str, Any]]) -> tuple[Record, ...]:
    """Write judgements as FastChat does, and read them as whoever scores them does."""
    name = re.sub(r"[^\w.-]", "_", recipe.judge.model)
    path = Path(recipe.output_dir) / "model_judgment" / f"{name}_{kind}.jsonl"
    write_json_lines(path, rows)
    return read_records(path)


def _category(questions: Sequence[Question]) -> Callable[[Record], str]:
    categories = {str(question.id): question.category for question in questions}
    return lambda record: categories[record.name("question_id")]


def _parts(
    records: Sequence[Record], key: Callable[[Record], str], score: Callable[[Sequence[Record]], Score]
) -> dict[str, Score]:
    """The figures of each part of the judgements; parts in which nothing counts have none."""
    judged = [record for record in records if is_judged(record)]
    return {
        name: score([record for record in judged if key(record) == name]) for name in dict.fromkeys(map(key, judged))
    }


def _notes(
    recipe: MTBenchRecipe,
    num_whole: int,
    answers: Mapping[str, Sequence[Texts]],
    graded: Sequence[Graded],
    compared: Sequence[Compared],
) -> Iterator[str]:
    num_asked = len(next(iter(answers.values())))
    if num_asked < num_whole:
        yield f"the first {num_asked} of {num_whole} questions, not the whole set"
    if recipe.prompts.references is None:
        yield (
            f"the judge saw no reference answers: FastChat shows some for {', '.join(REFERENCED)} (prompts.references)"
        )
    for name, conversations in answers.items():
        empty = sum(not text.strip() for texts in conversations for text in texts)
        if empty:
            yield f"{name}: {empty} of {2 * num_asked} answers have no text"
    for found in graded:
        if found.score.n_dropped:
            yield f"{found.score.model}: {found.score.n_dropped} replies of the judge had no grade; they do not count"
    for pair in compared:
        said = f"{pair.score.model} vs {pair.opponent}"
        if pair.score.n_dropped:
            yield f"{said}: {pair.score.n_dropped} comparisons had an order without a verdict; they do not count"
        if answers[pair.score.model] == answers[pair.opponent]:
            yield f"{said}: all answers are the same, so the rate is 50 and nobody was asked"
