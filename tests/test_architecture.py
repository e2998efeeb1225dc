"""The rules that hold the design together, each as a test: layers, names, facades, imports, style, packaging."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "alignment"

# A module imports only from its own layer or a lower one. A new module is added here, in the lowest layer that it fits.
LAYERS = [
    {"errors", "types", "seeds", "shapes", "functional", "telemetry", "values", "files", "progress"},
    {"methods", "games", "optim", "welfare", "cache"},
    {
        "tabular",
        "protocol",
        "policies",
        "attention",
        "packing",
        "head",
        "logps",
        "costs",
        "generation",
        "oracles",
        "data",
        "textgame",
        "tiny",
        "artefacts",
        "sharding",
        "weights",
        "ranks",
        "optimizer_options",
        "_trl_compat",
    },
    {
        "anchors",
        "stages",
        "rounds",
        "groups",
        "rewards",
        "evaluation",
        "diagnosis",
        "model_card",
        "store",
        "boundaries",
    },
    {
        "annotator",
        "arguments",
        "launch",
        "batches",
        "checkpoints",
        "iterations",
        "metrics",
        "resumable",
        "trainer",
        "trainers",
    },
    {
        "config",
        "preparation",
        "comparisons",
        "crossplay",
        "models",
        "folders",
        "fitting",
        "trained",
        "sample",
        "answering",
        "export",
        "evaluate",
        "exploitation",
        "mt_bench",
        "iterative",
        "players",
        "round_models",
        "loop",
        "ablation",
        "architectures",
        "budgets",
        "planning",
        "doctor",
        "report",
        "cli",
        "__main__",
    },
]
LAYER_OF = {module: layer for layer, modules in enumerate(LAYERS) for module in modules}

STRICT = ["errors", "functional", "games", "methods", "optim", "shapes", "types", "welfare"]

# Where a file outside methods/ may say a name that is also a method's, and why. (file, name or "*") -> reason.
ALLOWED: dict[tuple[str, str], str] = {
    ("alignment/types.py", "maxmin"): "a solution concept, which a card names",
    ("alignment/games/panel.py", "maxmin"): "a solution concept: the policy that it solves for",
    ("alignment/protocol.py", "*"): "the published simulation: which methods it compares, and at which options",
}


def python_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def package_files() -> list[Path]:
    """Every module but alignment/__init__.py, which names the whole public API and imports it lazily."""
    return [path for path in python_files(PACKAGE) if path != PACKAGE / "__init__.py"]


def method_files() -> list[Path]:
    return sorted(path for path in (PACKAGE / "methods").glob("*.py") if not path.stem.startswith("_"))


def method_names() -> set[str]:
    return {path.stem for path in method_files()}


def top_module(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, top-level module of the package) for every import, at whatever depth it stands."""
    package_parts = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package_parts[: len(package_parts) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from alignment import x` may name a module or a re-exported object.
            names = [f"{origin}.{alias.name}" for alias in node.names] if origin == "alignment" else [origin]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [f"{node.value.id}.{node.attr}"]  # after a plain `import alignment`
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "alignment" and rest and not rest.startswith("__"):  # __version__ is no module
                yield node.lineno, rest.partition(".")[0]


def test_every_module_has_a_layer() -> None:
    unknown = {top_module(path) for path in package_files()} - LAYER_OF.keys()
    assert not unknown, f"add {sorted(unknown)} to LAYERS in {relative(Path(__file__))}, in the lowest layer that fits"


def test_imports_point_down() -> None:
    upward = []
    for path in package_files():
        own = LAYER_OF.get(top_module(path), 0)
        for line, module in imported_modules(path, ast.parse(path.read_text())):
            where = f"{relative(path)}:{line}: imports {module or 'alignment'}"
            if module not in LAYER_OF:
                upward.append(f"{where}, which is no module of LAYERS")
            elif LAYER_OF[module] > own:
                upward.append(f"{where}, which is in layer {LAYER_OF[module]}, from layer {own}")
    assert not upward, "\n".join(upward)


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("alignment/methods/dpo.py", "from alignment.types import Needs", ["types"]),
        ("alignment/methods/dpo.py", "from ..games.zoo import cyclic", ["games"]),
        ("alignment/methods/dpo.py", "from . import _card", ["methods"]),
        ("alignment/loop.py", "def f():\n    import alignment.trainer as t", ["trainer"]),
        ("alignment/loop.py", "from alignment import stages, cli", ["stages", "cli"]),
        ("alignment/loop.py", "from . import stages", ["stages"]),
        ("alignment/loop.py", "import torch.nn.functional as F", []),
        ("alignment/cli.py", "from alignment import __version__", []),
        ("alignment/cli.py", "import alignment\nalignment.__version__", []),
        ("alignment/loop.py", "import alignment\nalignment.trainer", ["trainer"]),
    ],
)
def test_imports_are_read_in_every_form(path: str, source: str, expected: list[str]) -> None:
    assert [module for _, module in imported_modules(ROOT / path, ast.parse(source))] == expected


def names_said(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, word) for identifiers, import paths and whole string constants; docstrings are no constants."""
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in docstrings:
                yield node.lineno, text
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield node.lineno, name
            case ast.keyword(arg=str(name)):
                yield node.value.lineno, name
            case ast.Import(names=aliases):
                for alias in aliases:
                    yield from ((node.lineno, part) for part in alias.name.split("."))
            case ast.ImportFrom(module=module, names=aliases):
                for name in [module or "", *(alias.name for alias in aliases)]:
                    yield from ((node.lineno, part) for part in name.split("."))


def methods_named(tree: ast.Module, methods: set[str]) -> Iterator[tuple[int, str]]:
    for line, word in names_said(tree):
        if (name := word.removesuffix("_loss")) in methods:
            yield line, name


def test_no_file_outside_methods_names_a_method() -> None:
    methods = method_names()
    found: dict[tuple[str, str], list[int]] = {}
    for path in package_files():
        if top_module(path) not in {"methods", "trainers"}:
            for line, name in methods_named(ast.parse(path.read_text()), methods):
                found.setdefault((relative(path), name), []).append(line)
    named = [
        f"{file}:{lines[0]}: names the method {name!r}"
        for (file, name), lines in sorted(found.items())
        if not {(file, name), (file, "*")} & ALLOWED.keys()
    ]
    assert not named, "\n".join(named)
    stale = {(file, name) for file, name in ALLOWED if name in methods and (ROOT / file).exists()} - found.keys()
    assert not stale, f"ALLOWED lists what is no longer said: {sorted(stale)}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('if name == "dpo": pass', ["dpo"]),
        ("x = methods.dpo", ["dpo"]),
        ("from alignment.methods.dpo import dpo_loss", ["dpo", "dpo"]),
        ("f(dpo=1)", ["dpo"]),
        ("def dpo(): pass", ["dpo"]),
        ('"""dpo"""\ndef f():\n    "dpo"  # dpo', []),
        ('x = "needs more than dpo"', []),
        ("dpo_x = dpos = 1", []),
    ],
)
def test_names_of_methods_are_found(source: str, expected: list[str]) -> None:
    assert [name for _, name in methods_named(ast.parse(source), {"dpo"})] == expected


def test_facades_have_no_method_of_their_own() -> None:
    path = PACKAGE / "trainers.py"
    if not path.exists():
        pytest.skip("there is no alignment/trainers.py")
    wrong = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            for statement in node.body:
                docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
                if not docstring and not isinstance(statement, ast.Assign | ast.AnnAssign | ast.Pass):
                    wrong.append(
                        f"{relative(path)}:{statement.lineno}: {node.name} has more than a docstring and assignments"
                    )
            if len(node.bases) != 1 or node.keywords:
                wrong.append(f"{relative(path)}:{node.lineno}: {node.name} should have one base class, the trainer")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", sorted(method_names()))
def test_every_method_has_its_test(name: str) -> None:
    expected = ROOT / "tests" / "methods" / f"test_{name}.py"
    assert expected.exists(), f"alignment/methods/{name}.py has no {relative(expected)}"


def modules_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_importing_the_package_loads_no_framework() -> None:
    assert not modules_after("import alignment") & {"torch", "transformers", "trl", "datasets", "numpy", "matplotlib"}


def test_importing_the_methods_loads_no_language_model_stack() -> None:
    every = ", ".join(["alignment.methods", *(f"alignment.methods.{name}" for name in sorted(method_names()))])
    assert not modules_after(f"import {every}") & {
        "transformers",
        "trl",
        "peft",
        "accelerate",
        "datasets",
        "matplotlib",
    }


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_ruff(arguments: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "ruff", *arguments, "alignment", "scripts", "tests"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
def test_mypy_is_strict_on_the_pure_layers() -> None:
    present = [name for name in STRICT if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()]
    packages = [argument for name in present for argument in ("-p", f"alignment.{name}")]
    run = subprocess.run(
        [sys.executable, "-m", "mypy", *packages], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def text_files() -> Iterator[tuple[Path, str]]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file():
            try:
                yield path, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def test_no_file_names_a_package_host_or_a_path_of_one_machine() -> None:
    # Written in parts, so that this file does not say them.
    hosts = [
        ("py", "pi.org"),
        ("python", "hosted.org"),
        ("download.", "pytorch.org"),
        ("npm", "js.org"),
        ("conda", ".anaconda"),
    ]
    folders = ["work", "root", "home", "opt"]
    pattern = re.compile(
        "|".join([*(re.escape(a + b) for a, b in hosts), rf"(?<![\w.}})])/(?:{'|'.join(folders)})/\w"])
    )
    found = [
        f"{relative(path)}:{number}: {line.strip()[:100]}"
        for path, text in text_files()
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_the_wheel_works_outside_the_clone(tmp_path: Path) -> None:
    """Build it, install it into a fresh environment, list the recipes, and train one of them, all without the clone."""
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    environment["HF_HUB_OFFLINE"] = "1"

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            [str(part) for part in command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("nash_alignment-*.whl")

    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
    # The dependencies are lent by the environment of the tests. A .pth file puts a folder on the path but does not read
    # the .pth files in it, so an editable install there stays out.
    lent = dict.fromkeys(sysconfig.get_paths()[key] for key in ("purelib", "platlib"))
    (site / "lent.pth").write_text("\n".join(lent) + "\n")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)

    where = Path(run(python, "-c", "import alignment; print(alignment.__file__)").strip())
    assert where.is_relative_to(tmp_path)
    shipped = {
        path.relative_to(where.parent / "_recipes").as_posix() for path in where.parent.glob("_recipes/**/*.yaml")
    }
    ours = {path.relative_to(ROOT / "recipes").as_posix() for path in (ROOT / "recipes").rglob("*.yaml")}
    assert shipped == ours
    assert ours

    command = tmp_path / "venv" / "bin" / "alignment"
    assert "quickstart" in run(command, "recipes", "list")
    recipe = where.parent / "_recipes" / "dpo" / "tiny.yaml"
    run(command, "train", recipe, f"output_dir={tmp_path / 'run'}")
    assert any((tmp_path / "run").iterdir())
