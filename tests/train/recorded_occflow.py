"""`occflow`, started by torchrun, that writes down what its process draws and loses: one JSON line per sample or step.

RECORD is the file, with "{rank}" in it. With STOP_AT=<stage>:<step> the first process sends SIGTERM to its launcher in
the middle of that step, as a batch system would, and goes on once the signal has come back to it.
"""

import json
import os
import signal
import sys
import time
from typing import Any

import torch

from train.data import KeyframeDataset
from train.module import StageModule

rank = os.environ["RANK"]
path = os.environ["RECORD"].format(rank=rank)
stop_at = os.environ.get("STOP_AT", ":")
draw_sample, take_step = KeyframeDataset.__getitem__, StageModule.training_step


def write(**entry: Any) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(entry) + "\n")


def sample(self: KeyframeDataset, key: tuple[int, int]) -> Any:
    write(kind="sample", stage=self.stage, draw=int(key[0]), frame=int(key[1]))
    return draw_sample(self, key)


def step(self: StageModule, batch: Any, index: int) -> torch.Tensor:
    if stop_at == f"{self.stage}:{self.step}":
        handler = signal.getsignal(signal.SIGTERM)
        if rank == "0":
            os.kill(os.getppid(), signal.SIGTERM)
        deadline = time.monotonic() + 25
        while not handler.made and time.monotonic() < deadline:  # type: ignore[union-attr]
            time.sleep(0.01)
    loss = take_step(self, batch, index)
    write(kind="step", stage=self.stage, step=self.step, loss=float(loss.detach()).hex())
    return loss


KeyframeDataset.__getitem__ = sample  # type: ignore[method-assign]
StageModule.training_step = step  # type: ignore[method-assign]
sys.argv[0] = "occflow"

from occflow import app  # noqa: E402

app()
