"""Checkpoints: what is added to those of transformers, which one is whole, and what can continue it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Make a checkpoint whole; every process has written its part."""
    partial = folder / f"{STATE_FILE}.partial"
    torch.save(dict(state), partial)
    partial.rename(folder / STATE_FILE)


def load_state(folder: str | Path, device: torch.device) -> dict[str, Any]:
    """What :func:`save_state` wrote.

    Raises:
        UserError: if the checkpoint is not whole.
    """
    file = Path(folder) / STATE_FILE
    if not file.exists():
        raise UserError(f"resume_from_checkpoint: expected a whole checkpoint, found no {file}")
    return dict(torch.load(file, map_location=device))


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """How a launch divides a step, and the optimizer's state.

    Attributes:
        num_processes: of the launch.
        num_prompts: of an optimizer step, of all processes.
        sharding: engine and stage; ``None`` where each process has the whole.
    """

    num_processes: int
    num_prompts: int
    sharding: str | None

    def check_continued_by(self, launch: "Division") -> None:
        """Refuse other batches, and a state that was divided otherwise; ZeRO's is of as many processes.

        Raises:
            UserError: for a launch that cannot continue a checkpoint of this one.
        """
        if self.num_prompts != launch.num_prompts:
            raise UserError(
                f"resume_from_checkpoint: expected an effective batch of {self.num_prompts} prompts, as before on "
                f"{self.num_processes} process(es), found {launch.num_prompts} on {launch.num_processes}; change "
                "per_device_train_batch_size or gradient_accumulation_steps"
            )
        is_bound = self.sharding is not None and self.sharding.startswith("ZeRO")
        if self.sharding != launch.sharding or (is_bound and self.num_processes != launch.num_processes):
            raise UserError(
                "resume_from_checkpoint: expected the launch that divided the optimizer's state, "
                f"{self.sharding or 'whole'} on {self.num_processes} process(es), found {launch.sharding or 'whole'} "
                f"on {launch.num_processes}"
            )
