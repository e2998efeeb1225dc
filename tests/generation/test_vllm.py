"""vLLM, by a stand-in for the library and a scripted server: weights, adapters, prompts, stops, seeds, refusals."""

import copy
import gc
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from alignment.arguments import AlignmentArguments
from alignment.data import Row, Turn
from alignment.errors import UserError
from alignment.generation import Decoding, VLLMOptions, build_engine
from alignment.generation.engine import request_seeds
from alignment.generation.vllm import VLLMEngine
from alignment.generation.weights import base_weights
from alignment.oracles import RuleOracle
from alignment.tiny import tiny_model, tiny_tokenizer
from alignment.trainer import PreferenceTrainer
from tests.generation.http_stand_in import Reply, ScriptedServer, serving
from tests.generation.vllm_stand_in import Stack

PROMPTS = [[5, 6, 7], [8]]
DECODING = Decoding(temperature=0.7, max_new_tokens=5, stop_token_ids=(2, 3), pad_token_id=0, top_k=4)


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Stack:
    stack = Stack()
    for name, module in stack.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: sys.modules.get(name))
    return stack


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer(["some words to begin with"], vocab_size=300)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return tiny_model(tokenizer, hidden_size=16, num_layers=1, num_heads=2)


def lora(model: LlamaForCausalLM, rank: int = 2) -> peft.PeftModel:
    return peft.get_peft_model(model, peft.LoraConfig(r=rank, target_modules=["q_proj", "v_proj"]))


def ask(engine: Any, module: Any, *, seed: int = 0, num_completions: int = 3) -> Any:
    return engine.answer(module, PROMPTS, DECODING, num_completions=num_completions, seeds=[seed, seed + 1])


def served(stack: Stack, module: Any) -> bool:
    """Whether the last LLM holds exactly the module's weights."""
    held = stack.models[-1].weights
    return all(torch.equal(held[name], tensor) for name, tensor in base_weights(module))


@pytest.fixture
def engine(stack: Stack, tokenizer: PreTrainedTokenizerFast) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(VLLMOptions(), tokenizer)
    yield engine
    engine.close()


def test_prompts_are_tokens_and_requests_are_plain(stack: Stack, engine: VLLMEngine, model: LlamaForCausalLM) -> None:
    """Each answer is a request of its own with its own seed; nothing but temperature and top_k bends the draw."""
    answers = ask(engine, model)
    assert stack.prompts == [[5, 6, 7]] * 3 + [[8]] * 3
    (options,) = stack.options
    assert options["generation_config"] == "vllm" and options["dtype"] == "float32" and options["enable_sleep_mode"]
    assert "enable_lora" not in options
    seeds = [parameters.seed for parameters in stack.parameters]
    assert seeds == request_seeds([0, 1], 3) and len(set(seeds)) == 6
    for parameters in stack.parameters:
        assert (parameters.temperature, parameters.top_k, parameters.max_tokens) == (0.7, 4, 5)
        assert parameters.stop_token_ids == [2, 3] and parameters.ignore_eos
        assert (parameters.top_p, parameters.min_p, parameters.repetition_penalty) == (1.0, 0.0, 1.0)
    assert [len(group) for group in answers] == [3, 3]
    for said in (said for group in answers for said in group):
        assert (said[-1] in (2, 3) or len(said) == 5) and not {2, 3} & set(said[:-1])


def test_a_seed_decides_the_answers(engine: VLLMEngine, model: LlamaForCausalLM) -> None:
    assert ask(engine, model, seed=1) == ask(engine, model, seed=1) != ask(engine, model, seed=2)


def test_weights_are_pushed_when_they_changed(stack: Stack, engine: VLLMEngine, model: LlamaForCausalLM) -> None:
    """Once after a refresh and not again; another module is another set of weights; it sleeps between two samplings."""
    ask(engine, model)
    assert stack.events == ["load", "push", "reset", "generate", "sleep 1"]
    assert "RANK" not in os.environ
    stack.events.clear()
    ask(engine, model)
    assert stack.events == ["wake", "generate", "sleep 1"]
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    assert not served(stack, model)
    engine.refresh()
    ask(engine, model)
    assert served(stack, model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.add_(1)
    ask(engine, other)
    assert served(stack, other) and not served(stack, model)
    ask(engine, model)
    assert served(stack, model)


def test_adapters_are_named_anew_after_each_refresh(
    stack: Stack, tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM, tmp_path: Path
) -> None:
    """The base is loaded from its checkpoint and never pushed; without its adapter the policy is the base."""
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    policy = lora(LlamaForCausalLM.from_pretrained(tmp_path / "base"))
    engine = build_engine("vllm", None, tokenizer, lora_rank=2)
    folders = []
    for step in range(3):
        ask(engine, policy)
        request = stack.adapters[-1]
        assert request is not None
        held = load_file(Path(request.lora_path) / "adapter_model.safetensors")
        assert all(bool((tensor == step).all()) for name, tensor in held.items() if "lora_B" in name)
        folders.append(Path(request.lora_path))
        ask(engine, policy)
        assert stack.adapters[-1] == request
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(step + 1.0)
        engine.refresh()
    requests = [request for request in stack.adapters if request is not None]
    assert len({request.lora_int_id for request in requests}) == len({request.lora_name for request in requests}) == 3
    assert not any(folder.exists() for folder in folders)
    with policy.disable_adapter():
        ask(engine, policy)
    assert stack.adapters[-1] is None
    assert "push" not in stack.events and stack.options[0]["model"] == str(tmp_path / "base")
    assert stack.options[0]["max_lora_rank"] == 8 and stack.options[0]["max_loras"] == 2
    engine.close()


def test_a_full_reference_beside_an_adapter(
    stack: Stack, tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM, tmp_path: Path
) -> None:
    """Two checkpoints take turns, and each answer has its own weights."""
    for seed in (0, 1):
        made = tiny_model(tokenizer, hidden_size=16, num_layers=1, num_heads=2, seed=seed)
        made.save_pretrained(tmp_path / str(seed))
    policy = lora(LlamaForCausalLM.from_pretrained(tmp_path / "0"))
    reference = LlamaForCausalLM.from_pretrained(tmp_path / "1")
    engine = build_engine("vllm", None, tokenizer, lora_rank=2)
    for module in (policy, reference, policy):
        ask(engine, module)
        assert served(stack, module)
    assert stack.events.count("push") == 2
    engine.close()


def rows(count: int) -> list[Row]:
    return [Row(prompt=(Turn("user", f"word {i}"),), source=f"rows:{i + 1}") for i in range(count)]


def trainer(model: LlamaForCausalLM, tokenizer: Any, folder: Path, method: dict[str, Any], **options: Any) -> Any:
    args = AlignmentArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        learning_rate=0.1,
        max_new_tokens=4,
        save_strategy="no",
        disable_tqdm=True,
        engine="vllm",
        **options,
    )
    return PreferenceTrainer(
        model=model,
        args=args,
        train_dataset=rows(8),
        processing_class=tokenizer,
        oracle=RuleOracle(lambda prompt, left, right: 0.5 + 0.5 * math.tanh(len(left) - len(right))),
        method=method,
    )


def test_a_training_step_samples_from_the_weights_of_its_start(
    stack: Stack, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Two micro-batches a step, one push a step; in the end vLLM has the weights from before the last update."""
    before = {name: tensor.clone() for name, tensor in base_weights(model)}
    trained = trainer(model, tokenizer, tmp_path, {"name": "online_ipo", "tau": 0.1})
    trained.train()
    assert stack.events.count("push") == 2 and stack.events.count("generate") == 4
    held = stack.models[-1].weights
    assert not torch.equal(held["lm_head.weight"], before["lm_head.weight"])
    assert not served(stack, trained.model)
    trained.engine.close()


def test_a_method_that_mixes_two_models_is_refused(
    stack: Stack, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="cannot sample from a mixture of two models"):
        trainer(model, tokenizer, tmp_path, {"name": "ipo_md", "tau": 0.1, "mix": 0.1})
    assert not stack.events


def test_a_missing_library_is_said_before_anything_is_loaded(tokenizer: PreTrainedTokenizerFast) -> None:
    if "vllm" in sys.modules:
        pytest.skip("vLLM is there")
    with pytest.raises(UserError, match=r"needs the package 'vllm': expected the extra `vllm` .*\[vllm\]"):
        build_engine("vllm", None, tokenizer)


def test_partitioned_weights_are_refused(engine: VLLMEngine, model: LlamaForCausalLM) -> None:
    """What ZeRO-3 leaves of a parameter outside its forward: no element."""
    ask(engine, model)
    engine.refresh()
    model.lm_head.weight.data = torch.empty(0)
    with pytest.raises(UserError, match=r"'lm_head.weight' partitioned \(ZeRO-3\)"):
        ask(engine, model)


def test_an_answer_that_ends_in_no_allowed_way_is_refused(
    stack: Stack, engine: VLLMEngine, model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context that is too short cuts answers early: they would count as answers without an end."""
    whole = stack.answer

    def cut(*arguments: Any) -> Any:
        output = whole(*arguments)
        output.outputs[0].token_ids, output.outputs[0].finish_reason = [4, 4], "length"
        return output

    monkeypatch.setattr(stack, "answer", cut)
    with pytest.raises(UserError, match=r"ended an answer of 2 tokens with 'length'.*max_model_len"):
        ask(engine, model)


def test_a_rank_without_room_is_refused(tokenizer: PreTrainedTokenizerFast, stack: Stack) -> None:
    with pytest.raises(UserError, match=r"policy\.lora\.rank: expected at most 512"):
        build_engine("vllm", None, tokenizer, lora_rank=513)


# A server -------------------------------------------------------------------------------------------------------------


class VLLMServer:
    """What a vLLM server does with the requests of the engine; weights are read from the folder that it is told."""

    def __init__(self, *, can_take_weights: bool = True) -> None:
        self.can_take_weights = can_take_weights
        self.weights: dict[str, Any] = {}
        self.adapters: dict[str, str] = {}
        self.stack = Stack()

    def __call__(self, path: str, body: dict[str, Any]) -> Reply:
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": "base", "object": "model"}]}
        if path == "/v1/load_lora_adapter":
            assert Path(body["lora_path"], "adapter_model.safetensors").exists()
            self.adapters[body["lora_name"]] = body["lora_path"]
            return 200, "Success"
        if path == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
            return 200, "Success"
        if path == "/v1/completions":
            return self._complete(body)
        if not self.can_take_weights:
            return 404, {"detail": "Not Found"}
        if path == "/update_weights":
            self.weights = load_file(Path(body["update_info"]["path"]) / "model.safetensors")
        return 200, {}

    def _complete(self, body: dict[str, Any]) -> Reply:
        assert body["model"] in {"base", *self.adapters} and body["return_token_ids"]
        parameters = type("Parameters", (), body)
        answer = self.stack.answer(body["prompt"], parameters, None).outputs[0]  # type: ignore[arg-type]
        choice = {"index": 0, "text": "", "finish_reason": answer.finish_reason, "token_ids": answer.token_ids}
        return 200, {"id": "1", "object": "text_completion", "choices": [choice]}


def options_of(server: ScriptedServer, folder: Path) -> dict[str, Any]:
    return {"mode": "server", "base_url": server.base_url, "exchange_folder": str(folder), "retries": 1}


def test_a_server_takes_whole_weights_from_a_folder(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    handler = VLLMServer()
    with serving(ScriptedServer(handler)) as server:
        engine = build_engine("vllm", options_of(server, tmp_path), tokenizer)
        first = ask(engine, model, seed=3)
        told = [path for path, _ in server.requests if path != "/v1/completions"]
        steps = ["/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache"]
        assert told == ["/v1/models", "/init_weight_transfer_engine", *steps]
        assert all(torch.equal(handler.weights[name], tensor) for name, tensor in base_weights(model))
        bodies = [body for path, body in server.requests if path == "/v1/completions"]
        assert sorted(body["prompt"] for body in bodies) == [[5, 6, 7]] * 3 + [[8]] * 3
        assert len({body["seed"] for body in bodies}) == 6
        with torch.no_grad():
            model.lm_head.weight.add_(1)
        engine.refresh()
        assert ask(engine, model, seed=3) == first
        told = [path for path, _ in server.requests if path not in ("/v1/completions", "/v1/models")]
        assert told[5:] == steps
        assert torch.equal(handler.weights["lm_head.weight"], model.lm_head.weight)
        engine.close()
    assert not list(tmp_path.iterdir())


def test_a_server_learns_adapters_while_it_runs(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """An adapter of its own name for every refresh; the one before is forgotten; the base is never sent."""
    model.save_pretrained(tmp_path / "base")
    policy = lora(LlamaForCausalLM.from_pretrained(tmp_path / "base"))
    handler = VLLMServer(can_take_weights=False)
    with serving(ScriptedServer(handler)) as server:
        engine = build_engine(
            "vllm", options_of(server, tmp_path / "exchange"), tokenizer, lora_rank=2, num_processes=2
        )
        names = set()
        for _ in range(2):
            ask(engine, policy)
            (name,) = handler.adapters
            names.add(name)
            assert {body["model"] for path, body in server.requests if path == "/v1/completions"} == names
            engine.refresh()
        assert len(names) == 2 and not handler.adapters
        ask(engine, policy)
        del policy
        gc.collect()
        engine.refresh()
        assert not handler.adapters
        engine.close()


def test_a_server_that_takes_no_weights_is_refused(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with serving(ScriptedServer(VLLMServer(can_take_weights=False))) as server:
        engine = build_engine("vllm", options_of(server, tmp_path), tokenizer)
        with pytest.raises(
            UserError, match=r"init_weight_transfer_engine: the server answered 404 .*VLLM_SERVER_DEV_MODE=1"
        ):
            ask(engine, model)
        engine.close()
        shared = build_engine("vllm", options_of(server, tmp_path), tokenizer, num_processes=2)
        with pytest.raises(UserError, match="one set of weights, and 2 processes"):
            ask(shared, model)
        shared.close()
