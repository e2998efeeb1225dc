"""Checks of the policy, its adapter and its reference, by their configurations and tokenizers."""

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from alignment.batches import num_positions
from alignment.config import LoRASpec, PolicySpec, Recipe
from alignment.doctor.findings import EndOfExamination, Finding
from alignment.errors import UserError
from alignment.models import lora_config
from alignment.textgame import resolve_model
from alignment.tiny import tiny_model
from alignment.weights import add_adapter


def positions(policy: PolicySpec) -> int | None:
    """The longest sequence of the policy; ``None`` for any."""
    if policy.tiny is not None:
        return policy.tiny.max_position_embeddings
    return num_positions(read_config(policy.model))


def read_config(name: str | None) -> Any:
    """The configuration of a model; none ends the examination."""
    try:
        return AutoConfig.from_pretrained(None if name is None else resolve_model(name))
    except (OSError, ValueError) as error:
        raise EndOfExamination(Finding("model", "fail", f"expected a model at '{name}' ({error})")) from None


def check_reference(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Finding:
    """Whose log-probs the method compares with, and that they are of the policy's own tokens."""
    policy, reads = recipe.policy, recipe.build_method().needs.anchor_columns()
    if policy.ref_model is not None:
        return _check_other_model(recipe, policy.ref_model, tokenizer)
    if not reads:
        return Finding("reference", "ok", "the method reads none")
    if policy.model is not None and Path(policy.model, "adapter_config.json").exists():
        return Finding(
            "reference",
            "fail",
            f"{policy.model} is an adapter: with it switched off the reference would be its base, not the model that "
            "training starts from; merge it into its base and name the result",
        )
    where = "its log-probs are stored" if recipe.anchors.store else "a frozen copy"
    if policy.lora is not None and not recipe.anchors.store:
        where = "the adapter is switched off for it"
    return Finding("reference", "ok", f"the policy before training; {where}")


def _check_other_model(recipe: Recipe, name: str, tokenizer: PreTrainedTokenizerBase) -> Finding:
    if "ref" not in recipe.build_method().needs.anchor_columns():
        return Finding(
            "reference",
            "fail",
            f"policy.ref_model is '{name}', and the method '{recipe.method['name']}' reads no reference: it would be "
            "loaded for nothing; remove the key",
        )
    read_config(name)
    try:
        other = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        return Finding("reference", "fail", f"expected a tokenizer at '{name}', to compare it ({error})")
    if other.get_vocab() != tokenizer.get_vocab():
        return Finding(
            "reference",
            "fail",
            f"the tokenizer of policy.ref_model '{name}' is not the policy's: its log-probs would be those of other "
            "texts; take a reference of the same family",
        )
    return Finding("reference", "ok", f"{name}, with the policy's own vocabulary")


def check_adapter(policy: PolicySpec, lora: LoRASpec, tokenizer: PreTrainedTokenizerBase) -> Finding:
    """An adapter on no module would leave policy and reference equal for ever."""
    with torch.device("meta"):
        if policy.tiny is not None:
            model: Any = tiny_model(cast(Any, tokenizer), **policy.tiny.model_dump(exclude={"vocab_size"}))
        else:
            model = AutoModelForCausalLM.from_config(read_config(policy.model))
    names = [name for name, _ in model.named_modules()]
    # Peft passes over names of a list that are nowhere, if others are there; a text is a pattern to it.
    listed = [] if isinstance(lora.target_modules, str) else lora.target_modules
    missing = [part for part in listed if not any(name == part or name.endswith(f".{part}") for name in names)]
    if missing:
        said = " or ".join(missing)
        leaves = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if not [*module.children()]})
        return Finding(
            "adapter",
            "fail",
            f"policy.lora.target_modules: no module is called {said}; the model has {', '.join(leaves)}",
        )
    try:
        with torch.device("meta"):
            targets = add_adapter(model, lora_config(lora, "CAUSAL_LM")).targeted_module_names
    except UserError as error:
        return Finding("adapter", "fail", str(error))
    kinds = sorted({name.rpartition(".")[2] for name in targets})
    return Finding("adapter", "ok", f"rank {lora.rank} on {len(targets):,} modules: {', '.join(kinds)}")
