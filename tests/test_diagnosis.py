"""Each known failure is seen where it is planted, and a sound run shows none."""

import re

import pytest

from alignment.diagnosis import known_failures

BEFORE = {
    "accuracy": 0.5,
    "accuracy_absolute": 0.7,
    "accuracy_of_shorter": 0.5,
    "margin": 0.0,
    "chosen_logps": -100.0,
    "rejected_logps": -100.0,
    "undesirable": 0.0,
}
SOUND = {
    "accuracy": 0.7,
    "accuracy_of_shorter": 0.65,
    "margin": 3.0,
    "chosen_logps": -99.0,
    "rejected_logps": -102.0,
    "undesirable": 0.005,
    "target_attainment": 0.6,
}


def test_a_sound_run_shows_none() -> None:
    assert known_failures(BEFORE, SOUND) == ()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"margin": 0.001}, "nothing moved"),
        ({"chosen_logps": -103.0, "rejected_logps": -106.0}, "both log-probabilities fell: chosen by 3.0 nats"),
        ({"target_attainment": 0.02}, "out of reach: .* reach 2.0% of it"),
        ({"accuracy_of_shorter": 0.45}, "length explains the gain"),
        ({"target_attainment": -0.2}, "moved away from the regression target, to -20.0% of it"),
        (
            {"win_rate_vs_ref": 0.42, "win_rate_vs_ref_low": 0.36, "win_rate_vs_ref_high": 0.48},
            "loses to its reference: its win rate is 0.420, at most 0.480",
        ),
        (
            {"undesirable": 0.2},
            "in 20.0% of the held-out pairs the loss fell although .* ranks 30.0% of all pairs wrongly",
        ),
    ],
)
def test_each_failure_is_seen_alone(changes: dict[str, float], expected: str) -> None:
    (text,) = known_failures(BEFORE, SOUND | changes)
    assert re.search(expected, text)


@pytest.mark.parametrize(
    "changes",
    [
        {"accuracy_of_shorter": float("nan")},
        {"chosen_logps": -100.05, "rejected_logps": -103.0},
        # Half of what the reference ranks wrongly is right now.
        {"undesirable": 0.14},
        {"win_rate_vs_ref": 0.46, "win_rate_vs_ref_low": 0.4, "win_rate_vs_ref_high": 0.52},
    ],
)
def test_what_is_not_there_or_small_is_not_said(changes: dict[str, float]) -> None:
    assert known_failures(BEFORE, SOUND | changes) == ()


def test_a_rise_of_both_is_no_fall_and_missing_metrics_are_not_looked_for() -> None:
    assert known_failures(BEFORE, SOUND | {"chosen_logps": -90.0, "rejected_logps": -95.0}) == ()
    assert known_failures({"loss": 1.0}, {"loss": 0.9}) == ()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", sorted({*BEFORE, *SOUND}))
def test_a_figure_that_is_no_number_is_not_said(name: str, when: str) -> None:
    """As a run that trains on nothing leaves it; all that the others show is said still."""
    lost = {"win_rate_vs_ref": 0.42, "win_rate_vs_ref_high": 0.48, "undesirable": 0.9, "target_attainment": 0.02}
    before, after = {**BEFORE}, {**SOUND, **lost, "margin": 0.0, "accuracy_of_shorter": 0.4}
    every = known_failures(before, after)
    (before if when == "before" else after)[name] = float("nan")
    said = known_failures(before, after)
    assert set(said) <= set(every) and not any("nan" in text for text in said)
