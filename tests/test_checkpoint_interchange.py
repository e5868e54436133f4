"""Weights from PyTorch, Keras and safetensors: the same logits as there."""

import json
import os
import struct
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import arraycnn as ac

ORACLE = Path(__file__).parent / "oracle"
DATA = dict(np.load(ORACLE / "interchange.npz"))
KERAS = ORACLE / "keras.weights.h5"
IMAGES = DATA["images"]  # (4, 3, 12, 12)
TORCH_STATE = {
    name.removeprefix("torch/state/"): array
    for name, array in DATA.items()
    if name.startswith("torch/state/")
}


def network(backend="cpu", eps=1e-5):
    return ac.Sequential(
        ac.Conv2d(3, 4, 3), ac.BatchNorm(4, eps=eps), ac.ReLU(), ac.MaxPool2d(2),
        ac.Conv2d(4, 6, (2, 3), stride=2), ac.ReLU(),
        ac.ConvTranspose2d(6, 3, (3, 2), stride=2), ac.Flatten(),
        ac.Dense(60, 7, bias=False), ac.BatchNorm(7, eps=eps), ac.ReLU(), ac.Dense(7, 5),
        seed=3, backend=backend,
    )  # fmt: skip


def assert_logits(model, expected):
    logits = model.layers[0].backend.to_numpy(model(IMAGES))
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def assert_unchanged(model):
    for name, array in network().state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[name], array)


class TestTorch:
    def test_state_dict_of_arrays(self, backend):
        model = network(backend)
        model.load_state_dict(TORCH_STATE)
        assert_logits(model, DATA["torch/logits"])

    def test_state_dict_of_tensors(self, backend):
        """What a PyTorch tensor looks like to us, one that requires a gradient."""

        class Tensor:
            def __init__(self, array):
                self.array = array

            def detach(self):
                return self

            def cpu(self):
                return self

            def __array__(self, dtype=None, copy=None):
                return self.array

        model = network(backend)
        model.load_state_dict({name: Tensor(array) for name, array in TORCH_STATE.items()})
        assert_logits(model, DATA["torch/logits"])


class TestSafetensors:
    @pytest.fixture(autouse=True)
    def _package(self):
        pytest.importorskip("safetensors")

    def test_round_trip_is_bit_identical(self, backend, tmp_path):
        path = tmp_path / "model.safetensors"
        model = network(backend)
        model.load_state_dict(TORCH_STATE)
        model.save_safetensors(path)
        other = network("cpu")
        other.load_safetensors(path)
        for name, array in other.state_dict().items():
            np.testing.assert_array_equal(array, TORCH_STATE[name], strict=True)
        assert os.listdir(tmp_path) == ["model.safetensors"]

    def test_file_that_pytorch_wrote(self, backend, tmp_path):
        import safetensors.numpy

        safetensors.numpy.save_file(TORCH_STATE, tmp_path / "torch.safetensors")
        model = network(backend)
        model.load_safetensors(tmp_path / "torch.safetensors")
        assert_logits(model, DATA["torch/logits"])

    def test_what_pytorch_reads(self, tmp_path):
        """Names and shapes are PyTorch's."""
        network().save_safetensors(tmp_path / "model.safetensors")
        data = (tmp_path / "model.safetensors").read_bytes()
        header = json.loads(data[8 : 8 + struct.unpack_from("<Q", data)[0]])
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        assert shapes == {name: array.shape for name, array in TORCH_STATE.items()}

    def test_batch_last_views_are_written_in_order(self, tmp_path):
        model = ac.Dense(3, 2)
        model.weight.data = np.arange(6, dtype=np.float32).reshape(3, 2).T
        model.save_safetensors(tmp_path / "x")
        other = ac.Dense(3, 2)
        other.load_safetensors(tmp_path / "x")
        np.testing.assert_array_equal(other.weight.data, model.weight.data)

    def test_another_network(self, tmp_path):
        ac.Sequential(ac.Dense(2, 3), ac.Dense(3, 4)).save_safetensors(tmp_path / "x")
        model = ac.Sequential(ac.Dense(2, 3), ac.ReLU(), ac.Dense(3, 5))
        with pytest.raises(ac.CheckpointError, match=r"missing: 2\.weight, 2\.bias; unexpected: 1"):
            model.load_safetensors(tmp_path / "x")
        model.load_safetensors(tmp_path / "x", strict=False)

    @pytest.mark.parametrize("data", [b"", b"x" * 100, struct.pack("<Q", 1 << 60) + b"{}"])
    def test_damaged(self, data, tmp_path):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(ac.CheckpointError, match="not readable as safetensors"):
            network().load_safetensors(tmp_path / "x")

    def test_truncated(self, tmp_path):
        network().save_safetensors(tmp_path / "x")
        os.truncate(tmp_path / "x", 1000)
        with pytest.raises(ac.CheckpointError, match="not readable as safetensors"):
            network().load_safetensors(tmp_path / "x")

    def test_missing_file_and_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            network().load_safetensors(tmp_path / "nothing")
        with pytest.raises(ac.CheckpointError, match="regular file"):
            network().load_safetensors(tmp_path)
        with pytest.raises(FileNotFoundError, match="there is no directory"):
            network().save_safetensors(tmp_path / "nowhere" / "x")


def test_without_the_package_safetensors(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"pip install 'arraycnn\[safetensors\]'"):
        network().save_safetensors(tmp_path / "x")


class TestKeras:
    def test_logits(self, backend):
        model = network(backend, eps=1e-3)
        ac.load_keras_weights(model, KERAS, IMAGES.shape)
        assert_logits(model, DATA["keras/logits"])

    def test_without_the_input_shape_rows_would_be_in_the_wrong_order(self):
        """The order of the dense layer's rows matters in this oracle."""
        model = network(eps=1e-3)
        ac.load_keras_weights(model, KERAS, IMAGES.shape)
        rows = model.layers[8].weight.data
        model.layers[8].weight.data = rows.reshape(7, 3, 20).transpose(0, 2, 1).reshape(7, 60)
        with pytest.raises(AssertionError):
            assert_logits(model, DATA["keras/logits"])

    def test_another_network(self):
        model = ac.Sequential(*network().layers[:-1], ac.ReLU())
        with pytest.raises(ac.CheckpointError, match=r"the layers with weights are \[.*'dense_1'"):
            ac.load_keras_weights(model, KERAS, IMAGES.shape)

    def test_other_shapes(self):
        model = ac.Sequential(*network().layers[:-1], ac.Dense(7, 6, seed=0))
        with pytest.raises(ac.CheckpointError, match=r"must be \(7, 6\), got \(7, 5\)"):
            ac.load_keras_weights(model, KERAS, IMAGES.shape)
        for name, array in network().state_dict().items():
            if not name.startswith("11."):
                np.testing.assert_array_equal(model.state_dict()[name], array)

    def test_bias_where_there_is_none(self):
        layers = list(network().layers)
        layers[8] = ac.Dense(60, 7)
        with pytest.raises(ac.CheckpointError, match="dense/vars must have 2 variables, got 1"):
            ac.load_keras_weights(ac.Sequential(*layers), KERAS, IMAGES.shape)

    def test_layer_that_keras_does_not_have(self):
        with pytest.raises(ac.CheckpointError, match="0 is a UnitBias, which Keras does not have"):
            ac.load_keras_weights(ac.Sequential(ac.UnitBias((3, 12, 12))), KERAS, IMAGES.shape)

    def test_wrong_input_shape(self):
        with pytest.raises(ValueError, match=r"expects \(N, 60\), got \(1, 588\)"):
            ac.load_keras_weights(network(), KERAS, (1, 3, 99, 12))

    @pytest.mark.parametrize("data", [b"", b"x" * 1000])
    def test_no_hdf5(self, data, tmp_path):
        (tmp_path / "x.h5").write_bytes(data)
        with pytest.raises(ac.CheckpointError, match=r"x\.h5: not readable as HDF5"):
            ac.load_keras_weights(network(), tmp_path / "x.h5", IMAGES.shape)

    @pytest.mark.parametrize("share", range(5, 100, 10))
    def test_truncated(self, share, tmp_path):
        data = KERAS.read_bytes()
        (tmp_path / "x.h5").write_bytes(data[: len(data) * share // 100])
        model = network()
        with pytest.raises(ac.CheckpointError):
            ac.load_keras_weights(model, tmp_path / "x.h5", IMAGES.shape)
        assert_unchanged(model)

    def test_storage_elsewhere(self, tmp_path):
        """Numbers in another file are neither read nor taken for zeros."""
        path = tmp_path / "x.h5"
        path.write_bytes(KERAS.read_bytes())
        with h5py.File(path, "r+") as file:
            name = "layers/dense_1/vars/0"
            del file[name]
            file.create_dataset(name, (7, 5), "<f4", external=[("/etc/passwd", 0, 140)])
        model = network()
        with pytest.raises(ac.CheckpointError, match="its numbers are not in the file"):
            ac.load_keras_weights(model, path, IMAGES.shape)
        assert_unchanged(model)

    @pytest.mark.parametrize(
        ("replace", "rule"),
        [
            (h5py.ExternalLink("/etc/passwd", "/x"), "not readable as HDF5"),
            (h5py.SoftLink("/layers/dense/vars/0"), r"shape must be \(7, 5\), got \(60, 7\)"),
            (np.zeros((7, 5), "<i4"), "type must be one of .*, got int32"),
            (["a", "b"], "type must be one of .*, got object"),
            (h5py.Empty("<f4"), "not readable as HDF5"),
        ],
        ids=["external", "soft", "integers", "text", "empty"],
    )
    def test_hostile(self, replace, rule, tmp_path):
        path = tmp_path / "x.h5"
        path.write_bytes(KERAS.read_bytes())
        with h5py.File(path, "r+") as file:
            del file["layers/dense_1/vars/0"]
            file["layers/dense_1/vars/0"] = replace
        model = network()
        with pytest.raises(ac.CheckpointError, match=rule):
            ac.load_keras_weights(model, path, IMAGES.shape)
        assert_unchanged(model)
