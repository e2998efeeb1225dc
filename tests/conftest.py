"""What every test shares: no network, few threads, fixed seeds, and the files of real data where there are any."""

import os
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# Before anything imports torch or a Hugging Face library: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
# torch takes its number of threads from here, so it need not be imported to be told. Tiny models get slower with more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# derandomize: the same examples on every run and machine. No deadline: a first call pays for imports and compilation.
hypothesis.settings.register_profile("default", deadline=None, max_examples=25, derandomize=True, database=None)
hypothesis.settings.load_profile("default")

ORIGINS = {
    "alpaca_eval": "the public results of tatsu-lab/alpaca_eval",
    "preferences/alpaca_eval": "tatsu-lab/alpaca_eval, the judged outputs",
    "preferences/arena_hard": "lmarena/arena-hard-auto",
    "preferences/hh_harmless": "anthropics/hh-rlhf, harmless-base/test",
    "preferences/llmbar": "princeton-nlp/LLMBar",
    "preferences/pandalm": "WeOpenML/PandaLM, testset-v1",
    "prompts/prompts_alpaca_eval": "tatsu-lab/alpaca_eval",
    "prompts/prompts_arena_hard": "lmarena/arena-hard-auto, version 0.1",
    "prompts/prompts_mt_bench": "lm-sys/FastChat, MT-bench",
}


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests store is theirs; a test of a cache sets a folder of its own."""
    os.environ["ALIGNMENT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["ALIGNMENT_CACHE"]


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Find a file of real data by its path below ``ALIGNMENT_REAL_DATA``, or skip the test."""

    def find(relative: str) -> Path:
        folder = os.environ.get("ALIGNMENT_REAL_DATA")
        if folder and Path(folder, relative).exists():
            return Path(folder, relative)
        origin = next((text for prefix, text in ORIGINS.items() if relative.startswith(prefix)), "its publisher")
        where = f"not in ALIGNMENT_REAL_DATA={folder}" if folder else "ALIGNMENT_REAL_DATA is not set"
        pytest.skip(f"needs {relative}: {where}. Get it from {origin} and put it there under this name")

    return find


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order files by the longest limit of a test, then by their tests, so that no long file is left for the end.

    Last of these hooks: what was deselected counts for nothing.
    """
    limits: dict[Path, list[float]] = defaultdict(list)
    for item in items:
        marker = item.get_closest_marker("timeout")
        limits[item.path].append(float(marker.args[0] if marker else config.getini("timeout")))
    items.sort(key=lambda item: (-max(limits[item.path]), -len(limits[item.path])))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs an accelerator where there is none, and start each test from the same seeds.

    A hook, not an autouse fixture: it reaches doctests too.
    """
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU, and torch finds none")
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
