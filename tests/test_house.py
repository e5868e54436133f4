"""The structure of the package: which way imports go, and how large a room may be."""

import ast
import sys
from collections import Counter
from pathlib import Path

import pytest

import arraycnn

ROOT = Path(arraycnn.__file__).parent
ORDER = (  # a module imports from its own line and those above
    "arrays errors version registry background interrupts",
    "arguments",
    "rng initializers geometry files",
    "backends",
    "parameters schedules",
    "functional metrics interchange.safetensors",
    "layers",
    "optim models data",
    "checkpoint interchange summary gradcheck explain testing",
    "training",
)
MOST_LINES, MOST_FILES = 400, 14


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(module: str) -> set[str]:
    """The package's modules that a module imports, inside of functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide where a module is"
            source = node.module or ""
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else source for name in names}
    own_packages = {module[:end] for end, letter in enumerate(module) if letter == "."}
    return {name for name in found if name in MODULES and name != module} - own_packages


GRAPH = {module: imports_of(module) for module in MODULES}


def rank(module: str) -> int:
    """The line of `ORDER` that names the module or the package that it is in, most exactly."""
    path = module.removeprefix("arraycnn.")
    ranks = {name: line for line, names in enumerate(ORDER) for name in names.split()}
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in ranks:
            return ranks[".".join(parts[:end])]
    return len(ORDER)  # the package itself, and programs


def test_nothing_imports_itself_by_a_detour() -> None:
    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = set(GRAPH[start])
        while waiting:
            module = waiting.pop()
            if module not in found:
                found.add(module)
                waiting |= GRAPH[module]
        return found

    assert [module for module in MODULES if module in reached(module)] == []


def test_imports_go_one_way() -> None:
    wrong = [
        (module, imported)
        for module, names in GRAPH.items()
        for imported in names
        if rank(imported) > rank(module)
    ]
    assert wrong == []


def test_rooms_are_small() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines())
             for name, path in MODULES.items()}  # fmt: skip
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
    files = Counter(path.parent for path in MODULES.values() if path.parent != ROOT)
    assert {folder: count for folder, count in files.items() if count > MOST_FILES} == {}


def test_no_module_has_a_name_of_the_standard_library() -> None:
    top = {path.stem for path in ROOT.glob("*.py")} | {p.name for p in ROOT.iterdir() if p.is_dir()}
    assert top & sys.stdlib_module_names == set()


@pytest.mark.parametrize("module", MODULES)
def test_errors_of_users_are_no_assertions(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree))
