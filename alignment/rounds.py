"""A round of an iterative method: the policy answers, the oracle compares, and the answers become a data set.

The data set holds the sampled tokens themselves: text that is encoded again may come out as other tokens, and then the
samples are no longer those of the policy.

With all pairs, or one i.i.d. pair, of answers of the policy the regressions of the iterative methods have the minimiser
of their theory. Best against worst and the knockout tournament reproduce what papers do with many answers; their pairs
are not i.i.d. and have another minimiser (Lemma R in docs/methods/README.md).

Shape letters: ``B`` prompts, ``G`` completions of a prompt.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol, TypeVar

import numpy as np
import torch

from alignment.data import Comparison, EncodedRow, collate, prompt_text
from alignment.oracles import ask, preference_matrix
from alignment.policies import CausalLMPolicy
from alignment.ranks import ALONE, Ranks
from alignment.stages import prompts_only
from alignment.types import Completions, Oracle

Item = TypeVar("Item")


def answer_prompts(
    policy: CausalLMPolicy,
    prompts: Sequence[EncodedRow],
    *,
    num_completions: int,
    batch_size: int,
    seeds: Sequence[int],
    ranks: Ranks = ALONE,
) -> tuple[EncodedRow, ...]:
    """Answers of the policy, not compared yet; those of :func:`answered_chunks` at once, by several processes.

    Args:
        policy: who answers.
        prompts: encoded rows; what they hold besides a prompt is left out. A prompt that comes twice is answered twice.
        num_completions: answers to a prompt.
        batch_size: prompts answered at once; which ones does not change the answers, but for rounding.
        seeds: one for each prompt.
        ranks: the processes that share the prompts; each gets all answers.
    """
    chunks = list(zip(_chunks(prompts, batch_size), _chunks(seeds, batch_size), strict=True))
    answered = ranks.gather([(n, _answer(policy, *chunk, num_completions)) for n, chunk in ranks.own(chunks)])
    return tuple(row for rows in answered for row in rows)


def answered_chunks(
    policy: CausalLMPolicy,
    prompts: Sequence[EncodedRow],
    *,
    num_completions: int,
    batch_size: int,
    seeds: Sequence[int],
) -> Iterator[list[EncodedRow]]:
    """The answers of :func:`answer_prompts` as they come, for whoever shows or keeps them meanwhile."""
    for chunk, own in zip(_chunks(prompts, batch_size), _chunks(seeds, batch_size), strict=True):
        yield _answer(policy, chunk, own, num_completions)


def _answer(
    policy: CausalLMPolicy, prompts: Sequence[EncodedRow], seeds: Sequence[int], num_completions: int
) -> list[EncodedRow]:
    batch = collate(prompts, pad_token_id=int(policy.tokenizer.pad_token_id)).to(policy.model.device)
    answers = policy.sample_by_seeds(prompts_only(batch), num_completions=num_completions, seeds=seeds)
    rows = []
    for b, (item, texts) in enumerate(zip(prompts, policy.texts(answers), strict=True)):
        row = replace(item.row, responses=tuple(texts), comparisons=(), scores=None, panel=())
        rows.append(EncodedRow(prompt_ids=item.prompt_ids, completion_ids=_token_ids(answers, b), row=row))
    return rows


Pairs = tuple[Comparison, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A round's data set.

    Attributes:
        rows: answers with their comparisons, in the order of the prompts.
        skipped: reason -> sources of the prompts left out.
    """

    rows: tuple[EncodedRow, ...]
    skipped: Mapping[str, tuple[str, ...]]


_IDENTICAL = "answers all alike"
_NO_WINNER = "the tournament's winner does not beat its loser"


def compare_answers(
    rows: Sequence[EncodedRow],
    oracle: Oracle,
    *,
    pairs: str = "all",
    keep_alike: bool = False,
    batch_size: int,
    seeds: Sequence[int],
    ranks: Ranks = ALONE,
) -> Compared:
    """Ask the oracle about answers, and keep the pairs that are trained on.

    A prompt whose answers are all alike, token by token, is never asked about: no oracle can tell them apart.

    Args:
        rows: G answers to each prompt.
        oracle: each pair is asked in both orders.
        pairs: a name in :data:`SELECTIONS`.
        keep_alike: keep such prompts as ties. A loss of pairs learns nothing from them; a loss that reads win rates of
            single answers does, and has another minimiser without them.
        batch_size: prompts asked about at once.
        seeds: one for each row; they choose among pairs, where chance does.
        ranks: the processes that share the questions; each gets all answers.
    """
    select = SELECTIONS[pairs]
    alike = [len(set(item.completion_ids)) == 1 for item in rows]
    asked = [(item, seed) for item, seed, same in zip(rows, seeds, alike, strict=True) if not same]
    asked_rows, asked_seeds = [item for item, _ in asked], [seed for _, seed in asked]
    chunks = list(zip(_chunks(asked_rows, batch_size), _chunks(asked_seeds, batch_size), strict=True))
    selected = ranks.gather([(n, select(*chunk, oracle)) for n, chunk in ranks.own(chunks)])
    selections = iter([selection for of_chunk in selected for selection in of_chunk])
    kept: list[EncodedRow] = []
    skipped: dict[str, list[str]] = {}
    for item, same in zip(rows, alike, strict=True):
        selection = (_ties(item) if keep_alike else None) if same else next(selections)
        if selection is None:
            skipped.setdefault(_IDENTICAL if same else _NO_WINNER, []).append(item.row.source)
        else:
            kept.append(_with_pairs(item, selection))
    return Compared(rows=tuple(kept), skipped={reason: tuple(where) for reason, where in skipped.items()})


def _ties(item: EncodedRow) -> Pairs:
    return tuple(Comparison(0, j, 0.5) for j in range(1, len(item.completion_ids)))


class Selection(Protocol):
    """Pairs of each prompt that are trained on; ``None`` leaves the prompt out."""

    def __call__(self, rows: Sequence[EncodedRow], seeds: Sequence[int], oracle: Oracle) -> list[Pairs | None]: ...


def all_pairs(rows: Sequence[EncodedRow], seeds: Sequence[int], oracle: Oracle) -> list[Pairs | None]:
    """Every pair with its probability: G(G-1)/2 questions."""
    prefs_BGG = preference_matrix(oracle, _prompts(rows), [item.row.responses for item in rows])
    first, second = torch.triu_indices(prefs_BGG.shape[-1], prefs_BGG.shape[-1], offset=1).tolist()
    return [
        tuple(Comparison(i, j, float(prefs_GG[i, j])) for i, j in zip(first, second, strict=True))
        for prefs_GG in prefs_BGG
    ]


def random_pair(rows: Sequence[EncodedRow], seeds: Sequence[int], oracle: Oracle) -> list[Pairs | None]:
    """One pair of i.i.d. answers with its probability: 1 question."""
    drawn = [
        np.random.default_rng(seed).permutation(len(item.row.responses))[:2].tolist()
        for item, seed in zip(rows, seeds, strict=True)
    ]
    wins = _beats(rows, oracle, [[(i, j)] for i, j in drawn])
    return [(Comparison(i, j, p),) for (i, j), (p,) in zip(drawn, wins, strict=True)]


def best_worst(rows: Sequence[EncodedRow], seeds: Sequence[int], oracle: Oracle) -> list[Pairs | None]:
    """The answers with the highest and the lowest mean win rate, the first named the winner: G(G-1)/2 questions."""
    prefs_BGG = preference_matrix(oracle, _prompts(rows), [item.row.responses for item in rows])
    means_BG = prefs_BGG.mean(-1)
    # Where all are equal both would be the first answer.
    return [
        (Comparison(int(means_G.argmax()), int(means_G.argmin())),) if means_G.max() > means_G.min() else None
        for means_G in means_BG
    ]


def knockout(rows: Sequence[EncodedRow], seeds: Sequence[int], oracle: Oracle) -> list[Pairs | None]:
    """A tournament of a power of two answers, among the losers as well, then one match of winner against loser.

    arXiv 2407.00617, sec. 5: 8 answers take 4 + 3 + 3 + 1 = 11 questions; a tie goes to the first answer, and a prompt
    whose winner does not beat its loser is left out.
    """
    opening = [[(i, i + 1) for i in range(0, len(item.row.responses), 2)] for item in rows]
    wins = _beats(rows, oracle, opening)
    winners = _advance(opening, wins, winner=True)
    losers = _advance(opening, wins, winner=False)
    while len(winners[0]) > 1:
        draws = [_matches(group) for group in winners]
        winners = _advance(draws, _beats(rows, oracle, draws), winner=True)
        draws = [_matches(group) for group in losers]
        losers = _advance(draws, _beats(rows, oracle, draws), winner=False)
    final = [[(best, worst)] for (best,), (worst,) in zip(winners, losers, strict=True)]
    return [
        (Comparison(best, worst),) if p > 0.5 else None
        for ((best, worst),), (p,) in zip(final, _beats(rows, oracle, final), strict=True)
    ]


SELECTIONS: Mapping[str, Selection] = MappingProxyType(
    {"all": all_pairs, "random": random_pair, "best_worst": best_worst, "knockout": knockout}
)


def questions_of_a_prompt(pairs: str, num_answers: int) -> int:
    """How often a selection asks about one prompt.

    Example:
        >>> [questions_of_a_prompt(name, 8) for name in SELECTIONS]
        [28, 1, 28, 11]
    """
    every = num_answers * (num_answers - 1) // 2
    # The winner's way, that of the loser after their common first matches, and the final.
    tournament = (num_answers - 1) + (num_answers // 2 - 1) + 1
    return {"all": every, "random": 1, "best_worst": every, "knockout": tournament}[pairs]


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _prompts(rows: Sequence[EncodedRow]) -> list[str]:
    return [prompt_text(item.row) for item in rows]


def _beats(
    rows: Sequence[EncodedRow], oracle: Oracle, matches: Sequence[Sequence[tuple[int, int]]]
) -> list[list[float]]:
    """Probability that the first of each match beats the second, for every prompt's matches."""
    asked = [
        (prompt, item.row.responses[i], item.row.responses[j])
        for item, prompt, pairs in zip(rows, _prompts(rows), matches, strict=True)
        for i, j in pairs
    ]
    answers = iter(ask(oracle, *(list(column) for column in zip(*asked, strict=True))).tolist())
    return [[next(answers) for _ in pairs] for pairs in matches]


def _matches(group: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(group[::2], group[1::2], strict=True))


def _advance(
    matches: Sequence[Sequence[tuple[int, int]]], wins: Sequence[Sequence[float]], *, winner: bool
) -> list[list[int]]:
    """Who goes on; a tie counts as won by the first."""
    return [
        [i if (p >= 0.5) == winner else j for (i, j), p in zip(pairs, outcome, strict=True)]
        for pairs, outcome in zip(matches, wins, strict=True)
    ]


def _with_pairs(item: EncodedRow, pairs: Pairs) -> EncodedRow:
    """The row with its comparisons; answers that none of them names are left out."""
    named = sorted({index for comparison in pairs for index in (comparison.winner, comparison.loser)})
    place = {index: position for position, index in enumerate(named)}
    comparisons = tuple(replace(c, winner=place[c.winner], loser=place[c.loser]) for c in pairs)
    row = replace(item.row, responses=tuple(item.row.responses[i] for i in named), comparisons=comparisons)
    return replace(item, completion_ids=tuple(item.completion_ids[i] for i in named), row=row)


def _token_ids(answers: Completions, b: int) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(ids_T[mask_T].tolist())
        for ids_T, mask_T in zip(answers.input_ids_BGT[b], answers.completion_mask_BGT[b], strict=True)
    )
