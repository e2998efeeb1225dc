"""Recipes: YAML, composition, overrides, strictness, and what a method needs against what a recipe offers."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
import yaml

from alignment.config import Recipe, load_recipe, recipes_folder, text_gap
from alignment.config.compose import apply_overrides, compose
from alignment.config.parsing import dump_yaml, parse_scalar, parse_text
from alignment.config.problems import unknown_key
from alignment.errors import UserError
from alignment.types import AnchorSpec, Ema, Frozen, Needs, Past, Player, Previous

OFFLINE = """
method: {name: dpo, beta: 0.1}
policy: {tiny: {}}
data: {preferences: {path: pairs.jsonl}}
schedule: {kind: offline}
training: {learning_rate: 5e-7, max_steps: 3}
output_dir: runs/test
"""
ONLINE = """
method: {name: egpo, tau: 0.1}
policy: {tiny: {}}
data: {prompts: {path: prompts.jsonl}}
oracle: {kind: rule, rule: shorter}
sampling: {temperature: 2.0}
schedule: {kind: online}
output_dir: runs/test
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return to_file


def errors_of(path: Path, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).splitlines()


# YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-7", 5e-7),
        ("5.0e-7", 5e-7),
        ("1e6", 1e6),
        ("-.5", -0.5),
        (".inf", math.inf),
        ("12", 12),
        ("012", 12),
        ("0x1F", 31),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("1/3", "1/3"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("true", True),
        ("~", None),
        ("", None),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    for found in (parse_scalar(text), parse_text(f"key: {text}", "test")["key"]):
        assert found == value
        assert isinstance(found, type(value))


@pytest.mark.parametrize("text", ["a: 1\na: 2", "b: {a: 1, a: 1}", "b:\n  - {a: 1, a: 2}"])
def test_a_key_that_stands_twice_is_an_error(text: str) -> None:
    with pytest.raises(UserError, match=r"x\.yaml: line \d: the key 'a' stands twice"):
        parse_text(text, "x.yaml")


def test_broken_yaml_names_file_and_line(write: Write) -> None:
    (line,) = errors_of(write("method: {name: dpo\npolicy: ["))
    assert "recipe.yaml:" in line
    assert "expected YAML" in line


def test_a_variable_inside_braces_without_quotes_gets_the_hint(write: Write) -> None:
    (line,) = errors_of(write("data: {path: ${DATA}/a}\n"))
    assert line.endswith("inside braces quote it: '${NAME}'")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(alphabet="aeno0157.:-_+/x ~", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet="abc0e5-", min_size=1, max_size=3), inner)
    ),
    max_leaves=8,
)


@hypothesis.given(VALUES)
def test_dumped_yaml_reads_back_in_both_versions(value: object) -> None:
    """What is written beside a checkpoint must mean the same to our loader (1.2) and to others (1.1)."""
    text = dump_yaml({"key": value})
    assert parse_text(text, "dump") == {"key": value}
    assert yaml.safe_load(text) == {"key": value}


# Composition


def test_a_recipe_loads_with_its_defaults(write: Write) -> None:
    loaded = load_recipe(write(OFFLINE))
    assert loaded.notes == ()
    assert loaded.recipe.training == {"learning_rate": 5e-7, "max_steps": 3}
    assert loaded.recipe.data.sources[0].path == ("pairs.jsonl",)
    assert loaded.recipe.seed == 0
    assert loaded.recipe.build_method().needs.feedback == "pairs"


@pytest.mark.parametrize(
    "text", [OFFLINE, ONLINE, ONLINE.replace("2.0", ".inf, engine: enumerate, responses: [a, 5e-7x]")]
)
def test_a_resolved_recipe_reads_back_equal(write: Write, text: str) -> None:
    recipe = load_recipe(write(text)).recipe
    assert load_recipe(write(recipe.to_yaml(), "resolved.yaml")).recipe == recipe


def test_columns_and_labels_survive_the_resolved_recipe(write: Write) -> None:
    """Labels are text, whatever YAML would make of them."""
    overrides = [
        "data.preferences.columns={prompt: [a, b], scores: {kind: k, true: [t1, t2]}}",
        "data.preferences.labels={1: left, 0: tie, null: skip, no: right}",
    ]
    recipe = load_recipe(write(OFFLINE), overrides).recipe
    assert recipe.data.sources[0].columns == {"prompt": ["a", "b"], "scores": {"kind": "k", "true": ["t1", "t2"]}}
    assert recipe.data.sources[0].labels == {"1": "left", "0": "tie", "null": "skip", "no": "right"}
    assert load_recipe(write(recipe.to_yaml(), "resolved.yaml")).recipe == recipe


def test_extends_is_relative_to_its_file_and_chains(write: Write) -> None:
    write(OFFLINE, "base/root.yaml")
    write("extends: root.yaml\nseed: 1\ntraining: {max_steps: 5}", "base/middle.yaml")
    recipe = load_recipe(write("extends: base/middle.yaml\nseed: 2")).recipe
    assert recipe.seed == 2
    assert recipe.training == {"learning_rate": 5e-7, "max_steps": 5}


def test_extends_falls_back_to_the_working_directory(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(OFFLINE, "work/base.yaml")
    monkeypatch.chdir(tmp_path / "work")
    assert load_recipe(write("extends: base.yaml\nseed: 3", "else/where.yaml")).recipe.seed == 3


def test_extends_refuses_a_circle_and_a_missing_file(write: Write) -> None:
    write("extends: b.yaml", "a.yaml")
    write("extends: a.yaml", "b.yaml")
    assert "in a circle" in errors_of(write("extends: a.yaml"))[0]
    assert "no file 'none.yaml'" in errors_of(write("extends: none.yaml"))[0]


def test_extending_with_another_method_drops_its_options_like_an_override(write: Write) -> None:
    write(OFFLINE, "base.yaml")
    loaded = load_recipe(write("extends: base.yaml\nmethod: {name: ipo, tau: 0.2}"))
    assert loaded.recipe.method == {"name": "ipo", "tau": 0.2}
    assert loaded.notes == ("method dpo -> ipo: dropped beta; set tau=0.2",)


def test_variables_expand_and_keep_their_type(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "folder")
    monkeypatch.setenv("EMPTY", "")
    text = OFFLINE.replace("{path: pairs.jsonl}", '{path: "${DATA}/a-${EMPTY:-b}.jsonl"}') + "seed: ${SEED:-7}\n"
    recipe = load_recipe(write(text)).recipe
    assert recipe.data.sources[0].path == ("folder/a-b.jsonl",)
    assert recipe.seed == 7


def test_a_quoted_variable_stays_text(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "5")
    assert load_recipe(write(OFFLINE), ["output_dir='${NAME}'"]).recipe.output_dir == "5"
    assert "output_dir: expected text, got 5" in errors_of(write(OFFLINE), ["output_dir=${NAME}"])


def test_an_unset_variable_is_reported_with_the_other_errors(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    lines = errors_of(write(OFFLINE), ["method.beta=${NOT_SET}", "seed=x"])
    assert lines == [
        "method.beta: the environment variable NOT_SET is not set; `export NOT_SET=...` before the command, "
        "or give the key itself: method.beta=...",
        "seed: expected an integer, got 'x'",
    ]
    assert load_recipe(write(OFFLINE), ["method.beta=${NOT_SET:-0.5}"]).recipe.method["beta"] == 0.5


def test_an_override_replaces_an_unset_variable(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    assert load_recipe(write(OFFLINE + "seed: ${NOT_SET}\n"), ["seed=4"]).recipe.seed == 4


def test_the_folder_of_the_recipes_is_built_in(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGNMENT_RECIPES", raising=False)
    recipe = load_recipe(write(OFFLINE), ["output_dir=${ALIGNMENT_RECIPES}/x"]).recipe
    assert recipe.output_dir == f"{recipes_folder()}/x"


@pytest.mark.parametrize("name", ["recipes/quickstart/dpo.yaml", "quickstart/dpo.yaml"])
def test_a_shipped_recipe_is_found_from_anywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_recipe(name)
    assert loaded.notes == (
        f"'{name}' is not in this folder; using the shipped recipe {recipes_folder() / 'quickstart' / 'dpo.yaml'}",
    )


def test_a_missing_recipe_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"no file 'quickstart/dp0\.yaml', .*; did you mean 'recipes/quickstart/dpo\.yaml'\?"
    ):
        load_recipe("quickstart/dp0.yaml")


# Overrides


def test_overrides_are_yaml_and_make_blocks(write: Write) -> None:
    overrides = ["policy.lora.rank=8", "training.max_steps=null", "data.preferences.path=[a.jsonl, b.jsonl]", "seed= 5"]
    recipe = load_recipe(write(OFFLINE), overrides).recipe
    assert recipe.policy.lora is not None
    assert recipe.policy.lora.alpha == 16
    assert recipe.training == {"learning_rate": 5e-7}
    assert recipe.data.sources[0].path == ("a.jsonl", "b.jsonl")
    assert recipe.seed == 5


def test_overrides_leave_the_tree_they_were_given(write: Write) -> None:
    tree = {"training": {"max_steps": 3}}
    apply_overrides(tree, ["training.max_steps=4"])
    assert tree == {"training": {"max_steps": 3}}


@pytest.mark.parametrize("override", ["seed", "=3", "a..b=1", ".seed=1", "seed.=1"])
def test_a_malformed_override_says_what_was_expected(write: Write, override: str) -> None:
    assert errors_of(write(OFFLINE), [override])[0].startswith(f"override '{override}': expected key.sub=value")


def test_an_override_below_a_value_is_an_error(write: Write) -> None:
    assert errors_of(write(OFFLINE + "seed: 1\n"), ["seed.x=1"]) == [
        "override 'seed.x': expected 'seed' to hold keys, but it is 1"
    ]


def test_null_takes_a_key_of_a_method_or_an_oracle_back(write: Write) -> None:
    """Known to the new kind or not: nothing is left of the key, and the note does not call it set."""
    loaded = load_recipe(write(ONLINE), ["method.name=omd", "method.tau=0.2", "oracle.flip=0.1", "oracle.flip=null"])
    assert loaded.recipe.oracle == {"kind": "rule", "rule": "shorter"}
    loaded = load_recipe(write(OFFLINE), ["method.name=ipo", "method.tau=0.1", "method.beta=null"])
    assert loaded.recipe.method == {"name": "ipo", "tau": 0.1}
    assert loaded.notes == ("method dpo -> ipo: dropped beta; set tau=0.1",)
    loaded = load_recipe(write(OFFLINE), ["method.eps=0.1", "method.eps=null"])
    assert loaded.recipe.method == {"name": "dpo", "beta": 0.1}
    panel = "oracle.members={a: {kind: rule, rule: shorter}, b: {kind: rule, rule: shorter}}"
    composed = compose(write(ONLINE), ["oracle.kind=panel", "oracle.rule=null", panel, "oracle.members.b=null"])
    assert composed.tree["oracle"] == {"kind": "panel", "members": {"a": {"kind": "rule", "rule": "shorter"}}}


def test_another_kind_of_oracle_drops_the_keys_of_the_old_one(write: Write) -> None:
    """In whatever order they are given, in both blocks of an oracle, as under ``extends``; the same kind keeps them."""
    judge = {"kind": "bradley_terry", "model": "somewhere"}
    overrides = ["oracle.model=somewhere", "oracle.kind=bradley_terry"]
    composed = compose(write(ONLINE), overrides)
    assert (composed.tree["oracle"], composed.notes) == (judge, ("oracle rule -> bradley_terry: dropped rule",))
    write(ONLINE, "base.yaml")
    extended = compose(write("extends: base.yaml\noracle: {kind: bradley_terry, model: somewhere}"), ())
    assert extended.tree["oracle"] == judge
    both = compose(write(JUDGED), [f"evaluation.{line}" for line in overrides])
    assert both.tree["evaluation"]["oracle"] == judge
    assert both.notes == ("evaluation.oracle rule -> bradley_terry: dropped rule",)
    assert compose(write(ONLINE), ["oracle.kind=rule", "oracle.flip=0.1"]).tree["oracle"]["rule"] == "shorter"


def test_swapping_the_method_drops_what_the_new_card_lacks(write: Write) -> None:
    loaded = load_recipe(write(OFFLINE), ["method.name=ipo", "method.tau=0.1"])
    assert loaded.recipe.method == {"name": "ipo", "tau": 0.1}
    assert loaded.notes == ("method dpo -> ipo: dropped beta; set tau=0.1",)


def test_swapping_the_method_keeps_what_the_new_card_declares(write: Write) -> None:
    loaded = load_recipe(write(OFFLINE), ["method.eps=0.1", "method.name=cdpo"])
    assert loaded.recipe.method == {"name": "cdpo", "beta": 0.1, "eps": 0.1}
    assert loaded.notes == ("method dpo -> cdpo: kept beta=0.1; set eps=0.1",)
    assert load_recipe(write(OFFLINE), ["method.name=dpo"]).notes == ()


def test_swapping_the_method_without_a_required_option_quotes_the_paper(write: Write) -> None:
    (line,) = errors_of(write(OFFLINE), ["method.name=ipo"])
    assert line.startswith("method 'ipo': missing option 'tau'; the paper")


def test_an_option_set_for_the_wrong_method_is_not_dropped(write: Write) -> None:
    lines = errors_of(write(OFFLINE), ["method.name=ipo", "method.tau=0.1", "method.beta=0.5"])
    assert lines == ["unknown key 'method.beta' (known: method.length_normalize, method.name, method.tau)"]


# Strictness


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("lr=1", "unknown key 'lr'; did you mean 'training.learning_rate'?"),
        ("epochs=3", "unknown key 'epochs'; did you mean 'training.num_train_epochs'?"),
        ("training.lr=1", "unknown key 'training.lr'; did you mean 'training.learning_rate'?"),
        ("policy.chat_template=t.jinja", "policy: expected policy.chat_template only with policy.model, got it with"),
        ("method.nme=ipo", "unknown key 'method.nme'; did you mean 'method.name'?"),
        ("method.bta=0.2", "unknown key 'method.bta'; did you mean 'method.beta'?"),
        ("polcy.model=x", "unknown key 'polcy'; did you mean 'policy'?"),
        ("policy.tiny.hidden_sze=8", "unknown key 'policy.tiny.hidden_sze'; did you mean 'policy.tiny.hidden_size'?"),
        ("learning_rate=1e-3", "unknown key 'learning_rate'; did you mean 'training.learning_rate'?"),
        ("policy.rank=8", "unknown key 'policy.rank'; did you mean 'policy.lora.rank'?"),
        ("training.max_step=1", "unknown key 'training.max_step'; did you mean 'training.max_steps'?"),
        ("evaluations.every=10", "unknown key 'evaluations'; did you mean 'evaluation'?"),
        ("evaluation.every=10", "evaluation.oracle: method 'dpo' trains without an oracle: expected one that judges"),
        ("evaluation={oracle: {kind: rule, rule: shorter}, evry: 3}", "unknown key 'evaluation.evry'; did you mean"),
        (
            "evaluation={oracle: {kind: rule, rule: shorter}, every: 0}",
            "evaluation.every: expected a number > 0, got 0",
        ),
        ("evaluation={oracle: {kind: rule, rule: short}}", "evaluation: oracle.rule: "),
        (
            "evaluation={oracle: {kind: rule, rule: shorter}, temperature: 0, num_completions: 2}",
            "evaluation: expected num_completions: 1 at temperature 0",
        ),
        ("scoring.layout=packed", "scoring.layout: expected "),
        ("scoring.behaviour=fresh", "method 'dpo' reads no log-probs of the policy that sampled: expected scoring."),
        (
            "scoring={layout: prefix, logits: whole}",
            "scoring: expected logits: auto or chunked with layout: prefix, got whole",
        ),
        ("training.learning_rate=1/3", "training.learning_rate: expected a number, got '1/3'"),
        ("training.bf16=1", "training.bf16: expected true or false, got 1"),
        ("training.save_strategy=never", "training.save_strategy: expected one of no, steps, epoch, best, got 'never'"),
        ("training.output_dir=x", "training.output_dir: it is a key of its own: write output_dir at the top level"),
        ("training.label_smoothing_factor=0.1", "training.label_smoothing_factor: no preference loss reads it"),
        ("method.beta=x", "method 'dpo': beta: expected float, got 'x'"),
        ("method.beta=-1", "method 'dpo': expected beta > 0, got -1"),
        ("method.name=dp", "unknown method 'dp'; did you mean "),
        ("seed=1.0", "seed: expected an integer, got 1.0"),
        ("seed=true", "seed: expected an integer, got True"),
        ("output_dir=null", "output_dir: expected a value, got none; the key is required"),
        ("schedule.kind=offlin", "schedule.kind: expected 'offline', 'iterative' or 'online', got 'offlin'"),
        ("policy.model=x", "policy: expected exactly one of policy.model and policy.tiny, got both"),
        ("policy.tiny.num_heads=3", "policy.tiny: expected hidden_size to be a multiple of num_heads, got 128 and 3"),
        ("policy.lora={rank: 0}", "policy.lora.rank: expected a number > 0, got 0"),
        ("policy.lora={rank: 4, target_modules: 3}", "policy.lora.target_modules: expected text or a list, got 3"),
        ("data.prompts.path=x", "data: expected exactly one of data.preferences and data.prompts, got both"),
        ("data.preferences.path=3", "data.preferences.path: expected text or a list of texts, got 3"),
        ("data.preferences.path=[a, 3]", "data.preferences.path.1: expected text, got 3"),
        ("data.preferences.columns=prompt", "data.preferences.columns: expected a block of keys, got 'prompt'"),
        (
            "data.preferences.columns.prompt=3",
            "data.preferences.columns.prompt: expected a column, a list of columns, or a column for each oracle, got 3",
        ),
        ("data.preferences.columns.prompt=[a, 3]", "data.preferences.columns.prompt: expected a column, a list of"),
        (
            "data.preferences.columns.scores={a: {b: c}}",
            "data.preferences.columns.scores: expected a column, a list of",
        ),
        (
            "data.preferences.labels.1=lef",
            "data.preferences.labels.1: expected 'left', 'right', 'tie', 'good', 'bad' or 'skip', got 'lef'",
        ),
        ("data.preferences.annotators=all", "data.preferences.annotators: expected 'separate' or 'mean', got 'all'"),
        (
            "data.preferences.column={}",
            "unknown key 'data.preferences.column'; did you mean 'data.preferences.columns'?",
        ),
        ("data.preferences.limit=0", "data.preferences.limit: expected a number > 0, got 0"),
        ("data.preferences=x", "data.preferences: expected a block of keys, got 'x'"),
        ("data.eval_fraction=1", "data.eval_fraction: expected a number < 1, got 1"),
    ],
)
def test_one_mistake_is_one_line(write: Write, override: str, line: str) -> None:
    (found,) = errors_of(write(OFFLINE), [override])
    assert found.startswith(line)


@pytest.mark.parametrize(
    "name",
    [
        "overwrite_output_dir",
        "logging_dir",
        "evaluation_strategy",
        "no_cuda",
        "save_safetensors",
        "warmup_ratio",
        "group_by_length",
        "include_tokens_per_second",
        "jit_mode_eval",
        "past_index",
        "half_precision_backend",
        "push_to_hub_model_id",
        "include_inputs_for_metrics",
        "use_mps_device",
    ],
)
def test_a_field_that_transformers_5_removed_names_its_replacement(write: Write, name: str) -> None:
    (line,) = errors_of(write(OFFLINE), [f"training.{name}=1"])
    assert line.startswith(f"training.{name}: transformers 5 removed it; ")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("lr", "learning_rate"), ("batch_size", "per_device_train_batch_size"), ("epochs", "num_train_epochs")],
)
def test_a_field_by_another_name_names_its_own(write: Write, name: str, meant: str) -> None:
    (line,) = errors_of(write(OFFLINE), [f"training.{name}=1"])
    assert line == f"unknown key 'training.{name}'; did you mean 'training.{meant}'?"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sampling.temperature=0", "sampling.temperature: expected a number > 0, got 0"),
        (
            "sampling.temperature=.inf",
            "sampling: expected finite temperatures with the engine 'transformers', got .inf",
        ),
        (
            "sampling.engine=enumerate",
            "sampling: expected sampling.responses with the engine 'enumerate' and only there",
        ),
        (
            "sampling.responses=[a, b]",
            "sampling: expected sampling.responses with the engine 'enumerate' and only there",
        ),
        ("sampling={engine: enumerate, responses: [a, a]}", "sampling: expected different responses"),
        (
            "sampling.opponent.temperatur=1",
            "unknown key 'sampling.opponent.temperatur'; did you mean 'sampling.opponent.temperature'?",
        ),
        ("oracle.kind=rul", "oracle.kind: expected one of "),
    ],
)
def test_sampling_and_oracle_are_checked(write: Write, override: str, line: str) -> None:
    assert errors_of(write(ONLINE), [override])[0].startswith(line)


def test_uniform_sampling_of_enumerated_responses_is_allowed(write: Write) -> None:
    recipe = load_recipe(write(ONLINE), ["sampling={engine: enumerate, temperature: .inf, responses: [a, b]}"]).recipe
    assert recipe.sampling.temperature == math.inf
    assert recipe.sampling.opponent.temperature == 1.0


def test_all_errors_are_reported_together_needs_first(write: Write) -> None:
    overrides = ["method.name=egpo", "method.tua=0.1", "training.max_step=3", "seed=x", "policy.dtype=fp8"]
    assert errors_of(write(OFFLINE), overrides) == [
        "method 'egpo' needs schedule 'online' and an oracle that answers on fresh samples; "
        "the recipe says schedule.kind = 'offline' and has no oracle",
        "method 'egpo' samples its responses: it needs data.prompts; the recipe has data.preferences",
        "policy.dtype: expected 'float32', 'bfloat16' or 'float16', got 'fp8'",
        "seed: expected an integer, got 'x'",
        "unknown key 'method.tua'; did you mean 'method.tau'?",
        "method 'egpo': missing option 'tau'; the released code uses 0.1 for language models, 0.01 for games "
        "(2503.08942)",
        "unknown key 'training.max_step'; did you mean 'training.max_steps'?",
    ]


def test_an_unknown_key_in_another_block_comes_before_a_near_spelling() -> None:
    known = ("method.name", "method.temperament", "sampling.temperature", "sampling.opponent.temperature")
    assert unknown_key("method.temperature", known).endswith("did you mean 'sampling.temperature'?")
    assert unknown_key("training.xy", ("training", "training.tf32", "training.learning_rate")) == (
        "unknown key 'training.xy' (known: training.learning_rate, training.tf32)"
    )


# Needs


def test_an_online_recipe_loads(write: Write) -> None:
    recipe = load_recipe(write(ONLINE)).recipe
    assert isinstance(recipe, Recipe)
    assert recipe.build_method().needs.stages == 2
    assert load_recipe(write(ONLINE), ["method.name=omd"]).notes == ("method egpo -> omd: kept tau=0.1",)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["schedule.kind=offline"],
            "method 'egpo' needs schedule 'online' and an oracle that answers on fresh samples; "
            "the recipe says schedule.kind = 'offline'",
        ),
        (
            ["schedule.kind=iterative"],
            "method 'egpo' needs schedule 'online' and an oracle that answers on fresh samples; "
            "the recipe says schedule.kind = 'iterative'",
        ),
        (["oracle=null"], "method 'egpo' needs an oracle that answers on fresh samples; the recipe has no oracle"),
        (
            ["data={preferences: {path: x}}"],
            "method 'egpo' samples its responses: it needs data.prompts; the recipe has data.preferences",
        ),
        (
            ["method={name: spo}", "sampling.steps_per_rollout=2"],
            "sampling.steps_per_rollout: method 'spo' takes one step on a rollout, got 2; more need a loss that reads "
            "the log-probs of the policy that sampled",
        ),
    ],
)
def test_unmet_needs_of_a_method_that_samples(write: Write, overrides: list[str], line: str) -> None:
    assert errors_of(write(ONLINE), overrides) == [line]


@pytest.mark.parametrize(
    ("method", "compares"),
    [
        ("{name: egpo, tau: 0.1}", True),
        ("{name: omd, tau: 0.1}", True),
        ("{name: online_ipo, tau: 0.1}", True),
        ("{name: online_dpo, beta: 0.1}", True),
        ("{name: ipo_md, tau: 0.1, mix: 0.25}", True),
        ("{name: spo}", True),
        ("{name: maxmin, base: {name: egpo, tau: 0.1}}", True),
        # Its opponent is the reference, and no longer the group.
        ("{name: maxmin, base: {name: spo}}", False),
        ("{name: nash_md, tau: 0.1, mix: 0.25}", False),
        ("{name: nash_mp, tau: 0.1, eta: 0.2}", False),
        ("{name: nash_prox, tau: 0.1, eta: 0.2}", False),
    ],
)
def test_one_answer_is_not_compared(write: Write, method: str, compares: bool) -> None:
    rule = "{kind: rule, rule: shorter}"
    panel = [f"oracle={{kind: panel, members: {{a: {rule}, b: {rule}}}}}"] if "maxmin" in method else []
    overrides = [f"method={method}", *panel, "sampling.num_completions=1"]
    listed = [*overrides, "sampling.engine=enumerate", "sampling.responses=[a, b]"]
    assert load_recipe(write(ONLINE), listed).recipe.sampling.responses == ["a", "b"]
    if compares:
        line = "sampling.num_completions: expected at least 2 answers to compare, got 1"
        assert errors_of(write(ONLINE), overrides) == [line]
    else:
        assert load_recipe(write(ONLINE), overrides).recipe.sampling.num_completions == 1


def test_unmet_needs_of_a_method_that_reads(write: Write) -> None:
    assert errors_of(write(OFFLINE), ["schedule.kind=online"]) == [
        "method 'dpo' learns from a fixed data set: expected schedule.kind = 'offline', got 'online'"
    ]
    assert errors_of(write(OFFLINE), ["data={prompts: {path: x}}"]) == [
        "method 'dpo' reads its responses: it needs data.preferences; the recipe has data.prompts"
    ]
    assert errors_of(write(OFFLINE), ["sampling.temperature=2.0", "oracle={kind: rule, rule: shorter}"]) == [
        "method 'dpo' learns from the responses in its data and reads no 'oracle'; remove the block (oracle=null)",
        "method 'dpo' learns from the responses in its data and reads no 'sampling'; remove the block (sampling=null)",
    ]


@pytest.mark.parametrize(
    ("needs", "gap"),
    [
        (Needs(feedback="pairs", anchors=(Frozen("ref"),)), None),
        (Needs(feedback="wins", anchors=(Frozen("ref"), Ema("target", 0.9)), sampler="policy", opponent="fresh"), None),
        (Needs(feedback="pairs", schedule="iterative", sampler="prev"), None),
        (Needs(feedback="pairs", sampler="mixture"), None),
        (Needs(feedback="pairs", sampler="target"), "the sampler 'target'"),
        (Needs(feedback="wins", opponent="past"), "the opponent 'past'"),
        (Needs(feedback="pairs", anchors=(Previous("prev"), Past("past", 2))), None),
        (Needs(feedback="pairs", anchors=(Player("rival"),)), None),
        (Needs(feedback="pairs", fits=2), None),
        (Needs(feedback="pairs", anchors=(AnchorSpec("oracle"),)), "log-probs of the policy 'oracle'"),
        (Needs(feedback="wins", num_oracles="many"), None),
        (Needs(feedback="scores", mismatched=True), None),
    ],
)
def test_what_language_models_cannot_be_given_yet(needs: Needs, gap: str | None) -> None:
    assert text_gap(needs) == gap


ROUND = OFFLINE.replace("name: dpo, beta: 0.1", "name: inpo, tau: 0.001, eta: 0.003")


def test_a_first_round_from_a_data_set(write: Write) -> None:
    """An iterative method may take a round from pairs; it is the only one then, and other methods know none."""
    first = ["schedule={kind: iterative, rounds: 1, first: dataset}"]
    recipe = load_recipe(write(ROUND), first).recipe
    assert (recipe.schedule.rounds, recipe.schedule.first) == (1, "dataset")
    assert load_recipe(write(recipe.to_yaml(), "resolved.yaml")).recipe == recipe
    assert "needs schedule 'iterative'" in errors_of(write(ROUND))[0]
    assert "an oracle that answers on fresh samples" in errors_of(write(ROUND), ["schedule={kind: iterative}"])[0]
    twice = errors_of(write(ROUND), [*first, "schedule.rounds=2"])[0]
    assert "schedule.rounds: expected 1 with schedule.first = 'dataset', got 2" in twice
    assert errors_of(write(OFFLINE), ["schedule.first=dataset"]) == [
        "method 'dpo' knows no rounds and reads no 'schedule.first'; remove it (schedule.first=null)"
    ]


def test_early_stopping_needs_a_metric_and_four_bits_an_adapter(write: Write) -> None:
    best = "training={load_best_model_at_end: true, metric_for_best_model: eval_accuracy}"
    recipe = load_recipe(write(OFFLINE), ["early_stopping={patience: 2}", best]).recipe
    assert recipe.early_stopping is not None and recipe.early_stopping.patience == 2
    (error,) = errors_of(write(OFFLINE), ["early_stopping={patience: 2}"])
    assert "training.load_best_model_at_end: true" in error and "training.metric_for_best_model" in error
    (error,) = errors_of(write(OFFLINE), ["policy={model: m, load_in_4bit: true}"])
    assert "policy.lora" in error


@pytest.mark.parametrize(
    ("block", "key"),
    [
        ({"model": "m", "attn_implementation": "flex_attention"}, "policy.attn_implementation"),
        ({"model": "m", "lora": {"rank": 2, "alpha": 2}, "load_in_4bit": True}, "policy.load_in_4bit"),
    ],
)
def test_what_needs_a_gpu_is_refused_before_a_model_is_read(
    block: dict[str, object], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from alignment.config import PolicySpec
    from alignment.models import load_causal_model

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"{key}: expected a .*found none"):
        load_causal_model("m", PolicySpec.model_validate(block))


# Arguments of the trainer


def test_the_arguments_carry_every_key_of_the_recipe(write: Write) -> None:
    from alignment.config import build_arguments
    from alignment.logps import Scoring

    overrides = [
        "sampling={num_completions: 3, temperature: 0.7, max_new_tokens: 9, top_k: 5,"
        " opponent: {temperature: 0.9, num_completions: 4}}",
        "data.max_prompt_length=11",
        "data.max_completion_length=13",
        "training={learning_rate: 5e-7, save_strategy: no, gradient_checkpointing: true}",
        "scoring={layout: dense, logits: whole}",
        "seed=6",
    ]
    recipe = load_recipe(write(ONLINE), overrides).recipe
    assert load_recipe(write(recipe.to_yaml(), "resolved.yaml")).recipe == recipe
    args = build_arguments(recipe)
    sampling = (args.num_completions, args.temperature, args.max_new_tokens, args.top_k)
    assert sampling == (3, 0.7, 9, 5)
    assert (args.opponent_temperature, args.opponent_completions) == (0.9, 4)
    assert args.scoring() == Scoring(layout="dense", logits="whole")
    assert (args.max_prompt_length, args.max_completion_length, args.seed) == (11, 13, 6)
    assert (args.learning_rate, args.save_strategy, args.gradient_checkpointing) == (5e-7, "no", True)
    assert args.output_dir == "runs/test"
    assert args.scoring_behaviour == "auto"
    clipped = ["method={name: spo, kappa_ref: 0.05, clip: 0.2}", "scoring.behaviour=fresh"]
    assert build_arguments(load_recipe(write(ONLINE), clipped).recipe).scoring_behaviour == "fresh"
    assert build_arguments(load_recipe(write(ONLINE)).recipe, output_dir="else").output_dir == "else"


def test_contradicting_training_keys_are_a_users_error(write: Write) -> None:
    from alignment.config import build_arguments

    recipe = load_recipe(write(OFFLINE), ["training.load_best_model_at_end=true"]).recipe
    with pytest.raises(UserError, match=r"^training: "):
        build_arguments(recipe)


def test_numbers_of_the_training_block_are_named_by_their_keys(write: Write) -> None:
    """In Python the same lines have no block."""
    from alignment.config import build_arguments

    wrong = ["training.learning_rate=-1", "training.max_steps=0", "training.report_to=nobody"]
    with pytest.raises(UserError) as caught:
        build_arguments(load_recipe(write(OFFLINE), wrong).recipe)
    assert sorted(str(caught.value).splitlines()) == [
        "training.learning_rate: expected a finite number of at least 0, got -1",
        "training.max_steps: expected at least 1, or -1 for num_train_epochs, got 0",
        "training.report_to: expected a tracker that is installed, got nobody; install its package",
    ]


def test_another_kind_of_oracle_brings_its_own_keys(write: Write) -> None:
    write("extends: recipes/egpo/tiny.yaml", "base.yaml")
    noisy = load_recipe(write("extends: base.yaml\noracle: {flip: 0.1}")).recipe
    assert noisy.oracle == {"kind": "rule", "rule": "shorter", "flip": 0.1}
    crowd = {"kind": "mixture", "members": [{"kind": "rule", "rule": "shorter"}]}
    assert load_recipe(write(f"extends: base.yaml\noracle: {crowd}")).recipe.oracle == crowd


# Evaluation

JUDGED = OFFLINE + "evaluation: {every: 5, oracle: {kind: rule, rule: shorter}}\n"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["training.eval_strategy=epoch"],
            "expected the rhythm of evaluation from evaluation.every alone, got 5 there",
        ),
        (["training.eval_steps=10"], "expected the rhythm of evaluation from evaluation.every alone, got 5 there"),
        (["data.eval_fraction=0"], "evaluation: expected held-out prompts"),
        (["evaluation.opponents=[sft]"], "evaluation.opponents.0: expected 'ref', got 'sft'"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused(write: Write, overrides: list[str], line: str) -> None:
    (found,) = errors_of(write(JUDGED), overrides)
    assert found.startswith(line)


def test_an_evaluation_by_the_trainer_needs_held_out_prompts(write: Write) -> None:
    said = "training.eval_strategy: expected held-out prompts (data.evaluation or data.eval_fraction), got none"
    for text in (OFFLINE, ONLINE):
        (found,) = errors_of(write(text), ["training.eval_strategy=steps", "data.eval_fraction=0"])
        assert found.startswith(said)
        load_recipe(write(text), ["training.eval_strategy=no", "data.eval_fraction=0"])
        load_recipe(write(text), ["training.eval_strategy=steps", "data.eval_fraction=0.1"])


def test_an_evaluation_becomes_arguments(write: Write) -> None:
    """Its rhythm is that of the trainer; an answer may be as long as what the recipe samples, or reads."""
    from alignment.config import build_arguments

    recipe = load_recipe(write(JUDGED), ["training.eval_strategy=steps", "data.max_completion_length=33"]).recipe
    args = build_arguments(recipe)
    assert (args.eval_strategy, args.eval_steps, args.win_rate_max_new_tokens) == ("steps", 5, 33)
    online = build_arguments(load_recipe(write(ONLINE), ["evaluation.num_prompts=7"]).recipe)
    assert (online.eval_strategy, online.win_rate_max_new_tokens, online.win_rate_prompts) == ("no", 64, 7)
    longer = build_arguments(load_recipe(write(ONLINE), ["evaluation={max_new_tokens: 9, temperature: 0}"]).recipe)
    assert (longer.win_rate_max_new_tokens, longer.win_rate_temperature) == (9, 0.0)


def test_the_judge_is_that_of_the_training_unless_another_is_named(write: Write) -> None:
    own = {"kind": "rule", "rule": "paper_scissors_stone"}
    assert load_recipe(write(ONLINE), ["evaluation.every=2"]).recipe.judge == {"kind": "rule", "rule": "shorter"}
    recipe = load_recipe(write(ONLINE), [f"evaluation.oracle={own}"]).recipe
    assert recipe.judge == own
    assert load_recipe(write(recipe.to_yaml(), "again.yaml")).recipe == recipe


def test_a_judge_of_another_kind_replaces_that_of_the_base(write: Write) -> None:
    write(JUDGED, "base.yaml")
    text = "extends: base.yaml\nevaluation: {oracle: {kind: bradley_terry, model: somewhere}}\n"
    recipe = load_recipe(write(text)).recipe
    assert recipe.judge == {"kind": "bradley_terry", "model": "somewhere"}
    assert recipe.evaluation is not None and recipe.evaluation.every == 5


def test_the_evaluation_that_the_text_shows_is_valid(write: Write) -> None:
    text = (recipes_folder() / "README.md").read_text().split("## Win rate while training")[1]
    block = text.split("```yaml\n")[1].split("```")[0]
    base = "".join(line for line in OFFLINE.splitlines(keepends=True) if not line.startswith("training:"))
    recipe = load_recipe(write(base + block)).recipe
    assert recipe.evaluation is not None and recipe.evaluation.every == recipe.training["save_steps"] == 50
