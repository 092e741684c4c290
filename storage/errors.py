"""The errors of the store. Every message names the path, what was found, what was expected and the remedy."""


class StoreError(RuntimeError):
    """The store cannot do what was asked; nothing that was committed is lost."""


class SchemaVersionError(StoreError):
    """The store was written under another schema version than this program reads."""


class StoreDamage(StoreError):
    """Committed data is missing, truncated or changed on disk."""


class StoreRebuilt(StoreError):
    """The unit was rebuilt since this reader opened it; the reader has to be opened again."""


class CueMissing(StoreError, LookupError):
    """The unit that holds the requested data is not committed, or the data set has no such frame."""


def closed_to_user(path: object) -> StoreError:
    """That a file may not be read, which says nothing about what is in it."""
    return StoreError(f"{path}: this user may not read it; give access, or run as the store's owner.")
