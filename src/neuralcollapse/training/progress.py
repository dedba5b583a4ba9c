"""How far a run is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning
from tqdm import tqdm

from neuralcollapse.runs.records import Record

_BAR_SECONDS = 0.2
_LINE_SECONDS = 30.0


class Progress(lightning.Callback):
    """Counts epochs, and steps within them, on stderr.

    Off a terminal a line comes at every tenth of the epochs and, where epochs are long, every half minute.
    """

    def __init__(self, epochs: int, steps: int, show: bool) -> None:
        self.epochs = epochs
        self.steps = steps
        self.visible = show
        self.bar = tqdm(
            total=epochs,
            unit="epoch",
            disable=None if show else True,
            leave=False,
            bar_format="{percentage:3.0f}%|{bar:20}| epoch {n:.2f}/{total} [{elapsed}<{remaining}] {postfix}",
        )
        self._text = ""
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, if it is time."""
        wait = _LINE_SECONDS if self.bar.disable else _BAR_SECONDS
        if not self.visible or time.monotonic() - self._last < wait:
            return
        done = trainer.current_epoch + (pl_module.step + 1) / self.steps
        if self.bar.disable:
            self._line(f"epoch {done:.2f}/{self.epochs}  ({self._text})")
        else:
            self.bar.update(done - self.bar.n)
            self._last = time.monotonic()

    def show(self, record: Record) -> None:
        """Say what was measured."""
        text = f"accuracy {record.train['accuracy']:.4f}  NC1 {record.measures['nc1']:.2e}"
        if record.head:
            text += f"  head {record.head['ratio']:.3f} x minimum"
        self._text = f"at epoch {record.epoch}: {text}"
        if not self.bar.disable:
            self.bar.set_postfix_str(self._text, refresh=False)
            self.bar.update(record.epoch - self.bar.n)
        elif self.visible and record.epoch % max(1, self.epochs // 10) == 0:
            self._line(f"epoch {record.epoch:>4}/{self.epochs}  {text}")

    def close(self) -> None:
        """Clear the bar."""
        self.bar.close()

    def _line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        self._last = time.monotonic()
