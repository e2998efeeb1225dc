"""Preference oracles: who says which of two answers is better."""

from alignment.oracles.base import ask, preference_matrix
from alignment.oracles.build import build_oracle, check_oracle
from alignment.oracles.combine import MixtureOracle, NoisyOracle, PanelOracle, TiedOracle, VerdictOracle
from alignment.oracles.matrix import MatrixOracle
from alignment.oracles.models import BradleyTerryOracle, LabelOracle, PairwiseOracle
from alignment.oracles.rules import RuleOracle

__all__ = [
    "BradleyTerryOracle",
    "LabelOracle",
    "MatrixOracle",
    "MixtureOracle",
    "NoisyOracle",
    "PairwiseOracle",
    "PanelOracle",
    "RuleOracle",
    "TiedOracle",
    "VerdictOracle",
    "ask",
    "build_oracle",
    "check_oracle",
    "preference_matrix",
]
