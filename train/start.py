"""What a network starts from besides its seed: a published backbone, or the weights of another run."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from model.backbone import ConvNeXt, load_official_weights
from model.checkpoint import WEIGHTS_NAME, CheckpointError, read_weights
from model.network import OccFlow
from train.config import ConfigError
from train.settings import StartConfig


@dataclass(frozen=True)
class Taken:
    """What a file gave to a network, name by name.

    missing: parameters that keep what the seed gave them. unused: entries that the network has no place for. A name
    whose shape differs is in both.
    """

    source: Path
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def tell(self, console: Console) -> None:
        """How many were taken, and every name that was not."""
        lines = [f"starting from {self.source}: {len(self.loaded)} tensors taken"]
        lines += [f"  not in it, as the seed made it: {name}" for name in self.missing]
        lines += [f"  in it, not used: {name}" for name in self.unused]
        console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def begin_from(network: OccFlow, start: StartConfig) -> Taken | None:
    """Load what `start` names into the network; None where it names nothing.

    Raises:
        ConfigError: the file is missing, damaged, of another kind or size, or the backbone is no ConvNeXt.
    """
    if start.backbone is not None:
        return _from_official(network, start.backbone)
    return None if start.network is None else _from_run(network, start.network)


def _from_official(network: OccFlow, path: Path) -> Taken:
    if not isinstance(network.backbone, ConvNeXt):
        raise ConfigError(
            f"start.backbone={path}: official files are of a ConvNeXt, and model.backbone.kind is "
            f"{network.config.backbone.kind!r}; set model.backbone.kind=convnext, or leave the file out"
        )
    try:
        report = load_official_weights(network.backbone, path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"start.backbone: {error}") from error
    loaded, missing = (tuple(f"backbone.{name}" for name in names) for names in (report.loaded, report.missing))
    return Taken(path, loaded, missing, report.unused)


def _from_run(network: OccFlow, folder: Path) -> Taken:
    path = folder / WEIGHTS_NAME
    try:
        found = read_weights(folder)
    except CheckpointError as error:
        raise ConfigError(
            f"start.network: {error}; give a checkpoint folder, such as <out>/stage1 of another run"
        ) from error
    own = network.state_dict()
    fitting = {name: value for name, value in found.items() if name in own and value.shape == own[name].shape}
    if not fitting:
        first = next(iter(found), "-")
        raise ConfigError(
            f"start.network: nothing in {path} has a name and shape of this network; first in it: {first}"
        )
    network.load_state_dict(fitting, strict=False)
    missing, unused = (tuple(name for name in names if name not in fitting) for names in (own, found))
    return Taken(path, tuple(fitting), missing, unused)
