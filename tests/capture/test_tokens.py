"""Models of tokens: which position makes the logits, what the labels are, small integer types."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import neuralcollapse as nc
from tests.capture.test_linear_map import measured

K, N, WIDTH, PAD = 4, 30, 6, 0


class Classifier(nn.Module):
    """Logits for each token, of which one row a sentence is returned, as by decoders for classification."""

    def __init__(self, pick="last"):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, WIDTH)
        self.mix = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.score = nn.Linear(WIDTH, K, bias=False)
        self.pick = pick

    def features(self, input_ids):
        return self.mix(self.embed(input_ids))[0]

    def forward(self, input_ids, attention_mask=None):
        logits = self.score(self.features(input_ids))
        return {"logits": self.taken(logits, input_ids)}

    def taken(self, values, input_ids):
        real = input_ids != PAD
        if self.pick == "mean":
            return values.mean(1)
        if self.pick == "mean of the real":
            return (values * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        if self.pick == "maximum":
            return values.amax(1)
        place = (torch.arange(values.shape[1]) * real).argmax(1) if self.pick == "last" else real.int().argmax(1)
        return values[torch.arange(len(values)), place]


def sentences(left=False):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 20, (N, 9), generator=generator)
    for row, length in enumerate(torch.randint(3, 10, (N,), generator=generator).tolist()):
        ids[row, slice(9 - length) if left else slice(length, None)] = PAD
    labels = torch.arange(N) % K
    return [
        {"input_ids": ids[i : i + 8], "attention_mask": (ids[i : i + 8] != PAD).long(), "labels": labels[i : i + 8]}
        for i in range(0, N, 8)
    ]


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("pick", ["last", "first", "mean", "mean of the real"])
def test_the_position_whose_logits_are_returned_is_measured(pick, left):
    model, batches = Classifier(pick), sentences(left)
    got, words = measured(model, batches)
    with torch.no_grad():
        rows = [model.taken(model.features(batch["input_ids"]), batch["input_ids"]) for batch in batches]
    labels = torch.cat([batch["labels"] for batch in batches])
    want = nc.measure_features(torch.cat(rows), labels, model.score.weight.detach())
    assert {name: got[name] for name in want} == pytest.approx(want, rel=1e-4, abs=1e-7)
    assert words == ""


def test_logits_that_are_of_no_position_are_refused():
    with pytest.raises(nc.InputError, match=r"'score' gives logits for each of 9 positions.*neither one of them nor"):
        nc.measure(Classifier("maximum"), sentences())


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids))


def test_labels_that_are_the_inputs_tokens_are_pointed_out():
    tokens = torch.randint(11, (8, 9), generator=torch.Generator().manual_seed(2))
    labels = tokens.clone()
    labels[2:5, 6:] = -100
    for batch in ({"input_ids": tokens, "labels": labels}, (tokens, labels)):
        _, words = measured(Tokens(), [batch], ignore_index=-100)
        assert "give next_token=True" in words
        assert "next_token" not in measured(Tokens(), [batch], next_token=True)[1]
    others = labels.where(labels < 0, (labels + 1) % 11)
    assert "next_token" not in measured(Tokens(), [(tokens, others)], ignore_index=-100)[1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32], ids=str)
@pytest.mark.parametrize("options", [{}, {"min_count": 2}, {"classes": [1, 2, 3]}], ids=str)
@pytest.mark.filterwarnings("ignore::neuralcollapse.NeuralCollapseWarning")
def test_small_integers_are_labels_like_others(dtype, options):
    tokens = torch.randint(11, (8, 9), generator=torch.Generator().manual_seed(2))
    want = nc.measure(Tokens(), [(tokens, tokens)], next_token=True, **options)
    got = nc.measure(Tokens(), [(tokens, tokens.to(dtype))], next_token=True, **options)
    assert got == pytest.approx(want, nan_ok=True)


@pytest.mark.filterwarnings("ignore::neuralcollapse.NeuralCollapseWarning")
def test_156_is_not_ignored_as_minus_100():
    features, labels = torch.randn(400, 8), torch.arange(400) % 200
    want = nc.measure_features(features, labels, ignore_index=-100)
    for kind in (np.uint8, np.uint16, np.int16):
        assert nc.measure_features(features, labels.numpy().astype(kind), ignore_index=-100) == want
    assert want["num_samples"] == 400
    head = nn.Sequential(nn.Linear(8, 200))
    batch = [(features, labels.to(torch.uint8))]
    assert nc.measure(head, batch, "0", ignore_index=-100)["num_samples"] == 400
    with pytest.raises(nc.InputError, match="at most 2: ask for fewer"):
        nc.measure_features(features, labels.to(torch.uint8), min_count=300)


@pytest.mark.filterwarnings("ignore::neuralcollapse.NeuralCollapseWarning")
def test_the_loss_of_tokens_is_of_the_returned_logits():
    tokens = torch.randint(11, (8, 9), generator=torch.Generator().manual_seed(2))
    model = Tokens()
    with torch.no_grad():
        logits = model(tokens)[:, :-1].flatten(0, 1)
    got = nc.measure(model, [(tokens, tokens)], next_token=True)
    assert got["loss"] == pytest.approx(float(F.cross_entropy(logits, tokens[:, 1:].flatten())), rel=1e-5)
