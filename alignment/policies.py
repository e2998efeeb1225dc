"""A causal language model as a policy: it answers prompts, alone or mixed with a reference.

Shape letters: ``B`` prompts, ``G`` completions of a prompt, ``T`` tokens, ``V`` vocabulary, ``N = B * G`` sequences.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from alignment.errors import UserError
from alignment.generation.engine import Answers, Decoding, Engine, TokenIds
from alignment.generation.transformers import TransformersEngine, token_by_token
from alignment.logps import score
from alignment.sharding import gathered_once
from alignment.types import Completions

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
        with self.ref() as module, token_by_token(module):
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
        engine: draws the tokens; ``None`` for transformers.
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
        engine: Engine | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.decoding = Decoding(
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            stop_token_ids=tuple(stop_token_ids),
            pad_token_id=int(tokenizer.pad_token_id),
            top_k=top_k,
        )
        self.engine = TransformersEngine() if engine is None else engine
        self._partner: tuple[PolicyContext, float] | None = None

    def mixed(self, ref: PolicyContext, mix: float) -> "CausalLMPolicy":
        """A policy that samples from the geometric mixture with a reference; see :class:`GeometricMixture`."""
        mixture = copy.copy(self)
        mixture._partner = (ref, mix)
        return mixture

    def logps(self, completions: Completions) -> Tensor:
        """Summed completion log-probs [B, G] at temperature 1, in nats."""
        return score(self.model, completions).logps_BG

    def sample(self, prompts: Completions, *, num_completions: int, generator: torch.Generator) -> Completions:
        """Independent answers to each prompt, by seeds from a generator; see :meth:`sample_by_seeds`.

        Args:
            prompts: with G = 1 and no completion.
            num_completions: G of the result.
            generator: on the CPU; the same state gives the same answers.
        """
        seeds = torch.randint(2**62, (len(prompts.input_ids_BGT),), generator=generator).tolist()
        return self.sample_by_seeds(prompts, num_completions=num_completions, seeds=seeds)

    def sample_by_seeds(self, prompts: Completions, *, num_completions: int, seeds: Sequence[int]) -> Completions:
        """Independent answers to each prompt.

        Args:
            prompts: with G = 1 and no completion.
            num_completions: G of the result.
            seeds: one for each prompt; what it is answered with does not depend on the others.

        Returns:
            Prompts with answers, in the layout of ``Completions``.

        Raises:
            UserError: for a mixture whose engine cannot see the logits of two models.
        """
        prompt_ids_BT, prompt_mask_BT = prompts.input_ids_BGT[:, 0], prompts.attention_mask_BGT[:, 0]
        prompt_ids = [
            ids_T[mask_T].tolist() for ids_T, mask_T in zip(prompt_ids_BT.cpu(), prompt_mask_BT.cpu(), strict=True)
        ]
        if self._partner is None:
            answers = self.engine.answer(
                self.model, prompt_ids, self.decoding, num_completions=num_completions, seeds=seeds
            )
        else:
            answers = self._answer_mixed(prompt_mask_BT, prompt_ids, num_completions, seeds)
        return self._completions(prompts, answers)

    def _answer_mixed(
        self, prompt_mask_BT: Tensor, prompt_ids: Sequence[TokenIds], num_completions: int, seeds: Sequence[int]
    ) -> Answers:
        assert self._partner is not None
        if not isinstance(self.engine, TransformersEngine):
            raise UserError(
                f"sampling from a mixture reads the logits of two models at every token: expected the engine "
                f"'transformers', got {type(self.engine).__name__}"
            )
        ref, mix = self._partner
        with ref() as module:
            partner = gathered_once(module) if module is not self.model else nullcontext()
        width = max(len(ids) for ids in prompt_ids)
        mask_NT = prompt_mask_BT[:, -width:].repeat_interleave(num_completions, dim=0)
        with partner:
            return self.engine.answer(
                self.model,
                prompt_ids,
                self.decoding,
                num_completions=num_completions,
                seeds=seeds,
                processors=LogitsProcessorList([GeometricMixture(ref, mix, mask_NT)]),
            )

    def _completions(self, prompts: Completions, answers: Answers) -> Completions:
        width = max(len(ids) for group in answers for ids in group)
        pad_token_id, device = self.decoding.pad_token_id, prompts.input_ids_BGT.device
        padded = [[ids + [pad_token_id] * (width - len(ids)) for ids in group] for group in answers]
        is_answer = [[[True] * len(ids) + [False] * (width - len(ids)) for ids in group] for group in answers]
        answer_mask_BGT = torch.tensor(is_answer, device=device)
        size = (-1, answer_mask_BGT.shape[1], -1)
        prompt_mask_BGT = prompts.attention_mask_BGT.expand(size)
        return Completions(
            input_ids_BGT=torch.cat([prompts.input_ids_BGT.expand(size), torch.tensor(padded, device=device)], dim=-1),
            attention_mask_BGT=torch.cat([prompt_mask_BGT, answer_mask_BGT], dim=-1),
            completion_mask_BGT=torch.cat([torch.zeros_like(prompt_mask_BGT), answer_mask_BGT], dim=-1),
            valid_BG=torch.ones(answer_mask_BGT.shape[:2], dtype=torch.bool, device=device),
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
