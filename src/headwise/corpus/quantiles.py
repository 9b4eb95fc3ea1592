"""The exact k-th largest of numbers that lie in many pieces, without sorting: histograms of 16-bit digits that add up.

Each number becomes an unsigned integer so that the order stays the same. Its first 16 bits are counted in 65,536 bins; the bin of the cut is known
then, and a second reading counts the last 16 bits inside it. Histograms of pieces are added, so pieces may be read in any order and by anybody.
Equal numbers are told apart by a tie number (a hash of where they stand), which is counted the same way if the cut falls between them. This is
a radix selection. Hua et al. 2025 keep a share of each domain's documents and do not say how they find it.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError

BINS = 2**16
SCORE_PLACES, PLACES = 2, 6  # digits of an image, and of an image with its tie number
SIGN = np.uint32(2**31)

Images = NDArray[np.uint32]
Ties = NDArray[np.uint64]
Counts = NDArray[np.int64]


def images_of(values: NDArray[np.floating]) -> Images:
    """Unsigned integers in the order of floating-point numbers: a < b exactly where image(a) < image(b); -0.0 is 0.0.

    Args:
        values: [n], taken as float32.

    Returns:
        [n] uint32.

    Raises:
        HeadwiseError: For NaN.
    """
    numbers = np.asarray(values, dtype=np.float32) + np.float32(0)  # -0.0 + 0.0 is 0.0
    if np.isnan(numbers).any():
        raise HeadwiseError(f"{int(np.isnan(numbers).sum())} of {len(numbers)} values are NaN; leave them out first")
    bits = numbers.view(np.uint32)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def value_of(image: int) -> float:
    """The float32 number with this image."""
    bits = np.array([image], dtype=np.uint32)
    return float(np.where(bits & SIGN, bits ^ SIGN, ~bits).view(np.float32)[0])


def tie_numbers(name: str, rows: NDArray[np.integer], seed: int = 0) -> Ties:
    """Numbers that look random, to tell equal scores apart in the same way on every machine.

    Args:
        name: Of the file.
        rows: [n], numbers of its rows.
        seed: 0 or more.

    Returns:
        [n] uint64; different for different rows of a file.
    """
    start = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")
    x = np.uint64(start) + np.asarray(rows).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    # The finaliser of splitmix64 (Steele et al. 2014): one to one, so rows of one file never share a number.
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class TopCuts:
    """Per group the lowest key that is taken, if keys are taken from the largest down until their weights reach what is wanted.

    A key is an image and, behind it, a tie number: 6 digits of 16 bits. Use: until `done`, make an empty `histogram()`, `count` every piece into
    it (or add histograms of pieces), `narrow`. Two rounds find the score at the cut; more are needed only where the cut falls between equal
    scores. What crosses the line is taken: weights of what is taken reach `wanted`, and without the last key they would not.

    Args:
        groups: How many.

    Attributes:
        nothing: [group] bool, True where nothing was wanted.
    """

    def __init__(self, groups: int) -> None:
        self._wanted: Counts = np.zeros(groups, dtype=np.int64)  # still to be taken, inside the known digits
        self._image: Images = np.zeros(groups, dtype=np.uint32)  # known digits, the unknown ones 0
        self._tie: Ties = np.zeros(groups, dtype=np.uint64)
        self._open = np.ones(groups, dtype=bool)  # False: no more digits are needed
        self.nothing = np.zeros(groups, dtype=bool)  # nothing was wanted
        self._place = 0

    @property
    def done(self) -> bool:
        """Every cut is exact."""
        return not self._open.any()

    def histogram(self) -> Counts:
        """An empty one: [2, group, bin] int64, weights and numbers of keys. Those of pieces are added."""
        return np.zeros((2, len(self._open), BINS), dtype=np.int64)

    def count(self, into: Counts, groups: NDArray[np.integer], images: Images, ties: Ties, weights: NDArray[np.integer]) -> None:
        """Add keys to a histogram of this round's digit; keys outside the known digits are left out.

        Args:
            into: Of `histogram`.
            groups: [n] group of each key.
            images: [n].
            ties: [n].
            weights: [n].
        """
        where = self._open[groups] & self._inside(groups, images, ties)
        chosen = groups[where], self._digit(images[where], ties[where])
        np.add.at(into[0], chosen, weights[where].astype(np.int64))
        np.add.at(into[1], chosen, 1)

    def narrow(self, histogram: Counts, wanted: Counts | None = None) -> None:
        """Take the next digit from the histogram of all keys.

        Args:
            histogram: Of all keys.
            wanted: [group] summed weights to take; given in the first round only.

        Raises:
            HeadwiseError: If more is wanted than there is.
        """
        if wanted is not None:
            self._start(histogram, wanted)
        for group in map(int, np.flatnonzero(self._open)):
            above = np.cumsum(histogram[0, group, ::-1])
            place = int(np.searchsorted(above, self._wanted[group]))  # from the largest digit down
            digit = BINS - 1 - place
            self._wanted[group] -= above[place - 1] if place else 0
            self._set(group, digit)
            whole = self._wanted[group] == histogram[0, group, digit] or histogram[1, group, digit] == 1
            # Both digits of the score are always found: the cut is reported as a score.
            self._open[group] = self._place + 1 < PLACES and not (whole and self._place + 1 >= SCORE_PLACES)
        self._place += 1

    def takes(self, groups: NDArray[np.integer], images: Images, ties: Ties) -> NDArray[np.bool_]:
        """Which keys are taken, once all cuts are `done`.

        Args:
            groups: [n] group of each key.
            images: [n].
            ties: [n].

        Returns:
            [n] bool.
        """
        line = self._image[groups]
        found: NDArray[np.bool_] = (images > line) | ((images == line) & (ties >= self._tie[groups]))
        found &= ~self.nothing[groups]
        return found

    def image(self, group: int) -> int | None:
        """The image at the cut, the k-th largest; None if nothing is taken."""
        return None if self.nothing[group] else int(self._image[group])

    def _start(self, histogram: Counts, wanted: Counts) -> None:
        totals = histogram[0].sum(axis=1)
        if (wanted > totals).any():
            group = int(np.argmax(wanted > totals))
            raise HeadwiseError(f"{wanted[group]} are wanted of group {group}, which has {totals[group]}")
        self._wanted = np.array(wanted, dtype=np.int64)
        self.nothing = self._wanted <= 0
        self._open = ~self.nothing

    def _digit(self, images: Images, ties: Ties) -> NDArray[np.int64]:
        if self._place < SCORE_PLACES:
            return ((images >> np.uint32(16 - 16 * self._place)) & np.uint32(BINS - 1)).astype(np.int64)
        return ((ties >> np.uint64(48 - 16 * (self._place - SCORE_PLACES))) & np.uint64(BINS - 1)).astype(np.int64)

    def _inside(self, groups: NDArray[np.integer], images: Images, ties: Ties) -> NDArray[np.bool_]:
        """[n] bool: keys that begin with the known digits."""
        if self._place == 0:
            return np.ones(len(groups), dtype=bool)
        if self._place < SCORE_PLACES:
            found: NDArray[np.bool_] = (images ^ self._image[groups]) >> np.uint32(16) == 0
            return found
        found = images == self._image[groups]
        if self._place > SCORE_PLACES:
            found &= (ties ^ self._tie[groups]) >> np.uint64(64 - 16 * (self._place - SCORE_PLACES)) == 0
        return found

    def _set(self, group: int, digit: int) -> None:
        if self._place < SCORE_PLACES:
            self._image[group] |= np.uint32(digit << (16 - 16 * self._place))
        else:
            self._tie[group] |= np.uint64(digit << (48 - 16 * (self._place - SCORE_PLACES)))
