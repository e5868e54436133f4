"""What the scripts of the lecture share: their options, their data, training, and their style.

The colours are those of Okabe and Ito, which any kind of colour vision tells apart; scales of
numbers are viridis, and purple to orange through white where the sign matters.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import matplotlib as mpl
from matplotlib.figure import Figure

import arraycnn as ac
from arraycnn import functional as F
from arraycnn.data import Dataset, resize
from arraycnn.schedules import OneCycle

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
SIGNED = "PuOr_r"  # colour map with white at zero

mpl.rcParams.update(
    {
        "axes.axisbelow": True,
        "axes.prop_cycle": mpl.cycler(color=[BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY]),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 11,
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "grid.color": "0.9",
        "image.cmap": "viridis",
        "legend.frameon": False,
        "savefig.dpi": 120,
    }
)

DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "digits": lambda data_dir: ac.datasets.digits(),
    "mnist": ac.datasets.mnist,
    "fashion-mnist": ac.datasets.fashion_mnist,
    "kmnist": ac.datasets.kmnist,
    "svhn": ac.datasets.svhn,
}
GREY = tuple(name for name in DATASETS if name != "svhn")  # of one channel


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, without repeating the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def parser(description: str, *, datasets: tuple[str, ...] = ()) -> Parser:
    """The options of every script; with names of ``datasets``, also those that choose one."""
    result = Parser(description=description)
    result.add_argument("--backend", default="auto", help="auto, cpu or cuda (default: auto)")
    result.add_argument(
        "--out", type=Path, default=Path("runs", "lecture"), help="folder of the pictures"
    )
    if datasets:
        result.add_argument("--dataset", choices=datasets, help="mnist if there is a --data-dir")
        result.add_argument("--data-dir", type=Path, help="folder with the data set's files")
        result.add_argument(
            "--train-images", type=at_least(1), help="use only the first ones (default: all)"
        )
        result.add_argument("--seed", type=at_least(0), default=0, help="of weights and shuffling")
    return result


def at_least(minimum: int) -> Callable[[str], int]:
    """The type of an option that is an int of at least ``minimum``."""

    def integer(text: str) -> int:
        if int(text) < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {text}")
        return int(text)

    return integer


def run(main: Callable[[argparse.Namespace], object], parser: Parser) -> None:
    """Call ``main`` with the options; what is wrong with the input ends the program in one line."""
    in_notebook = "ipykernel" in sys.modules  # whose command line is not ours
    options = parser.parse_args([] if in_notebook else None)
    try:
        options.backend = ac.get_backend(options.backend)
        if getattr(options, "data_dir", None) and not options.data_dir.is_dir():
            raise ValueError(f"--data-dir {options.data_dir} is no folder")
        options.out.mkdir(parents=True, exist_ok=True)
        main(options)
    except (ValueError, OSError, ImportError, ac.BackendUnavailableError) as error:
        parser.error(str(error))


def load_data(options: argparse.Namespace, *, size: int | None = None) -> tuple[str, Dataset]:
    """Name and images of the chosen data set.

    With ``size`` they are resized to that many pixels. Of the training images the first
    ``--train-images`` are taken.
    """
    name = options.dataset or ("mnist" if options.data_dir else "digits")
    dataset = DATASETS[name](options.data_dir)
    used = slice(options.train_images)
    dataset = dataset._replace(
        train_images=dataset.train_images[used], train_labels=dataset.train_labels[used]
    )
    if size is not None:
        dataset = dataset._replace(
            train_images=resize(dataset.train_images, size),
            test_images=resize(dataset.test_images, size),
        )
    return name, dataset


def training(
    model: ac.Sequential, dataset: Dataset, *, epochs: int, lr: float, seed: int, batch: int = 64
) -> Iterator[float]:
    """Train with momentum and one cycle of the learning rate; yields the cost of every update."""
    loader = ac.DataLoader(
        dataset.train_images, dataset.train_labels, batch, shuffle=True, seed=seed
    )
    schedule = OneCycle(lr, epochs * len(loader))
    optimizer = ac.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    step = 0
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.lr = schedule(step)
            logits, backward = model.forward(images)
            cost, grad_logits = F.softmax_cross_entropy(logits, labels)
            backward(grad_logits, input_grad=False)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            yield float(cost)


def accuracy(model: ac.Sequential, images: Any, labels: Any, batch: int = 500) -> float:
    """Fraction of the images whose highest output is that of their label."""
    correct = 0
    for start in range(0, len(images), batch):
        outputs = model.backend.to_numpy(model(images[start : start + batch]))
        correct += int((outputs.argmax(axis=1) == labels[start : start + batch]).sum())
    return correct / len(images)


def save(figure: Figure, path: Path) -> None:
    """Write a picture and say so."""
    figure.savefig(path)
    print(f"wrote {path}")
