"""Errors that a user can cause: one line that says what was expected, what was found, and what to do."""


class UserError(ValueError):
    """A mistake in a recipe, a data file or a call. The commands print its text alone and exit with code 2."""


class MissingAnchorError(UserError):
    """A loss asked for the log-probs of a policy that nobody supplied."""


class MissingFeedbackError(UserError):
    """A loss asked for a kind of feedback that the oracle or the data did not give."""


class BudgetError(UserError):
    """The next question to an oracle would cost more than its budget leaves. What was paid for is in the ledger."""
