"""The training step: a network, its loss with decays, its optimiser, as a TrainConfig describes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuralcollapse.data.load import Data
from neuralcollapse.data.pixels import Pixels, augmentation
from neuralcollapse.errors import InputError, one_line
from neuralcollapse.networks.build import classifier_name
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.graph import Recording, StaticStep, unchanged
from neuralcollapse.training.optimizers import Groups, build_optimizer, decay_groups, decay_scale, penalty
from neuralcollapse.training.parts import Parts, joined, split_like
from neuralcollapse.ufm.losses import CrossEntropy, Focal, find_loss

NETWORK = "network"  # where the network is in the module
_MIXED = ("bf16-mixed", "bf16")  # Lightning takes both names
_TYPES = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}


class Classification(lightning.LightningModule):
    """A network that takes uint8 images, with the loss and the optimiser that a TrainConfig describes.

    Whatever is random in a step (augmentation, dropout) is a function of the seed, the epoch, the step and the
    process, so a run that was stopped anywhere goes on as if it had not been.

    Attributes:
        step: steps done in this epoch.
        seen: the features and logits of the last training step, where `keep_seen` asks for them.
        optimizer_state: state to start the optimiser with, when a run is resumed.
        parts: has the tensors of the network and of that state, where each process reads its own.
        stepper: replays the whole step for full batches, where `replay_steps` asked for that.
    """

    def __init__(self, network: nn.Module, config: TrainConfig, data: Data) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.classifier_name = classifier_name(network)
        self.classifier = f"{NETWORK}.{self.classifier_name}"
        self.pixels = Pixels(data.mean, data.std, data.channels)
        self.augment = augmentation(config.augment, data.image_shape[1:])
        self.loss = loss_function(config.loss)
        self.num_samples = len(data.train.labels)
        self.batch_sizes: Sequence[int] = ()  # over all processes, of the steps of an epoch; needed where they are many
        self.step = 0
        self.optimizer_state: dict[str, Any] | None = None
        self.parts: Parts | None = None
        self.keep_seen = config.measure == "online"
        self.seen: tuple[Tensor, Tensor] | None = None
        self.stepper: StaticStep | None = None
        self._format = torch.channels_last if config.channels_last else torch.preserve_format
        if config.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.keep_seen or config.feature_decay:
            self.get_submodule(self.classifier).register_forward_hook(self._on_classifier)
        if config.precision in _TYPES:
            self.to(_TYPES[config.precision])  # before a state is loaded, which would be rounded
        if config.compile:
            network.compile()  # in place: the names in the state dict stay

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 images to (N, K) logits."""
        return self.network(self.inputs(images))

    def inputs(self, images: Tensor) -> Tensor:
        """What the network sees of (N, C, H, W) uint8 images when they are not augmented."""
        return self.pixels(images).contiguous(memory_format=self._format)

    def training_step(self, batch: tuple[Tensor, Tensor] | None, index: int) -> Tensor:
        """The mean loss of a batch, plus the decays that the optimiser does not add; of None a 0 of all parameters."""
        if batch is None:
            return torch.stack([0 * value.sum().float() for value in self.parameters() if value.requires_grad]).sum()
        self._seed_step()
        images, labels = batch
        inputs = self.pixels(images)
        if self.augment is not None:
            inputs = self.augment(inputs)
        inputs = inputs.contiguous(memory_format=self._format)
        return self._loss(inputs, labels) if self.stepper is None else self._whole_step(inputs, labels)

    def replay_steps(self, recording: Recording) -> None:
        """From now on a training step is the optimiser's too, and is replayed from a recording for full batches."""
        self.automatic_optimization = False
        self.stepper = StaticStep(
            self._optimized, recording, lambda: unchanged(self.network, self.trainer.optimizers[0])
        )

    def gradients(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of inputs as the network takes them, with its gradients left in the parameters."""
        for parameter in self.network.parameters():
            parameter.grad = None
        kind, mixed = self.device.type, self.config.precision in _MIXED
        # The casts of weights must not be kept: those made in a capture are the memory of the graph.
        with torch.autocast(kind, torch.bfloat16, enabled=mixed, cache_enabled=False):
            loss = self._loss(inputs, labels)
        with torch.autocast(kind, enabled=False):
            loss.backward()
        return loss.detach()

    def _loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        logits = self.network(inputs)
        loss = self.loss(logits, labels)
        config, scale = self.config, decay_scale(self.config, self.current_epoch)
        if config.feature_decay:  # |H|^2 of all samples, estimated from the batch's
            assert self.seen is not None
            features = self.seen[0]
            features = features.to(torch.promote_types(features.dtype, torch.float32))  # squares overflow in float16
            loss = loss + scale * config.feature_decay / 2 * self.num_samples * features.square().sum(1).mean()
        if config.optimizer == "lbfgs":
            loss = loss + scale * penalty(self.decay_groups())
        if self.batch_sizes and self.trainer.world_size > 1:  # the mean over processes of unequal shares
            loss = loss * (len(labels) * self.trainer.world_size / self.batch_sizes[self.step])
        self.seen = None if self.seen is None else (self.seen[0].detach(), self.seen[1].detach())
        return loss

    def _optimized(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        """A whole step: the loss, and what the classifier saw where that is kept."""
        loss = self.gradients(inputs, labels)
        if self.config.gradient_clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        self.trainer.optimizers[0].step()
        return [loss, *(self.seen or ())]

    def _whole_step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The step with its optimiser: replayed for a full batch, as it is for another."""
        if len(labels) == self.config.batch_size:
            assert self.stepper is not None
            groups = self.trainer.optimizers[0].param_groups
            rates = tuple((group["lr"], group["weight_decay"]) for group in groups)
            loss, *seen = self.stepper((inputs, labels), (rates, decay_scale(self.config, self.current_epoch)))
        else:
            loss, *seen = self._optimized(inputs, labels)
        self.seen = (seen[0], seen[1]) if seen else None
        # Lightning counts the steps of an optimiser that it wraps; a replay calls no optimiser.
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        """Count the step."""
        self.step += 1

    def on_train_epoch_end(self) -> None:
        """Begin to count again."""
        self.step = 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser, with the state of a resumed run where there is one."""
        capturable = self.stepper is not None and self.device.type == "cuda"
        optimizer = build_optimizer(self.decay_groups(), self.config, capturable=capturable)
        if self.optimizer_state is not None:
            state = self.optimizer_state
            if self.parts is not None:
                state = joined(state, self.parts.load(self.network, optimizer))
            try:
                optimizer.load_state_dict(_as_captured(split_like(optimizer, state), capturable))
            except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
                raise InputError(f"the state is of another optimiser: {one_line(error)}") from None
            self.optimizer_state = self.parts = None
        return optimizer

    def decay_groups(self) -> Groups:
        """The trainable parameters with their decays (`optimizers.decay_groups`)."""
        return decay_groups(self.network, self.get_submodule(self.classifier), self.config)

    def _on_classifier(self, _: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        if self.training:
            self.seen = (inputs[0], logits)

    def _seed_step(self) -> None:
        parts = (self.config.seed, self.current_epoch, self.step, self.global_rank)
        seed = int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)


def _as_captured(state: dict[str, Any], capturable: bool) -> dict[str, Any]:
    """An optimiser's state with Adam's "capturable" as it is here: a run may be resumed on another device."""
    groups = [group | {"capturable": capturable} if "capturable" in group else group for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def loss_function(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    r"""(logits (N, K), labels (N,)) -> the mean loss, from a name such as "focal:3".

    cross_entropy, label_smoothing[:a], focal[:gamma] :math:`-(1-p)^\gamma \log p`, mse
    :math:`\frac12 |z - y|^2` with one-hot y.

    Raises:
        InputError: an unknown name (the nearest is offered), or a parameter that is no number or out of range.
    """
    loss = find_loss(name)
    if isinstance(loss, CrossEntropy):
        smoothing = loss.smoothing
        return lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if isinstance(loss, Focal):
        gamma = loss.gamma
        return lambda logits, labels: _focal(logits, labels, gamma)
    return _squared_error


def _focal(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    log_p = -F.cross_entropy(logits, labels, reduction="none")
    # 1 - p is 0 in float32 for a confident sample; its power's slope must not become 0 * infinity there
    rest = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
    return -(rest**gamma * log_p).mean()


def _squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    targets = labels[:, None] == torch.arange(logits.shape[1], device=logits.device)  # one_hot may look at the labels
    return (logits - targets.to(logits.dtype)).square().sum(1).mean() / 2
