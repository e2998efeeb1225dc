"""The win rate against the reference: its interval by theory and simulation, and whose answers meet when."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from scipy.special import stdtrit
from scipy.stats import binom
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from alignment.data import EncodedRow, Row, Turn, encode_rows, stop_token_ids
from alignment.errors import UserError
from alignment.evaluation import ReferenceMatch, interval
from alignment.evaluation.win_rate import win_rate
from alignment.oracles import PanelOracle, RuleOracle
from alignment.oracles.rules import shorter
from alignment.policies import CausalLMPolicy
from alignment.tiny import tiny_model, tiny_tokenizer


def test_the_ends_solve_wilsons_equation() -> None:
    """|mean - p| = t sqrt(d p (1 - p) / P) at both ends, and d = 1 for verdicts.

    Values .9 and .5, half each: mean .7, variance .04, largest variance .7 * .3 = .21, so d = .04 / .21.
    """
    for values, share in (([1.0] * 7 + [0.0] * 3, 1.0), ([0.9, 0.5] * 5, 0.04 / 0.21)):
        rate = win_rate(torch.tensor(values, dtype=torch.float64))
        assert rate.mean == pytest.approx(0.7) and rate.num_prompts == 10
        for end in (rate.low, rate.high):
            step = float(stdtrit(9, 0.975)) * math.sqrt(share * end * (1.0 - end) / 10)
            assert abs(0.7 - end) == pytest.approx(step, rel=1e-9)


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_verdicts_that_agree_still_leave_room(mean: float) -> None:
    """Ten wins of ten do not show a win rate of 1; the plain interval would have no width."""
    rate = win_rate(torch.full((10,), mean))
    assert 0.2 < rate.high - rate.low < 0.4 and rate.low <= mean <= rate.high


def test_one_prompt_says_nothing() -> None:
    rate = win_rate(torch.tensor([0.8]))
    assert (rate.low, rate.high) == (0.0, 1.0)


@pytest.mark.parametrize("rate", [0.5, 0.8, 0.95])
def test_verdicts_are_covered(rate: float) -> None:
    """100 verdicts of 0 or 1, all outcomes with their binomial probabilities: 93 to 97 %."""
    covered = plain = 0.0
    for wins in range(101):
        wins_P = torch.tensor([1.0] * wins + [0.0] * (100 - wins))
        found = win_rate(wins_P)
        probability = float(binom.pmf(wins, 100, rate))
        covered += probability * (found.low <= rate <= found.high)
        half_width = float(stdtrit(99, 0.975)) * float(wins_P.std()) / 10.0
        plain += probability * (abs(found.mean - rate) <= half_width)
    assert 0.93 < covered < 0.97
    if rate == 0.95:
        assert plain < 0.89


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("rate", [0.5, 0.8, 0.95])
def test_probabilities_are_covered(rate: float, spread: float) -> None:
    """100 graded verdicts, Beta with this mean: nearly verdicts, or all near the mean; 8,000 draws: +- .5 points."""
    torch.manual_seed(0)
    ends = torch.tensor([spread * rate, spread * (1.0 - rate)], dtype=torch.float64)
    drawn = torch.distributions.Beta(ends[0], ends[1]).sample((8_000, 100))
    low_N, high_N = interval(drawn)
    covered = float(((low_N <= rate) & (rate <= high_N)).double().mean())
    assert 0.93 < covered < 0.97


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer(["one two three", "what now"], vocab_size=280)


@pytest.fixture(scope="module")
def rows(tokenizer: PreTrainedTokenizerFast) -> tuple[EncodedRow, ...]:
    """Five prompts, one of them twice."""
    numbers = (0, 1, 2, 1, 3, 4)
    plain = [Row(prompt=(Turn("user", f"what {n}"),), source=f"a:{i}") for i, n in enumerate(numbers)]
    return encode_rows(plain, tokenizer, max_prompt_length=32, max_completion_length=8).rows


@dataclass
class Models:
    """Two policies by name, and who was asked for."""

    policy: LlamaForCausalLM
    ref: LlamaForCausalLM
    asked: list[str] = field(default_factory=list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[nn.Module]:
        self.asked.append(name)
        yield self.policy if name == "policy" else self.ref


@pytest.fixture(scope="module")
def models(tokenizer: PreTrainedTokenizerFast) -> Models:
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
    return Models(tiny_model(tokenizer, **sizes, seed=0), tiny_model(tokenizer, **sizes, seed=1))


def match(
    rows: tuple[EncodedRow, ...], models: Models, tokenizer: PreTrainedTokenizerFast, **changes: Any
) -> ReferenceMatch:
    def speaker(module: nn.Module) -> CausalLMPolicy:
        stops = stop_token_ids(tokenizer)
        return CausalLMPolicy(module, tokenizer, stop_token_ids=stops, temperature=1.0, max_new_tokens=6)

    settings: dict[str, Any] = {"num_completions": 2, "num_prompts": None, "batch_size": 2, "seed": 0}
    oracle = changes.pop("oracle", RuleOracle(shorter))
    return ReferenceMatch(rows, oracle, policy_of=models, speaker=speaker, temperature=1.0, **settings | changes)


def test_the_reference_answers_once(
    rows: tuple[EncodedRow, ...], models: Models, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Three evaluations read one set of answers; a prompt of two rows counts once; a step has its own samples."""
    models.asked.clear()
    played = match(rows, models, tokenizer)
    first, again, later = (played.wins(models, step=step) for step in (1, 1, 2))
    assert models.asked == ["ref", "policy", "policy", "policy"]
    assert first.shape == (5, 1) and torch.equal(first, again) and not torch.equal(first, later)
    metrics = played.metrics(first)
    assert metrics["win_rate_num_prompts"] == 5
    assert metrics["win_rate_vs_ref"] == pytest.approx(float(first.mean()))
    assert metrics["win_rate_vs_ref_low"] < metrics["win_rate_vs_ref"] < metrics["win_rate_vs_ref_high"]


def test_wins_are_those_of_the_answers(
    rows: tuple[EncodedRow, ...], models: Models, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Two answers a prompt, each against one of the reference: the oracle's word on these pairs, averaged."""

    class Recorder:
        def __init__(self) -> None:
            self.questions: list[tuple[str, str, str]] = []

        def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
            self.questions += zip(prompts, left, right, strict=True)
            return torch.tensor([float(a < b) for a, b in zip(left, right, strict=True)], dtype=torch.float64)

    oracle = Recorder()
    played = match(rows, models, tokenizer, oracle=oracle)
    wins_PK = played.wins(models, step=1)
    asked = oracle.questions[:10]
    assert [theirs for _, _, theirs in asked] == [text for group in played._ref_texts for text in group]
    assert [prompt for prompt, _, _ in asked] == [f"what {n}" for n in (0, 0, 1, 1, 2, 2, 3, 3, 4, 4)]
    expected = [(0.5 if a == b else float(a < b)) for _, a, b in asked]
    assert wins_PK[:, 0].tolist() == pytest.approx([sum(expected[i : i + 2]) / 2 for i in range(0, 10, 2)])


def test_processes_share_the_prompts(
    rows: tuple[EncodedRow, ...], models: Models, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Two processes have as many prompts each; together every prompt counts once, with the answers of one process."""
    halves = [match(rows, models, tokenizer, process=(rank, 2)) for rank in (0, 1)]
    wins_PK = torch.cat([half.wins(models, step=1) for half in halves])
    assert wins_PK.shape == (6, 1) and int(wins_PK.isnan().sum()) == 1
    counted = [
        item.prompt_ids for half in halves for item, counts in zip(half.rows, half.counts_P, strict=True) if counts
    ]
    assert sorted(counted) == sorted({item.prompt_ids for item in rows})
    metrics = halves[0].metrics(wins_PK)
    assert metrics["win_rate_num_prompts"] == 5
    whole = match(rows, models, tokenizer, batch_size=5)
    assert metrics == pytest.approx(whole.metrics(whole.wins(models, step=1)))
    assert sorted(met for half in halves for met in half.last) == sorted(whole.last)


def test_a_choice_of_prompts_is_that_of_the_seed(
    rows: tuple[EncodedRow, ...], models: Models, tokenizer: PreTrainedTokenizerFast
) -> None:
    chosen = [
        [item.prompt_ids for item in match(rows, models, tokenizer, num_prompts=3, seed=seed).rows]
        for seed in (0, 0, 1, 2)
    ]
    assert all(len(set(prompts)) == 3 for prompts in chosen)
    assert chosen[0] == chosen[1] and len({tuple(prompts) for prompts in chosen}) > 1


def test_a_panel_has_an_interval_for_each_and_for_the_worst(
    rows: tuple[EncodedRow, ...], models: Models, tokenizer: PreTrainedTokenizerFast
) -> None:
    def longer(prompt: str, left: str, right: str) -> float:
        return 1.0 - shorter(prompt, left, right)

    panel = PanelOracle({"brief": RuleOracle(shorter), "wordy": RuleOracle(longer)})
    played = match(rows, models, tokenizer, oracle=panel)
    metrics = played.metrics(played.wins(models, step=1))
    rates = {name: metrics[f"win_rate_vs_ref_{name}"] for name in ("brief", "wordy")}
    assert sum(rates.values()) == pytest.approx(1.0) and rates["brief"] != rates["wordy"]
    worst = min(rates, key=lambda name: rates[name])
    for end in ("", "_low", "_high"):
        assert metrics[f"win_rate_vs_ref_worst{end}"] == metrics[f"win_rate_vs_ref_{worst}{end}"]
    assert metrics["win_rate_vs_ref"] == pytest.approx(0.5)


def test_a_member_cannot_be_called_like_an_end_of_an_interval(
    rows: tuple[EncodedRow, ...], models: Models, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(UserError, match=r"expected names other than low, high, worst, got 'low'"):
        match(rows, models, tokenizer, oracle=PanelOracle({"low": RuleOracle(shorter)}))
