"""Checkpoints: what is added to those of transformers, which one is whole, and what can continue it."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from alignment.errors import UserError

STATE_FILE = "alignment_state.pt"
"""What a run continues besides weights, optimizer and random numbers. Written last and renamed into place: a checkpoint
that has it is whole."""


def last_checkpoint(folder: str | Path, *, written_last: str = STATE_FILE) -> Path:
    """The last whole checkpoint of a run; one that was being written when the run was killed is passed over.

    Args:
        folder: of the run.
        written_last: the file that makes a checkpoint whole.

    Raises:
        UserError: if there is none.
    """
    whole = [path.parent for path in Path(folder).glob(f"checkpoint-*/{written_last}")]
    if not whole:
        raise UserError(f"expected a whole checkpoint to resume from in {folder}, found none")
    return max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def find_checkpoint(asked: str | None, folder: Path, *, written_last: str = STATE_FILE) -> Path | None:
    """Where to resume, as ``training.resume_from_checkpoint`` says it: ``last`` is :func:`last_checkpoint`."""
    if asked is None:
        return None
    return last_checkpoint(folder, written_last=written_last) if asked == "last" else Path(asked)


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Make a checkpoint whole; every process has written its part."""
    partial = folder / f"{STATE_FILE}.partial"
    torch.save(dict(state), partial)
    partial.rename(folder / STATE_FILE)


def load_state(folder: str | Path) -> dict[str, Any]:
    """What :func:`save_state` wrote, on the CPU: values are copied to where they belong.

    Raises:
        UserError: if the checkpoint is not whole.
    """
    file = Path(folder) / STATE_FILE
    if not file.exists():
        raise UserError(f"resume_from_checkpoint: expected a whole checkpoint, found no {file}")
    return dict(torch.load(file, map_location="cpu"))


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

    @property
    def is_zero(self) -> bool:
        """Whether DeepSpeed wrote the optimizer's state, a part by each process."""
        return self.sharding is not None and self.sharding.startswith("ZeRO")

    def check_continued_by(self, launch: "Division") -> None:
        """Refuse other batches, and another way to divide the optimizer's state.

        Raises:
            UserError: for a launch that cannot continue a checkpoint of this one.
        """
        if self.num_prompts != launch.num_prompts:
            raise UserError(
                f"resume_from_checkpoint: expected an effective batch of {self.num_prompts} prompts, as before on "
                f"{self.num_processes} process(es), found {launch.num_prompts} on {launch.num_processes}; change "
                "per_device_train_batch_size or gradient_accumulation_steps"
            )
        if self.sharding != launch.sharding:
            raise UserError(
                "resume_from_checkpoint: expected the launch that divided the optimizer's state, "
                f"{self.sharding or 'whole'} on {self.num_processes} process(es), found {launch.sharding or 'whole'} "
                f"on {launch.num_processes}"
            )


# What ZeRO left in parts, for another number of processes -------------------------------------------------------------

_JOINED = "_universal"


def join_parts(checkpoint: Path, num_parts: int) -> None:
    """Write weights and moments that ZeRO left in parts once more, by parameter: DeepSpeed's universal format.

    All processes call it, and one writes, as much again as the parts are; :func:`settle_joined` removes it.

    Raises:
        UserError: if parts are missing, or the optimizer is not of Adam's kind: DeepSpeed joins no other state.
    """
    state = PartialState()
    with state.main_process_first():
        if state.is_main_process:
            _remove_joined(checkpoint)
            (step,) = checkpoint.glob("global_step*")
            _write_joined(step, num_parts)


def _write_joined(step: Path, num_parts: int) -> None:
    num_found = len(list(step.glob("*_optim_states.pt")))
    if num_found != num_parts:
        raise UserError(
            f"resume_from_checkpoint: expected the parts of {num_parts} processes in {step}, found {num_found}"
        )
    tool = (sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state")
    folders = ("--input_folder", str(step), "--output_folder", f"{step}{_JOINED}")
    done = subprocess.run([*tool, *folders], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise UserError(
            f"resume_from_checkpoint: expected a state of Adam's kind in {step}, which DeepSpeed can join for another "
            f"number of processes; it said: {done.stderr.strip().splitlines()[-1]}"
        )


def settle_joined(engine: Any, checkpoint: Path) -> None:
    """Mend what DeepSpeed makes of the optimizer when it loads what :func:`join_parts` wrote, and remove that.

    At stage 3 it leaves all groups of weights one count of steps, which each of them would advance, and the settings
    of the first group, its weight decay among them. A later load is of parts again.

    Args:
        engine: of DeepSpeed, that has loaded the checkpoint.
        checkpoint: its folder.
    """
    engine._config.load_universal_checkpoint = False
    if engine.zero_optimization_stage() == 3:
        (file,) = checkpoint.glob(f"global_step*{_JOINED}/zero/optimizer_state.pt")
        saved = torch.load(file, map_location="cpu", mmap=True, weights_only=False)["optimizer_state_dict"]
        optimizer = engine.optimizer.optimizer
        for state in optimizer.state.values():
            state["step"] = deepcopy(state["step"])
        for group, settings in zip(optimizer.param_groups, saved["param_groups"], strict=True):
            group.update({key: value for key, value in settings.items() if key != "params"})
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        _remove_joined(checkpoint)


def _remove_joined(checkpoint: Path) -> None:
    for folder in checkpoint.glob(f"global_step*{_JOINED}"):
        shutil.rmtree(folder)
    (checkpoint / "latest_universal").unlink(missing_ok=True)
