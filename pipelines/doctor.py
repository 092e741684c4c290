"""What this machine can run: packages, devices, disk and what a store asks of it, each with the exact missing step."""

import fcntl
import os
import resource
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

from storage.chunks import OPEN_SHARDS

PARTS: dict[str, tuple[tuple[str, ...], str]] = {
    "training and evaluation": (("torch", "numpy", "einops", "safetensors", "lightning"), "pip install occflow"),
    "cue extraction": (("opencv-python-headless", "numba", "zarr", "scipy"), "pip install occflow"),
    "Prefect flow": (("prefect", "fastapi", "sqlalchemy"), "pip install -c constraints.txt occflow"),
    "Dask runner": (("dask", "distributed"), "pip install -c constraints.txt occflow"),
    "nuScenes' official splits": (("nuscenes-devkit",), "pip install 'occflow[nuscenes]'"),
    "detection and segmentation cues": (("transformers",), "pip install 'occflow[cues]'"),
    "object store": (("obstore",), "pip install 'occflow[s3]'"),
}
"""What a set of packages is for, and the step that installs it; the first four belong to the base install."""


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, "ok" / "optional" / "missing", what was found, what to do."""

    what: str
    state: str
    found: str
    remedy: str = ""


def examine(folder: Path = Path()) -> list[Finding]:
    """All findings for this machine; `folder` is where stores and runs would go."""
    return [_python(), *_packages(), *_torch(), _cores(), _disk(folder), _file_system(folder), _open_files()]


def _python() -> Finding:
    found = sys.version.split()[0]
    return Finding("Python", "ok", f"{found} at {sys.prefix}")


def _packages() -> list[Finding]:
    limits = _limits()
    findings = []
    for number, (part, (packages, remedy)) in enumerate(PARTS.items()):
        found, wrong = [], []
        for package in packages:
            try:
                present = version(package)
            except PackageNotFoundError:
                wrong.append(f"no {package}")
                continue
            limit = limits.get(package)
            if limit is not None and present not in limit.specifier:
                wrong.append(f"{package} {present}, needed {limit.specifier}")
            found.append(f"{package} {present}")
        state = "ok" if not wrong else "missing" if number < 4 else "optional"
        findings.append(Finding(part, state, ", ".join(wrong or found), remedy if wrong else ""))
    return findings


def _limits() -> dict[str, Requirement]:
    """Version limits that the installed distribution states, by package name."""
    from importlib.metadata import requires

    try:
        lines = requires("occflow") or []
    except PackageNotFoundError:
        return {}
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def _torch() -> list[Finding]:
    try:
        torch = import_module("torch")
    except ImportError as error:
        return [Finding("PyTorch", "missing", str(error), "pip install -c constraints.txt torch")]
    findings = []
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        findings.append(Finding("GPU", "ok", ", ".join(devices)))
    else:
        step = "" if torch.version.cuda else "for GPUs install a CUDA build of torch (README)"
        findings.append(Finding("GPU", "optional", f"none seen by torch {torch.__version__}", step))
    try:
        import_module("torchvision")
        findings.append(Finding("torchvision", "ok", "imports (not needed)"))
    except ModuleNotFoundError:
        findings.append(Finding("torchvision", "ok", "absent (not needed)"))
    except (ImportError, RuntimeError) as error:
        # A broken one is worse than none: transformers then fails to import as well.
        findings.append(Finding("torchvision", "missing", f"broken: {error}", "pip uninstall torchvision"))
    return findings


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("CPU cores", "ok" if cores >= 2 else "optional", str(cores), "" if cores >= 2 else "2 or more help")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder.resolve()).free
    enough = free > 2e9
    remedy = "" if enough else "the demo takes about 1 GB: free some, or run in another folder"
    return Finding("disk", "ok" if enough else "missing", f"{free / 1e9:.1f} GB free at {folder.resolve()}", remedy)


def _file_system(folder: Path) -> Finding:
    """Whether a store can be written here: locks that exclude, links that refuse to overwrite, renames."""
    where = folder.resolve()
    try:
        with tempfile.TemporaryDirectory(dir=where, prefix=".occflow-doctor-") as name:
            first, second = Path(name) / "first", Path(name) / "second"
            first.touch()
            with first.open() as one, first.open() as other:
                fcntl.flock(one, fcntl.LOCK_EX)
                try:
                    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return Finding("file system", "missing", f"locks at {where} exclude nobody", _ELSEWHERE)
                except BlockingIOError:
                    pass
            os.link(first, second)
            os.replace(second, first)
    except OSError as error:
        return Finding("file system", "missing", f"{where}: {error.strerror or error}", _ELSEWHERE)
    return Finding("file system", "ok", f"locks, links and renames work at {where}")


_ELSEWHERE = "put stores on a local disk, or on NFS 4 or Lustre mounted with flock, and own the folder"


def _open_files() -> Finding:
    """Every process that reads a store keeps up to OPEN_SHARDS of its files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft == resource.RLIM_INFINITY or soft >= 4 * OPEN_SHARDS
    step = "" if enough else f"ulimit -n {4 * OPEN_SHARDS if hard < 0 else min(hard, 4 * OPEN_SHARDS)}"
    return Finding("open files", "ok" if enough else "optional", f"{soft} per process", step)
