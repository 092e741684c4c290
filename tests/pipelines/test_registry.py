"""What a data set settles for cues that leave it out."""

from collections.abc import Callable
from typing import Any

import pytest

from pipelines.config import CuesConfig
from pipelines.cues.neighbours import DrawRule
from pipelines.registry import build_extractor, check_cue

KITTI = ("semantic_kitti", "kitti_mot")


def extractor(cues_config: Callable[..., CuesConfig], kind: str, cue: str, **parameters: Any) -> Any:
    """The extractor of one cue for a kind of data set."""
    dataset = {**cues_config().dataset.model_dump(), "kind": kind}
    return build_extractor(cues_config(dataset=dataset, cues={cue: parameters}), cue)


@pytest.mark.parametrize(("kind", "height"), [("nuscenes", 0.0), *((kind, -1.73) for kind in KITTI)])
def test_the_road_lies_where_the_data_set_has_it(
    cues_config: Callable[..., CuesConfig], kind: str, height: float
) -> None:
    assert extractor(cues_config, kind, "masks", backend="motion_epipolar").road.ground_z == height
    some = extractor(cues_config, kind, "masks", backend="motion_epipolar", road={"tilt": 0.02}).road
    assert (some.ground_z, some.tilt) == (height, 0.02)
    own = extractor(cues_config, kind, "masks", backend="motion_epipolar", road={"ground_z": -1.6}).road
    assert own.ground_z == -1.6
    assert not hasattr(extractor(cues_config, kind, "masks", backend="motion_lidar"), "road")


@pytest.mark.parametrize("backend", ["dis", "unimatch"])
@pytest.mark.parametrize(("kind", "sigma"), [("nuscenes", 0.5), *((kind, 1.0) for kind in KITTI)])
def test_the_earlier_frame_is_drawn_by_the_data_sets_rule(
    cues_config: Callable[..., CuesConfig], kind: str, sigma: float, backend: str
) -> None:
    # method.md, section 5: mean 0.5 m up to 6 m on both, deviation 0.5 m on nuScenes and 1.0 m on KITTI, 20 frames.
    found = extractor(cues_config, kind, "flow_aux", backend=backend).draw
    assert found == DrawRule(mean=0.5, sigma=sigma, max_distance=6.0, max_frames=20)
    some = extractor(cues_config, kind, "flow_aux", backend=backend, draw={"max_frames": 5}).draw
    assert (some.sigma, some.max_frames) == (sigma, 5)
    assert extractor(cues_config, kind, "flow_aux", backend=backend, draw={"sigma": 0.8}).draw.sigma == 0.8


def test_the_rule_of_the_draw_is_in_the_digest_of_flow_aux_alone(cues_config: Callable[..., CuesConfig]) -> None:
    def digests(cue: str) -> int:
        return len({extractor(cues_config, kind, cue, backend="dis").config_digest() for kind in ("nuscenes", *KITTI)})

    assert digests("flow_aux") == 2
    assert digests("flow_next") == 1, "flow to a keyframe draws nothing"


def test_a_group_that_is_none_is_refused_as_before(cues_config: Callable[..., CuesConfig]) -> None:
    with pytest.raises(ValueError, match="'flow_aux', parameter draw"):
        extractor(cues_config, "kitti_mot", "flow_aux", backend="dis", draw=3)


@pytest.mark.parametrize(
    ("cue", "parameters", "told"),
    [
        # A process that meets the first three dies without a word (SIGFPE, SIGSEGV).
        ("flow_next", {"dis": {"patch_size": 0}}, r"dis = .*: Value error, patch_size = 0: expected 1 or more"),
        ("flow_next", {"dis": {"patch_stride": 0}}, "patch_stride = 0: expected 1 or more"),
        ("flow_next", {"dis": {"finest_scale": -1}}, "finest_scale = -1: expected 0 or more"),
        # No step of the search: no motion anywhere, and all of it sure.
        ("flow_next", {"dis": {"descent_iterations": 0}}, "descent_iterations = 0: expected 1 or more"),
        # A bound below 0 turns confidence round, one of 0 has none.
        ("flow_next", {"dis": {"tolerance": -1.0}}, "tolerance = -1: expected more than 0"),
        ("flow_next", {"dis": {"relative": float("nan")}}, "relative = nan: expected 0 or more"),
        ("flow_next", {"max_width": 0}, "max_width = 0: expected 1 or more"),
        ("flow_prev", {"backend": "dis_chain", "chain": {"tolerance": 0.0}}, "tolerance = 0: expected more than 0"),
        ("flow_prev", {"backend": "dis_chain", "max_width": -1}, "max_width = -1: expected 1 or more"),
        ("flow_next", {"backend": "tracks", "tracks": {"stride": 0}}, "stride = 0: expected 1 or more"),
        ("flow_next", {"backend": "tracks", "tracks": {"window": 2}}, "window = 2: expected 3 or more"),
        ("flow_next", {"backend": "unimatch", "check": {"tolerance": 0.0}}, "tolerance = 0: expected more than 0"),
        ("flow_next", {"backend": "unimatch", "max_width": 0}, "max_width = 0: expected 1 or more"),
        ("flow_next", {"backend": "cotracker", "reach": 0.0}, "reach = 0: expected more than 0"),
        ("flow_aux", {"draw": {"sigma": 0.0}}, "sigma = 0: expected more than 0"),
        ("flow_aux", {"draw": {"max_frames": 0}}, "max_frames = 0: expected 1 or more"),
    ],
)
def test_numbers_that_no_flow_can_be_made_with_are_refused(cue: str, parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_cue(cue, parameters)


def test_the_least_numbers_are_taken() -> None:
    least = {"patch_size": 1, "patch_stride": 1, "descent_iterations": 1, "refinement_iterations": 0}
    check_cue("flow_next", {"dis": least, "threads": -1})
    check_cue("flow_next", {"backend": "tracks", "tracks": {"stride": 1, "window": 3, "levels": 0}})


def test_a_flow_goes_into_the_slot_of_its_name(cues_config: Callable[..., CuesConfig]) -> None:
    for parameters in ({"slot": "prev"}, {"backend": "composed", "inside": {"backend": "tracks", "slot": "prev"}}):
        with pytest.raises(ValueError, match=r"'flow_next', parameter slot = 'prev': the cue's name says it"):
            check_cue("flow_next", parameters)
    assert extractor(cues_config, "nuscenes", "flow_next", slot="next").name == "flow_next"
    assert extractor(cues_config, "nuscenes", "flow_prev").name == "flow_prev"


@pytest.mark.parametrize(
    ("backend", "parameters", "told"),
    [
        # Shares given in per cent: nothing would be found, or nothing linked, in a whole log.
        ("grounded_sam", {"detection": {"score": 30}}, r"detection = .*: Value error, score = 30: expected 0 to 1"),
        ("grounded_sam", {"detection": {"class_scores": {"car": 40}}}, r"class_scores\.car = 40: expected 0 to 1"),
        ("sam3", {"detection": {"score": -0.1}}, "score = -0.1: expected 0 to 1"),
        ("grounded_sam", {"least_quality": 70}, "least_quality = 70: expected 1 or less"),
        ("grounded_sam", {"masks": {"iou": 80}}, "iou = 80: expected 0 to 1"),
        ("grounded_sam", {"masks": {"containment": 90}}, "containment = 90: expected 0 to 1, or 1.1"),
        ("grounded_sam", {"boxes": {"nms": 70}}, "nms = 70: expected 0 to 1"),
        ("grounded_sam", {"boxes": {"most": -1}}, "most = -1: expected 1 or more"),
        ("grounded_sam", {"max_width": 0}, "max_width = 0: expected 1 or more"),
        ("motion_lidar", {"link": {"overlap": 30}}, "overlap = 30: expected 0 to 1"),
        ("motion_lidar", {"link": {"patience": -1}}, "patience = -1: expected 0 or more"),
        ("motion_lidar", {"things": {"cell": 0.0}}, "cell = 0: expected more than 0"),
        ("motion_lidar", {"depth": {"reach": 0.0}}, "reach = 0: expected more than 0"),
        ("motion_epipolar", {"road": {"nearest": 0.0}}, "nearest = 0: expected more than 0"),
        ("motion_epipolar", {"motion": {"least_px": 0.0}}, "least_px = 0: expected more than 0"),
        ("motion_epipolar", {"regions": {"least_area": -0.1}}, "least_area = -0.1: expected 0 or more"),
        ("motion_epipolar", {"max_width": 0}, "max_width = 0: expected 1 or more"),
    ],
)
def test_numbers_that_no_mask_can_be_found_with_are_refused(
    backend: str, parameters: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        check_cue("masks", {"backend": backend, **parameters})


@pytest.mark.parametrize("cue", ["images", "sweeps"])
@pytest.mark.parametrize("quality", [20, 96])
def test_a_cues_own_jpeg_quality_has_the_bounds_of_the_shared_one(cue: str, quality: int) -> None:
    with pytest.raises(ValueError, match=f"jpeg_quality = {quality}: expected 30 to 95"):
        check_cue(cue, {"jpeg_quality": quality})
    check_cue(cue, {"jpeg_quality": 30})
