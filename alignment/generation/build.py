"""From the keys of a recipe to an engine, and which methods an engine cannot sample for."""

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from alignment.errors import UserError
from alignment.generation.engine import Engine
from alignment.generation.options import ENGINES, ServerOptions, TransformersOptions, VLLMOptions
from alignment.types import Needs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MIXTURE = "mixture"
Options = TransformersOptions | VLLMOptions | ServerOptions


def read_options(name: str, options: Mapping[str, Any] | None) -> Options | None:
    """Check the options of an engine.

    Args:
        name: a key of ``ENGINES``.
        options: its block; ``None`` for defaults.

    Returns:
        The options; ``None`` for ``enumerate``, which draws nothing.

    Raises:
        UserError: for an unknown engine, an unknown option, or a value of another type.
    """
    if name not in ENGINES:
        raise UserError(f"engine: expected one of {', '.join(ENGINES)}, got {name!r}")
    kind = ENGINES[name]
    if kind is None:
        if options:
            raise UserError(f"engine_options: the engine '{name}' has none, got {sorted(options)}")
        return None
    try:
        return kind.model_validate(dict(options or {}))  # type: ignore[return-value]
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc'])) or name}: {item['msg']}" for item in error.errors()]
        raise UserError(f"engine '{name}': {'; '.join(lines)}") from None


def check_engine(name: str, options: Mapping[str, Any] | None) -> None:
    """Refuse an engine whose library is not installed. Nothing is imported or loaded.

    Raises:
        UserError: naming the extra that holds it.
    """
    parsed = read_options(name, options)
    needed = {"vllm": ("vllm", "vllm"), "openai": ("openai", "judge")}
    if isinstance(parsed, VLLMOptions) and parsed.mode == "server":
        needed["vllm"] = ("openai", "judge")
    if name not in needed:
        return
    module, extra = needed[name]
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"the engine '{name}' needs the package '{module}': expected the extra `{extra}` "
            f"(pip install 'nash-alignment[{extra}]'), found none"
        )


def build_engine(
    name: str,
    options: Mapping[str, Any] | None,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    lora_rank: int | None = None,
    num_processes: int = 1,
) -> Engine:
    """An engine, ready to answer; a model or a connection is opened when it is first asked.

    Args:
        name: a key of ``ENGINES`` except ``enumerate``.
        options: its block of a recipe; ``None`` for defaults.
        tokenizer: of the policy.
        lora_rank: of the adapter, where the policy is one: whole models then never change.
        num_processes: that sample at once.

    Raises:
        UserError: if the options are wrong, or a library is missing.
    """
    check_engine(name, options)
    parsed = read_options(name, options)
    # The libraries behind an engine are imported by those who use it.
    if isinstance(parsed, TransformersOptions):
        from alignment.generation.transformers import TransformersEngine

        return TransformersEngine(parsed)
    if isinstance(parsed, VLLMOptions):
        from alignment.generation.vllm import VLLMEngine

        return VLLMEngine(parsed, tokenizer, lora_rank=lora_rank, num_processes=num_processes)
    if isinstance(parsed, ServerOptions):
        from alignment.generation.openai import OpenAIEngine

        return OpenAIEngine(parsed, tokenizer)
    raise UserError(f"engine: '{name}' draws no answers; expected one of transformers, vllm, openai")


def engine_refusal(name: str, needs: Needs) -> str | None:
    """Why an engine cannot sample for a method while it trains, or ``None``.

    Args:
        name: a key of ``ENGINES``.
        needs: of the method.
    """
    if name in ("transformers", "enumerate"):
        return None
    if _MIXTURE in (needs.sampler, needs.opponent):
        return (
            f"the engine '{name}' cannot sample from a mixture of two models, which reads the logits of both at every "
            "token; use sampling.engine = 'transformers'"
        )
    if name == "openai" and needs.samples_in_batches:
        return (
            "the engine 'openai' cannot take new weights, and the method samples from the policy while it trains; use "
            "'transformers' or 'vllm'"
        )
    return None
