"""The trackers' packages: licence, and how to get them. Imports neither them nor PyTorch."""

from dataclasses import dataclass
from importlib.util import find_spec

from pipelines.weights import WeightsError


@dataclass(frozen=True)
class TrackerPackage:
    """A package that the user installs. module: what must be found; licence: of code and weights (SPDX)."""

    module: str
    licence: str
    install: str

    def check(self) -> None:
        """Raise WeightsError, which says how to install it, unless the package can be found; loads no model."""
        try:
            found = find_spec(self.module) is not None
        except ModuleNotFoundError:  # the parent of a dotted name
            found = False
        if not found:
            raise WeightsError(f"this backend needs the package {self.module}: {self.install}")


COTRACKER = TrackerPackage(
    "cotracker",
    "CC-BY-NC-4.0",
    "pip install git+https://github.com/facebookresearch/co-tracker (CC-BY-NC-4.0: not for commercial use); "
    "backend `tracks` needs no package",
)
ALLTRACKER = TrackerPackage(
    "nets.alltracker",
    "MIT",
    "git clone https://github.com/aharley/alltracker, add the folder to PYTHONPATH, and pip install torchvision einops",
)
