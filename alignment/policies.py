"""A causal language model as a policy: log-probs of completions, and samples. The only file that calls ``forward``.

Shape letters: ``B`` prompts, ``G`` completions of a prompt, ``T`` tokens, ``V`` vocabulary, ``N = B * G`` sequences.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from alignment.types import Completions

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Log-probs of completions under one policy, float32, in nats. Here ``T`` counts completion columns only.

    Attributes:
        logps_BG: summed over completion tokens.
        token_logps_BGT: of each token, zero outside the completion.
        token_mask_BGT: true on completion tokens.
        token_excess_BGT: ``log pi(y_t) - log sum_v pi(v)^2``, without gradient, where asked for.
    """

    logps_BG: Tensor
    token_logps_BGT: Tensor
    token_mask_BGT: Tensor
    token_excess_BGT: Tensor | None = None


def score(model: nn.Module, completions: Completions, *, confidence: bool = False) -> Scores:
    """Log-probs of completion tokens; logits are computed at completion positions only.

    Args:
        model: a causal language model of transformers, wrapped or not.
        completions: in the layout [padding | prompt | completion | padding].
        confidence: also return ``token_excess_BGT``.
    """
    num_prompts, num_completions, width = completions.input_ids_BGT.shape
    start = width - _completion_columns(completions.completion_mask_BGT)
    ids_NT = completions.input_ids_BGT.reshape(-1, width)
    attention_NT = completions.attention_mask_BGT.reshape(-1, width)
    mask_NT = completions.completion_mask_BGT.reshape(-1, width)[:, start:]
    # Left padding moves the first token away from column 0; a fully padded row gets position 0 throughout.
    positions_NT = (attention_NT.long().cumsum(-1) - 1).clamp(min=0)
    logits_NTV = model(
        input_ids=ids_NT,
        attention_mask=attention_NT.long(),
        position_ids=positions_NT,
        logits_to_keep=width - start + 1,
        use_cache=False,
    ).logits[:, :-1]
    token_logps_NT, excess_NT = _token_logps(logits_NTV, ids_NT[:, start:], confidence=confidence)
    shape = (num_prompts, num_completions, width - start)
    token_logps_BGT = torch.where(mask_NT, token_logps_NT, 0.0).reshape(shape)
    return Scores(
        logps_BG=token_logps_BGT.sum(-1),
        token_logps_BGT=token_logps_BGT,
        token_mask_BGT=mask_NT.reshape(shape),
        token_excess_BGT=None if excess_NT is None else excess_NT.reshape(shape),
    )


def _completion_columns(mask_BGT: Tensor) -> int:
    """Width of the completion part: from the first column that any completion uses to the end."""
    used_T = mask_BGT.any(0).any(0)
    # A batch without a completion token still needs one column to score.
    return int(mask_BGT.shape[-1] - used_T.int().argmax()) if used_T.any() else 1


def _token_logps(logits_NTV: Tensor, ids_NT: Tensor, *, confidence: bool) -> tuple[Tensor, Tensor | None]:
    logits_NTV = logits_NTV.float()
    log_z_NT = logits_NTV.logsumexp(-1)
    token_logps_NT = logits_NTV.gather(-1, ids_NT[..., None]).squeeze(-1) - log_z_NT
    if not confidence:
        return token_logps_NT, None
    with torch.no_grad():
        log_collision_NT = (2.0 * logits_NTV).logsumexp(-1) - 2.0 * log_z_NT
        return token_logps_NT, token_logps_NT - log_collision_NT


PolicyContext = Callable[[], AbstractContextManager[nn.Module]]
"""Opens a context in which the module that it gives acts as one policy (a LoRA model without its adapter, say)."""


class GeometricMixture(LogitsProcessor):
    """Next-token log-probs of ``policy^(1 - mix) ref^mix``, normalised at every token (arXiv 2312.00886, sec. 6).

    The paper's approximation: normalised token by token, where the mixture of its theory is normalised over whole
    responses. Both models keep their own key-value cache, so a token costs one forward of each.

    Args:
        ref: opens the reference. It is entered at each token and left before the policy goes on, so that both may be
            one model with and without its adapter.
        mix: weight of the reference, in [0, 1].
        prompt_mask_NT: true on the prompt tokens of the sequences that are sampled, padded on the left.
    """

    def __init__(self, ref: PolicyContext, mix: float, prompt_mask_NT: Tensor) -> None:
        self.ref, self.mix, self.mask_NT = ref, mix, prompt_mask_NT.long()
        self.cache: Any = None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """From the policy's logits [N, V] after ``input_ids`` [N, T] to the mixture's log-probs."""
        grown = input_ids.shape[1] - self.mask_NT.shape[1]
        self.mask_NT = torch.nn.functional.pad(self.mask_NT, (0, grown), value=1)
        positions_NT = (self.mask_NT.cumsum(-1) - 1).clamp(min=0)
        seen = 0 if self.cache is None else input_ids.shape[1] - grown
        with self.ref() as module:
            output = module(
                input_ids=input_ids[:, seen:],
                attention_mask=self.mask_NT,
                position_ids=positions_NT[:, seen:],
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self.cache = output.past_key_values
        ref_NV = output.logits[:, -1].float().log_softmax(-1)
        # What the policy may not say stays unsaid, also where its weight is 0 and 0 x inf would be no number.
        is_unsaid_NV = scores.isneginf()
        policy_NV = scores.float().log_softmax(-1).masked_fill(is_unsaid_NV, 0.0)
        mixed_NV = (1.0 - self.mix) * policy_NV + self.mix * ref_NV
        return mixed_NV.masked_fill(is_unsaid_NV, -torch.inf).log_softmax(-1)


class CausalLMPolicy:
    """A language model that answers prompts.

    Args:
        model: of transformers; not wrapped for distribution.
        tokenizer: with a padding token.
        stop_token_ids: tokens that end an answer; they belong to it.
        temperature: of sampling; 0 takes the likeliest token at each step.
        max_new_tokens: longest answer; one cut there has no stop token.
        top_k: keep the k most likely tokens; ``None`` for all.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        stop_token_ids: Sequence[int],
        temperature: float,
        max_new_tokens: int,
        top_k: int | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.stop_token_ids = tuple(stop_token_ids)
        self.temperature, self.max_new_tokens, self.top_k = temperature, max_new_tokens, top_k
        self._partner: tuple[PolicyContext, float] | None = None

    def mixed(self, ref: PolicyContext, mix: float) -> "CausalLMPolicy":
        """A policy that samples from the geometric mixture with a reference; see :class:`GeometricMixture`."""
        mixture = copy.copy(self)
        mixture._partner = (ref, mix)
        return mixture

    def logps(self, completions: Completions) -> Tensor:
        """Summed completion log-probs [B, G] at temperature 1, in nats."""
        return score(self.model, completions).logps_BG

    @torch.no_grad()
    def sample(self, prompts: Completions, *, num_completions: int, generator: torch.Generator) -> Completions:
        """Independent answers to each prompt.

        Args:
            prompts: with G = 1 and no completion.
            num_completions: G of the result.
            generator: on the CPU; the same state gives the same answers.

        Returns:
            Prompts with answers, in the layout of ``Completions``.
        """
        prompt_ids_BT, prompt_mask_BT = prompts.input_ids_BGT[:, 0], prompts.attention_mask_BGT[:, 0]
        seed = int(torch.randint(2**62, (1,), generator=generator))
        was_training = self.model.training
        self.model.eval()
        mixing = None
        if self._partner is not None:
            mixing = [GeometricMixture(*self._partner, prompt_mask_BT.repeat_interleave(num_completions, dim=0))]
        devices = [prompt_ids_BT.device] if prompt_ids_BT.device.type == "cuda" else []
        # generate() draws from the global generator: seed it for the call and put it back.
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            sequences_NT = self.model.generate(
                input_ids=prompt_ids_BT,
                attention_mask=prompt_mask_BT.long(),
                **self._decoding(),
                num_return_sequences=num_completions,
                max_new_tokens=self.max_new_tokens,
                eos_token_id=list(self.stop_token_ids),
                pad_token_id=self.tokenizer.pad_token_id,
                logits_processor=mixing,
                **_PLAIN_SAMPLING,
            )
        self.model.train(was_training)
        return self._completions(prompt_mask_BT, sequences_NT, num_completions)

    def _decoding(self) -> dict[str, Any]:
        if self.temperature == 0.0:
            # Set to do nothing: what the model's own settings say would only be warned about.
            return {"do_sample": False, "temperature": 1.0, "top_k": 50}
        return {"do_sample": True, "temperature": self.temperature, "top_k": self.top_k or 0}

    def _completions(self, prompt_mask_BT: Tensor, sequences_NT: Tensor, num_completions: int) -> Completions:
        num_prompts, prompt_width = prompt_mask_BT.shape
        ids_BGT = sequences_NT.reshape(num_prompts, num_completions, -1)
        answers_BGT = ids_BGT[..., prompt_width:]
        is_stop_BGT = torch.isin(answers_BGT, torch.tensor(self.stop_token_ids, device=answers_BGT.device))
        # A token belongs to the answer if no stop token stands before it.
        answer_mask_BGT = (is_stop_BGT.long().cumsum(-1) - is_stop_BGT.long()) == 0
        group_prompt_mask_BGT = prompt_mask_BT[:, None].expand(-1, num_completions, -1)
        return Completions(
            input_ids_BGT=ids_BGT,
            attention_mask_BGT=torch.cat([group_prompt_mask_BGT, answer_mask_BGT], dim=-1),
            completion_mask_BGT=torch.cat([torch.zeros_like(group_prompt_mask_BGT), answer_mask_BGT], dim=-1),
            valid_BG=torch.ones(num_prompts, num_completions, dtype=torch.bool, device=ids_BGT.device),
        )

    def texts(self, completions: Completions) -> list[list[str]]:
        """The answers as text, without special tokens."""
        num_prompts, num_completions, width = completions.input_ids_BGT.shape
        # Lists at once: indexing a tensor for every answer costs more than decoding it.
        ids_NT = completions.input_ids_BGT.reshape(-1, width).tolist()
        masks_NT = completions.completion_mask_BGT.reshape(-1, width).tolist()
        answers = [list(itertools.compress(ids_T, mask_T)) for ids_T, mask_T in zip(ids_NT, masks_NT, strict=True)]
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [texts[b * num_completions : (b + 1) * num_completions] for b in range(num_prompts)]
