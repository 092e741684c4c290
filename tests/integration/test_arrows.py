"""Which room may import which, and what no module may import when it is loaded."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARROWS = {
    "geometry": set(),
    "storage": set(),
    "model": {"geometry"},
    "train": {"geometry", "storage", "model"},
    "eval": {"geometry", "storage", "model"},
    "pipelines": {"geometry", "storage", "eval.labels", "eval.inspection.report", "eval.inspection.settings"},
}
HEAVY = {"zarr", "prefect", "numba", "cv2", "transformers", "torchvision", "dask", "distributed"}


def imports(path: Path, top_only: bool = False) -> Iterator[tuple[str, int]]:
    """Modules imported in a file, "a.b" for `from a.b import c` and for `from a import b` both "a" and "a.b"."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module in ARROWS:
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield node.module, node.lineno


@pytest.mark.parametrize("room", ARROWS)
def test_rooms_import_only_along_the_arrows(room: str) -> None:
    wrong = []
    for path in sorted((ROOT / room).rglob("*.py")):
        for name, line in imports(path):
            target = name.split(".")[0]
            allowed = target == room or target in ARROWS[room] or name in ARROWS[room]
            if (target in ARROWS and not allowed) or target.startswith("occflow"):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {name}")
    assert wrong == []


@pytest.mark.parametrize("room", ["geometry", "model", "train", "eval"])
def test_training_machines_need_no_cue_packages(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for name, line in imports(path, top_only=True)
        if name.split(".")[0] in HEAVY
    ]
    assert wrong == []


def test_the_command_line_loads_nothing_heavy() -> None:
    allowed = {
        "typer",
        "rich",
        "yaml",
        "functools",
        "json",
        "os",
        "sys",
        "collections",
        "contextlib",
        "pathlib",
        "shlex",
        "time",
        "typing",
    }
    own = {"occflow_eval", "occflow_inspect", "occflow_shell", "occflow_store", "occflow_weights"}
    for module in ("occflow", *own):
        loaded = {name.split(".")[0] for name, _ in imports(ROOT / f"{module}.py", top_only=True)}
        assert loaded <= allowed | own, module


def test_nobody_says_import_eval() -> None:
    files = [*ROOT.glob("occflow*.py"), *(path for room in ARROWS for path in (ROOT / room).rglob("*.py"))]
    bare = [f"{path}:{line}" for path in files for name, line in imports(path) if name == "eval"]
    assert bare == []


def test_folders_that_must_not_be_packages() -> None:
    assert not (ROOT / "docker" / "__init__.py").exists()
    assert list((ROOT / "tests").rglob("__init__.py")) == []
