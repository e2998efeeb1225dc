"""``alignment export``: what it writes loads with plain transformers and says what the run's model says."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from alignment.cli import main
from alignment.export import export
from alignment.tiny import tiny_model, tiny_reward_model, tiny_tokenizer
from alignment.trained import find_model
from tests.runs import small_run

IDS = torch.arange(40).reshape(2, 20) + 10


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A whole model with a checkpoint at its first step, and an adapter."""
    folder = tmp_path_factory.mktemp("export")
    saves = ("training.save_strategy=steps", "training.save_steps=1")
    return {
        "whole": small_run(folder / "whole", *saves),
        "adapter": small_run(folder / "adapter", "policy.lora={rank: 2, alpha: 32}"),
    }


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model.eval()(IDS).logits.float()


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line of a mistake."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert stopped.value.code == 2 and len(errors) == 1
    return errors[0]


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_the_export_says_what_the_run_says(kind: str, runs: Mapping[str, Path], tmp_path: Path) -> None:
    """Logits of the folder equal those of the run's model; tokenizer, settings and card are there."""
    expected = logits(find_model(str(runs[kind])).load())
    start = logits(find_model(str(runs[kind])).load_reference())
    assert (expected - start).abs().max() > 1e-2, "training moved nothing that the export could lose"
    export(find_model(str(runs[kind])), tmp_path / "out")
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not list((tmp_path / "out").glob("adapter_*")) and not (tmp_path / "out.partial").exists()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template and GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [
        tokenizer.eos_token_id
    ]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "beta: 0.1" in card and "| margin | 0.0000 |" in card


def test_the_run_says_what_peft_says(runs: Mapping[str, Path]) -> None:
    """The base of a tiny run has no name on disk; built again from its seed it is the one that was trained."""
    trained = find_model(str(runs["adapter"]))
    base = tiny_model(trained.tokenizer, hidden_size=16, num_layers=1, num_heads=2, seed=0)
    expected = logits(PeftModel.from_pretrained(base, runs["adapter"] / "final"))
    torch.testing.assert_close(logits(trained.load()), expected, rtol=0, atol=0)


def test_a_checkpoint_and_a_precision(runs: Mapping[str, Path], tmp_path: Path) -> None:
    first = find_model(str(runs["whole"]), checkpoint=1)
    export(first, tmp_path / "one", dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one", dtype="auto")
    assert model.dtype == torch.bfloat16
    expected = AutoModelForCausalLM.from_pretrained(runs["whole"] / "checkpoint-1", dtype=torch.bfloat16)
    torch.testing.assert_close(logits(model), logits(expected), rtol=0, atol=0)
    assert (logits(find_model(str(runs["whole"])).load()) - logits(first.load())).abs().max() > 1e-3
    # What was measured at the end is not said of an earlier model.
    assert "| margin |" not in (tmp_path / "one" / "README.md").read_text()


def test_a_folder_with_something_in_it_is_kept(
    runs: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --force nothing is touched; with it only what would be loaded in place of the new weights goes."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model-00001-of-00002.safetensors").write_text("stale")
    assert "is not empty" in fails(capsys, "export", runs["whole"], tmp_path)
    assert (tmp_path / "model-00001-of-00002.safetensors").exists()
    export(find_model(str(runs["whole"])), tmp_path, force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]


def test_a_model_is_not_exported_over_itself(
    runs: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(runs["whole"], copy)
    for destination in (copy, copy / "final"):
        assert "apart from the model's own" in fails(capsys, "export", copy, destination, "--force")
    assert (copy / "final" / "model.safetensors").exists()


def test_mistakes_are_one_line(runs: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    assert "found no './nowhere'" in fails(capsys, "export", "./nowhere", out)
    assert "expected a language model" in fails(capsys, "export", tmp_path / "empty", out)
    assert "there are: 1, 2" in fails(capsys, "export", runs["whole"], out, "--checkpoint", "7")
    assert "expected one of float32, bfloat16, float16" in fails(
        capsys, "export", runs["whole"], out, "--dtype", "int8"
    )
    assert not out.exists()


def test_a_run_that_was_cut_names_its_checkpoints(
    runs: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "run"
    shutil.copytree(runs["whole"], cut, ignore=shutil.ignore_patterns("final"))
    assert "its checkpoints: 1, 2" in fails(capsys, "export", cut, tmp_path / "out")


def test_a_classifier_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would load, with a language model's head of random weights."""
    tokenizer = tiny_tokenizer(["a b c"], vocab_size=280)
    tiny_reward_model(tokenizer, hidden_size=16, num_layers=1, num_heads=2).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    assert "found a LlamaForSequenceClassification" in fails(capsys, "export", tmp_path / "reward", tmp_path / "out")


def test_an_adapter_without_a_recipe_needs_the_name_of_its_base(
    runs: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plain PEFT folder: refused while it names no base, exported once it does."""
    alone, base = tmp_path / "alone", tmp_path / "base"
    shutil.copytree(runs["adapter"] / "final", alone)
    assert "expected an adapter that names its base model" in fails(capsys, "export", alone, tmp_path / "out")
    trained = find_model(str(runs["adapter"]))
    trained.load_reference().save_pretrained(base)
    config = json.loads((alone / "adapter_config.json").read_text())
    (alone / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    export(find_model(str(alone)), tmp_path / "out")
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    torch.testing.assert_close(found, logits(trained.load()), rtol=0, atol=1e-5)


def test_a_quantised_base_is_refused(
    runs: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What only a GPU can load stands in: a base model whose configuration says that its weights are quantised."""
    from alignment import trained

    def quantised(*arguments: object, **options: object) -> PreTrainedModel:
        base = tiny_model(find_model(str(runs["adapter"])).tokenizer, hidden_size=16, num_layers=1, num_heads=2)
        base.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        return base

    monkeypatch.setattr(trained, "load_policy", quantised)
    assert "whose weights are not quantised" in fails(capsys, "export", runs["adapter"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
