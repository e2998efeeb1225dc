"""Scores of published judgements: a kind and a file -> figures."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.errors import UserError
from alignment.evaluation import arena, arena_files, length_control, mt_bench
from alignment.evaluation.alpaca import Judgements, alpaca_score, read_instructions, read_judgements
from alignment.evaluation.judge_quality import SET_COLUMNS, read_verdicts
from alignment.evaluation.published import read_records
from alignment.evaluation.reward_accuracy import pair_accuracies, read_pair_scores, section_scores
from alignment.progress import Progress
from alignment.values import nearest

_ARENA_SAMPLES = 1_000
# With style control every sample is a regression.
_STYLE_SAMPLES = 100
_MAX_NAMED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a kind may be told; ``None`` for what is not given.

    Attributes:
        model: which one, where a file or the weights hold several.
        difficulty: file of the instructions' difficulties.
        regularizer: file of the regularising judgements.
        weights: file of published weights; nothing is fitted then.
        against: a model of the weights, to predict the win rate against.
        instructions: file of the official set, for judgements that do not number their instructions.
        index: ``id`` or ``positional``: how difficulties are looked up.
        c: the fit's inverse strength of the penalty.
        cross_validate: choose it.
        baseline: whom the models met.
        answers: files or folders of answers, for style control.
        unit: ``prompt`` or ``battle``: what is resampled.
        bootstrap: samples.
        seed: of the samples.
    """

    model: str | None = None
    difficulty: Path | None = None
    regularizer: Path | None = None
    weights: Path | None = None
    against: str | None = None
    instructions: Path | None = None
    index: str | None = None
    c: float | None = None
    cross_validate: bool | None = None
    baseline: str | None = None
    answers: tuple[Path, ...] | None = None
    unit: str | None = None
    bootstrap: int | None = None
    seed: int | None = None

    def given(self) -> tuple[str, ...]:
        """Names of what is given."""
        return tuple(name for name, value in dataclasses.asdict(self).items() if value is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a scorer found.

    Attributes:
        kind: of the judgements.
        variant: how they were scored, where there are several ways.
        summary: figures of the whole file.
        scores: one row for each model, set or subset.
        notes: what a reader of the figures must know.
    """

    kind: str
    variant: str
    summary: Mapping[str, Any]
    scores: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """One object of plain values; the summary is not nested."""
        scores = {"scores": [dict(row) for row in self.scores]} if self.scores else {}
        return {"kind": self.kind, "variant": self.variant, **self.summary, **scores, "notes": list(self.notes)}


def score(kind: str, path: Path, options: Options | None = None, *, progress: Progress = lambda *_: None) -> Scored:
    """Score a file of judgements.

    Args:
        kind: one of :data:`KINDS`.
        path: the file.
        options: those that the kind reads.
        progress: called with what is done, how much of it, and how much there is.

    Raises:
        UserError: for an unknown kind, an option that the kind does not read, and a file that cannot be scored.
    """
    options = options or Options()
    if kind not in KINDS:
        raise UserError(f"expected one of the kinds {', '.join(KINDS)}, found {kind!r}{nearest(kind, KINDS)}")
    unread = [name for name in options.given() if name not in KINDS[kind].reads]
    if unread:
        option = "--" + unread[0].replace("_", "-")
        readers = ", ".join(name for name, known in KINDS.items() if unread[0] in known.reads)
        raise UserError(f"{option}: expected with the kinds {readers}, found the kind {kind}; leave it out")
    return KINDS[kind].score(path, options, progress)


def _alpaca_eval1(path: Path, options: Options, progress: Progress) -> Scored:
    judgements = _judgements(path, options)
    summary = {"model": judgements.model, **dataclasses.asdict(alpaca_score(judgements))}
    return Scored(kind="alpaca_eval1", variant="win rate", summary=summary)


def _judgements(path: Path, options: Options, official: Mapping[str, int] | None = None) -> Judgements:
    judgements = read_judgements(path, model=options.model, instructions=official)
    # With weights it says which of those.
    if options.model is not None and judgements.model is None and options.weights is None:
        raise UserError(
            f"--model: expected with a column 'generator_2' to choose from, found none in {path}; leave it out"
        )
    return judgements


def _alpaca_eval2(path: Path, options: Options, progress: Progress) -> Scored:
    _check_length_control(options)
    official = None if options.instructions is None else read_instructions(options.instructions)
    judgements = _judgements(path, options, official)
    regularizer = None if options.regularizer is None else length_control.read_regularizer(options.regularizer)
    published = None if options.weights is None else length_control.read_weights(options.weights)
    difficulty = _difficulty(options)
    index: length_control.Index = "positional" if options.index == "positional" else "id"
    difficulty_N = None if difficulty is None else length_control.align_difficulty(judgements, difficulty, index)
    sample = length_control.make_sample(judgements, difficulty_N)
    c = None
    if judgements.is_same:
        weights = length_control.NO_WEIGHTS
    elif published is not None:
        weights = length_control.weights_of(_model(options, judgements), published)
    else:
        c = options.c or length_control.choose_c(sample, regularizer, progress=progress)
        weights = length_control.fit_weights(sample, regularizer, c=c)
    wins_N = length_control.controlled_wins(weights, sample.difficulty_N)
    summary = {
        "model": judgements.model or options.model,
        **dataclasses.asdict(alpaca_score(judgements)),
        "length_controlled_winrate": 100.0 * float(wins_N.mean()),
        "lc_se_upstream": length_control.standard_error_upstream(wins_N),
        "w_len": weights.length,
        "w_diff": weights.difficulty,
        "w_bias": weights.model,
        "c": c,
        "index": None if difficulty is None else index,
    }
    if options.bootstrap is not None and c is not None:
        summary |= dataclasses.asdict(
            length_control.bootstrap_error(
                sample, regularizer, c=c, num_samples=options.bootstrap, seed=options.seed or 0, progress=progress
            )
        )
    if options.against is not None and published is not None and difficulty is not None:
        theirs = length_control.weights_of(options.against, published)
        predicted = length_control.predicted_win_rate(weights, theirs, difficulty.values_I)
        summary |= {"against": options.against, "predicted_winrate": 100.0 * predicted}
    return Scored(
        kind="alpaca_eval2",
        variant=_variant(difficulty, has_regularizer=regularizer is not None or published is not None),
        summary=summary,
        notes=tuple(_length_control_notes(judgements, sample, difficulty, regularizer, index)),
    )


def _variant(difficulty: length_control.Difficulty | None, *, has_regularizer: bool) -> length_control.Variant:
    if difficulty is None:
        return "minimal"
    return "length_controlled_v1" if has_regularizer else "noreg"


def _length_control_notes(
    judgements: Judgements,
    sample: length_control.Sample,
    difficulty: length_control.Difficulty | None,
    regularizer: length_control.Regularizer | None,
    index: length_control.Index,
) -> Iterator[str]:
    if difficulty is not None and len(sample.wins_N) != len(difficulty.ids_I):
        yield _missing(judgements, difficulty, index)
    if regularizer is not None and regularizer.is_surrogate:
        yield (
            "labels of the regularising rows are a surrogate: the same fit at a given C, perhaps another C by "
            "cross-validation; take AlpacaEval's own file before a claim about its leaderboard"
        )
    if judgements.is_same:
        yield "the model is the baseline, or answers as it does: its weights are 0 and the rate 50 by definition"
    elif not length_control.scaled_length(sample.difference_N).any():
        yield "lengths do not differ from one row to the next: the fit has no length term"


def _check_length_control(options: Options) -> None:
    ways = [name for name in ("weights", "c", "cross_validate") if name in options.given()]
    if len(ways) > 1:
        said = " and ".join("--" + name.replace("_", "-") for name in ways)
        raise UserError(f"expected one of --weights, --c and --cross-validate, found {said}; leave one out")
    if options.index not in (None, "id", "positional"):
        raise UserError(f"--index: expected id or positional, found {options.index!r}")
    if options.c is not None and not 0.0 < options.c < math.inf:
        raise UserError(f"--c: expected a number above 0, found {options.c}")
    if options.bootstrap is not None and options.bootstrap < 2:
        raise UserError(f"--bootstrap: expected 2 samples at least, found {options.bootstrap}")
    if options.weights is None:
        if options.against is not None:
            raise UserError("--against: expected with --weights, which hold the other model's; found none")
    elif options.regularizer is not None or options.bootstrap is not None:
        name = "--regularizer" if options.regularizer is not None else "--bootstrap"
        raise UserError(f"{name}: expected with a fit, found --weights, with which nothing is fitted; leave one out")
    elif options.difficulty is None:
        raise UserError("--weights: expected with --difficulty, which the weights are for; found none")
    if options.difficulty is None and options.regularizer is None and options.index is not None:
        raise UserError("--index: expected with --difficulty or --regularizer, found neither: nothing is looked up")


def _difficulty(options: Options) -> length_control.Difficulty | None:
    if options.difficulty is not None:
        return length_control.read_difficulty(options.difficulty)
    if options.regularizer is not None:
        return length_control.regularizer_difficulty(options.regularizer)
    return None


def _missing(judgements: Judgements, difficulty: length_control.Difficulty, index: length_control.Index) -> str:
    said = f"{len(judgements.preference_N)} of {len(difficulty.ids_I)} instructions are judged"
    if judgements.ids_N is not None:
        missing = sorted(set(difficulty.ids_I) - set(judgements.ids_N))
        more = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
        said += f" (missing: {', '.join(map(str, missing[:_MAX_NAMED]))}{more})"
    if index == "positional":
        said += "; by position, so that all after the first gap have another instruction's difficulty"
    return said


def _model(options: Options, judgements: Judgements) -> str:
    name = options.model or judgements.model
    if name is None:
        raise UserError("--weights: expected with --model, because the judgements do not name the model; found none")
    return name


def _arena_hard(version: arena.Version) -> Callable[[Path, Options, Progress], Scored]:
    def run(path: Path, options: Options, progress: Progress) -> Scored:
        if options.unit not in (None, "prompt", "battle"):
            raise UserError(f"--unit: expected prompt or battle, found {options.unit!r}")
        unit: arena.Unit = "battle" if options.unit == "battle" else "prompt"
        contests = arena_files.read_contests(path, version=version, baseline=options.baseline)
        settings: dict[str, Any] = {"version": version, "unit": unit, "seed": options.seed or 0}
        summary: dict[str, Any] = {"resampled": unit, "interval": 95 if version == "v0.1" else 90}
        if options.answers is None:
            samples = options.bootstrap or _ARENA_SAMPLES
            scores = [arena.arena_score(contest, num_samples=samples, **settings) for contest in contests]
        else:
            samples = options.bootstrap or _STYLE_SAMPLES
            style = arena_files.read_style(options.answers)
            scores = []
            groups = dict.fromkeys((contest.category, contest.baseline) for contest in contests)
            for group in groups:
                members = [contest for contest in contests if (contest.category, contest.baseline) == group]
                found = arena.style_controlled(members, style, num_samples=samples, progress=progress, **settings)
                scores += found.scores
                summary.setdefault("style", {})[" vs ".join(group)] = found.effects
        summary["bootstrap"] = samples
        rows = sorted(scores, key=lambda found: (found.category, -found.score))
        return Scored(
            kind=f"arena_hard_{version}",
            variant="style control" if options.answers else "win rate",
            summary=summary,
            scores=_rows(rows),
        )

    return run


def _mt_bench(path: Path, options: Options, progress: Progress) -> Scored:
    records = read_records(path)
    if "g1_winner" in records[0].values:
        rows = _rows(mt_bench.pairwise_scores(records, baseline=options.baseline))
        return Scored(kind="mt_bench", variant="pairwise", summary={}, scores=rows)
    if options.baseline is not None:
        raise UserError("--baseline: expected with comparisons, found grades of single answers; leave it out")
    return Scored(kind="mt_bench", variant="single", summary={}, scores=_rows(mt_bench.single_scores(records)))


def _judge_quality(path: Path, options: Options, progress: Progress) -> Scored:
    records = read_records(path, "label", "winner_noswap", "winner_swap")
    columns = [name for name in SET_COLUMNS if name in records[0].values]
    scores = tuple(
        dict(zip(columns, key, strict=True)) | dataclasses.asdict(found)
        for key, found in read_verdicts(records).items()
    )
    return Scored(kind="judge_quality", variant="both orders", summary={}, scores=scores)


def _reward_bench(path: Path, options: Options, progress: Progress) -> Scored:
    accuracies = pair_accuracies(*read_pair_scores(path))
    total = sum(found.n_pairs for found in accuracies)
    summary: dict[str, Any] = {
        "n_pairs": total,
        "n_equal": sum(found.n_equal for found in accuracies),
        "accuracy": sum(found.accuracy * found.n_pairs for found in accuracies) / total,
    }
    sections = section_scores(accuracies)
    if sections is None:
        return Scored(kind="reward_bench", variant="pairs", summary=summary, scores=_rows(accuracies))
    notes: tuple[str, ...] = ()
    if sections.missing:
        notes = (f"subsets without pairs: {', '.join(sections.missing)}; sections are over those that have some",)
    summary |= {"sections": sections.sections, "score": sections.score}
    return Scored(kind="reward_bench", variant="sections", summary=summary, scores=_rows(accuracies), notes=notes)


def _rows(scores: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    return tuple(dataclasses.asdict(found) for found in scores)


@dataclass(frozen=True, slots=True)
class _Kind:
    score: Callable[[Path, Options, Progress], Scored]
    reads: frozenset[str]


_ARENA_OPTIONS = frozenset({"baseline", "answers", "unit", "bootstrap", "seed"})

KINDS: Mapping[str, _Kind] = {
    "alpaca_eval1": _Kind(_alpaca_eval1, frozenset({"model"})),
    "alpaca_eval2": _Kind(
        _alpaca_eval2,
        frozenset(
            {
                "model",
                "difficulty",
                "regularizer",
                "weights",
                "against",
                "instructions",
                "index",
                "c",
                "cross_validate",
                "bootstrap",
                "seed",
            }
        ),
    ),
    "arena_hard_v0.1": _Kind(_arena_hard("v0.1"), _ARENA_OPTIONS),
    "arena_hard_v2.0": _Kind(_arena_hard("v2.0"), _ARENA_OPTIONS),
    "mt_bench": _Kind(_mt_bench, frozenset({"baseline"})),
    "judge_quality": _Kind(_judge_quality, frozenset()),
    "reward_bench": _Kind(_reward_bench, frozenset()),
}
"""What can be scored, and which options each kind reads."""
