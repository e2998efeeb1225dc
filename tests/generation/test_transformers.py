"""The default engine: by the model's own probabilities, and each answer by its seed alone."""

import copy
import itertools
from collections import Counter

import numpy as np
import peft
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.generation.continuous_batching import continuous_api

from alignment.errors import UserError
from alignment.generation import Decoding, TransformersOptions, build_engine
from alignment.generation.transformers import SeededDraw, TransformersEngine
from alignment.tiny import tiny_model, tiny_tokenizer
from tests.determinism import Determined
from tests.text.symbols import symbol_model

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
STOPS = (2, 40, 41)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer(["some words to begin with"], vocab_size=300)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return tiny_model(tokenizer, hidden_size=16, num_layers=1, num_heads=2)


def decoding(**changes: object) -> Decoding:
    settings = {"temperature": 1.3, "max_new_tokens": 6, "stop_token_ids": STOPS, "pad_token_id": 0, "top_k": None}
    return Decoding(**{**settings, **changes})  # type: ignore[arg-type]


def engine(*, continuous: bool) -> TransformersEngine:
    return TransformersEngine(TransformersOptions(continuous_batching=continuous))


@pytest.mark.parametrize("top_k", [None, 3])
def test_a_token_is_the_first_whose_cumulative_probability_exceeds_its_number(
    model: LlamaForCausalLM, top_k: int | None
) -> None:
    """Drawn again by hand from the seed, with a forward of its own for each token, without cache and padding.

    An answer ends at its first stop token; with many of them some end early.
    """
    stops = tuple(range(2, 60))
    answers = engine(continuous=False).answer(
        model, PROMPTS, decoding(stop_token_ids=stops, top_k=top_k), num_completions=4, seeds=[11, 12, 11]
    )
    flat = list(itertools.chain(*answers))
    assert len(answers) == 3 and len(flat) == 12
    for prompt, seed, group in zip(PROMPTS, (11, 12, 11), answers, strict=True):
        for said, numbers_T in zip(group, np.random.default_rng(seed).random((4, 6)), strict=True):
            for t, token in enumerate(said):
                with torch.no_grad():
                    logits_V = model(input_ids=torch.tensor([prompt + said[:t]])).logits[0, -1].double() / 1.3
                if top_k is not None:
                    logits_V[logits_V < logits_V.topk(top_k).values[-1]] = -torch.inf
                assert token == int((logits_V.softmax(-1).cumsum(-1) > numbers_T[t]).int().argmax())
            assert said[-1] in stops or len(said) == 6
            assert not any(token in stops for token in said[:-1])
    assert len({len(said) for said in flat}) > 1


def test_an_answer_does_not_depend_on_what_else_is_in_the_batch(model: LlamaForCausalLM) -> None:
    """Alone, padded to another width, in another place: its seed decides."""
    asked = engine(continuous=False)
    together = asked.answer(model, PROMPTS, decoding(), num_completions=3, seeds=[1, 2, 3])
    alone = [
        asked.answer(model, [prompt], decoding(), num_completions=3, seeds=[seed])[0]
        for prompt, seed in zip(PROMPTS, (1, 2, 3), strict=True)
    ]
    turned = asked.answer(model, PROMPTS[::-1], decoding(), num_completions=3, seeds=[3, 2, 1])
    assert together == alone == turned[::-1]
    assert len({tuple(said) for said in together[0]}) > 1, "answers to one prompt are independent"


def test_a_gpu_refuses_nothing_of_sampling_under_full_determinism(model: LlamaForCausalLM) -> None:
    with Determined():
        engine(continuous=False).answer(model, PROMPTS, decoding(top_k=7), num_completions=2, seeds=[1, 2, 3])


@pytest.mark.parametrize("num_tokens", [5, 151_936])
def test_the_numbers_at_both_ends_draw_the_first_and_the_last_possible_token(num_tokens: int) -> None:
    """Numbers are 0 at least and 1 - 2^-53 at most; what has no probability is drawn by neither."""
    logits_NV = torch.randn(64, num_tokens, generator=torch.Generator().manual_seed(0))
    logits_NV[:, [0, -1]] = -torch.inf
    draw = SeededDraw(range(64), 1, decoding(), 0, torch.device("cpu"))
    for number, token in ((0.0, 1), (1 - 2.0**-53, num_tokens - 2)):
        draw.uniforms_NT.fill_(number)
        drawn_NV = draw(torch.zeros(64, 0, dtype=torch.long), logits_NV)
        assert (drawn_NV.argmax(-1) == token).all() and (drawn_NV > -torch.inf).sum() == 64


def test_weights_that_have_diverged_draw_nothing(model: LlamaForCausalLM) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.lm_head.weight[7] = torch.nan
    with pytest.raises(UserError, match="the weights have diverged"):
        engine(continuous=False).answer(broken, PROMPTS, decoding(), num_completions=1, seeds=[0, 1, 2])


def test_flex_attention_is_left_out_of_sampling(model: LlamaForCausalLM) -> None:
    """Another mask for every token would be compiled for; the same model answers by SDPA, and has its own back."""
    flex, seen = copy.deepcopy(model), []
    flex.set_attn_implementation("flex_attention")
    flex.register_forward_hook(lambda *_: seen.append(flex.config._attn_implementation))
    asked = engine(continuous=False)
    answers = [asked.answer(each, PROMPTS, decoding(), num_completions=2, seeds=[3, 4, 5]) for each in (model, flex)]
    assert answers[0] == answers[1]
    assert set(seen) == {"sdpa"} and flex.config._attn_implementation == "flex_attention"


def test_a_policy_in_training_answers_without_dropout(model: LlamaForCausalLM) -> None:
    noisy = copy.deepcopy(model).train()
    for layer in noisy.model.layers:
        layer.self_attn.attention_dropout = 0.9
    answers = [
        engine(continuous=False).answer(each, PROMPTS, decoding(), num_completions=2, seeds=[3, 4, 5])
        for each in (model, noisy)
    ]
    assert answers[0] == answers[1] and noisy.training


class AskedError(Exception):
    """Ends a call where the library would begin."""


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"temperature": 0.7, "top_k": 3}, (True, 0.7, 3)),
        ({"temperature": 0.7, "top_k": None}, (True, 0.7, 0)),
        ({"temperature": 0.0}, (False, 1.0, 50)),
    ],
)
def test_continuous_batches_are_told_how_tokens_are_drawn(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], told: tuple[object, ...]
) -> None:
    """There the library draws: at this temperature, from so many tokens, until one of these; 0 is all of them."""
    settings: list[GenerationConfig] = []

    def begin(*, generation_config: GenerationConfig, **_: object) -> None:
        settings.append(generation_config)
        raise AskedError

    monkeypatch.setattr(model, "init_continuous_batching", begin)
    with pytest.raises(AskedError):
        engine(continuous=True).answer(model, PROMPTS, decoding(**changes), num_completions=2, seeds=[0, 1, 2])
    (found,) = settings
    assert (found.do_sample, found.temperature, found.top_k) == told
    assert found.top_p == found.repetition_penalty == 1.0 and found.eos_token_id == list(STOPS)


@pytest.mark.parametrize("continuous", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_seed_decides_the_answers_and_nothing_else_moves(model: LlamaForCausalLM, continuous: bool) -> None:
    asked = engine(continuous=continuous)
    model.train()
    state = torch.get_rng_state()
    first, again, other = (
        asked.answer(model, PROMPTS, decoding(), num_completions=3, seeds=range(seed, seed + 3)) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert [len(group) for group in first] == [3, 3, 3]


def exact_probabilities(model: LlamaForCausalLM, prompt: list[int], temperature: float) -> dict[tuple[int, int], float]:
    """Of every answer of two symbols; the special tokens are suppressed."""

    def next_A(ids: list[int]) -> Tensor:
        with torch.no_grad():
            logits_V = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        return (logits_V[4:] / temperature).softmax(-1)

    first_A = next_A(prompt)
    return {
        (4 + a, 4 + b): float(first_A[a] * next_A([*prompt, 4 + a])[b])
        for a, b in itertools.product(range(3), repeat=2)
    }


@pytest.mark.parametrize("continuous", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_frequencies_are_the_models_probabilities(continuous: bool) -> None:
    """Chi-square of 9 outcomes of two prompts of different lengths, against a bound that chance passes in 1 of 1000."""
    model = symbol_model(seed=3)
    with torch.no_grad():
        # Random weights are nearly uniform; these are not.
        model.lm_head.weight.mul_(30)
    num = 300 if continuous else 2000
    prompts = [[3], [3, 5, 3]]
    answers = engine(continuous=continuous).answer(
        model,
        prompts,
        decoding(temperature=1.5, max_new_tokens=2, stop_token_ids=(2,)),
        num_completions=num,
        seeds=[0, 1],
    )
    for prompt, group in zip(prompts, answers, strict=True):
        counts = Counter(map(tuple, group))
        exact = exact_probabilities(model, prompt, 1.5)
        assert max(exact.values()) > 0.2 and set(counts) <= set(exact)
        distance = sum((counts[pair] - num * p) ** 2 / (num * p) for pair, p in exact.items())
        assert distance < chi2.ppf(0.999, df=8)


@pytest.mark.slow
def test_an_adapter_is_batched_continuously_and_so_is_its_base(model: LlamaForCausalLM) -> None:
    """The adapter's answers differ from those of the base, whose layers it shares."""
    base_model = tiny_model(tiny_tokenizer(["a"], vocab_size=300), hidden_size=16, num_layers=1, num_heads=2)
    with torch.no_grad():
        # Random weights are nearly uniform, whatever an adapter does.
        base_model.lm_head.weight.mul_(100)
    adapted = peft.get_peft_model(
        base_model,
        peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"]),
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    asked = engine(continuous=True)
    spoken = asked.answer(adapted, PROMPTS, decoding(), num_completions=2, seeds=[0, 1, 2])
    with adapted.disable_adapter():
        base = asked.answer(adapted, PROMPTS, decoding(), num_completions=2, seeds=[0, 1, 2])
    plain = asked.answer(adapted.get_base_model(), PROMPTS, decoding(), num_completions=2, seeds=[0, 1, 2])
    assert spoken == plain != base


@pytest.mark.slow
def test_continuous_batches_keep_the_attention_of_the_policy(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where FlashAttention is installed the library would take it, also for weights in float32, which it refuses."""
    monkeypatch.setattr(continuous_api, "is_flash_attn_3_available", lambda **_: True)
    seen = []
    handle = model.register_forward_hook(lambda *_: seen.append(model.config._attn_implementation))
    engine(continuous=True).answer(model, PROMPTS, decoding(), num_completions=2, seeds=[3, 4, 5])
    handle.remove()
    assert set(seen) == {"sdpa"}


def test_an_answer_may_be_a_stop_token_alone(model: LlamaForCausalLM) -> None:
    """An empty generation is one token long, and its text is empty."""
    every = tuple(range(model.config.vocab_size))
    answers = engine(continuous=False).answer(
        model, PROMPTS, decoding(stop_token_ids=every), num_completions=2, seeds=[0, 1, 2]
    )
    assert all(len(said) == 1 for group in answers for said in group)


def test_engines_are_built_by_name(tokenizer: PreTrainedTokenizerFast) -> None:
    built = build_engine("transformers", {"continuous_batching": True}, tokenizer)
    assert isinstance(built, TransformersEngine) and built.options.continuous_batching
    with pytest.raises(UserError, match="expected one of transformers, vllm, openai, enumerate, got 'sglang'"):
        build_engine("sglang", None, tokenizer)
    with pytest.raises(UserError, match="continuous_batchin: Extra inputs"):
        build_engine("transformers", {"continuous_batchin": True}, tokenizer)
    with pytest.raises(UserError, match="draws no answers"):
        build_engine("enumerate", None, tokenizer)
