"""UnconstrainedFeatureModel: the model, with the functions of this package as its methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neuralcollapse.ufm.atlas import Entry, Partition, atlas
from neuralcollapse.ufm.certificate import Certificate, certify
from neuralcollapse.ufm.hessian import Hessian
from neuralcollapse.ufm.minimizers import global_minimizer, global_minimum
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.points import Point
from neuralcollapse.ufm.solvers import Solution, Starts, many_starts, minimize


class UnconstrainedFeatureModel(Model):
    """The unconstrained feature model; arguments, points and derivatives are those of `Model`."""

    __doc__ = Model.__doc__

    def hessian(self, point: Point) -> Hessian:
        """The Hessian at a point, as a linear operator."""
        return Hessian(self, point)

    def certify(self, point: Point, **options: Any) -> Certificate:
        """How far a point is from the optimum, and what kind of point it is: see `certificate.certify`."""
        return certify(self, point, **options)

    def minimize(self, point: Point, method: str = "lbfgs", **options: Any) -> Solution:
        """Descend from a point: see `solvers.minimize`."""
        return minimize(self, point, method, **options)

    def many_starts(self, count: int, **options: Any) -> Starts:
        """Descend from many random starts at once: see `solvers.many_starts`."""
        return many_starts(self, count, **options)

    def global_minimizer(self) -> Point:
        """A global minimiser: see `minimizers.global_minimizer`."""
        return global_minimizer(self)

    def global_minimum(self) -> float:
        """The smallest value of the objective."""
        return global_minimum(self)

    def atlas(self, partitions: Sequence[Partition] | None = None, **options: Any) -> list[Entry]:
        """Critical points, by partitions of the classes and by ranks: see `atlas.atlas`."""
        return atlas(self, partitions, **options)
