"""The text game: a world, the language model that plays in it, and the exact games that the two make.

Shape letters: ``X`` questions, ``A`` answers to each, ``K`` oracles.
"""

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from alignment.data import Row, Turn, collate, encode_rows
from alignment.games import PanelGame, PreferenceGame
from alignment.logps import score
from alignment.oracles import PanelOracle
from alignment.policies import CausalLMPolicy
from alignment.textgame.model import chosen, supervised_model, word_tokenizer
from alignment.textgame.oracle import AnswerOracle
from alignment.textgame.world import World, build_world
from alignment.types import Completions

# Questions scored at once: their answers share nothing, and memory grows with their number.
_CHUNK = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EnumeratedPolicy:
    """What a language model does in the game, exactly.

    Attributes:
        policy_XA: probabilities of the answers, normalised among them, float64.
        outside_X: the mass that the model gives to texts that are no answers.
    """

    policy_XA: Tensor
    outside_X: Tensor


class TextGame:
    """A finite game whose players are language models.

    Args:
        world: questions, answers, annotators.
        tokenizer: of the world.
        ref: the language model that answers as people do; it is not changed.
        answers: all answers to all questions, [X, A, T].

    Example:
        A policy is trained on ``rows()`` against ``oracle()``, and held against ``game(tau=...)`` exactly::

            text = TextGame.build()
            game = text.game(tau=0.05)
            gap_X = game.duality_gap(text.policy_XA(model).policy_XA)
    """

    def __init__(
        self, world: World, tokenizer: PreTrainedTokenizerFast, ref: LlamaForCausalLM, answers: Completions
    ) -> None:
        self.world, self.tokenizer, self.answers = world, tokenizer, answers
        self.ref = ref.eval().requires_grad_(False)

    @classmethod
    def build(cls, *, seed: int = 0) -> "TextGame":
        """The game with its supervised model: half a minute at first, then from the cache folder.

        Args:
            seed: of the model.
        """
        world = build_world()
        tokenizer = word_tokenizer(world)
        answers = encode_answers(world, tokenizer)
        return cls(world, tokenizer, supervised_model(world, tokenizer, answers, seed=seed), answers)

    def policy(self) -> LlamaForCausalLM:
        """A copy of the reference, to be trained."""
        return copy.deepcopy(self.ref).requires_grad_(True).train()

    def rows(self) -> tuple[Row, ...]:
        """The questions."""
        return tuple(
            Row(prompt=(Turn("user", question),), source=f"textgame:{x + 1}")
            for x, question in enumerate(self.world.questions)
        )

    @cached_property
    def ref_XA(self) -> Tensor:
        """Probabilities of the answers under the reference, normalised among them."""
        return self.policy_XA(self.ref).policy_XA

    @cached_property
    def crowd_preferences(self) -> Tensor:
        """``P(y > y')`` of an annotator drawn from the crowd, [X, A, A]."""
        return self.world.prefs_XAA(self.world.weights_S)

    @cached_property
    def group_preferences(self) -> dict[str, Tensor]:
        """The same of an annotator drawn from each group, by the group's name."""
        return {name: self.world.prefs_XAA(weights_S) for name, weights_S in self.world.groups().items()}

    @torch.no_grad()
    def policy_XA(self, policy: nn.Module | CausalLMPolicy) -> EnumeratedPolicy:
        """What a model does in the game: the probability of every answer to every question.

        Args:
            policy: a model of transformers with the game's tokenizer.
        """
        module = policy.model if isinstance(policy, CausalLMPolicy) else policy
        was_training = module.training
        module.eval()
        index_XA = torch.arange(len(self.world.answers[0])).expand(len(self.world.questions), -1)
        device = next(module.parameters()).device
        logps_XA = torch.cat(
            [
                score(module, _rows_of(chosen(self.answers, index_XA), start).to(device)).logps_BG.double().cpu()
                for start in range(0, len(index_XA), _CHUNK)
            ]
        )
        module.train(was_training)
        return EnumeratedPolicy(
            policy_XA=logps_XA.softmax(-1),
            # Rounding may leave a hair more than one.
            outside_X=(1.0 - logps_XA.exp().sum(-1)).clamp(min=0.0),
        )

    def game(self, *, tau: float) -> PreferenceGame:
        """The crowd's preference, around the reference."""
        return PreferenceGame(prefs_XAA=self.crowd_preferences, ref_XA=self.ref_XA, tau=tau)

    def panel_game(self, *, tau: float) -> PanelGame:
        """The groups' preferences, around the reference; a group's utility is its ``P(y > ref)``."""
        return PanelGame(prefs_KXAA=torch.stack(list(self.group_preferences.values())), ref_XA=self.ref_XA, tau=tau)

    def oracle(self, group: str | None = None) -> AnswerOracle:
        """The crowd as an oracle, or one of its groups."""
        prefs_XAA = self.crowd_preferences if group is None else self.group_preferences[group]
        return AnswerOracle(prefs_XAA, self.world.questions, self.world.answers)

    def panel(self) -> PanelOracle:
        """The groups as oracles, asked one by one."""
        return PanelOracle({name: self.oracle(name) for name in self.group_preferences})


def _rows_of(completions: Completions, start: int) -> Completions:
    rows = slice(start, start + _CHUNK)
    return Completions(
        input_ids_BGT=completions.input_ids_BGT[rows],
        attention_mask_BGT=completions.attention_mask_BGT[rows],
        completion_mask_BGT=completions.completion_mask_BGT[rows],
        valid_BG=completions.valid_BG[rows],
    )


def encode_answers(world: World, tokenizer: PreTrainedTokenizerFast) -> Completions:
    """All answers to all questions, [X, A, T]."""
    rows = [
        Row(prompt=(Turn("user", question),), responses=answers, source=f"textgame:{x + 1}")
        for x, (question, answers) in enumerate(zip(world.questions, world.answers, strict=True))
    ]
    encoded = encode_rows(rows, tokenizer, max_prompt_length=32, max_completion_length=32).rows
    return collate(encoded, pad_token_id=int(tokenizer.pad_token_id)).completions
