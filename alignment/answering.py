"""Who answers in an evaluation, and the answers: of a file, or of a model, written as they are sampled.

Seeds are a hash of the evaluation's seed and of what answers: equal weights give equal answers, and others give
answers that are independent of them. With the same random numbers two policies that resemble one another would mostly
say the same, and where they do not, what they say would be matched: the mean over such pairs is not the win rate.
"""

import dataclasses
import gc
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alignment.config.evaluation import AnswererSpec, DecodingSpec
from alignment.data import EncodedRow, Row, encode_rows, stop_token_ids
from alignment.data.rows import describe_skipped
from alignment.errors import UserError
from alignment.evaluation.manifests import digest
from alignment.generation import build_engine
from alignment.policies import CausalLMPolicy
from alignment.rounds import answer_prompts
from alignment.trained import TrainedModel, find_model

Progress = Callable[[str, int, int], None]

# Prompts between two writes; an engine that fills its own batches is given more at once.
_CHUNK = {"transformers": 8, "vllm": 256}


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """A policy: a model that is found and not loaded, or answers that are read.

    Attributes:
        name: in the recipe.
        identity: what decides its answers, besides prompts and decoding.
        model: who answers; ``None`` where the answers are given.
        given: the answers of a file.
    """

    name: str
    identity: Mapping[str, Any]
    model: TrainedModel | None = None
    given: tuple[str, ...] = ()


def find_player(name: str, spec: AnswererSpec, read_answers: Callable[[Path], tuple[str, ...]]) -> Player:
    """Find a model, or read the answers of a file.

    Args:
        name: in the recipe.
        spec: who it is.
        read_answers: reads a file of them.

    Raises:
        UserError: if there is no such model, or the file does not fit.
    """
    if spec.outputs is not None:
        given = read_answers(Path(spec.outputs))
        return Player(name=name, identity={"outputs": spec.outputs, "version": digest(given)}, given=given)
    assert spec.run is not None
    model = find_model(spec.run, checkpoint=spec.checkpoint)
    template = model.tokenizer.chat_template
    identity = {
        **spec.model_dump(exclude_none=True),
        "version": model.version(),
        "chat_template": None if template is None else digest(template),
    }
    return Player(name=name, identity=identity, model=model)


def sample_answers(
    player: Player, rows: Sequence[Row], spec: DecodingSpec, *, seed: int, partial: Path, progress: Progress
) -> list[list[str]]:
    """Answers of a model to the prompts of rows, chunk by chunk; those of a process that was killed are taken up.

    Args:
        player: a model.
        rows: what is answered; only their prompts are read.
        spec: how, and how many to each.
        seed: of the evaluation.
        partial: the file of chunks that are answered; its name must say what decides them.
        progress: called with what is done, how much of it, and how much there is.

    Raises:
        UserError: if the model cannot read a prompt.
    """
    assert player.model is not None
    encoded = _encode(player.name, player.model, rows)
    size = _CHUNK[spec.engine]
    chunks = [encoded[start : start + size] for start in range(0, len(encoded), size)]
    hashed = int(digest([seed, player.identity["version"]])[:15], 16)
    seeds = torch.randint(2**31, (len(chunks),), generator=torch.Generator().manual_seed(hashed)).tolist()
    done = _read_partial(partial)
    what = f"answers of {player.name}"
    if len(done) < len(chunks):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        rank = None if player.model.adapter is None else int(player.model.adapter["r"])
        with closing(build_engine(spec.engine, None, player.model.tokenizer, lora_rank=rank)) as engine:
            policy = CausalLMPolicy(
                player.model.load().to(device),
                player.model.tokenizer,
                stop_token_ids=stop_token_ids(player.model.tokenizer),
                temperature=spec.temperature,
                max_new_tokens=spec.max_new_tokens,
                engine=engine,
            )
            for number in range(len(done), len(chunks)):
                progress(what, number * size, len(encoded))
                answered = answer_prompts(
                    policy,
                    chunks[number],
                    num_completions=spec.num_completions,
                    batch_size=size,
                    seed=seeds[number],
                )
                done.append([list(item.row.responses) for item in answered])
                with partial.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(done[-1]) + "\n")
            del policy
        # One model in memory at a time.
        gc.collect()
        torch.cuda.empty_cache()
    progress(what, len(encoded), len(encoded))
    return [group for chunk in done for group in chunk]


def _read_partial(path: Path) -> list[list[list[str]]]:
    """Chunks that were answered; a line that was torn when the process was killed is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        path.write_text("".join(whole), encoding="utf-8")
    return [json.loads(line) for line in whole]


def _encode(name: str, model: TrainedModel, rows: Sequence[Row]) -> tuple[EncodedRow, ...]:
    bare = [dataclasses.replace(row, responses=(), comparisons=(), scores=None, panel=()) for row in rows]
    longest = model.tokenizer.model_max_length
    result = encode_rows(bare, model.tokenizer, max_prompt_length=longest, max_completion_length=1)
    if result.skipped:
        raise UserError(
            f"policies.{name}: expected prompts that the model can read, {describe_skipped(result.skipped)}; every "
            "policy must answer the same prompts: leave these out of the file"
        )
    return result.rows
