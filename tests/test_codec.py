import functools
import subprocess
import sys
import tracemalloc
import weakref
from pathlib import Path

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse import audio, codec, container, masks
from jaxsparse.codec import CodecSettings
from jaxsparse.errors import AudioError, ContainerError, JaxsparseError
from jaxsparse.nn.network import SparseCNNConfig, sparse_cnn
from jaxsparse.pretrained import NAMES, Pretrained
from jaxsparse.reconstruct import to_waveform
from jaxsparse.spectrogram import log_power
from jaxsparse.stft import STFTConfig, stft

ROOT = Path(__file__).resolve().parent.parent
SHA256 = "ab" * 32
DEFAULT = CodecSettings()
# All but the quietest thousandth is kept, finely: what is lost is next to nothing.
FINE = CodecSettings(sparsity="0.001", value_step_db=0.2, phase_bits=10)


@functools.cache
def load_untrained(name):
    """A small network, the same in every process."""
    network = sparse_cnn(SparseCNNConfig(kernel_sizes=(5, 3), features=3))
    card = {"sha256": SHA256, "halo": network.halo}
    return Pretrained(network.apply, network.init(jax.random.key(1)), card)


def compress(samples, sample_rate=16_000, settings=DEFAULT, **options):
    return codec.compress(samples, sample_rate, settings, load=load_untrained, **options)


def decompress(data, **options):
    return codec.decompress(data, load=load_untrained, **options)


def speechlike(n_samples, sample_rate=16_000, channels=1, seed=0):
    """Harmonics below 3 kHz that come and go, and noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(n_samples)[:, None] / sample_rate
    pitch = 110 + 20 * np.arange(channels) + 30 * np.sin(2 * np.pi * 0.7 * time)
    turns = np.cumsum(pitch / sample_rate, axis=0)
    voice = sum(np.sin(2 * np.pi * k * turns) / k for k in range(1, 16))
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * 1.3 * time)
    noise = 0.003 * rng.standard_normal((n_samples, channels))
    return (0.2 * envelope * voice + noise).astype(np.float32)


def loudest(db, count):
    return np.asarray(masks.loudest_mask(jnp.asarray(db), count))


def snr(reference, estimate):
    error = np.sum((reference - estimate).astype(np.float64) ** 2)
    return 10 * np.log10(np.sum(reference.astype(np.float64) ** 2) / error)


@pytest.mark.parametrize("n_samples", [1, 700, 1025, 90_001])
def test_fine_settings_give_the_signal_back(n_samples):
    samples = speechlike(n_samples, seed=n_samples)
    data = compress(samples, settings=FINE, find_mask=loudest)
    assert container.unpack(data).header.mask == "positions"
    decoded, sample_rate = decompress(data)
    assert sample_rate == 16_000 and decoded.shape == samples.shape
    # Steps of 0.2 dB alone leave 10 log10(12 / (0.2 ln(10) / 20)^2) = 44 dB, those of the phase 54.
    assert snr(samples, decoded) > 42


@pytest.mark.parametrize(
    ("sample_rate", "n_samples", "channels"),
    [(8_000, 12_345, 1), (44_100, 30_011, 2), (96_000, 50_000, 3), (11_025, 1, 5)],
)
def test_rate_channels_and_length_come_back(sample_rate, n_samples, channels):
    samples = speechlike(n_samples, sample_rate, channels)
    data = compress(samples, sample_rate, FINE, find_mask=loudest)
    decoded, rate = decompress(data)
    assert rate == sample_rate and decoded.shape == samples.shape
    assert decoded.dtype == np.float32
    # What coding at 16 kHz leaves of the signal, channel by channel.
    there = audio.resample(samples, sample_rate, 16_000)
    expected = audio.resample(there, 16_000, sample_rate)[:n_samples]
    for channel in range(channels):
        assert snr(expected[:, channel], decoded[:, channel]) > 40


@pytest.mark.parametrize("keep_observed", [True, False])
def test_segments_agree_with_the_whole_at_once(keep_observed):
    """Segments, halo and overlap-add give what one pass over the whole clip gives."""
    samples = speechlike(150_000)
    settings = CodecSettings(sparsity="0.9", keep_observed=keep_observed, phase_threshold=60)
    data = compress(samples, settings=settings)
    header, parts = container.unpack(data)
    assert header.n_segments == 2 and header.n_frames == 586
    segments = [container.decode_segment(header, 0, i, part) for i, part in enumerate(parts)]
    levels, mask, phases = (
        np.concatenate([getattr(segment, name) for segment in segments], axis=1)
        for name in ("levels", "mask", "phases")
    )
    spectrogram = jnp.asarray(levels * 0.5, jnp.float32)
    network = load_untrained("mixed")
    with jax.default_matmul_precision("highest"):
        completed = jax.jit(network.apply)(network.params, spectrogram, jnp.asarray(mask))
    # What is filled in is no louder than what the window of its segment keeps.
    capped = []
    for start in (0, 302):
        window = slice(max(start - network.card["halo"], 0), start + 302 + network.card["halo"])
        loudest = spectrogram[:, window][mask[:, window]].max()
        capped.append(jnp.minimum(completed[:, start : start + 302], loudest))
    completed = jnp.concatenate(capped, axis=1)
    if keep_observed:
        completed = jnp.where(mask, spectrogram, completed)
    phase = jnp.asarray(phases * (2 * np.pi / 16), jnp.float32)
    expected = np.asarray(to_waveform(completed, phase, STFTConfig(), length=150_000))
    decoded, _ = decompress(data)
    assert np.abs(expected).max() > 0.1
    # The same sums in another order.
    np.testing.assert_allclose(decoded[:, 0], expected, atol=3e-6 * np.abs(expected).max())


def test_what_is_stored():
    """Levels, mask and phases against the transform of the whole clip."""
    samples = speechlike(100_000)
    settings = CodecSettings(sparsity="0.8", phase_threshold=65, seed=11)
    header, parts = container.unpack(compress(samples, settings=settings))
    spectrum = stft(jnp.asarray(samples[:, 0]))
    for index, start in enumerate((0, 302)):
        own = spectrum[:, start : start + 302]
        segment = container.decode_segment(header, 0, index, parts[index])
        db = np.asarray(log_power(own))
        count = masks.count_observed(db.shape, "0.8")
        assert segment.mask.sum() == count
        assert segment.chosen.sum() == count // 2
        # Rounding may tell the last of the loudest bins otherwise.
        assert np.mean(loudest(db, count // 2) != segment.chosen) < 1e-4
        # Half a step, and what two ways to the same spectrum differ by far below its maximum.
        assert np.abs(segment.levels * 0.5 - db)[segment.mask].max() < 0.26
        assert np.mean(segment.phase_mask != (db >= db.max() - 65)) < 1e-4
        turned = np.angle(np.exp(1j * (segment.phases * np.pi / 8 - np.angle(own))))
        assert np.abs(turned)[segment.phase_mask & segment.mask].max() < np.pi / 16 + 0.01
        assert not segment.phases[~segment.phase_mask].any()


def test_random_mask_stores_no_positions():
    samples = speechlike(20_000)
    described = container.describe(compress(samples, settings=CodecSettings(mask="random")))
    assert described["part_bits"]["mask"] == 0 and described["network"] == "random-95"
    assert described["kept_bins"] == masks.count_observed((1025, 79), "0.95")


def test_phase_threshold_makes_the_file_smaller():
    samples = speechlike(20_000)
    sizes = [
        len(compress(samples, settings=CodecSettings(phase_threshold=threshold)))
        for threshold in (None, 50, 40)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("sparsity", ["0.8", "0.85", "0.9", "0.95", "0.123", "0.999"])
@pytest.mark.parametrize("n_samples", [1, 25_000, 77_276])
def test_counts_are_those_of_masks(sparsity, n_samples):
    settings = CodecSettings(sparsity=sparsity)
    header = codec._make_header(settings, SHA256, n_samples, 1, 16_000)
    shape = (1025, STFTConfig().n_frames(n_samples))
    assert header.segment_shape(0) == shape
    assert header.count(0) == masks.count_observed(shape, sparsity)


def test_silence_is_small_and_stays_silent():
    samples = np.zeros((80_000, 2), np.float32)
    data = compress(samples)
    assert 8 * len(data) < 0.03 * 16 * samples.size
    decoded, _ = decompress(data)
    assert np.abs(decoded).max() < 2**-16


def test_another_process_decodes_the_same(tmp_path):
    data = compress(speechlike(80_000))
    (tmp_path / "clip.jsac").write_bytes(data)
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from tests.test_codec import decompress\n"
        "folder = Path(sys.argv[1])\n"
        "np.save(folder / 'decoded', decompress((folder / 'clip.jsac').read_bytes())[0])\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=True)
    here = decompress(data)[0]
    assert here.std() > 0.01
    np.testing.assert_allclose(np.load(tmp_path / "decoded.npy"), here, atol=2**-15, rtol=0)


def test_other_lengths_compile_nothing():
    decompress(compress(speechlike(77_276)))
    compiled = []

    def listen(event, duration_secs, **kwargs):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: x + 123.0)(jnp.zeros(3))
        assert compiled, "compilations are not seen"
        compiled.clear()
        for n_samples in (900, 90_000):
            decompress(compress(speechlike(n_samples)))
        assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_analysis_holds_one_segment_at_a_time():
    def peak(n_samples):
        signal = np.ones(n_samples, np.float32)
        header = codec._make_header(DEFAULT, SHA256, n_samples, 1, 16_000)
        tracemalloc.start()
        for _ in codec._analyse(signal, header):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1)
    # Ten segments more: their samples in a few copies. Their spectrograms would take 25 MB.
    assert peak(12 * 77_312) - peak(2 * 77_312) < 3 * 4 * 10 * 77_312 + 10**5


def test_synthesis_holds_the_segments_that_its_window_sees(monkeypatch):
    n_segments = 10
    header = codec._make_header(DEFAULT, SHA256, n_segments * 77_312 - 256, 1, 16_000)
    assert header.n_segments == n_segments
    alive = weakref.WeakSet()
    most = 0

    class Levels(np.ndarray):
        """An array whose life can be watched."""

        __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]

    def decode_segment(header, channel, index, parts):
        nonlocal most
        shape = header.segment_shape(index)
        levels = np.full(shape, index, np.int32).view(Levels)
        alive.add(levels)
        most = max(most, len(alive))
        kept = np.ones(shape, bool)
        return container.Segment(kept, kept, levels, kept, np.zeros(shape, np.int16))

    monkeypatch.setattr(container, "decode_segment", decode_segment)
    network = load_untrained("mixed")
    parts = [[b""] * 4] * n_segments
    windows = codec._windows(header, 0, parts, network)
    halo = network.card["halo"]
    for index, window in enumerate(windows):
        frames = np.arange(index * 302 - halo, (index + 1) * 302 + halo)
        expected = np.where(window.valid, frames // 302, 0)
        np.testing.assert_array_equal(window.spectrogram[7], expected * np.float32(0.5))
        assert window.valid.tolist() == [0 <= t < header.n_frames for t in frames]
    assert most <= 4


def test_progress_counts_segments():
    seen = {"compress": [], "decompress": []}
    samples = speechlike(77_312, channels=2)
    data = compress(samples, progress=lambda *counts: seen["compress"].append(counts))
    decompress(data, progress=lambda *counts: seen["decompress"].append(counts))
    assert seen == {name: [(1, 4), (2, 4), (3, 4), (4, 4)] for name in seen}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (CodecSettings(), ("mixed", True)),
        (CodecSettings(sparsity=0.8), ("mixed", True)),
        (CodecSettings(sparsity="0.799"), ("mixed", False)),
        (CodecSettings(sparsity="0.96"), ("mixed", False)),
        (CodecSettings(mask="random", sparsity="0.80"), ("random-80", True)),
        (CodecSettings(mask="random", sparsity=0.85), ("random-85", True)),
        (CodecSettings(mask="random", sparsity="0.5"), ("random-80", False)),
        (CodecSettings(mask="random", sparsity="0.93"), ("random-95", False)),
        (CodecSettings(mask="random", sparsity="0.999"), ("random-95", False)),
        (CodecSettings(mask="random", network="mixed"), ("mixed", True)),
    ],
)
def test_choice_of_network(settings, expected):
    assert codec.choose_network(settings) == expected
    assert expected[0] in NAMES


@pytest.mark.parametrize(
    "changes",
    [
        {"sparsity": 0.0},
        {"sparsity": "1"},
        {"sparsity": "-0.5"},
        {"sparsity": "a lot"},
        {"sparsity": float("nan")},
        {"sparsity": "1e-99999999"},
        {"seed": -1},
        {"seed": 2**64},
        {"value_step_db": 0.0},
        {"value_step_db": float("nan")},
        {"value_step_db": 0.5001},
        {"phase_bits": 0},
        {"phase_bits": 99},
        {"phase_threshold": 0},
        {"network": "../../secret"},
        {"network": ""},
    ],
)
def test_settings_out_of_range(changes):
    with pytest.raises(JaxsparseError):
        CodecSettings(**changes)


@pytest.mark.parametrize("sparsity", [0.95, "0.95", "0.9500", ".95", "9.5e-1"])
def test_sparsity_is_stored_as_one_decimal(sparsity):
    header = codec._make_header(CodecSettings(sparsity=sparsity), SHA256, 1, 1, 16_000)
    assert header.sparsity == "0.95"


def test_unusable_audio_is_refused():
    samples = speechlike(1000, channels=2)
    samples[[7, 400], [1, 0]] = [np.nan, -np.inf]
    with pytest.raises(AudioError, match=r"2 samples .* first at 7 in channel 1"):
        compress(samples)
    for bad, rate in [
        (np.full((5, 1), 1e30, np.float32), 16_000),
        (np.zeros((0, 1), np.float32), 16_000),
        (np.zeros((9, 0), np.float32), 16_000),
        (np.zeros((9, 33), np.float32), 16_000),
        (np.zeros((9, 1), np.float32), 999),
        (np.zeros((9, 1), np.float32), 10**6),
    ]:
        with pytest.raises(AudioError):
            compress(bad, rate)


def test_sparsity_that_keeps_nothing_is_refused():
    with pytest.raises(JaxsparseError, match="not a single bin"):
        compress(speechlike(1), settings=CodecSettings(sparsity="0.9999"))


def test_loud_samples_are_coded():
    samples = 1e6 * speechlike(3000)
    decoded, _ = decompress(compress(samples, settings=FINE, find_mask=loudest))
    assert snr(samples, decoded) > 42


def test_other_weights_are_refused():
    data = compress(speechlike(1000))

    def load_other(name):
        network = load_untrained(name)
        return network._replace(card={**network.card, "sha256": "cd" * 32})

    with pytest.raises(JaxsparseError, match=f"{SHA256}.*{'cd' * 32}"):
        codec.decompress(data, load=load_other)


def test_unknown_network_is_refused():
    settings = CodecSettings(network="unheard-of")
    with pytest.raises(JaxsparseError, match="unheard-of"):
        codec.compress(speechlike(1000), 16_000, settings)
    with pytest.raises(JaxsparseError, match="unheard-of"):
        codec.decompress(compress(speechlike(1000), settings=settings))


def test_levels_beyond_all_audio_are_refused():
    samples = speechlike(1000)
    header, parts = container.unpack(compress(samples, settings=CodecSettings(value_step_db=10)))
    values = bytearray(parts[0][1])
    values[:2] = (2**15 - 1).to_bytes(2, "little")
    forged = container.pack(header, [[parts[0][0], bytes(values), *parts[0][2:]]])
    with pytest.raises(ContainerError, match="no audio"):
        decompress(forged)
