"""Each check of the doctor against a planted fault: it fails there, says so, and nothing else fails.

The model's folder holds a tokenizer and a configuration and no weights, so whatever passes has loaded none.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import GenerationConfig

from alignment.cli import main
from alignment.config import load_recipe
from alignment.doctor import Examination, Finding, examine
from alignment.tiny import CHAT_TEMPLATE, END, tiny_model, tiny_tokenizer

ROLE = "<|{{ message.role }}|>"
TEXTS = [f"Say the number {i} because it is a number" for i in range(40)]
LINES = [
    {"prompt": f"Say the number {i}", "chosen": f"{i} it is", "rejected": f"because it is a number {i}"}
    for i in range(40)
]


def write_model(
    folder: Path, *, texts: list[str] = TEXTS, template: str = CHAT_TEMPLATE, stop: int | None = None
) -> Path:
    tokenizer = tiny_tokenizer(texts, vocab_size=300)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    tiny_model(tokenizer, hidden_size=8, num_layers=1, num_heads=1, max_position_embeddings=64).config.save_pretrained(
        folder
    )
    GenerationConfig(eos_token_id=tokenizer.eos_token_id if stop is None else stop).save_pretrained(folder)
    return folder


def write_lines(path: Path, lines: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def diagnose(tmp_path: Path) -> Callable[..., Examination]:
    """Examine a sound recipe with overrides."""
    write_model(tmp_path / "model")
    write_lines(tmp_path / "pairs.jsonl", LINES)
    (tmp_path / "recipe.yaml").write_text(
        f"""
method: {{name: dpo, beta: 0.1}}
policy: {{model: {tmp_path / "model"}}}
data:
  preferences: {{path: {tmp_path / "pairs.jsonl"}, prompt_role: user}}
  max_prompt_length: 32
  max_completion_length: 32
schedule: {{kind: offline}}
training: {{learning_rate: 1e-6, per_device_train_batch_size: 8}}
output_dir: {tmp_path / "run"}
"""
    )

    def diagnose_with(*overrides: str) -> Examination:
        return examine(load_recipe(tmp_path / "recipe.yaml", overrides).recipe)

    return diagnose_with


def failed(examination: Examination) -> dict[str, str]:
    return {finding.check: finding.text for finding in examination.findings if finding.verdict == "fail"}


def test_a_sound_recipe_passes_every_check(diagnose: Callable[..., Examination], tmp_path: Path) -> None:
    examination = diagnose()
    assert examination.is_sound and not failed(examination)
    checks = ["options", "optimizer", "data", "held-out rows", "encoding", "template", "BOS", "EOS", "boundary"]
    checks += ["truncation", "room", "learning rate", "reference"]
    assert [finding.check for finding in examination.findings] == checks
    assert {finding.verdict for finding in examination.findings} == {"ok"}
    assert not (tmp_path / "run").exists(), "it writes nothing there"
    assert not list((tmp_path / "model").glob("*.safetensors"))


def test_data_without_what_the_method_learns_from(diagnose: Callable[..., Examination]) -> None:
    """Pairs have comparisons and no scores."""
    found = failed(diagnose("method={name: lipo, beta: 0.1}"))
    assert list(found) == ["labels"]
    assert "learns from scores, and none of" in found["labels"] and "formats scored and ranked" in found["labels"]


def test_the_boundary_is_shown_with_its_marks(diagnose: Callable[..., Examination]) -> None:
    first = diagnose().boundaries[0]
    marks = [token.mark for token in (*first.prompt, *first.completion) if token is not None and token.mark]
    assert marks == ["BOS", "special", "EOS", "special", "EOS"]
    shown = "".join(token.text for token in first.completion if token is not None)
    assert shown.endswith(f"it is{END}")
    assert first.prompt[-1] is not None and first.prompt[-1].text == "<|assistant|>"


@pytest.mark.parametrize(
    ("change", "check", "said"),
    [
        (("{{ bos_token }}", "{{ bos_token }}" * 2), "encoding", "found two"),
        ((ROLE, ROLE + "{{ bos_token }}"), "BOS", "stands inside"),
        (("{% if add_generation_prompt %}<|assistant|>{% endif %}", ""), "encoding", "add_generation_prompt"),
    ],
    ids=["two BOS", "BOS in a turn", "no generation prompt"],
)
def test_faults_of_a_template(
    diagnose: Callable[..., Examination], tmp_path: Path, change: tuple[str, str], check: str, said: str
) -> None:
    write_model(tmp_path / "model", template=CHAT_TEMPLATE.replace(*change))
    found = failed(diagnose())
    assert list(found) == [check] and said in found[check]


def test_a_generation_prompt_that_ends_inside_a_word_merges(
    diagnose: Callable[..., Examination], tmp_path: Path
) -> None:
    """The template writes " nu" before each reply, the reply goes on with "mber": one token where both are known."""
    begun = CHAT_TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|> nu{% endif %}")
    begun = begun.replace(ROLE, ROLE + "{% if message.role == 'assistant' %} nu{% endif %}")
    write_model(tmp_path / "model", template=begun)
    lines = [{**line, "chosen": f"mber {i}", "rejected": f"mber it is {i}"} for i, line in enumerate(LINES)]
    write_lines(tmp_path / "pairs.jsonl", lines)
    found = failed(diagnose())
    assert list(found) == ["boundary"] and "merge the prompt's end" in found["boundary"]


def test_a_raw_prompt_that_ends_in_a_space_merges(diagnose: Callable[..., Examination], tmp_path: Path) -> None:
    write_lines(tmp_path / "pairs.jsonl", [{**line, "prompt": line["prompt"] + " "} for line in LINES])
    found = failed(diagnose("data.preferences.prompt_role=text"))
    assert list(found) == ["boundary"] and "move white space" in found["boundary"]
    sound = [{**line, "chosen": " " + line["chosen"], "rejected": " " + line["rejected"]} for line in LINES]
    write_lines(tmp_path / "pairs.jsonl", sound)
    assert diagnose("data.preferences.prompt_role=text").is_sound


def test_raw_text_for_a_model_with_a_template(diagnose: Callable[..., Examination], tmp_path: Path) -> None:
    """A note, because a base model may have one too; a tokenizer without one has nothing to pass."""
    write_lines(tmp_path / "pairs.jsonl", [{**line, "chosen": " " + line["chosen"]} for line in LINES])

    def of_template() -> Finding:
        findings = diagnose("data.preferences.prompt_role=text").findings
        return next(finding for finding in findings if finding.check == "template")

    assert of_template().verdict == "note" and "36 of 36 prompts are raw text, first pairs" in of_template().text
    settings = tmp_path / "model" / "chat_template.jinja"
    settings.unlink()
    assert of_template().verdict == "ok"


def test_rows_that_begin_with_no_bos(diagnose: Callable[..., Examination], tmp_path: Path) -> None:
    """The tiny tokenizer has one, which its template alone writes: no fault, and no count of nothing."""

    def of_bos(*overrides: str) -> Finding:
        return next(finding for finding in diagnose(*overrides).findings if finding.check == "BOS")

    assert of_bos() == Finding("BOS", "ok", "<|bos|> once at the start of 36 of 36 rows")
    raw = of_bos("data.preferences.prompt_role=text")
    assert raw == Finding("BOS", "ok", "no row begins with <|bos|>: the tokenizer puts none before raw text")
    write_model(tmp_path / "model", template=CHAT_TEMPLATE.replace("{{ bos_token }}", ""))
    said = "no row begins with <|bos|>: neither tokenizer nor template puts it there"
    assert of_bos() == Finding("BOS", "ok", said)


def test_no_end_token(diagnose: Callable[..., Examination], tmp_path: Path) -> None:
    settings = tmp_path / "model" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token": None}))
    found = failed(diagnose("data.preferences.prompt_role=text"))
    assert list(found) == ["encoding"] and "end-of-sequence" in found["encoding"]


def test_an_end_at_which_sampling_does_not_stop(diagnose: Callable[..., Examination], tmp_path: Path) -> None:
    write_model(tmp_path / "model", stop=7)
    found = failed(diagnose())
    assert list(found) == ["EOS"] and "stops at [7] only" in found["EOS"]


def test_truncation(diagnose: Callable[..., Examination], tmp_path: Path) -> None:
    examination = diagnose("data.max_completion_length=64")
    found = failed(examination)
    assert list(found) == ["truncation", "room"] and "the model has 64 positions" in found["truncation"]
    assert "expected room for min(max_new_tokens, max_completion_length) (for the KL to the ref" in found["room"]
    assert [finding.verdict for finding in examination.findings if finding.check == "truncation"] == ["fail"]
    long = [{**line, "prompt": line["prompt"] + " number" * 40 * (i % 4 > 0)} for i, line in enumerate(LINES)]
    write_lines(tmp_path / "pairs.jsonl", long)
    found = failed(diagnose())
    assert list(found) == ["truncation", "encoding"] and "of the rows are left out" in found["truncation"]


def test_truncation_that_leaves_no_difference(diagnose: Callable[..., Examination], tmp_path: Path) -> None:
    lines = [
        {**line, "chosen": f"because it is {i}", "rejected": f"because it was {i}"} for i, line in enumerate(LINES)
    ]
    write_lines(tmp_path / "pairs.jsonl", lines)
    assert diagnose().is_sound
    found = failed(diagnose("data.max_completion_length=1"))
    assert list(found) == ["truncation"] and "nothing of what differs" in found["truncation"]


@pytest.mark.parametrize(
    ("overrides", "check", "said"),
    [
        (["training.learning_rate=1e-3"], "learning rate", "more than 10 times off"),
        (["training.learning_rate=1e-9"], "learning rate", "more than 10 times off"),
        (["training.per_device_train_batch_size=64"], "learning rate", "fewer rows than one batch"),
        (["method.beta=50"], "options", "beta = 50; usual 0.01 to 0.5"),
        (["method.beta=1e-4"], "options", "beta = 0.0001"),
    ],
)
def test_numbers_far_from_the_paper(
    diagnose: Callable[..., Examination], overrides: list[str], check: str, said: str
) -> None:
    found = failed(diagnose(*overrides))
    assert list(found) == [check] and said in found[check]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.optim_args=foo", "training.optim, training.optim_args: expected what makes an optimizer"),
        ("training.optim_args='beta1=0.5'", "got beta1, which would change nothing"),
        ("training.lr_scheduler_kwargs={foo: 1}", "expected what makes a scheduler, got 'linear'"),
        (
            "training={learning_rate: 1e-6, lr_scheduler_type: constant, warmup_steps: 0.1}",
            "write training.lr_scheduler_type=constant_with_warmup (or",
        ),
    ],
)
def test_options_of_no_optimizer(diagnose: Callable[..., Examination], override: str, said: str) -> None:
    found = failed(diagnose(override))
    assert list(found) == ["optimizer"] and said in found["optimizer"]


def test_an_adapter_may_learn_ten_times_as_fast(diagnose: Callable[..., Examination]) -> None:
    """4e-5 at a batch of 8 is as 1.1e-4 at 64: too much for all weights (5e-5), not for an adapter (5e-4)."""
    assert list(failed(diagnose("training.learning_rate=4e-5"))) == ["learning rate"]
    assert diagnose("training.learning_rate=4e-5", "policy.lora={rank: 2}").is_sound


def test_a_tiny_model_is_not_judged_by_a_paper(diagnose: Callable[..., Examination]) -> None:
    tiny = ("policy={tiny: {vocab_size: 300}}", "policy.model=null")
    assert diagnose(*tiny, "training.learning_rate=1e-2").is_sound
    examination = diagnose(*tiny, "method.beta=50")
    assert examination.is_sound
    (note,) = [finding.text for finding in examination.findings if finding.verdict == "note"]
    assert note.startswith("beta = 50; usual 0.01 to 0.5") and note.endswith("a model as small as this one")


def test_references_of_nothing(diagnose: Callable[..., Examination], tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", texts=["quite another language"])
    same = write_model(tmp_path / "same")
    assert diagnose(f"policy.ref_model={same}").is_sound
    unread = failed(diagnose("method={name: simpo, beta: 2.0, gamma: 1.0}", f"policy.ref_model={same}"))
    assert list(unread) == ["reference"] and "reads no reference" in unread["reference"]
    foreign = failed(diagnose(f"policy.ref_model={other}"))
    assert list(foreign) == ["reference"] and "not the policy's" in foreign["reference"]
    missing = failed(diagnose(f"policy.ref_model={tmp_path / 'nowhere'}"))
    assert list(missing) == ["model"] and "nowhere" in missing["model"]
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    adapter = failed(diagnose("policy.lora={rank: 2}"))
    assert list(adapter) == ["reference"] and "is an adapter" in adapter["reference"]


def test_an_adapter_on_no_module(diagnose: Callable[..., Examination]) -> None:
    assert diagnose("policy.lora={rank: 2, target_modules: [q_proj, v_proj]}").is_sound
    found = failed(diagnose("policy.lora={rank: 2, target_modules: [query, v_proj]}"))
    assert list(found) == ["adapter"] and "no module is called query; the model has" in found["adapter"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("all-linear", "rank 2 on 7 modules: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"),
        (".*[qv]_proj", "rank 2 on 2 modules: q_proj, v_proj"),
        ("q_proj", "got 'q_proj', a regular expression for whole names, such as model.embed_tokens, "),
        ("[", "got '[', a regular expression"),
        (".*norm", "got '.*norm', a regular expression"),
        ("[all-linear]", "no module is called all-linear"),
        ("[]", "got []"),
    ],
)
def test_what_an_adapter_asks_for_is_read_as_peft_reads_it(
    diagnose: Callable[..., Examination], tmp_path: Path, asked: str, said: str
) -> None:
    """A text is a pattern for whole names; whatever passes here, an adapter is made of."""
    modules = json.dumps([name for name in asked[1:-1].split(",") if name]) if asked[-1] == "]" else json.dumps(asked)
    examination = diagnose(f"policy.lora={{rank: 2, target_modules: {modules}}}")
    (found,) = [finding for finding in examination.findings if finding.check == "adapter"]
    assert said in found.text and examination.is_sound == found.text.startswith("rank")


def test_held_out_prompts_that_are_trained_on(diagnose: Callable[..., Examination], tmp_path: Path) -> None:
    write_lines(tmp_path / "pairs.jsonl", [*LINES, *({**line, "prompt": line["prompt"].upper()} for line in LINES)])
    found = failed(diagnose("data.eval_fraction=0.5"))
    assert list(found) == ["held-out rows"] and "have the prompt of a held-out row" in found["held-out rows"]
    assert diagnose("data.eval_fraction=0.5", "data.duplicates={remove: exact}").is_sound
    assert diagnose("data.eval_fraction=0.5", "data.decontaminate={}").is_sound
    found = failed(diagnose(f"data.evaluation={{path: {tmp_path / 'pairs.jsonl'}}}"))
    assert list(found) == ["data"] and "expected prompts that are not trained on" in found["data"]


SAMPLED = (
    *("method={name: egpo, tau: 0.1}", "schedule.kind=online", "data.preferences=null"),
    *("sampling={max_new_tokens: 32}", "oracle={kind: rule, rule: shorter}"),
)


def sampled(diagnose: Callable[..., Examination], tmp_path: Path, *overrides: str) -> Examination:
    prompts = f"data.prompts={{path: {tmp_path / 'pairs.jsonl'}, prompt_role: user}}"
    return diagnose(*SAMPLED, prompts, *overrides)


def test_a_sound_recipe_that_samples(diagnose: Callable[..., Examination], tmp_path: Path) -> None:
    findings = sampled(diagnose, tmp_path).findings
    found = {finding.check: (finding.verdict, finding.text) for finding in findings}
    assert found["engine and oracle"] == ("ok", "answers by 'transformers', judged by rule shorter")
    verdict, said = found["room"]
    assert verdict == "ok" and said.startswith("an answer of 32 tokens fits behind the longest prompt, of ")
    assert said.endswith("in 64 positions")
    assert not failed(sampled(diagnose, tmp_path, "data.eval_fraction=0")), "nobody need be held out"
    listed = sampled(diagnose, tmp_path, "sampling.engine=enumerate", "sampling.responses=[a, b]").findings
    assert "room" not in [finding.check for finding in listed], "answers that are listed are read, not sampled"


def test_answers_that_are_not_the_policys_own(diagnose: Callable[..., Examination], tmp_path: Path) -> None:
    """Swapping the loss by one line keeps the temperature that the other method allowed."""
    hot = "sampling={max_new_tokens: 32, temperature: 2.0}"
    notes = {
        name: [
            finding.text
            for finding in sampled(diagnose, tmp_path, hot, f"method.name={name}").findings
            if finding.check == "samples" and finding.verdict == "note"
        ]
        for name in ("egpo", "online_ipo")
    }
    assert notes["egpo"] == []
    assert [note.partition(" are not")[0] for note in notes["online_ipo"]] == ["sampling: responses at temperature 2"]


JUDGE = "{kind: judge, model: m, base_url: 'http://127.0.0.1:9/v1', api_key_env: NO_SUCH_KEY}"
NO_KEY = "expected the key in the environment variable NO_SUCH_KEY, found it unset"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (f"oracle={JUDGE}", NO_KEY),
        (f"oracle={{kind: mixture, members: [{JUDGE}, {{kind: rule, rule: shorter}}]}}", NO_KEY),
        ("oracle={kind: pairwise, model: nowhere}", "expected a model with its tokenizer at 'nowhere'"),
        ("oracle={kind: bradley_terry, model: nowhere}", "expected a model with its tokenizer at 'nowhere'"),
        ("oracle={kind: language_model, model: nowhere}", "expected a model with its tokenizer at 'nowhere'"),
        pytest.param(
            "sampling.engine=vllm",
            "the engine 'vllm' needs the package 'vllm': expected the extra `vllm`",
            marks=pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is there"),
        ),
    ],
)
def test_who_is_not_there_to_answer_or_to_judge(
    diagnose: Callable[..., Examination], tmp_path: Path, override: str, said: str
) -> None:
    found = failed(sampled(diagnose, tmp_path, override))
    assert list(found) == ["engine and oracle"] and said in found["engine and oracle"]


def test_who_is_not_there_to_judge_held_out_answers(diagnose: Callable[..., Examination]) -> None:
    """A method that reads its data set asks nobody else."""
    found = failed(diagnose("data.eval_fraction=0.2", f"evaluation={{oracle: {JUDGE}}}"))
    assert list(found) == ["engine and oracle"] and NO_KEY in found["engine and oracle"]


def test_a_server_without_its_key_draws_no_answers(diagnose: Callable[..., Examination], tmp_path: Path) -> None:
    server = "{base_url: 'http://127.0.0.1:9/v1', model: m, api_key_env: NO_SUCH_KEY, serves_policy: true}"
    rounds = ("method={name: inpo, tau: 0.005, eta: 0.0075}", "schedule={kind: iterative}")
    engine = ("sampling.engine=openai", f"sampling.server={server}")
    found = failed(sampled(diagnose, tmp_path, *rounds, *engine))
    assert list(found) == ["engine and oracle"] and "environment variable NO_SUCH_KEY" in found["engine and oracle"]


@pytest.mark.parametrize("method", ["egpo", "inpo"])
def test_no_room_for_an_answer(diagnose: Callable[..., Examination], tmp_path: Path, method: str) -> None:
    """As training says it, in batches and in rounds; held-out prompts are answered, too."""
    rounds = ("method={name: inpo, tau: 0.005, eta: 0.0075}", "schedule={kind: iterative}")
    overrides = rounds if method == "inpo" else ()
    found = failed(sampled(diagnose, tmp_path, *overrides, "sampling.max_new_tokens=64"))
    assert list(found) == ["room"] and "expected room for max_new_tokens = 64 behind every prompt" in found["room"]
    write_lines(tmp_path / "held_out.jsonl", [{"prompt": "number " * 20 + str(i)} for i in range(4)])
    held_out = f"data.evaluation={{path: {tmp_path / 'held_out.jsonl'}, prompt_role: user}}"
    found = failed(sampled(diagnose, tmp_path, *overrides, held_out, "sampling.max_new_tokens=40"))
    assert list(found) == ["room"] and "4 of 44 prompts leave none" in found["room"]


def test_no_room_for_an_answer_that_is_only_judged(diagnose: Callable[..., Examination]) -> None:
    """A method that reads its data set has held-out prompts answered for the win rate, where somebody judges."""
    long = ("data.eval_fraction=0.5", "evaluation={max_new_tokens: 64, oracle: {kind: rule, rule: shorter}}")
    found = failed(diagnose(*long))
    assert list(found) == ["room"]
    assert "expected room for win_rate_max_new_tokens (in a recipe evaluation.max_new_tokens) = 64" in found["room"]
    assert "20 of 20 prompts leave none" in found["room"]
    fits = diagnose(*long, "evaluation.max_new_tokens=31").findings
    rooms = [finding.text for finding in fits if finding.check == "room"]
    for_the_kl, judged = (f"an answer of {n} tokens fits behind the longest held-out prompt, of " for n in (32, 31))
    assert [text.startswith(said) for text, said in zip(rooms, (for_the_kl, judged), strict=True)] == [True, True]
    same = diagnose(*long, "evaluation.max_new_tokens=32").findings
    assert [finding.check for finding in same].count("room") == 1, "said once"
    without_reference = diagnose("data.eval_fraction=0.5", "method={name: orpo, weight: 1.0}").findings
    assert "room" not in [finding.check for finding in without_reference], "nobody judges"


def test_held_out_answers_may_be_longer_than_in_training(diagnose: Callable[..., Examination], tmp_path: Path) -> None:
    judged = sampled(diagnose, tmp_path, "evaluation.max_new_tokens=48")
    assert [finding.verdict for finding in judged.findings if finding.check == "room"] == ["ok", "ok"]
    found = failed(sampled(diagnose, tmp_path, "evaluation.max_new_tokens=64"))
    assert list(found) == ["room"] and "win_rate_max_new_tokens" in found["room"]


def test_the_command(diagnose: Callable[..., Examination], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diagnose()
    recipe = str(tmp_path / "recipe.yaml")
    main_and_exit(["doctor", recipe], 0)
    out = capsys.readouterr().out
    assert " ‖ [" in out and "<|end|>' EOS]" in out and "fail" not in out
    main_and_exit(["doctor", recipe, "method.beta=50", "--rows", "0", "--json"], 2)
    report = json.loads(capsys.readouterr().out)
    assert report["is_sound"] is False and report["boundaries"] == []
    main_and_exit(["doctor", recipe, "data.preferences.path=nowhere.jsonl"], 2)
    assert "fail  data: nowhere.jsonl: expected a file, found nothing" in capsys.readouterr().out


def main_and_exit(arguments: list[str], code: int) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert (stopped.value.code or 0) == code
