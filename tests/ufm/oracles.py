"""The model again, naively: float64 NumPy, loops over samples and classes, and finite differences."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize

# K, n, d, lW, lH -> margin, |w|^2, |h|^2, minimum (cross-entropy)
BALANCED = [
    ((4, 5, 8, 0.01, 0.01), (3.731013217089526, 6.25709938377177, 1.251419876754354, 0.3197219880323864)),
    ((10, 3, 10, 0.005, 0.0002), (6.342737899766153, 1.9774699742677841, 16.478916452231534, 0.11458473359531827)),
    ((10, 3, 9, 0.005, 0.0002), (6.342737899766153, 1.9774699742677841, 16.478916452231534, 0.11458473359531827)),
    ((3, 7, 5, 0.03, 0.01), (2.986781788380262, 3.0415896954595834, 1.3035384409112498, 0.36987025133748047)),
    ((5, 4, 7, 0.5, 0.5), (0.0, 0.0, 0.0, 1.6094379124341003)),
]

# counts, d, lW, lH, lb, bias -> minimum, |w_k|
IMBALANCED = [
    (
        ((30, 10, 5, 2), 5, 0.01, 0.004, 0.01, True),
        (0.2629674930751857, (2.710616513072221, 2.3356108380346217, 1.992563628857652, 1.5570181773488583)),
    ),
    (
        ((20, 20, 3, 3), 5, 0.01, 0.004, 0.0, False),
        (0.2900257141408925, (2.8322949869520317, 2.832294986929019, 1.828497715071415, 1.828497714863032)),
    ),
    (
        ((20, 20, 3, 3), 5, 0.01, 0.004, 0.0, True),
        (0.2542502811715982, (2.574814142213392, 2.5748141421068746, 1.814227534851596, 1.8142275315761422)),
    ),
    (
        ((50, 8, 8, 1, 1), 6, 0.03, 0.01, 0.001, True),
        (
            0.5429990634090458,
            (2.1560261732609947, 1.5987851650617326, 1.598785163147742, 0.3330631435605086, 0.3330631450107059),
        ),
    ),
]


def cross_entropy(smoothing=0.0):
    def loss(z, label):
        highest = max(z)
        log_sum = highest + math.log(sum(math.exp(x - highest) for x in z))
        total = 0.0
        for j, x in enumerate(z):
            target = smoothing / len(z) + ((1 - smoothing) if j == label else 0.0)
            total -= target * (x - log_sum)
        return total

    return loss


def focal(gamma):
    def loss(z, label):
        cost = cross_entropy()(z, label)
        return (1 - math.exp(-cost)) ** gamma * cost

    return loss


def squared_error():
    def loss(z, label):
        return sum((x - (j == label)) ** 2 for j, x in enumerate(z)) / 2

    return loss


def labels_of(counts):
    return [k for k, n in enumerate(counts) for _ in range(n)]


def objective(W, H, b, counts, weight_decay, feature_decay, bias_decay, loss):
    labels = labels_of(counts)
    fit = 0.0
    for i, label in enumerate(labels):
        z = [sum(W[k][j] * H[j][i] for j in range(len(H))) + (0.0 if b is None else b[k]) for k in range(len(counts))]
        fit += loss(z, label) / len(labels)
    decay = weight_decay * sum(x * x for row in W for x in row) + feature_decay * sum(x * x for row in H for x in row)
    if b is not None:
        decay += bias_decay * sum(x * x for x in b)
    return fit + decay / 2


def gradient_by_differences(function, x, step=1e-5):
    x = np.asarray(x, dtype=float)
    out = np.zeros_like(x)
    for i in range(len(x)):
        move = np.zeros_like(x)
        move[i] = step
        out[i] = (function(x + move) - function(x - move)) / (2 * step)
    return out


def hessian_by_differences(function, x, step=1e-4):
    x = np.asarray(x, dtype=float)
    moves = step * np.eye(len(x))
    out = np.zeros((len(x), len(x)))
    for i, p in enumerate(moves):
        for j, q in enumerate(moves[: i + 1]):
            corners = function(x + p + q) - function(x + p - q) - function(x - p + q) + function(x - p - q)
            out[i, j] = out[j, i] = corners / (4 * step * step)
    return out


def softmax(Z):
    E = np.exp(Z - Z.max(0))
    return E / E.sum(0)


def dual_bound(Z, counts, mu, bias, bias_decay, *, smoothing=0.0, squared=False, grid=4001):
    """The largest LB(t) of the logits Z (K, N) over a grid of t, the bias found by scipy."""
    K, N = Z.shape
    Y = np.full((K, N), 0.0 if squared else smoothing / K)
    for i, label in enumerate(labels_of(counts)):
        Y[label, i] += 1.0 if squared else 1 - smoothing
    if bias:

        def fit(b):
            moved = Z + b[:, None]
            if squared:
                value = ((moved - Y) ** 2).sum() / 2 / N
                slope = (moved - Y).sum(1) / N
            else:
                top = moved.max(0)
                value = (top + np.log(np.exp(moved - top).sum(0)) - (Y * moved).sum(0)).mean()
                slope = (softmax(moved) - Y).mean(1)
            return value + bias_decay / 2 * b @ b, slope + bias_decay * b

        b = minimize(fit, np.zeros(K), jac=True, method="BFGS", options={"gtol": 1e-9}).x
        for _ in range(5):  # Newton steps for the last digits
            P = softmax(Z + b[:, None])
            bend = np.eye(K) if squared else np.diag(P.mean(1)) - P @ P.T / N
            b = b - np.linalg.lstsq(bend + bias_decay * np.eye(K), fit(b)[1], rcond=1e-13)[0]
        Z = Z + b[:, None]
    G = ((Z if squared else softmax(Z)) - Y) / N
    if bias and bias_decay == 0:
        G = G - G.mean(1, keepdims=True)
    largest = mu / np.linalg.norm(G, 2)
    if not squared:
        T = N * G
        largest = min([largest] + [Y[k, i] / -T[k, i] for k in range(K) for i in range(N) if T[k, i] < 0])
    best = -math.inf
    for t in np.linspace(0, largest, grid):
        if squared:
            value = -N / 2 * t * t * (G**2).sum() - t * (G * Y).sum()
        else:
            P = np.clip(Y + t * N * G, 0, None)
            value = -(P * np.log(np.where(P > 0, P, 1.0))).sum() / N
        if bias and bias_decay > 0:
            value -= t * t * (G.sum(1) ** 2).sum() / (2 * bias_decay)
        best = max(best, value)
    return best


def simplex(K, d):
    """K unit rows with all cosines -1/(K-1), in d >= K-1 dimensions."""
    centred = np.eye(K) - 1 / K
    left, size, _ = np.linalg.svd(centred)
    rows = np.zeros((K, d))
    rows[:, : K - 1] = left[:, : K - 1] * size[: K - 1]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def objective_of(model, loss):
    """`objective` as a function of a vector of a model, with a loss of this file."""

    def function(vector):
        point = model.point(torch.as_tensor(vector))
        b = None if point.b is None else point.b.tolist()
        decays = model.weight_decay, model.feature_decay, model.bias_decay
        return objective(point.W.tolist(), point.H.tolist(), b, model.counts, *decays, loss)

    return function


def imbalance(model, point):
    """|lW W'W - lH H H'|_F, zero at every critical point."""
    W, H = point.W.numpy(), point.H.numpy()
    return float(np.linalg.norm(model.weight_decay * W.T @ W - model.feature_decay * H @ H.T))
