"""Time and memory of a training step and of inference: arraycnn beside other frameworks.

    python benchmarks/train_step.py [--engines all] [--dezero FOLDER] [--memory] [--json FILE]

Every engine runs in a process of its own, fresh ones for every row, all engines at hand at once; a
round lets each one take its turn, so that drifts of a noisy machine meet all alike. Quoted are

- the median of the rounds, in milliseconds;
- the ratio to the faster of PyTorch's two eager modes in the same round: its median, and in
  brackets its quartiles;
- how many floors the median is: for inference the sum of the floors of all convolutions and dense
  layers, for a training step as much again for each gradient, but for the first layer's input
  gradient (see `floors.py`);
- with --memory, what data, weights and five steps add at their peak to a process that has run a
  step with a single image.

The engines are arraycnn with NumPy alone and with Numba (arraycnn-fast); PyTorch eager, in its
default and in the channels_last format, and, in the latter, with the network through torch.compile;
JAX, the step compiled as a whole, images as NHWC; and DeZero. They start from the same weights and
get the same images; --check shows that they compute the same. Those that are not installed are left
out.

On a machine that others use too, wall times say little: --processor-time measures one thread's
processor time instead. With fewer threads than processors, all engines keep to the same processors.
"""

import math
import sys
from functools import partial
from importlib import import_module

from agreement import check
from engines import PEERS, TORCH, chosen, command_line, machine, parse
from floors import Ceilings, ceilings, taps_inside
from measure import Tasks, measure
from workloads import WORKLOADS, Workload, arraycnn_model, arraycnn_steps, torch_steps


def main() -> None:
    parser = command_line(__doc__, rounds=15)
    arguments = parse(parser)
    workloads = chosen(parser, WORKLOADS, arguments.only)
    if arguments.check:
        sys.exit(not check(steps, workloads, arguments.engines))
    results = {"machine": machine(arguments)}
    limits = ceilings(arguments, results)
    measure(steps, workloads, partial(floors, limits=limits), arguments, results)


def steps(engine: str, workload: Workload) -> Tasks:
    if engine in TORCH:
        return torch_steps(workload, **TORCH[engine])
    if engine in PEERS:
        return import_module(PEERS[engine]).steps(workload)
    return arraycnn_steps(workload)


def floors(workload: Workload, limits: Ceilings) -> dict[str, float]:
    """Seconds that a training step and inference take at least."""
    from arraycnn.geometry import conv_window
    from arraycnn.layers import Conv2d, Dense

    layers = []
    for _, layer, (shape,) in arraycnn_model(workload).walk((workload.batch, *workload.image)):
        if not isinstance(layer, Conv2d | Dense):
            continue
        multiply_adds = layer.multiply_adds(shape)
        if isinstance(layer, Conv2d):
            window = conv_window(
                shape[2:], layer.kernel_size, stride=layer.stride, padding=layer.padding
            )
            multiply_adds = shape[0] * math.prod(layer.weight.shape[:2]) * taps_inside(window)
        elements = sum(map(math.prod, (shape, layer.weight.shape, layer.output_shape(shape))))
        layers.append(limits.floor(multiply_adds, elements))
    return {"train": 3 * sum(layers) - layers[0], "infer": sum(layers)}


if __name__ == "__main__":
    main()
