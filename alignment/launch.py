"""What a launch can do, decided before anything is loaded: DeepSpeed's tools, and methods that it cannot step."""

import importlib.util
import os
import shutil
from collections.abc import Mapping
from typing import Any

from alignment.errors import UserError
from alignment.types import Needs


def uses_deepspeed(training: Mapping[str, Any]) -> bool:
    """Whether the launcher, or the ``training.deepspeed`` key of a recipe, asks for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true" or training.get("deepspeed") is not None


def check_deepspeed(needs: Needs, *, on_cpu: bool) -> None:
    """Refuse what DeepSpeed would fail at late, or do wrongly.

    Args:
        needs: of the method.
        on_cpu: whether processes talk through the kernel that DeepSpeed compiles for CPUs.

    Raises:
        UserError: if DeepSpeed or what it compiles with is missing, or the method has two stages. Extragradient takes
            its second gradient where the iteration started; ZeRO keeps the weights that it steps apart from those of
            the forward, and returning the ones does not return the others.
    """
    if needs.stages > 1:
        raise UserError(
            f"the method has {needs.stages} stages an iteration: expected a launch without DeepSpeed (DDP or one "
            "process), whose weights can be returned to the start of the iteration"
        )
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("the launch asks for DeepSpeed: expected the extra `deepspeed`, found none; install it")
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None] if on_cpu else []
    if missing:
        raise UserError(
            f"DeepSpeed on a CPU compiles its communication at first use: expected g++ and ninja, found no "
            f"{' and no '.join(missing)}; install {'them' if len(missing) > 1 else 'it'}"
        )
