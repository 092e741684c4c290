"""The files of a fine-tuning run: its result, its measurements, and the state that it goes on from after a stop."""

import hashlib
import json
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipelines.adapt.pairs import PairsError
from pipelines.cues.unimatch.network import UniMatch, save_network
from pipelines.weight_files import FaultyWeights, check_members
from storage.whole_file import whole_file

STATE, HISTORY, RESULT = "state.pt", "history.json", "adapted.pth"


@dataclass
class RunState:
    """A run as it stands between two steps.

    Attributes:
        folder: of the files; `save` wants it made.
        settings: of the run, as plain values.
        start: `network_digest` of the starting point.
        step: steps of the optimiser that were done.
        history: the measurements so far.
    """

    folder: Path
    network: UniMatch
    optimizer: torch.optim.Optimizer
    settings: dict[str, Any]
    start: str
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def save(self) -> None:
        """Write the files, each replaced in one step; the state last: it is what a run goes on from."""
        save_network(self.network, self.folder / RESULT)
        with whole_file(self.folder / HISTORY) as temporary:
            temporary.write_text(json.dumps({"settings": self.settings, "measurements": self.history}, indent=1))
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "settings": self.settings,
            "start": self.start,
            "step": self.step,
            "history": self.history,
        }
        with whole_file(self.folder / STATE) as temporary:
            torch.save(state, temporary)

    def restore(self) -> None:
        """Take up what `save` wrote; nothing where it wrote nothing yet.

        Raises:
            PairsError: a damaged state, or one of another run.
        """
        path = self.folder / STATE
        if not path.exists():
            return
        state = _read(path, self.network.mean.device)
        if state["settings"] != self.settings:
            changed = [key for key, value in self.settings.items() if state["settings"].get(key) != value]
            raise PairsError(
                f"{path}: is of a run with other {', '.join(changed)}; take another folder, or those settings"
            )
        if state.get("start", self.start) != self.start:  # runs of earlier versions do not say
            raise PairsError(
                f"{path}: is of a run that began with other weights; take another folder, or those weights"
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.history = state["step"], state["history"]


def network_digest(network: UniMatch) -> str:
    """SHA-256 (hex) of a network's variant and parameters."""
    found = hashlib.sha256(repr(network.variant).encode())
    for name, value in network.state_dict().items():
        found.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        check_members(path)  # torch.load looks at no checksum
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        return state
    except (FaultyWeights, zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        why = str(error).partition("\n")[0][:200] or type(error).__name__
        raise PairsError(
            f"{path}: a damaged state, nothing to go on from ({why}); begin in another folder, with --weights "
            f"{path.parent / RESULT} where that is whole"
        ) from None
