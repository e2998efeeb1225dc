"""The launcher's configuration, a file of ``accelerate config``: who holds which part of a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignment.config.compose import recipes_folder, shipped_file
from alignment.config.parsing import read_mapping
from alignment.errors import UserError

Sharding = Literal["none", "ddp", "zero1", "zero2", "zero3", "fsdp2"]
# MULTI_CPU too: it starts one process.
_ALONE = ("NO", "MULTI_CPU")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Processes, and what they share.

    Attributes:
        processes: N, a device each.
        sharding: ``ddp`` shares nothing; ZeRO-1 the optimizer's state, ZeRO-2 also gradients, ZeRO-3 and FSDP2 also
            weights.
        is_mixed: whether the launcher asks for bf16 or fp16.
        reshards: of FSDP2: whether a layer's weights go back after its forward pass.
    """

    processes: int = 1
    sharding: Sharding = "none"
    is_mixed: bool = False
    reshards: bool = True

    @property
    def is_zero(self) -> bool:
        """Whether DeepSpeed partitions something."""
        return self.sharding in ("zero1", "zero2", "zero3")

    @property
    def shares_weights(self) -> bool:
        """Whether a process holds a part of the weights."""
        return self.sharding in ("zero3", "fsdp2")

    def describe(self) -> str:
        """A line's part.

        Example:
            >>> Launch(processes=8, sharding="zero3").describe()
            '8 processes, zero3'
        """
        return "1 process" if self.processes == 1 else f"{self.processes} processes, {self.sharding}"


def find_launcher(path: str | Path) -> Path:
    """A launcher's configuration: the file, or a shipped one of that name.

    Raises:
        UserError: if there is neither.
    """
    given = Path(path)
    found = given if given.is_file() else shipped_file(given)
    if found is None:
        shipped = sorted(file.name for file in (recipes_folder() / "accelerate").glob("*.yaml"))
        raise UserError(
            f"expected a file of `accelerate config`, found no file '{given}'; recipes/accelerate has "
            f"{', '.join(shipped)}"
        )
    return found


def read_launch(path: str | Path | None, processes: int | None) -> Launch:
    """What ``accelerate launch --config_file PATH --num_processes N`` starts.

    Args:
        path: the file, or a shipped one by its name; ``None`` for none.
        processes: in place of the file's number; ``None`` for that.

    Raises:
        UserError: for a file that is missing, or asks for what this package does not know how to share.
    """
    if path is None:
        number = processes or 1
        return Launch(processes=number, sharding="none" if number == 1 else "ddp")
    tree = read_mapping(find_launcher(path))
    if "distributed_type" not in tree:
        raise UserError(f"{path}: expected a file of `accelerate config`, found no distributed_type in it")
    kind, number = tree["distributed_type"], processes or tree.get("num_processes", 1)
    if not isinstance(number, int) or number < 1:
        raise UserError(f"{path}: expected num_processes of at least 1, got {number!r}")
    sharding, reshards = _sharding(path, kind, tree)
    if sharding == "none" and number > 1:
        raise UserError(
            f"{path}: distributed_type {kind} starts one process: expected MULTI_GPU, DEEPSPEED or FSDP for {number}"
        )
    # DDP of one is none; DeepSpeed keeps copies of its own nevertheless.
    return Launch(
        processes=number,
        sharding="none" if number == 1 and sharding == "ddp" else sharding,
        is_mixed=tree.get("mixed_precision", "no") in ("bf16", "fp16"),
        reshards=reshards,
    )


def _sharding(path: str | Path, kind: Any, tree: Mapping[str, Any]) -> tuple[Sharding, bool]:
    if kind in _ALONE:
        return "none", True
    if kind == "MULTI_GPU":
        return "ddp", True
    if kind == "DEEPSPEED":
        block = tree.get("deepspeed_config") or {}
        stages: dict[Any, Sharding] = {1: "zero1", 2: "zero2", 3: "zero3"}
        _refuse_offload(path, {key: block.get(key, "none") for key in _OFFLOADS})
        if block.get("zero_stage") not in stages:
            raise UserError(
                f"{path}: expected deepspeed_config.zero_stage of 1, 2 or 3, got {block.get('zero_stage')!r}"
            )
        return stages[block["zero_stage"]], True
    if kind == "FSDP":
        block = tree.get("fsdp_config") or {}
        _refuse_offload(path, {"fsdp_offload_params": block.get("fsdp_offload_params", False)})
        if block.get("fsdp_version") != 2:
            raise UserError(f"{path}: expected fsdp_config.fsdp_version 2, got {block.get('fsdp_version')!r}")
        return "fsdp2", bool(block.get("fsdp_reshard_after_forward", True))
    raise UserError(f"{path}: expected distributed_type NO, MULTI_GPU, DEEPSPEED or FSDP, got {kind!r}")


_OFFLOADS = ("offload_optimizer_device", "offload_param_device")


def _refuse_offload(path: str | Path, asked: Mapping[str, Any]) -> None:
    for key, value in asked.items():
        if value not in ("none", False):
            raise UserError(f"{path}: expected no offload, got {key}: {value}; memory is planned of devices alone")
