"""Known failures of preference training, read off the held-out metrics at the start and at the end of a run."""

import math
from collections.abc import Mapping

# Shares below one in a hundred are noise on any held-out set that fits into a run.
_SMALL_SHARE = 0.01
_SMALL_MARGIN = 0.01
_FAR_FROM_TARGET = 0.1
_SMALL_FALL = 0.1
_EVEN = 0.5


def known_failures(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[str, ...]:
    """Say in plain sentences which known failures a run shows, and what to change.

    Args:
        before: metrics on the held-out rows at the start: those of ``functional.preference_metrics`` and of the method.
        after: the same at the end.

    Returns:
        One sentence a failure; a failure whose metrics are missing or no number is not looked for.
    """
    # Nothing is known of pairs or steps that were not there: nan.
    before, after = (
        {name: value for name, value in metrics.items() if not math.isnan(value)} for metrics in (before, after)
    )
    checks = (_loses, _nothing_moved, _both_fell, _out_of_reach, _length_explains, _stays_wrong)
    return tuple(text for check in checks if (text := check(before, after)))


def _loses(before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    if "win_rate_vs_ref" not in after or after.get("win_rate_vs_ref_high", _EVEN) >= _EVEN:
        return None
    return (
        f"the policy loses to its reference: its win rate is {after['win_rate_vs_ref']:.3f}, at most "
        f"{after['win_rate_vs_ref_high']:.3f} with 95 % confidence. If the oracle that judges is the one that was "
        "trained on, lower training.learning_rate or raise the KL strength (beta or tau), and read samples.jsonl"
    )


def _nothing_moved(before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    if "margin" not in before or "margin" not in after or abs(after["margin"] - before["margin"]) > _SMALL_MARGIN:
        return None
    return (
        f"nothing moved: the mean margin of held-out pairs changed by {after['margin'] - before['margin']:+.4f} nats; "
        "raise training.learning_rate (ten times, then look again) or train for more steps"
    )


def _both_fell(before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    """The gradient of a loss of margins pushes the rejected response down harder than it holds the chosen one up."""
    if not {"chosen_logps", "rejected_logps"} <= before.keys() & after.keys():
        return None
    chosen, rejected = (after[name] - before[name] for name in ("chosen_logps", "rejected_logps"))
    if not (rejected < chosen < -_SMALL_FALL):
        return None
    return (
        f"both log-probabilities fell: chosen by {-chosen:.1f} nats, rejected by {-rejected:.1f}; the probability went "
        "to responses that nobody compared. A small fall is usual for losses of margins; if the samples got worse, "
        "lower training.learning_rate, raise the KL strength (beta or tau), or take a loss with a log-likelihood term "
        "(`alignment methods` lists them)"
    )


def _out_of_reach(before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    attained = after.get("target_attainment")
    if attained is None or attained >= _FAR_FROM_TARGET:
        return None
    if attained < 0.0:
        return (
            f"held-out differences of log-ratios moved away from the regression target, to {attained:.1%} of it: what "
            "was learned does not carry over; lower training.learning_rate, or train on more data"
        )
    return (
        f"the regression target is out of reach: held-out differences of log-ratios reach {attained:.1%} of it. The "
        "loss acts like a constant push then, whatever tau or eta say: choose them for a nearer target, or train longer"
    )


def _length_explains(before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    if not {"accuracy", "accuracy_of_shorter"} <= before.keys() & after.keys():
        return None
    gain = after["accuracy"] - before["accuracy"]
    of_shorter = after["accuracy_of_shorter"] - before["accuracy_of_shorter"]
    if gain <= _SMALL_SHARE or of_shorter > 0.0:
        return None
    return (
        f"length explains the gain: accuracy rose by {gain:.3f}, but by {of_shorter:+.3f} where the chosen response is "
        "the shorter one; take a loss with a length term or per-token log-probs, or balance the lengths in the data"
    )


def _stays_wrong(before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    if "undesirable" not in after or "accuracy_absolute" not in before:
        return None
    # The set is empty at the start: no loss has fallen yet.
    wrong = 1.0 - before["accuracy_absolute"]
    if after["undesirable"] <= max(_SMALL_SHARE, wrong / 2.0):
        return None
    return (
        f"in {after['undesirable']:.1%} of the held-out pairs the loss fell although the rejected response is still "
        f"the likelier one (the undesirable set of 2605.20834); the reference ranks {wrong:.1%} of all pairs wrongly: "
        "train for more steps, or try constrained preference optimization, whose margin does not depend on it"
    )
