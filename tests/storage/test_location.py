"""Paths and s3:// addresses as one type."""

import os
import pickle
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from storage.configured import StoreLocation
from storage.errors import StoreError
from storage.location import ObjectPath, as_location
from storage.truth import truth_path


@pytest.mark.parametrize(
    ("text", "bucket", "key"),
    [
        ("s3://bucket/a/b.zarr", "bucket", "a/b.zarr"),
        ("s3://bucket", "bucket", ""),
        ("s3://bucket//a///b.zarr/", "bucket", "a/b.zarr"),
        ("s3:/bucket/a", "bucket", "a"),  # what pathlib makes of it
    ],
)
def test_addresses(text: str, bucket: str, key: str) -> None:
    for given in (text, Path(text)):
        found = as_location(given)
        assert isinstance(found, ObjectPath)
        assert (found.bucket, found.key) == (bucket, key)
    assert as_location(str(found)) == found
    assert pickle.loads(pickle.dumps(found)) == found
    assert {found: 1}[ObjectPath(bucket, key)] == 1


@pytest.mark.parametrize("text", ["a/b.zarr", "/a/b.zarr", "s3/bucket", "./s3:x/y", "b.zarr"])
def test_all_else_is_a_path(text: str) -> None:
    assert as_location(text) == Path(text)
    assert as_location(Path(text)) == Path(text)


def test_a_file_address_is_a_path() -> None:
    assert as_location("file:///a/b.zarr") == Path("/a/b.zarr")


@pytest.mark.parametrize("text", ["s3://", "s3://B/x", "s3://a/x", "s3://bucket/../x", "gs://bucket/x", "http://h/x"])
def test_what_is_no_store_is_refused(text: str) -> None:
    with pytest.raises(StoreError, match=r"s3://"):
        as_location(text)


def test_it_does_what_paths_do() -> None:
    path = as_location("s3://bucket/a/store.zarr")
    assert isinstance(path, ObjectPath)
    assert str(path / "x" / "y.json") == "s3://bucket/a/store.zarr/x/y.json"
    assert (path.name, path.stem, path.suffix) == ("store.zarr", "store", ".zarr")
    assert path.parent == ObjectPath("bucket", "a")
    assert truth_path(path) == ObjectPath("bucket", "a/store.truth.zarr")
    assert (path / "x/y").relative_to(path).parts == ("x", "y")
    with pytest.raises(ValueError, match="not below"):
        path.relative_to(Path("a"))
    with pytest.raises(TypeError):
        os.fspath(path)  # type: ignore[call-overload]
    with pytest.raises(AttributeError):
        path.key = "other"


class Settings(BaseModel):
    """A configuration with a store."""

    store: StoreLocation


@pytest.mark.parametrize("text", ["s3://bucket/a.zarr", "runs/a.zarr"])
def test_in_a_configuration(text: str) -> None:
    settings = Settings.model_validate({"store": text})
    assert settings.store == as_location(text)
    assert settings.model_dump(mode="json") == {"store": text}
    assert Settings.model_validate_json(settings.model_dump_json()) == settings
    assert Settings.model_json_schema()["properties"]["store"]["type"] == "string"


def test_variables_and_home_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "bucket/x")
    monkeypatch.setenv("HOME", "/home/me")
    assert str(Settings(store="s3://$WHERE/a.zarr").store) == "s3://bucket/x/a.zarr"  # type: ignore[arg-type]
    assert str(Settings(store="~/a.zarr").store) == "/home/me/a.zarr"  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [3, None, "gs://bucket/x"])
def test_a_wrong_one_is_told(value: object) -> None:
    with pytest.raises(ValidationError, match=r"s3://bucket/prefix"):
        Settings.model_validate({"store": value})
