"""Tokenizers and models as a recipe's ``policy:`` block describes them: loaded, or tiny and random."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import peft
import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignment.config import LoRASpec, ModelSpec
from alignment.data import Row
from alignment.errors import UserError
from alignment.sharding import loaded_whole
from alignment.textgame import resolve_model
from alignment.tiny import tiny_model, tiny_reward_model, tiny_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""As recipes and options call them."""


def load_tokenizer(spec: ModelSpec, rows: Sequence[Row]) -> PreTrainedTokenizerBase:
    """The model's tokenizer with a padding token; a tiny one is fitted to the rows."""
    if spec.tiny is not None:
        texts = [text for row in rows for text in (*(turn.content for turn in row.prompt), *row.responses)]
        return tiny_tokenizer(texts, vocab_size=spec.tiny.vocab_size)
    assert spec.model is not None
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(spec.model))
    except (OSError, ValueError) as error:
        raise UserError(
            f"policy.model: expected a model folder or a name on the Hub, got '{spec.model}' ({error})"
        ) from None
    if spec.chat_template is not None:
        tokenizer.chat_template = Path(spec.chat_template).read_text()
    if tokenizer.pad_token_id is None:
        # Masks decide everything; the token only fills gaps.
        tokenizer.pad_token_id = tokenizer.eos_token_id
    return tokenizer


def load_policy(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> PreTrainedModel:
    """The causal language model of the block."""
    if spec.tiny is not None:
        sizes = spec.tiny.model_dump(exclude={"vocab_size"})
        return tiny_model(tokenizer, **sizes, seed=seed).to(DTYPES[spec.dtype])
    assert spec.model is not None
    return load_causal_model(spec.model, spec)


def load_causal_model(name: str, spec: ModelSpec) -> PreTrainedModel:
    """A causal language model by its name or folder, in the precision of the block."""
    return _load(AutoModelForCausalLM, resolve_model(name), spec, "a causal language model")


def load_reward_model(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> PreTrainedModel:
    """The model of the block with one number for a whole text; a head that the folder lacks is random, by the seed.

    The number is read at the last token that is not the padding token. Where padding and end token are one (many base
    models have no padding token of their own), that is the token before the end.
    """
    if spec.tiny is not None:
        sizes = spec.tiny.model_dump(exclude={"vocab_size"})
        with loaded_whole():
            return tiny_reward_model(tokenizer, **sizes, seed=seed).to(DTYPES[spec.dtype])
    assert spec.model is not None
    torch.manual_seed(seed)
    model = _load(AutoModelForSequenceClassification, spec.model, spec, "a model that can rate a text", num_labels=1)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model


def lora_config(spec: LoRASpec, task: Literal["CAUSAL_LM", "SEQ_CLS"]) -> peft.LoraConfig:
    """The adapter of the block; for ``SEQ_CLS`` peft also trains the head, and saves it with the adapter."""
    return peft.LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=spec.target_modules,
        task_type=task,
    )


def _load(auto: Any, name: str, spec: ModelSpec, expected: str, **options: Any) -> PreTrainedModel:
    quantization = None
    if spec.attn_implementation == "flex_attention" and not torch.cuda.is_available():
        raise UserError(
            "policy.attn_implementation: expected a GPU for flex_attention, which has no backward pass on a CPU, found "
            "none; use sdpa"
        )
    if spec.load_in_4bit:
        if not torch.cuda.is_available():
            raise UserError(
                "policy.load_in_4bit: expected a CUDA device, found none; bitsandbytes quantises on GPUs only"
            )
        # QLoRA (arXiv 2305.14314): 4-bit NormalFloat, quantisation constants quantised too.
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=DTYPES[spec.dtype],
        )
    try:
        with loaded_whole():
            model: PreTrainedModel = auto.from_pretrained(
                name,
                dtype=DTYPES[spec.dtype],
                quantization_config=quantization,
                attn_implementation=spec.attn_implementation,
                **options,
            )
    # RuntimeError: weights of another shape, such as the head of a classifier with more than one number.
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"policy: expected {expected} at '{name}' ({error})") from None
    return peft.prepare_model_for_kbit_training(model) if spec.load_in_4bit else model
