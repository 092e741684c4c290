"""The page in a real browser: nothing goes wrong in it, filters and export work, and nothing from a store is markup."""

import json
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from eval.inspection.gallery import cards, reopen
from eval.inspection.page import Drawn, embedded, report_page, write_report
from eval.inspection.run import Inspection, inspect_store
from eval.inspection.serve import make_server
from eval.inspection.settings import InspectionSettings
from storage.exclusions import ExcludedFrame, excluded_frames, parse_exclusions, read_exclusions, write_exclusions

HOSTILE = '"><img src=x onerror=alert(1)></script><script>window.hacked = 1</script><!--'


@pytest.fixture(scope="module")
def inspection(clean_store: Path) -> Inspection:
    return inspect_store(clean_store, InspectionSettings(sample=6, worst=3, random=3, thumbnail=160))


@pytest.fixture(scope="module")
def drawn(inspection: Inspection) -> list[dict[str, Any]]:
    return cards(inspection)


def test_data_in_the_page_cannot_end_its_element() -> None:
    text = embedded({"scene": HOSTILE, "amp": "&amp;"})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"scene": HOSTILE, "amp": "&amp;"}


def test_the_page_loads_nothing_from_elsewhere(inspection: Inspection, drawn: list[dict[str, Any]]) -> None:
    page = report_page(inspection.result, Drawn(drawn))
    assert "connect-src 'none'" in page
    assert "default-src 'none'" in page
    for word in ('src="http', 'href="http', "@import", "url(", "import("):
        assert word not in page


def test_filter_swipe_reject_and_export(
    inspection: Inspection, drawn: list[dict[str, Any]], page: Any, tmp_path: Path
) -> None:
    report, twin = write_report(inspection.result, Drawn(drawn), tmp_path)
    assert json.loads(twin.read_text())["schema_version"] == 1
    page.open(report.as_uri())
    assert page.run("document.querySelectorAll('.card').length") == len(drawn) == 6
    assert page.run("document.querySelectorAll('#checks tr.row').length") == len(inspection.result["checks"])
    page.run("choose('why', 'random')")
    assert page.run("document.querySelectorAll('.card').length") == 3
    page.run("choose('why', ''); choose('camera', 'CAM_LEFT')")
    expected = sum(card["camera"] == "CAM_LEFT" for card in drawn)
    assert page.run("document.querySelectorAll('.card').length") == expected
    page.run("choose('camera', ''); choose('b', 'masks')")
    page.run("const s = document.getElementById('swipe'); s.value = 30; s.dispatchEvent(new Event('input'))")
    assert page.run("document.querySelector('img.over').style.clipPath") == "inset(0px 0px 0px 30%)"
    page.run("document.querySelector('button.reject').click()")
    assert page.run("document.getElementById('tray').hidden") is False
    marks = read_exclusions(exported(page, tmp_path))
    assert [(m.scene, m.t) for m in marks] == [(drawn[0]["scene"], drawn[0]["t"])]
    assert excluded_frames(inspection.inspector.reader, marks).frames == {(drawn[0]["scene"], drawn[0]["t"])}
    assert page.errors == []


def exported(page: Any, folder: Path) -> Path:
    """The file that the page's export gives the browser to keep."""
    end = folder / "exclusions.json"
    end.unlink(missing_ok=True)
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    page.run("document.getElementById('export').click()")
    for _ in range(200):
        if end.exists():
            break
        page.run("new Promise((done) => setTimeout(done, 50))")
    return end


def test_a_mark_is_taken_back_before_and_after_the_export(
    inspection: Inspection, drawn: list[dict[str, Any]], page: Any, tmp_path: Path
) -> None:
    report, _ = write_report(inspection.result, Drawn(drawn), tmp_path)
    page.open(report.as_uri())
    keys = list(dict.fromkeys((card["scene"], card["t"]) for card in drawn))[:2]
    marked = "document.querySelectorAll('button.reject.on').length"
    for scene, t in keys:
        page.run(f"toggle(markOf(CARDS.find((c) => c.scene === '{scene}' && c.t === {t})))")
    page.run(f"toggle(markOf(CARDS.find((c) => c.scene === '{keys[0][0]}' && c.t === {keys[0][1]})))")
    end = exported(page, tmp_path)
    assert [(m.scene, m.t) for m in read_exclusions(end)] == keys[1:]
    # Another day: the page is opened anew, goes on from the exported file, and the last mark is taken back in its list.
    automatic = ExcludedFrame("street-0", 5, by="check:frozen")
    write_exclusions(end, [*read_exclusions(end), automatic], "s")
    page.open(report.as_uri())
    page.wait("document.querySelectorAll('.card').length === 6")
    assert page.run(marked) == 0
    given = json.dumps(end.read_text())
    page.run(f"load(new File([{given}], 'exclusions.json'))")
    page.wait(f"{marked} > 0")
    assert page.run("document.getElementById('count').textContent") == "1 keyframe rejected, 1 other mark"
    page.run("document.querySelector('#marks button.undo').click()")
    assert page.run(marked) == 0
    assert page.run("document.getElementById('tray').hidden") is False, "the shorter list can be exported"
    assert read_exclusions(exported(page, tmp_path)) == [automatic]
    page.run("load(new File(['{}'], 'other.json'))")
    page.wait("document.getElementById('note').textContent.includes('not a list of exclusions')")
    assert page.errors == []


def test_marks_made_before_a_file_is_read_stay_and_are_not_left_unasked(
    inspection: Inspection, drawn: list[dict[str, Any]], page: Any, tmp_path: Path
) -> None:
    report, _ = write_report(inspection.result, Drawn(drawn), tmp_path)
    page.open(report.as_uri())
    leaving = "!window.dispatchEvent(new Event('beforeunload', { cancelable: true }))"
    first = drawn[0]
    assert page.run(leaving) is False
    page.run("toggle(markOf(CARDS[0]))")
    assert page.run(leaving) is True, "the browser asks before the mark is lost"
    other = next(c for c in drawn if (c["scene"], c["t"]) != (first["scene"], first["t"]))
    automatic = ExcludedFrame("street-0", 5, by="check:frozen")
    file = tmp_path / "earlier.json"
    write_exclusions(file, [automatic, ExcludedFrame(other["scene"], other["t"])], "s")
    for _ in range(2):
        page.run(f"load(new File([{json.dumps(file.read_text())}], 'earlier.json'))")
        page.wait("document.getElementById('count').textContent === '2 keyframes rejected, 1 other mark'")
    found = read_exclusions(exported(page, tmp_path))
    assert sorted((m.scene, m.t, m.by) for m in found) == sorted(
        [("street-0", 5, "check:frozen"), *((c["scene"], c["t"], "reviewer") for c in (first, other))]
    )
    assert page.run(leaving) is False
    assert page.errors == []


def test_a_check_lists_where_it_is_bad(
    inspection: Inspection, drawn: list[dict[str, Any]], page: Any, tmp_path: Path
) -> None:
    result = json.loads(json.dumps(inspection.result))
    check = next(one for one in result["checks"] if one["name"] == "exposure")
    bad = [
        {"scene": "it's a; `b`", "t": 2, "camera": 1, "value": 0.9},
        {"scene": "s", "t": 4, "camera": -1, "value": 0.5},
    ]
    check |= {"bad": 3, "state": "warn", "worst": [*bad, {"scene": "s", "t": 1, "camera": 0, "value": 0.1}]}
    report, _ = write_report(result, Drawn(drawn), tmp_path)
    page.open(report.as_uri())
    page.run("document.querySelector('tr[data-check=exposure]').click()")
    rows = page.run("[...document.querySelectorAll('#affected li code')].map((node) => [node.textContent, node.title])")
    assert [text for text, _ in rows] == ["it's a; `b` · 2 · CAM_LEFT: 0.9", "s · 4: 0.5"]
    store = str(inspection.inspector.reader.path)
    assert shlex.split(rows[0][1]) == shlex.split(reopen(store, "it's a; `b`", 2, "CAM_LEFT"))
    assert "the worst 2 of 3" in page.run("document.querySelector('#affected h3').textContent")
    page.run("document.querySelector('tr[data-check=exposure]').click()")
    assert page.run("document.getElementById('affected').hidden") is True
    assert page.errors == []


def test_no_width_makes_the_page_scroll_sideways(
    inspection: Inspection, drawn: list[dict[str, Any]], page: Any, tmp_path: Path
) -> None:
    report, _ = write_report(inspection.result, Drawn(drawn), tmp_path)
    page.open(report.as_uri())
    for width in (1400, 800, 390):
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        assert page.run("document.documentElement.scrollWidth <= innerWidth"), width


def test_another_store_is_shown_side_by_side(
    inspection: Inspection, drawn: list[dict[str, Any]], page: Any, tmp_path: Path
) -> None:
    """The comparison's rows and pictures, with names that are hostile."""
    card = drawn[0]
    row = {"name": "flow_valid", "title": "Flow present", "unit": "share", "pairs": 6, "own": 0.05, "other": 0.6}
    row |= {"median_difference": -0.5, "low": -0.6, "high": -0.4, "worse": True, "better": False, "newly_good": 0}
    frame = {"scene": HOSTILE, "t": -1, "camera": "", "own": 0.05, "other": 0.6}
    same = row | {"name": "exposure", "title": "Exposure", "worse": False, "newly_bad": {"count": 0, "frames": []}}
    row["newly_bad"] = {"count": 1, "frames": [frame]}
    result = dict(inspection.result)
    result["against"] = {"store": HOSTILE, "keyframes": 6, "unreadable": 1, "checks": [row, same]}
    result["against"]["cameras_not_compared"] = {"own": [HOSTILE, "CAM_UP"], "other": []}
    result["unreadable"], result["unreadable_count"] = ["a:0: damaged"], 61
    pair = {
        "check": "flow_valid",
        "layer": "flow",
        "scene": HOSTILE,
        "t": 1,
        "camera": HOSTILE,
        "own": 0.05,
        "other": 0.6,
    }
    pair |= {"command": HOSTILE, "other_command": HOSTILE}
    pair |= {"pictures": card["pictures"], "other_pictures": card["pictures"]}
    report, twin = write_report(result, Drawn(drawn, [pair]), tmp_path)
    assert "pictures" not in json.loads(twin.read_text())["pairs"][0]
    page.open(report.as_uri())
    assert page.run("document.getElementById('against').hidden") is False
    assert page.run("document.querySelectorAll('.pair img').length") == 2
    assert page.run("document.querySelector('.pair img').naturalWidth") == 160
    assert page.run("document.querySelectorAll('#against table')[0].querySelectorAll('tbody tr').length") == 1
    assert page.run("document.querySelector('#against .state.fail').textContent") == "worse"
    lead = page.run("document.querySelector('#against .lead').textContent")
    assert lead.endswith(f"Not compared: {HOSTILE}, CAM_UP, which only this store has.")
    notes = page.run("[...document.querySelectorAll('p.note')].map((p) => p.textContent).join('|')")
    assert notes.startswith("Could not be read: a:0: damaged|60 more keyframes could not be read.")
    assert page.run("document.querySelectorAll('#lidar svg').length") == 4
    assert page.run("window.hacked") is None
    assert page.run("document.querySelectorAll('img[src=\"x\"]').length") == 0
    assert page.errors == []


def test_hostile_names_stay_text(
    inspection: Inspection, drawn: list[dict[str, Any]], page: Any, tmp_path: Path
) -> None:
    result = json.loads(json.dumps(inspection.result))
    result["store"], result["dataset"] = HOSTILE, HOSTILE
    result["unreadable"] = [HOSTILE]
    result["coverage"]["scenes"][0]["scene"] = HOSTILE
    result["provenance"][0]["licence"] = HOSTILE
    hostile = [{**card, "scene": HOSTILE, "camera": HOSTILE, "command": HOSTILE} for card in drawn]
    report, _ = write_report(result, Drawn(hostile), tmp_path)
    page.open(report.as_uri())
    assert page.run("window.hacked") is None
    assert page.run("document.querySelectorAll('img[src=\"x\"]').length") == 0
    assert page.run("document.querySelector('.card b').textContent").startswith(HOSTILE)
    assert page.errors == []


@contextmanager
def served(inspection: Inspection, drawn: list[dict[str, Any]], folder: Path) -> Iterator[str]:
    """The address of a server of the inspection, which ends with the block."""
    server = make_server(inspection, Drawn(drawn), folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_every_keyframe_can_be_browsed_and_rejected(
    inspection: Inspection, drawn: list[dict[str, Any]], page: Any, tmp_path: Path
) -> None:
    with served(inspection, drawn, tmp_path) as address:
        page.open(f"{address}/browse")
        page.wait("now !== null && document.getElementById('under').naturalWidth > 0")
        frame = "const f = document.getElementById('frame'); f.value = 3; f.dispatchEvent(new Event('input'))"
        page.run(frame)
        page.wait("document.getElementById('title').textContent.includes('keyframe 3')")
        page.run("document.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight' }))")
        page.run("document.dispatchEvent(new KeyboardEvent('keydown', { key: '2' }))")
        page.wait("document.getElementById('title').textContent.includes('keyframe 4 of 0–5 · CAM_LEFT')")
        page.wait(f"now.token === {json.dumps(inspection.inspector.reader.scene('street-0').table.tokens[4])}")
        page.run(
            "const box = document.getElementById('under').getBoundingClientRect();"
            "document.getElementById('stack').dispatchEvent(new MouseEvent('mousemove',"
            "{ clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 }))"
        )
        page.wait("document.getElementById('probe').textContent.includes('instance')")
        page.run("reject()")
        marks = read_exclusions(tmp_path / "exclusions.json")
        assert [(m.scene, m.t, m.by) for m in marks] == [("street-0", 4, "reviewer")]
        assert page.run("document.getElementById('reject').textContent") == "rejected: take back"
        page.run("document.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowLeft' }))")
        assert page.run("document.getElementById('reject').textContent") == "reject keyframe"
        assert page.run("document.getElementById('legend').naturalWidth") > 100
        # The report of the same server knows the mark; the browsing page takes it back at the address it was made at.
        page.open(f"{address}/")
        page.wait("document.getElementById('count').textContent === '1 keyframe rejected'")
        assert page.run("document.getElementById('export').hidden") is True
        page.open(f"{address}/browse#scene=street-0&t=4&camera=CAM_LEFT")
        page.wait("document.getElementById('reject').classList.contains('on') && now !== null")
        assert page.run("document.getElementById('title').textContent") == "street-0 · keyframe 4 of 0–5 · CAM_LEFT"
        page.run("document.dispatchEvent(new KeyboardEvent('keydown', { key: 'x' }))")
        page.wait("document.getElementById('count').textContent === 'No keyframes rejected'")
        assert read_exclusions(tmp_path / "exclusions.json") == []
        assert page.run("document.getElementById('reject').classList.contains('on')") is False
        assert page.errors == []


def test_a_kept_address_opens_in_the_page_that_is_open(
    inspection: Inspection, drawn: list[dict[str, Any]], page: Any, tmp_path: Path
) -> None:
    with served(inspection, drawn, tmp_path) as address:
        page.open(f"{address}/browse#scene=street-0&t=1&camera=CAM_FRONT")
        page.wait("now !== null")
        page.run("location.hash = 'scene=street-1&t=4&camera=CAM_LEFT'")
        page.wait("document.getElementById('title').textContent === 'street-1 · keyframe 4 of 0–5 · CAM_LEFT'")
        page.wait("now.scene === 'street-1' && now.t === 4")
        page.run("history.back()")
        page.wait("document.getElementById('title').textContent === 'street-0 · keyframe 1 of 0–5 · CAM_FRONT'")
        assert page.errors == []


def test_what_cannot_be_read_is_said_and_can_be_rejected(
    clean_store: Path, corrupt: Callable[..., Path], page: Any, tmp_path: Path
) -> None:
    path = corrupt(clean_store, tmp_path / "store.zarr", lambda table, arrays: table)
    shard = next((path / "scenes" / "street-0" / "images").glob("c.*"))
    shard.write_bytes(bytes(len(shard.read_bytes())))
    with served(inspect_store(path, InspectionSettings(sample=2)), [], tmp_path) as address:
        page.open(f"{address}/browse#scene=street-0&t=1&camera=CAM_FRONT")
        page.wait("now !== null")
        assert "images" in page.run("document.querySelector('#values .bad').textContent")
        page.wait("document.querySelector('#stack p').textContent.startsWith('image: ')")
        assert "images" in page.run("document.querySelector('#stack p').textContent")
        page.run("reject()")
        page.wait("document.getElementById('reject').classList.contains('on')")
        marks = read_exclusions(tmp_path / "exclusions.json")
        assert [(mark.scene, mark.t, mark.token, mark.reason) for mark in marks] == [
            ("street-0", 1, "token0-1", "could not be read")
        ]
        page.run("go({ scene: 1, t: 5, a: 'flow' })")
        page.wait(
            "document.querySelector('#stack p').textContent === 'flow: the store has nothing for this layer here'"
        )


def test_the_served_report_writes_and_takes_back_at_once(
    inspection: Inspection, drawn: list[dict[str, Any]], page: Any, tmp_path: Path
) -> None:
    with served(inspection, drawn, tmp_path) as address:
        page.open(f"{address}/")
        page.run("document.querySelector('button.reject').click()")
        page.wait("document.getElementById('count').textContent === '1 keyframe rejected'")
        first = drawn[0]
        marks = read_exclusions(tmp_path / "exclusions.json")
        assert [(m.scene, m.t, m.token) for m in marks] == [(first["scene"], first["t"], first["token"])]
        link = page.run("document.querySelector('.card header a').getAttribute('href')")
        assert parse_qs(link.partition("#")[2])["scene"] == [first["scene"]]
        page.run("document.querySelector('button.reject.on').click()")
        page.wait("document.getElementById('count').textContent === 'No keyframes rejected'")
        assert read_exclusions(tmp_path / "exclusions.json") == []
        # Who cannot be written to is said so, and nothing looks rejected that is not.
        (tmp_path / "exclusions.json").write_text("no marks")
        page.run("document.querySelector('button.reject').click()")
        page.wait("document.getElementById('note').textContent.startsWith('Not written')")
        assert page.run("document.querySelectorAll('button.reject.on').length") == 0
        assert len(page.errors) == 1, "the refused request alone"


def test_marks_of_the_page_and_of_the_store_are_the_same_kind(drawn: list[dict[str, Any]]) -> None:
    card = drawn[0]
    content = {
        "schema": "occflow.exclusions",
        "schema_version": 1,
        "store": "s",
        "frames": [{"scene": card["scene"], "t": card["t"], "fingerprints": card["fingerprints"]}],
    }
    assert parse_exclusions(json.dumps(content), "x")[0].fingerprints == card["fingerprints"]
