"""Philox 4x32-10 (Salmon et al. 2011) in plain NumPy integers, and the draws of `semopo_tf.random` on top of it. Slow
and obvious.
"""

import zlib

import numpy as np

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the two key words after each round
LOW = 0xFFFFFFFF


def philox(counter, key):
    """counter: four words (or arrays of words), key: two words, all 32 bit in uint64 -> four words."""
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = (int(word) for word in key)
    for _ in range(ROUNDS):
        first, second = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])  # 32 x 32 bits fit in 64
        c0, c1, c2, c3 = high(second) ^ c1 ^ np.uint64(k0), low(second), high(first) ^ c3 ^ np.uint64(k1), low(first)
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return c0, c1, c2, c3


def low(words):
    return words & np.uint64(LOW)


def high(words):
    return words >> np.uint64(32)


def bits(seed, domain, stream, step, count):
    """`count` uint32 words. Key: stream number (low word), seed (high word). Counter: block (low half), step (high
    half).
    """
    blocks = np.arange(-(-count // 4), dtype=np.uint64)
    key = (zlib.crc32(f"{domain}/{stream}".encode()), seed)
    words = philox((low(blocks), high(blocks), step & LOW, step >> 32), key)
    return np.stack(np.broadcast_arrays(*words), axis=1).reshape(-1)[:count].astype(np.uint32)


def integers(seed, domain, stream, step, count, limit):
    """int64 in 0..limit-1: the upper word of bits * limit."""
    return high(bits(seed, domain, stream, step, count).astype(np.uint64) * np.asarray(limit, np.uint64)).astype(
        np.int64
    )


def unit(words):
    """uint32 -> the midpoint of its cell among 2**23 equal cells of (0, 1), float64 (exact)."""
    return ((words >> 9).astype(np.float64) + 0.5) / 2**23
