"""The networks of the literature: their sizes, shapes and peculiarities."""

import numpy as np
import pytest
from numerics import put

import arraycnn as ac
from arraycnn import models
from arraycnn.backends import Backend
from arraycnn.models import ConstantPad2d, PartialConv2d, UnitBias

MODELS = {
    "lenet1": (models.lenet1, (3, 1, 16, 16)),
    "lenet5": (models.lenet5, (3, 1, 28, 28)),
    "two_layer_cnn": (models.two_layer_cnn, (2, 1, 28, 28)),
    "mlp": (models.mlp, (3, 1, 28, 28)),
    "resnet": (models.resnet, (2, 3, 32, 32)),
}
every_model = pytest.mark.parametrize("name", MODELS)


def count(network: ac.Sequential) -> int:
    return sum(parameter.size for parameter in network.parameters())


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (lambda: models.lenet1(), 9_760),  # LeCun et al. 1989: 9760 independent parameters
        (lambda: models.lenet5(), 61_706),
        (lambda: models.two_layer_cnn(), 32 * 26 + 64 * (32 * 25 + 1) + 10 * (64 * 49 + 1)),
        (lambda: models.mlp(), 128 * 785 + 10 * 129),
        (lambda: models.mlp(64, (), 10), 650),
        # 269,722 with zero-padded shortcuts; 1×1 shortcuts and their norms add 576 and 2,176
        (lambda: models.resnet(20), 269_722 + 576 + 2_176),
        (lambda: models.resnet(32), 464_154 + 576 + 2_176),
    ],
)
def test_parameter_counts_are_those_of_the_literature(network, parameters: int) -> None:
    assert count(network()) == parameters


@every_model
def test_forward_and_backward(name: str, backend: Backend) -> None:
    make, shape = MODELS[name]
    network = make(seed=0, backend=backend)
    x = put(backend, np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    assert network.output_shape(shape) == (shape[0], 10)
    assert network(x).shape == (shape[0], 10)
    y, backward = network.forward(x)
    grad = backward(y)
    assert y.shape == (shape[0], 10)
    assert grad.shape == shape
    assert y.dtype == grad.dtype == np.float32
    for key, parameter in network.named_parameters():
        assert parameter.grad.shape == parameter.shape, key
        assert backend.to_numpy(parameter.grad).any(), key


@every_model
def test_batches_of_none_and_one(name: str, backend: Backend) -> None:
    make, shape = MODELS[name]
    network = make(seed=0, backend=backend)
    for batch in (0, 1):
        x = put(backend, np.ones((batch, *shape[1:]), np.float32))
        assert network(x).shape == (batch, 10)


@every_model
def test_seeds(name: str, backend: Backend) -> None:
    make, _ = MODELS[name]
    one, two, other, fresh = (make(seed=seed, backend=backend) for seed in (1, 1, 2, None))
    for key, array in one.state_dict().items():
        np.testing.assert_array_equal(
            backend.to_numpy(array), backend.to_numpy(two.state_dict()[key]), err_msg=key
        )
    for network in (other, fresh):
        weights = backend.to_numpy(network.parameters()[0].data)
        assert not np.array_equal(weights, backend.to_numpy(one.parameters()[0].data))


@every_model
def test_loss_falls_when_training(name: str, backend: Backend) -> None:
    make, shape = MODELS[name]
    network = make(seed=0, backend=backend)
    rng = np.random.default_rng(0)
    x = put(backend, rng.random((8, *shape[1:]), np.float32))
    labels = put(backend, np.arange(8) % 10)
    optimizer = ac.SGD(network.parameters(), lr=0.02)
    losses = []
    for _ in range(5):
        logits, backward = network.forward(x)
        loss, grad = ac.functional.softmax_cross_entropy(logits, labels)
        losses.append(float(loss))
        optimizer.zero_grad()
        backward(grad)
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("network", "shape", "classes"),
    [
        (models.lenet5(3, 7, 32), (2, 3, 32, 32), 7),
        (models.lenet5(image_size=12), (2, 1, 12, 12), 10),
        (models.two_layer_cnn(2, 3, 8), (2, 2, 8, 8), 3),
        (models.mlp(12, (5, 4), 2), (2, 3, 2, 2), 2),
        (models.resnet(8, 1, 4, width=4), (2, 1, 9, 9), 4),
        (models.lenet1(26), (2, 1, 16, 16), 26),
    ],
)
def test_other_sizes(network: ac.Sequential, shape: tuple[int, ...], classes: int) -> None:
    assert network(np.ones(shape, np.float32)).shape == (shape[0], classes)


class TestLenet1:
    def test_layers_have_the_paper_s_sizes(self) -> None:
        table = ac.summary(models.lenet1(), (1, 1, 16, 16))
        by_map = {"H1": slice(1, 3), "H2": slice(5, 7), "H3": slice(9, 10), "out": slice(11, 12)}
        parameters = {
            part: sum(row.parameters for row in table.rows[rows]) for part, rows in by_map.items()
        }
        assert parameters == {"H1": 1_068, "H2": 2_592, "H3": 5_790, "out": 310}
        assert table.rows[3].output_shape == (1, 12, 8, 8)
        assert table.rows[7].output_shape == (1, 12, 4, 4)

    def test_biases_belong_to_units_and_kernels_to_maps(self) -> None:
        network = models.lenet1()
        assert [type(network[index]) for index in (2, 6)] == [UnitBias, UnitBias]
        assert network[2].bias.shape == (12, 8, 8)
        assert network[6].bias.shape == (12, 4, 4)
        assert network[1].bias is None
        assert network[1].weight.shape == (12, 1, 5, 5)

    def test_each_map_of_the_second_layer_sees_8_of_12_maps(self) -> None:
        network = models.lenet1(seed=0)
        layer = network[5]
        assert isinstance(layer, PartialConv2d)
        assert layer.weight.shape == (12, 8, 5, 5)
        assert all(len(set(sources)) == 8 for sources in layer.connections)
        assert sorted(source for sources in layer.connections for source in sources) == sorted(
            8 * list(range(12))
        )
        x = np.zeros((1, 12, 11, 11), np.float32)
        quiet = layer(x)
        for source in range(12):
            excited = x.copy()
            excited[:, source] = 1
            moved = {int(out) for out in np.flatnonzero((layer(excited) != quiet).any((0, 2, 3)))}
            assert moved == {
                out for out, sources in enumerate(layer.connections) if source in sources
            }

    def test_the_border_is_the_background(self) -> None:
        network = models.lenet1()
        for index in (0, 4):
            pad = network[index]
            assert isinstance(pad, ConstantPad2d)
            y = pad(np.zeros((1, 1, 3, 3), np.float32))
            assert y.sum() == -(6 * 6 - 3 * 3)
            np.testing.assert_array_equal(y[0, 0, 1:4, 1:4], 0)

    def test_weights_start_within_2_4_over_fan_in(self) -> None:
        network = models.lenet1(seed=0)
        for index, fan_in in ((1, 25), (5, 200), (9, 192), (11, 30)):
            largest = np.abs(network[index].weight.data).max()
            assert 0.9 * 2.4 / fan_in < largest <= 2.4 / fan_in

    def test_output_lies_within_the_scaled_tanh(self) -> None:
        network = models.lenet1(seed=0)
        y = network(np.random.default_rng(0).uniform(-1, 1, (4, 1, 16, 16)).astype(np.float32))
        assert np.abs(y).max() < 1.7159

    def test_learns_targets_of_minus_one_and_one(self) -> None:
        network = models.lenet1(seed=0)
        rng = np.random.default_rng(0)
        images = rng.uniform(-1, 1, (10, 1, 16, 16)).astype(np.float32)
        targets = (2 * np.eye(10) - 1).astype(np.float32)
        optimizer = ac.SGD(network.parameters(), lr=0.1)
        for _ in range(100):
            for index in range(10):
                y, backward = network.forward(images[index : index + 1])
                _, grad = ac.functional.mse_loss(y, targets[index : index + 1])
                optimizer.zero_grad()
                backward(grad, input_grad=False)
                optimizer.step()
        assert (network(images).argmax(axis=1) == np.arange(10)).all()


class TestResnet:
    def test_depth_counts_the_weighted_layers_on_the_path(self) -> None:
        for depth in (8, 20, 32):
            names = [name for name, _ in models.resnet(depth).named_parameters()]
            weighted = [
                name for name in names if name.endswith("weight") and "shortcut" not in name
            ]
            norms = 1 + 2 * (depth - 2) // 2
            assert len(weighted) - norms == depth

    def test_stages_halve_the_image_and_double_the_maps(self) -> None:
        rows = ac.summary(models.resnet(20), (1, 3, 32, 32)).rows
        shapes = list(dict.fromkeys(row.output_shape for row in rows))
        assert shapes == [(1, 16, 32, 32), (1, 32, 16, 16), (1, 64, 8, 8), (1, 64), (1, 10)]


class TestMistakes:
    @pytest.mark.parametrize("depth", [2, 18, 21, 51])
    def test_depth_that_is_not_6n_plus_2(self, depth: int) -> None:
        with pytest.raises(ValueError, match=rf"depth must be 6n \+ 2 .* got {depth}"):
            models.resnet(depth)

    @pytest.mark.parametrize(
        ("make", "size"), [(models.lenet5, 11), (models.lenet5, 1), (models.two_layer_cnn, 3)]
    )
    def test_images_that_are_too_small(self, make, size: int) -> None:
        with pytest.raises(ValueError, match=rf"image_size {size} is too small for .*enlarge"):
            make(image_size=size)

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: models.resnet("20"), TypeError, "depth must be an int"),
            (lambda: models.resnet(0), ValueError, "depth must be at least 1"),
            (lambda: models.resnet(width=0), ValueError, "width must be at least 1"),
            (lambda: models.resnet(num_classes=0), ValueError, "num_classes must be at least 1"),
            (lambda: models.resnet(in_channels=0), ValueError, "in_channels must be at least 1"),
            (lambda: models.lenet5(image_size=0), ValueError, "image_size must be at least 1"),
            (lambda: models.lenet5(image_size=28.0), TypeError, "image_size must be an int"),
            (lambda: models.lenet5(in_channels=0), ValueError, "in_channels must be at least 1"),
            (lambda: models.lenet5(num_classes=0), ValueError, "num_classes must be at least 1"),
            (lambda: models.lenet1(num_classes=0), ValueError, "num_classes must be at least 1"),
            (lambda: models.two_layer_cnn(num_classes=0), ValueError, "num_classes must be at"),
            (lambda: models.mlp(num_classes=0), ValueError, "num_classes must be at least 1"),
            (lambda: models.mlp(in_features=0), ValueError, "in_features must be at least 1"),
            (lambda: models.mlp(hidden=128), TypeError, r"hidden must be .*\(128,\).* got 128"),
            (
                lambda: models.mlp(hidden=(0,)),
                ValueError,
                "each width in hidden must be at least 1, got 0",
            ),
            (lambda: models.mlp(hidden="ab"), TypeError, "hidden must be"),
            (lambda: models.lenet5(seed=-1), ValueError, "seed must be at least 0"),
            (lambda: models.lenet5(seed=1.5), TypeError, "seed must be an int"),
            (lambda: models.lenet5(backend="gpu"), ValueError, "backend must be"),
        ],
    )
    def test_bad_arguments(self, make, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            make()

    def test_images_of_another_size_or_number_of_channels(self) -> None:
        with pytest.raises(ValueError, match=r"x has 3 channels"):
            models.lenet5()(np.ones((2, 3, 28, 28), np.float32))
        with pytest.raises(ValueError, match=r"x must be \(N, 400\) .* got \(2, 576\)"):
            models.lenet5()(np.ones((2, 1, 32, 32), np.float32))
        with pytest.raises(ValueError, match=r"x must have shape \(12, 8, 8\)"):
            models.lenet1()(np.ones((2, 1, 28, 28), np.float32))
