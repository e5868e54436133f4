"""Train a network on handwritten digits or clothes; without options on digits that are built in.

    python examples/train_mnist.py
    python examples/train_mnist.py --dataset mnist --model two-layer-cnn --backend cuda

Training images are shifted by up to one pixel, and the learning rate goes through one cycle. The
output folder gets ``history.json``, checkpoints (the last ones and the best) and, with matplotlib
installed, pictures at the end. Ctrl-C and SIGTERM end the training after saving; ``--resume`` goes
on exactly where it stood.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import arraycnn as ac
from arraycnn import functional as F
from arraycnn.data import RandomShift, resize
from arraycnn.schedules import OneCycle
from arraycnn.training import Callback, Trainer, TrainingDivergedError
from arraycnn.training.callbacks import Checkpoints, load_last

DATASETS: dict[str, Callable[..., ac.data.Dataset]] = {
    "digits": lambda data_dir: ac.datasets.digits(),
    "mnist": ac.datasets.mnist,
    "fashion-mnist": ac.datasets.fashion_mnist,
    "kmnist": ac.datasets.kmnist,
}
MODELS: dict[str, Callable[..., ac.Sequential]] = {
    "lenet5": lambda size, **where: ac.models.lenet5(image_size=size, **where),
    "lenet1": lambda size, **where: ac.models.lenet1(**where),
    "two-layer-cnn": lambda size, **where: ac.models.two_layer_cnn(image_size=size, **where),
    "mlp": lambda size, **where: ac.models.mlp(size * size, (128,), **where),
    "resnet": lambda size, **where: ac.models.resnet(20, in_channels=1, **where),
}
# The optimizer and the highest learning rate of its cycle.
OPTIMIZERS: dict[str, tuple[Callable[..., Any], float]] = {
    "sgd": (partial(ac.SGD, momentum=0.9, weight_decay=5e-4), 0.05),
    "adam": (ac.Adam, 0.003),
    "adamw": (ac.AdamW, 0.003),
    "rmsprop": (ac.RMSprop, 0.001),
    "adagrad": (ac.Adagrad, 0.02),
}
CHECKPOINTS = "checkpoints"
SMALL = 16  # the digits of 8×8 pixels are enlarged to this size; lenet1 takes no other


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, without repeating the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def parse_arguments(parser: Parser) -> argparse.Namespace:
    add = parser.add_argument
    add("--backend", choices=("auto", "cpu", "cuda"), default="auto")
    add("--dataset", choices=DATASETS, default="digits")
    add("--model", choices=MODELS, default="lenet5")
    add("--epochs", type=int, help="epochs in all (default: 30 for the digits, else 5)")
    add("--batch-size", type=int, default=64, help="images per update (default: 64)")
    add("--lr", type=float, help="highest learning rate (default: depends on the optimizer)")
    add("--optimizer", choices=OPTIMIZERS, default="sgd")
    add("--seed", type=int, default=0, help="of weights, shuffling and shifts (default: 0)")
    add("--data-dir", type=Path, help="where the data set is, or is downloaded to")
    add("--out", type=Path, help="output folder (default: runs/<dataset>-<model>)")
    add("--save-every", type=int, metavar="N", help="updates per checkpoint (default: an epoch's)")
    add(
        "--keep",
        type=int,
        default=3,
        help="how many checkpoints to keep, and the best (default: 3)",
    )
    add(
        "--resume",
        nargs="?",
        const="last",
        metavar="PATH",
        help="go on from a checkpoint (default: last, the last one in the output folder)",
    )
    add("--graph", action="store_true", help="replay training steps as a CUDA graph")
    add("--no-progress", action="store_true", help="no progress bar, plain lines only")
    add(
        "--plot",
        action=argparse.BooleanOptionalAction,
        help="draw pictures (default: if matplotlib is installed)",
    )
    options = parser.parse_args()
    for name, default in (
        ("epochs", 30 if options.dataset == "digits" else 5),
        ("lr", OPTIMIZERS[options.optimizer][1]),
        ("out", Path("runs", f"{options.dataset}-{options.model}")),
    ):
        if getattr(options, name) is None:
            setattr(options, name, default)
    for name in ("epochs", "batch_size", "save_every", "keep"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if not 0 < options.lr < float("inf"):
        parser.error(f"--lr must be a finite number above 0, got {options.lr}")
    if options.seed < 0:
        parser.error(f"--seed must be at least 0, got {options.seed}")
    if options.data_dir and not options.data_dir.is_dir():
        parser.error(f"--data-dir {options.data_dir} is no folder; make it, or correct the path")
    return options


def load_data(options: argparse.Namespace) -> ac.data.Dataset:
    """The data set with images of the size and range that the model takes."""
    dataset = DATASETS[options.dataset](data_dir=options.data_dir)
    train_images, test_images = dataset.train_images, dataset.test_images
    if options.model == "lenet1" or (options.dataset == "digits" and options.model != "mlp"):
        train_images, test_images = resize(train_images, SMALL), resize(test_images, SMALL)
    if options.model == "lenet1":
        train_images, test_images = 2 * train_images - 1, 2 * test_images - 1
    return dataset._replace(train_images=train_images, test_images=test_images)


def squared_error(outputs: Any, labels: Any) -> tuple[Any, Any]:
    """LeNet-1's loss ½·Σ(output − target)², with targets of 1 for the label's class, else −1."""
    backend, classes = ac.backend_of(outputs), outputs.shape[1]
    is_label = backend.xp.arange(classes) == backend.asarray(labels)[:, None]  # (N, classes)
    loss, grad = F.mse_loss(outputs, backend.xp.where(is_label, 1, -1).astype(outputs.dtype))
    return loss * (classes / 2), grad * (classes / 2)  # a sum over classes, a mean over images


def resume(trainer: Trainer, loader: ac.DataLoader, options: argparse.Namespace) -> None:
    """Put the training where the checkpoint stands, or refuse with the reason."""
    path = Path(options.resume)
    if options.resume == "last":
        path, _ = load_last(trainer, options.out / CHECKPOINTS)
    else:
        trainer.load(path)
    loader.load_state_dict(trainer.state_dict()["loader"])
    print(f"resumed: {path}, epoch {trainer.epoch + 1}, update {trainer.step}", flush=True)


class Report(Callback):
    """A line for each epoch, the files that are written after it, and a bar where there can be."""

    def __init__(self, options: argparse.Namespace, batches: int) -> None:
        self.options = options
        self.bar: Any = None
        if not options.no_progress and sys.stdout.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            total = options.epochs * batches
            self.bar = tqdm(total=total, unit="batch", leave=False, file=sys.stdout)

    def on_step(self, trainer: Trainer) -> None:
        if self.bar is not None and self.bar.update(trainer.step - self.bar.n):  # it was drawn
            self.bar.set_postfix(loss=f"{trainer.train_loss:.4f}", refresh=False)

    def on_epoch(self, trainer: Trainer) -> None:
        record = trainer.history[-1]
        line = (
            f"epoch {record['epoch']:{len(str(self.options.epochs))}}/{self.options.epochs}  "
            f"train: loss {record['train_loss']:.4f}, accuracy {record['train_accuracy']:6.2%}  "
            f"test: loss {record['test_loss']:.4f}, accuracy {record['test_accuracy']:6.2%}  "
            f"{record['seconds']:.1f} s"
        )
        if self.bar is None:
            print(line, flush=True)
        else:
            self.bar.write(line)
        text = json.dumps(trainer.history, indent=1)
        (self.options.out / "history.json").write_text(text + "\n", encoding="utf-8")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def draw(options: argparse.Namespace, trainer: Trainer, dataset: ac.data.Dataset) -> None:
    import plots  # needs matplotlib

    title = f"{options.model} on {options.dataset}"
    first = next(p.data for p in trainer.model.parameters() if p.data.ndim > 1)
    backend = ac.backend_of(first)
    scores = np.concatenate(
        [
            backend.to_numpy(trainer.model(dataset.test_images[i : i + 256]))
            for i in range(0, len(dataset.test_images), 256)
        ]
    )
    matrix = ac.confusion_matrix(scores, dataset.test_labels)
    shape = dataset.test_images.shape[1:] if first.ndim == 2 else first.shape[1:]
    filters = backend.to_numpy(first).reshape(-1, *shape)  # (filters, 1, KH, KW)
    plots.learning_curve(trainer.history, title, options.out / "learning_curve.png")
    plots.confusion(matrix, dataset.class_names, title, options.out / "confusion_matrix.png")
    plots.filters(filters[:, 0], title, options.out / "filters.png")


def wants_plots(parser: Parser, wanted: bool | None) -> bool:
    if wanted is False:
        return False
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        if wanted:
            parser.error("--plot needs matplotlib; install it with pip install matplotlib")
        return False
    return True


def main() -> int:
    parser = Parser(prog="train_mnist.py", description=__doc__.split("\n")[0])
    options = parse_arguments(parser)
    plotting = wants_plots(parser, options.plot)
    try:
        backend = ac.get_backend(options.backend)
        print(f"backend: {backend.describe()}", flush=True)
        dataset = load_data(options)
        size = dataset.train_images.shape[-1]
        model = MODELS[options.model](size, seed=options.seed, backend=backend)
        loader = ac.DataLoader(
            dataset.train_images,
            dataset.train_labels,
            options.batch_size,
            shuffle=True,
            seed=options.seed,
            transform=RandomShift(1, fill=-1.0 if options.model == "lenet1" else 0.0),
        )
        report = Report(options, len(loader))
        checkpoints = Checkpoints(
            options.out / CHECKPOINTS, every=options.save_every, keep=options.keep
        )
        trainer = Trainer(
            model,
            OPTIMIZERS[options.optimizer][0](model.parameters(), options.lr),
            loss=squared_error if options.model == "lenet1" else F.softmax_cross_entropy,
            schedule=OneCycle(options.lr, options.epochs * len(loader)),
            callbacks=[report, checkpoints],
            check_every=1 if backend.name == "cpu" else 50,
            graph=options.graph,
        )
        options.out.mkdir(parents=True, exist_ok=True)
        if options.resume:
            resume(trainer, loader, options)
    except (ac.BackendUnavailableError, ValueError, OSError) as error:
        parser.error(str(error))

    print(
        f"data: {options.dataset}, {len(dataset.train_labels)} training and "
        f"{len(dataset.test_labels)} test images of {size}×{size} pixels\n"
        f"model: {options.model}, {sum(p.size for p in model.parameters()):,} parameters",
        flush=True,
    )
    status = 0
    try:
        trainer.fit(loader, options.epochs, test=(dataset.test_images, dataset.test_labels))
    except (TrainingDivergedError, ac.DeviceMemoryError, ac.GraphCaptureError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        status = 1
    finally:
        report.close()
    if trainer.signal is not None:
        print(f"interrupted in epoch {trainer.epoch + 1}; go on with --resume", file=sys.stderr)
        status = 128 + trainer.signal
    if trainer.history:
        if plotting:
            draw(options, trainer, dataset)
        accuracy = trainer.history[-1]["test_accuracy"]
        print(f"test accuracy {accuracy:.2%} after {trainer.epoch} epochs; see {options.out}")
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before or after the training
        sys.exit(130)
