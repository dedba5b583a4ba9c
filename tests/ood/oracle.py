"""Brute-force float64 twins of the scores, one input at a time, with inverses written out.

Nothing here imports the package.
"""

import numpy as np


def scores(inputs, features, labels, weight, bias, *, vim_dim, neco_dim=None, alpha=0.0, pinv=False):
    """Every score of the inputs (n, d), from the training features (N, d) themselves."""
    inputs, features, weight, bias = (np.asarray(each, dtype=np.float64) for each in (inputs, features, weight, bias))
    seen = sorted(set(np.asarray(labels).tolist()))
    inverse = np.linalg.pinv if pinv else np.linalg.inv
    mean = features.mean(0)
    means = {k: features[labels == k].mean(0) for k in seen}
    within = sum(np.outer(h - means[y], h - means[y]) for h, y in zip(features, labels, strict=True)) / len(features)
    total = sum(np.outer(h - mean, h - mean) for h in features) / len(features)
    top = np.linalg.svd(total)[0][:, : neco_dim or len(seen) - 1]
    origin = -np.linalg.pinv(weight) @ bias
    rest = np.linalg.svd(features - origin)[2][vim_dim:].T
    largest = np.mean([max(weight @ h + bias) for h in features])
    vim_alpha = largest / np.mean([np.linalg.norm(rest.T @ (h - origin)) for h in features])
    found = []
    for h in inputs:
        z = weight @ h + bias
        k = int(np.argmax(z))
        x = h - mean
        length = np.linalg.norm(x)
        others = [j for j in range(len(z)) if j != k and np.any(weight[j] != weight[k])]
        shifted = np.exp(z - z[k])
        energy = z[k] + np.log(shifted.sum())
        outside = np.linalg.norm(rest.T @ (h - origin))
        nearest = min((h - mu) @ inverse(within) @ (h - mu) for mu in means.values())
        found.append(
            {
                "neco": np.linalg.norm(top.T @ x) / length,
                "nci": weight[k] @ x / length + alpha * np.abs(h).sum(),
                "fdbd": np.mean([(z[k] - z[j]) / np.linalg.norm(weight[k] - weight[j]) for j in others]) / length,
                "vim": energy - vim_alpha * outside,
                "residual": -outside,
                "mahalanobis": -nearest,
                "relative_mahalanobis": -(nearest - x @ inverse(total) @ x),
                "energy": energy,
                "max_logit": z[k],
                "msp": 1 / shifted.sum(),
            }
        )
    return {name: np.array([each[name] for each in found]) for name in found[0]}


def auroc(inside, outside):
    """All pairs."""
    return np.mean([(a > b) + 0.5 * (a == b) for a in inside for b in outside])
