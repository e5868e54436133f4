"""Calls that must be refused: the operation, its arguments, the error, and what it must name.

An array is a dictionary with a shape and a dtype (zeros), or with its values as well.
"""

from typing import Any

INVALID: list[dict[str, Any]] = []


def array(*shape: int, dtype: str = "float32") -> dict[str, Any]:
    return {"shape": list(shape), "dtype": dtype}


def refuse(
    op: str, why: str, *arguments: Any, error: str = "ValueError", match: str, **options: Any
):
    """``match`` are words that the message must hold, separated by blanks."""
    INVALID.append(
        {
            "id": f"{op}-{why}",
            "op": op,
            "arguments": list(arguments),
            "options": options,
            "error": error,
            "match": match.split(),
        }
    )


X1, X2, X3 = array(2, 3, 8), array(2, 3, 6, 7), array(2, 3, 4, 5, 4)
W1, W2, W3 = array(4, 3, 3), array(4, 3, 3, 3), array(4, 3, 3, 3, 3)

refuse("conv2d", "image_without_batch", array(3, 6, 7), W2, match="x (3, 6, 7)")
refuse("conv2d", "volume", X3, W2, match="x")
refuse("conv1d", "plane", X2, W1, match="x")
refuse("conv3d", "plane", X2, W3, match="x")
refuse("conv2d", "weight_rank", X2, array(4, 3, 3), match="weight (4, 3, 3)")
refuse("conv2d", "channels", array(2, 5, 6, 7), W2, match="channels 5 3")
refuse("conv1d", "channels", array(2, 5, 8), W1, match="channels 5 3")
refuse("conv2d", "groups_do_not_divide_channels", X2, W2, match="groups 2", groups=2)
refuse(
    "conv2d", "groups_do_not_divide_filters", array(2, 4, 6, 7), array(3, 2, 3, 3),
    match="groups 2", groups=2,
)  # fmt: skip
refuse("conv2d", "zero_groups", X2, W2, match="groups 0", groups=0)
refuse("conv2d", "bias_length", X2, W2, array(3), match="bias (4,) (3,)")
refuse("conv2d", "bias_rank", X2, W2, array(4, 1), match="bias (4, 1)")
refuse("conv2d", "kernel_beyond_input", X2, array(4, 3, 7, 3), match="kernel 7 6")
refuse("conv1d", "kernel_beyond_padded_input", X1, array(4, 3, 11), match="kernel 11", padding=1)
refuse("conv2d", "dilated_kernel_beyond_input", X2, W2, match="dilation", dilation=3)
refuse("conv3d", "kernel_beyond_input", X3, array(4, 3, 5, 5, 5), match="kernel")
refuse("conv2d", "zero_stride", X2, W2, match="stride 0", stride=0)
refuse("conv2d", "negative_stride", X2, W2, match="stride -1", stride=(1, -1))
refuse("conv2d", "float_stride", X2, W2, error="TypeError", match="stride 1.5", stride=1.5)
refuse("conv2d", "three_strides", X2, W2, match="stride", stride=(1, 1, 1))
refuse("conv2d", "zero_dilation", X2, W2, match="dilation 0", dilation=0)
refuse("conv2d", "negative_padding", X2, W2, match="padding -1", padding=-1)
refuse("conv2d", "unknown_padding", X2, W2, match="padding reflect same", padding="reflect")
refuse("conv2d", "padding_of_wrong_length", X2, W2, match="padding", padding=(1, 1, 1))
refuse("conv2d", "empty_kernel", X2, array(4, 3, 0, 3), match="weight")
refuse(
    "conv2d", "integer_image", array(2, 3, 6, 7, dtype="uint8"), W2,
    error="TypeError", match="x uint8",
)  # fmt: skip
refuse(
    "conv2d", "mixed_dtypes", X2, array(4, 3, 3, 3, dtype="float64"),
    error="TypeError", match="weight float32 float64",
)  # fmt: skip
refuse(
    "conv2d_input_grad", "output_shape", [2, 3, 6, 7], W2, array(2, 4, 6, 7),
    match="grad_output (2, 4, 4, 5)",
)  # fmt: skip
refuse(
    "conv2d_weight_grad", "output_shape", X2, [4, 3, 3, 3], array(2, 5, 4, 5),
    match="grad_output (2, 4, 4, 5)",
)  # fmt: skip

refuse("conv_transpose2d", "channels", X2, W2, match="channels 3 4")
T2 = array(3, 4, 3, 3)
refuse("conv_transpose2d", "image_without_batch", array(3, 6, 7), T2, match="x (3, 6, 7)")
refuse("conv_transpose2d", "zero_stride", X2, T2, match="stride", stride=0)
refuse(
    "conv_transpose2d", "output_padding_as_stride", X2, T2,
    match="output_padding 2", stride=2, output_padding=2,
)  # fmt: skip
refuse(
    "conv_transpose2d", "negative_output_padding", X2, T2,
    match="output_padding -1", output_padding=-1,
)  # fmt: skip
refuse("conv_transpose2d", "groups", X2, T2, match="groups 2", groups=2)
refuse("conv_transpose2d", "nothing_left", array(1, 3, 1, 1), T2, match="padding", padding=2)
refuse("conv_transpose1d", "bias", X1, array(3, 4, 3), array(3), match="bias (4,) (3,)")

refuse("im2col", "kernel_beyond_input", X2, 9, match="kernel 9")
refuse("im2col", "zero_kernel", X2, 0, match="kernel_size 0")
refuse("col2im", "wrong_count", array(1, 27, 21), [6, 7], 3, match="columns 20 21")
refuse("col2im", "not_divisible", array(1, 26, 20), [6, 7], 3, match="columns 26 9")

refuse("max_pool2d", "rank", array(3, 6, 7), 2, match="x (3, 6, 7)")
refuse("max_pool2d", "zero_kernel", X2, 0, match="kernel_size 0")
refuse("max_pool2d", "kernel_beyond_input", X2, 9, match="kernel 9")
refuse("max_pool2d", "negative_stride", X2, 2, match="stride -2", stride=-2)
refuse("max_pool1d", "window_in_padding", X1, 2, match="padding", padding=2)
refuse(
    "max_pool2d", "dilated_window_in_padding", array(1, 1, 1, 1), 2,
    match="padding", padding=1, dilation=2,
)  # fmt: skip
refuse("max_pool2d", "integer_image", array(2, 3, 6, 7, dtype="int64"), 2,
       error="TypeError", match="x int64")  # fmt: skip
refuse("max_pool2d", "float_kernel", X2, 2.0, error="TypeError", match="kernel_size 2.0")
refuse("avg_pool2d", "window_in_padding", X2, 2, match="padding", padding=2)
refuse("avg_pool2d", "zero_divisor", X2, 2, match="divisor_override 0", divisor_override=0)
refuse("avg_pool3d", "rank", X2, 2, match="x")
refuse("avg_pool2d", "kernel_of_three", X2, [2, 2, 2], match="kernel_size (2, 2, 2)")
refuse("adaptive_avg_pool2d", "zero_output", X2, 0, match="output_size 0")
refuse("adaptive_max_pool2d", "rank", X1, 2, match="x")
refuse(
    "max_pool2d_grad", "output_shape", X2, 2, array(2, 3, 6, 7), match="grad_output (2, 3, 3, 3)"
)

refuse("dense", "features", array(4, 5), array(2, 3), match="x 3 5")
refuse("dense", "rank", X2, array(2, 3), match="x")
refuse("dense", "bias", array(4, 3), array(2, 3), array(3), match="bias (2,) (3,)")
refuse("dense", "integer_input", array(4, 3, dtype="int64"), array(2, 3),
       error="TypeError", match="x int64")  # fmt: skip
refuse("relu", "integers", array(4, dtype="int32"), error="TypeError", match="x int32")
refuse("softmax", "axis", array(4, 3), match="axis 2", axis=2)
refuse("gelu", "approximate", array(4, 3), match="approximate exp tanh none", approximate="exp")

refuse("batch_norm", "eval_without_statistics", X2, match="running_mean")
refuse("batch_norm", "one_value", array(1, 3, 1, 1), match="x (1, 3, 1, 1)", training=True)
refuse("batch_norm", "statistics_length", X2, array(4), array(4), match="running_mean (3,) (4,)")
refuse("batch_norm", "weight_length", X2, array(3), array(3), array(4), match="weight (3,) (4,)")
refuse("batch_norm", "negative_eps", X2, array(3), array(3), match="eps -1", eps=-1.0)
refuse("batch_norm", "momentum", X2, array(3), array(3), match="momentum 2", momentum=2.0,
       training=True)  # fmt: skip

refuse("dropout", "p_above_one", X2, 1.5, match="p 1.5", seed=0)
refuse("dropout", "p_negative", X2, -0.1, match="p -0.1", seed=0)


def labels(*values: int, dtype: str = "int64") -> dict[str, Any]:
    return {"shape": [len(values)], "dtype": dtype, "values": list(values)}


LOGITS = array(3, 4)
CE = "softmax_cross_entropy"
refuse(CE, "label_too_large", LOGITS, labels(0, 4, 1), match="labels 4")
refuse(CE, "label_negative", LOGITS, labels(0, -1, 1), match="labels -1")
refuse(CE, "ignored_value_not_declared", LOGITS, labels(0, -100, 1), match="labels ignore_index")
refuse(CE, "float_labels", LOGITS, labels(0, 1, 2, dtype="float32"),
       error="TypeError", match="labels float32")  # fmt: skip
refuse(CE, "one_hot_labels", LOGITS, array(3, 4, dtype="int64"), match="labels (3,) (3, 4)")
refuse(CE, "label_count", LOGITS, labels(0, 1), match="labels (3,) (2,)")
refuse(CE, "integer_logits", array(3, 4, dtype="int64"), labels(0, 1, 2),
       error="TypeError", match="logits int64")  # fmt: skip
refuse(
    CE, "reduction", LOGITS, labels(0, 1, 2), match="reduction average mean", reduction="average"
)
refuse(CE, "smoothing", LOGITS, labels(0, 1, 2), match="label_smoothing 1.5", label_smoothing=1.5)
refuse(CE, "weights", LOGITS, labels(0, 1, 2), match="weight (4,) (3,)", weight=array(3))
refuse(CE, "flat_logits", array(4), labels(0), match="logits")
refuse("mse_loss", "shapes", array(3, 4), array(4, 3), match="target (3, 4) (4, 3)")
refuse("mse_loss", "broadcast", array(3, 4), array(3, 1), match="target (3, 4) (3, 1)")
refuse("mse_loss", "reduction", array(3), array(3), match="reduction", reduction=None)
refuse("mse_loss", "integer_target", array(3), array(3, dtype="int64"),
       error="TypeError", match="target int64")  # fmt: skip
BCE = "binary_cross_entropy_with_logits"
refuse(BCE, "shapes", array(3, 4), array(3), match="targets (3, 4) (3,)")
refuse(BCE, "integer_targets", array(3), array(3, dtype="int64"),
       error="TypeError", match="targets int64")  # fmt: skip
