"""A stand-in for the ``vllm`` package: it records what it is asked, and answers by prompt and seed."""

import os
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass
class SamplingParams:
    """Exactly the parameters that the engine may set; another name fails."""

    n: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    max_tokens: int
    ignore_eos: bool
    stop_token_ids: list[int]
    skip_special_tokens: bool
    seed: int


@dataclass(frozen=True)
class LoRARequest:
    """As in ``vllm.lora.request``: a name, a number above 0 and a folder."""

    lora_name: str
    lora_int_id: int
    lora_path: str

    def __post_init__(self) -> None:
        assert self.lora_int_id > 0 and Path(self.lora_path, "adapter_config.json").exists()


@dataclass
class Completion:
    """One answer."""

    token_ids: list[int]
    finish_reason: str


@dataclass
class Output:
    """The answers to one prompt."""

    prompt_token_ids: list[int]
    outputs: list[Completion]


class ServedModel:
    """Weights by name; shapes must be those of the start."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights

    def load_weights(self, weights: Any) -> set[str]:
        """Copy them."""
        loaded = {name: tensor.clone() for name, tensor in weights}
        for name, tensor in loaded.items():
            assert self.weights[name].shape == tensor.shape, name
        self.weights = {**self.weights, **loaded}
        return set(loaded)


@dataclass
class Stack:
    """What happened to the library since the test began, in order."""

    events: list[str] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)
    parameters: list[SamplingParams] = field(default_factory=list)
    adapters: list[LoRARequest | None] = field(default_factory=list)
    models: list[ServedModel] = field(default_factory=list)
    vocabulary: int = 7

    def modules(self) -> dict[str, types.ModuleType]:
        """What ``import vllm`` and its parts give."""
        vllm, lora, request = (types.ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
        stack = self

        class LLM:
            """The offline interface."""

            def __init__(self, *, model: str, **options: Any) -> None:
                assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("0", "1") and os.environ["MASTER_PORT"]
                stack.events.append("load")
                stack.options.append({"model": model, **options})
                self.model = ServedModel(load_file(Path(model) / "model.safetensors"))
                self.is_awake = True
                stack.models.append(self.model)

            def apply_model(self, function: Any) -> list[Any]:
                """Run the function on the model."""
                assert self.is_awake
                stack.events.append("push")
                return [function(self.model)]

            def reset_prefix_cache(self) -> None:
                """Forget prefixes."""
                stack.events.append("reset")

            def wake_up(self) -> None:
                """Take memory."""
                assert not self.is_awake
                stack.events.append("wake")
                self.is_awake = True

            def sleep(self, level: int) -> None:
                """Give memory back."""
                stack.events.append(f"sleep {level}")
                self.is_awake = False

            def generate(
                self,
                prompts: list[dict[str, list[int]]],
                *,
                sampling_params: list[SamplingParams],
                lora_request: LoRARequest | None,
                use_tqdm: bool,
            ) -> list[Output]:
                """One answer a prompt."""
                assert self.is_awake and not use_tqdm
                stack.events.append("generate")
                stack.adapters.append(lora_request)
                return [
                    stack.answer(item["prompt_token_ids"], parameters, self.model)
                    for item, parameters in zip(prompts, sampling_params, strict=True)
                ]

        vllm.LLM, vllm.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
        request.LoRARequest = LoRARequest  # type: ignore[attr-defined]
        return {"vllm": vllm, "vllm.lora": lora, "vllm.lora.request": request}

    def answer(self, prompt: list[int], parameters: SamplingParams, model: ServedModel) -> Output:
        """Random tokens from the seed, up to a stop token."""
        self.prompts.append(prompt)
        self.parameters.append(parameters)
        generator = torch.Generator().manual_seed(parameters.seed + 7 * sum(prompt))
        drawn = torch.randint(self.vocabulary, (parameters.max_tokens,), generator=generator).tolist()
        stops = [place for place, token in enumerate(drawn) if token in parameters.stop_token_ids]
        said = drawn[: stops[0] + 1] if stops else drawn
        return Output(prompt, [Completion(said, "stop" if stops else "length")])
