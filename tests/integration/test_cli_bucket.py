"""The command line on a store in a bucket, as a user meets it."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.backend import backend
from storage.location import as_location
from storage.store import CueStore
from tests.storage.s3_server import FaultProxy, bucket, make_bucket, proxy, random_faults, s3  # noqa: F401

Run = Callable[..., "subprocess.CompletedProcess[str]"]
UNITS = 2 * (1 + 4 * 4)


@pytest.mark.slow
def test_cues_status_verify(occflow: Run, config_file: Path, bucket: str, proxy: FaultProxy) -> None:  # noqa: F811
    store = f"{bucket}/here/store.zarr"
    cues = ("cues", config_file, "--runner", "plain", "--store", store)
    dry = occflow(*cues, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "a bucket has no end" in dry.stdout
    assert not as_location(store).exists()

    proxy.plan = random_faults(0, 0.03)
    first = occflow(*cues)
    assert first.returncode == 0, first.stderr
    assert f"{UNITS} units committed" in first.stdout
    assert f"next: occflow status {store}" in first.stdout
    again = occflow(*cues)
    assert f"0 units committed (0.0 MB), {UNITS} were current" in again.stdout, again.stderr
    status = occflow("status", store)
    assert status.returncode == 0, status.stderr
    assert len(re.findall(r"\bcomplete\b", status.stdout)) == 8
    assert status.stdout.count("missing") == 6
    assert occflow("verify", store).returncode == 0
    assert proxy.faults()
    proxy.plan = lambda method, path, number: None

    # The same extraction into a folder gives the same units, byte for byte.
    assert occflow("cues", config_file, "--runner", "plain").returncode == 0
    here = {record.unit: record for record in CueStore.open(config_file.with_name("store.zarr")).records()}
    there = {record.unit: record for record in CueStore.open(store).records()}
    assert here.keys() == there.keys()
    for unit, record in here.items():
        assert record.fingerprint == there[unit].fingerprint
        assert [(s.key, s.sha256) for s in record.shards] == [(s.key, s.sha256) for s in there[unit].shards]

    place = backend(as_location(store))
    shard = next(key for key in place.list("scenes/00/images") if "/c." in key)
    data = bytearray(place.get(shard))
    data[len(data) // 2] ^= 1
    place.replace({shard: bytes(data)})
    damaged = occflow("verify", store)
    assert damaged.returncode == 1
    assert f"{store}/{shard}" in damaged.stdout
    assert occflow("verify", store, "--repair").returncode == 0
    assert "1 units committed" in occflow(*cues).stdout
    assert occflow("verify", store).returncode == 0


@pytest.mark.slow
def test_copy_subset_prune(occflow: Run, config_file: Path, bucket: str) -> None:  # noqa: F811
    assert occflow("cues", config_file, "--runner", "plain").returncode == 0
    here, there = config_file.with_name("store.zarr"), f"{bucket}/store.zarr"
    dry = occflow("store", "copy", here, there, "--dry-run")
    assert f"{UNITS} units (" in dry.stdout, dry.stderr
    assert not as_location(there).exists()
    part = occflow("store", "subset", here, there, "--scenes", "01", "--cues", "lidar")
    assert "5 units copied" in part.stdout, part.stderr
    rest = occflow("store", "copy", here, there)
    assert f"{UNITS - 5} units copied" in rest.stdout, rest.stderr
    assert f"next: occflow verify {there}" in rest.stdout
    assert occflow("verify", there).returncode == 0
    again = occflow("cues", config_file, "--runner", "plain", "--store", there)
    assert f"0 units committed (0.0 MB), {UNITS} were current" in again.stdout, "a copy is as good as the store itself"
    backend(as_location(there)).create("scenes/01/images/c.9.0.0", b"stray")
    pruned = occflow("store", "prune", there)
    assert "c.9.0.0: no commit record names it (5 bytes)" in pruned.stdout, pruned.stderr
    assert "1 files, 0.0 MB removed" in pruned.stdout
    assert occflow("verify", there).returncode == 0


def test_errors_are_one_paragraph(occflow: Run, config_file: Path, bucket: str) -> None:  # noqa: F811
    for arguments, words in (
        (("status", f"{bucket}/none.zarr"), ["no cue store here", f"{bucket}/none.zarr"]),
        (("verify", "s3://not-there/x.zarr"), ["no bucket 'not-there'", "aws s3 mb"]),
        (("cues", config_file, "--runner", "plain", "--store", "s3://not-there/x.zarr"), ["no bucket 'not-there'"]),
        (("cues", config_file, "--store", "gs://bucket/x.zarr"), ["gs://bucket/x.zarr", "s3://bucket/prefix"]),
        (("status", "s3://X"), ["no bucket name"]),
        (("store", "copy", f"{bucket}/none.zarr", config_file.with_name("x.zarr")), ["no cue store here"]),
        (("store", "prune", f"{bucket}/none.zarr"), ["no cue store here", f"{bucket}/none.zarr"]),
    ):
        result = occflow(*arguments)
        assert result.returncode in (1, 2), result.stdout
        assert "Traceback" not in result.stderr
        for word in words:
            assert word in result.stderr
