"""The models of an iterative run: policies as its rounds left them, loaded to answer, to be trained or to be read."""

from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from alignment.anchors import FrozenPolicy
from alignment.artefacts import Artefact
from alignment.config import Recipe
from alignment.models import load_causal_model, load_policy, lora_config
from alignment.weights import adapter_weights, add_adapter, idle_adapter


class RoundModels:
    """Loads what a player's artefacts hold.

    Args:
        recipe: its ``policy`` block says what a model is, and its seed what a new adapter begins with.
        tokenizer: of the policy.
        device: where models go.
        start: the policy before the first round, which has no file: the base model, without an adapter.
    """

    def __init__(
        self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, device: torch.device, start: Artefact
    ) -> None:
        self._spec, self._seed, self._tokenizer = recipe.policy, recipe.seed, tokenizer
        self._device, self._start = device, start

    def load(self, policy: Artefact) -> Any:
        """The model of an artefact."""
        if policy == self._start:
            return self._base().to(self._device)
        if self._spec.lora is None:
            return load_causal_model(str(policy.path), self._spec).to(self._device)
        return PeftModel.from_pretrained(self._base(), str(policy.path), is_trainable=True).to(self._device)

    def begin(self, policy: Artefact) -> Any:
        """What a fit begins with: the model, with a new adapter where the recipe trains one and it has none."""
        set_seed(self._seed)
        model, lora = self.load(policy), self._spec.lora
        if lora is None or isinstance(model, PeftModel):
            return model
        return add_adapter(model, lora_config(lora, "CAUSAL_LM"))

    def frozen(self, policy: Artefact, *, beside: Any) -> FrozenPolicy:
        """A policy to be read; of an adapter its weights alone, for the place of those of the model beside it."""
        if not isinstance(beside, PeftModel):
            return self.load(policy)
        return idle_adapter(beside) if policy == self._start else adapter_weights(beside, policy.path)

    def reference(self) -> PreTrainedModel | None:
        """The reference; ``None`` where it is an adapter's base model."""
        if self._spec.ref_model is not None:
            return load_causal_model(self._spec.ref_model, self._spec)
        return None if self._spec.lora is not None else self.load(self._start)

    def _base(self) -> PreTrainedModel:
        return load_policy(self._spec, self._tokenizer, seed=self._seed)
