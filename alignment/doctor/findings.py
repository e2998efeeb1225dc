"""What a check of a recipe says."""

from dataclasses import dataclass
from typing import Any, Literal

from alignment.errors import UserError

Verdict = Literal["ok", "note", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: ``ok``, ``note`` (look at it) or ``fail`` (do not train), and a sentence."""

    check: str
    verdict: Verdict
    text: str


class EndOfExamination(Exception):  # noqa: N818
    """Carries the finding after which nothing can be looked at."""

    def __init__(self, finding: Finding) -> None:
        self.finding = finding


def attempt(check: str, action: Any) -> Any:
    """What the action gives; a mistake of the user's in it ends the examination."""
    try:
        return action()
    except (UserError, FileNotFoundError) as error:
        raise EndOfExamination(Finding(check, "fail", str(error))) from None
