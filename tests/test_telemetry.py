"""TRL's reports to its publisher: off by default, on where the user says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from alignment.telemetry import silence_telemetry
from tests.fitting.data import separable_pairs, write

# Nothing is sent: what would start the sending thread only says that it was asked to.
SCRIPT = """
import sys
from alignment.cli import main
{early}
import alignment.config.fitting as fitting
original = fitting.load_reward_recipe
def load(*arguments):
    # Patched in here, because huggingface_hub must not be imported before the command has begun.
    import huggingface_hub.utils._telemetry as telemetry
    telemetry._start_telemetry_thread = lambda: print("PING")
    return original(*arguments)
fitting.load_reward_recipe = load
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert stop.code in (0, None), stop.code
"""


def test_the_environment_decides_where_it_says_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set before the library is imported, or its constant afterwards; a user's own choice is left alone."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    silence_telemetry()
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "0" and not constants.HF_HUB_DISABLE_TELEMETRY
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY")
    silence_telemetry()
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1" and constants.HF_HUB_DISABLE_TELEMETRY


@pytest.mark.slow
@pytest.mark.parametrize(
    ("switch", "early", "pings"), [(None, "", 0), (None, "import huggingface_hub.constants", 0), ("0", "", 1)]
)
def test_a_run_reports_only_if_asked(switch: str | None, early: str, pings: int, tmp_path: Path) -> None:
    """A whole run with tiny weights; offline mode and CI, which silence the reports as well, are taken away."""
    silent = {
        "HF_HUB_OFFLINE",
        "HF_DATASETS_OFFLINE",
        "CI",
        "HF_HUB_DISABLE_TELEMETRY",
        "DISABLE_TELEMETRY",
        "DO_NOT_TRACK",
    }
    environment = {name: value for name, value in os.environ.items() if name not in silent}
    environment["TRANSFORMERS_OFFLINE"] = "0"
    if switch is not None:
        environment["HF_HUB_DISABLE_TELEMETRY"] = switch
    recipe = write(tmp_path, separable_pairs()[:20])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(early=early), "reward", str(recipe), "training.max_steps=1"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("PING") == pings
