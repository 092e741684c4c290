"""What a person sees of a run: a progress bar with the loss terms, and TensorBoard scalars."""

from typing import Any

import lightning.pytorch as pl
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from train.module import StageModule

_SHOWN = ("total", "photometric", "flow", "lidar", "dreg")


class Reporter(pl.Callback):
    """Progress bar (on rank 0, when asked for) and scalars every `log_every` steps, at the stage's own step count."""

    def __init__(self, log_every: int, show: bool) -> None:
        self.log_every, self.show = log_every, show
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        assert isinstance(pl_module, StageModule)
        if self.show and trainer.is_global_zero:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
            self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), refresh_per_second=2)
            self._bar.start()
            self._task = self._bar.add_task(f"stage {pl_module.stage}", total=1.0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report the step that just ended."""
        assert isinstance(pl_module, StageModule)
        numbers = pl_module.numbers
        if self._bar is not None:
            shown = " ".join(f"{name} {numbers[f'loss/{name}']:.3f}" for name in _SHOWN if f"loss/{name}" in numbers)
            text = f"stage {pl_module.stage} step {pl_module.step} {shown}"
            self._bar.update(self._task, completed=pl_module.progress, description=text)
        if trainer.logger is not None and pl_module.step % self.log_every == 0:
            rates = {group["lr"] for group in trainer.optimizers[0].param_groups}
            scalars = numbers | {"optimiser/rate": max(rates)}
            prefixed = {f"stage{pl_module.stage}/{name}": value for name, value in scalars.items()}
            trainer.logger.log_metrics(prefixed, step=pl_module.step)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
