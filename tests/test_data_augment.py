"""Augmentation and resizing, against loops written out."""

import numpy as np
import pytest

from arraycnn.data import Compose, RandomCrop, RandomFlip, RandomShift, resize


def some_images(count=50, channels=2, height=6, width=7, dtype=np.float32):
    """No two pixels of a batch are equal and none is zero."""
    size = count * channels * height * width
    return (np.arange(size, dtype=dtype) + 1).reshape(count, channels, height, width)


def rng(seed=0):
    return np.random.default_rng(seed)


def shifted(image, down, right, fill):
    result = np.full_like(image, fill)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                result[:, y, x] = image[:, y - down, x - right]
    return result


def test_each_image_is_shifted_by_its_own_amount_within_the_limit():
    images = some_images()
    seen = set()
    for image, result in zip(images, RandomShift(2, fill=-5)(images, rng()), strict=True):
        matches = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if np.array_equal(shifted(image, down, right, -5), result)
        ]
        assert len(matches) == 1
        seen.update(matches)
    assert len(seen) > 15  # of the 25 shifts


def test_a_crop_is_a_window_of_the_image():
    images = some_images(count=60)
    results = RandomCrop((4, 5))(images, rng())
    assert results.shape == (60, 2, 4, 5)
    corners = set()
    for image, result in zip(images, results, strict=True):
        y, x = np.argwhere(image[0] == result[0, 0, 0])[0]
        np.testing.assert_array_equal(result, image[:, y : y + 4, x : x + 5])
        corners.add((int(y), int(x)))
    assert corners == {(y, x) for y in range(3) for x in range(3)}


def test_a_crop_with_padding_is_a_shift():
    images = some_images(height=7)
    np.testing.assert_array_equal(
        RandomCrop(7, padding=2)(images, rng(4)), RandomShift(2)(images, rng(4))
    )


def test_flips_mirror_left_to_right_with_the_given_probability():
    images = some_images(count=400)
    results = RandomFlip(0.25)(images, rng())
    mirrored = [np.array_equal(r, i[..., ::-1]) for i, r in zip(images, results, strict=True)]
    kept = [np.array_equal(r, i) for i, r in zip(images, results, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 70 < sum(mirrored) < 130
    np.testing.assert_array_equal(RandomFlip(0)(images, rng()), images)
    np.testing.assert_array_equal(RandomFlip(1)(images, rng()), images[..., ::-1])


def test_compose_applies_its_transforms_in_order_with_one_generator():
    images = some_images()
    first, second = RandomCrop(5), RandomFlip()
    generator = rng(9)
    expected = second(first(images, generator), generator)
    np.testing.assert_array_equal(Compose(first, second)(images, rng(9)), expected)
    assert Compose()(images, rng()) is images
    assert repr(Compose(RandomShift(1), second)) == (
        "Compose(RandomShift(pixels=1, fill=0.0), RandomFlip(p=0.5))"
    )


TRANSFORMS = [
    RandomShift(2),
    RandomShift(0),
    RandomCrop(4, padding=1),
    RandomFlip(),
    Compose(RandomShift(1), RandomFlip()),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_transforms_are_pure_and_keep_the_dtype(transform, dtype):
    images = some_images(count=3, dtype=dtype)
    before = images.copy()
    images.flags.writeable = False
    result = transform(images, rng(1))
    assert result.dtype == dtype
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(transform(images, rng(1)), result)
    assert not np.shares_memory(result, images)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_an_empty_batch_stays_empty(transform):
    assert len(transform(some_images(count=0), rng())) == 0


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_images_of_another_rank_are_refused(transform):
    with pytest.raises(ValueError, match=r"images must have 4 dimensions.*got shape \(6, 7\)"):
        transform(np.zeros((6, 7), np.float32), rng())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RandomShift(-1), ValueError, "pixels must be at least 0, got -1"),
        (lambda: RandomShift(1.5), TypeError, r"pixels must be an int, got 1\.5"),
        (lambda: RandomShift(1, fill="0"), TypeError, "fill must be a number"),
        (lambda: RandomShift(1, fill=np.nan), ValueError, "fill must be a finite number"),
        (lambda: RandomCrop(0), ValueError, "size must be at least 1"),
        (lambda: RandomCrop((1, 2, 3)), ValueError, "size must be an int or one int for each"),
        (lambda: RandomCrop(4, padding=-1), ValueError, "padding must be at least 0, got -1"),
        (
            lambda: RandomFlip(1.5),
            ValueError,
            r"p is a probability and must be at most 1, got 1\.5",
        ),
        (lambda: RandomFlip(-0.1), ValueError, "p must be a finite number of at least 0"),
        (lambda: Compose([RandomFlip()]), TypeError, "without a list"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_crop_larger_than_the_image_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"image of \(8, 9\) pixels, got \(9, 9\)"):
        RandomCrop(9, padding=1)(some_images(), rng())


def bilinear(image, height, width):
    """Each new pixel from the four around its centre, in float64."""
    old_height, old_width = image.shape
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * old_height / height - 0.5, 0), old_height - 1)
            u = min(max((x + 0.5) * old_width / width - 0.5, 0), old_width - 1)
            for row in range(old_height):
                for column in range(old_width):
                    weight = max(0, 1 - abs(v - row)) * max(0, 1 - abs(u - column))
                    result[y, x] += weight * image[row, column]
    return result


@pytest.mark.parametrize("size", [(16, 16), (5, 11), (6, 7), (1, 1), (3, 4), 13])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_resize_is_bilinear_with_centres_at_half_integers(size, dtype):
    images = rng().random((2, 3, 6, 7)).astype(dtype)
    result = resize(images, size)
    height, width = size if isinstance(size, tuple) else (size, size)
    assert result.dtype == dtype
    assert result.shape == (2, 3, height, width)
    for n in range(2):
        for c in range(3):
            np.testing.assert_allclose(
                result[n, c], bilinear(images[n, c], height, width), atol=1e-6
            )


def test_resize_gives_pytorch_s_numbers():
    # torch.nn.functional.interpolate(x, size=(4, 3), mode="bilinear", align_corners=False)
    images = np.array([[[[0, 1], [2, 5]]]], dtype=np.float32)
    expected = [[0, 0.5, 1], [0.5, 1.25, 2], [1.5, 2.75, 4], [2, 3.5, 5]]
    np.testing.assert_allclose(resize(images, (4, 3))[0, 0], expected, atol=1e-6)


def test_resize_refuses_what_it_cannot_do():
    with pytest.raises(TypeError, match="images must be floating point, got uint8"):
        resize(some_images(dtype=np.uint8), 8)
    with pytest.raises(ValueError, match="images must have 4 dimensions"):
        resize(np.zeros((6, 7)), 8)
    with pytest.raises(ValueError, match="at least one pixel"):
        resize(np.zeros((1, 1, 0, 7)), 8)
    with pytest.raises(ValueError, match="size must be at least 1"):
        resize(some_images(), 0)
