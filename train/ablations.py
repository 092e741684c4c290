"""The rows of the ablation tables, the paper's and our own, as training runs: which there are, and what of them is one
and the same."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from model.checkpoint import CheckpointError
from train.checkpoint import CONFIG_NAME, load_state
from train.config import ConfigError, TrainConfig, ablation_rows, load_config

ORDER = ("camera_only", "camera_lidar")
"""The rows that come first; the paper's others follow by name, table by table, then what the paper does not have."""
OWN = "own_"
"""How the names of the latter begin."""


def rows() -> tuple[str, ...]:
    """All rows, in the order in which they are run."""
    return (*ORDER, *sorted(set(ablation_rows()) - set(ORDER), key=lambda row: (row.startswith(OWN), row)))


def row_config(
    row: str, seed: int, store: str | Path, out: Path, scenes: Sequence[str], base: str, overrides: Sequence[str] = ()
) -> TrainConfig:
    """The configuration of a row and seed: the `base` preset, the row's file over it, then `a.b=c` overrides.

    A row without a first stage takes as many steps as all others in one stage that is trained as a first one is, from
    nothing, with as many of them on images alone (`image_share`) as the others have.

    Raises:
        ConfigError: as `load_config`; or a stage whose length is not in steps, which cannot be paired: epochs differ
            with what a row leaves out, seconds with the machine.
    """
    given = [f"store={store}", f"out={out}", f"seed={seed}", f"data.scenes={json.dumps(list(scenes))}"]
    config = load_config(f"{base}+{row}", [*given, *overrides])
    first, second = config.stage1, config.stage2
    for name, stage in (("stage1", first), ("stage2", second)):
        if stage.max_steps is None or stage.epochs is not None or stage.max_seconds is not None:
            raise ConfigError(f"{base}: rows are compared at equal lengths: set {name}.max_steps, and no other limit")
    if not config.ablation.two_stage:
        assert first.max_steps is not None
        assert second.max_steps is not None
        steps = first.max_steps + second.max_steps
        on_images = first.image_share * first.max_steps + second.image_share * second.max_steps
        whole = first.model_copy(update={"max_steps": steps, "image_share": on_images / steps})
        config = config.model_copy(update={"stage2": whole})
    return config


def digest(config: TrainConfig) -> str:
    """First twelve hex digits of the SHA-256 of all that decides a run's outcome, its seed and its places aside."""
    values = config.model_dump(mode="json", exclude={"store": True, "out": True, "seed": True, "run": _MACHINE})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def first_stage_digest(config: TrainConfig) -> str | None:
    """The same for all that decides a first stage's outcome, None where there is none.

    Rows of one seed with one digest have, to the bit, one first stage. What is left out of it here acts in the second
    alone, where all that concerns motion does: `train/module.py`, and `needed_cues` for what is loaded.
    """
    if not config.ablation.two_stage:
        return None
    first = config.model_copy(
        update={
            "stage2": config.stage1,
            "ablation": config.ablation.model_copy(update=dict.fromkeys(_SECOND_STAGE_SWITCHES, True)),
            "loss": config.loss.model_copy(update=dict.fromkeys(_SECOND_STAGE_LOSSES, 0.0)),
        }
    )
    return digest(first)


_SECOND_STAGE_SWITCHES = (
    "dynamic_disentanglement", "forward_static_flow", "backward_static_flow", "flow_supervision",
)  # fmt: skip
_SECOND_STAGE_LOSSES = ("lifted_flow", "lifted_still", "pixel_match", "pixel_place", "pixel_motion", "instance_flow")
"""Of the second stage's losses, those that rows differ in."""
_MACHINE = {"accelerator", "devices", "checkpoint_seconds", "log_every", "progress", "compile"}


def distinct(digests: dict[str, str]) -> dict[str, str]:
    """For each row, the first row of the same digest: the one that is trained for both."""
    first: dict[str, str] = {}
    return {row: first.setdefault(found, row) for row, found in digests.items()}


def share_first_stage(config: TrainConfig) -> str | None:
    """Give a run of a matrix that has none the first stage of another row of its seed that would have the same one, to
    the bit. Runs lie side by side, each in `<row>-<seed>`, and train into a folder of one name in it (`config.out`).

    Returns the run's name that it was taken from; None where there is nothing to take, or nothing is lacking.
    """
    place, wanted = config.out.parent, first_stage_digest(config)
    if wanted is None or config.out.exists():
        return None
    for there in sorted(place.parent.glob(f"*-{config.seed}/{config.out.name}/stage1")):
        try:
            # The stage's own copy of the configuration: the run's is written a moment after a stage was given to it.
            same = first_stage_digest(load_config(there / CONFIG_NAME)) == wanted and load_state(there).finished
        except CheckpointError:
            continue
        if same:
            half = place / ".stage1"
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(there, half)
            config.out.mkdir(parents=True)
            half.rename(config.out / "stage1")
            return there.parent.parent.name
    return None
