"""Log-probs against the plain way, samples against the distribution, anchors against the policy, rollouts."""

import copy
from dataclasses import replace

import peft
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from alignment.anchors import AnchorSet
from alignment.data import Batch, Row, Turn, collate, encode_rows
from alignment.errors import UserError
from alignment.logps import score
from alignment.oracles import MatrixOracle
from alignment.policies import CausalLMPolicy
from alignment.stages import Sampling, judge, prompts_only, rollout
from alignment.tiny import tiny_model, tiny_tokenizer
from alignment.types import Behaviour, Completions, Ema, Frozen, Needs, Player
from tests.text.symbols import SYMBOLS, cyclic_game, question_rows, symbol_model, symbol_policy, symbol_tokenizer

TEXTS = ("Say one.", "one", "Say a longer thing, please.", "something much longer than that", "no", "maybe")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer(TEXTS, vocab_size=280)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return tiny_model(tokenizer, hidden_size=16, num_layers=2, num_heads=2)


@pytest.fixture
def batch(tokenizer: PreTrainedTokenizerFast) -> Batch:
    """Prompts and completions of different lengths, and a ragged group."""
    rows = [
        Row(prompt=(Turn("user", TEXTS[0]),), responses=TEXTS[1:4:2], source="t:1"),
        Row(prompt=(Turn("user", TEXTS[2]),), responses=(TEXTS[4], TEXTS[5], TEXTS[1]), source="t:2"),
    ]
    encoded = encode_rows(rows, tokenizer, max_prompt_length=99, max_completion_length=99).rows
    return collate(encoded, pad_token_id=tokenizer.pad_token_id)


def plain_logps(model: LlamaForCausalLM, completions: Completions) -> Tensor:
    """One sequence at a time, no padding, all logits."""
    values = torch.zeros(completions.valid_BG.shape)
    for b, g in completions.valid_BG.nonzero().tolist():
        ids_T = completions.input_ids_BGT[b, g][completions.attention_mask_BGT[b, g]]
        count = int(completions.completion_mask_BGT[b, g].sum())
        logps_TV = model(ids_T[None]).logits[0].log_softmax(-1)
        values[b, g] = logps_TV[:-1].gather(1, ids_T[1:, None])[-count:].sum()
    return values


def test_scores_equal_the_plain_way(model: LlamaForCausalLM, batch: Batch) -> None:
    """Values and gradients; padding on either side and in the group changes nothing."""
    scores = score(model, batch.completions)
    expected_BG = plain_logps(model, batch.completions)
    torch.testing.assert_close(scores.logps_BG, expected_BG, rtol=0, atol=2e-5)
    torch.testing.assert_close(scores.token_logps_BGT.sum(-1), scores.logps_BG)
    assert scores.token_mask_BGT.sum(-1).tolist() == batch.completions.lengths_BG.tolist()
    grads = [
        torch.autograd.grad(value.sum(), model.parameters(), allow_unused=True)
        for value in (scores.logps_BG, expected_BG)
    ]
    for mine, plain in zip(*grads, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)


def test_confidence(model: LlamaForCausalLM, batch: Batch) -> None:
    """log pi(y_t) - log sum_v pi(v)^2, by hand for one token, and without gradient."""
    scores = score(model, batch.completions, confidence=True)
    ids_T = batch.completions.input_ids_BGT[1, 0][batch.completions.attention_mask_BGT[1, 0]]
    start = len(ids_T) - int(batch.completions.lengths_BG[1, 0])
    logps_V = model(ids_T[None]).logits[0, start - 1].log_softmax(-1)
    expected = logps_V[ids_T[start]] - logps_V.exp().square().sum().log()
    assert scores.token_excess_BGT is not None and not scores.token_excess_BGT.requires_grad
    assert scores.token_excess_BGT[1, 0, 0].item() == pytest.approx(expected.item(), abs=1e-5)


def symbol_prompts(count: int) -> Completions:
    tokenizer = symbol_tokenizer()
    rows = encode_rows(question_rows(count), tokenizer, max_prompt_length=9, max_completion_length=1).rows
    return prompts_only(collate(rows, pad_token_id=0))


def symbol_sampler(temperature: float) -> CausalLMPolicy:
    model = symbol_model(logits_A=torch.tensor([1.0, 0.0, -1.0]))
    return CausalLMPolicy(model, symbol_tokenizer(), stop_token_ids=(2,), temperature=temperature, max_new_tokens=1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_follow_the_policy(temperature: float) -> None:
    """4,000 answers within 4 standard errors of softmax(logits / temperature)."""
    policy = symbol_sampler(temperature)
    answers = policy.sample(symbol_prompts(1), num_completions=4000, generator=torch.Generator().manual_seed(0))
    symbols_N = answers.input_ids_BGT[0, :, -1] - 4
    expected_A = (torch.tensor([1.0, 0.0, -1.0]) / temperature).softmax(-1)
    frequency_A = torch.bincount(symbols_N, minlength=3) / 4000
    assert ((frequency_A - expected_A).abs() < 4 * (expected_A * (1 - expected_A) / 4000).sqrt()).all()


def test_samples_repeat_with_the_generator_and_leave_the_global_one() -> None:
    """The same state, the same answers; another draw, others; torch's own generator does not notice."""
    policy, generator = symbol_sampler(1.0), torch.Generator().manual_seed(1)
    before = torch.get_rng_state()
    first = policy.sample(symbol_prompts(2), num_completions=8, generator=generator)
    second = policy.sample(symbol_prompts(2), num_completions=8, generator=generator)
    again = policy.sample(symbol_prompts(2), num_completions=8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.input_ids_BGT, again.input_ids_BGT)
    assert not torch.equal(first.input_ids_BGT, second.input_ids_BGT)


def test_an_answer_ends_with_its_stop_token(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, batch: Batch
) -> None:
    """The stop token belongs to the answer, what follows does not; log-probs of samples can be taken."""
    stops = tuple(range(100, 200))
    policy = CausalLMPolicy(model, tokenizer, stop_token_ids=stops, temperature=1.0, max_new_tokens=6)
    answers = policy.sample(prompts_only(batch), num_completions=5, generator=torch.Generator().manual_seed(0))
    for ids_T, mask_T in zip(
        answers.input_ids_BGT.flatten(0, 1), answers.completion_mask_BGT.flatten(0, 1), strict=True
    ):
        said = ids_T[mask_T].tolist()
        assert 1 <= len(said) <= 6 and not any(token in stops for token in said[:-1])
        assert said[-1] in stops or len(said) == 6
    torch.testing.assert_close(policy.logps(answers), plain_logps(model, answers), rtol=0, atol=2e-5)


def test_a_models_own_generation_settings_do_not_bend_the_samples() -> None:
    """Qwen2.5 ships a repetition penalty and nucleus sampling; log-probs know nothing of them: the same draws."""

    def draw(policy: CausalLMPolicy) -> Tensor:
        policy.decoding = replace(policy.decoding, max_new_tokens=3)
        generator = torch.Generator().manual_seed(0)
        return policy.sample(symbol_prompts(1), num_completions=100, generator=generator).input_ids_BGT

    plain, bent = symbol_sampler(1.0), symbol_sampler(1.0)
    bent.model.generation_config.update(
        repetition_penalty=1.8, no_repeat_ngram_size=2, top_p=0.4, top_k=2, min_p=0.5, typical_p=0.5, min_new_tokens=2
    )
    assert torch.equal(draw(bent), draw(plain))


def test_answers_as_text_and_the_mode_of_the_model(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, batch: Batch
) -> None:
    """Texts hold no special token and nothing of the prompt; a model that was training still is."""
    policy = CausalLMPolicy(model, tokenizer, stop_token_ids=(2,), temperature=1.0, max_new_tokens=4)
    assert policy.texts(batch.completions)[0] == [TEXTS[1], TEXTS[3], ""]
    assert policy.texts(batch.completions)[1] == [TEXTS[4], TEXTS[5], TEXTS[1]]
    for mode in (True, False):
        model.train(mode)
        policy.sample(prompts_only(batch), num_completions=1, generator=torch.Generator().manual_seed(0))
        assert model.training is mode


def test_the_reference_stays_and_the_target_follows(model: LlamaForCausalLM, batch: Batch) -> None:
    """ref is a copy of the start; target <- decay target + (1 - decay) policy; behaviour is the policy itself."""
    needs = Needs(feedback="wins", anchors=(Frozen("ref"), Ema("target", decay=0.75), Behaviour("behaviour")))
    anchors = AnchorSet(needs, model)
    start = {name: scored.logps_BG for name, scored in anchors.score(batch.completions).items()}
    old = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05)
    anchors.advance()
    moved = {name: scored.logps_BG for name, scored in anchors.score(batch.completions).items()}
    torch.testing.assert_close(moved["ref"], start["ref"], rtol=0, atol=0)
    torch.testing.assert_close(moved["behaviour"], score(model, batch.completions).logps_BG.detach())
    with anchors.model("target") as target:
        for slow, first, last in zip(target.parameters(), old.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(slow, 0.75 * first + 0.25 * last)
    other = AnchorSet(needs, old)
    other.load_state_dict(anchors.state_dict())
    torch.testing.assert_close(other.score(batch.completions)["target"].logps_BG, moved["target"])
    with pytest.raises(UserError, match="'rival'"):
        AnchorSet(Needs(feedback="pairs", anchors=(Player("rival"),)), model)


def test_the_reference_of_an_adapter_is_its_base(model: LlamaForCausalLM, batch: Batch) -> None:
    """With a perturbed adapter the policy differs from ref, and ref is the base model: trl's mixture failed this."""
    base_BG = score(copy.deepcopy(model), batch.completions).logps_BG.detach()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.5))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted.train()
    anchors = AnchorSet(Needs(feedback="pairs", anchors=(Frozen("ref"),)), adapted)
    torch.testing.assert_close(anchors.score(batch.completions)["ref"].logps_BG, base_BG, rtol=0, atol=1e-5)
    assert adapted.training
    assert float((score(adapted.eval(), batch.completions).logps_BG - base_BG).abs().max()) > 0.1


SAMPLING = Sampling(
    num_completions=3,
    temperature=1.0,
    max_new_tokens=1,
    engine="transformers",
    opponent_temperature=1.0,
    opponent_completions=2,
)


def enumerated_batch() -> Batch:
    rows = [Row(prompt=row.prompt, responses=SYMBOLS, source=row.source) for row in question_rows(2)]
    encoded = encode_rows(rows, symbol_tokenizer(), max_prompt_length=9, max_completion_length=1).rows
    return collate(encoded, pad_token_id=0)


def roll(needs: Needs, batch: Batch, sampling: Sampling) -> tuple[object, Tensor]:
    """Rollout of the symbol policy, and the wins that the cyclic oracle gives it."""
    model = symbol_model(logits_A=torch.tensor([1.0, 0.0, -1.0]))
    anchors = AnchorSet(needs, model)
    rolled = rollout(
        batch,
        needs=needs,
        sampling=sampling,
        make_policy=lambda module, temperature: CausalLMPolicy(
            module, symbol_tokenizer(), stop_token_ids=(2,), temperature=temperature, max_new_tokens=1
        ),
        policy_of=anchors.model,
        seeds=[0, 1],
    )
    feedback = judge(rolled, MatrixOracle(cyclic_game(tau=0.1).prefs_XAA, responses=SYMBOLS), needs)
    assert feedback.wins_KBG is not None
    return rolled, feedback.wins_KBG[0]


def test_each_response_meets_its_own_prompts_opponents() -> None:
    """Invariant 8: wins are those of the prompt's own rows, by hand from the texts."""
    rolled, wins_BG = roll(Needs(feedback="wins", sampler="policy", opponent="fresh"), enumerated_batch(), SAMPLING)
    prefs_AA = cyclic_game(tau=0.1).prefs_XAA[0]
    index = {symbol: a for a, symbol in enumerate(SYMBOLS)}
    for b in range(2):
        for g, response in enumerate(rolled.responses[b]):  # type: ignore[attr-defined]
            rivals = rolled.opponents[b]  # type: ignore[attr-defined]
            by_hand = sum(prefs_AA[index[response], index[rival]].item() for rival in rivals) / len(rivals)
            assert wins_BG[b, g].item() == pytest.approx(by_hand)
    assert len(rivals) == 2


def test_enumerated_wins_are_exact() -> None:
    """P(y > policy) by the policy's own probabilities; the sampler's temperature changes weights, not wins."""
    import dataclasses

    policy_A = symbol_policy(symbol_model(logits_A=torch.tensor([1.0, 0.0, -1.0])))[0]
    prefs_AA = cyclic_game(tau=0.1).prefs_XAA[0]
    for temperature, expected_A in ((1.0, policy_A), (2.0, policy_A.sqrt()), (float("inf"), torch.ones(3))):
        sampling = dataclasses.replace(SAMPLING, engine="enumerate", temperature=temperature)
        needs = Needs(feedback="wins", sampler="policy", opponent="fresh")
        rolled, wins_BG = roll(needs, enumerated_batch(), sampling)
        torch.testing.assert_close(wins_BG[0], prefs_AA @ policy_A, rtol=0, atol=1e-6)
        weights_A = rolled.weights_BG[0]  # type: ignore[attr-defined]
        torch.testing.assert_close(weights_A, (expected_A / expected_A.sum()).double(), rtol=0, atol=1e-6)
    group = Needs(feedback="wins", sampler="policy", opponent="group")
    _, wins_BG = roll(group, enumerated_batch(), dataclasses.replace(SAMPLING, engine="enumerate"))
    torch.testing.assert_close(wins_BG[0], prefs_AA @ policy_A, rtol=0, atol=1e-6)
