"""What a person sees of a run: losses and the time left, on a terminal or in a log file; TensorBoard scalars."""

import time
from collections import deque
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from train.module import StageModule

_SHOWN = ("total", "photometric", "flow", "lifted_flow", "lidar", "dreg", "pixel_depth")
EMPTY = 0.05
"""Share of the light of camera rays below which a volume holds nothing: one that has begun to learn holds most."""
RECENT_SECONDS = 180.0
"""What the pace is judged by: steps do not take as long all through a stage."""
LINE_SECONDS = 30.0
"""Time between two lines where there is no terminal: a bar in a batch system's log shows only its end."""


class Reporter(pl.Callback):
    """Progress (on rank 0, when asked for) and scalars every `log_every` steps, at the stage's own step count."""

    def __init__(self, log_every: int, show: bool, console: Console | None = None) -> None:
        self.log_every, self.show = log_every, show
        self.console = console or Console()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._clock = TimeLeft(0.0, time.monotonic())
        self._on_images = False
        self._told = -float("inf")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        assert isinstance(pl_module, StageModule)
        self.show = self.show and trainer.is_global_zero
        self._clock = TimeLeft(pl_module.progress, time.monotonic())
        if self.show and self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
            ends = (TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
            self._bar = Progress(*columns, *ends, console=self.console, refresh_per_second=2)
            self._bar.start()
            self._task = self._bar.add_task(f"stage {pl_module.stage}", total=1.0, left="")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report the step that just ended."""
        assert isinstance(pl_module, StageModule)
        if self.show:
            self._tell(pl_module)
        if trainer.logger is not None and pl_module.step % self.log_every == 0:
            rates = {group["lr"] for group in trainer.optimizers[0].param_groups}
            scalars = pl_module.numbers | {"optimiser/rate": max(rates)}
            prefixed = {f"stage{pl_module.stage}/{name}": value for name, value in scalars.items()}
            trainer.logger.log_metrics(prefixed, step=pl_module.step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say so if the volume is still as empty as it began: nothing else would, for such losses look like others."""
        assert isinstance(pl_module, StageModule)
        opacity = pl_module.numbers.get("render/opacity", 1.0)
        if trainer.is_global_zero and opacity < EMPTY:
            self.console.print(
                f"stage {pl_module.stage} leaves an empty volume: {opacity:.1%} of what cameras see ends in it. "
                "Rendering has no gradient where nothing is; loss.surface with LiDAR or triangulated returns, "
                "or another seed, gets such a run going",
                style="yellow", markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip

    def _tell(self, module: StageModule) -> None:
        numbers, now = module.numbers, time.monotonic()
        if self._bar is None and now - self._told < LINE_SECONDS:
            return
        self._told = now
        shown = " ".join(f"{name} {numbers[f'loss/{name}']:.3f}" for name in _SHOWN if f"loss/{name}" in numbers)
        text, left = f"stage {module.stage} step {module.step} {shown}", self._left(module, now)
        if self._bar is not None:
            self._bar.update(self._task, completed=module.progress, description=text, left=left)
        else:
            self.console.print(f"{text} {module.progress:4.0%} {left}", markup=False, highlight=False, soft_wrap=True)

    def _left(self, module: StageModule, now: float) -> str:
        """Of the part that the stage is in: what a whole step takes nobody knows before the first one."""
        if module.images_only != self._on_images:
            self._on_images, self._clock = module.images_only, TimeLeft(module.progress, now)
        if module.images_only:
            left = self._clock.text(module.progress, now, module.settings.image_share)
            return left and f"{left} on images"
        return self._clock.text(module.progress, now)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class TimeLeft:
    """How long a stage still takes at the pace of the last RECENT_SECONDS; `progress` is 0..1, `now` seconds.

    From 0.5 at 100 s to 0.6 at 160 s: 0.4 left at 0.1 in 60 s are 240 s, "4:00 left". A stage that was resumed starts
    from where it stood, so that what an earlier call did does not count as done in no time.
    """

    def __init__(self, progress: float, now: float) -> None:
        self._seen = deque([(now, progress)])

    def text(self, progress: float, now: float, end: float = 1.0) -> str:
        """Until `end` is reached, as h:mm:ss or m:ss; empty while nothing is known."""
        while len(self._seen) > 1 and self._seen[1][0] <= now - RECENT_SECONDS:
            self._seen.popleft()
        then, before = self._seen[0]
        self._seen.append((now, progress))
        if progress <= before:
            return ""
        seconds = round((now - then) / (progress - before) * max(0.0, end - progress))
        minutes, hours = seconds // 60, seconds // 3600
        spelled = f"{hours}:{minutes % 60:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"
        return f"{spelled} left"
