"""The index of the method notes' invariants: each of the 112 is a test, or is named here as not applicable, and why."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

_GAME, _UPDATES, _PANEL = "games/test_game.py", "games/test_updates.py", "games/test_panel.py"
_CONTRACT, _CPO, _LIPO = "methods/test_contract.py", "methods/test_cpo.py", "methods/test_lipo.py"
_INPO, _MNPO, _SPO = "methods/test_inpo.py", "methods/test_mnpo.py", "methods/test_spo.py"

# Number -> the tests that show it, all of them together: (file below tests/, its functions).
WHERE: dict[int, dict[str, tuple[str, ...]]] = {
    1: {_GAME: ("test_value_is_one_half_against_itself_and_the_gap_is_not_negative",)},
    2: {_GAME: ("test_gap_is_twice_what_a_best_response_gains", "test_gap_matches_the_log_partition_form")},
    3: {_UPDATES: ("test_extragradient_reaches_the_fixed_point",), _GAME: ("test_solution_is_a_fixed_point",)},
    4: {_GAME: ("test_two_actions_have_a_closed_form",)},
    5: {_GAME: ("test_uniform_cycle_has_a_uniform_equilibrium",)},
    6: {_GAME: ("test_rock_paper_scissors_has_the_known_equilibrium",)},
    7: {"oracles/test_oracles.py": ("test_both_orders_are_averaged",)},
    8: {"text/test_policies.py": ("test_each_response_meets_its_own_prompts_opponents",)},
    9: {"test_functional.py": ("test_three_forms_differ_by_constants",)},
    10: {"test_functional.py": ("test_the_minimiser_is_closed_form",)},
    11: {"test_functional.py": ("test_the_minimiser_is_closed_form",), _INPO: ("test_the_fit_is_the_mirror_step",)},
    12: {"methods/test_egpo.py": ("test_one_opponent_sample_is_unbiased",)},
    13: {
        "methods/test_nash_mp.py": ("test_the_gradient_vanishes_at_the_mirror_step",),
        "methods/test_nash_prox.py": ("test_regression_and_policy_gradient_are_proportional",),
    },
    14: {
        "methods/test_online_ipo.py": ("test_it_is_minus_four_over_tau_times_self_play",),
        "methods/test_nash_prox.py": ("test_regression_and_policy_gradient_are_proportional",),
    },
    15: {"test_functional.py": ("test_the_sampling_gradient_is_detached",)},
    16: {
        _CONTRACT: ("test_order_of_completions_does_not_matter",),
        "test_functional.py": ("test_relabelling_a_pair_changes_nothing",),
    },
    17: {_CONTRACT: ("test_a_constant_per_prompt_changes_no_ratio_loss",)},
    18: {
        _MNPO: (
            "test_permuting_anchors_with_their_weights_changes_nothing",
            "test_splitting_an_anchor_changes_nothing",
        )
    },
    19: {
        "test_functional.py": ("test_repeated_tokens_double_the_differences",),
        "methods/test_ipo.py": ("test_length_guard",),
        "methods/test_dpo.py": ("test_repeated_tokens_double_the_margin",),
    },
    20: {"test_functional.py": ("test_target_attainment", "test_target_attainment_of_hard_labels")},
    21: {"test_functional.py": ("test_best_against_worst_is_another_solution",)},
    22: {_UPDATES: ("test_nash_md_obeys_its_one_step_inequality_and_rate",)},
    23: {_UPDATES: ("test_nash_md_with_a_constant_step_is_biased_in_proportion_to_its_square",)},
    24: {
        "methods/test_nash_md.py": (
            "test_mix_zero_is_regularised_self_play",
            "test_mix_one_responds_to_the_reference",
        )
    },
    25: {
        "methods/test_nash_md.py": (
            "test_the_gradient_is_that_of_the_sequence_game",
            "test_own_token_credit_is_biased",
        )
    },
    26: {"methods/test_nash_md.py": ("test_token_mixture_is_not_the_sequence_mixture",)},
    27: {"methods/test_online_ipo.py": ("test_the_gradient_vanishes_at_the_equilibrium_only",)},
    28: {"methods/test_ipo_md.py": ("test_mix_zero_is_online_ipo", "test_mix_zero_walks_as_online_ipo")},
    29: {"methods/test_ipo_md.py": ("test_the_mixture_solves_the_game_at_a_higher_temperature",)},
    30: {
        "test_tabular.py": ("test_offline_ipo_on_the_published_toy",),
        "methods/test_ipo.py": ("test_closed_form_on_a_cycle",),
    },
    31: {"methods/test_ipo_md.py": ("test_uniform_cycle_ends_uniform",)},
    32: {_INPO: ("test_the_fit_is_the_mirror_step",)},
    33: {_INPO: ("test_limits_of_the_anchor",)},
    34: {_INPO: ("test_limits_of_the_anchor",)},
    35: {_INPO: ("test_limits_of_the_anchor",)},
    36: {_UPDATES: ("test_mirror_descent_obeys_the_inequality_of_inpo",)},
    37: {_INPO: ("test_hand_value",)},
    38: {_INPO: ("test_tau_lies_between_zero_and_eta",)},
    39: {"methods/test_egpo.py": ("test_uniform_pairs_give_the_mirror_direction",)},
    40: {
        "methods/test_egpo.py": ("test_one_iteration_is_the_extragradient_step",),
        _UPDATES: ("test_one_gradient_step_on_uniform_pairs_is_the_master_update",),
    },
    41: {
        "test_optim.py": (
            "test_rewind_restores_weights_and_moments_bit_for_bit",
            "test_a_rewound_gradient_makes_it_a_plain_step",
        ),
        "text/test_trainer.py": ("test_the_second_stage_starts_where_the_first_did",),
    },
    42: {
        "methods/test_omd.py": ("test_extragradient_without_a_half_step_is_mirror_descent",),
        "test_optim.py": ("test_a_look_ahead_of_length_zero_is_one_plain_step",),
    },
    43: {"test_optim.py": ("test_textbook_recursion_on_a_bilinear_saddle",)},
    44: {
        _UPDATES: (
            "test_extragradient_converges_where_mirror_descent_cycles",
            "test_rock_paper_scissors_after_twenty_thousand_steps",
        ),
        "methods/test_egpo.py": ("test_the_separation_on_rock_paper_scissors",),
    },
    45: {
        _UPDATES: (
            "test_stability_thresholds_of_rock_paper_scissors",
            "test_the_rule_names_the_games_on_which_mirror_descent_cycles",
        ),
        "games/test_zoo.py": ("test_random_games_are_those_of_the_record",),
        "test_protocol.py": ("test_mirror_descent_fails_exactly_above_the_threshold",),
    },
    46: {_UPDATES: ("test_extragradient_tolerates_steps_far_beyond_its_theory",)},
    47: {
        _UPDATES: ("test_closed_form_minimises_the_objective_with_two_penalties",),
        "methods/test_nash_mp.py": ("test_the_gradient_vanishes_at_the_mirror_step",),
    },
    48: {_UPDATES: ("test_two_papers_write_one_algorithm",)},
    49: {_UPDATES: ("test_nash_mp_contracts_by_its_bound",)},
    50: {_UPDATES: ("test_nash_mp_contracts_by_its_bound",)},
    51: {_UPDATES: ("test_the_equilibrium_is_a_fixed_point_of_every_update",)},
    52: {_UPDATES: ("test_nash_mp_trajectory",)},
    53: {
        _UPDATES: ("test_proximal_step_contracts_for_every_step_size",),
        "methods/test_nash_prox.py": ("test_one_outer_step_is_the_proximal_step",),
    },
    54: {_UPDATES: ("test_proximal_step_in_its_limits",)},
    55: {
        "methods/test_nash_mp.py": (
            "test_the_contrastive_form_has_the_same_solution",
            "test_the_contrastive_gradient_vanishes_there_too",
        ),
        "methods/test_nash_prox.py": ("test_the_contrastive_form_rests_at_the_proximal_point",),
    },
    56: {_MNPO: ("test_one_reference_anchor_is_ipo",)},
    57: {_MNPO: ("test_inpo_is_a_special_case",)},
    58: {_MNPO: ("test_the_minimiser_is_not_the_average_over_opponents",)},
    59: {_MNPO: ("test_the_minimiser_is_not_the_average_over_opponents",)},
    60: {_MNPO: ("test_equal_anchors_give_a_hedge_step",)},
    61: {_MNPO: ("test_players_are_anchors_by_name", "test_identical_players_stay_identical")},
    62: {_MNPO: ("test_missing_history_and_wrong_weights_are_errors",)},
    63: {"methods/test_sppo.py": ("test_zero_at_the_hedge_step",)},
    64: {"methods/test_sppo.py": ("test_including_self_shrinks_the_centred_win_rate",)},
    65: {
        _UPDATES: ("test_optimism_converges_where_hedge_cycles",),
        "methods/test_onpo.py": (
            "test_the_last_iterate_converges",
            "test_optimism_is_linear_but_slow_at_its_theoretical_step",
        ),
    },
    66: {"methods/test_onpo.py": ("test_the_equilibrium_stays",)},
    67: {
        "methods/test_dpo.py": ("test_log_2_at_the_reference",),
        "methods/test_ipo.py": ("test_value_at_the_reference",),
        "methods/test_hinge.py": ("test_one_at_the_reference",),
        "methods/test_robust_dpo.py": ("test_log_2_at_the_reference",),
        "methods/test_kto.py": ("test_at_the_reference",),
        "methods/test_bco_pair.py": ("test_at_the_reference",),
        "methods/test_nca_pair.py": ("test_at_the_reference",),
        "methods/test_apo_zero.py": ("test_at_the_reference",),
        "methods/test_apo_down.py": ("test_at_the_reference",),
    },
    68: {
        "methods/test_cdpo.py": ("test_no_noise_is_dpo",),
        "methods/test_robust_dpo.py": ("test_no_noise_is_dpo", "test_flipped_labels_average_to_dpo"),
    },
    69: {
        "methods/test_cdpo.py": ("test_a_labelled_pair_wants_a_finite_margin",),
        "methods/test_ipo.py": ("test_a_labelled_pair_wants_a_finite_margin",),
    },
    70: {
        "methods/test_hypo.py": (
            "test_dpo_where_the_reference_agrees",
            "test_reference_free_where_the_reference_disagrees",
        )
    },
    71: {
        "methods/test_simpo.py": ("test_single_tokens_without_margin_are_contrastive_cpo",),
        "methods/test_sigmoid_norm.py": ("test_single_tokens_are_dpo",),
        "methods/test_rdpo.py": ("test_no_price_is_dpo", "test_a_longer_winner_is_pushed_less"),
    },
    72: {
        "methods/test_kto.py": ("test_reference_point_has_no_gradient_and_is_not_negative",),
        "methods/test_orpo.py": ("test_finite_where_a_response_is_certain",),
        "test_functional.py": ("test_log1mexp_at_zero_is_finite",),
    },
    73: {"methods/test_dpo.py": ("test_value",), "methods/test_ipo.py": ("test_value_of_the_sum",)},
    74: {"methods/test_exo_pair.py": ("test_at_the_reference",)},
    75: {_CPO: ("test_without_multiplier_it_is_dpo",)},
    76: {_CPO: ("test_hard_without_multiplier_is_hypo", "test_hard_loss_below_log_2_certifies_the_margin")},
    77: {_CPO: ("test_gradient", "test_margin_is_detached_and_raises_the_loss")},
    78: {_CPO: ("test_at_the_reference", "test_swapping_the_label")},
    79: {_CPO: ("test_two_responses_population_minimiser",)},
    80: {_CPO: ("test_the_exact_margin_is_the_stationarity_condition_of_the_penalty",)},
    81: {
        _CPO: (
            "test_the_multiplier_that_ranks_the_pair_correctly",
            "test_above_a_ceiling_the_penalty_has_no_maximum",
        )
    },
    82: {_CPO: ("test_soft_margin_view",)},
    83: {_CPO: ("test_soft_margin_view",)},
    84: {_CPO: ("test_witness_of_the_undesirable_set",)},
    85: {_CPO: ("test_very_unlikely_sequences",)},
    86: {_LIPO: ("test_two_responses",)},
    87: {_LIPO: ("test_three_responses",)},
    88: {_LIPO: ("test_unit_weights_are_pair_logistic", "test_equal_labels_say_nothing")},
    89: {
        _LIPO: (
            "test_order_of_the_list_is_immaterial",
            "test_a_shift_of_a_prompt",
            "test_weights_carry_no_gradient",
        )
    },
    90: {_LIPO: ("test_two_responses_are_dpo", "test_two_responses_are_hinge")},
    91: {_LIPO: ("test_labels_from_ranks",)},
    92: {_LIPO: ("test_padding_changes_nothing",)},
    93: {_LIPO: ("test_gradient_inside_one_ordering", "test_jump_where_two_scores_cross")},
    94: {
        _SPO: (
            "test_the_mean_win_rate_of_a_group_is_one_half",
            "test_the_advantage_against_a_leave_one_out_baseline",
            "test_pair_form",
        )
    },
    95: {_SPO: ("test_an_unfrozen_opponent_gives_no_gradient",)},
    96: {
        _SPO: (
            "test_the_mean_win_rate_of_a_group_is_one_half",
            "test_the_advantage_against_a_leave_one_out_baseline",
        )
    },
    97: {_UPDATES: ("test_hedge_averages_to_the_minimax_winner",), _SPO: ("test_natural_steps_are_hedge",)},
    98: {_UPDATES: ("test_hedge_finds_a_condorcet_winner",)},
    99: {_SPO: ("test_the_sampled_gradient_is_unbiased",)},
    100: {
        "methods/test_maxmin.py": ("test_one_group_is_the_base_method",),
        "test_welfare.py": ("test_one_oracle_is_itself",),
    },
    102: {
        "test_welfare.py": ("test_the_minimum_is_concave_and_lipschitz", "test_sample_min_is_below_group_argmin"),
    },
    103: {
        "methods/test_maxmin.py": ("test_two_arms_in_conflict",),
        _PANEL: ("test_two_arm_conflict", "test_the_mean_follows_the_majority_and_maxmin_does_not"),
    },
    104: {
        "methods/test_maxmin.py": (
            "test_a_constant_on_one_reward_changes_the_answer",
            "test_calibrated_rewards_forget_the_constant",
        )
    },
    105: {
        "test_welfare.py": (
            "test_ces_rises_with_rho",
            "test_nash_is_the_limit_and_below_the_mean",
            "test_ces_bound_and_published_excess",
            "test_ces_lies_between_the_minimum_and_its_bound",
        )
    },
    106: {
        "test_welfare.py": (
            "test_nash_is_below_the_mean_unless_all_are_equal",
            "test_one_hot_weights_pick_one_utility",
            "test_a_zero_utility_has_a_finite_gradient",
        )
    },
    110: {"text/test_keystone.py": ("test_the_language_model_walks_with_the_matrix",)},
    111: {
        "text/test_trainer.py": ("test_accumulation_equals_the_large_batch",),
        "distributed/test_recipes.py": ("test_two_processes_equal_one",),
    },
    112: {_CONTRACT: ("test_no_negated_loss_survives", "test_no_flipped_sign_survives")},
}

NOT_APPLICABLE = {
    101: "expectation maximisation over annotators belongs to reward-model training, which is not in this release",
    107: "hypervolume weighting (2509.11452) is not in this release",
    108: "advantages are never divided by their standard deviation here",
    109: "gradient-alignment weighting (2509.11452) is not in this release",
}

# Parts of an indexed invariant that nothing can show yet.
PARTLY = {
    98: "the queue of earlier trajectories belongs to SPO's control variant, which is not in this release",
    104: "this release has no reward models, so the test writes the calibration out instead of calling ours",
}

# The contract is about every method at once; its docstrings say what is true, not the number.
WITHOUT_NUMBER = {112}


@cache
def _functions(path: str) -> dict[str, str]:
    """The tests of a file and their docstrings."""
    tree = ast.parse((TESTS / path).read_text())
    found = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))
    return {node.name: ast.get_docstring(node) or "" for node in found}


def _numbers(docstring: str) -> set[int]:
    """What a docstring says it shows: "Invariants 33 to 35", "invariants 82, 83 and 90", "[49, 50]", "[3, FP]"."""
    numbers: set[int] = set()
    for listed in re.findall(r"(?:[Ii]nvariants? |^\[)(\d+(?:(?:, | and | to )\d+)*)", docstring):
        numbers |= {int(number) for number in re.findall(r"\d+", listed)}
        for low, high in re.findall(r"(\d+) to (\d+)", listed):
            numbers |= set(range(int(low), int(high) + 1))
    return numbers


def test_every_invariant_is_a_test_or_is_excused() -> None:
    """Numbers 1 to 112, each exactly once; every excuse is a sentence."""
    assert sorted([*WHERE, *NOT_APPLICABLE]) == list(range(1, 113))
    assert set(PARTLY) <= set(WHERE)
    assert all(len(reason) > 30 for reason in [*NOT_APPLICABLE.values(), *PARTLY.values()])


@pytest.mark.parametrize("number", WHERE)
def test_the_index_is_true(number: int) -> None:
    """Every test that the index names exists, and its docstring names the number."""
    assert WHERE[number]
    for path, names in WHERE[number].items():
        assert names, path
        for name in names:
            assert name in _functions(path), f"invariant {number}: no {path}::{name}"
            said = _numbers(_functions(path)[name])
            assert number in said or number in WITHOUT_NUMBER, f"{path}::{name} names {sorted(said)}, not {number}"


def test_docstrings_are_read_as_meant() -> None:
    """The reader itself: lists, ranges, brackets; no number that is only near the word."""
    assert _numbers("Invariants 33 to 35: tau = 0") == {33, 34, 35}
    assert _numbers("Theorem, invariants 82, 83 and 90.") == {82, 83, 90}
    assert _numbers("[49, 50] eta = 2") == {49, 50} and _numbers("[3, FP] pi = 4") == {3}
    assert _numbers("Invariant 45, tau 0.01, 50 games") == {45} and _numbers("A list [1, 2] of 3") == set()
