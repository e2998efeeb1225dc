"""Bradley-Terry on text: a model with one number for a whole text, trained by ``trl.RewardTrainer``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import RewardConfig, RewardTrainer

from alignment.optimizer_options import NamingTrainer
from alignment.oracles.models import end_logits
from alignment.rewards.pairs import TextPair

Array = np.ndarray[Any, np.dtype[Any]]


class _Trainer(NamingTrainer, RewardTrainer):
    """TRL's."""


class TextBradleyTerry:
    """A component whose pairs are texts.

    Args:
        model: with ``num_labels=1``, on its device; trained in place, adapters alone where it has any.
        tokenizer: saved with the model, and gives the padding token.
        make_arguments: fresh arguments for each fit, because a trainer changes its own.
        callbacks: of every trainer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        make_arguments: Callable[[], RewardConfig],
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.make_arguments = make_arguments
        self.callbacks = tuple(callbacks)
        # The trainer does the same, but margins may be asked for before it is built.
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        self.batch_size = make_arguments().per_device_eval_batch_size

    def trainer(self, pairs: Sequence[TextPair], held_out: Sequence[TextPair] = ()) -> RewardTrainer:
        """TRL's trainer on our token ids."""
        return _Trainer(
            model=self.model,
            args=self.make_arguments(),
            train_dataset=as_dataset(pairs),
            eval_dataset=as_dataset(held_out) if held_out else None,
            processing_class=self.tokenizer,
            callbacks=list(self.callbacks),
        )

    def save(self, folder: Path) -> None:
        """Model (or adapter) and tokenizer in the ordinary format."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def fit(self, pairs: Sequence[TextPair]) -> None:
        """One training, with a fresh optimiser, from the present weights."""
        self.trainer(pairs).train()

    def margins(self, pairs: Sequence[TextPair]) -> Array:
        """Reward of the winner minus reward of the loser, [N]; a text that several pairs share is scored once."""
        rewards_N = np.array(self.score([ids for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]))
        return rewards_N[::2] - rewards_N[1::2]

    def score(self, texts: Sequence[tuple[int, ...]]) -> list[float]:
        """The reward of each text."""
        if not texts:
            return []
        was_training = self.model.training
        self.model.eval()
        rewards_N1 = end_logits(self.model, self.tokenizer, texts, self.batch_size)
        self.model.train(was_training)
        return rewards_N1[:, 0].tolist()

    def parameters(self) -> dict[str, Tensor]:
        """Copies of the weights that are trained, on the CPU."""
        return {
            name: weight.detach().to("cpu", copy=True)
            for name, weight in self.model.named_parameters()
            if weight.requires_grad
        }

    @torch.no_grad()
    def restore(self, parameters: dict[str, Tensor]) -> None:
        """Go back to copies."""
        own = dict(self.model.named_parameters())
        for name, weight in parameters.items():
            own[name].copy_(weight)


def as_dataset(pairs: Sequence[TextPair]) -> Dataset:
    """The columns that TRL takes as they are: nothing is tokenised, cut or filtered again."""
    return Dataset.from_dict(
        {
            "chosen_ids": [list(pair.chosen_ids) for pair in pairs],
            "rejected_ids": [list(pair.rejected_ids) for pair in pairs],
        }
    )
