"""A causal language model and its tokenizer, made in code in about a second: nothing is downloaded.

The tokenizer is a byte-level BPE fitted to given texts, or a list of words, with one token for each role and for the
end of a turn; the model is a small Llama with random weights. They serve tests, examples and first runs on a laptop.
"""

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template. Same texts and size, same tokenizer.

    Args:
        texts: what it is fitted to.
        vocab_size: at least 262 (the bytes and six special tokens); fewer tokens come out where the texts are short.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, END, *_ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=END)
    fast.add_special_tokens({"additional_special_tokens": list(_ROLES)})
    fast.chat_template = CHAT_TEMPLATE
    return fast


def word_level_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are whole words between spaces, after the special tokens, in the order given."""
    vocabulary = {token: index for index, token in enumerate((PAD, BOS, END, *_ROLES, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        additional_special_tokens=list(_ROLES),
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    intermediate_size: int | None = None,
    max_position_embeddings: int = 2048,
    seed: int = 0,
) -> LlamaForCausalLM:
    """A small Llama with random weights, float32.

    Args:
        tokenizer: gives vocabulary size and special tokens.
        hidden_size: width.
        num_layers: depth.
        num_heads: attention heads; divides the width.
        intermediate_size: of the MLP; ``None`` for 8/3 of the width, rounded up to a multiple of 8.
        max_position_embeddings: longest sequence.
        seed: of the weights; the global generator is left as it was.
    """
    config = _config(tokenizer, hidden_size, num_layers, num_heads, intermediate_size, max_position_embeddings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return model.float()


def tiny_reward_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    intermediate_size: int | None = None,
    max_position_embeddings: int = 2048,
    seed: int = 0,
) -> LlamaForSequenceClassification:
    """The same with one number for the whole text in place of the next token; arguments as :func:`tiny_model`."""
    config = _config(tokenizer, hidden_size, num_layers, num_heads, intermediate_size, max_position_embeddings)
    config.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification(config)
    return model.float()


def _config(
    tokenizer: PreTrainedTokenizerFast,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    intermediate_size: int | None,
    max_position_embeddings: int,
) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size or -(-8 * hidden_size // 24) * 8,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
