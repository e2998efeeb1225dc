"""Rules: oracles that are a Python function, for tests, examples and anything that can be checked by code."""

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from alignment.errors import UserError

Rule = Callable[[str, str, str], float]
"""(prompt, left, right) -> probability that left beats right."""


def shorter(prompt: str, left: str, right: str) -> float:
    """Prefers the shorter answer; 20 characters are one logit. Transitive: a Bradley-Terry oracle."""
    return 1.0 / (1.0 + math.exp(-max(-700.0, min(700.0, (len(right) - len(left)) / 20.0))))


def paper_scissors_stone(prompt: str, left: str, right: str) -> float:
    """Prefers by the word an answer mentions first: paper beats stone, stone scissors, scissors paper; nothing loses.

    Intransitive by construction: no scalar reward expresses it.
    """
    beats = {("paper", "stone"), ("stone", "scissors"), ("scissors", "paper")}
    first, second = _first_word(left), _first_word(right)
    if first == second:
        return 0.5
    if not first or not second:
        return 1.0 if first else 0.0
    return 1.0 if (first, second) in beats else 0.0


def _first_word(text: str) -> str:
    found = {word: text.find(word) for word in ("paper", "scissors", "stone") if word in text}
    return min(found, key=lambda word: found[word]) if found else ""


RULES: Mapping[str, Rule] = MappingProxyType({"shorter": shorter, "paper_scissors_stone": paper_scissors_stone})


class RuleOracle:
    """An oracle that calls a function for each question.

    Args:
        rule: ``(prompt, left, right) -> probability that left beats right``.

    Example:
        >>> RuleOracle(shorter).prefer(["Hi"], ["Hello."], ["Hello."])
        tensor([0.5000], dtype=torch.float64)
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        """Probabilities [N] that ``left`` beats ``right``."""
        return torch.tensor(
            [self._answer(*question) for question in zip(prompts, left, right, strict=True)], dtype=torch.float64
        )

    def _answer(self, prompt: str, left: str, right: str) -> float:
        answer = self.rule(prompt, left, right)
        try:
            return float(answer)
        except (TypeError, ValueError):
            name = self.rule.__name__ if inspect.isroutine(self.rule) else repr(self.rule)
            raise UserError(
                f"oracle.rule: expected a probability from {name}(prompt, left, right), which is asked about one "
                f"question at a time, got {type(answer).__name__}"
            ) from None


def find_rule(name: str) -> Rule:
    """A named rule, or a function by dotted path (``mylab.rules:prefer``).

    Raises:
        UserError: if there is none.
    """
    if name in RULES:
        return RULES[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise UserError(f"oracle.rule: expected one of {', '.join(RULES)} or 'module:function', got '{name}'")
    try:
        rule: Rule = importlib.import_module(module).__dict__[attribute]
    except (ImportError, KeyError) as error:
        raise UserError(
            f"oracle.rule: expected 'module:function' that can be imported, got '{name}' ({error!r})"
        ) from error
    try:
        inspect.signature(rule).bind("", "", "")
    except (TypeError, ValueError) as error:
        raise UserError(f"oracle.rule: expected a function of (prompt, left, right), got '{name}' ({error})") from None
    return rule


def rule_source(rule: Rule) -> bytes:
    """The source of the rule's module: a verdict of an edited rule is another one."""
    return inspect.getsource(importlib.import_module(rule.__module__)).encode()
