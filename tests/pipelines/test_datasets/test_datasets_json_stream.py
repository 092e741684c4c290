"""Streaming of JSON tables: same records as json.loads, damage named, memory bounded."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.datasets.json_stream import MAX_RECORD_CHARACTERS, stream_records
from pipelines.datasets.nuscenes_index import build_index, read_scenes
from pipelines.datasets.records import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(alphabet='{}[],:"\\ aé\n'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), max_size=6),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
)
def test_same_records_as_json_loads(
    tmp_path: Path, records: list[dict[str, Any]], chunk: int, indent: int | None, ascii_only: bool
) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    assert list(stream_records(path, chunk=chunk)) == records


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected a JSON array"),
        ('{"token": 1}', "expected a JSON array"),
        ("[1, 2]", "record 0 is 1"),
        ('[{"a": 1}, {"a": 2', "truncated.*after 1 whole records"),
        ('[{"a": 1}', "truncated.*after 1 whole records"),
        ('[{"a": 1}, {"a" 2}]', "after 1 whole records"),
    ],
)
def test_damage_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"table\.json.*{complaint}"):
        list(stream_records(path))


@pytest.mark.parametrize("chunk", [8, 1 << 20])
def test_a_byte_that_is_no_text_is_named(tmp_path: Path, chunk: int) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(b'[{"a": 1}, {"a": "\xff"}]')
    with pytest.raises(
        DataError, match=r"table\.json: byte 0xff, which is not UTF-8, after [01] records or more; unpack"
    ):
        list(stream_records(path, chunk))


def test_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json.*No such file"):
        list(stream_records(tmp_path / "absent.json"))


def test_a_lost_bracket_does_not_pull_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    good = json.dumps({"token": "x" * 1000})
    count = 4 * MAX_RECORD_CHARACTERS // len(good)
    path.write_text('[{"token" 1}, ' + ", ".join([good] * count) + "]")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"not JSON .*after 0 whole records"):
            list(stream_records(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * MAX_RECORD_CHARACTERS


ROWS = 200_000
KEPT = 600


def _big_tables(folder: Path) -> None:
    """Tables of 200 000 sample_data rows, of which 600 belong to the scene wanted."""
    small = {
        "scene": [{"token": "s", "name": "scene-0001"}, {"token": "other", "name": "scene-0002"}],
        "sample": [
            {"token": "a", "timestamp": 0, "scene_token": "s"},
            {"token": "b", "timestamp": 0, "scene_token": "other"},
        ],
        "sensor": [{"token": "cam", "channel": "CAM_FRONT"}],
        "calibrated_sensor": [
            {
                "token": "cal",
                "sensor_token": "cam",
                "rotation": [1, 0, 0, 0],
                "translation": [0, 0, 0],
                "camera_intrinsic": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
            }
        ],
    }
    for name, rows in small.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    stride = ROWS // KEPT + 1
    with (folder / "sample_data.json").open("w") as data, (folder / "ego_pose.json").open("w") as poses:
        for i in range(ROWS):
            opening = "[" if i == 0 else ",\n"
            sample = "a" if i % stride == 0 else "b"
            data.write(
                f'{opening}{{"token": "{i:032x}", "sample_token": "{sample}", "ego_pose_token": "{i:032x}", '
                f'"calibrated_sensor_token": "cal", "timestamp": {i}, "is_key_frame": true, "height": 900, '
                f'"width": 1600, "filename": "samples/CAM_FRONT/n008-2018-08-01__CAM_FRONT__{i:016d}.jpg"}}'
            )
            if i % stride % 10 == 0:
                poses.write(f'{opening}{{"token": "{i:032x}", "rotation": [1, 0, 0, 0], "translation": [{i}, 0, 0]}}')
        data.write("]")
        poses.write("]")


def test_index_of_a_large_table_stays_small(tmp_path: Path) -> None:
    _big_tables(tmp_path)
    size = (tmp_path / "sample_data.json").stat().st_size
    tracemalloc.start()
    try:
        index = build_index(tmp_path, read_scenes(tmp_path)[:1])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    stride = ROWS // KEPT + 1
    np.testing.assert_array_equal(index.timestamp, np.arange(0, ROWS, stride))
    np.testing.assert_array_equal(index.pose[:, 4], np.arange(0, ROWS, stride))
    assert size > 55_000_000
    assert peak < 20_000_000
    assert index.nbytes < 400 * len(index.token)
