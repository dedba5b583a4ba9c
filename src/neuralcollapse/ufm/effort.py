"""Effort: a limit on the work of a search that takes products of the Hessian, so that every question has an answer."""

from __future__ import annotations

from neuralcollapse.ufm.model import Model

# Multiplications of a search: 1 to 3 minutes on a core that does 2e10 to 6e10 a second.
WORK = 4e12
FEWEST = 50  # products with which neither a Newton step nor a least eigenvalue comes near its end
EACH_LOGIT = 40  # what exponentials and sums cost at each logit, in multiplications


class OutOfEffort(RuntimeError):
    """The work allowed is done: the search ends without a result."""


class Effort:
    """What a search may still cost, in multiplications.

    Attributes:
        product: the cost of a product of the Hessian of the model.
        left: what may still be spent.
        ended: whether anything was refused.
    """

    def __init__(self, model: Model, work: float | None = None) -> None:
        self.product = float(model.num_classes * model.num_columns * (4 * model.feature_dim + EACH_LOGIT))
        self.left = WORK if work is None else work
        self.ended = False

    def products(self, most: int) -> int:
        """How many products of at most `most` may be taken now: 0 if they are too few to be of use."""
        found = min(most, int(self.left // self.product))
        if found < min(most, FEWEST):
            self.ended = True
            return 0
        return found

    def spend(self, cost: float) -> None:
        """Take so many multiplications.

        Raises:
            OutOfEffort: more than are left.
        """
        if cost > self.left:
            self.ended = True
            raise OutOfEffort("the work allowed is done")
        self.left -= cost
