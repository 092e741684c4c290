"""A store's location as a field of a configuration (pydantic): text in, a path or s3://bucket/prefix, text out."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator

from storage.errors import StoreError
from storage.location import Location, ObjectPath, as_location


def _parse(value: Any) -> Location:
    """The location, $variables and ~ expanded."""
    if isinstance(value, ObjectPath):
        return value
    if not isinstance(value, str | os.PathLike):
        raise ValueError("expected a path, or s3://bucket/prefix")
    try:
        location = as_location(os.path.expandvars(value))
    except StoreError as error:
        raise ValueError(str(error)) from error
    return location.expanduser() if isinstance(location, Path) else location


StoreLocation = Annotated[
    Path | ObjectPath, PlainValidator(_parse, json_schema_input_type=str), PlainSerializer(str, return_type=str)
]
