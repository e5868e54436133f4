"""Layers: parameters, configuration and a forward that returns its own backward."""

from arraycnn.layers.activation import (
    ELU,
    GELU,
    SELU,
    LeakyReLU,
    ReLU,
    Sigmoid,
    Softmax,
    Softplus,
    Tanh,
)
from arraycnn.layers.conv import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
)
from arraycnn.layers.dense import Dense, Flatten
from arraycnn.layers.fusion import fused
from arraycnn.layers.graph import Graph
from arraycnn.layers.layer import Backward, Layer
from arraycnn.layers.merge import Add, Concat, Identity, Multiply
from arraycnn.layers.normalization import BatchNorm, Dropout
from arraycnn.layers.pooling import (
    AdaptiveAvgPool2d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    GlobalAvgPool,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
)
from arraycnn.layers.sequential import Recompute, Residual, Sequential
from arraycnn.parameters import Buffer, Parameter

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "AdaptiveAvgPool2d",
    "Add",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "Backward",
    "BatchNorm",
    "Buffer",
    "Concat",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Dense",
    "Dropout",
    "Flatten",
    "GlobalAvgPool",
    "Graph",
    "Identity",
    "Layer",
    "LeakyReLU",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "Multiply",
    "Parameter",
    "ReLU",
    "Recompute",
    "Residual",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "fused",
]
