"""What the trainer does with a model, done with one that FSDP2 has sharded: writes how far it is from a whole one.

    torchrun --nproc_per_node 2 tests/distributed/sharded.py FILE

On a CPU accelerate runs plain DDP in place of FSDP, so modules are sharded here by torch's own call.
"""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM

from alignment import head, logps
from alignment.anchors import AnchorSet
from alignment.data import collate, encode_rows
from alignment.generation.engine import Decoding
from alignment.generation.transformers import TransformersEngine
from alignment.generation.weights import base_weights
from alignment.optim import ExtraGradient
from alignment.sharding import is_divided, parameters_of, whole
from alignment.tiny import tiny_model, tiny_tokenizer
from alignment.types import Completions, Ema, Needs
from alignment.weights import TrainableWeights
from tests.distributed.walks import ANSWERS, lists

NEEDS = Needs(feedback="pairs", anchors=(Ema("target", decay=0.5),))
LIKELIEST = Decoding(temperature=0.0, max_new_tokens=6, stop_token_ids=(2,), pad_token_id=0)


def shard(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Every layer a unit, the rest another."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def walk(model: LlamaForCausalLM, batch: Completions, world_size: int) -> dict[str, Any]:
    """Two iterations of extragradient with a slow target; ``batch`` is this process's part."""
    start, anchors = TrainableWeights(model), AnchorSet(NEEDS, model)
    # The loop copies before it shards.
    model = shard(model) if world_size > 1 else model
    optimizer = ExtraGradient(torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3))
    losses = []
    for _ in range(2):
        for optimizer.stage in (0, 1):
            if optimizer.stage == 1:
                optimizer.rewind()
            logps_BG = logps.score(model, batch).logps_BG
            target_BG = anchors.score_one("target", batch)
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
    return {
        "losses": losses,
        "weights": before,
        "is_put_back": all(torch.equal(before[name], after[name]) for name in before),
        "logps_at_start": logps_at_start,
        "base_weights": dict(base_weights(model)),
        "answers": TransformersEngine().answer(model, prompts, LIKELIEST, num_completions=1, seeds=range(len(prompts))),
        "is_divided": is_divided(model),
        "elements": sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters_of(model).values()),
        "target": anchors.score_one("target", batch),
    }


def main(file: str) -> None:
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
    alone = walk(copy.deepcopy(model), collate([*encoded[0::2], *encoded[1::2]], pad_token_id=0).completions, 1)
    found = walk(model, parts[rank], 2)
    own = slice(4 * rank, 4 * rank + 4)

    def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
        assert first.keys() == second.keys()
        return max(float((first[name] - second[name]).abs().max()) for name in first)

    result = {
        "is_divided": found["is_divided"] and not alone["is_divided"],
        "share": found["elements"] / alone["elements"],
        "losses": max(abs(a - b) for a, b in zip(found["losses"], alone["losses"], strict=True)),
        "weights": distance(found["weights"], alone["weights"]),
        "moved": distance({"": found["logps_at_start"]}, {"": found["target"]}),
        "is_put_back": found["is_put_back"],
        "logps_at_start": float((found["logps_at_start"] - alone["logps_at_start"][own]).abs().max()),
        "target": float((found["target"] - alone["target"][own]).abs().max()),
        "pushed": distance(found["base_weights"], alone["base_weights"]),
        "answers": found["answers"] == alone["answers"][: 2 + rank],
    }
    Path(f"{file}.{rank}").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
