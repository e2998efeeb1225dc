"""The shipped recipes on the real files, cut short: what is read, and what the run says."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.config.fitting import load_reward_recipe, load_sft_recipe
from alignment.fitting import reward, sft

FindData = Callable[[str], Path]


@pytest.fixture
def folder(real_data: FindData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Overrides that bound the time; the files are found, or the test is skipped."""
    for name in ("hh_harmless_base_test", "pandalm_testset_v1"):
        path = real_data(f"preferences/{name}.jsonl.gz")
    monkeypatch.setenv("ALIGNMENT_REAL_DATA", str(path.parent.parent))
    return [f"output_dir={tmp_path}", "training.max_steps=10", "training.disable_tqdm=true"]


@pytest.mark.slow
def test_demonstrations_of_hh(folder: list[str]) -> None:
    result = sft.run(load_sft_recipe("recipes/sft/tiny_hh.yaml", folder).recipe)
    loss = "loss, nats a token"
    assert result.after[loss] < result.before[loss] - 0.5


@pytest.mark.slow
def test_rewards_of_hh(folder: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """2,303 usable pairs, those with a prompt over the limit left out on both sides of the split."""
    result = reward.run(load_reward_recipe("recipes/reward/tiny_hh.yaml", folder).recipe)
    said = capsys.readouterr().err
    assert "2,303 rows (hh)" in said and "training: 1,764 pairs" in said and "held-out: 196 pairs" in said
    assert 0.0 < result.after["accuracy"] < 1.0


@pytest.mark.slow
def test_pandalm_on_text_has_nothing_to_separate(folder: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Ties are left out, counted and said; three annotators are not groups."""
    result = reward.run(load_reward_recipe("recipes/reward/tiny_pandalm_mixture.yaml", folder).recipe)
    summary = json.loads((result.folder / "summary.json").read_text())
    assert not summary["is_separable"] and summary["use"] == ["single"]
    assert set(summary["assignment"]) == {"annotator1", "annotator2", "annotator3"}
    said = capsys.readouterr().err
    assert "nothing to separate" in said and "training: 2,011 pairs; left out" in said and "tied" in said
