"""A decoder and range coder in plain Python, written from ``docs/format.md`` alone.

It takes a thousand times as long as the codec's own, and shares nothing with it but the header.
"""

import bisect
import math
import struct
from fractions import Fraction

_WORD, _STATE = 2**32, 2**64
# First row, distance of rows, and of each group of neighbours the (frames, rows).
_PASSES = (
    (0, 4, (((-1, 0),), ((-2, 0),), ((-1, -4), (-1, 4)))),
    *(
        (n, 2 * n, (((-1, 0),), ((0, -n),), ((0, n),), ((1, -n), (1, n)), ((-1, -n), (-1, n))))
        for n in (2, 1)
    ),
)


def intervals(weights):
    """Where the intervals of the symbols end; each begins where the one before ends."""
    scale = (2**24 - len(weights)) / sum_in_order(weights)
    ends, total = [], 0.0
    for number, weight in enumerate(weights[:-1], 1):
        total += weight
        ends.append(int(total * scale) + number)
    return [*ends, 2**24]


def sum_in_order(weights):
    """Sums floats from left to right; ``sum`` of newer Pythons compensates."""
    total = 0.0
    for weight in weights:
        total += weight
    return total


class PlainDecoder:
    """A range decoder of the words of a part."""

    def __init__(self, data):
        self._words = iter(struct.unpack(f"<{len(data) // 4}I", data))
        self._low, self._range = 0, _STATE - 1
        self._point = self._next() * _WORD + self._next()

    def _next(self):
        return next(self._words, 0)

    def decode(self, weights):
        """Gives the next symbol of a model of floating-point weights."""
        return self.decode_interval(intervals(weights))

    def decode_interval(self, ends):
        """Gives the next symbol, whose intervals end at `ends`."""
        step = self._range >> 24
        quantile = (self._point - self._low) % _STATE // step
        assert quantile < 2**24
        symbol = bisect.bisect_right(ends, quantile)
        start = ends[symbol - 1] if symbol else 0
        self._low = (self._low + step * start) % _STATE
        self._range = step * (ends[symbol] - start)
        if self._range < _WORD:
            self._low, self._range = self._low * _WORD % _STATE, self._range * _WORD
            self._point = self._point * _WORD % _STATE + self._next()
        return symbol


class PlainEncoder:
    """A range encoder that carries into one long number."""

    def __init__(self):
        self._written, self._n_words = 0, 0
        self._low, self._range = 0, _STATE - 1

    def encode(self, symbol, weights):
        """Appends a symbol of a model of floating-point weights."""
        self.encode_interval(symbol, intervals(weights))

    def encode_interval(self, symbol, ends):
        """Appends a symbol, whose intervals end at `ends`."""
        start = ends[symbol - 1] if symbol else 0
        step = self._range >> 24
        self._range = step * (ends[symbol] - start)
        self._add(step * start)
        if self._range < _WORD:
            self._write(self._low // _WORD)
            self._low, self._range = self._low * _WORD % _STATE, self._range * _WORD

    def _add(self, number):
        carry, self._low = divmod(self._low + number, _STATE)
        self._written += carry

    def _write(self, word):
        self._written, self._n_words = self._written * _WORD + word, self._n_words + 1

    def data(self):
        """Ends the part and gives its bytes."""
        if self._range < _STATE - 1:
            above = (self._low + self._range) % _STATE // _WORD
            self._add(_WORD - 1)
            last = self._low // _WORD
            self._write(last)
            if last == above:
                self._write(0)
        big = self._written.to_bytes(4 * self._n_words)
        return b"".join(big[i : i + 4][::-1] for i in range(0, len(big), 4))


def philox(counter, key):
    """A block of four words of Philox4x64-10."""
    x, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [b // _STATE ^ x[1] ^ k[0], b % _STATE, a // _STATE ^ x[3] ^ k[1], a % _STATE]
        k = [(k[0] + 0x9E3779B97F4A7C15) % _STATE, (k[1] + 0xBB67AE8584CAA73B) % _STATE]
    return x


def decode(header, channel, index, parts):
    """Decodes a segment.

    Returns:
        The sets of stored positions, of kept bins and of stored phases, and by bin (f, t) the
        levels and the phases.
    """
    n_bins, n_frames = shape = header.segment_shape(index)
    count, coded = header.count(index), header.coded_count(index)
    positions, values, phase_bitmap, phases = (bytes(part) for part in parts)
    density = Fraction(coded, n_bins * n_frames)
    chosen = _decode_bitmap(positions, shape, {}, density) if coded else set()
    mask = chosen | _draw(header.seed, channel << 32 | index, shape, chosen, count - coded)
    step, levels = header.value_step_mdb, {}
    if count:
        base, span, threshold = struct.unpack("<hHH", values[:6])
        classes = [(mask, 0, span)]
        if header.loudest:
            classes = [(chosen, threshold, span), (mask - chosen, 0, threshold)]
        relative = _decode_levels(values[6:], shape, classes, step)
        levels = {place: base + level for place, level in relative.items()}
    stored = {(f, t) for f in range(n_bins) for t in range(n_frames)}
    if header.phase_threshold is not None:
        least = max(levels.values(), default=0) * step - 1000 * header.phase_threshold
        hints = {place: 2 if level * step >= least else 1 for place, level in levels.items()}
        stored = _decode_bitmap(phase_bitmap, shape, hints, Fraction(1, 2))
    return chosen, mask, stored, levels, _decode_phases(phases, shape, stored, header.phase_bits)


def _draw(seed, place, shape, chosen, count):
    n_bins, n_frames = shape
    keys = []
    for block in range(1, 2 + n_bins * n_frames // 4):
        keys += philox((block, 0, 0, 0), (seed, place))
    free = [i for i in range(n_bins * n_frames) if divmod(i, n_frames) not in chosen]
    drawn = sorted(free, key=lambda i: (keys[i], i))[:count]
    return {divmod(i, n_frames) for i in drawn}


def _decode_bitmap(data, shape, hints, density):
    (n_bins, n_frames), coder = shape, PlainDecoder(data)
    total, ones, bits = 16.0, 16.0 * density.numerator / density.denominator, {}
    for first, distance, groups in _PASSES:
        counts = {}
        for t in range(n_frames):
            found = []
            for f in range(first, n_bins, distance):
                context = hints.get((f, t), 0)
                for group in groups:
                    around = sum(bits.get((f + df, t + dt), 0) for dt, df in group)
                    context = context * (len(group) + 1) + around
                bands = counts.setdefault(context, [[0, 0] for _ in range(4)])
                seen, were_ones = (sum(band[i] for band in bands) for i in (0, 1))
                own = bands[4 * f // n_bins]
                p = (were_ones + 8 * ones / total) / (seen + 8)
                p = min(max((own[1] + 8 * p) / (own[0] + 8), 2**-16), 1 - 2**-16)
                found.append((f, own, coder.decode([1 - p, p])))
            for f, own, bit in found:
                bits[f, t] = bit
                own[0], own[1] = own[0] + 1, own[1] + bit
            total, ones = total + len(found), ones + sum(bit for *_, bit in found)
    return {place for place, bit in bits.items() if bit}


def _decode_levels(data, shape, classes, step):
    (n_bins, n_frames), coder, known = shape, PlainDecoder(data), {}
    for bins, low, high in classes:
        total, count, widest = 2 * (low + high), 4, high - low
        for first, distance, _ in _PASSES:
            spread = _Spread(widest, step)
            for t in range(n_frames):
                found = []
                for f in range(first, n_bins, distance):
                    if (f, t) not in bins:
                        continue
                    evidence, weighted = _look_around(known, f, t)
                    around = 2 * (weighted + 81 * (total // count)) + evidence + 81
                    prediction = min(max(around // (2 * (evidence + 81)), low), high)
                    confidence = sum(x <= evidence for x in (122, 409, 1228, 4096, 12288))
                    weights = spread.weights(confidence, low - prediction)
                    level = low + (coder.decode(weights) if widest else 0)
                    found.append((f, level, confidence, level - prediction))
                for f, level, confidence, error in found:
                    known[f, t] = level
                    spread.add(confidence, error)
                total, count = total + sum(level for _, level, *_ in found), count + len(found)
    return known


_WEIGHTS = {
    (df, dt): math.floor(4096 / ((df**2 + dt**2 + 0.3) * math.sqrt(df**2 + dt**2 + 0.3)))
    for df in range(-6, 7)
    for dt in range(-6, 7)
}


def _look_around(known, f, t):
    evidence = weighted = 0
    for (df, dt), weight in _WEIGHTS.items():
        level = known.get((f + df, t + dt))
        if level is not None:
            evidence, weighted = evidence + weight, weighted + weight * level
    return evidence, weighted


class _Spread:
    """Counts of errors of prediction, for each confidence."""

    def __init__(self, widest, step):
        self._widest = widest
        start = []
        for error in range(-widest, widest + 1):
            x = error * step / 6000
            y = 1 + x * x
            start.append(1 + math.floor(4096 / (y * math.sqrt(y))))
        self._counts = [list(start) for _ in range(6)]
        self._half = min(1500 // step, 8)
        self._unit = max(sum(start) // (8 * (self._half + 1) ** 2), 1)

    def weights(self, confidence, lowest):
        begin = lowest + self._widest
        return [
            float(count) for count in self._counts[confidence][begin : begin + self._widest + 1]
        ]

    def add(self, confidence, error):
        for i in range(-self._half, self._half + 1):
            place = min(max(error + i, -self._widest), self._widest)
            added = (self._half + 1 - abs(i)) * self._unit
            self._counts[confidence][place + self._widest] += added


def _decode_phases(data, shape, stored, bits):
    (n_bins, n_frames), coder = shape, PlainDecoder(data)
    weights, phases = [32.0] * 2**bits, {}
    for t in range(n_frames):
        found = {(f, t): coder.decode(weights) for f in range(n_bins) if (f, t) in stored}
        for phase in found.values():
            weights[phase] += 1
        phases |= found
    return phases
