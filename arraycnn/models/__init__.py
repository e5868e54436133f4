"""Networks of the lecture and the literature, as functions that return layers.

Every function takes ``seed`` (None draws fresh weights) and ``backend`` as `Sequential` does.
"""

from arraycnn.models.lecun1989 import ConstantPad2d, PartialConv2d, ScaledTanh, UnitBias, lenet1
from arraycnn.models.networks import lenet5, mlp, resnet, two_layer_cnn

__all__ = [
    "ConstantPad2d",
    "PartialConv2d",
    "ScaledTanh",
    "UnitBias",
    "lenet1",
    "lenet5",
    "mlp",
    "resnet",
    "two_layer_cnn",
]
