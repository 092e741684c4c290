"""Fields of the rows of nuScenes' tables. One that is missing or of another type is a DataError with table and row."""

from pathlib import Path
from typing import Any

from pipelines.datasets.records import DataError

Record = dict[str, Any]


def text(path: Path, record: Record, name: str) -> str:
    """A field that is text, such as a token or a file's name."""
    value = _field(path, record, name)
    if not isinstance(value, str):
        raise _wrong(path, record, name, value, "text")
    return value


def whole(path: Path, record: Record, name: str, bits: int = 63) -> int:
    """A field that is a whole number of at most `bits` bits, beside its sign."""
    value = _field(path, record, name)
    if not isinstance(value, int | float) or value != value or abs(value) >= 1 << bits or value != int(value):
        raise _wrong(path, record, name, value, f"a whole number below 2**{bits}")
    return int(value)


def count(path: Path, record: Record, name: str) -> int:
    """The same where a row may do without: 0 for null and for no such field."""
    return whole(path, record, name, bits=31) if record.get(name) is not None else 0


def numbers(path: Path, record: Record, name: str) -> tuple[float, ...]:
    """A field that is a list of numbers, however many."""
    return _listed(path, record, name, _field(path, record, name))


def matrix(path: Path, record: Record, name: str) -> tuple[tuple[float, ...], ...]:
    """A field that is a list of lists of numbers; empty for an empty list, for null and for no such field."""
    value = record.get(name) or []
    if not isinstance(value, list):
        raise _wrong(path, record, name, value, "a list of lists of numbers")
    return tuple(_listed(path, record, name, row) for row in value)


def _listed(path: Path, record: Record, name: str, value: object) -> tuple[float, ...]:
    if not isinstance(value, list) or not all(isinstance(v, int | float) for v in value):
        raise _wrong(path, record, name, record[name], "a list of numbers")
    return tuple(float(v) for v in value)


def _field(path: Path, record: Record, name: str) -> Any:
    try:
        return record[name]
    except KeyError:
        raise DataError(
            f"{path}: row {record.get('token', record)} has no field '{name}'; this is not a nuScenes v1.0 table"
        ) from None


def _wrong(path: Path, record: Record, name: str, value: object, expected: str) -> DataError:
    return DataError(
        f"{path}: row {record.get('token', record)}: {name} is {value!r:.80}, expected {expected}; unpack the table "
        "again or repair this row"
    )
