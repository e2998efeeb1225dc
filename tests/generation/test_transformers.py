"""The default engine: the tokens of plain generate(), reproducible, and by the model's own probabilities."""

import copy
import itertools
from collections import Counter

import peft
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from alignment.errors import UserError
from alignment.generation import Decoding, TransformersOptions, build_engine
from alignment.generation.transformers import TransformersEngine
from alignment.tiny import tiny_model, tiny_tokenizer
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
def test_the_tokens_are_those_of_generate(model: LlamaForCausalLM, top_k: int | None) -> None:
    """Left-padded, seeded, cut after the first stop token; with many stop tokens some answers end early."""
    stops = tuple(range(2, 60))
    ids_BT = torch.tensor([[0, 0, 5, 6, 7], [0, 0, 0, 0, 8], [9, 10, 11, 12, 13]])
    with torch.random.fork_rng():
        torch.manual_seed(11)
        expected_NT = model.generate(
            input_ids=ids_BT,
            attention_mask=(ids_BT > 0).long(),
            do_sample=True,
            temperature=1.3,
            top_k=top_k or 0,
            top_p=1.0,
            num_return_sequences=4,
            max_new_tokens=6,
            eos_token_id=list(stops),
            pad_token_id=0,
        )[:, 5:]
    answers = engine(continuous=False).answer(
        model, PROMPTS, decoding(stop_token_ids=stops, top_k=top_k), num_completions=4, seed=11
    )
    flat = list(itertools.chain(*answers))
    assert len(answers) == 3 and len(flat) == 12
    for said, row in zip(flat, expected_NT.tolist(), strict=True):
        assert row[: len(said)] == said and not any(row[len(said) :])
        assert said[-1] in stops or len(said) == 6
        assert not any(token in stops for token in said[:-1])
    assert len({len(said) for said in flat}) > 1


def test_flex_attention_is_left_out_of_sampling(model: LlamaForCausalLM) -> None:
    """Another mask for every token would be compiled for; the same model answers by SDPA, and has its own back."""
    flex, seen = copy.deepcopy(model), []
    flex.set_attn_implementation("flex_attention")
    flex.register_forward_hook(lambda *_: seen.append(flex.config._attn_implementation))
    asked = engine(continuous=False)
    answers = [asked.answer(each, PROMPTS, decoding(), num_completions=2, seed=3) for each in (model, flex)]
    assert answers[0] == answers[1]
    assert set(seen) == {"sdpa"} and flex.config._attn_implementation == "flex_attention"


@pytest.mark.parametrize("continuous", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_seed_decides_the_answers_and_nothing_else_moves(model: LlamaForCausalLM, continuous: bool) -> None:
    asked = engine(continuous=continuous)
    model.train()
    state = torch.get_rng_state()
    first, again, other = (asked.answer(model, PROMPTS, decoding(), num_completions=3, seed=seed) for seed in (1, 1, 2))
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
        seed=0,
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
    spoken = asked.answer(adapted, PROMPTS, decoding(), num_completions=2, seed=0)
    with adapted.disable_adapter():
        base = asked.answer(adapted, PROMPTS, decoding(), num_completions=2, seed=0)
    plain = asked.answer(adapted.get_base_model(), PROMPTS, decoding(), num_completions=2, seed=0)
    assert spoken == plain != base


def test_an_answer_may_be_a_stop_token_alone(model: LlamaForCausalLM) -> None:
    """An empty generation is one token long, and its text is empty."""
    every = tuple(range(model.config.vocab_size))
    answers = engine(continuous=False).answer(model, PROMPTS, decoding(stop_token_ids=every), num_completions=2, seed=0)
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
