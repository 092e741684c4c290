"""Models of the transformers library from local folders, checked to be whole; the network is never asked."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.weights import WeightsError, check_weights

INSTALL = "pip install 'occflow[cues]'"


@dataclass(frozen=True)
class ModelFolder:
    """A folder as transformers' save_pretrained writes it, checked to be whole."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> "ModelFolder":
        """Raises WeightsError: no folder, or something in it missing or cut off."""
        if not path.is_dir():
            raise WeightsError(
                f"{path}: a single file, but this backend reads a model folder (config.json and weights)"
            )
        check_weights(path)
        return cls(path)

    def settings(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder; empty where there is none."""
        file = self.path / name
        return json.loads(file.read_text()) if file.is_file() else {}

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Image size and normalisation, from preprocessor_config.json or the newer processor_config.json."""
        return self.settings("preprocessor_config.json") or self.settings("processor_config.json").get(
            "image_processor", {}
        )

    @property
    def model_type(self) -> str:
        """As config.json names the architecture."""
        return str(self.settings("config.json").get("model_type", "unknown"))

    def expect(self, kinds: dict[str, str]) -> str:
        """The transformers class for this folder, from model_type -> class name. WeightsError for another type."""
        if self.model_type not in kinds:
            raise WeightsError(
                f"{self.path}: config.json says model_type {self.model_type!r}, expected one of {', '.join(kinds)}"
            )
        return kinds[self.model_type]

    def model(self, name: str, device: torch.device) -> Any:
        """The model of class `name`, float32, ready to run. WeightsError where weights and config do not fit.

        Never looks at the network: the folder is all there is.
        """
        kind = getattr(transformers(), name, None)
        if kind is None:
            raise WeightsError(f"{self.path}: transformers {transformers().__version__} has no {name}: {INSTALL} -U")
        with _quiet():
            try:
                found, told = kind.from_pretrained(
                    self.path, local_files_only=True, dtype=torch.float32, output_loading_info=True
                )
            except Exception as error:  # shapes that differ, broken pickles, missing entries: every class has its own
                raise WeightsError(f"{self.path}: {name} cannot be loaded: {str(error).strip()[:500]}") from None
        missing = sorted(told.get("missing_keys", []))
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise WeightsError(f"{self.path}: weights of {name} lack {', '.join(missing[:3])}{more}: not a whole model")
        return found.to(device).eval()

    def tokenizer(self) -> Any:
        """The tokenizer of the folder, one that knows where in the text its tokens are."""
        with _quiet():
            try:
                found = transformers().AutoTokenizer.from_pretrained(self.path, local_files_only=True)
            except Exception as error:  # as above
                raise WeightsError(
                    f"{self.path}: no tokenizer can be read: {str(error).strip()[:300]}; expected tokenizer.json or "
                    "the vocabulary beside the weights"
                ) from None
        if not found.is_fast:
            raise WeightsError(f"{self.path}: the tokenizer does not report places in the text: add its tokenizer.json")
        return found


def transformers() -> Any:
    """The package. WeightsError that says how to install it."""
    try:
        import transformers as package
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise WeightsError(f"this backend needs the package transformers: {INSTALL}") from None
    return package


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and load reports: what matters in them becomes an error of ours."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    if not os.environ.get("OCCFLOW_DEBUG"):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()
        logging.set_verbosity(level)
