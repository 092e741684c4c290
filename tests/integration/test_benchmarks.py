"""Benchmarks name functions of ours. When those move, nobody notices until a GPU is rented and the script dies."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "tests" / "benchmarks").glob("*.py"))


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts import each other by their folder, as when they are run."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    yield
    for name in set(sys.modules) - before:
        if name in {path.stem for path in SCRIPTS} or name.startswith("benchmark_"):
            del sys.modules[name]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_loads(path: Path, beside: None) -> None:
    assert _load(path).__doc__


def test_a_training_step_is_timed_part_by_part(
    beside: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = _load(ROOT / "tests" / "benchmarks" / "bench_train.py")
    monkeypatch.setattr(bench, "WARM_UP", 0)
    monkeypatch.setitem(bench.SIZES, "demo", ((32, 64), (32, 64)))
    smaller = [
        "model.grid.voxel=1.6",
        "rays.grid=[4,8]",
        "rays.strides=[2,3]",
        "rays.lidar=32",
        "model.render.samples=8",
    ]
    words = [word for override in smaller for word in ("--set", override)]
    monkeypatch.setattr(sys, "argv", ["bench_train.py", "--device", "cpu", "--stages", "2", "--steps", "1", *words])

    bench.main()

    shown = {line.split("  ")[0].strip(): line.split()[-1] for line in capsys.readouterr().out.splitlines()}
    parts = [*(name for names in bench.PARTS.values() for name in names), *(f"network: {m}" for m in bench.MODULES)]
    assert {"whole forward", "whole backward", "optimiser", "samples / s"} <= shown.keys()
    assert all(float(shown[part]) > 0 for part in parts if part in shown)
    assert {"cast_camera_rays", "supervise_flow", "supervise_ranges", "network: tpv"} <= shown.keys()


def test_what_a_gpu_day_reports(tmp_path: Path, beside: None) -> None:
    script = _load(ROOT / "tests" / "benchmarks" / "on_a_gpu.py")
    (tmp_path / "step.txt").write_text(
        "stage 2\n                                      bf16    compiled\n"
        "ms per step                          283.0       250.0\n"
        "samples / s                           3.53        4.00\n"
        "peak GiB                              22.0        19.1\n"
    )
    assert list(script.figures(tmp_path, rehearsal=False)) == [
        ("step", "bf16", "samples / s", 3.53), ("step", "compiled", "samples / s", 4.0),
        ("step", "bf16", "peak GiB", 22.0), ("step", "compiled", "peak GiB", 19.1),
    ]  # fmt: skip

    part = script.Part("broken", ("-c", "raise SystemExit(3)"), 1)
    assert script.run(part, tmp_path, 60) == "failed with 3"
    assert not (tmp_path / "broken.txt").exists(), "a part that failed is run again"
    assert script.run(script.Part("fine", ("-c", "print('here')"), 1), tmp_path, 60) == "done"
    assert (tmp_path / "fine.txt").read_text() == "here\n"
    assert "stopped after" in script.run(script.Part("long", ("-c", "import time; time.sleep(60)"), 1), tmp_path, 0.5)
