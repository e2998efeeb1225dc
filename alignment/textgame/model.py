"""The language model that plays: a word-level tokenizer, a small Llama, and its supervision, all made on the spot."""

import hashlib
import json
import shutil
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from alignment.cache import Entry, cache_folder, read_entry, write_entry
from alignment.logps import Scoring, score
from alignment.sharding import save_alone
from alignment.textgame.world import World
from alignment.tiny import tiny_model, word_level_tokenizer
from alignment.types import Completions

_SHAPE = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64}
_SUPERVISION = {"steps": 500, "answers": 8, "learning_rate": 3e-3}


def word_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """One token for each word of the world; a word carries its punctuation."""
    words = {word for texts in (world.questions, *world.answers) for text in texts for word in text.split(" ")}
    return word_level_tokenizer(sorted(words))


def untrained_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> LlamaForCausalLM:
    """The model before its supervision."""
    return tiny_model(tokenizer, **_SHAPE, seed=seed)


def supervised_model(
    world: World, tokenizer: PreTrainedTokenizerFast, answers: Completions, *, seed: int
) -> LlamaForCausalLM:
    """A model that answers as people do: maximum likelihood on answers drawn from the world's habits.

    It takes half a minute on one core; the weights are kept in the cache folder.

    Args:
        world: its habits.
        tokenizer: of the world.
        answers: all answers to all questions, [X, A, T].
        seed: of the weights and of the drawn answers.
    """
    model = untrained_model(tokenizer, seed=seed)
    key = _key(world, seed)
    path = _cached(key).with_suffix(".safetensors")
    if path.exists():
        model.load_state_dict(read_entry(path, key, "weights of the text game's model").tensors)
        return model
    _supervise(model, world.habits_XA, answers, torch.Generator().manual_seed(seed))
    write_entry(path, key, Entry(tensors=model.state_dict(), notes={}))
    return model


def model_folder(world: World, tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM, *, seed: int) -> Path:
    """Where the supervised model and its tokenizer stand as transformers load them; written if they are not there."""
    folder = _cached(_key(world, seed))
    if not folder.exists():
        partial = folder.with_suffix(f".{uuid4().hex}.partial")
        save_alone(model, dict(model.named_parameters()), partial)
        tokenizer.save_pretrained(partial)
        try:
            partial.rename(folder)
        except OSError:
            # Another process was faster, and its folder stays.
            shutil.rmtree(partial)
            if not folder.exists():
                raise
    return folder


def _key(world: World, seed: int) -> str:
    """Everything that decides the weights."""
    return json.dumps([_SHAPE, _SUPERVISION, seed, world.answers, world.habits_XA.tolist(), torch.__version__])


def _cached(key: str) -> Path:
    return cache_folder("textgame") / hashlib.sha256(key.encode()).hexdigest()[:32]


def _supervise(model: LlamaForCausalLM, habits_XA: Tensor, answers: Completions, generator: torch.Generator) -> None:
    steps = int(_SUPERVISION["steps"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=_SUPERVISION["learning_rate"], weight_decay=0.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=steps // 20, num_training_steps=steps)
    for _ in range(steps):
        drawn_XG = torch.multinomial(habits_XA, int(_SUPERVISION["answers"]), replacement=True, generator=generator)
        # Always the same way: these weights are the game.
        loss = -score(model, chosen(answers, drawn_XG), scoring=Scoring(logits="whole")).logps_BG.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def chosen(answers: Completions, index_XG: Tensor) -> Completions:
    """The answers [X, G, T] with these numbers among all answers [X, A, T]."""
    rows_X1 = torch.arange(len(index_XG))[:, None]
    return Completions(
        input_ids_BGT=answers.input_ids_BGT[rows_X1, index_XG],
        attention_mask_BGT=answers.attention_mask_BGT[rows_X1, index_XG],
        completion_mask_BGT=answers.completion_mask_BGT[rows_X1, index_XG],
        valid_BG=answers.valid_BG[rows_X1, index_XG],
    )
