"""Write optim.npz: trajectories of PyTorch's optimizers and schedules in float64.

Run by hand with PyTorch installed: ``python tests/oracle/make_optim_oracle.py``. The test-suite
reads the file and does not need PyTorch.

Contents: ``start/<i>`` (*shape), ``gradients/<i>`` (STEPS, *shape), ``active`` (STEPS, parameters):
whether the parameter has a gradient in that step; ``cases``: JSON of the list of [kind, arguments,
groups], a group being [indices of its parameters, its own arguments]; ``trajectory/<case>/<i>``
(STEPS, *shape): the parameter after each step. All learning rates are multiplied by LR_FACTOR
before step LR_CHANGE. ``schedules``: JSON of [name, arguments] and ``schedule/<n>`` (30,) their
rates. ``torch``: the version.
"""

import json
from pathlib import Path

import numpy as np
import torch

STEPS, LR_CHANGE, LR_FACTOR = 10, 6, 0.5
SHAPES = [(3, 2, 2), (4,), (2, 3)]

CASES = [
    ["SGD", {"lr": 0.1}],
    ["SGD", {"lr": 0.1, "weight_decay": 0.02}],
    ["SGD", {"lr": 0.1, "momentum": 0.9}],
    ["SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.02}],
    ["SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True}],
    ["SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02}],
    ["Adam", {"lr": 0.01}],
    ["Adam", {"lr": 0.01, "betas": [0.8, 0.95], "eps": 1e-3, "weight_decay": 0.02}],
    ["AdamW", {"lr": 0.01}],
    ["AdamW", {"lr": 0.01, "betas": [0.8, 0.95], "eps": 1e-3, "weight_decay": 0.1}],
    ["RMSprop", {"lr": 0.01}],
    ["RMSprop", {"lr": 0.01, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.02}],
    ["RMSprop", {"lr": 0.01, "alpha": 0.9, "momentum": 0.9, "weight_decay": 0.02}],
    ["Adagrad", {"lr": 0.1}],
    ["Adagrad", {"lr": 0.1, "lr_decay": 0.05, "eps": 1e-3, "weight_decay": 0.02}],
]
FLAT = {"weight_decay": 0.0}
NESTEROV = {"lr": 0.03, "momentum": 0.8, "nesterov": True}
GROUPED = [
    ["SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.02}, [[[0, 2], {}], [[1], FLAT]]],
    ["SGD", {"lr": 0.1}, [[[1], NESTEROV], [[0, 2], {}]]],
    ["AdamW", {"lr": 0.01}, [[[0], {"lr": 0.1}], [[2], {"betas": [0.8, 0.95]}], [[1], FLAT]]],
    ["RMSprop", {"lr": 0.01}, [[[2, 0], {"momentum": 0.9}], [[1], {"alpha": 0.9, "lr": 0.07}]]],
    ["Adagrad", {"lr": 0.1}, [[[2], {"lr": 0.3, "lr_decay": 0.05}], [[0, 1], {"eps": 1e-3}]]],
]

# Our name and arguments, and PyTorch's scheduler of a fresh optimizer.
SCHEDULES = [
    ["Step", {"lr": 0.4, "milestones": 7, "gamma": 0.5}],
    ["Step", {"lr": 0.4, "milestones": [4, 9, 20], "gamma": 0.1}],
    ["Cosine", {"lr": 0.4, "steps": 29, "final_lr": 0.01}],
    ["LinearWarmup", {"lr": 0.4, "steps": 8, "start_factor": 0.25}],
    ["OneCycle", {"lr": 0.4, "steps": 30}],
    ["OneCycle", {"lr": 0.4, "steps": 30, "warmup": 0.5, "div_factor": 5.0}],
]


def trajectory(kind, arguments, groups, start, gradients, active):
    parameters = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in start]
    given = [{"params": [parameters[i] for i in chosen], **own} for chosen, own in groups]
    optimizer = getattr(torch.optim, kind)(given or parameters, **arguments)
    result = [np.empty((STEPS, *p.shape)) for p in start]
    for step in range(STEPS):
        if step == LR_CHANGE:
            for group in optimizer.param_groups:
                group["lr"] *= LR_FACTOR
        for i, parameter in enumerate(parameters):
            parameter.grad = torch.from_numpy(gradients[i][step]) if active[step, i] else None
        optimizer.step()
        for i, parameter in enumerate(parameters):
            result[i][step] = parameter.detach().numpy()
    return result


def schedule(name, arguments):
    arguments = dict(arguments)
    lr = arguments.pop("lr")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))], lr=lr)
    scheduling = torch.optim.lr_scheduler
    if name == "Step" and isinstance(arguments["milestones"], int):
        scheduler = scheduling.StepLR(optimizer, arguments["milestones"], arguments["gamma"])
    elif name == "Step":
        scheduler = scheduling.MultiStepLR(optimizer, arguments["milestones"], arguments["gamma"])
    elif name == "Cosine":
        scheduler = scheduling.CosineAnnealingLR(
            optimizer, arguments["steps"], arguments["final_lr"]
        )
    elif name == "LinearWarmup":
        scheduler = scheduling.LinearLR(
            optimizer, arguments["start_factor"], total_iters=arguments["steps"]
        )
    else:
        scheduler = scheduling.OneCycleLR(
            optimizer,
            lr,
            arguments["steps"],
            pct_start=arguments.get("warmup", 0.3),
            div_factor=arguments.get("div_factor", 25.0),
            cycle_momentum=False,
        )
    rates = []
    for _ in range(30):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < 30:
            scheduler.step()
    return np.array(rates)


def main():
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape) for shape in SHAPES]
    gradients = [rng.standard_normal((STEPS, *shape)) for shape in SHAPES]
    active = np.ones((STEPS, len(SHAPES)), dtype=bool)
    active[[0, 1, 5], 1] = False  # comes late and misses one
    active[3, 2] = False
    arrays = {"active": active, "torch": np.array(torch.__version__)}
    cases = [[*case, []] for case in CASES] + GROUPED
    arrays["cases"] = np.array(json.dumps(cases))
    arrays["schedules"] = np.array(json.dumps(SCHEDULES))
    for i, (p, g) in enumerate(zip(start, gradients, strict=True)):
        arrays[f"start/{i}"], arrays[f"gradients/{i}"] = p, g
    for n, case in enumerate(cases):
        for i, values in enumerate(trajectory(*case, start, gradients, active)):
            arrays[f"trajectory/{n}/{i}"] = values
    for n, (name, arguments) in enumerate(SCHEDULES):
        arrays[f"schedule/{n}"] = schedule(name, arguments)
    np.savez_compressed(Path(__file__).with_name("optim.npz"), **arrays)


if __name__ == "__main__":
    main()
