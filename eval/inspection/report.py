"""A whole inspection in one call: checks, comparison, cards, the page and its JSON twin."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.inspection.compare import compare
from eval.inspection.gallery import cards
from eval.inspection.page import Drawn, write_report
from eval.inspection.run import Inspection, Progress, inspect_store
from eval.inspection.settings import InspectionSettings
from eval.inspection.side_by_side import pair_cards
from storage.location import ObjectPath


@dataclass
class Report:
    """What was found, and where it was written."""

    inspection: Inspection
    drawn: Drawn
    page: Path
    twin: Path

    @property
    def verdict(self) -> str:
        """pass, warn or fail."""
        return self.inspection.result["verdict"]

    def failing(self) -> list[str]:
        """Titles of the checks that fail."""
        return [check["title"] for check in self.inspection.result["checks"] if check["state"] == "fail"]


def beside(store: str | Path | ObjectPath) -> Path:
    """`<store>.inspection` beside a store on disk, in the working folder for one in a bucket."""
    name = str(store).rstrip("/").rsplit("/", 1)[-1].removesuffix(".zarr") + ".inspection"
    return Path(name) if "://" in str(store) else Path(str(store)).resolve().parent / name


def make_report(
    store: str | Path | ObjectPath,
    folder: Path,
    settings: InspectionSettings | None = None,
    against: str | Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Inspect a store and write `inspection.html` and `inspection.json` into a folder.

    Args:
        against: another store to compare with.
        progress: called with keyframes done and to do.

    Raises:
        StoreError, EvaluationError: as `inspect_store` and `compare`.
    """
    inspection = inspect_store(store, settings, progress)
    pairs: list[dict[str, Any]] = []
    if against is not None:
        comparison = compare(inspection, against)
        inspection.result["against"] = comparison.result
        pairs = pair_cards(inspection, comparison)
    drawn = Drawn(cards(inspection), pairs)
    page, twin = write_report(inspection.result, drawn, folder)
    return Report(inspection, drawn, page, twin)
