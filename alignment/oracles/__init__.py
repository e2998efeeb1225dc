"""Preference oracles: who says which of two answers is better."""

from alignment.oracles.base import ask, preference_matrix
from alignment.oracles.build import build_oracle
from alignment.oracles.matrix import MatrixOracle
from alignment.oracles.rules import RuleOracle

__all__ = ["MatrixOracle", "RuleOracle", "ask", "build_oracle", "preference_matrix"]
