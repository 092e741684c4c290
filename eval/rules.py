"""What a store's truth allows to be measured: protocol, grid and classes, and one line for each thing it does not."""

from dataclasses import dataclass

from eval.predict import evaluation_grid
from eval.protocols import RayProtocol, free_index, protocol_named
from geometry.grid import KITTI_GRID, VoxelGrid
from storage.schema import StoreAttributes


class EvaluationError(ValueError):
    """A request that cannot be met; the message says why and what to ask for instead."""


@dataclass(frozen=True)
class Rules:
    """How one store is evaluated.

    protocol: the rule of RayIoU. grid: of truth and prediction. classes: the truth's, with the one that means free;
    empty without truth. missing: a line per group of figures that cannot be computed, with the reason.
    """

    protocol: RayProtocol
    grid: VoxelGrid
    classes: tuple[str, ...]
    missing: tuple[str, ...] = ()


def rules_for(
    truth: StoreAttributes | None, dataset: str, model_grid: VoxelGrid, asked: str | None = None, classes: bool = False
) -> Rules:
    """The rules for a truth store's attributes (None: there is no truth); `asked` names a protocol instead of the
    usual one, which is `semantickitti` on KITTI's data sets and grid and `geometry` elsewhere.

    Args:
        classes: whether what is measured predicts classes; a network of ours does not.

    Raises:
        EvaluationError: an unknown protocol, or one that compares classes where there are none.
    """
    described = None if truth is None else truth.occupancy_grid
    grid = evaluation_grid(model_grid, described)
    try:
        protocol = protocol_named(asked) if asked else usual_protocol(dataset, grid)
    except ValueError as error:
        raise EvaluationError(str(error)) from None
    if protocol.class_aware and not classes:
        raise EvaluationError(
            f"protocol {protocol.name!r} compares classes and this network predicts none: use 'geometry', which "
            "ignores the class, or 'semantickitti'"
        )
    if truth is None or described is None:
        reason = "no occupancy truth beside the store: no RayIoU, no velocity errors; depth is measured against LiDAR"
        return Rules(protocol, grid, (), (reason,))
    return Rules(protocol, grid, with_free(truth.occupancy_classes))


def is_kitti(dataset: str, grid: VoxelGrid) -> bool:
    """Whether KITTI's conventions hold: its name, or its grid."""
    return "kitti" in dataset.lower() or grid.shape == KITTI_GRID.shape


def usual_protocol(dataset: str, grid: VoxelGrid) -> RayProtocol:
    """The rule of RayIoU where none is asked for."""
    return protocol_named("semantickitti" if is_kitti(dataset, grid) else "geometry")


def with_free(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Class names with the free one: stores name the occupied classes only, and free is the index after the last."""
    try:
        return classes if free_index(classes) < len(classes) else (*classes, "free")
    except ValueError:
        return (*classes, "free")
