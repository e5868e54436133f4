"""Networks of today's parts: LeNet-5, the lecture's CNN, dense networks, ResNets."""

from collections.abc import Sequence

from arraycnn.arguments import as_count
from arraycnn.backends import BackendLike
from arraycnn.layers import (
    BatchNorm,
    Conv2d,
    Dense,
    Flatten,
    GlobalAvgPool,
    Layer,
    MaxPool2d,
    ReLU,
    Residual,
    Sequential,
)
from arraycnn.rng import as_seed


def lenet5(
    in_channels: int = 1,
    num_classes: int = 10,
    image_size: int = 28,
    *,
    seed: int | None = None,
    backend: BackendLike | None = None,
) -> Sequential:
    """LeNet-5 with today's parts, for (N, in_channels, image_size, image_size); returns logits.

    After LeCun et al., "Gradient-based learning applied to document recognition", 1998: 6 and 16
    maps of 5×5 kernels, then 120 and 84 units. ReLU, max pooling, full connections and a linear
    output take the places of scaled tanh, trainable subsampling, the table of connections and the
    radial basis functions.
    """
    layers: list[Layer] = [
        Conv2d(in_channels, 6, 5, padding=2),
        ReLU(),
        MaxPool2d(2),
        Conv2d(6, 16, 5),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
    ]
    features = _features("lenet5", layers, in_channels, image_size)
    num_classes = as_count("num_classes", num_classes)
    head = [Dense(features, 120), ReLU(), Dense(120, 84), ReLU(), Dense(84, num_classes)]
    return Sequential(*layers, *head, seed=as_seed(seed), backend=backend)


def two_layer_cnn(
    in_channels: int = 1,
    num_classes: int = 10,
    image_size: int = 28,
    *,
    seed: int | None = None,
    backend: BackendLike | None = None,
) -> Sequential:
    """The lecture's network: two convolutions with pooling and a dense classifier; returns logits.

    32 and 64 maps of 5×5 kernels, "same" padding, ReLU and 2×2 max pooling after each.
    """
    layers: list[Layer] = [
        Conv2d(in_channels, 32, 5, padding="same"),
        ReLU(),
        MaxPool2d(2),
        Conv2d(32, 64, 5, padding="same"),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
    ]
    features = _features("two_layer_cnn", layers, in_channels, image_size)
    num_classes = as_count("num_classes", num_classes)
    return Sequential(*layers, Dense(features, num_classes), seed=as_seed(seed), backend=backend)


def mlp(
    in_features: int = 784,
    hidden: Sequence[int] = (128,),
    num_classes: int = 10,
    *,
    seed: int | None = None,
    backend: BackendLike | None = None,
) -> Sequential:
    """A dense network with ReLU, for comparison; flattens (N, C, *S) first; returns logits."""
    if not isinstance(hidden, Sequence) or isinstance(hidden, str):
        raise TypeError(f"hidden must be a sequence of widths such as (128,), got {hidden!r}")
    num_classes = as_count("num_classes", num_classes)
    layers: list[Layer] = [Flatten()]
    for width in hidden:
        layers += [Dense(in_features, as_count("each width in hidden", width)), ReLU()]
        in_features = width
    return Sequential(*layers, Dense(in_features, num_classes), seed=as_seed(seed), backend=backend)


def resnet(
    depth: int = 20,
    in_channels: int = 3,
    num_classes: int = 10,
    *,
    width: int = 16,
    seed: int | None = None,
    backend: BackendLike | None = None,
) -> Sequential:
    """The residual network for small images (CIFAR) of depth 6n + 2; returns logits.

    He et al., "Deep residual learning for image recognition", 2016, section 4.2: a 3×3 convolution,
    three stages of n blocks with width, 2·width and 4·width maps, global average pooling and a
    dense classifier. Where a stage halves the image, the shortcut is a 1×1 convolution with batch
    norm (their option B), not zero padding (A).

    Raises:
        ValueError: ``depth`` is not 6n + 2 with n ≥ 1.
    """
    depth = as_count("depth", depth)
    width, num_classes = as_count("width", width), as_count("num_classes", num_classes)
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth must be 6n + 2 for n ≥ 1, e.g. 20, 32 or 56, got {depth}")
    layers: list[Layer] = [
        Conv2d(in_channels, width, 3, padding=1, bias=False),
        BatchNorm(width),
        ReLU(),
    ]
    channels = width
    for stage in range(3):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            layers += [_block(channels, width << stage, stride), ReLU()]
            channels = width << stage
    layers += [GlobalAvgPool(), Dense(channels, num_classes)]
    return Sequential(*layers, seed=as_seed(seed), backend=backend)


def _block(in_channels: int, out_channels: int, stride: int) -> Residual:
    body = Sequential(
        Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        BatchNorm(out_channels),
        ReLU(),
        Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        BatchNorm(out_channels),
    )
    if stride == 1 and in_channels == out_channels:
        return Residual(body)
    shortcut = Sequential(
        Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), BatchNorm(out_channels)
    )
    return Residual(body, shortcut)


def _features(name: str, layers: Sequence[Layer], in_channels: int, image_size: int) -> int:
    size = as_count("image_size", image_size)
    try:
        return int(Sequential(*layers).output_shape((1, in_channels, size, size))[1])
    except ValueError as error:
        raise ValueError(
            f"image_size {size} is too small for {name}: {error}; enlarge the images, e.g. with "
            "arraycnn.data.resize"
        ) from None
