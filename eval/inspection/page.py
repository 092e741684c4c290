"""The self-contained page of an inspection: its result and cards as data, and the script that shows them."""

import html
import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from eval.inspection.gallery import legend_uri

_WEB = resources.files("eval.inspection") / "web"


def asset(name: str) -> str:
    """A file of the page by name."""
    return (_WEB / name).read_text(encoding="utf-8")


def scripts(*names: str) -> str:
    """Scripts of the page one after the other."""
    return "\n".join(asset(f"{name}.js") for name in names)


def embedded(value: Any) -> str:
    """JSON that cannot end the script element it stands in, nor start a comment: no <, > or & in it."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@dataclass(frozen=True)
class Drawn:
    """What the page shows pictures of: cards of the gallery, and pairs of the comparison with another store."""

    cards: list[dict[str, Any]]
    pairs: list[dict[str, Any]] = field(default_factory=list)

    def without_pictures(self) -> dict[str, Any]:
        """The same for the JSON twin."""
        left_out = ("pictures", "other_pictures")
        return {
            name: [{key: value for key, value in card.items() if key not in left_out} for card in cards]
            for name, cards in (("cards", self.cards), ("pairs", self.pairs))
        }


def report_page(result: dict[str, Any], drawn: Drawn, served: bool = False) -> str:
    """The page as HTML. Nothing is loaded from elsewhere, and the page's own policy forbids it; when `served`, marks
    are written by the server that it came from."""
    data = {
        "store": result["store"],
        "result": result,
        "cards": drawn.cards,
        "pairs": drawn.pairs,
        "served": served,
        "legend": legend_uri(),
    }
    return Template(asset("report.html")).substitute(
        title=html.escape(f"Label quality: {result['store']}"),
        connect="'self'" if served else "'none'",
        style=asset("style.css"),
        data=embedded(data),
        script=scripts("common", "report", "gallery"),
    )


def browse_page(index: dict[str, Any]) -> str:
    """The page on which every keyframe can be looked at, served only."""
    parts = {"style": asset("style.css"), "data": embedded(index), "script": scripts("common", "browse")}
    return Template(asset("browse.html")).substitute(parts)


def write_report(result: dict[str, Any], drawn: Drawn, folder: Path) -> tuple[Path, Path]:
    """Write `inspection.html` and its JSON twin, whose cards have no pictures, into a folder. Returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, twin = folder / "inspection.html", folder / "inspection.json"
    page.write_text(report_page(result, drawn), encoding="utf-8")
    content = {**result, **drawn.without_pictures()}
    twin.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
    return page, twin
