"""How good flow backends are on real frames: `python tests/benchmarks/flow_on_kitti.py DATA --weights FILE`.

DATA is SemanticKITTI's folder (any piece of it with images, scans, labels and poses). Every backend makes `flow_next`
as for a store. Where a scan hits what stands still, its label says so, and the poses tell where in the next image that
point is: end-point error and outliers (above 3 px and 5 %) there. Points that nearer ones hide are left out.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from geometry.cameras import in_image, project
from geometry.transforms import invert, transform_points
from pipelines.block import extract_block
from pipelines.config import load_config
from pipelines.cues.flow_field import sample_field, unpack_flow
from pipelines.cues.static_flow import second_from_first
from pipelines.datasets.semantic_kitti_truth import CLASS_OF_RAW_LABEL, KITTI_CLASSES
from pipelines.registry import build_extractor
from pipelines.workbench import Workbench
from storage.layout import UnitId

STILL = (KITTI_CLASSES.index("road") <= CLASS_OF_RAW_LABEL) & (len(KITTI_CLASSES) > CLASS_OF_RAW_LABEL)
STILL[1] = False
"""Which raw labels are of what stands still: a class that cannot move, and no outlier."""
CELL = 8
"""Pixels. Of the points in a cell those within a tenth of the nearest one's depth are taken for visible."""


@dataclass(frozen=True)
class StillPoints:
    """Points of one image that stand still: uv where they are, and flow to the next image, render pixels."""

    uv: Float[np.ndarray, "n 2"]
    flow: Float[np.ndarray, "n 2"]


def still_points(bench: Workbench, scene: str, t: int) -> StillPoints:
    """The true flow of keyframe t to the next one, at its scan's points."""
    now, then = bench.scene(scene).keyframes[t : t + 2]
    assert now.lidar is not None
    channel = bench.cameras[0]
    first, second = now.images[channel], then.images[channel]
    labels = now.lidar.path.parents[1] / "labels" / f"{now.lidar.path.stem}.label"
    label = np.fromfile(labels, np.uint32) & 0xFFFF
    points = bench.log.read_lidar(now.lidar)[STILL[label], :3].astype(np.float64)
    in_first = transform_points(invert(first.ego_from_cam) @ now.lidar.ego_from_lidar, points)
    uv, depth, seen = project(bench.sizes.render_transform(first).intrinsics(first.K), in_first)
    moved = transform_points(second_from_first(first, second), in_first)
    end, _, seen_then = project(bench.sizes.render_transform(second).intrinsics(second.K), moved)
    kept = seen & seen_then & in_image(uv, *bench.sizes.render) & in_image(end, *bench.sizes.render)
    uv, end, depth = uv[kept], end[kept], depth[kept]
    column, row = (uv / CELL).astype(int).T
    nearest = np.full([side // CELL + 1 for side in bench.sizes.render], np.inf)
    np.minimum.at(nearest, (row, column), depth)
    visible = depth <= 1.1 * nearest[row, column]
    return StillPoints(uv[visible], (end - uv)[visible])


def figures(miss: np.ndarray, length: np.ndarray) -> str:
    """Mean and median length of the (n, 2) misses, and the outliers' share."""
    error = np.linalg.norm(miss, axis=1)
    bad = (error > 3) & (error > 0.05 * length)
    return f"{error.mean():8.2f} {np.median(error):8.2f} {100 * bad.mean():7.1f}%"


def sampled(bench: Workbench, scene: str, parameters: dict[str, Any], true: list[StillPoints]) -> np.ndarray:
    """(n, 2) `flow_next` of a backend at all points of all keyframes, render pixels, nan where it keeps none."""
    config = bench.config.model_copy(update={"cues": {**bench.config.cues, "flow_next": parameters}})
    block, _ = extract_block(bench, UnitId("flow_next", scene), build_extractor(config, "flow_next"), dict)
    flows = [unpack_flow(flow[0]) for flow in block.arrays["flow/next/flow"][:-1]]
    return np.concatenate(
        [sample_field(flow, points.uv[None])[:, 0].T for flow, points in zip(flows, true, strict=True)]
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", help="a flow network's checkpoint, or its name in `occflow weights list`")
    parser.add_argument("--scene", default="04")
    parser.add_argument("--size", type=int, nargs=2, default=(352, 1216), help="height and width of the render grid")
    parser.add_argument("--precisions", nargs="+", default=["float32"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder) / "store.zarr")


def measure(arguments: argparse.Namespace, store: Path) -> None:
    """The table. No cue is written to `store`, only what is known of the raw files."""
    size = list(arguments.size)
    dataset = {"kind": "semantic_kitti", "root": arguments.data}
    sizes = {"network": size, "render": size, "keep": "bottom"}
    bench = Workbench(load_config("semantic_kitti", {"dataset": dataset, "sizes": sizes, "store": store}))
    scene, width = arguments.scene, arguments.size[1]
    bench.inputs(scene)  # hashing the raw files is not the backend's time
    true = [still_points(bench, scene, t) for t in range(len(bench.scene(scene).keyframes) - 1)]
    length = np.concatenate([np.linalg.norm(points.flow, axis=1) for points in true])
    print(f"{len(true)} pairs of {size[0]}x{width}, {len(length)} points that stand still")
    print(f"{'':26}   s/pair    mean   median  outliers  kept: share     mean   median outliers")
    print(f"{'no flow':26} {'':>8} {figures(np.concatenate([points.flow for points in true]), length)}")
    runs: dict[str, dict[str, Any]] = {"dis": {"backend": "dis", "max_width": width}}
    for precision in arguments.precisions if arguments.weights else ():
        rule = {"backend": "unimatch", "weights": arguments.weights, "device": arguments.device, "max_width": width}
        runs[f"unimatch, {precision}"] = {**rule, "precision": precision}
    truth = np.concatenate([points.flow for points in true])
    for name, parameters in runs.items():
        check = "dis" if name == "dis" else "check"
        started = time.perf_counter()
        kept = sampled(bench, scene, parameters, true)
        seconds = (time.perf_counter() - started) / len(true)
        # As good as every pixel's flow: whatever the way back says.
        found = sampled(bench, scene, {**parameters, check: {"tolerance": 1e6}}, true)
        some, trusted = ~np.isnan(found).any(axis=1), ~np.isnan(kept).any(axis=1)
        print(
            f"{name:26} {seconds:8.2f} {figures(found[some] - truth[some], length[some])}"
            f"   {100 * trusted.mean():9.1f}% {figures(kept[trusted] - truth[trusted], length[trusted])}",
            flush=True,
        )


if __name__ == "__main__":
    main()
