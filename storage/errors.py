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
