"""A model in numbers: built from its configuration on the meta device, where it has shapes and no storage."""

from dataclasses import dataclass
from typing import Any

import peft
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignment.architectures import known_config
from alignment.config import ModelSpec
from alignment.costs import Shape
from alignment.errors import UserError
from alignment.logps import has_dropout
from alignment.models import DTYPES, lora_config
from alignment.textgame import build_world, is_address, untrained_model, word_tokenizer
from alignment.tiny import tiny_model
from alignment.weights import add_adapter

# NF4 with constants quantised twice (arXiv 2305.14314, sec. 3): 4 bits, a byte for 64 numbers, 4 for 64 x 256.
_QUANTISED = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A policy in numbers.

    Attributes:
        shape: of its base model.
        parameters: all numbers, an adapter's among them.
        trained: those that are trained.
        loaded_bytes: of all weights as they are loaded.
        trained_size: bytes of a trained number as it is loaded.
        adapted: widths of the inputs of all adapted matrices, summed; 0 without an adapter.
        ranks: of all of them, summed.
        largest: numbers of embeddings and head, and of two layers: what is whole at a time where weights are shared.
        attention: implementation.
        window: tokens of a sequence up to which every layer sees all of it; ``None`` for no bound.
        has_dropout: whether it draws noise while it trains.
    """

    shape: Shape
    parameters: int
    trained: int
    loaded_bytes: int
    trained_size: int
    adapted: int
    ranks: int
    largest: int
    attention: str
    window: int | None
    has_dropout: bool

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter is trained."""
        return self.adapted > 0


def outline_policy(
    spec: ModelSpec, *, tokenizer: PreTrainedTokenizerBase | None = None, config_of: str | None = None
) -> Outline:
    """The policy of a recipe.

    Args:
        spec: its block.
        tokenizer: fitted to the data, for a tiny model.
        config_of: a folder, or a name in the cache, whose configuration is taken.

    Raises:
        UserError: if the configuration is nowhere on this machine, or the adapter fits no part of the model.
    """
    with torch.device("meta"):
        base = _bare_model(spec, tokenizer, config_of)
        shape, num_matrices = shape_of(base), sum(matrix.weight.numel() for matrix in _matrices(base))
        # A set: they may be tied.
        outer = {base.get_input_embeddings().weight, base.get_output_embeddings().weight}
        policy: Any = base
        if spec.lora is not None:
            policy = add_adapter(base, lora_config(spec.lora, "CAUSAL_LM"))
    parameters = list(policy.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    loaded = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    if spec.load_in_4bit:
        # What is not quantised becomes float32 (peft.prepare_model_for_kbit_training).
        loaded = 4 * (sum(parameter.numel() for parameter in parameters) - num_matrices)
        loaded += int(_QUANTISED * num_matrices)
    adapters = [part.lora_A["default"] for part in policy.modules() if isinstance(part, peft.tuners.lora.Linear)]
    return Outline(
        shape=shape,
        parameters=sum(parameter.numel() for parameter in parameters),
        trained=sum(parameter.numel() for parameter in trained),
        loaded_bytes=loaded,
        trained_size=trained[0].element_size(),
        adapted=sum(matrix.in_features for matrix in adapters),
        ranks=sum(matrix.out_features for matrix in adapters),
        largest=sum(parameter.numel() for parameter in outer) + 2 * shape.body // shape.layers,
        attention=spec.attn_implementation or base.config._attn_implementation,
        window=base.config.get_text_config().to_dict().get("sliding_window"),
        has_dropout=has_dropout(policy),
    )


def judge_bytes(name: str) -> int | None:
    """Bytes of the weights of an oracle's model; ``None`` if its configuration is nowhere on this machine."""
    config = _find_config(name)
    if config is None:
        return None
    config.num_labels = 1
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, dtype=config.dtype or torch.float32)
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _bare_model(spec: ModelSpec, tokenizer: Any, config_of: str | None) -> PreTrainedModel:
    dtype = DTYPES[spec.dtype]
    if spec.tiny is not None:
        assert tokenizer is not None, "a tiny model takes its vocabulary from its data"
        return tiny_model(tokenizer, **spec.tiny.model_dump(exclude={"vocab_size"})).to(dtype)
    if is_address(spec.model):
        return untrained_model(word_tokenizer(build_world()), seed=0).to(dtype)
    name = config_of or spec.model
    assert name is not None
    config = _find_config(name)
    if config is None:
        raise UserError(
            f"expected the configuration of '{name}' in a folder, in the cache of the Hub, or among the models that "
            "shipped recipes name, found it nowhere; --config-of FOLDER takes a folder with its config.json"
        )
    try:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
    except ValueError as error:
        raise UserError(f"expected a causal language model at '{name}' ({error})") from None


def _find_config(name: str) -> PreTrainedConfig | None:
    try:
        return AutoConfig.from_pretrained(name, local_files_only=True)
    except OSError:
        return known_config(name)
    except ValueError as error:
        raise UserError(f"'{name}': expected the configuration of a model of transformers ({error})") from None


def _matrices(model: PreTrainedModel) -> list[nn.Linear]:
    """Of the layers: all but the head."""
    head = model.get_output_embeddings()
    return [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]


def shape_of(model: PreTrainedModel) -> Shape:
    """Read off a causal language model without an adapter.

    Raises:
        UserError: for one of which the formulas know nothing.
    """
    config = model.config.get_text_config()
    settings = config.to_dict()
    missing = [key for key in ("hidden_size", "num_hidden_layers", "num_attention_heads") if key not in settings]
    if missing or "intermediate_size" not in settings:
        raise UserError(
            f"expected a decoder whose configuration has {', '.join(missing or ['intermediate_size'])}, found a "
            f"{type(model).__name__}, of which the formulas know nothing"
        )
    width, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    head = settings.get("head_dim") or width // heads
    norms = sum("norm" in name and parameter.shape == (width,) for name, parameter in model.named_parameters())
    return Shape(
        layers=layers,
        width=width,
        heads=heads,
        attention=heads * head,
        key_value=(settings.get("num_key_value_heads") or heads) * head,
        hidden=settings["intermediate_size"],
        vocabulary=config.vocab_size,
        # One stands behind the layers.
        norms=(norms - 1) // layers,
        body=sum(matrix.weight.numel() for matrix in _matrices(model)),
        softcap=settings.get("attn_logit_softcapping") is not None,
    )
