"""Receptive fields, computed exactly by walking from the output back to the input.

Each layer is a function that takes the first and last position of a stretch of its output, along one axis, to
the first and last position of its input which that stretch is made from. Borders are left out: padding only
repeats positions that are seen already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Layer = Callable[[int, int], tuple[int, int]]


def conv(kernel: int, stride: int = 1) -> Layer:
    """A convolution with padding (kernel - 1) // 2."""
    padding = (kernel - 1) // 2
    return lambda first, last: (first * stride - padding, last * stride - padding + kernel - 1)


def transposed_conv() -> Layer:
    """A transposed convolution of 3x3, stride 2, padding 1, output padding 1: doubles the size."""
    return lambda first, last: (first // 2, (last + 1) // 2)


def pool(size: int, stride: int) -> Layer:
    """Pooling without padding."""
    return lambda first, last: (first * stride, last * stride + size - 1)


def enlarge(factor: int) -> Layer:
    """Nearest upsampling or a pixel shuffle: output position y comes from y // factor."""
    return lambda first, last: (first // factor, last // factor)


def shrink(factor: int) -> Layer:
    """A pixel unshuffle: output position y holds `factor` input positions."""
    return lambda first, last: (first * factor, last * factor + factor - 1)


def interpolate(factor: int, taps: int) -> Layer:
    """Interpolation between the `taps` nearest positions (2: linear, 4: cubic), half-pixel centres.

    An output that lies exactly on an input position is that input.
    """
    more = taps // 2 - 1

    def back(first: int, last: int) -> tuple[int, int]:
        low, exact = divmod(2 * first + 1 - factor, 2 * factor)
        high, beyond = divmod(2 * last + 1 - factor, 2 * factor)
        return low - (more if exact else 0), high + (1 + more if beyond else 0)

    return back


def radius(layers: Sequence[Layer], scale: int, multiple: int = 1) -> int:
    """Farthest input position, counted from its own, that any output position sees through `layers`.

    The layers are in the order of the forward pass; `scale` is what they enlarge by. Networks that shrink
    first treat positions differently within their grid of `multiple` input positions: the worst one counts.
    """
    farthest = 0
    for position in range(scale * multiple):
        first = last = position
        for layer in reversed(layers):
            first, last = layer(first, last)
        centre = position // scale
        farthest = max(farthest, centre - first, last - centre)
    return farthest
