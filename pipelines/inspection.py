"""The label-quality page at the end of an extraction, linked from the Prefect run as the artifact `inspection`."""

from pathlib import Path
from urllib.parse import quote

from eval.inspection.report import Report, beside, make_report
from eval.inspection.settings import InspectionSettings
from storage.errors import StoreError
from storage.location import ObjectPath

SAMPLE = 100
"""Keyframes that are looked at: about half a minute of one core. `occflow inspect` looks at more."""


def inspect_made(store: str | Path | ObjectPath, sample: int = SAMPLE) -> Report | str:
    """Inspect what an extraction has made and write the page beside the store; or the reason why that cannot be done,
    for a page that is missing is no reason to fail the extraction."""
    try:
        return make_report(store, beside(store), InspectionSettings(sample=sample))
    except (StoreError, ValueError, OSError) as error:
        return f"no inspection: {error}"


def markdown(found: Report | str) -> str:
    """What the artifact says: verdict, failing checks, and where the page lies."""
    if isinstance(found, str):
        return found
    sample = found.inspection.result["sample"]
    failing = "; ".join(found.failing()) or "none"
    page = found.page.resolve()
    return (
        f"**Labels: {found.verdict}**, from {sample['keyframes']} of {sample['of']} keyframes. Failing: {failing}.\n\n"
        f"[{page.name}](file://{quote(str(page))}) on the machine that ran the flow: `{page}`"
    )


def leave_inspection(store: str | Path | ObjectPath, sample: int = SAMPLE) -> str:
    """Inspect, leave the artifact in the running flow, and return a line for the report."""
    from prefect.artifacts import create_markdown_artifact

    found = inspect_made(store, sample)
    create_markdown_artifact(markdown=markdown(found), key="inspection", description=f"{store}")
    return found if isinstance(found, str) else f"labels: {found.verdict}, {found.page}"
