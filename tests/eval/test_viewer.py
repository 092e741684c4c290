"""The voxel viewer: what is packed can be read back by another program, pages stay small, and a browser draws it."""

import base64
import io
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval import camera_tiles
from eval import pictures as drawing
from eval.page import PAGE
from eval.picture_page import picture_sections
from eval.pictures import Volume, draw_examples
from eval.viewer import FLOW_STEP, coarsen, pack, viewer
from eval.volume_errors import exposed
from geometry.grid import VoxelGrid

GRID = VoxelGrid((-4.0, -3.0, -1.0), (4.0, 3.0, 2.0), (16, 12, 6))


def random_volume(seed: int, judged: bool = False) -> Volume:
    rng = np.random.default_rng(seed)
    flow = rng.uniform(-9, 9, (*GRID.shape, 2)).astype(np.float32)
    return Volume(rng.random(GRID.shape) < 0.5, flow, rng.random(GRID.shape) < 0.8 if judged else None)


def unpacked(entry: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat indices, memberships and velocities (volumes, n, 2), read as the script does."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(entry["data"])), np.uint8).reshape(-1, entry["count"])
    steps = raw[:4].astype(np.int64).T @ (256 ** np.arange(4))
    velocity = raw[5:].view(np.int8).reshape(len(entry["volumes"]), 2, -1).transpose(0, 2, 1)
    return np.cumsum(steps), raw[4], velocity * FLOW_STEP


def test_what_is_packed_can_be_read_back() -> None:
    volumes = {"prediction": random_volume(0), "truth": random_volume(1, judged=True)}
    entry = pack("a", volumes, GRID).entry
    index, bits, velocity = unpacked(entry)
    surface = exposed(volumes["prediction"].occupied) | exposed(volumes["truth"].occupied)
    assert (index == np.flatnonzero(surface)).all()
    for i, volume in enumerate(volumes.values()):
        held = volume.occupied.ravel()[index]
        assert ((bits >> i) & 1 == held).all()
        # Half a step of rounding; nothing where the volume holds nothing.
        assert np.abs(velocity[i][held] - volume.flow.reshape(-1, 2)[index][held]).max() <= FLOW_STEP / 2 + 1e-6
        assert (velocity[i][~held] == 0).all()
    judged = volumes["truth"].judged
    assert judged is not None
    assert (bits >> 7 == judged.ravel()[index]).all()
    assert entry["size"] == [0.5, 0.5, 0.5]
    assert len(entry["heights"]) == 3 * 6


def test_broken_and_fast_velocities_stay_in_range() -> None:
    flow = np.full((*GRID.shape, 2), np.nan, dtype=np.float32)
    flow[0, 0, 5] = 1e4, -1e4
    _, _, velocity = unpacked(pack("a", {"p": Volume(np.ones(GRID.shape, bool), flow)}, GRID).entry)
    assert velocity.max() == 127 * FLOW_STEP
    assert velocity.min() == -127 * FLOW_STEP


def test_large_volumes_are_coarsened_until_they_fit() -> None:
    volume = random_volume(2)
    whole, half = pack("a", {"p": volume}, GRID).entry, pack("a", {"p": volume}, GRID, limit=300).entry
    assert (whole["coarser"], half["coarser"]) == (1, 2)
    assert whole["count"] > 300 >= half["count"]
    assert half["shape"] == [8, 6, 3]
    assert half["size"] == [1.0, 1.0, 1.0]


def test_a_coarser_voxel_is_occupied_where_one_of_eight_is() -> None:
    occupied, flow = np.zeros((3, 2, 2), dtype=bool), np.full((3, 2, 2, 2), 7.0, dtype=np.float32)
    occupied[0, 0, 0] = occupied[1, 1, 0] = True
    flow[0, 0, 0], flow[1, 1, 0] = (1.0, 0.0), (3.0, 2.0)
    found = coarsen(Volume(occupied, flow))
    assert found.occupied.tolist() == [[[True]], [[False]]]
    assert found.flow[0, 0, 0].tolist() == [2.0, 1.0]
    assert found.flow[1, 0, 0].tolist() == [0.0, 0.0]


def test_volumes_that_do_not_fit_together_are_refused() -> None:
    small = Volume(np.ones((2, 2, 2), bool), np.zeros((2, 2, 2, 2), np.float32))
    with pytest.raises(ValueError, match="one shape"):
        pack("a", {"p": small, "q": random_volume(0)}, GRID)
    with pytest.raises(ValueError, match="one to seven"):
        pack("a", {}, GRID)


@pytest.fixture(scope="module")
def drawn(small_store: Path, small_log: Any, exact: Callable[..., Any]) -> list[dict[str, drawing.KeyframePictures]]:
    """Two keyframes by one network under a name that is not to be taken for markup."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "_VIEW_SIZE", (60, 100))
        patch.setattr(drawing, "_NOVEL_WIDTH", 64)
        patch.setattr(camera_tiles, "_STRIP", 128)
        return [{"</script><b>mine": found} for found in draw_examples(exact(small_log), small_store, count=2)]


def test_a_page_has_a_bound_and_says_what_it_left_out(drawn: list[Any]) -> None:
    text = viewer(drawn)
    data = json.loads(re.search(r'id="voxels">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    assert [frame["volumes"] for frame in data["frames"]] == [["</script><b>mine", "truth"]] * 2
    one = len(data["frames"][0]["data"])
    short = viewer(drawn, page_bytes=one + 10)
    assert "1 more keyframes would make this page too large" in short
    assert len(text) - len(short) > 0.9 * one
    assert viewer(drawn, page_bytes=10) == viewer([]) == ""


def test_a_browser_draws_it(drawn: list[Any], page: Any, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(Template(PAGE).substitute(title="t", lead="l", body=picture_sections(drawn)), encoding="utf-8")
    page.open(file.as_uri())
    # A software renderer has to fill it.
    page.run("document.querySelector('#viewer canvas').style.cssText = 'width: 320px; height: 200px'")

    def shown() -> int:
        return page.run("Number(document.querySelector('#viewer canvas').dataset.voxels || 0)")

    def picture() -> np.ndarray:
        """The canvas as RGB, through a PNG."""
        page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        text = page.run("document.querySelector('#viewer canvas').toDataURL('image/png')")
        with Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2]))) as found:
            return np.asarray(found.convert("RGB"))

    def click(key: str, value: str) -> None:
        page.run(f"document.querySelector('[data-key={key}][data-value=\"{value}\"]').click()")

    page.wait("Number((document.querySelector('#viewer canvas') || {dataset: {}}).dataset.voxels) > 0")
    found = next(iter(drawn[0].values()))
    assert shown() == exposed(found.predicted_volume.occupied).sum()
    first = picture()
    background = np.array([236, 240, 245])
    covered = (np.abs(first.astype(int) - background).max(axis=-1) > 12).mean()
    assert covered > 0.2
    # The only coloured thing in motion colours is the moving car.
    click("colour", "motion")
    motion = picture().astype(int)
    assert 0 < (np.ptp(motion, axis=-1) > 60).mean() < 0.05
    # The network knows the truth: everything is right, and nothing is left when that is hidden.
    click("colour", "errors")
    picture()
    click("hideRight", "true")
    assert shown() == 0
    assert (np.abs(picture().astype(int) - background).max(axis=-1) <= 2).all()
    click("volume", "1")
    click("colour", "height")
    before = picture()
    page.run("document.querySelector('#viewer canvas').dispatchEvent(new WheelEvent('wheel', {deltaY: -600}))")
    assert (picture() != before).any()
    page.run("const s = document.querySelector('#viewer select'); s.value = 1; s.dispatchEvent(new Event('change'))")
    page.wait("document.querySelector('#viewer select').value === '1'")
    assert page.run("document.querySelectorAll('#viewer b, .viewer script').length") == 0
    told = [error for error in page.errors if "GPU stall" not in error]  # the test's own reading
    assert told == []
