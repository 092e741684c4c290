"""A store's location as a field of a configuration (pydantic): text in, a path or s3://bucket/prefix, text out."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator

from storage.errors import StoreError
from storage.location import Location, ObjectPath, as_location

_VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\})")


def _parse(value: Any) -> Location:
    """The location, $variables and ~ expanded. Raises ValueError, also for a variable that is not set: the store would
    be a folder of that name wherever the process happens to be."""
    if isinstance(value, ObjectPath):
        return value
    if not isinstance(value, str | os.PathLike):
        raise ValueError("expected a path, or s3://bucket/prefix")
    expanded = os.fspath(os.path.expandvars(value))
    if unset := _VARIABLE.search(expanded):
        raise ValueError(f"the environment variable {unset[0]} is not set here; set it, or write the path out")
    try:
        location = as_location(expanded)
    except StoreError as error:
        raise ValueError(str(error)) from error
    return location.expanduser() if isinstance(location, Path) else location


StoreLocation = Annotated[
    Path | ObjectPath, PlainValidator(_parse, json_schema_input_type=str), PlainSerializer(str, return_type=str)
]
