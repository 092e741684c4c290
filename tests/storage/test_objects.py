"""Requests to a bucket: repeated while that helps, told with their remedy where it does not."""

import errno
import os
import socket
from pathlib import Path

import pytest

import storage.objects
from storage.errors import StoreError
from storage.location import ObjectPath, as_location
from storage.object_errors import ObjectStoreError
from storage.objects import ObjectClient, client_of
from storage.store import CueStore
from tests.storage.s3_server import FaultProxy, Plan


def client(url: str) -> ObjectClient:
    path = as_location(url)
    assert isinstance(path, ObjectPath)
    return client_of(path)


def first(fault: str, times: int = 2) -> Plan:
    """A plan: the first requests meet this fault."""
    return lambda method, path, number: fault if number < times else None


@pytest.mark.parametrize("fault", ["500", "502", "503", "504", "429", "408", "409", "before", "after", "middle"])
def test_what_may_pass_is_tried_again(bucket: str, proxy: FaultProxy, fault: str) -> None:
    made = client(bucket)
    made.put("a/x", b"content" * 1000)
    proxy.seen.clear()
    proxy.plan = first(fault)
    assert made.get("a/x") == b"content" * 1000
    assert proxy.faults() == [fault, fault]
    proxy.seen.clear()
    assert made.get_range("a/x", 7, 7) == b"content"
    proxy.seen.clear()
    assert [info.key for info in made.list("a")] == ["a/x"]
    assert proxy.faults() == [fault, fault]
    if fault != "middle":  # the answer to a put has no middle
        proxy.seen.clear()
        made.put("a/y", b"new")
        made.delete(["a/y", "a/none"])
        assert proxy.faults() == [fault, fault]
    proxy.plan = lambda method, path, number: None
    assert made.get("a/x") == b"content" * 1000
    assert made.size("a/y") is None or fault == "middle"


def test_an_answer_that_takes_too_long_is_tried_again(
    bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    client(bucket).put("x", b"content")
    proxy.seen.clear()
    proxy.plan = first("slow", 1)
    monkeypatch.setattr("tests.storage.s3_server.SLOW_S", 6.0)
    monkeypatch.setenv("OCCFLOW_S3_TIMEOUT_S", "2")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")  # another client, made with that time
    assert client(bucket).get("x") == b"content"
    assert proxy.requests("GET", "/x") >= 2


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("AWS_ENDPOINT_URL", "localhost:9000", "AWS_ENDPOINT_URL=localhost:9000: no address of a server"),
        ("AWS_ENDPOINT_URL", "http://my host", "expected http://HOST:PORT or https://HOST"),
        ("AWS_ENDPOINT_URL_S3", "http://host:port", "AWS_ENDPOINT_URL_S3=http://host:port: no address"),
        ("OCCFLOW_S3_TIMEOUT_S", "60s", "OCCFLOW_S3_TIMEOUT_S=60s: expected seconds above 0"),
        ("OCCFLOW_S3_TIMEOUT_S", "0", "OCCFLOW_S3_TIMEOUT_S=0: expected seconds above 0"),
        ("OCCFLOW_S3_TIMEOUT_S", "inf", "OCCFLOW_S3_TIMEOUT_S=inf: expected seconds above 0, at most 86400"),
    ],
)
def test_a_variable_that_is_no_address_or_time_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=told):
        client("s3://cues-of-a-variable").get("x")


@pytest.mark.parametrize(("status", "code"), [("403", "AccessDenied"), ("400", "InvalidArgument")])
def test_a_refusal_is_told_at_once(bucket: str, proxy: FaultProxy, status: str, code: str) -> None:
    proxy.canned[status] = f"<Error><Code>{code}</Code></Error>".encode()
    proxy.plan = lambda method, path, number: status
    with pytest.raises(ObjectStoreError, match=rf"{bucket}/some/x at http.*PUT failed \({status} {code}\)"):
        client(bucket).put("some/x", b"1")
    assert len(proxy.seen) == 1


@pytest.mark.parametrize("fault", ["503", "500", "before"])
def test_the_end_of_patience_is_told(bucket: str, proxy: FaultProxy, fault: str) -> None:
    made = client(bucket)
    made.put("x", b"1")
    proxy.seen.clear()
    proxy.plan = lambda method, path, number: fault
    with pytest.raises(ObjectStoreError, match=rf"{bucket}/x at http://127.*GET failed 10 times.*resumes") as caught:
        made.get("x")
    assert len(proxy.seen) == storage.objects.ATTEMPTS == 10
    assert isinstance(caught.value.__cause__, OSError), "a scheduler must see that it may pass"
    assert caught.value.__cause__.errno == errno.ETIMEDOUT


def test_waits_grow_are_bounded_and_differ(bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.objects.BACKOFF_S", 0.2)
    monkeypatch.setattr("storage.objects.BACKOFF_MAX_S", 10.0)
    runs = []
    for _ in range(2):
        waits: list[float] = []
        monkeypatch.setattr("storage.objects.time.sleep", waits.append)
        made = client(bucket)
        made._reached = True
        proxy.plan = lambda method, path, number: "503"
        with pytest.raises(ObjectStoreError, match="throttles"):
            made.get("x")
        runs.append(waits)
        assert len(waits) == 9
        assert all(full / 2 <= wait <= full for wait, full in zip(waits, [0.2 * 2**n for n in range(6)], strict=False))
        assert max(waits) <= 10.0
        assert sum(waits) > 15
    assert runs[0] != runs[1]


def test_wrong_credentials(bucket: str, proxy: FaultProxy) -> None:
    proxy.canned["403"] = b"<Error><Code>InvalidAccessKeyId</Code></Error>"
    proxy.plan = lambda method, path, number: "403"
    with pytest.raises(StoreError, match=r"does not accept these credentials.*AWS_ACCESS_KEY_ID.*AWS_SESSION_TOKEN"):
        CueStore.open(f"{bucket}/x.zarr")


def test_missing_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=rf"{bucket}/x.zarr/zarr.json at .*no credentials were found. Set AWS_ACC"):
        CueStore.open(f"{bucket}/x.zarr")
    (tmp_path / ".aws").mkdir()
    text = "[default]\naws_access_key_id = a\naws_secret_access_key = b%c\n"
    (tmp_path / ".aws" / "credentials").write_text(text)
    client(bucket).put("x", b"1")
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(StoreError, match="no credentials"):
        client(bucket).get("x")


def test_missing_bucket(bucket: str) -> None:
    with pytest.raises(StoreError, match=r"s3://not-there/x.zarr.*no bucket 'not-there'.*aws s3 mb s3://not-there"):
        CueStore.open("s3://not-there/x.zarr")
    with pytest.raises(StoreError, match="no bucket 'not-there'"):
        list(client("s3://not-there").list("x"))


def test_unreachable_endpoint(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, but nobody listens
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{held.getsockname()[1]}")
        with pytest.raises(StoreError, match=r"failed 4 times.*cannot be reached. Check AWS_ENDPOINT_URL"):
            CueStore.open(f"{bucket}/x.zarr")


def test_conditions(bucket: str) -> None:
    made = client(bucket)
    assert made.put_if("x", b"1", None)
    assert not made.put_if("x", b"2", None)
    assert made.put_if("x", b"1", None), "the same bytes are our own"
    data, tag = made.get_tagged("x")
    assert data == b"1"
    assert made.put_if("x", b"3", tag)
    assert not made.put_if("x", b"4", tag)
    assert not made.put_if("none", b"4", tag)
    assert made.get("x") == b"3"
    assert made.probe("probe")
    assert made.size("probe") is None


def test_a_missing_object_is_no_error_of_the_store(bucket: str) -> None:
    made = client(bucket)
    with pytest.raises(FileNotFoundError) as caught:
        made.get("none")
    assert caught.value.filename == f"{bucket}/none"
    assert made.size("none") is None
    assert list(made.list("none")) == []
    made.put("x", b"12345")
    assert made.get_range("x", 3, 10) == b"45"
    assert made.get_range("x", 10, 3) == b""


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_gets_a_client_of_its_own(bucket: str) -> None:
    parent = client(bucket)
    parent.put("x", b"1")
    child = os.fork()
    if child == 0:
        os._exit(0 if client(bucket) is not parent else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
