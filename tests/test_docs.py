"""What the pages in docs/ show is read and run as it stands there, and what they link is there.

A block may say the name of a file after its language, as in ``python mylab/methods.py``: all such files of a page are
written before a block of the page is run. Functions of a block that are called ``test_...`` are called.
"""

import dataclasses
import re
import shlex
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter
from typer.main import get_command

from alignment.cli import app, main
from alignment.config import DataSpec, Recipe, load_recipe, recipes_folder
from alignment.config.ablation import load_ablation
from alignment.config.evaluation import load_evaluation_recipe
from alignment.config.parsing import parse_text
from alignment.config.training import training_keys, training_problems
from alignment.methods import build_method
from alignment.oracles import check_oracle
from alignment.oracles.build import KINDS
from alignment.preparation import prepare_data

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
LINKED = [*PAGES, *ROOT.glob("*.md"), ROOT / "recipes" / "README.md"]

_FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# The text game supervises its model first, which takes half a minute where it is not cached.
_SLOW = "TextGame.build"


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page, and what follows it if that is what it prints."""

    page: Path
    language: str
    file: str | None
    text: str
    prints: str | None


def _blocks_of(page: Path) -> list[Block]:
    found = [one.groups() for one in _FENCE.finditer(page.read_text())]
    return [
        Block(page, *one, prints=after[2] if after is not None and after[0] == "text" else None)
        for one, after in zip_longest(found, found[1:])
    ]


BLOCKS = [block for page in PAGES for block in _blocks_of(page)]


def blocks(*languages: str) -> list[Any]:
    return [
        pytest.param(
            block,
            id=f"{block.page.relative_to(ROOT / 'docs').with_suffix('')}-{number}",
            marks=[pytest.mark.slow] if _SLOW in block.text else [],
        )
        for number, block in enumerate(block for block in BLOCKS if block.language in languages)
    ]


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the block's page names, to work in and to import from."""
    block: Block = request.getfixturevalue("block")
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_prompt.txt").write_text("{prompt} {left} {right}")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for other in BLOCKS:
        if other.page == block.page and other.file is not None:
            (tmp_path / other.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / other.file).write_text(other.text)
    for name in ("ALIGNMENT_REAL_DATA", "PREFERENCES", "PROMPTS", "JUDGE"):
        monkeypatch.setenv(name, "unset")

    def forget() -> None:
        for name in set(sys.modules) - before:
            origin = vars(sys.modules[name]).get("__file__")
            if origin is not None and Path(origin).is_relative_to(tmp_path):
                del sys.modules[name]

    request.addfinalizer(forget)
    return tmp_path


def test_every_block_says_its_language() -> None:
    """And is of a kind that something here checks, or that is only to be looked at."""
    shown = {"text", "sql", "math"}
    checked = {"python", "yaml", "bash", "jsonl", "csv"}
    unknown = [(block.page.name, block.language) for block in BLOCKS if block.language not in shown | checked]
    assert not unknown
    for page in PAGES:
        assert len(re.findall(r"^```", page.read_text(), re.MULTILINE)) == 2 * len(_blocks_of(page)), page


@pytest.mark.parametrize("block", blocks("yaml"))
def test_recipe_blocks_are_sound(block: Block, folder: Path) -> None:
    """A block that names an output folder is a whole recipe; any other is a part of one, key by key."""
    tree = parse_text(block.text, "docs")
    if "output_dir" in tree:
        Path("block.yaml").write_text(block.text)
        loads = {"policies": load_evaluation_recipe, "seeds": load_ablation, "method": load_recipe}
        loads[next(key for key in loads if key in tree)]("block.yaml")
        return
    for key, value in tree.items():
        assert key in Recipe.model_fields, f"'{key}' is no block of a recipe"
        field = Recipe.model_fields[key]
        TypeAdapter(Annotated[field.annotation, field]).validate_python(value)
    if tree.get("oracle"):
        check_oracle(tree["oracle"])
    if tree.get("method"):
        build_method(tree["method"])
    assert not training_problems(tree.get("training") or {}, training_keys())


def reads_only_shown_files(block: Block) -> bool:
    """Whether a block has data, all of it in files that its page shows; others name a user's files, or the Hub."""
    tree = parse_text(block.text, "docs")
    if "data" not in tree:
        return False
    shown = {other.file for other in BLOCKS if other.page == block.page}
    return all(path in shown for source in DataSpec.model_validate(tree["data"]).sources for path in source.path)


def test_the_page_about_data_shows_its_files() -> None:
    """All but the blocks whose data stand elsewhere, so that the next test cannot become empty."""
    page = ROOT / "docs" / "data.md"
    of_data = [block for block in BLOCKS if block.page == page and block.language == "yaml"]
    assert sum(map(reads_only_shown_files, of_data)) >= 13


@pytest.mark.parametrize("block", [one for one in blocks("yaml") if reads_only_shown_files(one.values[0])])
def test_data_blocks_read_what_stands_beside_them(block: Block, folder: Path) -> None:
    """A block of data whose files the page shows is carried out; what it prints is what the page says."""
    spec = DataSpec.model_validate(parse_text(block.text, "docs")["data"])
    said: list[str] = []
    data = prepare_data(spec, seed=0, announce=said.append)
    assert data.train
    if block.prints is not None:
        assert said == block.prints.splitlines()


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_run(block: Block, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "docs"}
    exec(compile(block.text, str(block.page), "exec"), names)
    for name, value in list(names.items()):
        if name.startswith("test_"):
            value()


@pytest.mark.parametrize("block", blocks("bash"))
def test_commands_exist(block: Block, folder: Path) -> None:
    """Every command is one of ours with options that it has, and a shipped recipe takes the overrides shown."""
    for words in _commands(block.text):
        if words[:2] == ["python", "-m"]:
            words = words[2:]
        if words[0] in ("accelerate", "python", "bash"):
            script = next(word for word in words if word.endswith((".py", ".sh")))
            assert (ROOT / script).is_file(), script
            words = ["alignment", "train", *words[words.index(script) + 1 :]]
            if script != "scripts/train.py":
                continue
        if words[0] != "alignment":
            continue
        command, arguments = parse_command(words[1:])
        recipe = arguments.get("recipe")
        if command in ("train", "doctor", "plan", "rollout", "judge", "annotate") and (folder / recipe).is_file():
            load_recipe(folder / recipe, arguments["overrides"] or ())


@pytest.mark.parametrize("block", [one for one in blocks("bash") if one.values[0].prints is not None])
def test_commands_print_what_the_page_shows(block: Block, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in _commands(block.text):
        with pytest.raises(SystemExit) as stopped:
            main(words[1:])
        assert stopped.value.code == 0
    assert capsys.readouterr().out.strip() == str(block.prints).strip()


def _commands(text: str) -> list[list[str]]:
    """Words of every line, without comments, prompts and variables that are set for the command."""
    lines = text.replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    bare = [[word for n, word in enumerate(words) if n or not re.match(r"[A-Z_]+=", word)] for words in split]
    while any(words and re.match(r"[A-Z_]+=", words[0]) for words in bare):
        bare = [words[1:] if words and re.match(r"[A-Z_]+=", words[0]) else words for words in bare]
    return [words for words in bare if words]


def parse_command(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The name of a command and its arguments, parsed and not run; an error of the parser if there is none."""
    command: Any = get_command(app)
    context = command.make_context("alignment", list(words))
    name = "alignment"
    while "commands" in vars(command):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    return name, context.params


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_commands_in_the_text_exist(page: Path) -> None:
    """``alignment ...`` between backticks: the command, and every option that is named."""
    for span in re.findall(r"`alignment ([^`]*)`", _without_fences(page.read_text())):
        words = span.split()
        if not words or not re.fullmatch(r"[a-z]+", words[0]):
            continue
        command: Any = get_command(app)
        while words and "commands" in vars(command):
            assert words[0] in command.commands, f"{page}: alignment {span}"
            command, words = command.commands[words[0]], words[1:]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, f"{page}: alignment {span}"


def _without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """How GitHub names the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", _without_fences(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Files and headings that a page links exist."""
    text = re.sub(r"`[^`\n]*`", "", _without_fences(page.read_text()))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name} links {target}"
        assert not anchor or anchor in _anchors(linked), f"{page.name} links {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_tables_and_formulas_are_well_formed(page: Path) -> None:
    """As many cells in every row; balanced formulas that Markdown cannot take for something else."""
    text = page.read_text()
    rows = 0
    for line in _without_fences(text).splitlines():
        if line.startswith("|"):
            cells = len(re.split(r"(?<!\\)\|", line)) - 2
            assert rows in (0, cells), f"{page.name}: expected {rows} cells in {line}"
            rows = cells
        else:
            rows = 0
        assert line.count("$") % 2 == 0 or "`" in line, f"{page.name}: an open formula in {line}"
    inline = re.findall(r"\$([^$\n`]+)\$", re.sub(r"`[^`\n]*`", "", _without_fences(text)))
    assert not [formula for formula in inline if re.search(r"\\[^\w ]|\*", formula)]
    for formula in [*inline, *(block.text for block in _blocks_of(page) if block.language == "math")]:
        bare = re.sub(r"\\[{}]", "", formula)
        assert bare.count("{") == bare.count("}"), formula
        assert len(re.findall(r"\\left(?![a-z])", bare)) == len(re.findall(r"\\right(?![a-z])", bare)), formula


def test_every_key_of_a_judge_is_explained() -> None:
    """And every kind, and no other."""
    page = (ROOT / "docs" / "oracles.md").read_text()
    said = set(re.findall(r"`(\w+)`", page)) | set(re.findall(r"^  (\w+):", page, re.MULTILINE))
    missing = [key for key in (*KINDS, *KINDS["judge"].model_fields) if key not in said]
    assert not missing


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.parent.name != "methods"]
    assert not [page for page in pages if page != "README.md" and f"]({page})" not in index]
    assert "](methods/README.md)" in index and recipes_folder().is_dir()
