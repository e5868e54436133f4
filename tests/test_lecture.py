"""The scripts of the lecture, each in a small setting: their numerical claims hold."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import arraycnn as ac
from arraycnn.backends import Backend

pytest.importorskip("matplotlib")
pytest.importorskip("PIL")

FOLDER = Path(__file__).parent.parent / "examples" / "lecture"
TOPICS = tuple(path.stem for path in sorted(FOLDER.glob("[0-9]*.py")))


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import ``common`` from their own folder."""
    monkeypatch.syspath_prepend(str(FOLDER))


def script(number: int) -> Any:
    """The module of topic ``number``."""
    [path] = FOLDER.glob(f"{number:02}_*.py")
    if path.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[path.stem]


def run(number: int, out: Path, backend: Backend | str, *arguments: str) -> Any:
    """What the script's main returns when it is called with these arguments."""
    module = script(number)
    options = module.parser().parse_args([*arguments, "--out", str(out)])
    options.backend = ac.get_backend(backend)
    return module.main(options)


def test_there_are_ten_topics() -> None:
    assert [int(name[:2]) for name in TOPICS] == list(range(1, 11))


def test_convolution_by_definition_and_libraries(tmp_path: Path, backend: Backend) -> None:
    differences = run(1, tmp_path, backend)
    assert max(differences.values()) < 1e-12
    assert len(differences) == (8 if script(1).scipy_signal else 4)
    assert {path.name for path in tmp_path.iterdir()} == {
        "convolution_1d.png",
        "convolution_2d.png",
    }


def test_convolution_and_correlation_of_the_definition() -> None:
    x, w = np.array([0.0, 1.0, 0.0]), np.array([1.0, 2.0, 3.0])
    assert script(1).convolution(x, w).tolist() == [0, 1, 2, 3, 0]
    assert script(1).cross_correlation(x, w).tolist() == [0, 3, 2, 1, 0]


def test_arithmetic(tmp_path: Path) -> None:
    counts = run(2, tmp_path, "cpu", "--animations", "1")
    assert len(counts) == 15
    assert min(counts.values()) >= 27
    cpu = ac.get_backend("cpu")
    sizes = [len(script(2).slide(case, cpu).result) for case in script(2).CASES]
    assert sizes == [2, 6, 5, 7, 2, 3, 3, 4, 5, 5, 5, 5, 5, 6]
    from PIL import Image

    with Image.open(tmp_path / "arithmetic_no_padding_unit_stride.gif") as animation:
        assert animation.n_frames == 4


def test_a_transposed_convolution_is_the_convolution_that_is_drawn(backend: Backend) -> None:
    lecture = script(2)
    for case in lecture.CASES:
        drawn = lecture.slide(case, backend)
        image = np.nan_to_num(drawn.image)[None, None]
        settings = {"stride": drawn.stride, "dilation": drawn.dilation}
        kernel = np.ascontiguousarray(drawn.kernel)[None, None]
        np.testing.assert_array_equal(
            ac.functional.conv2d(image, kernel, **settings)[0, 0], drawn.result
        )


@pytest.mark.parametrize("seed", range(20))
def test_waldo_is_found(seed: int) -> None:
    lecture, backend = script(3), ac.get_backend("cpu")
    picture, place = lecture.crowd(seed, 500, 800)
    response = lecture.normalised(picture, lecture.template(), backend)
    assert lecture.best(response) == place
    assert response.max() <= 1.0001


def test_waldo_in_the_large_crowd(tmp_path: Path) -> None:
    found, place = run(3, tmp_path, "cpu")
    assert found == place


def test_normalised_response_of_the_definition(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    picture = rng.random((3, 20, 24), np.float32)
    picture[:, 12:, 14:] = 0.5  # flat: no pattern
    sought = rng.random((3, 5, 4), np.float32)
    response = script(3).normalised(picture, sought, backend)
    for (row, column), value in np.ndenumerate(response):
        window = picture[:, row : row + 5, column : column + 4]
        a, b = window - window.mean(), sought - sought.mean()
        norm = np.sqrt((a * a).sum() * (b * b).sum())
        expected = (a * b).sum() / norm if norm > 1e-3 else 0
        assert abs(value - expected) < 1e-4


def test_waldo_in_files(tmp_path: Path) -> None:
    from PIL import Image

    lecture = script(3)
    picture, place = lecture.crowd(0, 300, 400)
    for name, pixels in (("image", picture), ("template", lecture.template())):
        levels = np.round(255 * pixels).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(levels).save(tmp_path / f"{name}.png")
    files = [f"--{name}={tmp_path / name}.png" for name in ("image", "template")]
    found, _ = run(3, tmp_path, "cpu", *files)
    assert found == place
    files = [f"--image={tmp_path}/template.png", f"--template={tmp_path}/image.png"]
    with pytest.raises(ValueError, match="the template has 400×300 pixels and the picture only"):
        run(3, tmp_path, "cpu", *files)


def test_multichannel(tmp_path: Path, backend: Backend) -> None:
    parts = run(4, tmp_path, backend)
    assert parts.stacked.shape == (3, 3, 3)
    np.testing.assert_array_equal(parts.sums, parts.stacked)


def test_im2col(tmp_path: Path, backend: Backend) -> None:
    explanations = run(5, tmp_path, backend)
    first = explanations["im2col"]
    assert first.index.tolist() == [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_why_convolution(tmp_path: Path, backend: Backend) -> None:
    matrix, costs, errors = run(6, tmp_path, backend)
    assert ((matrix != 0).sum(axis=1) == 9).all()
    assert len(np.unique(matrix[matrix != 0])) == 9
    assert errors["convolution"] < 1e-5 < errors["dense layer"]
    edges = costs[-1]
    assert (edges.conv_parameters, edges.dense_parameters) == (2, 280 * 320 * 280 * 319)


def test_the_matrix_is_the_convolution(backend: Backend, rng: np.random.Generator) -> None:
    kernel, image = rng.standard_normal((3, 2)), rng.standard_normal((5, 6))
    product = script(6).toeplitz(kernel, 5, 6, backend) @ image.ravel()
    expected = ac.functional.conv2d(image[None, None], kernel[None, None])
    np.testing.assert_allclose(product, expected.ravel(), atol=1e-12)


def test_pooling_loses_least_under_shifts(tmp_path: Path) -> None:
    accuracies, changes, error = run(7, tmp_path, "cpu", "--seeds", "2", "--epochs", "6")
    means = {name: values.mean(axis=0) for name, values in accuracies.items()}
    pooled = means.pop("CNN with pooling")
    for values in means.values():
        assert (pooled[1:3] > values[1:3]).all()
        assert pooled[0] - pooled[1] < values[0] - values[1]
    assert error < 1e-5
    image, convolved, pooled_once, *_ = changes.values()
    assert pooled_once[1] < convolved[1] < image[1]


def test_lenet(tmp_path: Path) -> None:
    results = run(8, tmp_path, "cpu", "--passes", "3", "--epochs", "4")
    loss, errors = results["lenet1"]["test"]
    assert loss < 0.12
    assert errors < 0.1
    assert results["lenet5"] > 0.93
    assert {path.name for path in tmp_path.iterdir()} == {
        "lenet_architecture.png",
        "lenet_features.png",
    }


def test_mean_convergence(tmp_path: Path) -> None:
    curves = run(9, tmp_path, "cpu", "--seeds", "2", "--epochs", "8")
    cnn, dense = curves.values()
    assert cnn.costs.shape == (2, 8 * 23)
    assert cnn.final.mean() > dense.final.mean() > 0.93
    assert cnn.costs[:, -20:].mean() < dense.costs[:, -20:].mean()


def test_running_mean() -> None:
    costs = np.array([[4.0, 2.0, 0.0, 2.0]])
    assert script(9).smooth(costs, share=0.5).tolist() == [[4, 3, 1, 1]]


def test_depth(tmp_path: Path) -> None:
    points = run(10, tmp_path, "cpu", "--seeds", "1", "--epochs", "8", "--widths", "3")
    best = {name: family.accuracies.max() for name, family in points.items()}
    assert min(best.values()) > 0.9
    assert all((np.diff(family.parameters) > 0).all() for family in points.values())


@pytest.mark.parametrize(
    ("number", "arguments", "message"),
    [
        (3, ["--image", "none.png", "--template", "none.png"], "No such file"),
        (3, ["--image", "none.png"], "belong together"),
        (7, ["--dataset", "imagenet"], "invalid choice: 'imagenet'"),
        (8, ["--data-dir", "nowhere"], "--data-dir nowhere is no folder"),
        (9, ["--seeds", "0"], "must be at least 1, got 0"),
        (10, ["--dataset", "svhn"], "--dataset svhn needs --data-dir"),
        (1, ["--backend", "tpu"], "backend must be 'cpu'"),
    ],
)
def test_bad_input_is_answered_in_one_line(
    number: int,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = script(number)
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments, "--out", str(tmp_path)])
    common: ModuleType = sys.modules["common"]
    with pytest.raises(SystemExit) as ended:
        common.run(module.main, module.parser())
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in error
    assert error.count("\n") == 1
