"""Shapes of the models that the shipped recipes name, so that they can be planned where no copy of them is.

Numbers of the ``config.json`` that stands beside each model's weights on the Hub. That they are those of the model is
held by the number of parameters that its publisher states (tests/test_planning.py).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

_LLAMA_3_8B: Mapping[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
_QWEN_25_1B: Mapping[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
_QWEN_25_7B: Mapping[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
_GEMMA_2_9B: Mapping[str, Any] = {
    "model_type": "gemma2",
    "vocab_size": 256000,
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
}

ARCHITECTURES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_3_8B,
        "RLHFlow/LLaMA3-SFT": _LLAMA_3_8B,
        "sfairXC/FsfairX-LLaMA3-RM-v0.1": _LLAMA_3_8B,
        "Skywork/Skywork-Reward-V2-Llama-3.1-8B": _LLAMA_3_8B,
        "Nexusflow/Athene-RM-8B": _LLAMA_3_8B,
        "Qwen/Qwen2.5-1.5B-Instruct": _QWEN_25_1B,
        "Qwen/Qwen2.5-7B-Instruct": _QWEN_25_7B,
        "google/gemma-2-9b-it": _GEMMA_2_9B,
    }
)


def known_config(name: str) -> PreTrainedConfig | None:
    """The configuration of a model that a shipped recipe names, in bfloat16 as all of them are published."""
    if name not in ARCHITECTURES:
        return None
    return AutoConfig.for_model(**ARCHITECTURES[name], dtype="bfloat16")
