"""Numbers out of packed bits, for headers that are not made of bytes."""

from __future__ import annotations


class Bits:
    """Reads bits in the order of AV1 and HEVC (most significant first) or of JPEG XL (least significant first)."""

    def __init__(self, data: bytes, *, least_first: bool = False) -> None:
        self._value = int.from_bytes(data, "little" if least_first else "big")
        self._length = 8 * len(data)
        self._least_first = least_first
        self._position = 0

    def read(self, count: int) -> int:
        """An unsigned integer of so many bits. Raises OverflowError where the data end."""
        start, self._position = self._position, self._position + count
        if self._position > self._length:
            raise OverflowError("the bits are used up")
        shift = start if self._least_first else self._length - self._position
        return self._value >> shift & (1 << count) - 1

    def skip(self, count: int) -> None:
        """Passes over so many bits."""
        self._position += count

    def exp_golomb(self) -> int:
        """ue(v) of ITU-T H.265, section 9.2."""
        zeros = 0
        while not self.read(1):
            zeros += 1
            if zeros > 32:
                raise OverflowError("not an Exp-Golomb number")
        return (1 << zeros) - 1 + self.read(zeros)

    def variable(self) -> int:
        """uvlc() of AV1, section 4.10.3."""
        return self.exp_golomb()
