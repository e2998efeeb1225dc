"""Answers by vLLM: in this process beside the training, or from a vLLM server.

Written against the public interface of vLLM; the tests run it against a stand-in for the library, see
docs/generation.md.
"""

import importlib
import itertools
import os
import shutil
import socket
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from alignment.errors import UserError
from alignment.generation.engine import Answers, Decoding, TokenIds, grouped, request_seeds
from alignment.generation.http import Connection, connect
from alignment.generation.options import VLLMOptions
from alignment.generation.weights import base_of, base_weights, is_adapted, save_adapter, save_base
from alignment.sharding import gathered

# The ranks that vLLM makes room for.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# A policy and its slow target take turns.
_ADAPTERS_AT_ONCE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA adapter as vLLM is told of it.

    Attributes:
        name: of its own, so that no cached prefix of an earlier adapter is taken for one of this.
        number: above 0; never given twice.
        folder: in the format of peft.
    """

    name: str
    number: int
    folder: Path


class Backend(Protocol):
    """Where vLLM runs."""

    def start(self, module: Any) -> None:
        """Be ready: load the module's checkpoint at the first time, wake up at a later one."""
        ...

    def push(self, module: Any) -> None:
        """Take the weights of the base model."""
        ...

    def add(self, adapter: Adapter) -> None:
        """Learn of an adapter."""
        ...

    def remove(self, adapter: Adapter) -> None:
        """Forget an adapter."""
        ...

    def ask(
        self, prompts: Sequence[TokenIds], seeds: Sequence[int], decoding: Decoding, adapter: Adapter | None
    ) -> list[list[int]]:
        """One answer to each prompt, by its seed."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class VLLMEngine:
    """Keeps vLLM's weights those of the module that is asked.

    Whole weights are pushed when another module is asked or :meth:`refresh` was called. Where a LoRA adapter is
    trained, the adapter is written and named anew after each :meth:`refresh`; whole models then never change, so a base
    model is not pushed where vLLM loaded the checkpoint of its name.

    Args:
        options: of a recipe.
        tokenizer: of the policy; written beside weights that have no name.
        lora_rank: of the adapter that is trained; ``None`` where whole weights are.
        num_processes: that sample at once.
    """

    takes_weights: ClassVar[bool] = True

    def __init__(
        self,
        options: VLLMOptions,
        tokenizer: PreTrainedTokenizerBase,
        *,
        lora_rank: int | None = None,
        num_processes: int = 1,
    ) -> None:
        self._lora_rank, self._num_processes = lora_rank, num_processes
        parent = options.exchange_folder
        if parent is not None:
            Path(parent).mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix="alignment-vllm-", dir=parent)).resolve()
        self._numbers = itertools.count(1)
        self._adapters: weakref.WeakKeyDictionary[Any, Adapter] = weakref.WeakKeyDictionary()
        # Those as well whose module is gone.
        self._written: list[Adapter] = []
        # What vLLM's base model is: the name of an untouched checkpoint, or a module; None once it may have changed.
        self._held: str | weakref.ref[Any] | None = None
        self._was_pushed = False
        self._is_server = options.mode == "server"
        self._backend: Backend = (
            ServerBackend(options, self._folder)
            if self._is_server
            else ColocatedBackend(options, self._folder, tokenizer, lora_rank)
        )

    def answer(
        self,
        module: Any,
        prompts: Sequence[TokenIds],
        decoding: Decoding,
        *,
        num_completions: int,
        seeds: Sequence[int],
    ) -> Answers:
        """See :class:`~alignment.generation.Engine`."""
        self._backend.start(module)
        adapter = self._adapter(module) if is_adapted(module) else None
        self._hold_base(module)
        repeated = [list(prompt) for prompt in prompts for _ in range(num_completions)]
        answers = self._backend.ask(repeated, request_seeds(seeds, num_completions), decoding, adapter)
        return grouped(answers, num_completions)

    def refresh(self) -> None:
        """The next answer takes weights and adapters anew."""
        for adapter in self._written:
            self._backend.remove(adapter)
            shutil.rmtree(adapter.folder)
        self._written.clear()
        self._adapters.clear()
        if not isinstance(self._held, str):
            self._held = None

    def close(self) -> None:
        """End vLLM and delete what was written for it."""
        self._backend.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _adapter(self, module: PeftModel) -> Adapter:
        if module not in self._adapters:
            number = next(self._numbers)
            # Processes that share a server have folders of their own, whose names are unique.
            name = f"{self._folder.name}-{number}"
            folder = self._folder / f"adapter-{number}"
            with gathered(parameter for parameter in module.parameters() if parameter.requires_grad):
                save_adapter(module, folder)
            adapter = Adapter(name=name, number=number, folder=folder)
            self._backend.add(adapter)
            self._adapters[module] = adapter
            self._written.append(adapter)
        return self._adapters[module]

    def _hold_base(self, module: Any) -> None:
        base = base_of(module)
        is_known = self._lora_rank is not None and base.name_or_path
        wanted = base.name_or_path if is_known else weakref.ref(base)
        if wanted == self._held:
            return
        # vLLM was started from the checkpoint of this name.
        is_as_started = is_known and self._held is None and not self._was_pushed
        if not is_as_started:
            self._push(module)
        self._held = wanted

    def _push(self, module: Any) -> None:
        if self._is_server and self._num_processes > 1:
            raise UserError(
                f"sampling.vllm.mode: a server has one set of weights, and {self._num_processes} processes would "
                "change it while others sample: expected policy.lora, one process, or mode: colocate"
            )
        with gathered(module.parameters()):
            self._backend.push(module)
        self._was_pushed = True


class ColocatedBackend:
    """``vllm.LLM`` in this process, on one GPU; asleep while nobody asks.

    Args:
        options: of a recipe.
        folder: for weights that have no name.
        tokenizer: written beside them.
        lora_rank: of the adapters that will come; ``None`` for none.

    Raises:
        UserError: for a rank that vLLM has no room for.
    """

    def __init__(
        self, options: VLLMOptions, folder: Path, tokenizer: PreTrainedTokenizerBase, lora_rank: int | None
    ) -> None:
        self._options, self._folder, self._tokenizer = options, folder, tokenizer
        self._vllm: Any = None
        self._llm: Any = None
        self._lora: dict[str, Any] = {}
        if lora_rank is not None:
            if lora_rank > _RANKS[-1]:
                raise UserError(f"policy.lora.rank: expected at most {_RANKS[-1]}, which vLLM serves, got {lora_rank}")
            room = next(room for room in _RANKS if room >= lora_rank)
            self._lora = {"enable_lora": True, "max_lora_rank": room, "max_loras": _ADAPTERS_AT_ONCE}

    def start(self, module: Any) -> None:
        if self._llm is None:
            self._load(module)
        elif self._options.sleep:
            self._llm.wake_up()

    def _load(self, module: Any) -> None:
        self._vllm = importlib.import_module("vllm")
        base = base_of(module)
        path = base.name_or_path
        if not path:
            path = str(self._folder / "start")
            with gathered(module.parameters()):
                save_base(module, Path(path))
            self._tokenizer.save_pretrained(path)
        with _launched():
            self._llm = self._vllm.LLM(
                model=path,
                dtype=str(base.dtype).removeprefix("torch."),
                max_model_len=self._options.max_model_len,
                gpu_memory_utilization=self._options.gpu_memory_utilization,
                enable_sleep_mode=self._options.sleep,
                # A model's own settings would bend the distribution that log-probs speak of.
                generation_config="vllm",
                # In this process, where weights are handed over by reference.
                distributed_executor_backend="external_launcher",
                tensor_parallel_size=1,
                **self._lora,
            )

    def push(self, module: Any) -> None:
        weights = list(base_weights(module))
        self._llm.apply_model(lambda model: model.load_weights(iter(weights)) and None)
        # Cached prefixes are of the weights before.
        self._llm.reset_prefix_cache()

    def add(self, adapter: Adapter) -> None:
        """Nothing to do: every request names its adapter's folder."""

    def remove(self, adapter: Adapter) -> None:
        """Nothing to do: what is not asked for makes room."""

    def ask(
        self, prompts: Sequence[TokenIds], seeds: Sequence[int], decoding: Decoding, adapter: Adapter | None
    ) -> list[list[int]]:
        request = None
        if adapter is not None:
            lora = importlib.import_module("vllm.lora.request")
            request = lora.LoRARequest(adapter.name, adapter.number, str(adapter.folder))
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            sampling_params=[self._vllm.SamplingParams(**_plain_parameters(decoding), seed=seed) for seed in seeds],
            lora_request=request,
            use_tqdm=False,
        )
        if self._options.sleep:
            # Level 1 keeps the weights in the host's memory: with a LoRA base nobody would push them again.
            self._llm.sleep(level=1)
        return [
            _checked(list(output.outputs[0].token_ids), output.outputs[0].finish_reason, decoding) for output in outputs
        ]

    def close(self) -> None:
        self._llm = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class ServerBackend:
    """A vLLM server; new weights go through a folder that it sees at the same path.

    Whole weights need a server in development mode with the weight-transfer backend ``disk``; adapters one that may
    load them while it runs.

    Args:
        options: of a recipe.
        folder: below ``exchange_folder``.
    """

    def __init__(self, options: VLLMOptions, folder: Path) -> None:
        assert options.base_url is not None
        self._options, self._folder = options, folder
        self._connection: Connection = connect(options, options.base_url)
        self._root = options.base_url.rstrip("/").removesuffix("/v1")
        self._model = options.model
        self._can_take_weights = False
        self._pushes = itertools.count(1)

    def start(self, module: Any) -> None:
        if self._model is None:
            self._model = self._connection.first_model()

    def push(self, module: Any) -> None:
        folder = self._folder / f"weights-{next(self._pushes)}"
        save_base(module, folder)
        must = (
            'start it with VLLM_SERVER_DEV_MODE=1 and --weight-transfer-config \'{"backend": "disk"}\' (a vLLM that '
            "has this backend), train a LoRA adapter, or use mode: colocate"
        )

        def tell(path: str, body: dict[str, Any]) -> None:
            self._connection.tell(f"{self._root}/{path}", body, must=must)

        if not self._can_take_weights:
            tell("init_weight_transfer_engine", {"init_info": {}})
            self._can_take_weights = True
        tell("start_weight_update", {})
        tell("update_weights", {"update_info": {"path": str(folder)}})
        tell("finish_weight_update", {})
        # Cached prefixes are of the weights before.
        tell("reset_prefix_cache", {})
        shutil.rmtree(folder)

    def add(self, adapter: Adapter) -> None:
        self._tell("load_lora_adapter", {"lora_name": adapter.name, "lora_path": str(adapter.folder)})

    def remove(self, adapter: Adapter) -> None:
        self._tell("unload_lora_adapter", {"lora_name": adapter.name})

    def _tell(self, action: str, body: dict[str, Any]) -> None:
        self._connection.tell(
            f"{self._root}/v1/{action}",
            body,
            must="start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora and a --max-lora-rank of the "
            "adapter's rank or more",
        )

    def ask(
        self, prompts: Sequence[TokenIds], seeds: Sequence[int], decoding: Decoding, adapter: Adapter | None
    ) -> list[list[int]]:
        shared = {**_plain_parameters(decoding), "return_token_ids": True}
        model = self._model if adapter is None else adapter.name
        bodies = [
            {"model": model, "prompt": list(prompt), "seed": seed, **shared}
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return [_read_choice(choice, decoding) for choice in self._connection.complete(bodies)]

    def close(self) -> None:
        self._connection.close()


def _plain_parameters(decoding: Decoding) -> dict[str, Any]:
    """The parameters of a request; what would bend the distribution is set to do nothing."""
    return {
        "n": 1,
        "temperature": decoding.temperature,
        "top_k": decoding.top_k or 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": decoding.max_new_tokens,
        # The model's own end token counts only where it is among ours.
        "ignore_eos": True,
        "stop_token_ids": list(decoding.stop_token_ids),
        "skip_special_tokens": False,
    }


def _read_choice(choice: dict[str, Any], decoding: Decoding) -> list[int]:
    if not choice.get("token_ids"):
        raise UserError(
            "sampling.vllm: expected token ids in the server's answer, found none; it needs a vLLM that reads "
            "return_token_ids"
        )
    return _checked(list(choice["token_ids"]), choice["finish_reason"], decoding)


def _checked(token_ids: list[int], finish_reason: str | None, decoding: Decoding) -> list[int]:
    """The answer, if it ended as an answer may: at one of our stop tokens, or cut by length."""
    ends = token_ids and token_ids[-1] in decoding.stop_token_ids
    is_cut = finish_reason == "length" and len(token_ids) == decoding.max_new_tokens
    if not (ends if finish_reason == "stop" else is_cut):
        raise UserError(
            f"vLLM ended an answer of {len(token_ids)} tokens with '{finish_reason}': expected a stop token at its "
            f"end, or {decoding.max_new_tokens} tokens (sampling.max_new_tokens); is vLLM's max_model_len too small?"
        )
    return token_ids


@contextmanager
def _launched() -> Iterator[None]:
    """Rank and rendezvous, which vLLM reads from the environment: the launcher's, or those of a single process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    added = {name: value for name, value in alone.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        # Whoever looks for a launcher later must find none.
        for name in added:
            del os.environ[name]
