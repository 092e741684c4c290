"""What the report page is made of: frame and style sheet, what figures and pictures mean, tables and images."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from eval.camera_tiles import Picture

Row = Sequence[Any]

GLOSSARY = {
    "rayiou": "Do rays from the LiDAR's positions end where the truth says, within 1, 2 and 4 m? A flat road alone "
    "does well here.",
    "rayiou_nonground": "The same for rays that truly end on anything but the ground.",
    "mave": "Mean error of velocity on movable things that the rays found.",
    "flow_epe_dynamic": "Mean error of velocity on everything that truly moves, found or not.",
    "flow_epe_dynamic_masked": "Mean error of velocity on everything that truly moves, found or not; what "
    "is predicted free stands still.",
    "abs_rel": "Mean relative error of rendered depth against LiDAR.",
    "box_velocity_error": "Mean error of velocity over labelled boxes that move, found or not.",
}
"""What a figure says to somebody who has never seen it, by its key in the results."""

PICTURES = """
<p>The upper block has one column per camera, from left to right around the car: the image, the depth that the predicted
volume renders for the same camera, LiDAR measurements for comparison (dots on a pale copy of the image), where the
rendered depth differs from them, and the rendered motion of things, the car's own motion removed. Below, the volume
itself, seen from behind and above and from straight above (up is forward; the dark arrow is the car), once coloured by
height and once by motion, with arrows to where moving things will be after a second; under it the truth where there is
some, and what of the volume is right, missed or invented (a volume that is thick below its surface has invented what
nobody sees). Last, depth as the front camera would see it had the car been moved or turned. Grey in depth and motion
means that nothing was met.</p>
"""

FILE_PICTURES = """
<p>Each camera's image and, below it, LiDAR measurements as dots on a pale copy, where the store has them. Then the
volume itself, seen from behind and above and from straight above (up is forward; the dark arrow is the car), once
coloured by height and once by motion, with arrows to where moving things will be after a second; under it the truth
where there is some, and what of the volume is right, missed or invented (a volume that is thick below its surface has
invented what nobody sees).</p>
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
:root { color-scheme: light; --ink: #1f2937; --faint: #6b7280; --line: #e5e7eb; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 12px; }
h3 { font-size: 14px; margin: 22px 0 8px; }
.lead { color: var(--faint); margin: 0 0 24px; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px; margin-top: 18px;
  overflow-x: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(172px, 1fr)); gap: 12px; }
.card { background: #fff; border: 1px solid var(--line); border-top: 4px solid #9ca3af; border-radius: 10px;
  padding: 12px 14px; }
.card.good { border-top-color: #15803d; }
.card.bad { border-top-color: #b91c1c; }
.card h3 { margin: 0; font-weight: 600; }
.card .value { font-size: 28px; font-weight: 650; margin: 2px 0 0; font-variant-numeric: tabular-nums; }
.card .value span { font-size: 14px; font-weight: 400; color: var(--faint); }
.card .against { margin: 0 0 8px; font-size: 14px; min-height: 1.5em; }
.card.good .against { color: #15803d; }
.card.bad .against { color: #b91c1c; }
.card .meaning { margin: 0; font-size: 12.5px; line-height: 1.4; color: var(--faint); }
.note { background: #fffbeb; border: 1px solid #fde68a; border-radius: 8px; padding: 8px 12px; margin: 12px 0 0; }
table { border-collapse: collapse; font-size: 14px; }
th { text-align: right; color: var(--faint); font-weight: 500; }
th:first-child { text-align: left; }
th, td { padding: 5px 22px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tbody tr:last-child td { border-bottom: 0; }
td:first-child { white-space: nowrap; }
td { overflow-wrap: anywhere; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
img { display: block; max-width: 100%; height: auto; }
.legends { display: flex; flex-wrap: wrap; gap: 8px 28px; align-items: center; }
.volumes { display: grid; grid-template-columns: 600fr 600fr 340fr 340fr; gap: 8px; margin-top: 10px; }
.errors { grid-template-columns: 600fr 340fr 940fr; }
.meaning { font-size: 12.5px; line-height: 1.4; color: var(--faint); margin: 6px 0 0; }
.viewer canvas { display: block; width: 100%; height: 560px; border-radius: 8px; touch-action: none; cursor: grab; }
.viewer canvas:active { cursor: grabbing; }
.viewer .bar { display: flex; flex-wrap: wrap; gap: 8px 20px; align-items: center; margin-bottom: 10px;
  font-size: 13px; }
.viewer .bar span { display: inline-flex; gap: 4px; align-items: center; color: var(--faint); }
.viewer button, .viewer select { font: inherit; padding: 3px 10px; border: 1px solid var(--line); border-radius: 6px;
  background: #fff; color: var(--ink); cursor: pointer; }
.viewer button[aria-pressed="true"] { background: var(--ink); border-color: var(--ink); color: #fff; }
figure { margin: 0; }
figcaption { font-size: 12.5px; color: var(--faint); margin-top: 3px; }
@media (max-width: 900px) { .cards, .volumes { grid-template-columns: 1fr 1fr; } }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="lead">$lead</p>
$body
</main>
</body>
</html>
"""


def image(picture: Picture, text: str, photo: bool = False) -> str:
    """An embedded image: JPEG for photographs, PNG of 256 colours otherwise."""
    buffer, page = io.BytesIO(), Image.fromarray(np.ascontiguousarray(picture))
    if photo:
        page.save(buffer, "JPEG", quality=90, subsampling=0)
    else:
        page.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{picture.shape[1]}" height="{picture.shape[0]}"'
    return f'<img alt="{html.escape(text)}" {size} src="data:image/{"jpeg" if photo else "png"};base64,{data}">'


def table(heads: Row, rows: Sequence[Row]) -> str:
    """A table; numbers with three decimals and to the right, None as a dash; without a head where all are empty."""
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in heads)
    body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if any(heads) else ''}<tbody>{body}</tbody></table>"


def number(value: float | int | None) -> str:
    """A figure as text; a dash for none and for what is not a number."""
    if value is None or value != value:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return f"<td>{html.escape(value)}</td>"
    return f'<td class="number">{number(value)}</td>'


def section(title: str, content: str) -> str:
    """A box with a heading; `content` is HTML."""
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>"
