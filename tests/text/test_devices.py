"""Whole steps and evaluations on a device that refuses tensors which were left on the CPU."""

import json
import subprocess
import sys
from typing import Any

import pytest
from torch.utils import backend_registration

from tests.text.pretended_gpu import METHODS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    if "_setup_privateuseone_for_python_backend" not in vars(backend_registration):
        pytest.skip("this torch takes no backends in Python")
    command = [sys.executable, "-m", "tests.text.pretended_gpu"]
    output = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
    return dict(json.loads(output.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", METHODS)
def test_a_device_of_its_own_gives_the_numbers_of_the_cpu(found: dict[str, Any], name: str) -> None:
    """Two steps, then loss, KL and win rate: to what another kernel of attention rounds otherwise."""
    on = found["metrics"][name]
    assert {"eval_loss", "eval_kl_to_ref"} <= on["cpu"].keys()
    assert on["gpu"] == pytest.approx(on["cpu"], rel=1e-3, abs=1e-4, nan_ok=True)


def test_a_tensor_that_stayed_on_the_cpu_is_refused(found: dict[str, Any]) -> None:
    """One of zeros, planted in a loss."""
    assert found["planted"] == "aten.add.Tensor: expected tensors of one device, found [2] on the CPU"
