"""FSDP2 by itself: a model that accelerate has divided between two processes on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.launches import ROOT


@pytest.mark.distributed
@pytest.mark.timeout(200)
def test_sharded_equals_whole(tmp_path: Path) -> None:
    """Half of the parameters on each process, and yet everything that training does with them as on one.

    Log-probs in chunks, losses and weights of extragradient, weights that are exchanged and put back bit for bit,
    weights as vLLM is given them, and answers of different lengths on the two processes. Frozen models are held in
    halves too, also after a forward. One is of another family, with an embedding that is its head. Log-probs of each, a
    slow target that moves, is saved whole and loads again, and answers by a mixture with the reference, with which one
    process is done before the other, are those of whole models.
    """
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", "localhost:0", "tests/distributed/sharded.py", str(tmp_path / "found")),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    both = [json.loads((tmp_path / f"found.{rank}").read_text()) for rank in (0, 1)]
    assert both[0].pop("longest") < both[1].pop("longest")
    for found in both:
        assert found.pop("is_divided") and found.pop("share") == pytest.approx(0.5, abs=0.01)
        assert found.pop("frozen_shares") == pytest.approx([0.5] * 6, abs=0.01)
        assert found.pop("is_put_back") and found.pop("answers") and found.pop("mixed_answers")
        assert found.pop("moved") > 0.1
        # Log-probs are of the size of 50, weights of 0.1: rounding.
        assert max(found.pop(name) for name in ("logps_at_start", "anchors", "target_at_start")) < 1e-4
        assert max(found.values()) < 1e-6
