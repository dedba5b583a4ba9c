from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from neuralcollapse.data.load import Data
from neuralcollapse.data.splits import Split
from neuralcollapse.networks.build import build_network
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.optimizers import penalty
from neuralcollapse.training.step import Classification

N, K, D = 12, 3, 5
W_DECAY, H_DECAY, B_DECAY = 0.3, 0.2, 0.05
DECAYS = {"decay_on": "classifier", "weight_decay": W_DECAY, "feature_decay": H_DECAY, "bias_decay": B_DECAY}


class Tripled(nn.Module):
    """The classifier receives three times what the layer before it gives; no batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(16, D)
        self.fc = nn.Linear(D, K)

    def into_classifier(self, images: torch.Tensor) -> torch.Tensor:
        return 3 * self.body(images.flatten(1)).relu()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.into_classifier(images))


def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (N, 1, 4, 4), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(N) % K)
    return Data(split, split, ("a", "b", "c"), (127.0,), (73.0,), 1)


def module_of(network: nn.Module | str = "mlp", **options) -> Classification:
    torch.manual_seed(0)
    if network == "mlp":
        network = build_network("mlp", K, D, in_features=16, width=6, depth=2)
    nn.init.normal_(network.fc.bias)
    return Classification(network, TrainConfig(**options), data()).double().train()


def features_of(module: Classification, images: torch.Tensor) -> torch.Tensor:
    network = module.network
    inputs = module.pixels(images)
    return network.into_classifier(inputs) if isinstance(network, Tripled) else network.features(inputs)


def full_objective(module: Classification) -> torch.Tensor:
    """Mean loss + (lW |W|^2 + lH |H|^2 + lb |b|^2) / 2 over the whole training set."""
    samples, fc = data().train, module.network.fc
    features = features_of(module, samples.images)
    loss = F.cross_entropy(features @ fc.weight.T + fc.bias, samples.labels)
    squares = W_DECAY * fc.weight.square().sum() + H_DECAY * features.square().sum() + B_DECAY * fc.bias.square().sum()
    return loss + squares / 2


def gradients(module: Classification, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    parameters = dict(module.network.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]):
    assert list(found) == list(wanted)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)


def network_of(kind: str) -> nn.Module | str:
    torch.manual_seed(1)
    return "mlp" if kind == "mlp" else Tripled()


@pytest.mark.parametrize("kind", ["mlp", "tripled"])
def test_a_step_with_the_coupled_decay_follows_the_gradient_of_the_full_objective(kind):
    module = module_of(network_of(kind), **DECAYS, batch_size=N)
    batch = data().train
    found = gradients(module, module.training_step((batch.images, batch.labels), 0))
    (optimizer,) = [module.configure_optimizers()]
    decays = {id(one): group["weight_decay"] for group in optimizer.param_groups for one in group["params"]}
    for name, parameter in module.network.named_parameters():
        found[name] = found[name] + decays[id(parameter)] * parameter.detach()
    assert_same(found, gradients(module, full_objective(module)))


@pytest.mark.parametrize("kind", ["mlp", "tripled"])
def test_the_loss_that_lbfgs_sees_is_the_full_objective(kind):
    module = module_of(network_of(kind), **DECAYS, batch_size=N, optimizer="lbfgs")
    batch = data().train
    loss = module.training_step((batch.images, batch.labels), 0)
    torch.testing.assert_close(loss, full_objective(module), rtol=1e-12, atol=0)
    assert_same(gradients(module, loss), gradients(module, full_objective(module)))


@pytest.mark.parametrize("optimizer", ["sgd", "lbfgs"])
def test_in_a_warm_up_each_decay_is_a_part_of_itself(optimizer):
    factor = 0.25
    module = module_of(Tripled(), **DECAYS, optimizer=optimizer, decay_warmup=2, decay_warmup_factor=factor)
    batch = data().train
    plain = F.cross_entropy(module(batch.images), batch.labels)
    whole = full_objective(module) - plain
    if optimizer == "sgd":  # adds the decay of the parameters itself
        whole = whole - penalty(module.decay_groups())
    loss = module.training_step((batch.images, batch.labels), 0)
    torch.testing.assert_close(loss, plain + factor * whole, rtol=1e-12, atol=0)


def test_for_lbfgs_decay_on_all_is_half_the_decay_times_all_squares():
    module = module_of(optimizer="lbfgs", weight_decay=0.3)
    batch = data().train
    squares = sum(parameter.detach().square().sum() for parameter in module.network.parameters())
    plain = F.cross_entropy(module(batch.images), batch.labels)
    torch.testing.assert_close(module.training_step((batch.images, batch.labels), 0), plain + 0.15 * squares)


def test_over_batches_the_features_decay_is_the_full_one_on_average():
    module = module_of(Tripled(), **DECAYS, optimizer="lbfgs")
    images, labels = data().train.images, data().train.labels
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    losses = [module.training_step((images[part], labels[part]), 0) for part in order.split(4)]
    torch.testing.assert_close(torch.stack(losses).mean(), full_objective(module))


@pytest.mark.parametrize("loss", ["mse", "focal:3", "label_smoothing:0.2"])
def test_the_step_has_the_loss_of_the_config(loss):
    module = module_of(loss=loss)
    batch = data().train
    logits = module(batch.images)
    found = module.training_step((batch.images, batch.labels), 0)
    torch.testing.assert_close(found, module.loss(logits, batch.labels))
    assert abs(float(found.detach()) - float(F.cross_entropy(logits, batch.labels).detach())) > 1e-3


def losses(module: Classification, epoch: int, step: int, monkeypatch, rank: int = 0) -> float:
    monkeypatch.setattr(Classification, "current_epoch", property(lambda _: epoch))
    monkeypatch.setattr(Classification, "global_rank", property(lambda _: rank))
    module.step = step
    batch = data().train
    torch.rand(3)  # whatever was drawn before
    return float(module.training_step((batch.images, batch.labels), 0).detach())


@pytest.mark.parametrize("source", ["augmentation", "dropout"])
def test_what_is_random_is_a_function_of_seed_epoch_step_and_process(source, monkeypatch):
    def build(seed: int) -> Classification:
        network = Tripled()
        if source == "dropout":
            network.body = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, D))
        return module_of(network, seed=seed, augment="flip" if source == "augmentation" else "none")

    torch.manual_seed(0)
    module = build(0)
    first = losses(module, 2, 3, monkeypatch)
    assert losses(module, 2, 3, monkeypatch) == first
    assert losses(module, 2, 4, monkeypatch) != first
    assert losses(module, 3, 3, monkeypatch) != first
    assert losses(module, 2, 3, monkeypatch, rank=1) != first
    torch.manual_seed(0)
    other = build(1)
    other.load_state_dict(module.state_dict())
    assert losses(other, 2, 3, monkeypatch) != first


def test_the_seed_of_a_step_leaves_no_trace_in_the_weights():
    one, other = module_of(augment="flip"), module_of(augment="none")
    assert list(one.state_dict()) == list(other.state_dict())


def test_augmentation_is_for_training_only():
    batch = data().train
    plain, flipped = module_of(Tripled()), module_of(Tripled(), augment="flip")
    flipped.load_state_dict(plain.state_dict())
    torch.testing.assert_close(flipped(batch.images), plain(batch.images), rtol=0, atol=0)
    steps = [module.training_step((batch.images, batch.labels), 0) for module in (plain, flipped)]
    assert float(steps[0].detach()) != float(steps[1].detach())


def test_what_was_seen_is_what_entered_and_left_the_classifier_in_training_only():
    module = module_of(Tripled(), measure="online")
    batch = data().train
    module.training_step((batch.images, batch.labels), 0)
    features, logits = module.seen
    assert not features.requires_grad
    assert not logits.requires_grad
    torch.testing.assert_close(features, features_of(module, batch.images).detach())
    torch.testing.assert_close(logits, module(batch.images).detach())
    module.seen = None
    module.eval()
    module(batch.images)
    assert module.seen is None


def test_nothing_is_kept_unless_it_is_needed():
    module = module_of(Tripled())
    batch = data().train
    module.training_step((batch.images, batch.labels), 0)
    assert module.seen is None
    assert not module.network.fc._forward_hooks


def test_channels_last_reaches_the_network():
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3)
            self.fc = nn.Linear(4, K)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.images = images
            return self.fc(self.conv(images).mean((2, 3)))

    images = torch.zeros(4, 2, 6, 6, dtype=torch.uint8)
    split = Split(images, torch.tensor([0, 1, 2, 0]))
    samples = Data(split, split, ("a", "b", "c"), (0.0, 0.0), (1.0, 1.0), 2)
    for wanted in (True, False):
        network = Looks()
        module = Classification(network, TrainConfig(channels_last=wanted), samples)
        for call in (lambda m=module: m(images), lambda m=module: m.training_step((images, split.labels), 0)):
            call()
            assert network.images.is_contiguous(memory_format=torch.channels_last) == wanted
        assert network.conv.weight.is_contiguous(memory_format=torch.channels_last) == wanted


def test_an_optimisers_state_is_taken_up_once():
    module = module_of(optimizer="adam")
    first = module.configure_optimizers()
    batch = data().train
    module.training_step((batch.images, batch.labels), 0).backward()
    first.step()
    module.optimizer_state = first.state_dict()
    second = module.configure_optimizers()
    assert second.state_dict()["state"][0]["step"] == 1
    assert module.optimizer_state is None
    assert module.configure_optimizers().state_dict()["state"] == {}


def test_steps_are_counted_within_an_epoch():
    module = module_of()
    for _ in range(3):
        module.on_train_batch_end(None, None, 0)
    assert module.step == 3
    module.on_train_epoch_end()
    assert module.step == 0


def test_unequal_shares_of_a_batch_count_as_they_should(monkeypatch):
    """The mean over two processes of their losses' gradients is the gradient over the whole batch."""
    module = module_of(Tripled(), **DECAYS, batch_size=N)
    images, labels = data().train.images, data().train.labels
    whole = gradients(module, module.training_step((images, labels), 0))
    module.batch_sizes = (N,)
    monkeypatch.setattr(Classification, "trainer", SimpleNamespace(world_size=2))
    shares = [
        gradients(module, module.training_step((images[part], labels[part]), 0)) for part in (slice(0, 9), slice(9, N))
    ]
    assert_same({name: (shares[0][name] + shares[1][name]) / 2 for name in whole}, whole)
