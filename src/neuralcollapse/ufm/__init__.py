"""The unconstrained feature model: solve it, certify any point, leave any saddle, list its critical points."""

from neuralcollapse.ufm.budget import decay_budget, row_sum_left
from neuralcollapse.ufm.certificate import Certificate, certify
from neuralcollapse.ufm.head import HeadCertificate, certify_head, certify_head_moments
from neuralcollapse.ufm.hessian import Hessian
from neuralcollapse.ufm.losses import CrossEntropy, Focal, SquaredError
from neuralcollapse.ufm.minimizers import closed_form, fixed_classifier_minimum, spherical_minimum
from neuralcollapse.ufm.nonnegative import MinimumBounds, class_margins, minimum_bounds
from neuralcollapse.ufm.points import Point
from neuralcollapse.ufm.solvers import Solution
from neuralcollapse.ufm.unconstrained import UnconstrainedFeatureModel

__all__ = [
    "Certificate",
    "CrossEntropy",
    "Focal",
    "HeadCertificate",
    "Hessian",
    "MinimumBounds",
    "Point",
    "Solution",
    "SquaredError",
    "UnconstrainedFeatureModel",
    "certify",
    "certify_head",
    "certify_head_moments",
    "class_margins",
    "closed_form",
    "decay_budget",
    "fixed_classifier_minimum",
    "minimum_bounds",
    "row_sum_left",
    "spherical_minimum",
]
