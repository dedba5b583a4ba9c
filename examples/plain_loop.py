"""A plain training loop on scikit-learn's digits; five lines measure collapse and write the page.

python examples/plain_loop.py --epochs 20 --out runs/plain
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import neuralcollapse as nc  # 1

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--out", default="runs/plain")
options = parser.parse_args()

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
training, held_out = torch.utils.data.random_split(data, [1437, 360])
loader = DataLoader(training, batch_size=64, shuffle=True)

model = nn.Sequential()
model.add_module("body", nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU()))
model.add_module("fc", nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
recorder = nc.Recorder(loader, DataLoader(held_out, batch_size=256), classifier="fc", out=options.out)  # 2
recorder.measure(model, 0)  # 3
for epoch in range(1, options.epochs + 1):
    for inputs, targets in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    record = recorder.measure(model, epoch)  # 4
    numbers = record.flat()  # for any logger: wandb.log(numbers), mlflow.log_metrics(numbers, epoch)
    print(f"epoch {epoch}: train accuracy {numbers['train/accuracy']:.3f}, NC1 {numbers['collapse/nc1']:.3g}")
print(nc.write_page(options.out))  # 5
