"""An oracle that looks the answer up: a preference game over known texts."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from alignment.errors import UserError
from alignment.games import PreferenceGame
from alignment.shapes import check_shapes


class MatrixOracle:
    """Answers from ``P(y > y' | x)`` over a finite set of responses.

    Args:
        prefs_XAA: preferences of every context.
        responses: the A responses, as the policy writes them.
        prompts: the X prompts; ``None`` where there is one context for every prompt.

    Example:
        >>> import torch
        >>> oracle = MatrixOracle(torch.tensor([[[0.5, 0.9], [0.1, 0.5]]]), responses=["yes", "no"])
        >>> oracle.prefer(["Really?"], ["no"], ["yes"])
        tensor([0.1000])
    """

    def __init__(self, prefs_XAA: Tensor, *, responses: Sequence[str], prompts: Sequence[str] | None = None) -> None:
        sizes = check_shapes(prefs_XAA=prefs_XAA)
        expected_contexts = 1 if prompts is None else len(prompts)
        if sizes["A"] != len(responses) or sizes["X"] != expected_contexts:
            raise UserError(
                f"matrix oracle: expected preferences [{expected_contexts}, {len(responses)}, {len(responses)}], "
                f"got {list(prefs_XAA.shape)}"
            )
        self.prefs_XAA = prefs_XAA
        self._action = {response: a for a, response in enumerate(responses)}
        self._context = None if prompts is None else {prompt: x for x, prompt in enumerate(prompts)}

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        """Probabilities [N] that ``left`` beats ``right``.

        Raises:
            UserError: for a text that is not in the game.
        """
        context_N = [self._find(self._context, prompt, "prompt") for prompt in prompts]
        left_N = [self._find(self._action, text, "response") for text in left]
        right_N = [self._find(self._action, text, "response") for text in right]
        return self.prefs_XAA[context_N, left_N, right_N]

    @staticmethod
    def _find(index: dict[str, int] | None, text: str, what: str) -> int:
        if index is None:
            return 0
        if text not in index:
            raise UserError(
                f"matrix oracle: unknown {what} {text!r}; it knows {len(index)}, such as {next(iter(index))!r}"
            )
        return index[text]


def read_matrix(path: Path) -> MatrixOracle:
    """From a file of ``{"responses": [...], "preferences": [[...], ...]}``, with ``prompts`` and one for each, or one.

    Raises:
        UserError: if the file is missing, or holds no preferences.
    """
    try:
        content = json.loads(path.read_text())
        responses, prompts = content["responses"], content.get("prompts")
        prefs = torch.tensor(content["preferences"], dtype=torch.float64)
    except FileNotFoundError:
        raise UserError(f"oracle.path: no file at {path}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected JSON with 'responses' and 'preferences', got {error!r}") from error
    prefs_XAA = prefs if prefs.dim() == 3 else prefs[None]
    # The game's constructor checks that these are preferences.
    uniform_XA = torch.full(prefs_XAA.shape[:2], 1.0 / prefs_XAA.shape[1], dtype=torch.float64)
    game = PreferenceGame(prefs_XAA=prefs_XAA, ref_XA=uniform_XA, tau=0.0)
    return MatrixOracle(game.prefs_XAA, responses=responses, prompts=prompts)
