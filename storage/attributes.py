"""The root attributes of a store: read, and compared with those asked for."""

import hashlib
import json
from dataclasses import asdict, fields

from storage.backend import backend
from storage.commit import schema_error
from storage.errors import StoreDamage, StoreError, closed_to_user
from storage.layout import SPARE_ROOT, encode_json, root_metadata
from storage.location import Location
from storage.schema import SCHEMA_VERSION, StoreAttributes

_REPAIR = "Run `occflow verify --repair` on the store, then `occflow cues` again to rebuild the unit."


def read_attributes(root: Location) -> StoreAttributes:
    """Root attributes of a store.

    Raises:
        StoreError: there is no store at this path, or it may not be read.
        SchemaVersionError: it has another schema version.
        StoreDamage: its root zarr.json was changed.
    """
    path, place = root / "zarr.json", backend(root)
    try:
        raw = place.get("zarr.json")
    except (FileNotFoundError, NotADirectoryError) as error:
        if place.exists(SPARE_ROOT):
            raise StoreDamage(f"{path}: missing. Run `occflow verify --repair`: it restores it from a copy.") from error
        raise StoreError(f"{root}: no cue store here (no zarr.json). Check the path, or run `occflow cues`.") from error
    except PermissionError as error:
        raise closed_to_user(path) from error
    return parse_attributes(raw, path)


def parse_attributes(raw: bytes, path: Location) -> StoreAttributes:
    """Attributes from the content of a root zarr.json. Raises SchemaVersionError, StoreDamage."""
    try:
        attributes = json.loads(raw)["attributes"]
        content, digest = attributes["occflow"], attributes["occflow_sha256"]
        version = content["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreDamage(f"{path}: not the root of a cue store, or damaged ({error!r}). {_REPAIR}") from error
    if version != SCHEMA_VERSION:
        raise schema_error(path, version)
    if hashlib.sha256(encode_json(content)).hexdigest() != digest:
        raise StoreDamage(f"{path}: the store's attributes were changed after they were written. {_REPAIR}")
    tuples = {f.name: tuple(content[f.name]) for f in fields(StoreAttributes) if isinstance(content.get(f.name), list)}
    return StoreAttributes(**{**content, **tuples})


def require_equal(root: Location, there: StoreAttributes, asked: StoreAttributes) -> None:
    """Raise StoreError, naming what differs, unless a store has the attributes that it is asked to have."""
    theirs, ours = (json.loads(encode_json(asdict(attributes))) for attributes in (there, asked))
    differing = [f"{key}: {theirs[key]!r} there, {ours[key]!r} asked for" for key in ours if theirs[key] != ours[key]]
    if differing:
        raise StoreError(
            f"{root}: a store with other attributes is here ({'; '.join(differing)}). Give another path, or configure "
            "the run as that store was made."
        )


def intact_root(root: Location, key: str) -> bytes | None:
    """Content of a root zarr.json, None unless it is what `create` wrote under this schema version."""
    try:
        content = backend(root).get(key)
        return content if root_metadata(parse_attributes(content, root / key)) == content else None
    except (StoreError, OSError):
        return None
