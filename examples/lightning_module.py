"""A stock LightningModule on scikit-learn's digits; three lines give the record and the page.

python examples/lightning_module.py --epochs 20 --out runs/lightning
"""

import argparse

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import neuralcollapse as nc  # 1


class Digits(lightning.LightningModule):
    """An MLP and how it is trained."""

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU())
        self.fc = nn.Linear(32, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits."""
        return self.fc(self.body(inputs))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """The loss."""
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        """The accuracy."""
        self.log("val_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=self.hparams["rate"], momentum=0.9, weight_decay=5e-4)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", default="runs/lightning")
    parser.add_argument("--logs", default="runs/logs")
    options = parser.parse_args()

    lightning.seed_everything(0)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
    training, held_out = torch.utils.data.random_split(data, [1437, 360])
    collapse = nc.CollapseCallback(classifier="fc", out=options.out)  # 2
    trainer = lightning.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        logger=CSVLogger(options.logs),
        enable_checkpointing=False,
        log_every_n_steps=10,
        callbacks=[collapse],  # 3
    )
    trainer.fit(Digits(), DataLoader(training, batch_size=64, shuffle=True), DataLoader(held_out, batch_size=256))


if __name__ == "__main__":
    main()
