"""The text game: its crowd goes round in a circle, and a language model's play is read off exactly."""

import itertools

import pytest
import torch
from transformers import LlamaForCausalLM

from alignment.data import collate, encode_rows, prompt_text, stop_token_ids
from alignment.errors import UserError
from alignment.policies import CausalLMPolicy
from alignment.stages import prompts_only
from alignment.textgame import TextGame, World, draw_rows
from alignment.textgame.world import CERTAINTIES, CLOSINGS, DETAILS, TONES
from alignment.tiny import tiny_model

CHOICES = list(itertools.product(range(len(TONES)), range(3), range(3), range(len(CLOSINGS))))


def test_the_crowd_goes_round_in_a_circle(world: World) -> None:
    """With all else equal a tone beats the next of its circle: 4 of 5 schools say so, the minority does not mind."""
    prefs_XAA = world.prefs_XAA(world.weights_S)
    for x, direction in ((0, 1), (5, -1)):
        plain = [CHOICES.index(((x + direction * d) % 5, 0, 0, 0)) for d in range(5)]
        wins = [float(prefs_XAA[x, plain[(d + 4) % 5], plain[d]]) for d in range(5)]
        # Neighbours differ by half a unit, a school's first and last tone by 2: logits 2 and -8.
        expected = 0.88 * (4 * 0.880797 + 0.000335) / 5 + 0.12 * 0.5
        assert wins == pytest.approx([expected] * 5, abs=1e-5) and expected > 0.66


def test_the_minority_wants_the_opposite_of_the_schools_detail(world: World) -> None:
    games = {name: world.prefs_XAA(weights_S) for name, weights_S in world.groups().items()}
    brief, long = CHOICES.index((0, 0, 0, 0)), CHOICES.index((0, 0, 2, 0))
    assert (games["schools"][:, long, brief] > 0.8).all()
    assert (games["minority"][:, long, brief] < 0.1).all()
    cautious = CHOICES.index((0, 2, 0, 0))
    assert (games["minority"][:, cautious, brief] > 0.9).all()
    assert torch.allclose(games["schools"][:, cautious, brief], torch.tensor(0.5, dtype=torch.float64))


def test_preferences_are_preferences(world: World) -> None:
    prefs_XAA = world.prefs_XAA(world.weights_S)
    assert torch.allclose(prefs_XAA + prefs_XAA.mT, torch.ones(1, dtype=torch.float64))
    assert torch.allclose(world.habits_XA.sum(-1), torch.ones(1, dtype=torch.float64))
    assert all(len(set(group)) == len(CHOICES) for group in world.answers)
    assert len(DETAILS) == len(CERTAINTIES) == 3


def test_the_oracle_looks_answers_up_and_turns_strays_away(text: TextGame) -> None:
    oracle, world = text.oracle(), text.world
    question, answers = world.questions[7], world.answers[7]
    stray, other = "Gladly, surely", world.answers[8][0]
    found = oracle.prefer(
        [question] * 4, [answers[3], answers[3], stray, stray], [answers[50], stray, answers[3], other]
    )
    expected = float(text.game(tau=0.0).prefs_XAA[7, 3, 50])
    assert found.tolist() == pytest.approx([expected, 1.0, 0.0, 0.5])
    with pytest.raises(UserError, match="expected one of its 30 questions, got 'Why'"):
        oracle.prefer(["Why"], ["a"], ["b"])


def test_a_panel_is_its_groups(text: TextGame) -> None:
    panel, world = text.panel(), text.world
    assert panel.names == ("schools", "minority")
    exact = text.panel_game(tau=0.1)
    for k, member in enumerate(panel.members):
        found = member.prefer([world.questions[2]], [world.answers[2][5]], [world.answers[2][90]])
        assert float(found) == pytest.approx(float(exact.prefs_KXAA[k, 2, 5, 90]))


def test_every_answer_survives_the_tokenizer(text: TextGame) -> None:
    tokenizer = text.tokenizer
    for x in (0, 29):
        for a, answer in enumerate(text.world.answers[x]):
            ids = text.answers.input_ids_BGT[x, a][text.answers.completion_mask_BGT[x, a]]
            assert int(ids[-1]) in stop_token_ids(tokenizer)
            assert tokenizer.decode(ids, skip_special_tokens=True) == answer


def certain_model(text: TextGame, words: str) -> LlamaForCausalLM:
    """A model that says the next word of a sentence with near certainty, read off the last word alone."""
    tokenizer = text.tokenizer
    model = tiny_model(tokenizer, hidden_size=96, num_layers=1, num_heads=1, intermediate_size=8)
    ids = [tokenizer.convert_tokens_to_ids("<|assistant|>"), *tokenizer(words)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), 96))
        model.lm_head.weight.zero_()
        for now, following in itertools.pairwise(ids):
            model.lm_head.weight[following, now] = 4.0
    return model


def test_mass_inside_and_outside(text: TextGame) -> None:
    """A model that recites one answer has its mass there; one that recites a stray sentence has it outside."""
    answer = "Look, perhaps paint the bell slowly. Enjoy!"
    x, a = 4, text.world.answers[4].index(answer)
    found = text.policy_XA(certain_model(text, answer))
    assert float(found.policy_XA[x, a]) > 0.999 and float(found.outside_X[x]) < 1e-3
    assert float(text.policy_XA(certain_model(text, "Enjoy! Gladly,")).outside_X.min()) > 0.999


def test_probabilities_are_those_of_sampling(text: TextGame) -> None:
    """Log-probs token by token, one sequence at a time, equal the enumerated ones."""
    found = text.policy_XA(text.ref)
    logs = []
    for a in range(3):
        keep_T = text.answers.attention_mask_BGT[11, a]
        ids_T, answer_T = text.answers.input_ids_BGT[11, a][keep_T], text.answers.completion_mask_BGT[11, a][keep_T]
        with torch.no_grad():
            logps_T = text.ref(ids_T[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids_T[1:, None])[:, 0]
        logs.append(logps_T[answer_T[1:]].sum())
    expected_3 = torch.stack(logs).double()
    torch.testing.assert_close(
        found.policy_XA[11, :3].log().diff(), expected_3.diff(), rtol=0, atol=1e-4, msg="ratios of probabilities"
    )
    assert float(found.outside_X[11]) > 0.99


def test_preference_rows_are_judged_by_single_annotators(text: TextGame) -> None:
    """Winners occur as often as the crowd's probabilities say, within four standard errors."""
    rows = draw_rows(text, "comparisons", 60)
    game = text.game(tau=0.0)
    excess, variance = 0.0, 0.0
    for row in rows:
        x = text.world.questions.index(prompt_text(row))
        index = [text.world.answers[x].index(response) for response in row.responses]
        assert len(row.comparisons) == 120
        for comparison in row.comparisons:
            i, j = sorted((comparison.winner, comparison.loser))
            p = float(game.prefs_XAA[x, index[i], index[j]])
            sign = 1.0 if p > 0.5 else -1.0
            excess += sign * ((comparison.winner == i) - p)
            variance += p * (1 - p)
    assert abs(excess) < 4 * variance**0.5


def test_sampling_speaks_the_same_texts(text: TextGame) -> None:
    """What generation says is decoded to texts that the oracle knows, where they are answers."""
    answer = text.world.answers[0][0]
    policy = CausalLMPolicy(
        certain_model(text, answer),
        text.tokenizer,
        stop_token_ids=stop_token_ids(text.tokenizer),
        temperature=1.0,
        max_new_tokens=20,
    )
    encoded = encode_rows(text.rows()[:1], text.tokenizer, max_prompt_length=32, max_completion_length=32).rows
    said = policy.sample(
        prompts_only(collate(encoded, pad_token_id=0)), num_completions=2, generator=torch.Generator().manual_seed(0)
    )
    assert policy.texts(said) == [[answer, answer]]
