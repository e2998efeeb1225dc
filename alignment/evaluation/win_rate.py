"""The win rate of a policy against its reference on held-out prompts, with a 95 % interval.

The unit is the prompt: answers to one prompt are not independent, so a prompt counts once, with the mean of its
answers.

Shape letters: ``P`` prompts, ``C`` prompts of a chunk, ``K`` oracles, ``G`` answers to a prompt,
``N`` samples of prompts.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from alignment.data import EncodedRow, collate, prompt_text
from alignment.errors import UserError
from alignment.evaluation.intervals import LEVEL, Estimate, ends
from alignment.oracles import PanelOracle, ask, preference_matrix
from alignment.policies import CausalLMPolicy
from alignment.rounds import answered_chunks
from alignment.seeds import seed_of
from alignment.stages import PolicyOf, probabilities
from alignment.types import Oracle

_TAKEN = ("low", "high", "worst")


def win_rate(wins_P: Tensor) -> Estimate:
    """The mean over prompts with its interval; see :func:`interval`.

    Args:
        wins_P: win probability of each prompt, in [0, 1].

    Example:
        >>> win_rate(torch.tensor([1.0, 1.0, 1.0, 0.0]))
        Estimate(mean=0.75, low=0.162..., high=0.978..., num_prompts=4)
    """
    low, high = interval(wins_P)
    return Estimate(mean=float(wins_P.double().mean()), low=float(low), high=float(high), num_prompts=len(wins_P))


def interval(wins_NP: Tensor) -> tuple[Tensor, Tensor]:
    """The ends of Wilson's 95 % interval of the mean over prompts, at the effective number of prompts.

    It is ``|mean - p| <= t sqrt(d p (1 - p) / P)`` solved for p. A number in [0, 1] of mean p has at most the variance
    ``p (1 - p)``, that of a verdict of 0 or 1; d is the share of it that the prompts show, so it is 1 for verdicts and
    less for probabilities and for means of several answers, but never taken for less than 1/P. t is Student's quantile
    with P - 1 degrees of freedom.

    The plain interval ``mean +- t s / sqrt(P)`` leaves [0, 1], and of 100 verdicts at a win rate of .95 it covers 88 %;
    this one covers 93 to 97 %, also of probabilities (``tests/evaluation/test_win_rate.py``). Of few prompts with
    probabilities that are nearly all 1 it covers less: what the rest is like has not been seen.

    Args:
        wins_NP: win probabilities in [0, 1], of several samples of P prompts each or of one.

    Returns:
        Lower and upper ends [N], float64, in [0, 1]. Of a single prompt they are 0 and 1.
    """
    wins_NP = wins_NP.double().cpu()
    num_prompts = wins_NP.shape[-1]
    variance_N = wins_NP.var(-1, correction=0) / num_prompts
    low_N, high_N = ends(wins_NP.mean(-1).numpy(), variance_N.numpy(), num_prompts, LEVEL)
    return torch.as_tensor(low_N), torch.as_tensor(high_N)


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """Two answers to a prompt that have met.

    Attributes:
        prompt: as the oracle reads it.
        policy: the policy's answer.
        ref: the reference's.
        win: probability that the policy's is better, the mean over oracles.
        members: the same by each member of a panel.
    """

    prompt: str
    policy: str
    ref: str
    win: float
    members: Mapping[str, float]


class ReferenceMatch:
    """Meets the policy's answers to held-out prompts with those of the reference, which are sampled once, here.

    The reference does not move, so its answers serve all evaluations of a run; they have a seed of their own. The
    policy's have one for each step. An answer of the policy meets one of the reference.

    Args:
        rows: held-out rows of all processes; a prompt that several of them have counts once.
        oracle: who judges; of a panel every member.
        policy_of: the modules behind "policy" and "ref"; "ref" is only read here.
        speaker: module -> a policy that samples; ``None`` takes the exact probabilities of the responses that the rows
            carry (enumerated ones), at ``temperature``.
        temperature: of enumerated responses; a speaker has its own.
        num_completions: answers to a prompt.
        num_prompts: a random choice of so many; ``None`` for all.
        batch_size: prompts answered at once.
        seed: of the choice and of all answers.
        process: this process's number, and how many there are: each takes its own prompts.
        shows_progress: a bar on stderr while answers are sampled.

    Attributes:
        last: what met in the latest call of :meth:`wins` on this process, each with its number among those of all
            processes, repeated prompts left out; nothing where responses are enumerated.

    Raises:
        UserError: if a member of the panel has a name that its metrics would share with another.
    """

    def __init__(
        self,
        rows: Sequence[EncodedRow],
        oracle: Oracle,
        *,
        policy_of: PolicyOf,
        speaker: Callable[[nn.Module], CausalLMPolicy] | None,
        temperature: float,
        num_completions: int,
        num_prompts: int | None,
        batch_size: int,
        seed: int,
        process: tuple[int, int] = (0, 1),
        shows_progress: bool = False,
    ) -> None:
        self.names = oracle.names if isinstance(oracle, PanelOracle) else ()
        self.members = oracle.members if isinstance(oracle, PanelOracle) else (oracle,)
        clash = [name for name in self.names if name in _TAKEN]
        if clash:
            raise UserError(f"oracle.members: expected names other than {', '.join(_TAKEN)}, got '{clash[0]}'")
        self.speaker, self.temperature, self.num_completions = speaker, temperature, num_completions
        self.batch_size, self.seed, self.shows_progress = batch_size, seed, shows_progress
        chosen = _distinct_prompts(rows)
        if num_prompts is not None and num_prompts < len(chosen):
            order = np.random.default_rng(seed_of(seed, "prompts")).permutation(len(chosen))[:num_prompts]
            chosen = [chosen[i] for i in sorted(order)]
        # Where weights are spread over processes a forward needs them all: each has as many prompts, the last ones
        # repeated, and repeated ones do not count.
        num_own = -(-len(chosen) // process[1])
        places = range(process[0], num_own * process[1], process[1])
        self.places = list(places)
        self.rows = [chosen[place % len(chosen)] for place in places]
        self.counts_P = torch.tensor([place < len(chosen) for place in places])
        self.last: tuple[tuple[int, Met], ...] = ()
        if speaker is None:
            self._ref_PG = self._probabilities(policy_of, "ref")
        else:
            self._ref_texts = self._answers(policy_of, "ref", "answers of the reference")

    def wins(self, policy_of: PolicyOf, *, step: int) -> Tensor:
        """Win probability of this process's prompts by each oracle, [P, K], float32 on the CPU; nan does not count.

        Args:
            policy_of: gives the policy.
            step: seeds its answers.
        """
        wins_PK = self._exact_wins(policy_of) if self.speaker is None else self._sampled_wins(policy_of, step)
        return torch.where(self.counts_P[:, None], wins_PK, torch.nan).float()

    def _exact_wins(self, policy_of: PolicyOf) -> Tensor:
        policy_PG = self._probabilities(policy_of, "policy")
        parts = []
        for chunk, policy_CG, ref_CG in zip(
            self._chunks("exact win rates"),
            policy_PG.split(self.batch_size),
            self._ref_PG.split(self.batch_size),
            strict=True,
        ):
            prompts, responses = [prompt_text(item.row) for item in chunk], [item.row.responses for item in chunk]
            prefs = [preference_matrix(member, prompts, responses) for member in self.members]
            parts.append(torch.einsum("ci,kcij,cj->ck", policy_CG, torch.stack(prefs), ref_CG))
        return torch.cat(parts)

    def _sampled_wins(self, policy_of: PolicyOf, step: int) -> Tensor:
        texts = self._answers(policy_of, "policy", "answers of the policy", step)
        asked = [
            (prompt_text(item.row), ours, theirs)
            for item, group, rivals in zip(self.rows, texts, self._ref_texts, strict=True)
            for ours, theirs in zip(group, rivals, strict=True)
        ]
        columns = [list(column) for column in zip(*asked, strict=True)]
        wins_NK = torch.stack([ask(member, *columns) for member in self.members], dim=-1)
        met = [
            Met(
                prompt=str(prompt),
                policy=ours,
                ref=theirs,
                win=sum(wins) / len(wins),
                members=dict(zip(self.names, wins, strict=False)),
            )
            for (prompt, ours, theirs), wins in zip(asked, wins_NK.tolist(), strict=True)
        ]
        numbers = [place * self.num_completions + k for place in self.places for k in range(self.num_completions)]
        counts = self.counts_P.repeat_interleave(self.num_completions).tolist()
        self.last = tuple(itertools.compress(zip(numbers, met, strict=True), counts))
        return wins_NK.reshape(len(self.rows), -1, len(self.members)).mean(1)

    def metrics(self, wins_PK: Tensor) -> dict[str, float]:
        """The mean over oracles with its interval; of a panel also that of each, and that of the lowest.

        Args:
            wins_PK: of all processes, as :meth:`wins` gave them.
        """
        wins_PK = wins_PK[~wins_PK.isnan().any(-1)].cpu()
        overall = win_rate(wins_PK.mean(-1))
        metrics = _named("win_rate_vs_ref", overall) | {"win_rate_num_prompts": overall.num_prompts}
        if self.names:
            rates = {name: win_rate(wins_P) for name, wins_P in zip(self.names, wins_PK.unbind(-1), strict=True)}
            for name, rate in rates.items():
                metrics |= _named(f"win_rate_vs_ref_{name}", rate)
            metrics |= _named("win_rate_vs_ref_worst", min(rates.values(), key=lambda rate: rate.mean))
        return metrics

    def _answers(self, policy_of: PolicyOf, name: str, what: str, step: int | None = None) -> list[tuple[str, ...]]:
        assert self.speaker is not None
        texts: list[tuple[str, ...]] = []
        with policy_of(name) as module:
            chunks = answered_chunks(
                self.speaker(module),
                self.rows,
                num_completions=self.num_completions,
                batch_size=self.batch_size,
                seeds=[seed_of(self.seed, name, step, place) for place in self.places],
            )
            with self._bar(what) as bar:
                for chunk in chunks:
                    texts += [item.row.responses for item in chunk]
                    bar.update(len(chunk))
        return texts

    def _probabilities(self, policy_of: PolicyOf, name: str) -> Tensor:
        """Probabilities [P, G] of enumerated responses, float64 on the CPU."""
        with policy_of(name) as module:
            device = next(module.parameters()).device
        parts = []
        for chunk in self._chunks("probabilities"):
            # The token fills gaps that masks leave out.
            batch = collate(chunk, pad_token_id=0).to(device)
            parts.append(probabilities(batch.completions, policy_of, name, self.temperature).cpu())
        return torch.cat(parts)

    def _bar(self, what: str) -> Any:
        return tqdm(total=len(self.rows), desc=what, leave=False, disable=not self.shows_progress)

    def _chunks(self, what: str) -> Iterator[list[EncodedRow]]:
        with self._bar(what) as bar:
            for start in range(0, len(self.rows), self.batch_size):
                chunk = self.rows[start : start + self.batch_size]
                yield chunk
                bar.update(len(chunk))


def _distinct_prompts(rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    distinct: dict[tuple[int, ...], EncodedRow] = {}
    for item in rows:
        distinct.setdefault(item.prompt_ids, item)
    return list(distinct.values())


def _named(name: str, rate: Estimate) -> dict[str, float]:
    return {name: rate.mean, f"{name}_low": rate.low, f"{name}_high": rate.high}
