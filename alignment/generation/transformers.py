"""Answers by ``transformers``: one batch with a key-value cache, or continuous batching.

Shape letters: ``N`` sequences, ``T`` tokens, ``V`` vocabulary.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from peft import PeftModel
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper

from alignment.errors import UserError
from alignment.generation.engine import Answers, Decoding, TokenIds, grouped
from alignment.generation.options import TransformersOptions
from alignment.generation.weights import base_of
from alignment.seeds import seed_of
from alignment.sharding import gathered_once, is_divided

# What a model's own generation settings may hold and would bend the distribution that log-probs speak of: Qwen2.5 ships
# a repetition penalty. Each is set to do nothing. Suppressed tokens stay: they say what the model can say.
_PLAIN_SAMPLING = {
    "num_beams": 1,
    "top_p": 1.0,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "sequence_bias": None,
    "guidance_scale": None,
    "min_length": 0,
    "min_new_tokens": None,
    "forced_eos_token_id": None,
}

# Continuous batches: the library's own sizes take most of the memory, and on a CPU seconds to do so at every call.
_BATCH_TOKENS = 256
_SEQUENCES_AT_ONCE = 64
_PAGE_TOKENS = 256
_POLL_SECONDS = 0.05

# Of what probabilities are multiples where they are summed as integers: the sum of all, 1 but for rounding, fits in 63
# bits, and a number of 53 bits times that sum rounds to less than it.
_UNITS = 2.0**62


class SeededDraw(LogitsProcessor):
    """Draws the next token of every sequence by numbers of its own, and leaves no other possible.

    A uniform number u in [0, 1) takes the first token up to which the probabilities sum to more than u. What else is in
    the batch decides nothing, but for how it rounds the logits: other widths of padding, other last digits.

    Args:
        seeds: one for each prompt.
        num_completions: sequences of a prompt, which stand together.
        decoding: how long they get.
        width: tokens before the first drawn one, padding among them.
        device: of the logits.
    """

    def __init__(
        self, seeds: Sequence[int], num_completions: int, decoding: Decoding, width: int, device: torch.device
    ) -> None:
        size = (num_completions, decoding.max_new_tokens)
        uniforms_NT = np.concatenate([np.random.default_rng(seed).random(size) for seed in seeds])
        # In float32 unlikely tokens of a large vocabulary would be lost; Apple's devices have no float64.
        self.uniforms_NT = torch.from_numpy(uniforms_NT).to("cpu" if device.type == "mps" else device)
        self.width = width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """From logits [N, V] after ``input_ids`` [N, T] to 0 for the token that is drawn, minus infinity elsewhere.

        Raises:
            UserError: if they are no numbers.
        """
        probs_NV = scores.to(self.uniforms_NT.device).softmax(-1, dtype=torch.float64)
        # One logit that is no number makes all of its row so.
        if not probs_NV[:, -1].isfinite().all():
            raise UserError(
                "expected finite logits where an answer is sampled, found others: the weights have diverged; lower "
                "training.learning_rate, or warm up (training.warmup_steps)"
            )
        # Integers: in whatever order they are added the sums are the same, where a GPU adds floats in one that torch
        # refuses under full_determinism.
        sums_NV = probs_NV.mul_(_UNITS).long().cumsum_(-1)
        drawn = input_ids.shape[1] - self.width
        # Rounded, the sum of all is not 1.
        uniforms_N1 = (self.uniforms_NT[:, drawn : drawn + 1] * sums_NV[:, -1:]).long()
        tokens_N1 = torch.searchsorted(sums_NV, uniforms_N1, right=True).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens_N1, 0.0)


class TransformersEngine:
    """The model itself answers; its weights are always the present ones.

    Args:
        options: how sequences share a batch.
    """

    takes_weights: ClassVar[bool] = True

    def __init__(self, options: TransformersOptions | None = None) -> None:
        self.options = options or TransformersOptions()

    def answer(
        self,
        module: Any,
        prompts: Sequence[TokenIds],
        decoding: Decoding,
        *,
        num_completions: int,
        seeds: Sequence[int],
        processors: LogitsProcessorList | None = None,
    ) -> Answers:
        """See :class:`~alignment.generation.Engine`.

        Args:
            module: the policy.
            prompts: token ids.
            decoding: how tokens are drawn.
            num_completions: answers to each prompt.
            seeds: one for each prompt; in continuous batches only all of them together decide.
            processors: change the logits of whole batches; with them nothing is batched continuously.
        """
        is_continuous = self.options.continuous_batching and processors is None
        with gathered_once(module), token_by_token(module), _evaluating(module), torch.no_grad():
            if is_continuous:
                repeated = [list(prompt) for prompt in prompts for _ in range(num_completions)]
                with _seeded(seed_of(*seeds), module.device):
                    answers = _generate_continuously(module, repeated, decoding)
            else:
                answers = _generate(module, prompts, decoding, num_completions, seeds, processors)
        return grouped(answers, num_completions)

    def refresh(self) -> None:
        """Nothing to do: the model is asked itself."""

    def close(self) -> None:
        """Nothing to free."""


def _generate(
    module: Any,
    prompts: Sequence[TokenIds],
    decoding: Decoding,
    num_completions: int,
    seeds: Sequence[int],
    processors: LogitsProcessorList | None,
) -> list[list[int]]:
    assert len(seeds) == len(prompts), "a seed for each prompt"
    width = max(len(prompt) for prompt in prompts)
    steps = LogitsProcessorList(processors or [])
    if decoding.temperature:
        steps.append(TemperatureLogitsWarper(float(decoding.temperature)))
        if decoding.top_k is not None:
            steps.append(TopKLogitsWarper(decoding.top_k))
        steps.append(SeededDraw(seeds, num_completions, decoding, width, module.device))
    ids_BT = torch.tensor([[decoding.pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask_BT = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    sequences_NT = module.generate(
        input_ids=ids_BT.repeat_interleave(num_completions, dim=0).to(module.device),
        attention_mask=mask_BT.repeat_interleave(num_completions, dim=0).to(module.device),
        logits_processor=steps,
        # Where weights are gathered for a forward, one that has nothing left to say goes on with the others.
        synced_gpus=is_divided(module),
        **_settings(decoding, draws=False),
    )
    answers_NT = sequences_NT[:, width:].cpu()
    is_stop_NT = torch.isin(answers_NT, torch.tensor(decoding.stop_token_ids)).long()
    # A token belongs to the answer if no stop token stands before it.
    lengths_N = (is_stop_NT.cumsum(-1) - is_stop_NT == 0).sum(-1).tolist()
    return [ids[:length] for ids, length in zip(answers_NT.tolist(), lengths_N, strict=True)]


def _generate_continuously(module: Any, prompts: list[list[int]], decoding: Decoding) -> list[list[int]]:
    try:
        from transformers import ContinuousBatchingConfig
    except ImportError:
        raise UserError(
            f"sampling.continuous_batching: expected a transformers that has it, found {transformers.__version__}; "
            "install a newer one, or set it to false"
        ) from None
    # A LoRA model's base holds the adapter's layers, and knows whether they are switched off.
    base = module.get_base_model() if isinstance(module, PeftModel) else module
    settings = copy.deepcopy(base.generation_config)
    settings.update(**_settings(decoding, draws=decoding.temperature > 0))
    longest = max(len(prompt) for prompt in prompts) + decoding.max_new_tokens
    # On a GPU newer releases would put FlashAttention, which takes no float32, in place of the policy's attention.
    fields = ContinuousBatchingConfig.__dataclass_fields__
    own_attention = {"auto_switch_to_flash": False} if "auto_switch_to_flash" in fields else {}
    manager = base.init_continuous_batching(
        generation_config=settings,
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=_PAGE_TOKENS,
            num_blocks=min(len(prompts), _SEQUENCES_AT_ONCE) * -(-longest // _PAGE_TOKENS),
            max_batch_tokens=_BATCH_TOKENS,
            # Asynchronous batches would draw in an order that depends on timing.
            use_async_batching=False,
            **own_attention,
        ),
    )
    outputs: dict[str, Any] = {}
    # All requests are there before the first batch is formed, so that the same seed gives the same batches.
    names = manager.add_requests(prompts, max_new_tokens=decoding.max_new_tokens)
    manager.start()
    try:
        while len(outputs) < len(names):
            result = manager.get_result(timeout=_POLL_SECONDS)
            if result is not None and result.is_finished():
                outputs[result.request_id] = result
            elif result is None and not manager.is_running():
                break
    finally:
        manager.stop(block=True)
        manager.destroy()
    failed = [name for name in names if name not in outputs or outputs[name].error is not None]
    if failed:
        reason = outputs[failed[0]].error if failed[0] in outputs else "the batch's thread ended"
        raise UserError(
            f"sampling.continuous_batching: {len(failed)} of {len(names)} answers failed ({reason}); set it to false"
        )
    return [list(outputs[name].generated_tokens) for name in names]


def _settings(decoding: Decoding, *, draws: bool) -> dict[str, Any]:
    # Where the library draws nothing, settings of chance are set to do nothing: they would only be warned about.
    chance = (
        {"do_sample": True, "temperature": decoding.temperature, "top_k": decoding.top_k or 0}
        if draws
        else {"do_sample": False, "temperature": 1.0, "top_k": 50}
    )
    return {
        **chance,
        "max_new_tokens": decoding.max_new_tokens,
        "eos_token_id": list(decoding.stop_token_ids),
        "pad_token_id": decoding.pad_token_id,
        **_PLAIN_SAMPLING,
    }


@contextmanager
def token_by_token(module: Any) -> Iterator[None]:
    """While the context is open a model with FlexAttention computes the same attention by SDPA.

    FlexAttention is compiled for the lengths that it meets, and a cache has another one at every token.
    """
    base = base_of(module)
    if base.config.get_text_config()._attn_implementation != "flex_attention":
        yield
        return
    base.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        base.set_attn_implementation("flex_attention")


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    # Continuous batches draw from the global generator: it is seeded for the call and put back.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
