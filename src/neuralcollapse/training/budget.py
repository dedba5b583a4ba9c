"""Whether the weight decay of a run has the time that collapse takes: its decay budget, from its configuration."""

from __future__ import annotations

from dataclasses import dataclass

from neuralcollapse.data.batches import training_starts
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.optimizers import decay_scale, learning_rate
from neuralcollapse.ufm.budget import Stretch, budget_of, left_of
from neuralcollapse.ufm.losses import SquaredError, find_loss

ENOUGH = 2.0
"""The decay budget that NC2, self-duality and the bias need to collapse; at this one 14 % of |1'W| is left."""

_OTHER_LAWS = {
    "adam": "Adam scales each entry of the gradient, which then no longer sums to 0 over the classes",
    "adamw": "AdamW scales each entry of the gradient, which then no longer sums to 0 over the classes",
    "lbfgs": "L-BFGS chooses its steps by the loss, so that the data count too",
}


@dataclass(frozen=True)
class Budget:
    """What the decay of the classifier's weight can do in a run.

    Attributes:
        decay_budget: B (`neuralcollapse.ufm.decay_budget`), or None where no law holds.
        row_sum_left: the exact factor by which |1'W| shrinks (`neuralcollapse.ufm.row_sum_left`), or None.
        reason: why no law holds, or nothing.
        late: what has not collapsed where the budget is too small.
    """

    decay_budget: float | None = None
    row_sum_left: float | None = None
    reason: str = ""
    late: str = "NC2, self-duality and the bias"

    @property
    def advice(self) -> str:
        """One sentence for a run whose budget is too small, or nothing."""
        if self.decay_budget is None or self.row_sum_left is None or self.decay_budget >= ENOUGH:
            return ""
        found = min(self.decay_budget, ENOUGH - 0.01)  # so that 1.999 does not read as 2
        return (
            f"decay budget B = {found:.3g} of the {ENOUGH:g} or more that {self.late} need "
            f"(|1'W| will end at {100 * self.row_sum_left:.0f} % of its start): train longer, decay more, or drop "
            "the learning rate later"
        )


def run_budget(config: TrainConfig, num_samples: int) -> Budget:
    """The decay budget of a run on so many training samples, and what it leaves of the sum of the classifier's rows.

    Both are exact for SGD with a loss of the softmax, up to the rounding of the gradients; with precision=16-mixed the
    steps that are skipped because a gradient overflows are counted as if they had been made.
    """
    if config.frame != "learned":
        return Budget(reason=f"the rows of the classifier are fixed (frame={config.frame})")
    if isinstance(find_loss(config.loss), SquaredError):
        return Budget(reason="under MSE the gradient does not sum to 0 over the classes")
    if config.optimizer != "sgd":
        return Budget(reason=_OTHER_LAWS[config.optimizer])
    if config.weight_decay == 0:
        return Budget(reason="without weight decay nothing moves the sum of the rows")
    steps = len(training_starts(num_samples, config.batch_size, config.devices * config.nodes))
    stretches = [
        Stretch(decay_scale(config, epoch) * config.weight_decay, learning_rate(config, epoch), steps)
        for epoch in range(config.epochs)
    ]
    own = config.decay_on == "classifier" or config.network_options.get("bias") is False  # of a bias, or none
    late = {"late": "NC2 and self-duality"} if own else {}
    return Budget(budget_of(stretches, config.momentum), left_of(stretches, config.momentum), **late)
