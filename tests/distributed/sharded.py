"""What the trainer does with a model, done with one that FSDP2 has sharded: writes how far it is from a whole one.

    torchrun --nproc_per_node 2 tests/distributed/sharded.py FILE

Of what no method's path shows: chunks of logits, weights that are exchanged, weights as another engine is given them,
frozen models of another family.
"""

import copy
import json
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from alignment import head, logps
from alignment.anchors import AnchorSet
from alignment.data import collate, encode_rows
from alignment.generation.engine import Decoding
from alignment.generation.transformers import TransformersEngine
from alignment.generation.weights import base_weights
from alignment.optim import ExtraGradient
from alignment.policies import CausalLMPolicy
from alignment.sharding import is_divided, parameters_of, whole
from alignment.tiny import tiny_model, tiny_tokenizer
from alignment.types import Completions, Ema, Frozen, Needs, Player
from alignment.weights import TrainableWeights
from tests.distributed.as_gpu import pretend
from tests.distributed.walks import ANSWERS, lists

NEEDS = Needs(feedback="pairs", anchors=(Ema("target", decay=0.5), Frozen("ref"), Player("other")))
LIKELIEST = Decoding(temperature=0.0, max_new_tokens=6, stop_token_ids=(2,), pad_token_id=0)


def launched() -> Accelerator:
    """As recipes/accelerate/fsdp2.yaml would make it."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    return Accelerator(cpu=True, fsdp_plugin=plugin)


def model_of_another_family(vocab_size: int) -> Qwen2ForCausalLM:
    """Whose embedding and head are one weight."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Qwen2ForCausalLM(
        Qwen2Config(vocab_size=vocab_size, num_key_value_heads=2, tie_word_embeddings=True, **sizes)
    )


def elements(parameters: Iterable[nn.Parameter]) -> int:
    """Numbers that this process holds of them now."""
    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters)


def prompts_of(ids: list[list[int]]) -> Completions:
    """Prompts of one length."""
    ids_BGT = torch.tensor(ids)[:, None]
    is_prompt_BGT = torch.ones_like(ids_BGT, dtype=torch.bool)
    return Completions(
        input_ids_BGT=ids_BGT,
        attention_mask_BGT=is_prompt_BGT,
        completion_mask_BGT=~is_prompt_BGT,
        valid_BG=is_prompt_BGT[..., 0],
    )


def held_of(anchors: AnchorSet, name: str) -> int:
    """Numbers that this process holds of a frozen model now."""
    with anchors.model(name) as held:
        return elements(held.parameters())


def walk(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, batch: Completions, world_size: int
) -> dict[str, Any]:
    """Two iterations of extragradient with frozen models; ``batch`` is this process's part."""
    players = {"other": model_of_another_family(model.config.vocab_size)}
    start, anchors = TrainableWeights(model), AnchorSet(NEEDS, model, players=players)
    at_start = {name: tensor.clone() for name, tensor in anchors.state_dict()["target"].items()}
    # The loop copies before it shards.
    if world_size > 1:
        accelerator = launched()
        model = fsdp2_prepare_model(accelerator, model)
        anchors.divide_as_fsdp2(accelerator)
    optimizer = ExtraGradient(torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3))
    losses = []
    for _ in range(2):
        for optimizer.stage in (0, 1):
            if optimizer.stage == 1:
                optimizer.rewind()
            logps_BG = logps.score(model, batch).logps_BG
            target_BG = anchors.score(batch)["target"].logps_BG
            # Gradients are averaged over processes, losses of prompts over all of them.
            loss = -torch.nn.functional.logsigmoid(0.1 * (logps_BG[:, 1] - logps_BG[:, 0] - target_BG[:, 1])).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total = loss.detach().clone()
            if world_size > 1:
                dist.all_reduce(total)
            losses.append(float(total) / world_size)
        anchors.advance()
    before = {name: whole(parameter).clone() for name, parameter in parameters_of(model).items()}
    with start.in_place(model):
        logps_at_start = logps.score(model, batch).logps_BG.detach()
    after = {name: whole(parameter) for name, parameter in parameters_of(model).items()}
    # One process has more to say than the other.
    prompts = [[5, 6, 7 + number] for number in range(2 + (dist.get_rank() if world_size > 1 else 1))]
    answers = TransformersEngine().answer(model, prompts, LIKELIEST, num_completions=1, seeds=range(len(prompts)))
    # So many that one process is done before the other.
    stops = tuple(range(60))
    policy = CausalLMPolicy(model, tokenizer, stop_token_ids=stops, temperature=1.0, max_new_tokens=12)
    mixed = policy.mixed(partial(anchors.model, "ref"), 0.5)
    spoken = mixed.sample_by_seeds(prompts_of(prompts), num_completions=2, seeds=range(len(prompts)))
    held_after_answers = {name: held_of(anchors, name) for name in anchors.names}
    scores = anchors.score(batch)
    held_after_score = {name: held_of(anchors, name) for name in anchors.names}
    state = {name: tensor.clone() for name, tensor in anchors.state_dict()["target"].items()}
    anchors.load_state_dict({"target": at_start})
    return {
        "losses": losses,
        "weights": before,
        "is_put_back": all(torch.equal(before[name], after[name]) for name in before),
        "logps_at_start": logps_at_start,
        "base_weights": dict(base_weights(model)),
        "answers": answers,
        "mixed_answers": mixed.texts(spoken),
        "longest": int(spoken.lengths_BG.max()),
        "is_divided": is_divided(model),
        "elements": elements(parameters_of(model).values()),
        "held_after_score": held_after_score,
        "held_after_answers": held_after_answers,
        "anchors": {name: scores[name].logps_BG for name in anchors.names},
        "target_state": state,
        "target_at_start": anchors.score_one("target", batch),
    }


def main(file: str) -> None:
    pretend()
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.set_num_threads(1)
    # Several chunks of logits, one more of them on the process with longer answers.
    head.MAX_LOGITS = 2000
    rows = lists(8, 2)
    tokenizer = tiny_tokenizer([*ANSWERS, *(row.prompt[0].content for row in rows)], vocab_size=300)
    encoded = encode_rows(rows, tokenizer, max_prompt_length=64, max_completion_length=64).rows
    model = tiny_model(tokenizer, hidden_size=16, num_layers=2, num_heads=2)
    parts = [collate(encoded[part::2], pad_token_id=0).completions for part in (0, 1)]
    batch = collate([*encoded[0::2], *encoded[1::2]], pad_token_id=0).completions
    alone, found = walk(copy.deepcopy(model), tokenizer, batch, 1), walk(model, tokenizer, parts[rank], 2)
    own = slice(4 * rank, 4 * rank + 4)

    def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
        assert first.keys() == second.keys()
        return max(float((first[name] - second[name]).abs().max()) for name in first)

    result = {
        "is_divided": found["is_divided"] and not alone["is_divided"],
        "share": found["elements"] / alone["elements"],
        "losses": max(abs(a - b) for a, b in zip(found["losses"], alone["losses"], strict=True)),
        "weights": distance(found["weights"], alone["weights"]),
        "moved": distance({"": found["target_at_start"]}, {"": found["anchors"]["target"]}),
        "is_put_back": found["is_put_back"],
        "logps_at_start": float((found["logps_at_start"] - alone["logps_at_start"][own]).abs().max()),
        "anchors": distance(found["anchors"], {name: logps_BG[own] for name, logps_BG in alone["anchors"].items()}),
        "target_state": distance(found["target_state"], alone["target_state"]),
        "target_at_start": float((found["target_at_start"] - alone["target_at_start"][own]).abs().max()),
        "frozen_shares": [
            found[when][name] / alone[when][name]
            for when in ("held_after_score", "held_after_answers")
            for name in ("target", "ref", "other")
        ],
        "pushed": distance(found["base_weights"], alone["base_weights"]),
        "answers": found["answers"] == alone["answers"][: 2 + rank],
        "longest": found["longest"],
        "mixed_answers": found["mixed_answers"] == alone["mixed_answers"][: 2 + rank],
    }
    Path(f"{file}.{rank}").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
