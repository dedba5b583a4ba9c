"""OODScorer on networks: a pass over a loader, inputs without labels, files, options, refusals."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neuralcollapse as nc
from neuralcollapse.ood.blocks import Blocks
from tests.helpers import SmallNet, small_loader, small_set
from tests.ood import oracle
from tests.processes import on_ranks

OPTIONS = {"vim_dim": 3, "neco_dim": 2}


def features_of(model, inputs):
    with torch.no_grad():
        return model.eval().body(inputs)


def fitted(**options):
    model = SmallNet(seed=0)
    return model, nc.OODScorer.fit(model, small_loader(90), progress=False, **(OPTIONS | options))


def test_a_scorer_of_a_network_is_that_of_its_features():
    model, scorer = fitted()
    inputs, labels = small_set(90).tensors
    features = features_of(model, inputs)
    head = model.fc.weight.detach(), model.fc.bias.detach()
    expected = oracle.scores(features, features, labels.numpy(), *head, vim_dim=3, neco_dim=2)
    found = scorer.score(features)
    assert scorer.layer == "fc"
    assert tuple(found) == scorer.scores == tuple(nc.ood.SCORES)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=1e-3, atol=1e-4, err_msg=name)
    moments = nc.ClassMoments.from_batch(features, labels, 3)
    other = nc.OODScorer.from_moments(moments, *head, features=features.split(7), **OPTIONS)
    for name, values in other.score(features).items():
        torch.testing.assert_close(values, found[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["labelled", "other labels", "inputs alone", "lists of inputs", "a list", "dicts"])
def test_a_loader_is_scored_with_or_without_labels(kind):
    model, scorer = fitted()
    inputs = small_set(90).tensors[0]
    expected = scorer.score(features_of(model, inputs))
    loader = {
        "labelled": small_loader(90),
        "other labels": DataLoader(TensorDataset(inputs, torch.full((90,), 77)), batch_size=32),
        "inputs alone": DataLoader(inputs, batch_size=32),
        "lists of inputs": DataLoader(TensorDataset(inputs), batch_size=32),
        "a list": [inputs[:50], inputs[50:]],
        "dicts": [{"inputs": inputs, "label": ["cat"] * 90}],
    }[kind]
    model.train()
    found = scorer.score_loader(model, loader, progress=False)
    assert model.training
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-5)


def test_a_network_of_other_weights_is_noticed():
    _, scorer = fitted()
    with pytest.warns(nc.NeuralCollapseWarning, match="off those of the head that the scorer was fitted to"):
        scorer.score_loader(SmallNet(seed=1), small_loader(), progress=False)


@pytest.mark.parametrize("kind", ["simplex", "convolution", "log-softmax"])
def test_heads_of_other_kinds_are_scored(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
            heads = {"simplex": lambda: nc.ETFClassifier(8, 3), "convolution": lambda: nn.Conv2d(8, 3, 1)}
            self.fc = heads.get(kind, lambda: nn.Linear(8, 3))()

        def forward(self, inputs):
            maps = self.body(inputs)
            if kind == "convolution":
                return self.fc(maps).mean((2, 3))
            logits = self.fc(maps.mean((2, 3)))
            return logits.log_softmax(1) if kind == "log-softmax" else logits

    torch.manual_seed(0)
    inputs, labels = torch.randn(60, 1, 5, 5), torch.arange(60) % 3
    model, loader = Net(), DataLoader(TensorDataset(inputs, labels), batch_size=20)
    scorer = nc.OODScorer.fit(model, loader, progress=False)
    found = scorer.score_loader(model, loader, progress=False)
    with torch.no_grad():
        features = model.eval().body(inputs).mean((2, 3))
    for name, values in scorer.score(features).items():
        torch.testing.assert_close(found[name], values, rtol=1e-3, atol=1e-4)


def test_tokens_of_a_language_model_have_a_score_each_but_for_padding():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8), nn.ReLU())
            self.lm_head = nn.Linear(8, 20, bias=False)

        def forward(self, input_ids):
            return self.lm_head(self.body(input_ids))

    torch.manual_seed(0)
    model, tokens = Model(), torch.randint(0, 20, (40, 12))
    loader = [{"input_ids": part, "labels": part} for part in tokens.split(10)]
    scorer = nc.OODScorer.fit(model, loader, next_token=True, progress=False, scores=["nci", "fdbd"])
    padded = tokens[:3].clone()
    padded[0, 5:] = -100
    found = scorer.score_loader(model, [{"input_ids": tokens[:3], "labels": padded}], progress=False)
    assert found["nci"].shape == (3 * 12 - 7,)
    torch.testing.assert_close(found["nci"][:5], scorer.score(model.body(tokens[0, :5]))["nci"])


def test_blocks_of_any_size_give_the_same(monkeypatch):
    _, scorer = fitted()
    features = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    whole = scorer.score(features)
    monkeypatch.setattr("neuralcollapse.ood.scorer._ROWS", 64)
    for name, values in scorer.score(features).items():
        torch.testing.assert_close(values, whole[name], rtol=1e-5, atol=1e-5)


def test_no_inputs_have_no_scores():
    _, scorer = fitted()
    assert {name: tuple(values.shape) for name, values in scorer.score(torch.zeros(0, 6)).items()} == dict.fromkeys(
        scorer.scores, (0,)
    )
    with pytest.raises(nc.InputError, match="the loader gave no inputs"):
        scorer.score_loader(SmallNet(seed=0), [], progress=False)


def test_scores_are_those_asked_for_in_one_order():
    _, scorer = fitted(scores=["msp", "neco"])
    assert scorer.scores == ("neco", "msp")
    assert set(scorer.score(torch.ones(2, 6))) == {"neco", "msp"}


def test_vim_needs_training_features_or_an_alpha_and_is_left_out_in_silence_without():
    model, scorer = fitted()
    moments, weight = scorer.moments, model.fc.weight.detach()
    without = nc.OODScorer.from_moments(moments, weight, **OPTIONS)
    assert "vim" not in without.scores
    assert "give features or vim_alpha" in without.undefined["vim"]
    with pytest.raises(nc.InputError, match="no score 'vim' here: the mean of the largest logit"):
        nc.OODScorer.from_moments(moments, weight, scores=["vim"], **OPTIONS)
    given = nc.OODScorer.from_moments(moments, weight, model.fc.bias.detach(), vim_alpha=scorer.vim_alpha, **OPTIONS)
    features = torch.randn(5, 6)
    torch.testing.assert_close(given.score(features)["vim"], scorer.score(features)["vim"])


def test_an_iterator_gives_no_second_pass_for_vim_and_one_is_enough_without():
    model = SmallNet(seed=0)
    with pytest.raises(nc.InputError, match="second pass over the training set, which gave 0 samples instead of 90"):
        nc.OODScorer.fit(model, iter(list(small_loader(90))), progress=False)
    scorer = nc.OODScorer.fit(model, iter(list(small_loader(90))), progress=False, scores=["nci", "mahalanobis"])
    assert scorer.scores == ("nci", "mahalanobis")


def test_samples_that_are_ignored_do_not_count():
    model = SmallNet(seed=0)
    inputs, labels = small_set(90).tensors
    kept = torch.arange(90) % 5 != 0
    marked = torch.where(kept, labels, -100)
    loader = DataLoader(TensorDataset(inputs, marked), batch_size=8)
    found = nc.OODScorer.fit(model, loader, ignore_index=-100, progress=False, **OPTIONS)
    expected = nc.OODScorer.fit(
        model, DataLoader(TensorDataset(inputs[kept], labels[kept]), batch_size=72), progress=False, **OPTIONS
    )
    assert found.vim_alpha == pytest.approx(expected.vim_alpha, rel=1e-6)
    for name, values in expected.score(torch.ones(2, 6)).items():
        torch.testing.assert_close(found.score(torch.ones(2, 6))[name], values, rtol=1e-3, atol=1e-4)


def test_a_saved_scorer_scores_alike(tmp_path):
    _, scorer = fitted(nci_alpha=0.3, fdbd_center="origin", neco_standardize=True)
    path = scorer.save(tmp_path / "scorer.safetensors")
    loaded = nc.OODScorer.load(path)
    assert (loaded.scores, loaded.vim_alpha, loaded.layer) == (scorer.scores, scorer.vim_alpha, "fc")
    features = torch.randn(5, 6)
    for name, values in scorer.score(features).items():
        torch.testing.assert_close(loaded.score(features)[name], values, rtol=1e-6, atol=1e-6)


def test_a_file_that_was_changed_is_refused(tmp_path):
    _, scorer = fitted()
    path = scorer.save(tmp_path / "scorer.safetensors")
    content = bytearray(path.read_bytes())
    for place in (len(content) - 1, len(content) // 2, 20, 3):
        damaged = bytearray(content)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(nc.InputError, match="cannot read"):
            nc.OODScorer.load(path)
    path.write_bytes(content[:100])
    with pytest.raises(nc.InputError, match="cannot read"):
        nc.OODScorer.load(path)
    with pytest.raises(nc.InputError, match="no file"):
        nc.OODScorer.load(tmp_path / "none")


def spoilt(tensors, name, value):
    return {**{key: each for key, each in tensors.items() if key != name}, **({} if value is None else {name: value})}


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("weight", lambda t: t[:2].clone(), "its moments are not those"),
        ("weight", lambda t: t.flatten(), "weight of shape"),
        ("weight", lambda t: t * math.nan, "finite weight"),
        ("weight", lambda t: None, "no tensor 'weight'"),
        ("bias", lambda t: t[:2].clone(), "bias of shape"),
        ("moments", lambda t: t.float(), "its moments are not those"),
        ("moments", lambda t: t * math.nan, "counts are no counts"),
        ("moments", lambda t: torch.zeros_like(t), "counts are no counts"),
        ("moments", lambda t: torch.where(torch.arange(len(t)) == 8, math.inf, t), "not finite"),
        ("options", lambda t: t.long(), "options are no text"),
        ("options", lambda t: t[:5].clone(), "not a scorer"),
        ("options", lambda t: torch.tensor(list(b"[]"), dtype=torch.uint8), "no mapping"),
        ("options", lambda t: torch.tensor(list(b'{"layer": 3}'), dtype=torch.uint8), "wrong values"),
        ("options", lambda t: torch.tensor(list(b'{"shell": "rm"}'), dtype=torch.uint8), "no option 'shell'"),
        ("options", lambda t: torch.tensor(list(b'{"nci_alpha": "x"}'), dtype=torch.uint8), "nci_alpha"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, name, change, match):
    _, scorer = fitted()
    tensors = load_file(scorer.save(tmp_path / "scorer.safetensors"))
    save_file(spoilt(tensors, name, change(tensors[name])), tmp_path / "other.safetensors")
    with pytest.raises(nc.InputError, match=match):
        nc.OODScorer.load(tmp_path / "other.safetensors")


def test_a_file_holds_plain_tensors_and_json(tmp_path):
    _, scorer = fitted()
    tensors = load_file(scorer.save(tmp_path / "scorer.safetensors"))
    assert set(tensors) == {"moments", "weight", "bias", "options"}
    assert json.loads(bytes(tensors["options"].tolist()))["vim_dim"] == 3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"scores": ["nec"]}, "no score 'nec' \\(did you mean 'neco'\\?\\)"),
        ({"scores": "neco,nci"}, "no score 'neco,nci'"),
        ({"scores": 3}, "no score 3"),
        ({"score": ["neco"]}, "no option 'score' \\(did you mean 'scores'"),
        ({"neco_dim": 0}, "neco_dim"),
        ({"neco_dim": 1.5}, "neco_dim"),
        ({"neco_dim": True}, "neco_dim"),
        ({"nci_alpha": -1.0}, "nci_alpha"),
        ({"vim_dim": 0}, "vim_dim"),
        ({"vim_alpha": math.nan}, "vim_alpha"),
        ({"neco_standardize": 1}, "neco_standardize"),
        ({"fdbd_center": "median"}, "fdbd_center"),
        ({"scores": ["neco"], "neco_dim": 99}, "neco_dim=99 is above"),
        ({"scores": ["residual"], "vim_dim": 6}, "vim_dim=6 leaves none of the d=6"),
    ],
)
def test_options_that_are_wrong_are_refused_by_name(options, match):
    with pytest.raises(nc.InputError, match=match):
        fitted(**options)


def test_inputs_that_do_not_fit_are_refused():
    model, scorer = fitted()
    for features, match in (
        (torch.ones(2, 5), "features of dimension 6, got 5"),
        (torch.ones(6), "shape \\(N, d\\)"),
        (torch.ones(2, 6, dtype=torch.int64), "floating-point"),
        (torch.full((2, 6), math.nan), "finite features"),
    ):
        with pytest.raises(nc.InputError, match=match):
            scorer.score(features)
    with pytest.raises(nc.InputError, match="logits of shape \\(N, K\\) = \\(2, 3\\)"):
        scorer.score(torch.ones(2, 6), torch.ones(2, 4))
    with pytest.raises(nc.InputError, match="finite logits"):
        scorer.score(torch.ones(2, 6), torch.full((2, 3), math.inf))
    with pytest.raises(nc.InputError, match="moments as ClassMoments"):
        nc.OODScorer.from_moments(torch.ones(3, 6), model.fc.weight)
    with pytest.raises(nc.InputError, match="weight of shape"):
        nc.OODScorer.from_moments(scorer.moments, torch.ones(3, 5))
    with pytest.raises(nc.InputError, match="no samples"):
        nc.OODScorer.from_moments(nc.ClassMoments.zeros(3, 6), model.fc.weight)
    with pytest.raises(nc.InputError, match="at least 2 classes"):
        nc.OODScorer.from_moments(nc.ClassMoments.from_means(torch.tensor([2]), torch.ones(1, 6)), torch.ones(1, 6))
    other = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 3))
    with pytest.raises(nc.InputError, match="fc"):
        scorer.score_loader(other, small_loader(), progress=False)


def test_the_weight_of_nci_is_the_one_that_tells_validation_outliers_apart_best():
    model, scorer = fitted()
    inside = features_of(model, small_set(90).tensors[0])
    outside = inside * 0.1  # in the same directions: only their size tells them apart
    alpha = scorer.tune_nci_alpha(inside, outside)
    assert alpha == scorer.options.nci_alpha > 0
    tuned = [scorer.score(each)["nci"] for each in (inside, outside)]
    _, plain = fitted()
    for features, found in zip((inside, outside), tuned, strict=True):
        torch.testing.assert_close(found, plain.score(features)["nci"] + alpha * features.abs().sum(1))
    before = nc.ood.evaluate(plain.score(inside)["nci"], plain.score(outside)["nci"])["auroc"]
    assert nc.ood.evaluate(*tuned)["auroc"] > max(before, 0.9)
    assert scorer.tune_nci_alpha(outside, inside) == 0  # any weight would make it worse
    with pytest.raises(nc.InputError, match="a scorer with the score 'nci', got msp"):
        fitted(scores="msp")[1].tune_nci_alpha(inside, outside)


def test_arrays_of_numpy_are_taken():
    _, scorer = fitted()
    found = scorer.score(np.ones((2, 6), dtype=np.float32), np.ones((2, 3), dtype=np.float32))
    assert float(found["max_logit"][0]) == 1.0


def test_the_constants_are_made_once(monkeypatch):
    _, scorer = fitted()
    scorer.score(torch.ones(2, 6))
    monkeypatch.setattr(Blocks, "__init__", None)
    scorer.score(torch.zeros(3, 6))


def test_the_residual_of_few_samples_is_the_length_outside_all_that_they_span():
    """With a rank below vim_dim, the directions that the residual leaves out would be chosen by rounding."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 40, generator=generator, dtype=torch.float64)
    moments = nc.ClassMoments.from_batch(features, torch.arange(12) % 3, 3)
    weight = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    inputs = torch.randn(5, 40, generator=generator, dtype=torch.float64)
    for bias in (None, torch.randn(3, generator=generator, dtype=torch.float64)):
        scorer = nc.OODScorer.from_moments(moments, weight, bias, scores="residual")
        origin = torch.zeros(40).double() if bias is None else -torch.linalg.pinv(weight) @ bias
        basis = torch.linalg.svd(features - origin, full_matrices=False)[2]
        away = inputs - origin
        expected = -torch.linalg.vector_norm(away - away @ basis.T @ basis, dim=1)
        torch.testing.assert_close(scorer.score(inputs)["residual"], expected, rtol=1e-9, atol=0)
        assert float(scorer.score(features)["residual"].abs().max()) < 1e-12
    with pytest.raises(nc.InputError, match="vim_dim=13 is above 12, the number of directions"):
        nc.OODScorer.from_moments(moments, weight, scores="residual", vim_dim=13)


def test_merged_rows_are_counted_however_many_classes_there_are(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(300, 8, generator=generator).double()
    weight[40:50], weight[200] = weight[7], weight[9] * (1 + 1e-8)
    features, labels = torch.randn(900, 8, generator=generator).double(), torch.arange(900) % 300
    moments = nc.ClassMoments.from_batch(features, labels, 300)
    for table in (2048, 1):
        monkeypatch.setattr("neuralcollapse.ood.boundaries._TABLE", table)
        with pytest.warns(nc.NeuralCollapseWarning, match="^13 classes have the row of another class"):
            nc.OODScorer.from_moments(moments, weight.float(), scores="fdbd")


def test_many_classes_go_by_tiles():
    """K = 3,000 classes, whose distances are no table."""
    generator = torch.Generator().manual_seed(0)
    weight, labels = torch.randn(3000, 20, generator=generator), torch.arange(6000) % 3000
    features = weight[labels] + torch.randn(6000, 20, generator=generator)
    moments = nc.ClassMoments.from_batch(features, labels, 3000)
    scorer = nc.OODScorer.from_moments(moments, weight, neco_dim=5, vim_alpha=1.0)
    inputs = torch.randn(40, 20, generator=generator)
    found = scorer.score(inputs)
    logits = (inputs.double() @ weight.double().T).numpy()
    for row, k in enumerate(logits.argmax(1)):
        gaps = np.delete(np.linalg.norm(weight.double().numpy() - weight[k].double().numpy(), axis=1), k)
        length = np.linalg.norm(inputs[row].double().numpy() - features.double().mean(0).numpy())
        expected = np.mean(np.delete(logits[row, k] - logits[row], k) / gaps) / length
        assert float(found["fdbd"][row]) == pytest.approx(expected, rel=1e-5)
        apart = inputs[row].double() - moments.means
        distances = (apart * torch.linalg.solve(moments.within_covariance, apart.T).T).sum(1)
        assert float(-found["mahalanobis"][row]) == pytest.approx(float(distances.min()), rel=1e-4)


def _fit(rank, world_size, folder):
    mine = torch.utils.data.Subset(small_set(90), range(rank, 90, world_size))
    loader = DataLoader(mine, batch_size=8)
    scorer = nc.OODScorer.fit(SmallNet(seed=0), loader, sharded=True, progress=False, **OPTIONS)
    scorer.save(folder / f"{rank}.safetensors")


def test_processes_fit_the_scorer_of_all_samples(tmp_path):
    on_ranks(2, tmp_path, _fit, tmp_path)
    _, expected = fitted()
    features = torch.randn(5, 6)
    for rank in range(2):
        found = nc.OODScorer.load(tmp_path / f"{rank}.safetensors")
        assert found.vim_alpha == pytest.approx(expected.vim_alpha, rel=1e-6)
        for name, values in expected.score(features).items():
            torch.testing.assert_close(found.score(features)[name], values, rtol=1e-4, atol=1e-4)
