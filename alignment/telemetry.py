"""TRL's trainers report to Hugging Face when they are built. Here they do not, unless the user asks for it."""

import os
import sys

_SWITCH = "HF_HUB_DISABLE_TELEMETRY"


def silence_telemetry() -> None:
    """Switch the reports off where the environment does not decide; ``HF_HUB_DISABLE_TELEMETRY=0`` keeps them on.

    huggingface_hub reads the variable once, when it is imported: where that has happened, its constant is set too.
    """
    if _SWITCH in os.environ:
        return
    os.environ[_SWITCH] = "1"
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        vars(constants)[_SWITCH] = True
