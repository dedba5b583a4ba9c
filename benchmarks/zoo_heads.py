"""Heads and wrappers that people make: some are W h + b, some are another linear map, some are none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from zoo import CLASSES, Case, Reading, images, linear, plain, received

WIDTH = 24


class Net(nn.Module):
    """A small convolutional network whose head and what is done around it are given."""

    def __init__(self, head: nn.Module | None = None, **steps: Callable[..., Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 5, 4), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, WIDTH, 3, 2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.fc = nn.Linear(WIDTH, CLASSES) if head is None else head
        self.steps = steps
        if "choose" in steps:
            self.choose_logits = steps["choose"]

    def forward(self, pixels: Tensor) -> Any:
        features = self.body(pixels)
        features = self.steps.get("before", lambda value: value)(features)
        logits = self.fc(features)
        return self.steps.get("after", lambda logits, features: logits)(logits, features)


class Cosine(nn.Linear):
    """s cos(h, w)."""

    def forward(self, features: Tensor) -> Tensor:
        return 8 * F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))


class UnitRows(nn.Linear):
    """s <h, w / |w|>."""

    def forward(self, features: Tensor) -> Tensor:
        return 8 * F.linear(features, F.normalize(self.weight, dim=-1))


class BiasNeverAdded(nn.Linear):
    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight)


class Quadratic(nn.Linear):
    """A head that no W and b stand for."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) ** 2


class Distances(nn.Linear):
    """Minus the squared distances to prototypes: linear but for a term that all classes share."""

    def forward(self, features: Tensor) -> Tensor:
        return -torch.cdist(features, self.weight).square()


def overwritten(logits: Tensor, features: Tensor) -> Tensor:
    features.mul_(0).add_(torch.arange(features.numel()).reshape(features.shape))
    return logits


def doubled_in_place(logits: Tensor, _: Tensor) -> Tensor:
    return logits.mul_(3).add_(torch.arange(CLASSES))


class Twice(Net):
    def forward(self, pixels: Tensor) -> Tensor:
        features = self.body(pixels)
        return (self.fc(features) + self.fc(features.flip(1))) / 2


class TwoHeads(Net):
    """The first head makes the logits, the second is for another task with as many classes."""

    def __init__(self, **steps: Callable[..., Any]) -> None:
        super().__init__(**steps)
        self.other = nn.Linear(WIDTH, CLASSES)

    def forward(self, pixels: Tensor) -> Any:
        features = self.body(pixels)
        return self.fc(features), self.other(features)


class Functional(Net):
    def forward(self, pixels: Tensor) -> Tensor:
        return F.linear(self.body(pixels), self.fc.weight, self.fc.bias)


def effective(name: str, of: Callable[[nn.Module], tuple[Tensor, Tensor | None]], **options: Any) -> list[Reading]:
    return [Reading(name, received("fc"), of, **options)]


def own_weight(change: Callable[[nn.Module], None]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = Net()
        change(model)
        return model

    return build


def lora(**options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(Net(), LoraConfig(r=2, init_lora_weights=False, **options))
        return model

    return build


LORA = "base_model.model.fc"


def merged_lora(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    layer = model.get_submodule(LORA)
    product = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
    return layer.base_layer.weight.double() + layer.scaling["default"] * product, layer.base_layer.bias


def head_cases() -> Iterator[Case]:
    def case(name: str, build: Callable[[], nn.Module], readings: list[Reading], head: str = "fc",
             data: Callable[[], list[Any]] = images, **more: Any) -> Case:  # fmt: skip
        return Case(f"head: {name}", build, data, head, readings, **more)

    yield case("nn.Linear", Net, plain("fc"))
    yield case("dropout before", lambda: Net(before=nn.Dropout(0.5).eval()), plain("fc"))
    yield case("weight_norm, new", own_weight(lambda net: parametrizations.weight_norm(net.fc)), plain("fc"),
               prepare=False)  # fmt: skip
    yield case("weight_norm, old", old_weight_norm, plain("fc"), prepare=False)
    yield case("spectral_norm, new", own_weight(lambda net: parametrizations.spectral_norm(net.fc)), plain("fc"),
               prepare=False)  # fmt: skip
    yield case("spectral_norm, old", old_spectral_norm, plain("fc"), prepare=False)
    yield case("pruned", pruned, plain("fc"), prepare=False)
    doubled = own_weight(lambda net: parametrize.register_parametrization(net.fc, "weight", Doubled()))
    yield case("parametrized", doubled, plain("fc"), prepare=False)
    yield case("cosine", lambda: Net(Cosine(WIDTH, CLASSES, bias=False)), [Reading(
        "unit features and rows", lambda calls, _: F.normalize(calls["fc"][0], dim=-1),
        lambda net: (8 * F.normalize(net.fc.weight.double(), dim=-1), None), tolerance=1e-4)])  # fmt: skip
    yield case("unit rows", lambda: Net(UnitRows(WIDTH, CLASSES, bias=False)), effective(
        "unit rows", lambda net: (8 * F.normalize(net.fc.weight.double(), dim=-1), None), tolerance=1e-4))  # fmt: skip
    yield case("bias never added", lambda: Net(BiasNeverAdded(WIDTH, CLASSES)), effective(
        "no bias", lambda net: (net.fc.weight, None), tolerance=1e-4))  # fmt: skip
    yield case("quadratic", lambda: Net(Quadratic(WIDTH, CLASSES)), [])
    yield case("distances to prototypes", lambda: Net(Distances(WIDTH, CLASSES, bias=False)), effective(
        "2 W, -|w|^2, up to a term that all classes share",
        lambda net: (2 * net.fc.weight, -net.fc.weight.square().sum(1)), shared=True, tolerance=1e-4),
        may_refuse=True)  # fmt: skip
    yield case("logits times 3 afterwards", lambda: Net(after=lambda logits, _: 3 * logits), effective(
        "3 W, 3 b", lambda net: (3 * net.fc.weight, 3 * net.fc.bias), tolerance=1e-4))  # fmt: skip
    yield case("logits changed in place", lambda: Net(after=doubled_in_place), effective(
        "3 W, 3 b + c", lambda net: (3 * net.fc.weight, 3 * net.fc.bias + torch.arange(CLASSES)),
        tolerance=1e-4))  # fmt: skip
    yield case("bias added afterwards", lambda: Net(after=lambda logits, _: logits + torch.arange(CLASSES)), effective(
        "b + c", lambda net: (net.fc.weight, net.fc.bias + torch.arange(CLASSES)), tolerance=1e-4))  # fmt: skip
    yield case("log_softmax afterwards", lambda: Net(after=lambda logits, _: logits.log_softmax(1)),
               plain("fc", words="W h + b up to a term that all classes share", shared=True))  # fmt: skip
    yield case("softmax afterwards", lambda: Net(after=lambda logits, _: logits.softmax(1), choose=torch.log),
               plain("fc", words="W h + b up to a term that all classes share", shared=True))  # fmt: skip
    yield case("input overwritten afterwards", lambda: Net(after=overwritten), plain("fc"))
    yield case("called twice", Twice, [])
    yield case("functional", Functional, [])
    yield case("another task's head beside", TwoHeads, plain("fc"))
    yield case(
        "another task's head named",
        functools.partial(TwoHeads, choose=lambda out: out[1]),
        plain("other"),
        "other",
        searched=False,
    )
    yield case("returns (features, logits)", lambda: Net(after=lambda logits, features: (features, logits),
               choose=lambda out: out[1]), plain("fc"))  # fmt: skip
    yield case("returns a dict of its own", lambda: Net(after=lambda logits, features: {"h": features, "out": logits},
               choose=lambda out: out["out"]), plain("fc"))  # fmt: skip
    yield case("in nn.Sequential", lambda: nn.Sequential(Net().body, nn.Dropout(), nn.Linear(WIDTH, CLASSES)),
               plain("2"), "2")  # fmt: skip
    yield case("1x1 convolution on a map", lambda: nn.Sequential(
        *list(Net().body)[:5], nn.Conv2d(WIDTH, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        plain("5", words="mean over positions", tolerance=1e-5), "5")  # fmt: skip
    yield case("full-size convolution", lambda: nn.Sequential(
        *list(Net().body)[:5], nn.Conv2d(WIDTH, CLASSES, 7), nn.Flatten()), [Reading(
            "the whole map as features", lambda calls, _: calls["5"][0].flatten(1), linear("5"))], "5",
        may_refuse=True)  # fmt: skip
    yield case("LoRA", lora(target_modules=["fc"]), [Reading("W + s B A", received(LORA), merged_lora, tolerance=1e-3)],
               LORA, prepare=False)  # fmt: skip
    saved = f"{LORA}.modules_to_save.default"
    yield case("peft's modules_to_save", lora(target_modules=["body.3"], modules_to_save=["fc"]), plain(saved), saved,
               prepare=False)  # fmt: skip
    yield case("peft's modules_to_save, the wrapper", lora(target_modules=["body.3"], modules_to_save=["fc"]),
               [Reading("h, W, b of the copy", received(saved), linear(saved))], LORA, watch=(saved,),
               prepare=False, may_refuse=True)  # fmt: skip
    yield case("one logit for two classes", lambda: Net(nn.Linear(WIDTH, 1)), [], data=two_classes)
    yield case("DataParallel", lambda: nn.DataParallel(Net()), plain("module.fc"), "module.fc")
    yield case("averaged weights", lambda: torch.optim.swa_utils.AveragedModel(Net()), plain("module.fc"), "module.fc")
    yield case("torch.compile", lambda: torch.compile(Net(), backend="eager"), compiled("fc"), "fc",
               watch=("_orig_mod.fc",), prepare=False)  # fmt: skip
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        words = str(dtype).removeprefix("torch.")
        yield Case(f"head: {words}", lambda dtype=dtype: Net().to(dtype), functools.partial(images_of, dtype), "fc",
                   plain("fc", tolerance=1e-5))  # fmt: skip
    yield case("fixed ETF", fixed, plain("fc"), prepare=False)


def old_weight_norm() -> nn.Module:
    """As after a step of training: the weight that the layer holds is older than its g and v."""
    model = Net()
    nn.utils.weight_norm(model.fc)
    with torch.no_grad():
        model.fc.weight_v.normal_()
        model.fc.weight_g.uniform_(1, 2)
    return model


def old_spectral_norm() -> nn.Module:
    model = Net()
    nn.utils.spectral_norm(model.fc)
    with torch.no_grad():
        model.fc.weight_orig.normal_()
    return model


def pruned() -> nn.Module:
    model = Net()
    prune.random_unstructured(model.fc, "weight", 0.3)
    with torch.no_grad():
        model.fc.weight_orig.normal_()
    return model


def fixed() -> nn.Module:
    import neuralcollapse as nc

    return Net(nc.ETFClassifier(WIDTH, CLASSES))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight + 0.1


def compiled(name: str) -> list[Reading]:
    return [Reading("h, W, b of the head", received(f"_orig_mod.{name}"), linear(f"_orig_mod.{name}"))]


def images_of(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    return [(pixels.to(dtype), labels) for pixels, labels in images()]


def two_classes() -> list[tuple[Tensor, Tensor]]:
    return [(pixels, labels % 2) for pixels, labels in images()]
