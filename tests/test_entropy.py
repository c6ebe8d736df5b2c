"""What positions, levels and phases cost, and the coder's numbers by another way."""

from typing import Any

import constriction
import numpy as np
import pytest

from jaxsparse.codec.entropy import Encoder
from jaxsparse.codec.segment import Segment, decode_segment, encode_segment
from tests.jsac_files import loudest, make_header, make_segment, same
from tests.plain_decoder import PlainDecoder, PlainEncoder

_model: Any = constriction.stream.model  # pyright: ignore[reportAttributeAccessIssue]


def entropy(p):
    return -p * np.log2(p) - (1 - p) * np.log2(1 - p)


@pytest.mark.parametrize("density", [0.05, 0.1, 0.2])
def test_uniform_positions_cost_their_entropy(density):
    header = make_header(mask="positions", sparsity=str(round(1 - density, 2)))
    rng = np.random.default_rng(1)
    shape = header.segment_shape(0)
    mask = loudest(rng.random(shape), header.count(0))
    empty = np.zeros(shape, np.int64)
    segment = Segment(mask, mask, empty, np.ones(shape, bool), empty)
    parts = encode_segment(header, 0, 0, segment)
    bound = mask.size * entropy(mask.mean())
    assert bound < 8 * len(parts[0]) < 1.03 * bound
    assert same(decode_segment(header, 0, 0, parts), segment)


def blobs(rng, shape, size):
    """Noise, smoothed over `size` bins and frames by its spectrum."""
    frequencies = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij"))
    noise = np.fft.fft2(rng.standard_normal(shape))
    return np.fft.ifft2(noise * np.exp(-((frequencies * size) ** 2))).real


def test_clustered_positions_cost_clearly_less():
    header = make_header(mask="positions")
    rng = np.random.default_rng(2)
    mask = loudest(blobs(rng, header.segment_shape(0), 8), header.count(0))
    empty = np.zeros(mask.shape, np.int64)
    segment = Segment(mask, mask, empty, np.ones(mask.shape, bool), empty)
    parts = encode_segment(header, 0, 0, segment)
    assert 8 * len(parts[0]) < 0.5 * mask.size * entropy(mask.mean())


def test_smooth_levels_cost_less_than_noise_and_constant_ones_nothing():
    header = make_header(mask="positions")
    rng = np.random.default_rng(3)
    shape = header.segment_shape(0)
    mask = loudest(rng.random(shape), header.count(0))
    smooth = blobs(rng, shape, 40)
    smooth = np.rint(80 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.int64)
    shuffled = rng.permutation(smooth.ravel()).reshape(shape)
    bits = {}
    for name, levels in {"smooth": smooth, "shuffled": shuffled, "flat": 0 * smooth - 200}.items():
        zeros = np.zeros(shape, np.int64)
        segment = Segment(mask, mask, np.where(mask, levels, 0), np.ones(shape, bool), zeros)
        parts = encode_segment(header, 0, 0, segment)
        assert same(decode_segment(header, 0, 0, parts), segment)
        bits[name] = 8 * len(parts[1])
        # All phases are zero, as in digital silence.
        assert 8 * len(parts[3]) < 0.05 * mask.size
    count = np.bincount(shuffled[mask])
    share = count[count > 0] / count.sum()
    order_zero = -mask.sum() * (share * np.log2(share)).sum()
    assert bits["shuffled"] < 1.04 * order_zero
    assert bits["smooth"] < 0.8 * order_zero
    assert bits["flat"] <= 8 * 6


def test_random_phases_cost_their_bits():
    header = make_header(mask="random", phase_bits=4)
    segment = make_segment(header, 0, 0, np.random.default_rng(0))
    bits = 8 * len(encode_segment(header, 0, 0, segment)[3])
    assert 4 * segment.phases.size <= bits < 4.004 * segment.phases.size


def symbols_and_weights(n_symbols, seed):
    """Symbols with weights of all sizes: intervals of one unit, and nearly all of them."""
    rng = np.random.default_rng(seed)
    for _ in range(n_symbols):
        n = int(rng.integers(2, 40))
        weights = 10.0 ** rng.uniform(-3, rng.choice([0, 12]), n)
        yield int(rng.integers(n)), weights


@pytest.mark.parametrize("n_symbols", [0, 1, 2, 3, 10, 1000])
def test_range_coder_is_the_one_that_is_described(n_symbols):
    """Byte for byte, with carries and with the word that may follow the last one."""
    categorical = _model.Categorical(perfect=False)
    # The last word follows one part in a hundred.
    for seed in range(400 if n_symbols < 100 else 5):
        coder, plain = Encoder(), PlainEncoder()
        chosen = list(symbols_and_weights(n_symbols, seed))
        for symbol, weights in chosen:
            coder(np.array([symbol]), categorical, weights[None, :])
            plain.encode(symbol, weights.tolist())
        assert plain.data() == coder.data()
        decoder = PlainDecoder(coder.data())
        decoded = [decoder.decode(weights.tolist()) for _, weights in chosen]
        assert decoded == [symbol for symbol, _ in chosen]


def test_probabilities_of_bits_are_those_that_are_described():
    bernoulli = _model.Bernoulli(perfect=False)
    rng = np.random.default_rng(4)
    p = np.clip(10 ** rng.uniform(-6, 0, 2000), 2**-16, 1 - 2**-16)
    bits = (rng.random(2000) < p).astype(np.int64)
    coder = Encoder()
    coder(bits, bernoulli, p)
    decoder = PlainDecoder(coder.data())
    assert [decoder.decode([1 - each, each]) for each in p.tolist()] == bits.tolist()
