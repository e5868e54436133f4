"""Data sets, the reader of their file format, batches and augmentation."""

from arraycnn.data import datasets
from arraycnn.data.augment import Compose, RandomCrop, RandomFlip, RandomShift, resize
from arraycnn.data.datasets import Dataset
from arraycnn.data.idx import read_idx
from arraycnn.data.loader import DataLoader

__all__ = [
    "Compose",
    "DataLoader",
    "Dataset",
    "RandomCrop",
    "RandomFlip",
    "RandomShift",
    "datasets",
    "read_idx",
    "resize",
]
