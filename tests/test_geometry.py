"""Window arithmetic against brute-force counting of window positions.

The relationships are those of Dumoulin & Visin, "A guide to convolution arithmetic for deep
learning" (arXiv:1603.07285), with their numbers and letters: input size i, kernel k, stride s,
padding p, dilation d, output size o; i' and o' are those of the transposed convolution.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from arraycnn import geometry

SIZES, KERNELS, STRIDES, PADDINGS, DILATIONS = (
    range(1, 9),
    range(1, 6),
    (1, 2, 3),
    range(5),
    (1, 2, 3),
)


def counted(i: int, k: int, s: int = 1, p: int = 0, d: int = 1) -> int:
    """Slide the kernel from the left end until it sticks out on the right."""
    positions = 0
    while positions * s + (k - 1) * d + 1 <= i + 2 * p:
        positions += 1
    return positions


def connected(i: int, k: int, s: int, p: int, o: int) -> set[tuple[int, int]]:
    """(input, output) elements that a convolution connects."""
    return {(q * s - p + t, q) for q in range(o) for t in range(k) if 0 <= q * s - p + t < i}


# relationship: (choice of i, k, s, p, d that it is about, the guide's formula for o)
CONVOLUTION: dict[int, tuple[Callable[..., bool], Callable[..., int]]] = {
    1: (lambda i, k, s, p, d: s == 1 and p == 0 and d == 1, lambda i, k, s, p, d: (i - k) + 1),
    2: (lambda i, k, s, p, d: s == 1 and d == 1, lambda i, k, s, p, d: (i - k) + 2 * p + 1),
    3: (
        lambda i, k, s, p, d: k % 2 == 1 and s == 1 and p == k // 2 and d == 1,
        lambda i, k, s, p, d: i,
    ),
    4: (lambda i, k, s, p, d: p == k - 1 and s == 1 and d == 1, lambda i, k, s, p, d: i + (k - 1)),
    5: (lambda i, k, s, p, d: p == 0 and d == 1, lambda i, k, s, p, d: (i - k) // s + 1),
    6: (lambda i, k, s, p, d: d == 1, lambda i, k, s, p, d: (i + 2 * p - k) // s + 1),
    7: (lambda i, k, s, p, d: p == 0 and d == 1, lambda i, k, s, p, d: (i - k) // s + 1),  # pooling
    15: (
        lambda i, k, s, p, d: True,
        lambda i, k, s, p, d: (i + 2 * p - k - (k - 1) * (d - 1)) // s + 1,
    ),
}

# relationship: (i, k, s, p of the convolution that is transposed, padding p' of the equivalent
# convolution over the stretched input, the guide's formula for o')
TRANSPOSED: dict[int, tuple[Callable[..., bool], Callable[..., int], Callable[..., int]]] = {
    8: (
        lambda i, k, s, p: s == 1 and p == 0,
        lambda k, p: k - 1,
        lambda i_, k, s, p, a: i_ + (k - 1),
    ),
    9: (
        lambda i, k, s, p: s == 1,
        lambda k, p: k - p - 1,
        lambda i_, k, s, p, a: i_ + (k - 1) - 2 * p,
    ),
    10: (
        lambda i, k, s, p: k % 2 == 1 and s == 1 and p == k // 2,
        lambda k, p: p,
        lambda i_, k, s, p, a: i_,
    ),
    11: (
        lambda i, k, s, p: s == 1 and p == k - 1,
        lambda k, p: 0,
        lambda i_, k, s, p, a: i_ - (k - 1),
    ),
    12: (
        lambda i, k, s, p: p == 0 and (i - k) % s == 0,
        lambda k, p: k - 1,
        lambda i_, k, s, p, a: s * (i_ - 1) + k,
    ),
    13: (
        lambda i, k, s, p: (i + 2 * p - k) % s == 0,
        lambda k, p: k - p - 1,
        lambda i_, k, s, p, a: s * (i_ - 1) + k - 2 * p,
    ),
    14: (
        lambda i, k, s, p: True,
        lambda k, p: k - p - 1,
        lambda i_, k, s, p, a: s * (i_ - 1) + a + k - 2 * p,
    ),
}


def fitting(*ranges: Any) -> Iterator[tuple[int, ...]]:
    """All combinations in which the kernel fits into the padded input."""
    for i, k, s, p, *d in product(*ranges):
        if (k - 1) * (d[0] if d else 1) + 1 <= i + 2 * p:
            yield i, k, s, p, *d


@pytest.mark.parametrize("number", CONVOLUTION)
def test_relationship_of_convolution(number: int) -> None:
    applies, formula = CONVOLUTION[number]
    cases = [c for c in fitting(SIZES, KERNELS, STRIDES, PADDINGS, DILATIONS) if applies(*c)]
    assert len(cases) >= 16
    for i, k, s, p, d in cases:
        size = geometry.conv_output_size(i, k, stride=s, padding=p, dilation=d)
        assert size == (counted(i, k, s, p, d),) == (formula(i, k, s, p, d),)


@pytest.mark.parametrize("number", TRANSPOSED)
def test_relationship_of_transposed_convolution(number: int) -> None:
    applies, equivalent_padding, formula = TRANSPOSED[number]
    # the guide pads the equivalent convolution, hence p < k
    choices = fitting(SIZES, KERNELS, STRIDES, PADDINGS)
    cases = [c for c in choices if c[3] < c[1] and applies(*c)]
    assert len(cases) >= 16
    for i, k, s, p in cases:
        o = counted(i, k, s, p)
        a = (i + 2 * p - k) % s
        size = geometry.conv_transpose_output_size(o, k, stride=s, padding=p, output_padding=a)
        assert size == (i,) == (formula(o, k, s, p, a),)
        # the equivalent direct convolution: s - 1 zeros between inputs, a zeros at the far end
        p_, stretched = equivalent_padding(k, p), (o - 1) * s + 1
        assert counted(stretched + a + 2 * p_, k) == i


@pytest.mark.parametrize("number", TRANSPOSED)
def test_equivalent_convolution_has_the_transposed_connections(number: int) -> None:
    """The guide's p' = k - p - 1 gives the same connectivity, kernel flipped."""
    applies, equivalent_padding, _ = TRANSPOSED[number]
    for i, k, s, p in fitting(range(1, 7), KERNELS, STRIDES, range(3)):
        if p >= k or not applies(i, k, s, p):
            continue
        o, p_ = counted(i, k, s, p), equivalent_padding(k, p)
        direct = {
            (q, (q - p_ + t) // s)
            for q, t in product(range(i), range(k))
            if (q - p_ + t) % s == 0 and 0 <= (q - p_ + t) // s < o
        }
        assert direct == connected(i, k, s, p, o)


def test_figures_of_the_guide() -> None:
    """The worked examples in its captions."""
    assert geometry.conv_output_size(4, 3) == (2,)
    assert geometry.conv_output_size(5, 4, padding=2) == (6,)
    assert geometry.conv_output_size(5, 3, padding=1) == (5,)
    assert geometry.conv_output_size(5, 3, padding=2) == (7,)
    assert geometry.conv_output_size(5, 3, stride=2) == (2,)
    assert geometry.conv_output_size(5, 3, stride=2, padding=1) == (3,)
    assert geometry.conv_output_size(6, 3, stride=2, padding=1) == (3,)
    assert geometry.conv_output_size(7, 3, dilation=2) == (3,)
    transposed = geometry.conv_transpose_output_size
    assert transposed(2, 3) == (4,)
    assert transposed(6, 4, padding=2) == (5,)
    assert transposed(2, 3, stride=2) == (5,)
    assert transposed(3, 3, stride=2, padding=1) == (5,)
    assert transposed(3, 3, stride=2, padding=1, output_padding=1) == (6,)


pairs = st.tuples(st.integers(0, 4), st.integers(0, 4))


@given(
    st.integers(1, 12), st.integers(1, 5), st.integers(1, 4), pairs, st.integers(1, 3),
    st.booleans(),
)  # fmt: skip
def test_output_size_counts_windows(i, k, s, pair, d, ceil_mode) -> None:
    if i + sum(pair) < (k - 1) * d + 1:
        with pytest.raises(ValueError, match="kernel_size"):
            geometry.conv_output_size(i, k, stride=s, padding=(pair,), dilation=d)
        return
    size = geometry.conv_output_size(
        i, k, stride=s, padding=(pair,), dilation=d, ceil_mode=ceil_mode
    )
    assert size == (reference.window_count(i, k, s, pair, d, ceil_mode),)


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))
def test_same_padding_gives_a_stride_fraction(i, k, s, d) -> None:
    """SAME_UPPER: ceil(i / s) outputs with the fewest zeros, the odd one at the end."""
    resolved = geometry.resolve_padding("same", i, k, s, d)
    assert resolved == reference.same_padding((i,), (k,), (s,), (d,))
    size = geometry.conv_output_size(i, k, stride=s, padding="same", dilation=d)
    assert size == (-(-i // s),)


@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 3))
def test_full_padding_sees_every_overlap(i, k, d) -> None:
    extent = (k - 1) * d + 1
    assert geometry.resolve_padding("full", i, k, 1, d) == ((extent - 1, extent - 1),)
    overlaps = {start for start in range(-20, 20) if start < i and start + extent > 0}
    assert geometry.conv_output_size(i, k, padding="full", dilation=d) == (len(overlaps),)


@given(
    st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3)
)  # fmt: skip
def test_transposing_recovers_the_size(i, k, s, p, d) -> None:
    """With the output padding that the floor threw away, every input size comes back."""
    extent = (k - 1) * d + 1
    if i + 2 * p < extent:
        return
    o = geometry.conv_output_size(i, k, stride=s, padding=p, dilation=d)
    lost = (i + 2 * p - extent) % s
    back = geometry.conv_transpose_output_size(
        o, k, stride=s, padding=p, output_padding=lost, dilation=d
    )
    assert back == (i,)


def test_dimensions_do_not_interact() -> None:
    size = geometry.conv_output_size(
        (7, 8, 9), (3, 2, 5), stride=(2, 1, 3), padding=(1, 0, 2), dilation=(1, 3, 1)
    )
    assert size == (counted(7, 3, 2, 1), counted(8, 2, 1, 0, 3), counted(9, 5, 3, 2))
    size = geometry.conv_transpose_output_size(
        (3, 4), (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2)
    )
    assert size == ((3 - 1) * 2 + 3 + 1 - 2, (4 - 1) * 3 + 2 + 2)


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        (2, ((2, 2), (2, 2))),
        ((1, 3), ((1, 1), (3, 3))),
        (((1, 0), (0, 2)), ((1, 0), (0, 2))),
        ([(1, 0), [0, 2]], ((1, 0), (0, 2))),
        ("valid", ((0, 0), (0, 0))),
        ("full", ((2, 2), (3, 3))),
        ("same", ((0, 1), (1, 2))),
    ],
)
def test_every_form_of_padding(padding: Any, expected: tuple) -> None:
    assert geometry.resolve_padding(padding, (6, 7), (3, 4), (2, 1), (1, 1)) == expected


REFUSED: list[tuple[str, dict[str, Any], type[Exception], list[str]]] = [
    ("zero stride", {"stride": 0}, ValueError, ["stride", "0"]),
    ("negative stride", {"stride": (1, -2)}, ValueError, ["stride", "-2"]),
    ("float stride", {"stride": 2.0}, TypeError, ["stride", "2.0"]),
    ("bool stride", {"stride": True}, TypeError, ["stride", "True"]),
    ("text stride", {"stride": "2"}, (TypeError, ValueError), ["stride", "2"]),
    ("missing stride", {"stride": None}, TypeError, ["stride", "None"]),
    ("too many strides", {"stride": (1, 1, 1)}, ValueError, ["stride", "(1, 1, 1)"]),
    ("negative padding", {"padding": -1}, ValueError, ["padding", "-1"]),
    ("negative after", {"padding": ((0, 0), (0, -3))}, ValueError, ["padding", "-3"]),
    ("half a pair", {"padding": ((0, 0), 1)}, ValueError, ["padding"]),
    ("a triple", {"padding": ((0, 0, 0), (1, 1, 1))}, ValueError, ["padding"]),
    ("float padding", {"padding": 0.5}, TypeError, ["padding", "0.5"]),
    ("unknown name", {"padding": "reflect"}, ValueError, ["padding", "reflect", "same", "full"]),
    ("capitals", {"padding": "SAME"}, ValueError, ["padding", "SAME", "same"]),
    ("zero dilation", {"dilation": 0}, ValueError, ["dilation", "0"]),
    ("float dilation", {"dilation": 1.5}, TypeError, ["dilation", "1.5"]),
    ("kernel of zero", {"kernel_size": 0}, ValueError, ["kernel_size", "0"]),
    ("long kernel", {"kernel_size": (3, 8)}, ValueError, ["kernel_size", "8", "6"]),
    ("dilated kernel", {"dilation": 3}, ValueError, ["kernel_size", "dilation", "7"]),
    ("kernel of one size", {"kernel_size": (3,)}, ValueError, ["kernel_size", "(3,)"]),
    ("empty input", {"input_size": (0, 5)}, ValueError, ["input_size", "0"]),
]


@pytest.mark.parametrize("row", REFUSED, ids=[row[0] for row in REFUSED])
def test_refuses(row) -> None:
    _, changes, error, words = row
    arguments = {"input_size": (5, 6), "kernel_size": (3, 3), **changes}
    with pytest.raises(error) as caught:
        geometry.conv_output_size(**arguments)
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


REFUSED_TRANSPOSED: list[tuple[str, dict[str, Any], type[Exception], list[str]]] = [
    ("as large as stride", {"stride": 2, "output_padding": 2}, ValueError, ["output_padding", "2"]),
    ("negative", {"output_padding": -1}, ValueError, ["output_padding", "-1"]),
    ("float", {"stride": 2, "output_padding": 1.0}, TypeError, ["output_padding", "1.0"]),
    ("nothing left", {"input_size": (1, 1), "padding": 2}, ValueError, ["padding"]),
]


@pytest.mark.parametrize("row", REFUSED_TRANSPOSED, ids=[row[0] for row in REFUSED_TRANSPOSED])
def test_refuses_transposed(row) -> None:
    _, changes, error, words = row
    arguments = {"input_size": (5, 6), "kernel_size": (3, 3), **changes}
    with pytest.raises(error) as caught:
        geometry.conv_transpose_output_size(**arguments)
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


def test_numpy_integers_are_integers() -> None:
    size = geometry.conv_output_size(np.int64(5), np.int32(3), stride=np.int64(2))
    assert size == (2,)
    assert all(type(value) is int for value in size)
