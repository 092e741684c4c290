"""What only a GPU can say, in one go: do the fast paths equal the plain ones, and how fast is the paper's step?

    make bench-gpu                                               # everything, some fifteen minutes on an H200
    python tests/benchmarks/on_a_gpu.py --out DIR --minutes 14   # what fits; the same command again goes on
    python tests/benchmarks/on_a_gpu.py --rehearse               # a small network on this CPU: does it all run?

Each part is a command of its own, whose output is kept as `<part>.txt`; one that is over is not run again. The table at
the end holds the step's speed and memory against the aims: 5 samples a second and 60 GiB.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = Path("tests/benchmarks")
AIMS = {"samples / s": 5.0, "peak GiB": 60.0}


@dataclass(frozen=True)
class Part:
    """A command: its name, its words after `python`, and the minutes after which it is stopped."""

    name: str
    words: tuple[str, ...]
    minutes: float


def parts(rehearsal: bool) -> Iterator[Part]:
    """What is run, what matters most first."""
    quiet = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore")
    step = (f"{BENCHMARKS}/bench_train.py", "--preset", "nuscenes", "--stages", "2")
    fast = ("float32",) if rehearsal else ("bf16", "compiled")
    small = ("--small", "--steps", "1") if rehearsal else ("--steps", "6")
    yield Part("equal_attention", (*quiet, "tests/model/test_fused.py"), 4)
    yield Part("step", (*step, "--variants", *fast, *small), 4)
    yield Part("step_two_samples", (*step, "--variants", *fast, *small, "--batch", "2"), 4)
    yield Part("step_plain", (*step, "--variants", "float32", *small, "--set", "model.attention=plain"), 4)
    yield Part("equal_step", (*quiet, "tests/train/test_speed.py"), 4)
    if not rehearsal:  # a CPU has neither this kernel's shapes nor device events
        yield Part("attention_shapes", (f"{BENCHMARKS}/bench_attention.py", "--sweep"), 4)
        yield Part("kernels", (*step, "--variants", "bf16", "--profile"), 4)
        yield Part("cue_models", (f"{BENCHMARKS}/bench_cues.py", "--device", "cuda"), 6)


def run(part: Part, folder: Path, seconds: float) -> str:
    """How the command ended: `done`, or why not. Its output is in `<name>.txt` then, or in `<name>.failed.txt`."""
    unfinished = folder / f"{part.name}.failed.txt"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    with unfinished.open("w") as output:
        try:
            command = [sys.executable, *part.words]
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds / 60:.1f} minutes"
    if done.returncode:
        return f"failed with {done.returncode}"
    unfinished.replace(folder / f"{part.name}.txt")
    return "done"


def figures(folder: Path, rehearsal: bool) -> Iterator[tuple[str, str, str, float]]:
    """Part, variant, figure and value, of every table of a training step that there is."""
    for part in parts(rehearsal):
        path = folder / f"{part.name}.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        for number, line in enumerate(lines):
            if line.startswith("ms per step"):
                variants = lines[number - 1].split()
            for name in AIMS:
                if line.startswith(name):
                    for variant, value in zip(variants, line.removeprefix(name).split(), strict=True):
                        yield part.name, variant, name, float(value)


def main() -> int:
    """Run what is not there yet; 1 where a part did not end well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="where the output of each part is kept")
    parser.add_argument("--minutes", type=float, default=60.0, help="of all parts together")
    parser.add_argument("--rehearse", action="store_true", help="a small network, on a CPU too")
    arguments = parser.parse_args()
    folder = arguments.out / "rehearsal" if arguments.rehearse else arguments.out
    if not arguments.rehearse:
        import torch

        if not torch.cuda.is_available():
            parser.error("torch sees no GPU (see `occflow doctor`); --rehearse tries the commands without one")
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * arguments.minutes
    failed = False
    for part in parts(arguments.rehearse):
        if (folder / f"{part.name}.txt").exists():
            print(f"{part.name}: there already", flush=True)
            continue
        left = end - time.monotonic()
        if left < 30:
            print(f"{part.name}: no time left; the same command again goes on", flush=True)
            continue
        began = time.monotonic()
        outcome = run(part, folder, min(left, 60 * part.minutes))
        failed |= outcome != "done"
        print(f"{part.name}: {outcome}, {time.monotonic() - began:.0f} s", flush=True)
    for name, variant, figure, value in figures(folder, arguments.rehearse):
        aim = "" if arguments.rehearse else f"   aim {AIMS[figure]:g}"  # which is not for a small network
        print(f"{name:20s} {variant:10s} {figure:12s} {value:8.2f}{aim}")
    print(f"output of each part: {folder}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
