"""Similar classes under several losses: the model's minimum when features of like classes are cheaper to keep alike.

    python benchmarks/similar_classes.py     # half a minute on one thread; prints a table

The decay of the features is that of a kernel S in place of the identity, `(lH/2) tr(H S^-1 H')`, with correlation rho
between the classes of a group, as in a network that sees similar images in them. At rho = 0 it is the unconstrained
feature model, and every loss has a simplex. The decays are those of the experiment `losses` at laptop scale.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from neuralcollapse.geometry.measures import measures
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.ufm.losses import Loss, find_loss

K = 10
GROUPS = ((0, 2, 4, 6), (5, 7, 9))  # upper garments and shoes in Fashion-MNIST
# sqrt(n lW lH) at the end of the runs, lH from the balance
DECAYS = {
    "cross_entropy": 2.8e-3,
    "label_smoothing:0.1": 2.8e-3,
    "mse": 1.8e-3,
    "focal:1": 2.6e-3,
    "focal:2": 2.6e-3,
    "focal:3": 2.6e-3,
}


def kernel(rho: float) -> Tensor:
    """(K, K) correlations of the classes."""
    found = torch.eye(K, dtype=torch.float64)
    for group in GROUPS:
        for i in group:
            for j in group:
                found[i, j] = 1.0 if i == j else rho
    return found


def minimise(loss: Loss, decay: float, inverse: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """W, H (one column a class) and b at the minimum, by L-BFGS from near a simplex."""
    generator = torch.Generator().manual_seed(seed)
    start = 6 * torch.eye(K, dtype=torch.float64) / math.sqrt(K)
    W, H = (start + 0.01 * torch.randn(K, K, dtype=torch.float64, generator=generator) for _ in range(2))
    parts = [W.requires_grad_(), H.requires_grad_(), torch.zeros(K, dtype=torch.float64, requires_grad=True)]
    targets = loss.targets(torch.arange(K), K)
    optimizer = torch.optim.LBFGS(
        parts,
        max_iter=3000,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        W, H, b = parts
        decays = W.square().sum() + torch.einsum("dk,kl,dl->", H, inverse, H)
        value = loss.value(W @ H + b[:, None], targets).mean() + decay / 2 * decays + 1e-3 / 2 * b.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    for _ in range(5):
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    W, H, b = (part.detach() for part in parts)
    return W, H, b


def main() -> None:
    """Print the table."""
    print("| rho | loss | NC2 | NC2, means | margins | spread of the margins | probability of the class |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for rho in (0.0, 0.5, 0.8):
        for name, decay in DECAYS.items():
            loss = find_loss(name)
            W, H, b = minimise(loss, decay, torch.linalg.inv(kernel(rho)))
            found = measures(ClassMoments.from_means(torch.full((K,), 2), H.T), W, b)
            Z = W @ H + b[:, None]
            margins = (Z.diag() - Z)[~torch.eye(K, dtype=torch.bool)]
            spread = float((margins.max() - margins.min()) / margins.mean())
            own = "" if name == "mse" else f"{float(Z.softmax(0).diag().mean()):.3f}"
            print(
                f"| {rho:g} | {name} | {found['nc2']:.3f} | {found['nc2_means']:.3f} | {float(margins.min()):.2f} to "
                f"{float(margins.max()):.2f} | {100 * spread:.0f} % | {own} |"
            )


if __name__ == "__main__":
    main()
