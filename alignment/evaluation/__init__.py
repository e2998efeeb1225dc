"""How good a policy is: win rates with their intervals, and the scores of judgements that exist already.

Names are imported when they are first used: the win rate of a training run needs the whole language-model stack, the
scorers need numpy and scipy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignment.evaluation.win_rate import Met, ReferenceMatch, interval

# Not the function win_rate: the package already has a module of this name.
__all__ = ["Met", "ReferenceMatch", "interval"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("alignment.evaluation.win_rate"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it has {', '.join(__all__)}")
