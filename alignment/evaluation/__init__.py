"""How good a policy is: win rates with their intervals."""

from alignment.evaluation.win_rate import Met, ReferenceMatch, WinRate, interval, win_rate

__all__ = ["Met", "ReferenceMatch", "WinRate", "interval", "win_rate"]
