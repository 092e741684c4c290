"""The self-contained page of an inspection: its result and cards as data, and the script that shows them."""

import html
import json
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from eval.inspection.gallery import legend_uri

_WEB = resources.files("eval.inspection") / "web"


def asset(name: str) -> str:
    """A file of the page by name."""
    return (_WEB / name).read_text(encoding="utf-8")


def embedded(value: Any) -> str:
    """JSON that cannot end the script element it stands in, nor start a comment: no <, > or & in it."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def report_page(result: dict[str, Any], cards: list[dict[str, Any]], served: bool = False) -> str:
    """The page as HTML. Nothing is loaded from elsewhere, and the page's own policy forbids it; when `served`, marks
    are written by the server that it came from."""
    return Template(asset("report.html")).substitute(
        title=html.escape(f"Label quality: {result['store']}"),
        connect="'self'" if served else "'none'",
        style=asset("style.css"),
        data=embedded({"result": result, "cards": cards, "served": served, "legend": legend_uri()}),
        script=asset("report.js"),
    )


def write_report(result: dict[str, Any], cards: list[dict[str, Any]], folder: Path) -> tuple[Path, Path]:
    """Write `inspection.html` and its JSON twin, whose cards have no pictures, into a folder. Returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, twin = folder / "inspection.html", folder / "inspection.json"
    page.write_text(report_page(result, cards), encoding="utf-8")
    plain = [{key: value for key, value in card.items() if key != "pictures"} for card in cards]
    twin.write_text(json.dumps({**result, "cards": plain}, indent=1, allow_nan=False), encoding="utf-8")
    return page, twin
