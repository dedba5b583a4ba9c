"""ResNets for ImageNet and for small images, with features of any dimension.

Modules are named as in torchvision, so its state dicts of resnet18, resnet34 and resnet50 load. Source: He et al.,
CVPR 2016; in bottlenecks the 3x3 convolution has the stride, as in torchvision.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from neuralcollapse.checks import check_count
from neuralcollapse.errors import InputError


class BasicBlock(nn.Module):
    """relu(x + F(x)), F two 3x3 convolutions; the shortcut is a 1x1 convolution where the shapes differ.

    Args:
        in_channels: of x.
        channels: between the convolutions.
        out_channels: of the block.
        stride: of the first convolution and the shortcut.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        """The block's output, after the ReLU."""
        hidden = self.relu(self.bn1(self.conv1(inputs)))
        hidden = self.bn2(self.conv2(hidden))
        return self.relu(hidden + (inputs if self.downsample is None else self.downsample(inputs)))


class Bottleneck(nn.Module):
    """relu(x + F(x)), F convolutions of 1x1, 3x3 and 1x1; arguments and shapes as for `BasicBlock`."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        """The block's output, after the ReLU."""
        hidden = self.relu(self.bn1(self.conv1(inputs)))
        hidden = self.relu(self.bn2(self.conv2(hidden)))
        hidden = self.bn3(self.conv3(hidden))
        return self.relu(hidden + (inputs if self.downsample is None else self.downsample(inputs)))


_KINDS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet18_width": (BasicBlock, (2, 2, 2, 2)),
}


class ResNet(nn.Module):
    """A stem, four stages of blocks, the mean over positions, and a classifier `fc`.

    The features have as many dimensions d as the last block has output channels: its last convolution and its shortcut
    have d channels, so that features remain averages of a ReLU's output. With d as in the original nothing changes.

    Args:
        kind: "resnet18", "resnet34", "resnet50", or "resnet18_width" (resnet18 with any `width`).
        num_classes: K.
        feature_dim: d; 8 width (times 4 in ResNet50) when not given.
        stem: "imagenet" (7x7 convolution with stride 2, 3x3 max-pool with stride 2) or "small" (3x3 convolution).
        in_channels: of the images.
        width: channels of the first stage; the other stages have 2, 4 and 8 times as many.
        bias: whether the classifier has a bias.

    Shapes: (N, in_channels, H, W) -> (N, K).
    """

    def __init__(
        self,
        kind: str,
        num_classes: int,
        feature_dim: int | None = None,
        *,
        stem: str = "imagenet",
        in_channels: int = 3,
        width: int = 64,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "small"):
            raise InputError(f"expected stem 'imagenet' or 'small', got {stem!r}")
        check_count(in_channels, "in_channels", 1)
        check_count(width, "width", 1)
        block, depths = _KINDS[kind]
        sizes = [width, *(scale * width * block.expansion for scale in (1, 2, 4, 8))]
        features = sizes[-1] if feature_dim is None else check_count(feature_dim, "feature_dim", 1)

        imagenet = stem == "imagenet"
        kernel, stride = (7, 2) if imagenet else (3, 1)
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if imagenet else nn.Identity()
        stages = [
            _stage(block, depth, inputs, outputs, 1 if index == 0 else 2, features if index == 3 else outputs)
            for index, (depth, (inputs, outputs)) in enumerate(zip(depths, pairwise(sizes), strict=True))
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc: nn.Module = nn.Linear(features, num_classes, bias=bias)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) images to (N, K) logits."""
        hidden = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(hidden))))
        return self.fc(hidden.mean((2, 3)))  # AdaptiveAvgPool2d has no deterministic gradient on CUDA


def _stage(
    block: type[BasicBlock] | type[Bottleneck], depth: int, inputs: int, outputs: int, stride: int, last: int
) -> nn.Sequential:
    """`depth` blocks of `outputs` channels; the first has the stride, the last has `last` channels."""
    sizes = [inputs, *[outputs] * (depth - 1), last]
    strides = [stride, *[1] * (depth - 1)]
    channels = outputs // block.expansion
    return nn.Sequential(
        *(block(size, channels, after, step) for (size, after), step in zip(pairwise(sizes), strides, strict=True))
    )


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
