"""Where a run tells how it goes: its log, TensorBoard scalars in `tb`, and on a terminal a bar. Decides nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from grounding.training.scoring import Score

log = logging.getLogger(__name__)

EVERY = 50
"""Steps that one line of the log is the mean of."""


class Telling:
    """Means of the terms of the loss, and the scores, as the run goes on."""

    def __init__(self, run: Path, tensorboard: bool) -> None:
        self.sums: dict[str, float] = {}
        self.scalars = open_scalars(run / "tb") if tensorboard else None
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
            console=console, disable=not console.is_terminal, transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task("training", total=1.0)
        self.bar.start()

    def stepped(self, step: int, share: float, terms: dict[str, float], figures: dict[str, float]) -> None:
        """A step was made; `share` of the run is over. `figures` are told as they are, `terms` as means."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.bar.update(self.task, completed=share, description=f"step {step}")
        if step % EVERY:
            return
        means = {name: value / EVERY for name, value in self.sums.items()}
        told = " ".join(f"{name} {value:.3f}" for name, value in means.items())
        log.info("step %d %.1f min %.2f s/step %s", step, figures["minutes"], figures["seconds_per_step"], told)
        for name, value in {**{f"loss/{k}": v for k, v in means.items()}, **figures}.items():
            self._scalar(name, value, step)
        self.sums = {}

    def scored(self, step: int, kind: str, score: Score) -> None:
        """A validation set was scored."""
        log.info("validation step %d %s [%s]", step, kind, score)
        for name in Score.__dataclass_fields__:
            self._scalar(f"validation_{kind}/{name}", getattr(score, name), step)

    def close(self) -> None:
        """The run is over."""
        self.bar.stop()
        if self.scalars is not None:
            self.scalars.close()

    def _scalar(self, name: str, value: float, step: int) -> None:
        if self.scalars is not None:
            self.scalars.add_scalar(name, value, step)


def open_scalars(folder: Path) -> Any:
    """A writer of TensorBoard scalars; None, with a line in the log, where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("TensorBoard is not installed (extra `train`): the run writes no scalars")
        return None
    writer: Any = SummaryWriter
    return writer(str(folder))
