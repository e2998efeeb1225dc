"""The stages of a round on the tiny model: what is sampled, what is asked, what is kept."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from alignment.artefacts import Artefact, read_rows, write_rows
from alignment.data import Comparison, EncodedRow, Row, Turn, encode_rows, stop_token_ids
from alignment.errors import UserError
from alignment.policies import CausalLMPolicy
from alignment.rounds import answer_prompts, compare_answers
from alignment.seeds import seeds_of
from alignment.tiny import tiny_model, tiny_tokenizer


class Ranked:
    """Prefers the answer with the larger number; counts its questions."""

    def __init__(self, sure: float = 0.9) -> None:
        self.sure, self.asked = sure, 0

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        self.asked += len(prompts)
        signs = [(int(a) > int(b)) - (int(a) < int(b)) for a, b in zip(left, right, strict=True)]
        return torch.tensor([0.5 + sign * (self.sure - 0.5) for sign in signs], dtype=torch.float64)


def answered(*numbers: int, source: str = "a:1") -> EncodedRow:
    row = Row(prompt=(Turn("user", "How many?"),), responses=tuple(str(n) for n in numbers), source=source)
    return EncodedRow(prompt_ids=(1, 2), completion_ids=tuple((10 + n, 3) for n in numbers), row=row)


def compare(rows: Sequence[EncodedRow], oracle: Ranked, pairs: str) -> tuple[EncodedRow, ...]:
    return compare_answers(rows, oracle, pairs=pairs, batch_size=2, seeds=range(len(rows))).rows


def test_all_pairs_keep_their_probabilities() -> None:
    oracle = Ranked()
    (item,) = compare([answered(3, 5, 4)], oracle, "all")
    found = {(c.winner, c.loser): c.probability for c in item.row.comparisons}
    assert found == pytest.approx({(0, 1): 0.1, (0, 2): 0.1, (1, 2): 0.9})
    assert oracle.asked == 2 * 3  # both orders


def test_best_against_worst_keeps_two_answers() -> None:
    oracle = Ranked()
    (item,) = compare([answered(3, 5, 4, 1)], oracle, "best_worst")
    assert item.row.responses == ("5", "1") and item.completion_ids == ((15, 3), (11, 3))
    assert [(c.winner, c.loser, c.probability) for c in item.row.comparisons] == [(0, 1, 1.0)]
    assert oracle.asked == 2 * 6


def test_a_random_pair_is_one_question() -> None:
    oracle = Ranked()
    rows = [answered(1, 2, 3, 4, source=f"a:{i}") for i in range(60)]
    kept = compare(rows, oracle, "random")
    assert oracle.asked == 2 * 60 and all(len(item.row.responses) == 2 for item in kept)
    assert len({item.row.responses for item in kept}) == 6
    for item in kept:
        (c,) = item.row.comparisons
        larger = int(item.row.responses[c.winner]) > int(item.row.responses[c.loser])
        assert c.probability == pytest.approx(0.9 if larger else 0.1)


def test_which_pair_is_drawn_does_not_depend_on_the_batch() -> None:
    rows = [answered(1, 2, 3, 4, source=f"a:{i}") for i in range(7)]
    whole, *parts = (
        compare_answers(rows, Ranked(), pairs="random", batch_size=size, seeds=seeds_of(7, "pairs"))
        for size in (7, 3, 1)
    )
    assert all(part == whole for part in parts)
    assert len({item.row.responses for item in whole.rows}) > 1


def test_the_tournament_takes_eleven_questions() -> None:
    """arXiv 2407.00617: eight answers, 4 + 3 + 3 + 1 matches; of a strict order it finds both ends."""
    oracle = Ranked()
    kept = compare([answered(4, 7, 1, 6, 8, 3, 2, 5), answered(8, 1, 2, 3, 4, 5, 6, 7)], oracle, "knockout")
    assert oracle.asked == 2 * 2 * 11
    for item in kept:
        (c,) = item.row.comparisons
        assert (item.row.responses[c.winner], item.row.responses[c.loser], c.probability) == ("8", "1", 1.0)


def test_ties_of_a_tournament_go_to_the_first() -> None:
    """5 and 05 tie, and so do 1 and 01: the first of each goes on among the winners, the second among the losers."""
    item = answered(5, 6, 1, 2)
    item = replace(item, row=replace(item.row, responses=("5", "05", "1", "01")))
    (kept,) = compare([item], Ranked(), "knockout")
    (c,) = kept.row.comparisons
    assert (kept.row.responses[c.winner], kept.row.responses[c.loser]) == ("5", "01")


@pytest.mark.parametrize("pairs", ["knockout", "best_worst"])
def test_a_prompt_without_a_winner_is_left_out(pairs: str) -> None:
    """An oracle without an opinion: every tie goes to the first answer, and the last match is a tie as well."""
    rows = [answered(1, 2, 3, 4)]
    compared = compare_answers(rows, Ranked(sure=0.5), pairs=pairs, batch_size=1, seeds=range(len(rows)))
    assert compared.rows == () and list(compared.skipped.values()) == [("a:1",)]


@pytest.mark.parametrize("pairs", ["all", "random", "best_worst", "knockout"])
def test_prompts_whose_answers_are_alike_are_skipped_unasked(pairs: str) -> None:
    oracle = Ranked()
    compared = compare_answers([answered(2, 2)], oracle, pairs=pairs, batch_size=1, seeds=[0])
    assert compared.rows == () and compared.skipped == {"answers all alike": ("a:1",)} and oracle.asked == 0


def test_ties_stay_for_a_loss_that_reads_single_answers() -> None:
    """Unasked, in their place, each answer with a rival that it neither beats nor loses to."""
    oracle = Ranked()
    rows = [answered(2, 2, 2, source="a:1"), answered(1, 2, 3, source="a:2")]
    compared = compare_answers(rows, oracle, keep_alike=True, batch_size=1, seeds=range(len(rows)))
    assert [item.row.source for item in compared.rows] == ["a:1", "a:2"] and compared.skipped == {}
    assert compared.rows[0].completion_ids == rows[0].completion_ids and oracle.asked == 2 * 3
    ties = compared.rows[0].row.comparisons
    assert {index for c in ties for index in (c.winner, c.loser)} == {0, 1, 2} and {c.probability for c in ties} == {
        0.5
    }


def test_the_same_text_in_other_tokens_is_not_alike() -> None:
    """The policy can tell them apart, so a loss of pairs learns from their tie."""
    item = answered(2, 2)
    item = replace(item, completion_ids=((12, 3), (1, 2, 3)))
    (kept,) = compare([item], Ranked(), "all")
    assert [c.probability for c in kept.row.comparisons] == [0.5]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer(["one two three", "what now"], vocab_size=280)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return tiny_model(tokenizer, hidden_size=16, num_layers=1, num_heads=2)


def test_a_round_keeps_the_sampled_tokens(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """A random model says bytes that are no text: encoded again, other tokens. Seeds decide the answers. What the rows
    held besides their prompts was said of other answers, and is gone."""
    said: list[dict[str, Any]] = [{"comparisons": (Comparison(0, 1),)}, {"scores": (0.0, 1.0)}, {}]
    rows = [
        Row(prompt=(Turn("user", f"what {n}"),), responses=("one", "two"), source=f"a:{n}", **feedback)
        for n, feedback in enumerate(said)
    ]
    prompts = encode_rows(rows, tokenizer, max_prompt_length=32, max_completion_length=8).rows
    policy = CausalLMPolicy(
        model, tokenizer, stop_token_ids=stop_token_ids(tokenizer), temperature=1.0, max_new_tokens=6
    )

    def answers(seed: int, batch_size: int = 2) -> tuple[EncodedRow, ...]:
        seeds = seeds_of(len(prompts), seed)
        return answer_prompts(policy, prompts, num_completions=2, batch_size=batch_size, seeds=seeds)

    found = answers(0)
    assert found == answers(0) == answers(0, batch_size=1) == answers(0, batch_size=3) != answers(1)
    assert [item.row.source for item in found] == ["a:0", "a:1", "a:2"]
    assert all((item.row.comparisons, item.row.scores) == ((), None) for item in found)
    for item in found:
        for ids, text in zip(item.completion_ids, item.row.responses, strict=True):
            assert 1 <= len(ids) <= 6 and tokenizer.decode(ids, skip_special_tokens=True) == text
    write_rows(tmp_path / "answers.jsonl", found)
    assert read_rows(tmp_path / "answers.jsonl") == found


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [answered(1, 2)])
    path.write_text(path.read_text() + '{"source": "a"\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2: expected a row of this run"):
        read_rows(path)


def test_an_artefact_of_something_else_is_refused(tmp_path: Path) -> None:
    artefact = Artefact(tmp_path / "rows.jsonl", {"method": {"name": "inpo", "tau": 0.1}, "seed": 0})
    assert not artefact.is_finished()
    artefact.path.write_text("")
    assert not artefact.is_finished()  # the file alone may be half written
    artefact.finish(rows=0)
    assert artefact.is_finished() and artefact.notes()["rows"] == 0
    other = replace(artefact, made_by={"method": {"name": "inpo", "tau": 0.2}, "seed": 0})
    assert other.fingerprint != artefact.fingerprint
    with pytest.raises(UserError, match=r"made by other values of method\.tau \(0\.1 then, 0\.2 now\)"):
        other.is_finished()
    assert json.loads(artefact.manifest.read_text())["fingerprint"] == artefact.fingerprint
