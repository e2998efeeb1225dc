"""Rewards from comparisons: Bradley-Terry on features and on text, groups of annotators, and whether there are any.

Text models import transformers and trl; they are in :mod:`alignment.rewards.text`.
"""

from alignment.rewards.em import Component, Mixture, agreement, fit_mixture, fit_single
from alignment.rewards.linear import LinearBradleyTerry
from alignment.rewards.separation import Separation, compare_held_out

__all__ = [
    "Component",
    "LinearBradleyTerry",
    "Mixture",
    "Separation",
    "agreement",
    "compare_held_out",
    "fit_mixture",
    "fit_single",
]
