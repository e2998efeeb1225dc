"""Trainers by name, for code: each is `PreferenceTrainer` with a method of its own.

``EGPOTrainer(model=..., args=AlignmentArguments(...), train_dataset=rows, processing_class=tokenizer, oracle=...,
method_options={"tau": 0.1})``. ``CPOTrainer`` is Constrained Preference Optimization (arXiv 2605.20834), not the
contrastive method that other libraries call CPO.
"""

from alignment.trainer import PreferenceTrainer


class DPOTrainer(PreferenceTrainer):
    """Direct Preference Optimization (arXiv 2305.18290)."""

    method_name = "dpo"


class CPOTrainer(PreferenceTrainer):
    """Constrained Preference Optimization (arXiv 2605.20834), not the contrastive one."""

    method_name = "cpo"


class LiPOTrainer(PreferenceTrainer):
    """Listwise Preference Optimization (arXiv 2402.01878)."""

    method_name = "lipo"


class SPOTrainer(PreferenceTrainer):
    """Minimaximalist self-play (arXiv 2401.04056)."""

    method_name = "spo"


class INPOTrainer(PreferenceTrainer):
    """Iterative Nash Policy Optimization (arXiv 2407.00617)."""

    method_name = "inpo"


class NashMPTrainer(PreferenceTrainer):
    """Nash Mirror Prox (arXiv 2505.19731)."""

    method_name = "nash_mp"


class EGPOTrainer(PreferenceTrainer):
    """Extragradient Preference Optimization (arXiv 2503.08942)."""

    method_name = "egpo"


class MNPOTrainer(PreferenceTrainer):
    """Multiplayer Nash Preference Optimization (arXiv 2509.23102)."""

    method_name = "mnpo"


class MaxMinTrainer(PreferenceTrainer):
    """MaxMin-RLHF (arXiv 2402.08925)."""

    method_name = "maxmin"
