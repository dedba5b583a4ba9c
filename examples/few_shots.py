"""Few shots: how well will features tell new classes apart from a handful of labelled samples, and how sure is NC1?

A network is trained on five of the ten digits. Its features of the other five, which it has never seen, are those of a
pretrained network on a new task: their moments predict the error of m-shot nearest means, which episodes then check.

    python examples/few_shots.py --epochs 40       # a few seconds
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import neuralcollapse as nc

SEEN = 5  # digits 0 to 4 are trained on, 5 to 9 are new


def drawn_error(features: torch.Tensor, labels: torch.Tensor, shots: int, ways: int, episodes: int = 1000) -> float:
    """The share of samples whose nearest m-shot mean is not that of their class, over episodes of the features."""
    by_class = [features[labels == k] for k in labels.unique().tolist()]
    wrong = 0
    for _ in range(episodes):
        means, queries = [], []
        for k in torch.randperm(len(by_class))[:ways].tolist():
            rows = by_class[k][torch.randperm(len(by_class[k]))[: shots + 1]]
            means.append(rows[:shots].mean(0))
            queries.append(rows[shots])
        nearest = torch.cdist(torch.stack(queries), torch.stack(means)).argmin(1)
        wrong += int((nearest != torch.arange(ways)).sum())
    return wrong / (episodes * ways)


def main() -> None:
    """Train on five digits, predict for the others, draw episodes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--episodes", type=int, default=1000)
    options = parser.parse_args()

    torch.manual_seed(0)
    digits, targets = load_digits(return_X_y=True)
    images, labels = torch.tensor(digits / 16, dtype=torch.float32), torch.tensor(targets)
    known, new = labels < SEEN, labels >= SEEN

    body = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
    head = nn.Linear(32, SEEN)
    optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.05, momentum=0.9, weight_decay=5e-4)
    batches = torch.utils.data.TensorDataset(images[known], labels[known])
    for _ in range(options.epochs):
        for inputs, wanted in torch.utils.data.DataLoader(batches, batch_size=64, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(head(body(inputs)), wanted).backward()
            optimizer.step()

    with torch.no_grad():
        features = body(images)
    for name, rows, numbers in (
        ("trained", features[known], labels[known]),
        ("new", features[new], labels[new] - SEEN),
    ):
        values = nc.measure_features(rows, numbers, errors=True)
        moments = nc.ClassMoments.from_batch(rows, numbers, SEEN)
        sure = f"{values['nc1']:.3f} (without bias {values['nc1_corrected']:.3f} ± {values['nc1_error']:.3f})"
        print(f"{name} digits: NC1 {sure}, directional CDNV {nc.directional_cdnv(moments):.3f}")

    rows, numbers = features[new], labels[new] - SEEN
    moments = nc.ClassMoments.from_batch(rows, numbers, SEEN)
    own = torch.stack([torch.cov(rows[numbers == k].T) for k in range(SEEN)])
    print("\nnew digits        predicted, with own covariances, drawn")
    for ways in (2, 5):
        for shots in (1, 5, 20):
            predicted = nc.few_shot_error(moments, shots, ways)
            exact = nc.few_shot_error(moments, shots, ways, scatters=own)
            drawn = drawn_error(rows, numbers, shots, ways, options.episodes)
            print(f"{ways}-way, {shots:2} shots  {predicted.error:9.3f} {exact.error:22.3f} {drawn:6.3f}")


if __name__ == "__main__":
    main()
