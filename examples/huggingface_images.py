"""A stock image classification script for Hugging Face's Trainer, on scikit-learn's digits with a small ViT.

Two lines give the record and the page.

python examples/huggingface_images.py --epochs 20 --out runs/vit
"""

import argparse

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from sklearn.datasets import load_digits
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments, ViTConfig, set_seed

import neuralcollapse as nc  # 1

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--out", default="runs/vit")
parser.add_argument("--trainer", default="runs/trainer", help="where the trainer keeps its checkpoints")
options = parser.parse_args()

set_seed(0)
images, labels = load_digits(return_X_y=True)
dataset = Dataset.from_dict({"image": images.reshape(-1, 8, 8), "label": labels}).cast_column("label", ClassLabel(10))
dataset = dataset.train_test_split(test_size=360, seed=0)


def transform(examples: dict) -> dict:
    """Pixels as the model takes them."""
    examples["pixel_values"] = [torch.tensor(image).div(16)[None].float() for image in examples.pop("image")]
    return examples


def collate(examples: list[dict]) -> dict:
    """A batch."""
    pixels = torch.stack([example["pixel_values"] for example in examples])
    return {"pixel_values": pixels, "labels": torch.tensor([example["label"] for example in examples])}


def compute_metrics(predicted: object) -> dict:
    """The accuracy."""
    return {"accuracy": float((np.argmax(predicted.predictions, axis=1) == predicted.label_ids).mean())}


dataset.set_transform(transform)
config = ViTConfig(
    image_size=8,
    patch_size=2,
    num_channels=1,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    num_labels=10,
)
trainer = Trainer(
    model=AutoModelForImageClassification.from_config(config),
    args=TrainingArguments(
        output_dir=options.trainer,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        learning_rate=3e-3,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        use_cpu=True,
    ),
    train_dataset=dataset["train"],
    eval_dataset=dataset["test"],
    data_collator=collate,
    compute_metrics=compute_metrics,
)
trainer.add_callback(nc.CollapseTrainerCallback(trainer, out=options.out))  # 2
trainer.train()
print(trainer.evaluate())
