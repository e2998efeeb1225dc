"""A step of DPO, LiPO and EGPO on the shapes of real models: prompts shared or not, beside ``trl.DPOTrainer``.

    python scripts/bench/gpu_step.py                            # both shapes, for a GPU of 80 GB
    python scripts/bench/gpu_step.py --model llama-3.1-8b --work dpo,lipo
    python scripts/bench/gpu_step.py --model tiny               # without a GPU: whether it runs
    python scripts/bench/gpu_step.py --json                     # one line of JSON

Weights are random, bfloat16 on a GPU and float32 on a CPU. Of Qwen2.5-1.5B all of them are trained, with Adam's moments
in the same precision; of Llama-3.1-8B an adapter on all matrices of its layers is, so that each contender fits. Each
has a process of its own. The reference is computed in every step. A step has ``--responses`` responses: of pairs, of
lists of eight, or sampled, two to a prompt, in each stage of EGPO's iteration. Lengths stand 4 to 1, as in
``offline_step.py``.

``shared`` reads a prompt once for all of its responses, with FlexAttention or under SDPA's mask; ``dense`` has a row
for each response. ``tokens_per_second`` are those that differ, each prompt counted once: the same work for all.
``share_of_peak`` is what that work needs (a forward pass, the backward pass of what is trained, a forward pass of the
reference, and one of whoever samples) over what this device does in products of large matrices, measured here.
``planned_mb`` is the peak that ``alignment plan`` gives.

Before that two layers of the shape are compared with float32 on the CPU, a row for each response, the same weights:
``logps`` is the distance of log-probs of tokens over their spread, ``gradient`` that of all gradients together over
their length. ``agrees`` says that no way is more than 1e-5 above twice the distance of the dense rows in its precision.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import datasets
import torch
from offline_step import DPO, resident_mb, trl_trainer
from online_step import METHODS as ONLINE_METHODS
from online_step import measure as measure_online
from online_step import rule, word_rows, word_tokenizer
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from steps import our_trainer, random_rows, scratch, trained_by, wall
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from alignment.architectures import ARCHITECTURES
from alignment.config import Recipe
from alignment.config.launch import Launch
from alignment.costs import forward_flops
from alignment.data import collate
from alignment.logps import Layout, Scoring, score
from alignment.planning import plan
from alignment.planning.outline import shape_of
from alignment.types import Completions

TINY = {
    "model_type": "qwen2",
    "vocab_size": 512,
    # Heads of 16 features, the fewest that FlexAttention takes on a GPU.
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
# Responses to a prompt.
WORKS = {"dpo": 2, "lipo": 8, "egpo": 2}
METHODS = {"dpo": DPO, "lipo": {"name": "lipo", "beta": 0.1}}
COMPARED_LAYERS = 2
# How far from the CPU a way may be: so many times as far as dense rows, and that much more, as float32 rounds.
FARTHER, ROUNDING = 2.0, 1e-5
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A shape, and what of it is trained.

    Attributes:
        architecture: of the model's configuration.
        rank: of the adapter; ``None`` where all weights are trained.
    """

    architecture: Mapping[str, Any]
    rank: int | None = None

    def cut(self, layers: int | None) -> "Size":
        """With so many layers at most."""
        own = self.architecture["num_hidden_layers"]
        depth = own if layers is None else min(own, layers)
        return replace(self, architecture={**self.architecture, "num_hidden_layers": depth})

    def config(self) -> PreTrainedConfig:
        """Of transformers."""
        return AutoConfig.for_model(**self.architecture)

    def build(self, attention: str, *, dtype: torch.dtype, device: torch.device = DEVICE) -> PreTrainedModel:
        """With random weights, the same in every call on a device."""
        torch.manual_seed(0)
        with torch.device(device):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                self.config(), dtype=dtype, attn_implementation=attention
            )
        return model

    def adapter(self) -> LoraConfig | None:
        """On all matrices of the layers."""
        if self.rank is None:
            return None
        return LoraConfig(r=self.rank, lora_alpha=2 * self.rank, target_modules="all-linear", task_type="CAUSAL_LM")


SIZES = {
    "tiny": Size(architecture=TINY),
    "qwen2.5-1.5b": Size(architecture=ARCHITECTURES["Qwen/Qwen2.5-1.5B-Instruct"]),
    "llama-3.1-8b": Size(architecture=ARCHITECTURES["meta-llama/Llama-3.1-8B-Instruct"], rank=16),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How log-probs are computed."""

    layout: Layout
    attention: str = "sdpa"


# FlexAttention has no backward pass on a CPU.
WAYS = {
    **({"shared, flex": Way(layout="prefix", attention="flex_attention")} if DEVICE.type == "cuda" else {}),
    "shared": Way(layout="prefix"),
    "dense": Way(layout="dense"),
}


def contenders_of(work: str) -> tuple[str, ...]:
    """TRL trains on pairs only."""
    return (*WAYS, "trl") if work == "dpo" else tuple(WAYS)


def batch_of(work: str, options: argparse.Namespace) -> int:
    """Prompts of a step."""
    return max(1, options.responses // WORKS[work])


# In a process of its own ---------------------------------------------------------------------------------------------


def run_part(size: Size, part: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the device does at best, the comparison with the CPU, or a contender of a method."""
    datasets.disable_progress_bars()
    if part == "device":
        return device_facts(options)
    if part == "agreement":
        return agreement(size, options)
    work, name = part.split(":")
    seconds = online_seconds(size, name, options) if work == "egpo" else offline_seconds(size, work, name, options)
    peak = torch.cuda.max_memory_allocated() / 2**20 if DEVICE.type == "cuda" else resident_mb("VmHWM")
    return {**seconds, "peak_mb": peak}


def device_facts(options: argparse.Namespace) -> dict[str, Any]:
    """What computes, in which precision, and its operations a second in products of large matrices."""
    width, times = (8192, 20) if DEVICE.type == "cuda" else (1024, 5)
    first, second = (torch.randn(width, width, device=DEVICE, dtype=DTYPES[options.dtype]) for _ in range(2))
    for _ in range(3):
        first @ second
    started = wall()
    for _ in range(times):
        first @ second
    rate = 2.0 * width**3 * times / (wall() - started)
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    return {"device": name, "dtype": options.dtype, "peak_rate": rate}


def offline_seconds(size: Size, work: str, name: str, options: argparse.Namespace) -> dict[str, float]:
    """Of a step on rows of exact lengths, the median."""
    completions = WORKS[work]
    batch = batch_of(work, options)
    rows = random_rows(
        batch * (options.steps + 1),
        prompt=options.prompt,
        response=options.response,
        completions=completions,
        vocabulary=size.architecture["vocab_size"],
    )
    settings = {"peft_config": size.adapter(), "gradient_checkpointing": options.checkpointing}
    with scratch() as folder:
        if name == "trl":
            build = partial(size.build, "sdpa", dtype=DTYPES[options.dtype])
            trainer: Any = trl_trainer(build, rows, batch=batch, folder=folder, **settings)
        else:
            way = WAYS[name]
            model = size.build(way.attention, dtype=DTYPES[options.dtype])
            settings |= {"scoring_layout": way.layout, "method": METHODS[work]}
            trainer = our_trainer(model, rows, batch=batch, folder=folder, **settings)
        take = trained_by(trainer, "wall")
        # Kernels are compiled, and memory is taken.
        take(2)
        return {"seconds": statistics.median(take(options.steps + 1))}


def online_seconds(size: Size, name: str, options: argparse.Namespace) -> dict[str, float]:
    """Of an iteration of EGPO, and of its sampling, the mean."""
    way, completions = WAYS[name], WORKS["egpo"]
    tokenizer = word_tokenizer(size.architecture["vocab_size"])
    prompts = batch_of("egpo", options)
    setting = {
        "model": size.build(way.attention, dtype=DTYPES[options.dtype]),
        "peft_config": size.adapter(),
        "processing_class": tokenizer,
        "train_dataset": word_rows(tokenizer, prompts=prompts, length=options.prompt),
        "oracle": rule("shorter"),
    }
    lengths = {"prompt_tokens": options.prompt, "new_tokens": options.response, "completions": completions}
    asked = argparse.Namespace(method="egpo", steps=options.steps, warm_up=1, **lengths)
    found = measure_online(setting, asked, scoring_layout=way.layout, gradient_checkpointing=options.checkpointing)
    return {"seconds": found["seconds_per_step"], "sampling_seconds": found["seconds"]["generation"]}


def agreement(size: Size, options: argparse.Namespace) -> dict[str, Any]:
    """How far log-probs and gradients are from float32 on the CPU, by precision and way, and whether all are near."""
    cpu = torch.device("cpu")
    size = size.cut(COMPARED_LAYERS)
    exact = size.build("sdpa", device=cpu, dtype=torch.float32)
    for parameter in exact.parameters():
        # Weights that both precisions have.
        parameter.data = parameter.data.bfloat16().float()
    lengths = {"prompt": options.prompt // 2, "response": options.response // 2, "completions": 4}
    rows = random_rows(2, vocabulary=size.architecture["vocab_size"], **lengths)
    completions = collate(rows, pad_token_id=0).completions
    truth = logps_and_gradients(exact, completions, "dense")
    found: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        distances = {}
        for name, way in WAYS.items():
            model = size.build(way.attention, dtype=dtype)
            model.load_state_dict(exact.state_dict())
            distances[name] = distance(logps_and_gradients(model, completions.to(DEVICE), way.layout), truth)
        found[str(dtype).removeprefix("torch.")] = distances
    found["agrees"] = all(
        value <= FARTHER * distances["dense"][key] + ROUNDING
        for distances in found.values()
        for one in distances.values()
        for key, value in one.items()
    )
    return found


def logps_and_gradients(model: PreTrainedModel, completions: Completions, layout: Layout) -> list[torch.Tensor]:
    """Log-probs of tokens, and the gradient of their sum with random weights, on the CPU in float32."""
    logps_BGT = score(model, completions, scoring=Scoring(layout=layout)).token_logps_BGT
    weights_BGT = torch.randn(logps_BGT.shape, generator=torch.Generator().manual_seed(0)).to(logps_BGT.device)
    (weights_BGT * logps_BGT).sum().backward()
    tensors = [logps_BGT, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]
    return [tensor.detach().cpu().float() for tensor in tensors]


def distance(found: Sequence[torch.Tensor], truth: Sequence[torch.Tensor]) -> dict[str, float]:
    """Of log-probs over their spread, of gradients over their length."""
    squares = sum(float((mine - own).square().sum()) for mine, own in zip(found[1:], truth[1:], strict=True))
    length = sum(float(own.square().sum()) for own in truth[1:])
    spread = float(truth[0].std())
    return {
        "logps": float((found[0] - truth[0]).square().mean().sqrt()) / spread,
        "gradient": (squares / length) ** 0.5,
    }


# All of them ---------------------------------------------------------------------------------------------------------


def measure(name: str, peak_rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """One model: the comparison, and each contender of each method."""
    size = SIZES[name].cut(options.layers)
    model = size.build("sdpa", dtype=DTYPES[options.dtype], device=torch.device("meta"))
    numbers, parameters = shape_of(model), sum(parameter.numel() for parameter in model.parameters())
    found: dict[str, Any] = {"parameters": parameters, "rank": size.rank}
    found["agreement"] = part_elsewhere(name, "agreement", options)
    for work in options.work.split(","):
        found[work] = {}
        tokens, operations = needed(numbers, work, options, trains_all=size.rank is None)
        for contender in contenders_of(work):
            result = part_elsewhere(name, f"{work}:{contender}", options)
            if "error" not in result:
                result["tokens_per_second"] = tokens / result["seconds"]
                result["share_of_peak"] = operations / result["seconds"] / peak_rate
                if contender in WAYS:
                    result["planned_mb"] = planned_mb(size, work, WAYS[contender], options)
            found[work][contender] = result
    return found


def needed(numbers: Any, work: str, options: argparse.Namespace, *, trains_all: bool) -> tuple[int, float]:
    """Tokens of a step that differ, and the operations that they need."""
    completions, is_online = WORKS[work], work == "egpo"
    groups, stages = batch_of(work, options), 2 if is_online else 1
    scored = groups * completions * options.response
    tokens = groups * options.prompt + scored
    forward = forward_flops(numbers, tokens=tokens, scored=scored, width=options.prompt + options.response)
    # Backward: gradients of activations, and of weights that are trained. Then the reference, and who samples.
    passes = 2 + int(trains_all) + 1 + int(is_online)
    return stages * tokens, stages * passes * forward


def planned_mb(size: Size, work: str, way: Way, options: argparse.Namespace) -> float:
    """What ``alignment plan`` gives for our trainer: the tensors, without what the allocator keeps."""
    completions, is_online = WORKS[work], work == "egpo"
    prompts: dict[str, Any] = {"prompts": {"path": "p.jsonl"}} if is_online else {"preferences": {"path": "p.jsonl"}}
    tree: dict[str, Any] = {
        "method": {"name": "egpo", **ONLINE_METHODS["egpo"]} if is_online else METHODS[work],
        "policy": {"model": "random", "dtype": options.dtype, "attn_implementation": way.attention},
        "data": {**prompts, "max_prompt_length": options.prompt},
        "schedule": {"kind": "online" if is_online else "offline"},
        "scoring": {"layout": way.layout},
        "training": {"per_device_train_batch_size": batch_of(work, options), "max_steps": 1},
        "output_dir": "nowhere",
        "seed": 0,
    }
    tree["training"] |= {"gradient_checkpointing": True} if options.checkpointing else {}
    if is_online:
        tree["oracle"] = {"kind": "rule", "rule": "shorter"}
        tree["sampling"] = {"num_completions": completions, "max_new_tokens": options.response}
    else:
        tree["data"]["max_completion_length"] = options.response
    if size.rank is not None:
        tree["policy"]["lora"] = {"rank": size.rank, "alpha": 2 * size.rank, "target_modules": "all-linear"}
    with scratch() as folder:
        size.config().save_pretrained(folder)
        recipe, responses = Recipe.model_validate(tree), None if is_online else completions
        found = plan(recipe, Launch(), config_of=folder, rows=1, responses=responses)
    return found.peak / 2**20


def part_elsewhere(model: str, part: str, options: argparse.Namespace) -> dict[str, Any]:
    """What a process of its own found, or the last line of what it died of."""
    settings = [f"--{key}={getattr(options, key)}" for key in ("dtype", "prompt", "response", "responses", "steps")]
    settings += [f"--layers={options.layers}"] if options.layers else []
    settings += ["--checkpointing"] if options.checkpointing else []
    command = [sys.executable, __file__, f"--model={model}", f"--part={part}", *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def show(name: str, found: Mapping[str, Any], works: Sequence[str]) -> None:
    """As tables."""
    console = Console(width=None if Console().is_terminal else 120)
    trained = "all trained" if found["rank"] is None else f"an adapter of rank {found['rank']} trained"
    console.print(f"\n{name}: {found['parameters']:,} parameters, {trained}")
    compared = found["agreement"]
    if "error" in compared:
        console.print(f"comparison with the CPU: {compared['error']}", markup=False)
    else:
        table = Table("far from float32 on the CPU", "log-probs", "gradient", box=None)
        for dtype in ("float32", "bfloat16"):
            for way, one in compared[dtype].items():
                table.add_row(f"{dtype}, {way}", f"{one['logps']:.1e}", f"{one['gradient']:.1e}")
        console.print(table)
        console.print("kernels agree" if compared["agrees"] else "kernels do NOT agree", style="bold")
    for work in works:
        heads = ("ms a step", "tokens / s", "of peak", "peak MB", "planned", "of dense", "of TRL")
        table = Table(work, *heads, box=None)
        for contender, one in found[work].items():
            if "error" in one:
                table.add_row(contender, one["error"])
                continue
            against = (found[work].get(rival, {}).get("seconds") for rival in ("dense", "trl"))
            table.add_row(
                contender,
                f"{1000 * one['seconds']:,.0f}",
                f"{one['tokens_per_second']:,.0f}",
                f"{one['share_of_peak']:.1%}",
                f"{one['peak_mb']:,.0f}",
                f"{one['planned_mb']:,.0f}" if "planned_mb" in one else "",
                *("" if other is None else f"{other / one['seconds']:.2f} times" for other in against),
            )
        console.print(table)


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    default = "qwen2.5-1.5b,llama-3.1-8b" if DEVICE.type == "cuda" else "tiny"
    parser.add_argument(
        "--model", default=default, help=f"of {', '.join(SIZES)}, with commas (default here: {default})"
    )
    parser.add_argument("--work", default=",".join(WORKS), help=f"with commas (default {','.join(WORKS)})")
    precision = "bfloat16" if DEVICE.type == "cuda" else "float32"
    parser.add_argument("--dtype", default=precision, choices=DTYPES, help=f"of weights (default here: {precision})")
    parser.add_argument("--layers", type=int, help="fewer of them")
    parser.add_argument("--checkpointing", action="store_true", help="layers are computed again in the backward pass")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    for name, number in (("prompt", 512), ("response", 128), ("responses", 8), ("steps", 5)):
        parser.add_argument(f"--{name}", type=int, default=number, help=f"default {number}")
    options = parser.parse_args()
    models, works = options.model.split(","), options.work.split(",")
    for kind, given, known in (("--model", models, SIZES), ("--work", works, WORKS)):
        if set(given) - set(known):
            parser.error(f"{kind}: expected some of {', '.join(known)}, got {', '.join(given)}")
    if options.part:
        print(json.dumps(run_part(SIZES[options.model].cut(options.layers), options.part, options)))
        return 0
    # This process takes no memory of the device.
    facts = part_elsewhere(models[0], "device", options)
    if "error" in facts:
        sys.exit(f"gpu_step.py: {facts['error']}")
    found = {name: measure(name, facts["peak_rate"], options) for name in models}
    if options.json:
        print(json.dumps(facts | {"models": found}))
    else:
        rate = f"{facts['peak_rate'] / 1e12:.3g} 10^12 operations a second in large products"
        print(f"{facts['device']}, {facts['dtype']}: {rate}")
        for name, one in found.items():
            show(name, one, works)
    parts = [one for result in found.values() for work in works for one in result[work].values()]
    compared = [result["agreement"] for result in found.values()]
    return int(any("error" in part for part in (*parts, *compared)) or not all(part["agrees"] for part in compared))


if __name__ == "__main__":
    sys.exit(main())
