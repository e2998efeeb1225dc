"""Short trainings by several methods, one after the other in one launch, and what each of them left.

    accelerate launch --config_file recipes/accelerate/zero3_cpu.yaml tests/distributed/walks.py FOLDER CASE...

A case trains on eight prompts a step, however many processes there are, and leaves in FOLDER/CASE the logged losses,
the model as it is saved, and from each process what it really held.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig
from torch.distributed.tensor import DTensor
from transformers import set_seed

from alignment.arguments import AlignmentArguments
from alignment.data import Comparison, Row, Turn
from alignment.generation.engine import Decoding
from alignment.oracles import MatrixOracle, RuleOracle
from alignment.oracles.rules import shorter
from alignment.ranks import Ranks
from alignment.sharding import gathered_once
from alignment.tiny import tiny_model, tiny_tokenizer
from alignment.trainer import PreferenceTrainer
from tests.text.symbols import SYMBOLS, cyclic_game, question_rows, symbol_model, symbol_tokenizer

ANSWERS = ("red", "a kind of green", "blue, I think", "no colour at all", "grey or white")
# Where Adam divides by nearly nothing, rounding decides: its epsilon is above that.
SETTINGS: Mapping[str, Any] = {
    "max_steps": 3,
    "optim": "adamw_torch",
    "adam_epsilon": 1e-3,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def lists(count: int, sizes: int) -> tuple[Row, ...]:
    """Ragged lists of two to ``sizes`` answers with row weights; of two alone they are pairs."""
    return tuple(
        Row(
            prompt=(Turn("user", f"Question {i}: which colour?" + " Really?" * (i % 3)),),
            responses=ANSWERS[: 2 + i % (sizes - 1)],
            comparisons=tuple(Comparison(a, b) for b in range(2 + i % (sizes - 1)) for a in range(b)),
            scores=tuple(1.0 - 0.2 * k for k in range(2 + i % (sizes - 1))),
            weight=0.5 + i % 4,
            source=f"walks:{i + 1}",
        )
        for i in range(count)
    )


def trainer_of(case: str, folder: Path) -> PreferenceTrainer:
    """A case is a method, and after it what else: an adapter, embedding and head of one weight, sampled answers."""
    name, *kinds = case.split("_")
    args: dict[str, Any] = {**SETTINGS, "output_dir": str(folder)}
    args["per_device_train_batch_size"] = 8 // PartialState().num_processes
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM") if "lora" in kinds else None
    method, options = METHODS[name]
    if "accumulated" in kinds:
        args |= {"gradient_accumulation_steps": 2}
        args["per_device_train_batch_size"] //= 2
    set_seed(0)
    if options.get("num_completions") is None or "sampled" in kinds:
        rows = lists(24, 5 if name == "lipo" else 2)
        tokenizer = tiny_tokenizer([*ANSWERS, *(row.prompt[0].content for row in rows)], vocab_size=300)
        model = tiny_model(tokenizer, hidden_size=16, num_layers=2, num_heads=2)
        if "tied" in kinds:
            model.config.tie_word_embeddings = True
            model = type(model)(model.config)
        return PreferenceTrainer(
            model=model,
            args=AlignmentArguments(**args, **options, **({"max_new_tokens": 6} if "sampled" in kinds else {})),
            train_dataset=rows,
            processing_class=tokenizer,
            oracle=RuleOracle(shorter) if "sampled" in kinds else None,
            peft_config=lora,
            method=method,
        )
    args |= {"engine": "enumerate", "responses": list(SYMBOLS), "max_new_tokens": 1, **options}
    return PreferenceTrainer(
        model=symbol_model(seed=3),
        args=AlignmentArguments(**args),
        train_dataset=question_rows(24),
        processing_class=symbol_tokenizer(),
        oracle=MatrixOracle(cyclic_game(tau=0.1).prefs_XAA, responses=SYMBOLS),
        peft_config=lora,
        method=method,
    )


METHODS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "dpo": ({"name": "dpo", "beta": 0.1}, {}),
    "lipo": ({"name": "lipo", "beta": 0.5}, {}),
    "inpo": ({"name": "inpo", "eta": 0.5, "tau": 0.1}, {"store_anchors": True}),
    "egpo": ({"name": "egpo", "tau": 0.1}, {"num_completions": 3}),
    # Its opponent is mixed with a slow target, which moves with the policy.
    # Answers are sampled with the logits of two models, the policy and the reference.
    "md": ({"name": "nash_md", "tau": 0.1, "mix": 0.25}, {"num_completions": 3}),
    "nash": ({"name": "nash_mp", "tau": 0.1, "eta": 0.2, "decay": 0.5}, {"num_completions": 3}),
}


def walk(case: str, folder: Path) -> None:
    """Train a case, save its model, and note what this process held."""
    trainer = trainer_of(case, folder)
    if trainer.is_world_process_zero():
        trainer.model.save_pretrained(folder / "start")
    trainer.train()
    trainer.save_model(str(folder / "final"))
    facts = {"world_size": trainer.args.world_size, "type": trainer.accelerator.distributed_type.value}
    facts |= {"backend": str(trainer.accelerator.state.backend), **held_by(trainer)}
    facts["is_offloaded"] = trainer.is_deepspeed_enabled and trainer.model_wrapped.zero_cpu_offload()
    facts["frozen"] = share_of_frozen(trainer)
    facts["losses"] = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    if "sampled" in case:
        facts |= {"answers": likeliest_answers(trainer), "stays_whole": stays_whole(trainer)}
    (folder / f"rank-{trainer.args.process_index}.json").write_text(json.dumps(facts))
    trainer.accelerator.wait_for_everyone()


def held_by(trainer: PreferenceTrainer) -> dict[str, int]:
    """Numbers that are trained, of these the ones whose master weights this process holds, and bytes of moments."""
    # DeepSpeed's is around the one that has the state.
    optimizer = trainer.model_wrapped.optimizer.optimizer if trainer.is_deepspeed_enabled else trainer.optimizer
    state = optimizer.state.values()
    moments = sum(own_part(tensor).nbytes for values in state for tensor in values.values() if tensor.dim())
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    if not trainer.is_deepspeed_enabled:
        total, own = (sum(part.numel() for part in parts) for parts in (trained, map(own_part, trained)))
        return {"stage": 0, "total": total, "own": own, "moments": moments}
    engine = trainer.model_wrapped
    stage = engine.zero_optimization_stage()
    if stage < 3:
        parts = engine.optimizer.single_partition_of_fp32_groups
        total = sum(parameter.numel() for parameter in trained)
    else:
        parts = engine.optimizer.fp32_partitioned_groups_flat
        total = sum(parameter.ds_numel for parameter in trained)
    return {"stage": stage, "total": total, "own": sum(part.numel() for part in parts), "moments": moments}


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor that FSDP2 may have divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def share_of_frozen(trainer: PreferenceTrainer) -> float:
    """Of the numbers of frozen models those that this process holds while no forward needs them."""
    models = [held for held in trainer.anchors._copies.values() if isinstance(held, torch.nn.Module)]
    parameters: list[Any] = [parameter for held in models for parameter in held.parameters()]
    if trainer.sharding != "ZeRO-3":
        total = sum(parameter.numel() for parameter in parameters)
        return sum(own_part(parameter).numel() for parameter in parameters) / max(total, 1)
    total = sum(parameter.ds_numel for parameter in parameters)
    return sum(parameter.ds_tensor.numel() for parameter in parameters) / max(total, 1)


def likeliest_answers(trainer: PreferenceTrainer) -> list[list[int]]:
    """What the trained policy says, its weights gathered if they have to be; one process asks more than the other."""
    assert trainer.train_dataset is not None
    prompts = [row.prompt_ids for row in trainer.train_dataset.rows[: 4 + trainer.args.process_index]]
    likeliest = Decoding(temperature=0.0, max_new_tokens=6, stop_token_ids=(2,), pad_token_id=0)
    with trainer.anchors.model("policy") as module:
        answers = trainer.engine.answer(module, prompts, likeliest, num_completions=1, seeds=range(len(prompts)))
    return [group[0] for group in answers]


def stays_whole(trainer: PreferenceTrainer) -> list[bool]:
    """Whether weights are whole after one forward of many: before, within, and after they are gathered once."""
    found = []

    def look() -> None:
        trainer.model(input_ids=torch.tensor([[5, 6]]))
        held = list(trainer.model.parameters())
        found.append(all(parameter.numel() and not isinstance(parameter, DTensor) for parameter in held))

    with torch.no_grad():
        look()
        with gathered_once(trainer.model):
            look()
        look()
    return found


if __name__ == "__main__":
    folder, *cases = sys.argv[1:]
    torch.set_num_threads(1)
    # The arguments say that processes are on the CPU, and so meet.
    AlignmentArguments(output_dir=folder).device  # noqa: B018
    for case in cases:
        (Path(folder) / case).mkdir(parents=True, exist_ok=True)
        walk(case, Path(folder) / case)
    state = PartialState()
    Ranks(state.process_index, state.num_processes).part()
