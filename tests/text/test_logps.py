"""One number, several ways: shared prompts, chunks of logits, and the model's own forward agree, gradients included."""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import hypothesis
import peft
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
)
from transformers.integrations.flex_attention import WrappedFlexAttention

from alignment import head, logps, packing
from alignment.attention import Group
from alignment.errors import UserError
from alignment.logps import Scores, Scoring, anatomy_of, score
from alignment.types import Completions
from tests.text.groups_of_tokens import random_completions

WHOLE, DENSE, PREFIX = Scoring(logits="whole"), Scoring(layout="dense"), Scoring(layout="prefix")

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
}
GPT2 = {"vocab_size": 61, "n_embd": 16, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES),
    # Eager attention, both kinds of layers, logits bounded by a tanh.
    "gemma2": Gemma2Config(**SIZES, head_dim=8, sliding_window=16, final_logit_softcapping=0.5),
    "granite": GraniteConfig(**SIZES, logits_scaling=3.0),
    "cohere": CohereConfig(**SIZES),
    "gpt2": GPT2Config(**GPT2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
}


def build(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    # Far enough from uniform that every part of the model counts.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    return model


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return build(CONFIGS["llama"])


@pytest.fixture(scope="module", autouse=True)
def in_pieces() -> Iterator[None]:
    """Attention is computed in pieces wherever it can be, also where rows are as short as here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_PAIRS_PER_TOKEN_IN_PIECES", 0)
        yield


def scores_and_gradients(
    model: torch.nn.Module, completions: Completions, scoring: Scoring
) -> tuple[Scores, dict[str, Tensor]]:
    """Gradients of a sum with random weights, by name."""
    scores = score(model, completions, confidence=True, scoring=scoring)
    weights_BG = torch.randn(scores.logps_BG.shape, generator=torch.Generator().manual_seed(0))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad((weights_BG * scores.logps_BG).sum(), list(trained.values()), allow_unused=True)
    return scores, {name: grad for name, grad in zip(trained, gradients, strict=True) if grad is not None}


def assert_agree(model: torch.nn.Module, completions: Completions, scoring: Scoring, other: Scoring = WHOLE) -> None:
    """Log-probs to 1e-5, and every gradient to 1e-5 of its length, which is what float32 gives in another order."""
    mine, my_gradients = scores_and_gradients(model, completions, scoring)
    own, own_gradients = scores_and_gradients(model, completions, other)
    assert torch.equal(mine.token_mask_BGT, own.token_mask_BGT)
    for name in ("logps_BG", "token_logps_BGT", "token_excess_BGT"):
        torch.testing.assert_close(getattr(mine, name), getattr(own, name), rtol=1e-5, atol=1e-5)
    assert my_gradients.keys() == own_gradients.keys()
    for name, gradient in own_gradients.items():
        assert float((my_gradients[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-7, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probs_of_logits_are_those_of_log_softmax(dtype: torch.dtype) -> None:
    """Against float64, far from zero, with a token that cannot be; the gradient is the same when asked for twice."""
    generator = torch.Generator().manual_seed(0)
    logits_BNV = (20.0 * torch.randn(2, 5, 40, generator=generator) + 300.0).to(dtype)
    logits_BNV[0, 0, 7] = -torch.inf
    ids_BN, weights_BN = torch.randint(8, 40, (2, 5), generator=generator), torch.randn(2, 5, generator=generator)
    exact_BNV = logits_BNV.double().requires_grad_()
    all_BNV = exact_BNV.log_softmax(-1)
    expected_BN = all_BNV.gather(-1, ids_BN[..., None]).squeeze(-1)
    (gradient_BNV,) = torch.autograd.grad((weights_BN * expected_BN).sum(), exact_BNV)
    logits_BNV.requires_grad_()
    # Those that are overwritten are of no leaf.
    logps_BN, excess_BN = head.logps_of_logits(1.0 * logits_BNV, ids_BN, confidence=True)
    assert excess_BN is not None
    torch.testing.assert_close(logps_BN.double(), expected_BN, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(excess_BN.double(), expected_BN - (2.0 * all_BNV).logsumexp(-1), rtol=1e-6, atol=1e-5)
    assert not excess_BN.requires_grad
    for _ in range(2):
        (found_BNV,) = torch.autograd.grad((weights_BN * logps_BN).sum(), logits_BNV, retain_graph=True)
        torch.testing.assert_close(
            found_BNV, gradient_BNV.to(dtype), rtol=1.6e-2 if dtype.itemsize < 4 else 1e-5, atol=1e-6
        )


@hypothesis.settings(max_examples=6)
@hypothesis.given(seed=st.integers(0, 10_000), prompts=st.integers(1, 4), completions=st.integers(1, 4))
def test_all_ways_agree(llama: PreTrainedModel, seed: int, prompts: int, completions: int) -> None:
    """Ragged groups, empty completions, groups of one, padding on the left, responses that left their group."""
    groups = random_completions(seed, prompts=prompts, completions=completions)
    assert_agree(llama, groups, DENSE)
    assert_agree(llama, groups, PREFIX)


@pytest.mark.parametrize("family", CONFIGS)
def test_families_agree(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that scale or bound their logits, tied ones, absolute positions, eager attention, or SDPA under a mask."""
    model = build(CONFIGS[family])
    anatomy = anatomy_of(model)
    assert (anatomy.whole_because, anatomy.dense_because) == (None, None)
    assert_agree(model, random_completions(1), PREFIX)
    assert_agree(model, random_completions(2), DENSE)
    monkeypatch.setattr(packing, "_PAIRS_PER_TOKEN_IN_PIECES", 1e9)
    assert_agree(model, random_completions(1), PREFIX)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_hooks_around_a_tied_weight_are_honoured(family: str) -> None:
    """Its gradient comes by a way of its own; others, who add noise to embeddings say, still see both modules."""
    model = build(CONFIGS[family])
    assert head.may_add_rows(model)
    anatomy_of(model)
    model.get_input_embeddings().register_forward_hook(lambda _, __, output: 1.5 * output)
    model.get_output_embeddings().register_forward_hook(lambda _, __, output: 0.1 * output)
    assert_agree(model, random_completions(1), PREFIX)


def test_only_a_tied_weight_that_is_trained_gets_rows() -> None:
    """Nor one whose embedding does more than to look up."""
    assert not any(head.may_add_rows(build(CONFIGS[family])) for family in ("qwen2", "gemma2"))
    model = build(CONFIGS["llama"])
    with torch.no_grad():
        assert not head.may_add_rows(model)
    model.get_input_embeddings().weight.requires_grad_(False)
    assert not head.may_add_rows(model)


# The dense rows' mask is one that transformers makes, by an older way.
@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_flex_attention_sees_what_sdpa_sees(family: str) -> None:
    """Not compiled, and without gradients, which it does not have on a CPU."""
    model = build(CONFIGS[family])
    flex = copy.deepcopy(model)
    flex.set_attn_implementation("flex_attention")
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        assert anatomy_of(flex).dense_because is None
        for seed in range(3):
            groups = random_completions(seed)
            own = score(model, groups, scoring=WHOLE).token_logps_BGT
            for scoring in (PREFIX, DENSE):
                torch.testing.assert_close(score(flex, groups, scoring=scoring).token_logps_BGT, own, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")
def test_flex_attention_stays_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced only, so that a CPU may do it: by a policy and its reference, of rows of every kind."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(packing, "_compiled_maker", cache(partial(torch.compile, packing.create_block_mask)))
    monkeypatch.setattr(WrappedFlexAttention, "_instance", None)
    policy = copy.deepcopy(build(CONFIGS["llama"]))
    policy.set_attn_implementation("flex_attention")
    torch._dynamo.reset()
    # It fails instead of a warning, and of all pairs of positions.
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=True):
        for completions, prompts, scoring, has_gradient in itertools.product(
            (1, 3), (4, 1, 3), (PREFIX, DENSE), (False, True)
        ):
            groups = random_completions(prompts, prompts=prompts, completions=completions, all_valid=True)
            with torch.set_grad_enabled(has_gradient):
                score(policy, groups, scoring=scoring)
    torch._dynamo.reset()


def test_pieces_are_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a completion is taken for a part of its prompt, a model is scored by single rows."""
    model = build(CONFIGS["llama"])

    def groups(*arguments: Any) -> list[Group]:
        return [replace(group, prompt=group.tokens) for group in own_groups(*arguments)]

    own_groups = packing._groups
    monkeypatch.setattr(packing, "_groups", groups)
    assert "log-probs with a shared prompt differ by" in str(anatomy_of(model).dense_because)
    assert_agree(model, random_completions(3), Scoring())


def test_nothing_to_score(llama: PreTrainedModel) -> None:
    """Completions without a token have log-prob 0, and a gradient of zeros."""
    empty = random_completions(0, longest_completion=1, all_valid=True)
    empty = Completions(
        input_ids_BGT=empty.input_ids_BGT,
        attention_mask_BGT=empty.attention_mask_BGT & ~empty.completion_mask_BGT,
        completion_mask_BGT=torch.zeros_like(empty.completion_mask_BGT),
        valid_BG=empty.valid_BG,
    )
    for scoring in (DENSE, PREFIX):
        scores, gradients = scores_and_gradients(llama, empty, scoring)
        assert not scores.logps_BG.any() and gradients
        assert not any(bool(gradient.any()) for gradient in gradients.values())


def test_chunks_and_checkpointed_layers_agree(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven positions at a time, each computed again in the backward pass; layers too."""
    groups = random_completions(5)
    assert_agree(llama, groups, PREFIX)
    monkeypatch.setattr(head, "MAX_LOGITS", 7 * 61)
    model = copy.deepcopy(llama).train()
    assert_agree(model, groups, DENSE)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_agree(model, groups, PREFIX)


def test_adapters_agree_also_on_the_head(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks, with the adapter on and off; where it draws noise, the automatic choice is a row each."""
    monkeypatch.setattr(head, "MAX_LOGITS", 5 * 61)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], lora_dropout=0.5, task_type="CAUSAL_LM")
    model = peft.get_peft_model(copy.deepcopy(llama), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    groups = random_completions(6)
    assert_agree(model, groups, PREFIX)
    with model.disable_adapter():
        torch.testing.assert_close(score(model, groups).logps_BG, score(llama, groups).logps_BG)
    model.train()
    draws = []
    for scoring in (DENSE, Scoring(), PREFIX):
        torch.manual_seed(1)
        draws.append(score(model, groups, scoring=scoring).logps_BG)
    assert torch.equal(draws[0], draws[1]) and not torch.allclose(draws[0], draws[2])


def test_a_window_that_is_too_short_for_a_batch_is_kept() -> None:
    """Mistral sees 12 tokens back: sequences of 11 share their prompt, of longer ones each has a row of its own."""
    model = build(MistralConfig(**SIZES, sliding_window=12))
    assert (anatomy_of(model).dense_because, anatomy_of(model).window) == (None, 12)
    widths: list[int] = []
    handle = model.get_decoder().register_forward_hook(lambda _, __, output: widths.append(output[0].shape[1]))
    for longest in (6, 20):
        groups = random_completions(7, longest_prompt=5, longest_completion=longest)
        assert_agree(model, groups, PREFIX)
        assert (widths[-2] == groups.input_ids_BGT.shape[-1]) == (longest == 20)
    handle.remove()


def test_a_state_that_runs_through_a_row_is_not_shared() -> None:
    model = build(MambaConfig(vocab_size=61, hidden_size=16, num_hidden_layers=1, state_size=4)).eval()
    assert "does not leave to a mask" in str(anatomy_of(model).dense_because)
    assert_agree(model, random_completions(8), Scoring())
    with pytest.raises(UserError, match="allows 'prefix', but MambaForCausalLM does not leave"):
        score(model, random_completions(8), scoring=PREFIX)


class Louder(LlamaForCausalLM):
    """Does something with its logits that no configuration tells."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        output = super().forward(*arguments, **options)
        output.logits = output.logits * 1.5
        return output


class Sideways(LlamaForCausalLM):
    """Its forward does not go through what it calls its decoder."""

    def get_decoder(self) -> Any:
        return torch.nn.Identity()


@pytest.mark.parametrize(("kind", "reason"), [(Louder, "its head does more"), (Sideways, "goes past its decoder")])
def test_a_head_that_is_not_understood_is_left_alone(kind: type[LlamaForCausalLM], reason: str) -> None:
    torch.manual_seed(0)
    model = kind(CONFIGS["llama"]).eval()
    assert reason in str(anatomy_of(model).whole_because)
    assert_agree(model, random_completions(9), Scoring())
    with pytest.raises(UserError, match=f"allows 'chunked', but .*{reason}"):
        score(model, random_completions(9), scoring=Scoring(logits="chunked"))


def test_attention_without_a_mask_and_tokens_of_an_adapter(llama: PreTrainedModel) -> None:
    """Flash attention takes no mask of blocks; virtual tokens would move every position."""
    model = copy.deepcopy(llama)
    assert anatomy_of(model).dense_because is None
    model.config._attn_implementation = "flash_attention_2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logps, "_why_whole", lambda _: None)
        assert "'flash_attention_2' takes no mask" in str(anatomy_of(model).dense_because)
    config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(UserError, match="PROMPT_TUNING"):
        score(peft.get_peft_model(copy.deepcopy(llama), config), random_completions(0))
