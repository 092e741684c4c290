"""Compiled loops: the bare function is compiled, wherever its cache may lie."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geometry.compiled import compile_loops, installed

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not installed(), reason="needs numba")


def _double(values: np.ndarray) -> None:
    for i in range(len(values)):
        values[i] *= 2


def test_runs_in_place_without_the_interpreter() -> None:
    compiled: Any = compile_loops(_double)
    values = np.array([1.0, -3.0])
    compiled(values)
    np.testing.assert_array_equal(values, [2.0, -6.0])
    assert compiled.nopython_signatures


def test_without_a_cache_folder_it_compiles_all_the_same(tmp_path: Path) -> None:
    """A source in a folder that nobody can write, and no home: here a folder's place is taken by a file."""
    source = tmp_path / "loops.py"
    source.write_text("def double(values):\n    for i in range(len(values)):\n        values[i] *= 2\n")
    (tmp_path / "__pycache__").write_text("a file")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.dont_write_bytecode = True\n"
        "import numpy as np\n"
        "from loops import double\n"
        "from geometry.compiled import compile_loops\n"
        "values = np.ones(3)\n"
        "compile_loops(double)(values)\n"
        "print(values.tolist())\n"
    )
    nowhere = {"HOME": str(source), "XDG_CACHE_HOME": str(source), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=nowhere, capture_output=True, text=True, check=False
    )
    assert ended.stdout == "[2.0, 2.0, 2.0]\n", ended.stderr
    assert not ended.stderr
