"""Training from a store in a bucket: the same losses, to the bit, as from the same store on a disk."""

from collections.abc import Callable
from pathlib import Path

import pytest

from storage.backend import backend
from storage.location import ObjectPath, as_location
from storage.verify import verify
from tests.storage.s3_server import FaultProxy, bucket, proxy, random_faults, s3  # noqa: F401
from train.config import TrainConfig, dump_config, load_config
from train.loop import train

Make = Callable[..., TrainConfig]


def upload(store: Path, address: str) -> ObjectPath:
    """Copy a store's files as they are."""
    path = as_location(address)
    assert isinstance(path, ObjectPath)
    files = {p.relative_to(store).as_posix(): p.read_bytes() for p in store.rglob("*") if p.is_file()}
    backend(path).replace(files)
    return path


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_same_losses_as_from_a_disk(
    tiny_config: Make, tiny_store: Path, tmp_path: Path, request: pytest.FixtureRequest, workers: int
) -> None:
    address = request.getfixturevalue("bucket")
    trouble: FaultProxy = request.getfixturevalue("proxy")
    there = upload(tiny_store, f"{address}/store.zarr")
    trouble.plan = random_faults(1, 0.05)
    data = {"workers": workers}
    here = train(tiny_config(out=tmp_path / "disk", data=data))
    remote = tiny_config(store=str(there), out=tmp_path / "bucket", data=data)
    assert remote.store == there
    found = train(remote)
    assert [stage.losses for stage in found.stages] == [stage.losses for stage in here.stages]
    assert found.finished
    assert trouble.faults()
    (tmp_path / "again.yaml").write_text(dump_config(remote))
    assert load_config(tmp_path / "again.yaml") == remote
    trouble.plan = lambda method, path, number: None
    assert verify(there) == []
