"""Preference oracles: who says which of two answers is better."""

from alignment.oracles.base import BothOrders, OneOrder, SettledOracle, ask, preference_matrix, settle
from alignment.oracles.build import (
    build_oracle,
    check_keys,
    check_models,
    check_oracle,
    content_digest,
    deciding_keys,
    oracle_name,
)
from alignment.oracles.combine import (
    CalibratedOracle,
    MixtureOracle,
    NoisyOracle,
    PanelOracle,
    TiedOracle,
    VerdictOracle,
    num_questions,
)
from alignment.oracles.ledger import Accounts, Budget, Figures
from alignment.oracles.matrix import MatrixOracle
from alignment.oracles.models import BradleyTerryOracle, LabelOracle, PairwiseOracle
from alignment.oracles.rules import RuleOracle

__all__ = [
    "Accounts",
    "BothOrders",
    "BradleyTerryOracle",
    "Budget",
    "CalibratedOracle",
    "Figures",
    "LabelOracle",
    "MatrixOracle",
    "MixtureOracle",
    "NoisyOracle",
    "OneOrder",
    "PairwiseOracle",
    "PanelOracle",
    "RuleOracle",
    "SettledOracle",
    "TiedOracle",
    "VerdictOracle",
    "ask",
    "build_oracle",
    "check_keys",
    "check_models",
    "check_oracle",
    "content_digest",
    "deciding_keys",
    "num_questions",
    "oracle_name",
    "preference_matrix",
    "settle",
]
