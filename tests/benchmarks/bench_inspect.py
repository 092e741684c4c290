"""Time and memory of `occflow inspect` on stores of 100 and 1,000 keyframes, all of which are read.

The stores hold one exact street of the tests (25 keyframes, two cameras of 64x160, 36,000 LiDAR rays) under many names.
Each inspection runs in a process of its own, so that its peak memory is its own.

Usage: python tests/benchmarks/bench_inspect.py [--keyframes 100 1000]
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCENE = 25
CHILD = """
import json, sys, time
from eval.inspection.run import inspect_store
from eval.inspection.settings import InspectionSettings
def peak_kb():
    # Not ru_maxrss: that starts with what the parent held when it started this process.
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
started, opened = time.process_time(), peak_kb()
found = inspect_store(sys.argv[1], InspectionSettings(every=True)).result
peak = peak_kb()
used = time.process_time() - started
print(json.dumps([found["seconds"], used, opened / 1024, peak / 1024, found["sample"]["keyframes"]]))
"""


def write_store(path: Path, scenes: int) -> Path:
    """A store of the same street many times."""
    spec = importlib.util.spec_from_file_location("street", ROOT / "tests" / "eval" / "inspection" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    street = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(street)
    from storage.schema import StoreAttributes

    size = {"network_size": street.SIZE, "render_size": street.SIZE}
    named = {"dataset": "street", "cameras": street.CAMERAS, "classes": ("car",)}
    attributes = StoreAttributes(**named, **size, keyframe_interval_s=0.25, block_keyframes=SCENE)
    one = street.Street(keyframes=SCENE)
    table, cues = one.table(), one.cues()
    return street.write_store(path, attributes, {f"street-{k:04d}": (table, cues) for k in range(scenes)})


def main() -> None:
    """Print a line per store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keyframes", type=int, nargs="+", default=[100, 1000], help="Of each store.")
    for keyframes in parser.parse_args().keyframes:
        with tempfile.TemporaryDirectory() as folder:
            store = write_store(Path(folder) / "store.zarr", max(1, keyframes // SCENE))
            done = subprocess.run(
                [sys.executable, "-c", CHILD, store], cwd=ROOT, check=True, capture_output=True, text=True
            )
            seconds, used, opened, peak, count = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{count} keyframes: {seconds:.1f} s, of them {used:.1f} s of one core, {1000 * used / count:.0f} ms each; "
            f"peak memory {peak:.0f} MB, {opened:.0f} MB of them after the imports"
        )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
