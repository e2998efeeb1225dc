"""The log-prob store: equal to fresh log-probs, computed once, and never read for something else."""

import copy
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier, Lock, current_thread
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast

from alignment.batches import EncodedRows
from alignment.data import Comparison
from alignment.errors import UserError
from alignment.ranks import Ranks
from alignment.store import store_folder, with_stored_anchors
from alignment.tiny import tiny_model
from alignment.trainer import PreferenceTrainer
from tests.text.test_rounds import build, losses, make, rows, tokenizer

__all__ = ["tokenizer"]

LORA = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
METHODS: list[dict[str, Any]] = [
    {"name": "dpo", "beta": 0.1},
    {"name": "inpo", "tau": 0.02, "eta": 0.1},
    {"name": "sppo", "eta": 2.0},
    {"name": "lipo", "beta": 0.05},
    {"name": "kto", "beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNMENT_CACHE", str(tmp_path / "cache"))


def scored_rows() -> Any:
    from dataclasses import replace

    return tuple(replace(row, scores=(1.0, 0.0)) for row in rows())


@contextmanager
def counted_forwards(module: torch.nn.Module) -> Iterator[list[int]]:
    calls: list[int] = []
    hook = module.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
def test_stored_equals_fresh(method: dict[str, Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Invariant 111: the whole loss trajectory, and the held-out loss after it; without a copy of the reference."""
    changes = {"rows": scored_rows() if method["name"] == "lipo" else None}
    fresh = make(tokenizer, tmp_path, method, **changes)
    stored = make(tokenizer, tmp_path, method, store_anchors=True, **changes)
    assert stored.anchors.names == ()
    assert losses(stored) == pytest.approx(losses(fresh), rel=1e-6)
    assert stored.evaluate()["eval_loss"] == pytest.approx(fresh.evaluate()["eval_loss"], rel=1e-5)


def test_a_second_run_computes_no_reference_forward(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Building the trainer scores the data once; the second time it only reads. The values agree to 1e-6."""
    method = METHODS[0]
    model = build(tokenizer)
    with counted_forwards(model) as calls:
        first = make(tokenizer, tmp_path, method, model=model, store_anchors=True)
        assert len(calls) > 0
        calls.clear()
        second = make(tokenizer, tmp_path, method, model=model, store_anchors=True)
        assert calls == []
    assert [row.anchors for row in first.train_dataset] == [row.anchors for row in second.train_dataset]
    live = make(tokenizer, tmp_path, method, model=model)
    batch = next(iter(live.get_eval_dataloader()))["batch"]
    kept = next(iter(second.get_eval_dataloader()))["batch"]
    fresh_BG = live.anchors.score(batch.completions)["ref"].logps_BG
    torch.testing.assert_close(kept.anchors["ref"], fresh_BG, rtol=1e-6, atol=1e-6)


def files() -> set[str]:
    return {path.name for path in store_folder().glob("*.safetensors")}


def test_other_weights_and_other_rows_miss(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Equal data share one file; other weights and another response are looked up anew, another label is not."""
    method = METHODS[0]
    make(tokenizer, tmp_path, method, store_anchors=True)
    start = files()
    assert len(start) == 1, "training and evaluation rows are the same here"
    make(tokenizer, tmp_path, method, store_anchors=True, model=build(tokenizer, seed=5))
    assert len(files()) == 2
    from dataclasses import replace

    changed = (*rows()[:-1], replace(rows()[-1], responses=("red", "blue")))
    make(tokenizer, tmp_path, method, store_anchors=True, rows=changed)
    assert len(files()) == 3
    relabelled = tuple(replace(row, comparisons=(Comparison(0, 1, 0.5),)) for row in rows())
    make(tokenizer, tmp_path, method, store_anchors=True, rows=relabelled)
    assert len(files()) == 3, "labels are no part of a log-prob"


def test_another_configuration_is_another_model(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """The same weights under another rotation of positions say something else."""
    make(tokenizer, tmp_path, METHODS[0], store_anchors=True)
    model = build(tokenizer)
    config = copy.deepcopy(model.config)
    config.rope_parameters["rope_theta"] *= 2
    turned = type(model)(config)
    turned.load_state_dict(model.state_dict())
    make(tokenizer, tmp_path, METHODS[0], store_anchors=True, model=turned)
    assert len(files()) == 2


@pytest.mark.parametrize("fault", ["truncated", "flipped", "renamed"])
def test_a_damaged_or_stale_file_is_refused(fault: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    method = METHODS[0]
    make(tokenizer, tmp_path, method, store_anchors=True)
    (path,) = store_folder().glob("*.safetensors")
    data = path.read_bytes()
    if fault == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif fault == "flipped":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        make(tokenizer, tmp_path, method, store_anchors=True, model=build(tokenizer, seed=5))
        (other,) = set(store_folder().glob("*.safetensors")) - {path}
        other.rename(path)
    with pytest.raises(UserError, match=r"delete it, and the log-probs are computed again"):
        make(tokenizer, tmp_path, method, store_anchors=True)


@pytest.mark.parametrize("is_stored", [False, True], ids=["fresh", "stored"])
@pytest.mark.parametrize("adapter", [False, True], ids=["all", "lora"])
def test_policies_are_compared_in_one_precision(
    adapter: bool, is_stored: bool, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """At the start the policy is the reference, where products are rounded to bfloat16 too.

    Compared with a reference in float32 the loss is 5e-4 away. Before training begins nothing has wrapped the policy's
    forward yet; and log-probs that were stored in float32 are not read for it.
    """
    method = {"name": "dpo", "beta": 10.0}
    model = tiny_model(tokenizer, hidden_size=64, num_layers=2, num_heads=2)
    settings = {"model": model, "peft_config": LORA if adapter else None, "store_anchors": is_stored}
    if is_stored:
        make(tokenizer, tmp_path, method, **settings | {"model": copy.deepcopy(model)})
    trainer = make(tokenizer, tmp_path, method, bf16=True, **settings)
    before, after = trainer.evaluate()["eval_loss"], losses(trainer)[0]
    assert before == pytest.approx(math.log(2), abs=1e-4) and after == pytest.approx(math.log(2), abs=1e-4)
    assert len(files()) == 2 * is_stored


@dataclass(frozen=True)
class Meeting(Ranks):
    """One of two threads in the place of processes."""

    told: list[Any] = field(default_factory=list)
    barrier: Barrier = field(default_factory=lambda: Barrier(2))

    @property
    def is_first_of_machine(self) -> bool:
        return self.is_first

    def gather(self, results: Sequence[tuple[int, Any]]) -> list[Any]:
        self.told.extend(results)
        self.barrier.wait(timeout=60)
        whole = [result for _, result in sorted(self.told, key=lambda item: item[0])]
        self.barrier.wait(timeout=60)
        if self.is_first:
            self.told.clear()
        self.barrier.wait(timeout=60)
        return whole


def test_processes_share_what_is_computed(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 6 rows in batches of 2 one process scores 2 batches, the other 1, and both have what one alone has."""
    trainer = make(tokenizer, tmp_path, METHODS[0])
    told: list[Any] = []
    barrier = Barrier(2)
    scored: list[str] = []
    lock = Lock()
    score_one = trainer.anchors.score_one

    def counted(name: str, completions: Any) -> Any:
        # Threads share the model, which processes do not.
        with lock:
            scored.append(current_thread().name)
            return score_one(name, completions)

    def store(ranks: Ranks, folder: str) -> Any:
        assert isinstance(trainer.train_dataset, EncodedRows)
        rows = trainer.train_dataset.rows
        return with_stored_anchors(
            rows, trainer.anchors, folder=tmp_path / folder, batch_size=2, announce=lambda _: None, ranks=ranks
        )

    alone = store(Ranks(), "alone")
    monkeypatch.setattr(trainer.anchors, "score_one", counted)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda i: store(Meeting(i, 2, told, barrier), "both"), range(2)))
    assert sorted(Counter(scored).values()) == [1, 2]
    for own in both:
        assert [row.anchors["ref"] for row in own] == [pytest.approx(row.anchors["ref"], rel=1e-6) for row in alone]
    assert len(list((tmp_path / "both").iterdir())) == 1


def test_an_adapter_keeps_its_base(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """With LoRA the stored reference is the base model, whatever the adapter; the KL can still be measured."""
    fresh = make(tokenizer, tmp_path, METHODS[0], peft_config=LORA)
    stored = make(tokenizer, tmp_path, METHODS[0], peft_config=LORA, store_anchors=True)
    assert stored.anchors.names == ("ref",)
    assert losses(stored) == pytest.approx(losses(fresh), rel=1e-6)
    assert "eval_kl_to_ref" in stored.evaluate()


def test_online_methods_have_nothing_to_store(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    from alignment.oracles import RuleOracle
    from alignment.oracles.rules import shorter

    with pytest.raises(UserError, match="store_anchors"):
        make(tokenizer, tmp_path, {"name": "omd", "tau": 0.1}, store_anchors=True, oracle=RuleOracle(shorter))


def test_a_separate_reference_equals_the_disabled_adapter(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    one = make(tokenizer, tmp_path, METHODS[0], peft_config=LORA)
    two = make(tokenizer, tmp_path, METHODS[0], peft_config=LORA, ref_model=build(tokenizer))
    assert isinstance(one, PreferenceTrainer) and losses(one) == pytest.approx(losses(two), rel=1e-6)
