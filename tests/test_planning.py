"""The planner against what it plans: models that are built, tensors that are kept, runs that are counted.

Shape letters: as in ``alignment.costs``; ``B`` prompts, ``G`` completions of a prompt, ``T`` tokens.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from alignment.config import PolicySpec, Recipe, load_recipe, recipes_folder
from alignment.config.launch import Launch
from alignment.costs import Adapter, activation_bytes
from alignment.logps import Scoring, score
from alignment.models import load_policy, load_tokenizer
from alignment.planning import run_of
from alignment.planning.outline import outline_policy, shape_of
from alignment.preparation import prepare_data
from alignment.types import Completions

ROOT = Path(__file__).parents[1]
ALONE = Launch()
VARIABLES = ("ALIGNMENT_REAL_DATA", "PREFERENCES", "PROMPTS", "JUDGE")
TINY = "policy.tiny={hidden_size: 16, num_layers: 2, num_heads: 2, vocab_size: 300}"


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "somewhere")


def recipe_of(name: str, *overrides: str) -> Recipe:
    return load_recipe(recipes_folder() / f"{name}.yaml", overrides).recipe


# Parameters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stated"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("google/gemma-2-9b-it", 9_241_705_984),
    ],
)
def test_known_models_have_the_parameters_that_their_publishers_state(name: str, stated: int) -> None:
    """The sizes that the Hub counts in the weights' files."""
    outline = outline_policy(PolicySpec(model=name, dtype="bfloat16"))
    assert (outline.parameters, outline.trained, outline.loaded_bytes) == (stated, stated, 2 * stated)
    assert outline.shape.is_understood


def test_an_adapter_is_counted_by_hand() -> None:
    """Rank 64 on all matrices of a layer of Llama-3.1-8B: 64 (in + out) each, in float32 beside bfloat16."""
    spec = PolicySpec(model="meta-llama/Llama-3.1-8B-Instruct", dtype="bfloat16", lora={"rank": 64})  # type: ignore[arg-type]
    outline = outline_policy(spec)
    heads, others, mlp = 2 * (4096 + 4096), 2 * (4096 + 1024), 3 * (4096 + 14336)
    adapter = 32 * 64 * (heads + others + mlp)
    assert outline.trained == adapter and outline.parameters == 8_030_261_248 + adapter
    assert outline.loaded_bytes == 2 * 8_030_261_248 + 4 * adapter
    four_bit = outline_policy(spec.model_copy(update={"load_in_4bit": True}))
    # 4.127 bits for what is in the layers, float32 for the rest, as in the paper's 0.127 bits for constants.
    layers = outline.shape.body
    assert four_bit.loaded_bytes == pytest.approx(4.127 / 8 * layers + 4 * (outline.parameters - layers), rel=1e-4)


@pytest.mark.parametrize("lora", ["null", "{rank: 4}"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_policy_counts_like_the_one_that_is_built(lora: str, dtype: str) -> None:
    recipe = recipe_of("dpo/tiny", f"policy.lora={lora}", f"policy.dtype={dtype}", TINY)
    rows = prepare_data(recipe.data, seed=0, announce=lambda line: None).train
    tokenizer = load_tokenizer(recipe.policy, rows)
    model: Any = load_policy(recipe.policy, tokenizer, seed=0)
    if recipe.policy.lora is not None:
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    outline = run_of(recipe, ALONE)[0].outline
    built = list(model.parameters())
    assert outline.parameters == sum(parameter.numel() for parameter in built)
    assert outline.trained == sum(parameter.numel() for parameter in built if parameter.requires_grad)
    assert outline.loaded_bytes == sum(parameter.numel() * parameter.element_size() for parameter in built)


# Activations, caches, operations -------------------------------------------------------------------------------------


def decoder(kind: str, *, width: int, layers: int, attention: str, dtype: torch.dtype) -> PreTrainedModel:
    """Heads of 16 numbers, two for each pair of keys and values, an MLP of 5/2 the width."""
    config = AutoConfig.for_model(
        kind,
        vocab_size=64,
        hidden_size=width,
        intermediate_size=5 * width // 2,
        num_hidden_layers=layers,
        num_attention_heads=width // 16,
        num_key_value_heads=width // 32,
        head_dim=16,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)


def group(prompts: int, answers: int, prompt: int, answer: int) -> Completions:
    mask_BGT = torch.ones(prompts, answers, prompt + answer, dtype=torch.bool)
    ids_BGT = torch.arange(mask_BGT.numel()).reshape(mask_BGT.shape) % 64
    answer_BGT = mask_BGT & (torch.arange(prompt + answer) >= prompt)
    return Completions(
        # A group has one prompt.
        input_ids_BGT=torch.where(answer_BGT, ids_BGT, ids_BGT[:, :1]),
        attention_mask_BGT=mask_BGT,
        completion_mask_BGT=answer_BGT,
        valid_BG=torch.ones(prompts, answers, dtype=torch.bool),
    )


def kept_bytes(model: Any, completions: Completions, *, layout: str, autocast: bool) -> int:
    """Bytes of all storages that the graph of log-probs keeps, without the model's own, and without logits."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    precision = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), precision:
        found = score(model.train(), completions, scoring=Scoring(layout=layout)).logps_BG  # type: ignore[arg-type]
    assert found.requires_grad
    size = 2 if autocast or model.dtype != torch.float32 else 4
    return sum(storage.nbytes() for storage in kept.values()) - int(completions.lengths_BG.sum()) * (64 * size + 4)


@pytest.mark.parametrize(
    ("kind", "attention", "dtype", "rank", "autocast"),
    [
        ("llama", "sdpa", torch.float32, None, False),
        ("llama", "sdpa", torch.bfloat16, None, True),
        ("llama", "sdpa", torch.float32, 4, False),
        ("llama", "sdpa", torch.bfloat16, 4, True),
        ("llama", "sdpa", torch.bfloat16, 4, False),
        ("qwen2", "sdpa", torch.float32, None, False),
        ("gemma2", "eager", torch.float32, None, False),
        ("gemma2", "eager", torch.bfloat16, None, True),
        ("gemma2", "eager", torch.bfloat16, 4, True),
    ],
)
@pytest.mark.parametrize(
    ("width", "layers", "prompts", "answers", "prompt", "answer"), [(64, 2, 2, 2, 40, 12), (128, 4, 1, 3, 100, 20)]
)
def test_activations_are_the_tensors_that_a_graph_keeps(
    kind: str,
    attention: str,
    dtype: torch.dtype,
    rank: int | None,
    autocast: bool,
    width: int,
    layers: int,
    prompts: int,
    answers: int,
    prompt: int,
    answer: int,
) -> None:
    """To 8 %: single numbers of a token, rotations, and outer norms of Gemma-2 that keep less, are left out."""
    model: Any = decoder(kind, width=width, layers=layers, attention=attention, dtype=dtype)
    shape, size, adapter = shape_of(model), 2 if dtype == torch.bfloat16 else 4, None
    if rank is not None:
        model = peft.get_peft_model(model, peft.LoraConfig(r=rank, target_modules="all-linear"))
        adapted = 5 * width + width + 5 * width // 2
        copies = 0 if dtype == torch.float32 else 2 if autocast else 4
        adapter = Adapter(inputs=layers * adapted, ranks=layers * 7 * rank, size=copies)
    completions = group(prompts, answers, prompt, answer)
    # What is known of a model is found out at its first batch.
    score(model, completions)
    kept = kept_bytes(model, completions, layout="prefix", autocast=autocast)
    formula = activation_bytes(
        shape,
        rows=prompts,
        width=prompt + answers * answer,
        size=size,
        attention=attention,
        checkpointed=False,
        adapter=adapter,
    )
    assert formula == pytest.approx(kept, rel=0.08)
