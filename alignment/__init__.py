"""Align language models with game theory: preference methods as losses over one pipeline.

Names are imported when they are first used, so ``import alignment`` costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Completions": "alignment.types",
    "Feedback": "alignment.types",
    "LossInputs": "alignment.types",
    "LossOutput": "alignment.types",
    "Needs": "alignment.types",
    "UserError": "alignment.errors",
    "build_method": "alignment.methods",
    "method_names": "alignment.methods",
    "PreferenceGame": "alignment.games",
    "PanelGame": "alignment.games",
    "ExtraGradient": "alignment.optim",
    "run_tabular": "alignment.tabular",
    "AlignmentArguments": "alignment.config",
    "PreferenceTrainer": "alignment.trainer",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'alignment' has no attribute '{name}'; it has {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted(__all__)
