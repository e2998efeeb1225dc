"""What the pages in docs/ show is read and run as it stands there."""

import re
from pathlib import Path
from typing import Any

import pytest

from alignment.config import SamplingSpec
from alignment.config.parsing import parse_text
from alignment.methods import build_method
from alignment.oracles import check_oracle
from alignment.oracles.build import KINDS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def blocks(language: str) -> list[Any]:
    found = [
        (page, text) for page in PAGES for text in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    return [
        # The text game supervises its model first, which takes half a minute where it is not cached.
        pytest.param(text, id=f"{page.stem}-{n}", marks=[pytest.mark.slow] if "TextGame.build" in text else [])
        for n, (page, text) in enumerate(found)
    ]


@pytest.mark.parametrize("text", blocks("yaml"))
def test_recipe_blocks_are_sound(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a part of a recipe; the files that it names are there."""
    (tmp_path / "my_prompt.txt").write_text("{prompt} {left} {right}")
    monkeypatch.chdir(tmp_path)
    tree = parse_text(text, "docs")
    if "oracle" in tree:
        check_oracle(tree["oracle"])
    if "method" in tree:
        build_method(tree["method"])
    if "sampling" in tree:
        SamplingSpec.model_validate(tree["sampling"])
    assert {"oracle", "method", "sampling"} & tree.keys(), "a block that nothing here checks"


@pytest.mark.parametrize("text", blocks("python"))
def test_python_blocks_run(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "docs", "exec"), {})


def test_every_key_of_a_judge_is_explained() -> None:
    """And every kind, and no other."""
    page = (ROOT / "docs" / "oracles.md").read_text()
    said = set(re.findall(r"`(\w+)`", page)) | set(re.findall(r"^  (\w+):", page, re.MULTILINE))
    missing = [key for key in (*KINDS, *KINDS["judge"].model_fields) if key not in said]
    assert not missing
