"""Who answers in an evaluation, and the answers: of a file, or of a model here or on a server, kept as they come.

Seeds are a hash of the evaluation's seed and of what answers: equal weights give equal answers, and others give
answers that are independent of them. With the same random numbers two policies that resemble one another would mostly
say the same, and where they do not, what they say would be matched: the mean over such pairs is not the win rate.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alignment.artefacts import Artefact
from alignment.config.evaluation import AnswererSpec, DecodingSpec
from alignment.data import EncodedRow, Row, encode_rows, stop_token_ids
from alignment.data.rows import describe_skipped
from alignment.errors import UserError
from alignment.evaluation.manifests import digest
from alignment.evaluation.prompt_sets import PromptSet
from alignment.files import write_json
from alignment.generation import build_engine, check_engine
from alignment.generation.chat import ChatServer
from alignment.generation.http import read_key
from alignment.generation.options import ServerOptions
from alignment.policies import CausalLMPolicy
from alignment.progress import Progress
from alignment.rounds import answered_chunks
from alignment.sample import Answered, model_outputs
from alignment.seeds import seeds_of
from alignment.trained import TrainedModel, find_model
from alignment.weights import forget_models

# Prompts between two writes; an engine that fills its own batches is given more at once.
_CHUNK = {"transformers": 8, "vllm": 256}
_SERVER_CHUNK = 32
_PARTIAL = "{stem}.{part}.partial.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """A policy: a model that is found and not loaded, one that a server has, or answers that are read.

    Attributes:
        name: in the recipe.
        identity: what decides its answers, besides prompts and decoding.
        model: who answers here.
        server: who answers elsewhere.
        given: the answers of a file, to each prompt or turn after turn.
    """

    name: str
    identity: Mapping[str, Any]
    model: TrainedModel | None = None
    server: ServerOptions | None = None
    given: Sequence[tuple[str, ...]] = ()

    @property
    def is_given(self) -> bool:
        """Whether nobody is asked."""
        return self.model is None and self.server is None


def check_sampler(spec: DecodingSpec | None) -> None:
    """Refuse an engine whose library is not installed, before anything is read or written.

    Args:
        spec: how models answer; ``None`` where no model does.

    Raises:
        UserError: naming the extra that holds it.
    """
    if spec is not None:
        check_engine(spec.engine, None)


def find_player(name: str, spec: AnswererSpec, read_answers: Callable[[Path], Sequence[tuple[str, ...]]]) -> Player:
    """Find a model or where it is served, or read the answers of a file.

    Args:
        name: in the recipe.
        spec: who it is.
        read_answers: reads a file of them.

    Raises:
        UserError: if there is no such model, the key of a server is not set, or the file does not fit.
    """
    if spec.outputs is not None:
        given = read_answers(Path(spec.outputs))
        return Player(name=name, identity={"outputs": spec.outputs, "version": digest(given)}, given=given)
    if spec.server is not None:
        check_engine("openai", spec.server.model_dump())
        # The key is missed now, not after others have answered.
        read_key(spec.server)
        served = {"base_url": spec.server.base_url, "model": spec.server.model}
        return Player(name=name, identity={"server": served, "version": digest(served)}, server=spec.server)
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
    player: Player,
    rows: Sequence[Row],
    spec: DecodingSpec,
    artefact: Artefact,
    *,
    seed: int,
    progress: Progress,
    part: str = "answers",
) -> list[list[str]]:
    """Answers of a model to the prompts of rows, chunk by chunk; those of a process that was killed are taken up.

    Args:
        player: a model.
        rows: what is answered; only their prompts are read.
        spec: how, and how many to each.
        artefact: what they will be a part of. Chunks stand beside it, under a hash of what decides them.
        seed: of the evaluation.
        progress: called with what is done, how much of it, and how much there is.
        part: what they are; the same model answers the same prompt independently under another name.

    Raises:
        UserError: if the model cannot read a prompt, or the server fails for good.
    """
    partial = artefact.path.with_name(_PARTIAL.format(stem=_stem(artefact), part=part.replace(" ", "-")))
    size = _CHUNK[spec.engine] if player.server is None else _SERVER_CHUNK
    seeds = seeds_of(len(rows), seed, player.identity["version"], part)
    done = [group for chunk in _read_partial(partial) for group in chunk]
    what = f"{part} of {player.name}"
    if len(done) < len(rows):
        progress(what, len(done), len(rows))
        ask = _sample_here if player.server is None else _sample_there
        for groups in ask(player, rows[len(done) :], spec, seeds[len(done) :], size):
            done += groups
            with partial.open("a", encoding="utf-8") as file:
                file.write(json.dumps(groups) + "\n")
            progress(what, len(done), len(rows))
        if player.model is not None:
            # One model in memory at a time.
            forget_models()
    return done


def written_answers(
    player: Player,
    prompts: PromptSet,
    spec: DecodingSpec | None,
    path: Path,
    *,
    seed: int,
    progress: Progress,
    part: str = "answers",
) -> list[list[str]]:
    """The answers of a file, or those of a model to each prompt, kept in AlpacaEval's form.

    Args:
        player: who answers.
        prompts: what.
        spec: how, and how many to each; a file has one.
        path: where they are kept. Round by round, so that the first ones are a whole set of answers.
        seed: of the evaluation.
        progress: as of :func:`sample_answers`.
        part: likewise.

    Raises:
        UserError: as :func:`sample_answers`, and if the file at ``path`` was made by something else.
    """
    sampling = None if player.is_given or spec is None else spec.model_dump()
    made_by = {"policy": player.identity, "prompts": prompts.digest, "sampling": sampling, "seed": seed}
    artefact = Artefact(path, made_by)
    if artefact.is_finished():
        texts = [item["output"] for item in json.loads(path.read_text(encoding="utf-8"))]
        return [texts[start :: len(prompts.rows)] for start in range(len(prompts.rows))]
    if player.is_given:
        groups = [list(group) for group in player.given]
    else:
        assert spec is not None
        groups = sample_answers(player, prompts.rows, spec, artefact, seed=seed, progress=progress, part=part)
    answered = [
        Answered(prompt=prompt, answers=(group[g],))
        for g in range(len(groups[0]))
        for prompt, group in zip(prompts.texts, groups, strict=True)
    ]
    write_json(path, model_outputs(answered, player.name))
    artefact.finish()
    discard_chunks(artefact)
    return groups


def discard_chunks(artefact: Artefact) -> None:
    """Remove what :func:`sample_answers` has left beside an artefact that is finished."""
    for path in artefact.path.parent.glob(_PARTIAL.format(stem=_stem(artefact), part="*")):
        path.unlink()


def _stem(artefact: Artefact) -> str:
    return f"{artefact.path.stem}.{artefact.fingerprint[:16]}"


def _sample_here(
    player: Player, rows: Sequence[Row], spec: DecodingSpec, seeds: Sequence[int], size: int
) -> Iterator[list[list[str]]]:
    """Answers to so many prompts at a time."""
    assert player.model is not None
    encoded = _encode(player.name, player.model, rows)
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
        chunks = answered_chunks(policy, encoded, num_completions=spec.num_completions, batch_size=size, seeds=seeds)
        for chunk in chunks:
            yield [list(item.row.responses) for item in chunk]


def _sample_there(
    player: Player, rows: Sequence[Row], spec: DecodingSpec, seeds: Sequence[int], size: int
) -> Iterator[list[list[str]]]:
    assert player.server is not None
    with closing(ChatServer(player.server)) as server:
        for part in (slice(start, start + size) for start in range(0, len(rows), size)):
            yield server.answer(
                [row.prompt for row in rows[part]],
                temperature=spec.temperature,
                max_new_tokens=spec.max_new_tokens,
                num_completions=spec.num_completions,
                seeds=seeds[part],
            )


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
            "policy must answer the same prompts: leave these out of the file, or shorten the answers that they hold"
        )
    return result.rows
