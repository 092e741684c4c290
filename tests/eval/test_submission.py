"""The challenge's submission form: there and back, types, and files that are none or would run a program."""

import gzip
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.raycast import Hits
from eval.rules import EvaluationError
from eval.submission import RayPrediction, ray_prediction, read_submission, write_submission

ROW = {
    "pcd_cls": np.array([0, 16], np.uint8),
    "pcd_dist": np.array([1.5, 40.0], np.float16),
    "pcd_flow": np.zeros((2, 2), np.float16),
}


def dump(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(gzip.compress(pickle.dumps(value, protocol)))
    return path


def test_there_and_back(tmp_path: Path) -> None:
    rays = RayPrediction(ROW["pcd_cls"], ROW["pcd_dist"], ROW["pcd_flow"] + np.float16(0.5))
    assert write_submission(tmp_path / "s.gz", [("token", rays)], {"method": "m"}, level=1) == 1
    found = read_submission(tmp_path / "s.gz")["token"]
    for name in ("category", "distance", "flow"):
        np.testing.assert_array_equal(getattr(found, name), getattr(rays, name))
        assert getattr(found, name).dtype == getattr(rays, name).dtype
    with gzip.open(tmp_path / "s.gz") as file:
        whole = pickle.load(file)
    assert list(whole) == [
        "method",
        "team",
        "authors",
        "e-mail",
        "institution / company",
        "country / region",
        "results",
    ]
    assert whole["method"] == "m"
    assert {key: value.dtype.name for key, value in whole["results"]["token"].items()} == {
        "pcd_cls": "uint8",
        "pcd_dist": "float16",
        "pcd_flow": "float16",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["s.gz"]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_every_pickle_of_the_form_is_read(tmp_path: Path, protocol: int) -> None:
    found = read_submission(dump(tmp_path / "s.gz", {"results": {"a": ROW}}, protocol))
    assert found["a"].distance.tolist() == [1.5, 40.0]
    plain = tmp_path / "plain.pkl"
    plain.write_bytes(pickle.dumps({"results": {"a": ROW}}, protocol))
    assert read_submission(plain)["a"].category.tolist() == [0, 16]


def test_a_miss_is_free_and_still() -> None:
    semantics = np.full((2, 1, 1), 3, np.uint8)
    flow = np.full((2, 1, 1, 2), 7.0, np.float32)
    found = ray_prediction(Hits(np.array([1, -1]), np.array([2.0, 3.0])), semantics, flow)
    assert found.category.tolist() == [3, 16]
    assert found.flow.tolist() == [[7.0, 7.0], [0.0, 0.0]]
    assert found.distance.dtype == np.float16


class Program:
    """Pickles to a call of a program."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/occflow-ran",)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no submission \(it holds a .*system"):
        read_submission(dump(tmp_path / "s.gz", {"results": {"a": Program()}}))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "no 'results' by token"),
        ({"results": {}}, "no 'results' by token"),
        ({"results": {"a": {"pcd_cls": ROW["pcd_cls"]}}}, r"a: expected arrays .* found \['pcd_cls'\]"),
        ({"results": {"a": ROW | {"pcd_flow": np.zeros((3, 2), np.float16)}}}, r"shapes \(2,\), \(2,\), \(3, 2\)"),
        ({"results": {"a": ROW | {"pcd_dist": np.array([1, 2])}}}, "types uint8, int64"),
        ({"results": {"a": ROW | {"pcd_cls": np.array([0, 17], np.uint8)}}}, r"class 0 to 17, expected 0\.\.16"),
        ({"results": {"a": ROW | {"pcd_dist": np.array([1, np.inf], np.float16)}}}, "not finite"),
    ],
)
def test_wrong_content_is_named(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        read_submission(dump(tmp_path / "s.gz", value))


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    """A pickle ends before its archive does, and what stands behind is the checksum."""
    rng = np.random.default_rng(0)
    row = {"pcd_cls": rng.integers(0, 17, 4000, np.uint8), "pcd_dist": rng.random(4000).astype(np.float16)}
    path = dump(tmp_path / "s.gz", {"results": {"a": row | {"pcd_flow": np.zeros((4000, 2), np.float16)}}})
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(EvaluationError, match=r"s\.gz.*(restore the file|write it anew)"):
        read_submission(path)
    for at in range(200, len(whole) - 200, len(whole) // 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with pytest.raises(EvaluationError, match=r"s\.gz"):
            read_submission(path)


def test_what_is_no_pickle_and_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "s.gz").write_bytes(b"\x1f\x8b nothing")
    (tmp_path / "s.pkl").write_bytes(b"text")
    for name in ("s.gz", "s.pkl", "absent"):
        with pytest.raises(EvaluationError, match=name):
            read_submission(tmp_path / name)
