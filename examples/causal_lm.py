"""Collapse in a language model: a small GPT-2 learns Python's own help texts, and its token classes are measured.

The classes are the next tokens. Those that come fewer than ten times are left out, pairs of classes are looked at by a
sample, and NC4, which would compare every position with every class mean, is not measured.

    python examples/causal_lm.py --epochs 12       # about two minutes on 2 cores
"""

from __future__ import annotations

import argparse
import collections
import re
from pydoc_data.topics import topics

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import neuralcollapse as nc

LENGTH = 64  # tokens of a sample
MEASURED = {"next_token": True, "min_count": 10, "nc4": False}


def corpus(most: int | None = None) -> tuple[torch.Tensor, list[str]]:
    """Samples (N, LENGTH) of token numbers, at most so many, and the vocabulary, most frequent first."""
    words = re.findall(r"[a-z_]+|[^\sa-z_]", "\n".join(topics.values()).lower())
    vocabulary = [word for word, _ in collections.Counter(words).most_common()]
    number = {word: index for index, word in enumerate(vocabulary)}
    tokens = torch.tensor([number[word] for word in words])
    return tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)[:most], vocabulary


def main() -> None:
    """Train, measure after each epoch of a few, write the page, name the classes that are told apart worst."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--samples", type=int, help="use so many of the samples only")
    parser.add_argument("--width", type=int, default=128, help="d, the dimension of the features")
    parser.add_argument("--out", default="runs/causal-lm")
    options = parser.parse_args()

    torch.manual_seed(0)
    samples, vocabulary = corpus(options.samples)
    config = GPT2Config(
        vocab_size=len(vocabulary),
        n_positions=LENGTH,
        n_embd=options.width,
        n_layer=2,
        n_head=4,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    loader = [{"input_ids": batch, "labels": batch} for batch in samples.split(32)]

    about = {"data": "Python's help texts", "network": f"GPT-2, {options.width} wide", "classes": "tokens"}
    recorder = nc.Recorder(
        loader, classifier="lm_head", out=options.out, force=True, pairwise=10_000, config=about, **MEASURED
    )
    record = recorder.measure(model, 0)
    for epoch in range(1, options.epochs + 1):
        model.train()
        for batch in samples[torch.randperm(len(samples))].split(16):
            optimizer.zero_grad()
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
        if epoch & (epoch - 1) == 0 or epoch == options.epochs:  # 1, 2, 4, 8, ... and the last
            record = recorder.measure(model, epoch)
            shown = {"loss": record.train["loss"], "NC1": record.measures["nc1"], "NC3": record.measures["nc3"]}
            print(f"epoch {epoch:3}  " + "  ".join(f"{name} {value:.3f}" for name, value in shown.items()))
    print(f"page  {nc.write_page(options.out)}")

    seen = nc.collect(model, loader, "lm_head", **MEASURED)
    names = [vocabulary[token] for token in seen.classes.tolist()]
    for pair in nc.worst_pairs(seen.moments, 5):
        print(f"hard to tell apart: {names[pair.first]!r} and {names[pair.second]!r} (CDNV {pair.cdnv:.1f})")


if __name__ == "__main__":
    main()
