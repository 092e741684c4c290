"""What the doctor says of a machine, and the step it names where something is missing."""

import errno
import fcntl
import os
import resource
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, NoReturn

import pytest

import pipelines.doctor
from pipelines.doctor import Finding, examine


@pytest.fixture
def said(tmp_path: Path) -> Callable[[str], Finding]:
    """The finding about something."""

    def find(what: str) -> Finding:
        (found,) = [finding for finding in examine(tmp_path) if finding.what == what]
        return found

    return find


def test_here_the_base_install_is_whole(tmp_path: Path) -> None:
    findings = {finding.what: finding for finding in examine(tmp_path)}
    for what in ("Python", "training and evaluation", "cue extraction", "Prefect flow", "Dask runner", "file system"):
        assert findings[what].state == "ok", findings[what]
    assert all(finding.remedy for finding in findings.values() if finding.state == "missing")
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing_names_the_command(
    said: Callable[[str], Finding], monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name in ("distributed", "obstore"):
            raise PackageNotFoundError(name)
        return "2026.8.0"

    monkeypatch.setattr(pipelines.doctor, "version", version)
    monkeypatch.setattr(pipelines.doctor, "_limits", dict)
    dask, objects = said("Dask runner"), said("object store")
    assert (dask.state, dask.found) == ("missing", "no distributed")
    assert dask.remedy == "pip install -c constraints.txt occflow"
    assert (objects.state, objects.remedy) == ("optional", "pip install 'occflow[s3]'")


def test_a_full_disk(said: Callable[[str], Finding], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=10**9)
    monkeypatch.setattr(pipelines.doctor.shutil, "disk_usage", lambda folder: usage)
    found = said("disk")
    assert found.state == "missing"
    assert "1.0 GB free" in found.found
    assert "free some" in found.remedy


def no_links(*arguments: Any) -> NoReturn:
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


@pytest.mark.parametrize(
    ("module", "name", "instead", "words"),
    [(fcntl, "flock", lambda *a: None, "exclude nobody"), (os, "link", no_links, "Operation not supported")],
)
def test_a_file_system_that_cannot_hold_a_store(
    said: Callable[[str], Finding], monkeypatch: pytest.MonkeyPatch, module: Any, name: str, instead: Any, words: str
) -> None:
    monkeypatch.setattr(module, name, instead)
    found = said("file system")
    assert found.state == "missing"
    assert words in found.found
    assert "NFS 4 or Lustre" in found.remedy


def test_few_open_files(said: Callable[[str], Finding], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    found = said("open files")
    assert (found.state, found.remedy) == ("optional", "ulimit -n 512")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 4096))
    assert said("open files").state == "ok"
