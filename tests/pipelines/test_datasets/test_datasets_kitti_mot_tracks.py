"""KITTI tracking labels: boxes in the ego frame by hand-computed cases, velocities without own motion, damage."""

from typing import Any

import numpy as np
import pytest

from geometry.transforms import invert
from pipelines.datasets.kitti_mot import KittiMotLog
from pipelines.datasets.kitti_mot_labels import velocities
from pipelines.datasets.records import DataError

LABEL = "{} 7 {} 0 1 -1.57 10 5 30 25 1.5 1.8 4.2 {} 1.6 20.0 {}\n"


def test_tracks_in_the_ego_frame(tiny_mot: Any) -> None:
    """Location is the middle of the floor in rectified camera 0; at rotation 0 an object faces camera x (ego right)."""
    root = tiny_mot.root
    path = root / "training" / "label_02" / "0001.txt"
    dont_care = "0 -1 DontCare -1 -1 -10 1 1 2 2 -1 -1 -1 -1000 -1000 -1000 -10\n"
    path.write_text(dont_care + LABEL.format(0, "Car", 2.0, 0.0) + LABEL.format(1, "Van", 1.0, -np.pi / 2))
    log = KittiMotLog(root)
    boxes = log.tracks("training_0001")
    assert boxes is not None
    assert [(b.frame, b.track, b.kind, b.occluded, b.size) for b in boxes] == [
        (0, 7, "Car", 1, (4.2, 1.8, 1.5)),
        (1, 7, "Van", 1, (4.2, 1.8, 1.5)),
    ]
    assert boxes[0].box == (10.5, 5.5, 30.5, 25.5)
    rectified = np.eye(4)
    rectified[:3, :3] = tiny_mot.R_rect
    cam0_from_velo = rectified @ np.vstack([tiny_mot.Tr_velo_cam, [0, 0, 0, 1]])
    np.testing.assert_allclose(cam0_from_velo @ boxes[0].ego_from_box[:, 3], [2.0, 1.6, 20.0, 1.0], atol=1e-6)
    turned = [(cam0_from_velo @ b.ego_from_box)[:3, :3] for b in boxes]
    np.testing.assert_allclose(turned[0], [[1, 0, 0], [0, 0, -1], [0, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(turned[1][:, 0], [0, 0, 1], atol=1e-6, err_msg="at -90 degrees it faces along the view")
    assert np.linalg.det(turned[1]) == pytest.approx(1)


def test_velocities_take_out_own_motion(tiny_mot: Any) -> None:
    """The object keeps its place before the car, so it drives as the car does: 1 m in 0.1037 s, turning with it."""
    root = tiny_mot.root
    path = root / "training" / "label_02" / "0001.txt"
    path.write_text("".join(LABEL.format(i, "Car", 2.0, 0.0) for i in (0, 2)) + LABEL.format(40, "Car", 2.0, 0.0))
    log = KittiMotLog(root)
    boxes = log.tracks("training_0001")
    assert boxes is not None
    frames = {int(f.token): f for f in log.scene("training_0001").frames}
    found = velocities(boxes, frames)
    assert found[1] is None, "its next frame, 40, is not here"
    assert found[2] is None
    at = boxes[0].ego_from_box[:, 3]
    moved = invert(frames[0].global_from_ego) @ frames[2].global_from_ego @ at - at
    assert found[0] is not None
    velocity, seconds = found[0]
    assert seconds == pytest.approx(0.2074)
    np.testing.assert_allclose(velocity, moved[:2] / 0.2074, rtol=1e-6)
    assert velocity[0] == pytest.approx(1 / 0.1037, rel=0.05)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("0 1 Car 0 0 0 1 1 2 2 1.5 1.8 4 0 1.6", r"0001\.txt: line 1 .*15 columns, expected 17"),
        (LABEL.format(0, "Car", "x", 0), r"line 1 .*could not convert"),
        (LABEL.format(0, "Car", "nan", 0), r"line 1 .*not finite"),
        (LABEL.format(0, "Car", 1, 0).replace("1.5 1.8", "0.0 1.8"), r"height, width, length are 0, 1\.8, 4\.2"),
    ],
)
def test_damaged_labels(tiny_mot: Any, line: str, complaint: str) -> None:
    root = tiny_mot.root
    (root / "training" / "label_02" / "0001.txt").write_text(line)
    with pytest.raises(DataError, match=complaint):
        KittiMotLog(root).tracks("training_0001")
