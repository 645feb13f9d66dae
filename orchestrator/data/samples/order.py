"""The sample order: a permutation that is computed, not stored.

`permute` is a pure function of (key, position): any position costs the same, in any process, for ever. It is a
balanced Feistel network (Luby & Rackoff 1988) over the smallest even number of bits that holds `n`, narrowed to
[0, n) by cycle walking (Black & Rogaway, CT-RSA 2002, "Ciphers with arbitrary finite domains", method 3). The
round function is the finalizer of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014). All arithmetic is modulo 2**64.
"""

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

ROUNDS = 8
"""Four make a pseudorandom permutation of a good round function; small domains want more."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_ROUND_KEYS = [np.uint64(number * int(_GOLDEN) % 2**64) for number in range(ROUNDS)]


def mix64(values: U64) -> U64:
    """SplitMix64's finalizer on uint64[n]: a bijection of 64 bits in which every input bit moves every output bit."""
    z = values + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


def keys(seed: int, stream: int, epochs: U64) -> U64:
    """uint64[n]: the key of each epoch of one stream of samples under one seed."""
    base = mix64(np.asarray([seed], dtype=np.uint64))
    base = mix64(base ^ mix64(np.asarray([stream], dtype=np.uint64)))
    return mix64(base ^ mix64(epochs))


def permute(positions: U64, n: int, key: U64) -> U64:
    """The images of `positions` (uint64[m], each < n) under the permutations of [0, n) that `key` (uint64[m]) names.

    O(1) per position: fewer than four walks are expected, since the network's domain is at most 4 n.
    Raises ValueError if n < 1 or a position is outside [0, n).
    """
    if n < 1:
        raise ValueError(f"a permutation needs at least one element, not {n}")
    if positions.size and int(positions.max()) >= n:
        raise ValueError(f"position {int(positions.max())} is outside [0, {n})")
    if n == 1:
        return np.zeros(positions.shape, dtype=np.uint64)
    half_bits = max(2, ((n - 1).bit_length() + 1) // 2)
    result = _network(positions, half_bits, key)
    outside = np.flatnonzero(result >= np.uint64(n))
    while outside.size:
        result[outside] = _network(result[outside], half_bits, key[outside])
        outside = outside[result[outside] >= np.uint64(n)]
    return result


def _network(values: U64, half_bits: int, key: U64) -> U64:
    shift = np.uint64(half_bits)
    mask = np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for number in range(ROUNDS):
        round_key = key + _ROUND_KEYS[number]
        left, right = right, left ^ (mix64(right ^ round_key) & mask)
    return (left << shift) | right
