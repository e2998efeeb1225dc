"""The planner against what it plans: models that are built, tensors that are kept, runs that are counted.

Shape letters: as in ``alignment.costs``; ``B`` prompts, ``G`` completions of a prompt, ``T`` tokens.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from alignment import loop
from alignment.anchors import AnchorSet
from alignment.cli import main
from alignment.config import PolicySpec, Recipe, load_recipe, recipes_folder, shipped_recipes
from alignment.config.launch import Launch, read_launch
from alignment.costs import (
    Adapter,
    Numbers,
    activation_bytes,
    cache_bytes,
    cast_bytes,
    forward_flops,
    layer_bytes,
)
from alignment.errors import UserError
from alignment.generation.transformers import TransformersEngine
from alignment.logps import Scoring, score
from alignment.models import load_policy, load_tokenizer
from alignment.optim import ExtraGradient
from alignment.oracles.templates import read_template
from alignment.planning import plan, run_of
from alignment.planning.memory import memory_lines
from alignment.planning.outline import outline_policy, shape_of
from alignment.planning.run import Run
from alignment.planning.work import work_of
from alignment.preparation import prepare_data
from alignment.trainer import PreferenceTrainer
from alignment.types import Completions
from alignment.weights import TrainableWeights
from tests.text.test_recipes_run import columns_of

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


LLAMA = {"model": "meta-llama/Llama-3.1-8B-Instruct", "dtype": "bfloat16"}


def test_an_adapter_is_counted_by_hand() -> None:
    """Rank 64 on all matrices of a layer of Llama-3.1-8B: 64 (in + out) each, in float32 beside bfloat16."""
    outline = outline_policy(PolicySpec.model_validate({**LLAMA, "lora": {"rank": 64}}))
    heads, others, mlp = 2 * (4096 + 4096), 2 * (4096 + 1024), 3 * (4096 + 14336)
    adapter = 32 * 64 * (heads + others + mlp)
    assert outline.trained == adapter and outline.parameters == 8_030_261_248 + adapter
    assert outline.loaded_bytes == 2 * 8_030_261_248 + 4 * adapter


def test_four_bits_are_four_and_an_eighth() -> None:
    """2305.14314, sec. 3: 0.127 bits a number for constants; what is in no layer's matrix is in float32."""
    lora = {"rank": 8, "target_modules": ["q_proj"]}
    outline = outline_policy(PolicySpec.model_validate({**LLAMA, "lora": lora, "load_in_4bit": True}))
    rest = outline.parameters - outline.shape.body
    assert outline.loaded_bytes == pytest.approx(4.127 / 8 * outline.shape.body + 4 * rest, rel=1e-4)


@pytest.mark.parametrize("lora", ["null", "{rank: 4}"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_policy_counts_like_the_one_that_is_built(lora: str, dtype: str) -> None:
    recipe = recipe_of("dpo/tiny", f"policy.lora={lora}", f"policy.dtype={dtype}", TINY)
    rows = prepare_data(recipe.data, seed=0, announce=lambda line: None).train
    tokenizer = load_tokenizer(recipe.policy, rows)
    model: Any = load_policy(recipe.policy, tokenizer, seed=0)
    if recipe.policy.lora is not None:
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    outline = run_of(recipe, ALONE).outline
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


SMALL = {"width": 64, "layers": 2, "prompts": 2, "answers": 2, "prompt": 40, "answer": 12}
LARGER = {"width": 128, "layers": 4, "prompts": 1, "answers": 3, "prompt": 100, "answer": 20}


@pytest.mark.parametrize(
    ("kind", "dtype", "rank", "autocast", "sizes"),
    [
        ("llama", torch.float32, None, False, SMALL),
        ("llama", torch.float32, None, False, LARGER),
        ("llama", torch.float32, None, True, SMALL),
        ("llama", torch.bfloat16, None, True, SMALL),
        ("llama", torch.float32, 4, False, SMALL),
        ("llama", torch.float32, 4, True, SMALL),
        ("llama", torch.bfloat16, 4, False, SMALL),
        ("llama", torch.bfloat16, 4, True, SMALL),
        ("llama", torch.bfloat16, 4, True, LARGER),
        ("qwen2", torch.float32, None, False, SMALL),
        ("gemma2", torch.float32, None, False, SMALL),
        ("gemma2", torch.bfloat16, None, True, SMALL),
        ("gemma2", torch.bfloat16, 4, True, LARGER),
    ],
)
def test_activations_are_the_tensors_that_a_graph_keeps(
    kind: str, dtype: torch.dtype, rank: int | None, autocast: bool, sizes: dict[str, int]
) -> None:
    """To 8 %: single numbers of a token, rotations, and outer norms of Gemma-2 that keep less, are left out."""
    width, layers, attention = sizes["width"], sizes["layers"], "eager" if kind == "gemma2" else "sdpa"
    model: Any = decoder(kind, width=width, layers=layers, attention=attention, dtype=dtype)
    shape, adapter = shape_of(model), None
    numbers = Numbers(compute=2 if autocast else dtype.itemsize, stream=dtype.itemsize)
    if rank is not None:
        model = peft.get_peft_model(model, peft.LoraConfig(r=rank, target_modules="all-linear"))
        # Inputs of the seven matrices: of query, key, value, gate, up; of the output; of down.
        inputs = layers * (5 * width + width + 5 * width // 2)
        copies = 2 if autocast else 0 if dtype == torch.float32 else 4
        adapter = Adapter(inputs=inputs, ranks=layers * 7 * rank, size=copies)
    completions = group(sizes["prompts"], sizes["answers"], sizes["prompt"], sizes["answer"])
    # What is known of a model is found out at its first batch.
    score(model, completions)
    kept = kept_bytes(model, completions, layout="prefix", autocast=autocast)
    shared = sizes["prompt"] + sizes["answers"] * sizes["answer"]
    batch: Any = {
        "rows": sizes["prompts"],
        "width": shared,
        "numbers": numbers,
        "attention": attention,
        "adapter": adapter,
    }
    casts = cast_bytes(shape, checkpointed=False, adapter=adapter) if numbers.stream > numbers.compute else 0
    assert activation_bytes(shape, checkpointed=False, **batch) + casts == pytest.approx(kept, rel=0.08)
    if kind == "llama" and sizes == SMALL and not casts:
        dense = kept_bytes(model, completions, layout="dense", autocast=autocast)
        batch |= {"rows": sizes["prompts"] * sizes["answers"], "width": sizes["prompt"] + sizes["answer"]}
        # Without padding there is no mask, and keys and values are not repeated.
        assert (
            0.8 * activation_bytes(shape, checkpointed=False, **batch)
            < dense
            <= 1.08 * activation_bytes(shape, checkpointed=False, **batch)
        )


def test_checkpointing_keeps_the_inputs_of_layers() -> None:
    """And one layer, which is made again in the backward pass: not part of what the forward pass keeps."""
    model: Any = decoder("llama", width=256, layers=8, attention="sdpa", dtype=torch.float32)
    completions = group(1, 2, 60, 10)
    score(model, completions)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    kept = kept_bytes(model, completions, layout="prefix", autocast=False)
    batch: Any = {"rows": 1, "width": 80, "numbers": Numbers(compute=4, stream=4), "attention": "sdpa"}
    whole = activation_bytes(shape_of(model), checkpointed=True, **batch)
    assert whole - layer_bytes(shape_of(model), **batch) == pytest.approx(kept, rel=0.08)


def test_a_cache_holds_the_keys_and_values_of_every_token() -> None:
    model = decoder("qwen2", width=64, layers=2, attention="sdpa", dtype=torch.float32)
    cache = model(input_ids=torch.zeros(3, 7, dtype=torch.int64), use_cache=True).past_key_values
    held = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert cache_bytes(shape_of(model), sequences=3, length=7, size=4) == held


def test_operations_are_those_that_torch_counts() -> None:
    """Eager attention, whose products of queries and keys are counted like any other."""
    model = decoder("llama", width=64, layers=2, attention="eager", dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(2, 24, dtype=torch.int64))
    assert forward_flops(shape_of(model), tokens=48, scored=48, width=24) == counter.get_total_flops()


# Runs ----------------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What a real run held, in bytes, and what it did."""

    optimizer: int = 0
    start: int = 0
    copies: int = 0
    steps: int = 0
    tokens: int = 0
    scored: int = 0
    sampled: int = 0
    sequences: int = 0


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Fills while a recipe runs."""
    found = Seen()
    make, forward = PreferenceTrainer._make_anchors, PreferenceTrainer.compute_loss
    train, answer, step = PreferenceTrainer._train_within_budget, TransformersEngine.answer, ExtraGradient.step

    def make_anchors(self: PreferenceTrainer, *arguments: Any) -> AnchorSet:
        anchors = make(self, *arguments)
        held = {id(policy): policy for policy in anchors._copies.values()}.values()
        tensors = [
            list(policy.values.values()) if isinstance(policy, TrainableWeights) else list(policy.parameters())
            for policy in held
        ]
        found.copies = max(found.copies, sum(tensor.nbytes for group in tensors for tensor in group))
        return anchors

    def compute_loss(self: PreferenceTrainer, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        completions: Completions = inputs["annotated"].completions
        prompts_BG = (completions.attention_mask_BGT & ~completions.completion_mask_BGT).sum(-1)
        found.scored += int(completions.lengths_BG.sum())
        found.tokens += int(prompts_BG[:, 0].sum() + completions.lengths_BG.sum())
        return forward(self, model, inputs, *arguments, **options)

    def train_within_budget(self: PreferenceTrainer, options: Any) -> Any:
        ended = train(self, options)
        found.steps += self.state.global_step
        found.optimizer = state_bytes(self.optimizer.state)
        return ended

    def draw(self: Any, *arguments: Any, **options: Any) -> Any:
        answers = answer(self, *arguments, **options)
        found.sampled += sum(len(ids) for answers_of_one in answers for ids in answers_of_one)
        found.sequences = max(found.sequences, sum(len(answers_of_one) for answers_of_one in answers))
        return answers

    def take_step(self: ExtraGradient, closure: None = None) -> None:
        step(self, closure)
        values = sum(value.nbytes for value, _ in self._start.values())
        states = state_bytes({key: state for key, (_, state) in self._start.items()})
        found.start = max(found.start, values + states)

    monkeypatch.setattr(PreferenceTrainer, "_make_anchors", make_anchors)
    monkeypatch.setattr(PreferenceTrainer, "compute_loss", compute_loss)
    monkeypatch.setattr(PreferenceTrainer, "_train_within_budget", train_within_budget)
    monkeypatch.setattr(TransformersEngine, "answer", draw)
    monkeypatch.setattr(ExtraGradient, "step", take_step)
    return found


def state_bytes(state: Any) -> int:
    """Of the moments; the number of steps is one number of each parameter, which is left out."""
    return sum(tensor.nbytes for values in state.values() for tensor in values.values() if tensor.dim())


# Nobody is held out, so that all that is sampled is sampled for training; an answer of one token cannot end early.
QUICK = (TINY, "data.eval_fraction=0", "training.disable_tqdm=true", "training.per_device_train_batch_size=40")
ONE_TOKEN = (*QUICK, "sampling.max_new_tokens=1", "training.max_steps=2")
ONE_EPOCH = ("training.max_steps=null", "training.num_train_epochs=1")
ADAPTER = "policy.lora={rank: 4}"
TARGETS = ("method.name=nash_mp", "method.eta=0.2", "method.decay=0.9", "method.inner_steps=2")


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("dpo/tiny", (*QUICK, *ONE_EPOCH, "scoring.layout=prefix")),
        pytest.param("dpo/tiny", (*QUICK, "training.max_steps=2", ADAPTER), marks=pytest.mark.slow),
        pytest.param("dpo/tiny", (*QUICK, "training.max_steps=2", "anchors.store=true"), marks=pytest.mark.slow),
        pytest.param("egpo/tiny", ONE_TOKEN, marks=pytest.mark.slow),
        pytest.param("egpo/tiny", (*ONE_TOKEN, *TARGETS), marks=pytest.mark.slow),
        pytest.param("egpo/tiny", (*ONE_TOKEN, *TARGETS, ADAPTER), marks=pytest.mark.slow),
        pytest.param("mnpo/tiny", ONE_TOKEN, marks=pytest.mark.slow),
        pytest.param("mnpo/tiny", (*ONE_TOKEN, ADAPTER), marks=pytest.mark.slow),
        pytest.param("inpo/tiny", (*ONE_TOKEN, *ONE_EPOCH, "schedule.prompts=split"), marks=pytest.mark.slow),
        pytest.param("egpo/tiny", (*ONE_TOKEN, "sampling.temperature=1"), marks=pytest.mark.slow),
        pytest.param("mnpo/tiny_players", (*ONE_TOKEN, "schedule.rounds=2"), marks=pytest.mark.slow),
    ],
    ids=lambda value: value.partition("/")[0] if isinstance(value, str) else "",
)
def test_a_run_holds_and_does_what_was_planned(
    name: str, overrides: tuple[str, ...], seen: Seen, tmp_path: Path
) -> None:
    """Moments, frozen policies, the start of an iteration, steps, tokens, questions: all equal, nothing about."""
    recipe = recipe_of(name, *overrides, f"output_dir={tmp_path / 'run'}")
    estimate = plan(recipe, ALONE)
    loop.run(recipe)
    lines = {line.name: line for line in estimate.lines}
    assert seen.optimizer == lines["optimizer"].training > 0
    assert seen.copies == sum(line.training for name, line in lines.items() if name.startswith("frozen"))
    assert seen.start == sum(line.sampling for name, line in lines.items() if name.startswith("start"))
    assert seen.steps == estimate.work.optimizer_steps
    assert seen.sampled == estimate.work.sampled_tokens
    asked = json.loads((tmp_path / "run" / "summary.json").read_text())["oracle_calls"]
    assert asked == (estimate.work.verdicts if name == "dpo/tiny" else estimate.work.questions)
    run = run_of(recipe, ALONE)
    cache = cache_bytes(run.outline.shape, sequences=seen.sequences, length=run.lengths.prompt + 1, size=4)
    assert cache == sum(line.sampling for name, line in lines.items() if name == "keys and values")
    if run.lengths.is_counted and "training.num_train_epochs=1" in overrides:
        assert (seen.tokens, seen.scored) == (estimate.work.trained_tokens, estimate.work.scored_tokens)


# Launches ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "stated"), [("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.9)])
def test_zero_divides_as_its_paper_says(stage: Any, stated: float) -> None:
    """Figure 1 of arXiv 1910.02054: 7.5 10^9 parameters over 64 devices, 16 bytes each, 120 GB undivided."""
    run = run_of(recipe_of("dpo/tiny", TINY, "policy.dtype=bfloat16"), ALONE)
    outline = replace(run.outline, parameters=7_500_000_000, trained=7_500_000_000)
    run = replace(run, outline=outline, launch=Launch(processes=64, sharding=stage, is_mixed=True))
    lines = {line.name: line.training for line in memory_lines(run, memory=None)}
    states = lines["weights"] + lines["gradients"] + lines["optimizer"]
    assert round(states / 1e9, 1) == stated


def states(run: Run, launch: Launch) -> dict[str, int]:
    """Bytes of what does not depend on the batch."""
    names = ("weights", "gradients", "gradients, in buckets", "optimizer", "frozen models")
    lines = memory_lines(replace(run, launch=launch), memory=None)
    return {line.name: line.training for line in lines if line.name in names}


def test_other_launches_divide_by_hand() -> None:
    """A policy of P numbers: bfloat16 under DDP, trained in float32 under FSDP2; an adapter beside its frozen base."""
    run = run_of(recipe_of("dpo/tiny", TINY, "policy.dtype=bfloat16"), ALONE)
    count = run.outline.parameters
    whole = {"weights": 2 * count, "gradients": 2 * count, "optimizer": 4 * count, "frozen models": 2 * count}
    assert states(run, ALONE) == whole
    assert states(run, Launch(processes=8, sharding="ddp")) == whole | {"gradients, in buckets": 2 * count}
    assert states(run, Launch(processes=8, sharding="zero3", is_mixed=True))["frozen models"] == 2 * count // 8
    fsdp = Launch(processes=8, sharding="fsdp2", is_mixed=True)
    assert states(run, fsdp) == {
        "weights": 4 * count // 8,
        "gradients": 4 * count // 8,
        "optimizer": 8 * count // 8,
        "frozen models": 2 * count // 8,
    }
    run = run_of(recipe_of("dpo/tiny", TINY, "policy.dtype=bfloat16", ADAPTER), ALONE)
    adapter = run.outline.trained
    assert states(run, fsdp) == {
        "weights": (2 * count + 4 * adapter) // 8,
        "gradients": 4 * adapter // 8,
        "optimizer": 8 * adapter // 8,
    }


@pytest.mark.parametrize("sharding", ["zero3", "fsdp2"])
def test_all_weights_are_gathered_while_answers_are_drawn(sharding: Any) -> None:
    """Whatever a step gathers."""
    run = run_of(recipe_of("egpo/tiny", TINY), ALONE)
    launch = Launch(processes=8, sharding=sharding)
    lines = memory_lines(replace(run, launch=launch), memory=None)
    (gathered,) = (line for line in lines if line.name == "weights, gathered")
    assert gathered.sampling == 4 * run.outline.parameters >= gathered.training


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ddp", Launch(processes=8, sharding="ddp", is_mixed=True)),
        ("ddp_cpu", Launch(processes=2, sharding="ddp")),
        ("zero1", Launch(processes=8, sharding="zero1", is_mixed=True)),
        ("zero2_cpu", Launch(processes=2, sharding="zero2")),
        ("zero3", Launch(processes=8, sharding="zero3", is_mixed=True)),
        ("fsdp2", Launch(processes=8, sharding="fsdp2", is_mixed=True)),
        ("multi_node", Launch(processes=16, sharding="zero3", is_mixed=True)),
    ],
)
def test_shipped_launches_are_read(name: str, expected: Launch) -> None:
    path = recipes_folder() / "accelerate" / f"{name}.yaml"
    assert read_launch(path, None) == expected
    assert read_launch(path, 4) == replace(expected, processes=4)


@pytest.mark.parametrize(
    ("text", "processes", "message"),
    [
        ("num_processes: 2", None, "found no distributed_type"),
        ("distributed_type: MULTI_CPU\nnum_processes: 2", None, "starts one process: expected MULTI_GPU"),
        ("distributed_type: 'NO'", 8, "starts one process"),
        ("distributed_type: TPU", None, "expected distributed_type NO, MULTI_GPU, DEEPSPEED or FSDP, got 'TPU'"),
        ("distributed_type: DEEPSPEED", None, r"expected deepspeed_config\.zero_stage of 1, 2 or 3, got None"),
        (
            "distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}",
            None,
            r"expected fsdp_config\.fsdp_version 2, got 1",
        ),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 2, offload_optimizer_device: cpu}",
            None,
            "expected no offload, got offload_optimizer_device: cpu",
        ),
    ],
)
def test_a_launch_that_is_not_understood_is_refused(
    text: str, processes: int | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / "launch.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_launch(tmp_path / "launch.yaml", processes)


# Recipes -------------------------------------------------------------------------------------------------------------


def plan_of(name: str, folder: Path) -> None:
    """What a tiny model is made of must be there; nothing of a large one is."""
    overrides = []
    if Path(name).stem in ("tiny_hh", "tiny_kway"):
        data = folder / "data.jsonl"
        data.write_text("".join(json.dumps(columns_of(Path(name))(i)) + "\n" for i in range(24)))
        overrides.append(f"data.preferences.path={data}")
    recipe = load_recipe(recipes_folder() / name, overrides).recipe
    is_known = recipe.policy.tiny is not None or (recipe.policy.model or "").startswith("textgame://")
    estimate = plan(recipe, ALONE, rows=None if is_known else 60_000, memory=80e9)
    assert all(line.training >= 0 and line.sampling >= 0 for line in estimate.lines)
    assert estimate.peak > 0 and estimate.work.flops is not None and estimate.work.flops > 0
    assert estimate.work.optimizer_steps and estimate.work.trained_tokens
    samples = recipe.samples_in_rounds or recipe.build_method().needs.samples_in_batches
    assert bool(estimate.work.sampled_tokens) == bool(estimate.work.questions) == samples
    assert json.loads(json.dumps(estimate.to_json(memory=80e9, tflops=100.0)))["hours"] > 0


METHODS = [
    path.as_posix() for path in shipped_recipes() if path.parts[0] not in ("sft", "reward", "evaluation", "ablations")
]
# One of each way to train: from lists, in batches, in rounds, of several players, on the text game.
SOME = ("lipo/qwen2.5-1.5b_ultrafeedback.yaml", "nash_mp/qwen2.5-1.5b_ultrafeedback.yaml", "mnpo/tiny_players.yaml")


@pytest.mark.parametrize("name", [*SOME, "quickstart/maxmin.yaml"])
def test_a_shipped_recipe_is_planned(name: str, tmp_path: Path) -> None:
    plan_of(name, tmp_path)


@pytest.mark.slow
def test_every_shipped_recipe_is_planned(tmp_path: Path) -> None:
    for name in METHODS:
        plan_of(name, tmp_path)


def test_a_priced_judge_costs_what_its_requests_do() -> None:
    """Rounds of 8 answers to 108 prompts: 28 pairs, in both orders. A request reads template, prompt, two answers."""
    judge = (
        "oracle={kind: judge, model: m, base_url: 'http://127.0.0.1:1/v1', max_tokens: 10, "
        "prices: {prompt: 2, completion: 8}}"
    )
    recipe = recipe_of("inpo/tiny", TINY, judge, "data.eval_fraction=0.1")
    run = run_of(recipe, ALONE)
    work = work_of(run)
    assert work.questions == 3 * 108 * 28 and work.requests == 2 * work.questions
    template = len(read_template(None).encode())
    assert work.money == pytest.approx(work.requests * ((template + run.lengths.prompt + 24) * 2 + 10 * 8) / 1e6)


# The command ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["plan", *arguments])
            raise SystemExit(0)
        out, err = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, out, err

    return run


QWEN = "recipes/dpo/qwen2.5-1.5b_ultrafeedback.yaml"


def test_a_table_says_what_is_held_and_whether_it_fits(call: Any) -> None:
    ddp = ("--accelerate", "recipes/accelerate/ddp.yaml", "--rows", "60000", "--tflops", "200")
    code, out, err = call(QWEN, *ddp, "--memory", "80GB")
    assert code == 0 and "1,543,714,304 parameters, 1,543,714,304 trained; 8 processes, ddp" in out
    assert re.search(r"^weights +6\.17 +bytes of P$", out, re.MULTILINE) and "it fits: " in out
    assert re.search(r"^optimizer steps +59$", out, re.MULTILINE) and "hours at 200" in out
    assert "note: lengths are bounds" in err
    found = json.loads(call(QWEN, *ddp, "--memory", "8GiB", "--json")[1])
    assert found["bytes"]["fits"] is False and found["bytes"]["device"] == 2**33
    assert found["bytes"]["peak"] == sum(line["training"] for line in found["bytes"]["lines"])
    assert found["hours"] == pytest.approx(
        sum(found[f"{part}_flops"] for part in ("training", "frozen", "sampling")) / (200e12 * 8 * 3600)
    )
    code, out, err = call(QWEN)
    assert re.search(r"^optimizer steps +unknown$", out, re.MULTILINE) and "--rows N says how many" in err


def test_a_folder_with_a_configuration_is_enough(call: Any, tmp_path: Path) -> None:
    model = decoder("llama", width=64, layers=2, attention="sdpa", dtype=torch.float32)
    model.config.save_pretrained(tmp_path)
    code, out, _ = call(QWEN, "policy.model=mine/unknown", "--config-of", str(tmp_path))
    assert code == 0 and f"{sum(part.numel() for part in model.parameters()):,} parameters" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("recipes/dpo/no.yaml",), "no file 'recipes/dpo/no.yaml'"),
        (("recipes/sft/tiny_hh.yaml",), "of `alignment train`, found one of `alignment sft` or `alignment reward`"),
        ((QWEN, "policy.model=mine/unknown"), "expected the configuration of 'mine/unknown'"),
        ((QWEN, "policy.lora={rank: 4, target_modules: [nowhere]}"), "policy.lora.target_modules: expected names of"),
        ((QWEN, "training.optim=lion_8bit"), "training.optim: expected one of adamw_torch, adamw_torch_fused, sgd"),
        ((QWEN, "training.deepspeed=zero.json"), "training: expected the launch in a file of its own (--accelerate)"),
        (
            ("recipes/dpo/tiny.yaml", "--rows", "9"),
            "--rows, --responses: expected neither where the data are on this machine",
        ),
        (
            ("recipes/spo/qwen2.5-1.5b_ultrafeedback.yaml", "--responses", "9"),
            "--responses: expected none where they are",
        ),
        (("recipes/quickstart/dpo.yaml", "--config-of", "m"), "--config-of: expected none for a model that is made on"),
        (
            (QWEN, "--accelerate", "no.yaml"),
            "expected a file of `accelerate config`, found no file 'no.yaml'; recipes/accelerate has ddp.yaml",
        ),
        ((QWEN, "--memory", "80"), "--memory: expected a number of GB or GiB, such as 80GB, got '80'"),
        ((QWEN, "--tflops", "0"), "--tflops: expected a number above 0, got 0"),
        (
            ("recipes/dpo/tiny.yaml", "data.preferences.path=no.jsonl"),
            "policy.tiny: its vocabulary is made of the data",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: tuple[str, ...], message: str, call: Any) -> None:
    code, out, err = call(*arguments)
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert message in err


# Slurm ---------------------------------------------------------------------------------------------------------------


def test_the_job_starts_a_launcher_on_each_node(tmp_path: Path) -> None:
    """A srun that starts two tasks, and a launcher that says what it was asked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {
        "activate": "",
        "scontrol": '[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"',
        "srun": 'shift; for rank in 0 1; do SLURM_PROCID=$rank "$@"; done',
        "accelerate": 'printf "%s|" "$@"; echo',
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    script = ROOT / "recipes" / "accelerate" / "slurm.sh"
    job = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    environment = {**os.environ, **job, "PATH": f"{folder}:{os.environ['PATH']}", "VENV": str(tmp_path)}

    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(script), *arguments]
        return subprocess.run(command, env=environment | changes, capture_output=True, text=True, check=False)

    done = run("recipes/dpo/tiny.yaml", "output_dir=runs/with space")
    assert done.returncode == 0, done.stderr
    expected = (
        "launch|--config_file|recipes/accelerate/multi_node.yaml|--num_machines|2|--num_processes|16|--machine_rank|{}|"
        "--main_process_ip|n1|--main_process_port|23456|"
        "scripts/train.py|recipes/dpo/tiny.yaml|output_dir=runs/with space|"
    )
    assert done.stdout.splitlines() == [expected.format(rank) for rank in (0, 1)]
    assert run("a.yaml", LAUNCH="mine.yaml").stdout.startswith("launch|--config_file|mine.yaml|")
    assert run().returncode == 2
    outside = run("a.yaml", SLURM_GPUS_ON_NODE="")
    assert outside.returncode == 1 and "expected a job of Slurm with GPUs" in outside.stderr
