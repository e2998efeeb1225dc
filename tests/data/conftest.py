"""Tokenizers built in code: byte-level, so that every text survives, and small enough to build in milliseconds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from alignment.data.readers import read_rows
from alignment.errors import UserError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    # Ends turns with the tokenizer's EOS.
    "eos": CHATML.replace("<|im_end|>", "{{ eos_token }}"),
    # Writes BOS as well.
    "bos_eos": "{{ bos_token }}" + CHATML.replace("<|im_end|>", "{{ eos_token }}"),
    "double_bos": "{{ bos_token }}{{ bos_token }}" + CHATML.replace("<|im_end|>", "{{ eos_token }}"),
    # Ends turns with a special token that is not the tokenizer's EOS, as Gemma does.
    "end_of_turn": CHATML,
    # Ends a conversation with both, as Phi-3 does.
    "end_of_turn_and_eos": CHATML.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}"),
    # Ends turns with a line break only.
    "no_eos": CHATML.replace("<|im_end|>", ""),
    "no_generation_prompt": CHATML.replace("<|im_end|>", "{{ eos_token }}").partition("{% if add")[0],
    # Needs no generation prompt and pads the reply with blanks, as Llama-2 does.
    "inst": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}",
    # Accepts alternating turns only.
    "alternating": "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
    + CHATML.replace("<|im_end|>", "{{ eos_token }}"),
    # Renders a conversation of more than two turns differently once a reply follows.
    "unstable": "{% if messages | length > 2 %}{{ messages | length }}{% endif %}"
    + CHATML.replace("<|im_end|>", "{{ eos_token }}"),
    "broken": "{% for m in messages %}",
}


def _byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    line_break = "\u010a"  # how the byte-level alphabet writes "\n"
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, line_break * 2, "he", "ll"])}
    merges = [(line_break, line_break), ("h", "e"), ("l", "l")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.fixture(scope="session")
def build_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Builds a tokenizer: ``template`` names an entry of ``TEMPLATES``; ``adds`` is put around a text by itself."""

    def build(
        template: str | None = "eos", *, adds: str = "", eos_token: str | None = "</s>"
    ) -> PreTrainedTokenizerFast:
        backend = _byte_level()
        backend.add_special_tokens(
            [AddedToken(text, special=True) for text in ("<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>")]
        )
        if adds:
            backend.post_processor = processors.TemplateProcessing(
                single=adds, special_tokens=[(text, backend.token_to_id(text)) for text in ("<s>", "</s>")]
            )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token=eos_token, pad_token="<pad>"
        )
        tokenizer.chat_template = None if template is None else TEMPLATES[template]
        return tokenizer

    return build


@pytest.fixture(scope="session")
def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Writes a blank as "\u2581" and puts one before every text, as Llama-2's does; knows "he" as one token."""
    alphabet = {symbol: index for index, symbol in enumerate(["\u2581", "h", "e", "l", "he", "</s>"])}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[("h", "e")]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as JSON lines."""

    def write_rows(*rows: object, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write_rows


@pytest.fixture
def reading_fails() -> Callable[..., str]:
    """Reads and gives the one line of the UserError that it must raise."""

    def read(path: object, match: str, **options: Any) -> str:
        with pytest.raises(UserError, match=match) as caught:
            read_rows(path, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return read
