"""LiDAR in the keyframe's cameras, and depth rendered along the same rays."""

from pathlib import Path
from typing import Any

import numpy as np

from eval.baselines import flat_ground_depth
from eval.views import lidar_views, rendered_depths, views
from storage.reader import StoreReader


def test_views_are_at_render_size(tiny_store: Path, log: Any) -> None:
    found = views(StoreReader(tiny_store).scene("a").table, 1, (32, 64), (16, 32))
    assert [view.camera for view in found] == [0, 1]
    np.testing.assert_allclose(found[0].K, [[16, 0, 16], [0, 16, 8], [0, 0, 1]])
    np.testing.assert_allclose(found[1].ego_from_cam, log.ego_from_cam(1), atol=1e-6)


def test_depth_of_a_plane_given_as_its_distance_field(tiny_store: Path, log: Any, known_network: type) -> None:
    grid = log.grid
    network = known_network(grid.centres()[..., 2], np.zeros((*grid.shape, 2)), grid)
    compared = 0
    seen = list(lidar_views(StoreReader(tiny_store), "a", 0))
    depths = rendered_depths(network.renderer, network.fields, [(view, s.uv) for view, s in seen], chunk=37)
    for (view, sparse), rendered in zip(seen, depths, strict=True):
        plane = flat_ground_depth(view.K, view.ego_from_cam, sparse.uv, grid)
        # 256 samples over at most 57 m: a step is 0.22 m along the ray.
        near = plane < 20
        np.testing.assert_allclose(rendered[near], plane[near], atol=0.25)
        compared += int(near.sum())
    assert compared > 100
    assert rendered_depths(network.renderer, network.fields, []) == []


def test_points_that_no_camera_sees_are_left_out(tmp_path: Path, make_log: type) -> None:
    reader = StoreReader(make_log(lidar_at=(0,), blind=((0, 1),), truth_at=None).write(tmp_path / "store.zarr"))
    assert [view.camera for view, _ in lidar_views(reader, "a", 0)] == [0]
    assert list(lidar_views(reader, "a", 1)) == []
