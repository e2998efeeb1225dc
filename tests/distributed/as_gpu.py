"""Runs a script on a CPU as if its processes had a GPU each, so that FSDP2 divides models.

    accelerate launch --config_file recipes/accelerate/fsdp2.yaml ... tests/distributed/as_gpu.py SCRIPT ARGUMENT...

Where accelerate knows that processes are on a CPU it makes plain copies, which is refused. Nothing else on the way to
FSDP2 needs a GPU.
"""

import os
import runpy
import sys
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType

from alignment import launch

_begin = PartialState.__init__


def _as_gpu(self: PartialState, *args: Any, **options: Any) -> None:
    _begin(self, *args, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


def pretend() -> None:
    """From now on accelerate shards here."""
    # Processes meet through gloo, and tensors stay where they can be.
    os.environ["ACCELERATE_USE_CPU"] = "true"
    PartialState.__init__ = _as_gpu  # type: ignore[method-assign]


if __name__ == "__main__":
    pretend()
    # Before anybody imports it from there.
    launch.check_launch = lambda args: None
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
