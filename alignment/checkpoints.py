"""Checkpoints: what is added to those of transformers, and which one is whole."""

from pathlib import Path

from alignment.errors import UserError

STATE_FILE = "alignment_state.pt"
"""Slow targets and weights of groups. Written last and renamed into place: a checkpoint that has it is whole."""


def last_checkpoint(folder: str | Path) -> Path:
    """The last whole checkpoint of a run; one that was being written when the run was killed is passed over.

    Raises:
        UserError: if there is none.
    """
    whole = [path.parent for path in Path(folder).glob(f"checkpoint-*/{STATE_FILE}")]
    if not whole:
        raise UserError(f"expected a whole checkpoint to resume from in {folder}, found none")
    return max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")))
