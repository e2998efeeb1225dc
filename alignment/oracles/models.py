"""Oracles that are models: a Bradley-Terry reward, a classifier of pairs, a language model that names the better one.

Texts are tokenised as in training (:mod:`alignment.data.tokens`): one BOS, the chat template, one end token.
Shape letters: ``N`` questions, ``T`` tokens.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import peft
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from alignment.cache import model_digest
from alignment.data import PromptText, Row, Skipped, Turn
from alignment.data.tokens import encode_outcomes
from alignment.errors import UserError
from alignment.oracles.templates import PAIR_TEMPLATE, check_template, fill_template
from alignment.sharding import loaded_whole

# Far above any context: the model's own limit decides, and is checked with the tokens in hand.
_NO_LIMIT = 1 << 30

Texts = Sequence[tuple[int, ...]]


class BradleyTerryOracle:
    """A reward model: P(left beats right) = sigmoid(r(x, left) - r(x, right)); also a ``Scorer``. Transitive.

    Args:
        model: a sequence classifier with one number.
        tokenizer: of the model.
        batch_size: texts scored at once.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 8) -> None:
        if model.config.num_labels != 1:
            raise UserError(
                f"oracle: expected a reward model with one number for a text, found {model.config.num_labels} labels; "
                "a classifier of pairs is kind: pairwise"
            )
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id

    def score(self, prompts: list[str], responses: list[str]) -> Tensor:
        """Rewards [N], float64; equal texts are scored once."""
        rows = [
            Row(prompt=_turns(prompt), responses=(response,), source=f"question {n}")
            for n, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]
        texts = []
        for outcome in encode_outcomes(rows, self.tokenizer, _NO_LIMIT, _NO_LIMIT):
            if isinstance(outcome, Skipped):
                raise UserError(
                    f"oracle: expected a text that the reward model can read, found one that it cannot "
                    f"({outcome.reason}); leave such prompts out"
                )
            texts.append((*outcome.prompt_ids, *outcome.completion_ids[0]))
        return _logits(self.model, self.tokenizer, texts, self.batch_size)[:, 0]

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        """Probabilities [N] that ``left`` beats ``right``."""
        scores_N = self.score([*prompts, *prompts], [*left, *right])
        return torch.sigmoid(scores_N[: len(prompts)] - scores_N[len(prompts) :])


class PairwiseOracle:
    """A classifier that reads both answers at once: it can hold intransitive preferences.

    Args:
        model: a sequence classifier with one number (the logit that left wins) or two (left, right).
        tokenizer: of the model.
        template: with ``{prompt}``, ``{left}`` and ``{right}``.
        batch_size: texts read at once.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, *, template: str = PAIR_TEMPLATE, batch_size: int = 8
    ) -> None:
        check_template(template)
        if model.config.num_labels not in (1, 2):
            raise UserError(f"oracle: expected a classifier with 1 or 2 labels, found {model.config.num_labels}")
        self.model, self.tokenizer, self.template, self.batch_size = model.eval(), tokenizer, template, batch_size
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        """Probabilities [N] that ``left`` beats ``right``."""
        texts = list(fill_template(self.template, prompts, left, right))
        ids = [tuple(ids) for ids in self.tokenizer(texts, verbose=False)["input_ids"]]
        logits = _logits(self.model, self.tokenizer, ids, self.batch_size)
        return torch.sigmoid(logits[:, 0]) if logits.shape[1] == 1 else logits.softmax(-1)[:, 0]


class LabelOracle:
    """A language model that is asked which answer is better: the share of the first label's token against the second's.

    Args:
        model: a causal language model.
        tokenizer: of the model; with a chat template the question is a user's turn.
        template: with ``{prompt}``, ``{left}`` and ``{right}``.
        labels: what stands for left and right; one token each.
        batch_size: questions at once.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: str = PAIR_TEMPLATE,
        labels: tuple[str, str] = ("A", "B"),
        batch_size: int = 8,
    ) -> None:
        check_template(template)
        tokens = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in labels]
        if any(len(ids) != 1 for ids in tokens) or tokens[0] == tokens[1]:
            raise UserError(f"oracle: expected two labels of one token each, found {labels[0]!r} and {labels[1]!r}")
        self.model, self.tokenizer, self.template, self.batch_size = model.eval(), tokenizer, template, batch_size
        self.label_ids = [ids[0] for ids in tokens]

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        """Probabilities [N] that ``left`` beats ``right``."""
        role: Literal["user", "text"] = "user" if self.tokenizer.chat_template is not None else "text"
        rows = [
            Row(prompt=(Turn(role, text),), source=f"question {n}")
            for n, text in enumerate(fill_template(self.template, prompts, left, right))
        ]
        texts = []
        for outcome in encode_outcomes(rows, self.tokenizer, _NO_LIMIT, _NO_LIMIT):
            assert not isinstance(outcome, Skipped), "a question of one turn is never left out"
            texts.append(outcome.prompt_ids)
        logits = _logits(self.model, self.tokenizer, texts, self.batch_size)
        return logits[:, self.label_ids].softmax(-1)[:, 0]


def check_model(path: str) -> None:
    """Refuse a model whose tokenizer or configuration is not there. No weights are loaded, nor looked for.

    Args:
        path: a folder or a name on the Hub; of a LoRA adapter its tokenizer is looked for.

    Raises:
        UserError: if one is missing.
    """
    try:
        AutoTokenizer.from_pretrained(path)
        if not Path(path, "adapter_config.json").exists():
            AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"oracle.model: expected a model with its tokenizer at '{path}' ({error})") from None


def load_classifier(path: str, *, num_labels: int | None = None) -> tuple[Any, PreTrainedTokenizerBase]:
    """A sequence classifier and its tokenizer.

    Args:
        path: a folder or a name on the Hub; a LoRA adapter is put on its base.
        num_labels: what it must have; ``None`` takes what it says.

    Raises:
        UserError: if there is none, or a part of it is missing and would be random numbers.
    """
    options = {} if num_labels is None else {"num_labels": num_labels}
    is_adapter = Path(path, "adapter_config.json").exists()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        with loaded_whole():
            if is_adapter:
                model = peft.AutoPeftModelForSequenceClassification.from_pretrained(path, **options)
                return model, tokenizer
            model, report = AutoModelForSequenceClassification.from_pretrained(
                path, output_loading_info=True, **options
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"oracle.model: expected a classifier of texts at '{path}' ({error})") from None
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"oracle.model: expected a trained classifier at '{path}', found no weights for {', '.join(missing[:3])}; "
            "they would be random numbers: train it first (alignment reward)"
        )
    return model, tokenizer


def load_language_model(path: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer.

    Raises:
        UserError: if there is none.
    """
    try:
        with loaded_whole():
            return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"oracle.model: expected a causal language model at '{path}' ({error})") from None


def model_version(path: str, model: Any) -> str:
    """What tells a model's weights from others: a hash of the files in its folder, or its commit on the Hub.

    Args:
        path: what it was loaded from; an adapter's base counts as well.
        model: as loaded.

    Raises:
        UserError: if the Hub's cache does not say the commit.
    """
    folder = Path(path)
    if not folder.is_dir():
        commit = vars(model.config).get("_commit_hash")
        if commit is None:
            raise UserError(f"oracle.ledger: expected a folder or a commit of '{path}' on the Hub, found neither")
        return str(commit)
    digest = model_digest(folder)
    adapter = folder / "adapter_config.json"
    if adapter.exists():
        digest.update(model_version(json.loads(adapter.read_text())["base_model_name_or_path"], model).encode())
    return digest.hexdigest()


def _turns(prompt: str) -> tuple[Turn, ...]:
    return prompt.turns if isinstance(prompt, PromptText) else (Turn("user", prompt),)


def _logits(model: Any, tokenizer: PreTrainedTokenizerBase, texts: Texts, batch_size: int) -> Tensor:
    limit, longest = model.config.to_dict().get("max_position_embeddings"), max(map(len, texts))
    if limit is not None and longest > limit:
        raise UserError(
            f"oracle: expected texts of at most {limit:,} tokens, the model's positions, found {longest:,}; "
            "shorten prompts and answers (data.max_prompt_length, sampling.max_new_tokens)"
        )
    return end_logits(model, tokenizer, texts, batch_size)


@torch.no_grad()
def end_logits(model: Any, tokenizer: PreTrainedTokenizerBase, texts: Texts, batch_size: int) -> Tensor:
    """What the model says at the end of each text, [N, labels or vocabulary], float64 on the CPU.

    Args:
        model: a classifier or a language model, not in training.
        tokenizer: gives the padding token.
        texts: token ids; one that comes several times is read once.
        batch_size: texts at once; those of like length come together, so that little is padding.
    """
    distinct = sorted(set(texts), key=len)
    found: dict[tuple[int, ...], Tensor] = {}
    for start in range(0, len(distinct), batch_size):
        chunk = distinct[start : start + batch_size]
        ids = [torch.tensor(text, dtype=torch.int64) for text in chunk]
        ids_NT = pad_sequence(ids, batch_first=True, padding_value=float(tokenizer.pad_token_id))
        mask_NT = pad_sequence([torch.ones_like(text) for text in ids], batch_first=True)
        logits = model(input_ids=ids_NT.to(model.device), attention_mask=mask_NT.to(model.device)).logits
        if logits.dim() == 3:
            logits = logits[torch.arange(len(chunk)), mask_NT.sum(-1) - 1]
        found |= zip(chunk, logits.double().cpu(), strict=True)
    return torch.stack([found[ids] for ids in texts])
