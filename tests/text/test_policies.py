"""Log-probs against the plain way, samples against the distribution, anchors against the policy, rollouts."""

import copy
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from alignment.anchors import AnchorSet, own_anchors
from alignment.annotator import Annotator
from alignment.data import Batch, Row, Turn, collate, encode_rows
from alignment.errors import UserError
from alignment.logps import score
from alignment.oracles import MatrixOracle
from alignment.policies import CausalLMPolicy
from alignment.stages import Sampling, judge, probabilities, prompts_only, rollout
from alignment.tiny import tiny_model, tiny_tokenizer
from alignment.types import Behaviour, Completions, Ema, Frozen, Needs, Past, Player, Previous
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


def test_an_anchor_has_no_dropout(model: LlamaForCausalLM, batch: Batch) -> None:
    """Nor the policy itself where it is one: log-probs of what sampled, in evaluation; it trains on as before."""
    expected_BG = score(model.eval(), batch.completions).logps_BG.detach()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    anchors = AnchorSet(Needs(feedback="wins", anchors=(Behaviour("behaviour"), Frozen("ref"))), model.train())
    for scored in anchors.score(batch.completions).values():
        torch.testing.assert_close(scored.logps_BG, expected_BG, rtol=0, atol=1e-6)
    assert model.training


@pytest.mark.parametrize(
    ("needs", "switches", "reason"),
    [
        ({}, {}, None),
        ({"stages": 2}, {}, "past a look-ahead it is another policy"),
        ({"per_token": True}, {}, "the loss reads them by token"),
        ({}, {"has_noise": True}, "dropout"),
        ({}, {"is_fresh": True}, "scoring.behaviour: fresh"),
    ],
)
def test_the_policys_next_forward_gives_its_own_log_probs(
    needs: dict[str, Any], switches: dict[str, bool], reason: str | None
) -> None:
    """Where it has not moved, and says the same again; else they have a forward of their own, and the line says why."""
    card = Needs(feedback="wins", anchors=(Frozen("ref"), Behaviour("behaviour")), **needs)
    names, (line,) = own_anchors(card, **{"is_fresh": False, "has_noise": False} | switches)
    assert names == (("behaviour",) if reason is None else ())
    assert ("it has not moved since" if reason is None else reason) in line
    assert own_anchors(Needs(feedback="wins", anchors=(Frozen("ref"),)), is_fresh=False, has_noise=False) == ((), ())


def test_past_policies_stand_latest_first_and_the_earliest_for_those_before_it() -> None:
    """The start of training, the policies of two earlier rounds, and once more the first of them."""
    policies = [symbol_model(logits_A=scale * torch.tensor([1.0, 0.0, -1.0])) for scale in (0.0, 1.0, 2.0)]
    needs = Needs(feedback="pairs", anchors=(Past("past", window=4),))
    anchors = AnchorSet(needs, policies[0], past_models=policies[1:])
    for name, policy in zip(anchors.names, (*policies, policies[-1]), strict=True):
        with anchors.model(name) as module:
            torch.testing.assert_close(symbol_policy(module), symbol_policy(policy), rtol=0, atol=0)


def test_a_fingerprint_is_of_the_adapter_where_it_acts(model: LlamaForCausalLM) -> None:
    """Another adapter is another policy over the same reference: stored log-probs of the one are not the other's."""
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear"))
    needs = Needs(feedback="pairs", anchors=(Frozen("ref"), Previous("prev")))
    prints = []
    for scale in (0.1, 0.2):
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(scale)
        anchors = AnchorSet(needs, adapted)
        prints.append((anchors.fingerprint("ref"), anchors.fingerprint("prev")))
    (ref, first), (same, second) = prints
    assert ref == same and len({ref, first, second}) == 3


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


def test_a_response_that_is_none_has_no_probability() -> None:
    """Two prompts with three and with two responses: each is softmax(1, 0, -1) over its own."""
    rows = [replace(row, responses=SYMBOLS[:size]) for row, size in zip(question_rows(2), (3, 2), strict=True)]
    encoded = encode_rows(rows, symbol_tokenizer(), max_prompt_length=9, max_completion_length=1).rows
    logits_A = torch.tensor([1.0, 0.0, -1.0])
    anchors = AnchorSet(Needs(feedback="wins"), symbol_model(logits_A=logits_A))
    found_BG = probabilities(collate(encoded, pad_token_id=0).completions, anchors.model, "policy", 1.0)
    torch.testing.assert_close(found_BG[0], logits_A.double().softmax(-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(found_BG[1, :2], logits_A[:2].double().softmax(-1), rtol=0, atol=1e-6)
    assert found_BG[1, 2] == 0.0


KL_LOGITS = torch.tensor([1.0, 0.0, -1.0]), torch.tensor([0.0, 0.5, 0.0])


def kl_annotator(sampling: Sampling, asked: list[tuple[float, int | None]], *, seed: int = 0) -> Annotator:
    """Of a policy and a reference over symbols; notes who is asked to answer, at which temperature and top_k."""
    policy, ref = (symbol_model(logits_A=logits_A) for logits_A in KL_LOGITS)
    needs = Needs(feedback="wins", anchors=(Frozen("ref"),), sampler="policy", opponent="group")

    def make_policy(module: LlamaForCausalLM, temperature: float, top_k: int | None = None) -> CausalLMPolicy:
        asked.append((temperature, top_k))
        return CausalLMPolicy(
            module, symbol_tokenizer(), stop_token_ids=(2,), temperature=temperature, max_new_tokens=1, top_k=top_k
        )

    return Annotator(
        needs,
        sampling=sampling,
        oracle=MatrixOracle(cyclic_game(tau=0.1).prefs_XAA, responses=SYMBOLS),
        anchors=AnchorSet(needs, policy, ref),
        make_policy=make_policy,
        seed=seed,
        without=(),
    )


@pytest.mark.parametrize("engine", ["enumerate", "transformers"])
def test_the_kl_to_the_reference_is_that_of_the_policy(engine: str) -> None:
    """By hand sum p log p/q, whatever the temperature and top_k of training samples: exact where responses are listed,
    else a mean over 64 prompts, within 4 standard errors, of which none is negative. What comes later, or weighs
    nothing, is left out."""
    policy_A, ref_A = (logits_A.double().softmax(-1) for logits_A in KL_LOGITS)
    by_hand = float((policy_A * (policy_A / ref_A).log()).sum())
    # Of one token: r - 1 - log r, r = q/p.
    ratio_A = ref_A / policy_A
    terms_A = ratio_A - 1.0 - ratio_A.log()
    error = float((policy_A * (terms_A - by_hand).square()).sum().sqrt()) / 64**0.5
    rows = [replace(row, responses=SYMBOLS) for row in question_rows(66)]
    encoded = encode_rows(rows, symbol_tokenizer(), max_prompt_length=9, max_completion_length=1).rows
    batch = collate([replace(item, number=n) for n, item in enumerate(encoded)], pad_token_id=0)
    weight_B = torch.ones(66)
    weight_B[0] = 0.0
    asked: list[tuple[float, int | None]] = []
    sampling = replace(SAMPLING, engine=engine, temperature=2.0, top_k=1)
    kl_B = kl_annotator(sampling, asked).kl_to_ref(replace(batch, row_weight_B=weight_B))
    assert kl_B.isnan().nonzero().flatten().tolist() == [0, 64, 65]
    assert float(kl_B[1:64].min()) >= 0.0
    if engine == "enumerate":
        assert kl_B[1:64].tolist() == pytest.approx([by_hand] * 63, abs=1e-6)
    else:
        assert float(kl_B[1:64].mean()) == pytest.approx(by_hand, abs=4.0 * error) and asked == [(1.0, None)]


def test_training_samples_have_their_own_temperature_and_top_k() -> None:
    asked: list[tuple[float, int | None]] = []
    batch = replace(enumerated_batch(), numbers=(0, 1))
    kl_annotator(replace(SAMPLING, temperature=2.0, top_k=2), asked).annotate(batch, "rollout")
    assert asked == [(2.0, 2)]


def test_samples_depend_on_the_run_the_purpose_and_the_row() -> None:
    """And on nothing else: the second batch holds the last row of the first one, whose answers it repeats."""

    def answers(purpose: str, *numbers: int, seed: int = 0) -> list[list[int]]:
        rows = encode_rows(
            question_rows(len(numbers)), symbol_tokenizer(), max_prompt_length=9, max_completion_length=1
        )
        batch = replace(collate(rows.rows, pad_token_id=0), numbers=numbers)
        sampling = replace(SAMPLING, num_completions=12)
        completions = kl_annotator(sampling, [], seed=seed).annotate(batch, purpose).completions
        return [ids_GT[:, -1].tolist() for ids_GT in completions.input_ids_BGT]

    first = answers("rollout 1", 0, 1, 2)
    assert answers("rollout 1", 2) == first[2:]
    assert len({tuple(said) for said in (*first, *answers("rollout 2", 2), *answers("rollout 1", 2, seed=1))}) == 5


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
