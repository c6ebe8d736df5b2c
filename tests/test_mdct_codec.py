"""Audio to files of the MDCT grid and back: rates, parts, odd and bad clips."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxsparse import codec, pretrained
from jaxsparse.audio import read_audio
from jaxsparse.codec import MDCTSettings, STFTSettings, mdct_container, mdct_stream
from jaxsparse.codec.mdct_segment import MAX_ESCAPE_BITS
from jaxsparse.codec.weights import load_codec
from jaxsparse.errors import AudioError, ContainerError, JaxsparseError
from jaxsparse.metrics import reference_pesq
from jaxsparse.settings import SettingsError
from tests.mdct_files import encode, make_header, make_segment, speech

RATE = 16_000
SENTENCE = Path(pretrained.__file__).parent / "assets" / "sentence.flac"
# Two segments.
LONG = 110_000


def kbps(data, n_samples, rate=RATE):
    return 8 * len(data) / n_samples * rate / 1000


def pesq(samples, decoded, band):
    scored = reference_pesq(reference=samples.T, estimate=decoded.T, sample_rate=RATE, band=band)
    return scored.values[0]


@pytest.fixture(scope="module")
def long_file():
    return codec.compress(speech(LONG)[:, None], RATE)


@pytest.fixture(scope="module")
def whole(long_file):
    return codec.decompress(long_file)[0]


@pytest.mark.parametrize("wanted", [2.4, 6.0, 16.0])
def test_rates_are_met(wanted):
    samples = speech(80_000)[:, None]
    data = codec.compress(samples, RATE, MDCTSettings(kbps=wanted))
    assert kbps(data, 80_000) == pytest.approx(wanted, rel=0.02)


@pytest.mark.slow
def test_more_bits_sound_better():
    samples = speech(30_000)[:, None]
    scores = []
    for wanted in (3.0, 8.0, 24.0):
        data = codec.compress(samples, RATE, MDCTSettings(kbps=wanted))
        decoded, _ = codec.decompress(data)
        scores.append(pesq(samples, decoded, "wb"))
    assert scores[0] < scores[1] < scores[2]
    assert scores[2] > 3.5


@pytest.mark.slow
def test_shares_are_met():
    samples = speech(30_000)[:, None]
    for share in (0.9, 0.97):
        data = codec.compress(samples, RATE, MDCTSettings(sparsity=share))
        header, segments = mdct_container.unpack(data)
        segment = mdct_stream.decode_segment(
            segments[0].data, header.n_frames, segments[0].rate, load_codec().models
        )
        assert np.mean(segment.values == 0) == pytest.approx(share, abs=0.005)


def test_quality_is_met_by_the_estimate():
    samples = speech(7_900)[:, None]
    sizes = [len(codec.compress(samples, RATE, MDCTSettings(pesq=q))) for q in (2.5, 3.5)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    ("rate", "channels"),
    [
        pytest.param(8_000, 1, marks=pytest.mark.slow),
        (44_100, 2),
        pytest.param(16_000, 3, marks=pytest.mark.slow),
        pytest.param(48_000, 1, marks=pytest.mark.slow),
    ],
)
def test_any_rate_and_channels_come_back(rate, channels):
    samples = np.stack([speech(20_000, seed) for seed in range(channels)], axis=1)
    data = codec.compress(samples, rate, MDCTSettings(kbps=16.0 * channels))
    decoded, decoded_rate = codec.decompress(data)
    assert decoded_rate == rate and decoded.shape == samples.shape
    for own, other in zip(samples.T, decoded.T, strict=True):
        assert np.corrcoef(own, other)[0, 1] > 0.5


@pytest.mark.parametrize(
    "n_samples", [1, 2, 255, 256, 257, pytest.param(8_192, marks=pytest.mark.slow)]
)
def test_any_length_comes_back(n_samples):
    samples = 0.3 * np.sin(np.arange(n_samples) / 5).astype(np.float32)[:, None]
    data = codec.compress(samples, RATE, MDCTSettings(kbps=16.0))
    decoded, _ = codec.decompress(data)
    assert decoded.shape == samples.shape and np.isfinite(decoded).all()


@pytest.mark.slow
def test_silence_between_speech_is_silent():
    samples = speech(180_000)[:, None].copy()
    samples[80_000:170_000] = 0
    data = codec.compress(samples, RATE)
    written = [len(segment.data) > 0 for segment in mdct_container.unpack(data).segments]
    assert written == [True, False, True]
    decoded, _ = codec.decompress(data)
    assert not decoded[82_500:163_000].any()


def test_silence_takes_hardly_a_byte_and_stays_silent():
    data = codec.compress(np.zeros((LONG, 1), np.float32), RATE)
    assert len(data) <= 33 + 2 * 9
    decoded, _ = codec.decompress(data)
    assert not decoded.any()


@pytest.mark.slow
@pytest.mark.parametrize("gain", [1e-6, 1.0, 1e5])
def test_loudness_scales(gain):
    samples = speech(16_000)[:, None] * np.float32(gain)
    decoded, _ = codec.decompress(codec.compress(samples, RATE))
    ratio = np.sqrt(np.mean(decoded**2) / np.mean(samples**2))
    assert 0.7 < ratio < 1.3


def test_bandwidth_leaves_out_what_is_above():
    samples = np.random.default_rng(0).normal(size=(32_000, 1)).astype(np.float32)
    decoded, _ = codec.decompress(codec.compress(samples, RATE, MDCTSettings(bandwidth=4_000.0)))
    spectrum = np.abs(np.fft.rfft(decoded[:, 0])) ** 2
    assert spectrum[18_000:].sum() < 0.01 * spectrum.sum()


def test_a_part_is_what_the_whole_has_there(long_file, whole):
    for start, duration in ((0.0, 1.0), (4.9, 0.5), (6.5, 3.0), (3.3, None)):
        part, _ = codec.decompress(long_file, start=start, duration=duration)
        first = round(start * RATE)
        last = LONG if duration is None else min(first + round(duration * RATE), LONG)
        np.testing.assert_allclose(part, whole[first:last], atol=1e-5)


@pytest.mark.slow
def test_a_part_at_another_rate():
    samples = speech(44_100 * 6)[:, None]
    data = codec.compress(samples, 44_100)
    whole, _ = codec.decompress(data)
    part, rate = codec.decompress(data, start=4.0, duration=1.0)
    assert rate == 44_100 and part.shape == (44_100, 1)
    np.testing.assert_allclose(part, whole[176_400:220_500], atol=1e-4)


def test_only_segments_of_the_part_are_decoded(long_file, monkeypatch):
    decoded = []
    original = mdct_stream.decode_segment

    def decode_segment(data, *arguments):
        decoded.append(len(data))
        return original(data, *arguments)

    monkeypatch.setattr(mdct_stream, "decode_segment", decode_segment)
    codec.decompress(long_file, start=0.5, duration=0.5)
    assert len(decoded) == 2


def test_each_segment_is_decoded_once(long_file, monkeypatch):
    decoded = []
    original = mdct_stream.decode_segment
    monkeypatch.setattr(mdct_stream, "decode_segment", lambda *a: decoded.append(1) or original(*a))
    codec.decompress(long_file)
    assert len(decoded) == mdct_container.unpack(long_file).header.n_segments


@pytest.mark.parametrize("span", [{"start": 7.0}, {"start": -1.0}, {"duration": 0.0}])
def test_parts_that_are_none_are_refused(long_file, span):
    with pytest.raises(JaxsparseError):
        codec.decompress(long_file, **span)


def test_concealed_damage_costs_its_segment_alone(long_file, whole):
    header, segments = mdct_container.unpack(long_file)
    place = mdct_container.header_size(header) + 9 + len(segments[0].data) + 40
    spoiled = bytearray(long_file)
    spoiled[place] ^= 1
    with pytest.raises(ContainerError, match="segment 1 is damaged"):
        codec.decompress(bytes(spoiled))
    lines = []
    concealed, _ = codec.decompress(bytes(spoiled), conceal=True, on_damage=lines.append)
    assert lines == ["5.12 to 6.88 s are damaged, and silence instead"]
    frames = mdct_container.FRAMES_PER_SEGMENT * 256
    halo = (load_codec().networks.halo + 4) * 256
    np.testing.assert_allclose(concealed[: frames - halo], whole[: frames - halo], atol=1e-5)
    np.testing.assert_allclose(
        concealed[2 * frames + halo :], whole[2 * frames + halo :], atol=1e-5
    )
    assert np.abs(concealed[frames + 256 : 2 * frames - 512]).max() < 1e-3


def test_segments_join_without_a_seam(whole):
    """The error where segments meet is no larger than elsewhere."""
    error = np.abs(whole[:, 0] - speech(LONG)).reshape(-1, 250).mean(axis=1)
    seam = mdct_container.FRAMES_PER_SEGMENT * 256 // 250
    assert error[seam - 3 : seam + 3].max() <= 1.5 * np.sort(error)[-10]


@pytest.mark.slow
def test_decoding_does_not_depend_on_what_was_decoded_before(long_file, whole):
    codec.decompress(long_file, start=6.0, duration=1.0)
    again, _ = codec.decompress(long_file)
    assert (whole == again).all()


@pytest.mark.slow
@pytest.mark.parametrize("effort", [1])
def test_effort_keeps_to_the_bits_and_sounds_better(effort):
    samples = speech(7_900)[:, None]
    plain = codec.compress(samples, RATE, MDCTSettings(kbps=6.0))
    done = []
    searched = codec.compress(
        samples,
        RATE,
        MDCTSettings(kbps=6.0, effort=effort),
        progress=lambda now, total: done.append((now, total)),
    )
    assert len(searched) == pytest.approx(len(plain), rel=0.02)
    assert done[0] == (0, 20) and done[-1] == (20, 20)
    scores = []
    for data in (plain, searched):
        decoded, _ = codec.decompress(data)
        scores += [pesq(samples, decoded, band) for band in ("wb", "nb")]
    assert sum(scores[2:]) > sum(scores[:2])


@pytest.mark.slow
def test_a_searched_file_needs_fewer_bits_for_a_quality():
    samples = read_audio(SENTENCE)[0][20_000:52_000]
    done = []
    plain, searched = (
        codec.compress(
            samples,
            RATE,
            MDCTSettings(pesq=2.7, effort=effort),
            progress=lambda now, total: done.append((now, total)),
        )
        for effort in (0, 1)
    )
    assert len(searched) < 0.9 * len(plain)
    assert codec.describe(searched)["pesq_wb_estimate"] == pytest.approx(2.7, abs=0.2)
    # A search tells how much it gains; another one makes the file.
    assert done[-1] == (40, 40) and (20, 40) in done


@pytest.mark.parametrize(
    ("samples", "rate"),
    [
        (np.zeros((0, 1), np.float32), RATE),
        (np.full((10, 1), np.nan, np.float32), RATE),
        (np.zeros((10, 40), np.float32), RATE),
        (np.zeros((10, 1), np.float32), 10),
    ],
)
def test_bad_clips_are_refused(samples, rate):
    with pytest.raises(AudioError):
        codec.compress(samples, rate)


@pytest.mark.parametrize(
    "changes",
    [
        {"kbps": 0.5},
        {"kbps": float("nan")},
        {"pesq": 5.0},
        {"sparsity": 1.0},
        {"sparsity": "most"},
        {"effort": 4},
        {"bandwidth": 9_000.0},
        {"kbps": 6.0, "pesq": 3.0},
    ],
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(SettingsError):
        MDCTSettings(**changes)


def test_files_of_other_weights_are_refused(long_file):
    header, segments = mdct_container.unpack(long_file)
    other = mdct_container.MDCTHeader(
        header.sample_rate, header.channels, header.n_samples, "mdct", "0" * 16
    )
    with pytest.raises(JaxsparseError, match="needs the codec mdct with the weights"):
        codec.decompress(mdct_container.pack(other, segments))
    unknown = mdct_container.MDCTHeader(
        header.sample_rate, header.channels, header.n_samples, "mine", header.codec_sha256
    )
    data = mdct_container.pack(unknown, segments)
    with pytest.raises(JaxsparseError, match="'mine' is not installed"):
        codec.decompress(data)
    decoded, _ = codec.decompress(data, codec=load_codec())
    assert decoded.shape == (LONG, 1)


@pytest.mark.slow
def test_the_loudest_file_is_finite():
    """Steps and magnitudes are bounded, so that no file makes a sample overflow."""
    header = make_header(n_samples=LONG)
    segments = []
    for index, step in enumerate((0, mdct_container.MAX_STEP)):
        segment = make_segment(header.segment_frames(index), loudness=0.1)
        segment.values[:4, :2] = 2**MAX_ESCAPE_BITS
        segments.append(mdct_container.CodedSegment(step, 24, encode(segment)))
    decoded, _ = codec.decompress(mdct_container.pack(header, segments))
    assert np.isfinite(decoded).all() and np.abs(decoded).max() > 2.0**40


def test_stft_files_are_decoded_in_part_and_not_concealed():
    samples = speech(20_000)[:, None]
    data = codec.compress(samples, RATE, STFTSettings(mask="random", decoder="nearest"))
    whole, _ = codec.decompress(data)
    part, _ = codec.decompress(data, start=0.5, duration=0.25)
    assert (part == whole[8_000:12_000]).all()
    with pytest.raises(JaxsparseError, match="concealed"):
        codec.decompress(data, conceal=True)
    assert codec.describe(data)["grid"] == "stft"


def kept(data, channel=0):
    """Which coefficients a file keeps in a channel."""
    header, segments = mdct_container.unpack(data)
    models = load_codec().models
    own = segments[channel * header.n_segments :][: header.n_segments]
    frames = map(header.segment_frames, range(header.n_segments))
    decoded = [
        mdct_stream.decode_segment(s.data, n, s.rate, models)
        for s, n in zip(own, frames, strict=True)
    ]
    return np.concatenate([segment.values for segment in decoded], axis=1) != 0


@pytest.mark.parametrize(
    ("n_samples", "effort"),
    [
        (7_900, 0),
        pytest.param(90_000, 0, marks=pytest.mark.slow),
        pytest.param(7_900, 1, marks=pytest.mark.slow),
    ],
)
def test_a_file_keeps_what_the_mask_keeps(n_samples, effort):
    samples = speech(n_samples)[:, None]
    shape = (256, mdct_container.unpack(codec.compress(samples, RATE)).header.n_frames)
    likely = np.exp(-np.arange(256) / 60)[:, None]
    mask = np.random.default_rng(0).random(shape) < 0.3 * likely
    data = codec.compress(samples, RATE, MDCTSettings(effort=effort), mask=mask)
    assert (kept(data) == mask).all()
    decoded, _ = codec.decompress(data)
    assert decoded.shape == samples.shape and np.isfinite(decoded).all()


@pytest.mark.slow
def test_each_channel_may_have_a_mask_of_its_own():
    samples = np.stack([speech(20_000), speech(20_000, seed=1)], axis=1)
    masks = np.random.default_rng(0).random((2, 256, 80)) < 0.05
    data = codec.compress(samples, RATE, MDCTSettings(kbps=24.0), mask=masks)
    assert all((kept(data, channel) == masks[channel]).all() for channel in range(2))
    with pytest.raises(JaxsparseError, match="80 frames"):
        codec.compress(samples, RATE, mask=masks[..., :79])
    with pytest.raises(JaxsparseError, match="sparsity of its own"):
        codec.compress(samples, RATE, MDCTSettings(sparsity=0.9), mask=masks)


@pytest.mark.slow
def test_the_mask_of_a_file_gives_that_file_again():
    samples = speech(48_000)[:, None]
    data = codec.compress(samples, RATE, MDCTSettings(kbps=8.0))
    again = codec.compress(samples, RATE, MDCTSettings(kbps=8.0), mask=kept(data))
    assert len(again) == pytest.approx(len(data), rel=0.02)
    decoded = [codec.decompress(each)[0] for each in (data, again)]
    scores = [pesq(samples, each, "wb") for each in decoded]
    assert scores[0] == pytest.approx(scores[1], abs=0.1)


@pytest.mark.slow
def test_the_estimate_of_quality_is_near():
    samples = speech(48_000)[:, None]
    estimates = []
    for wanted in (4.0, 16.0):
        data = codec.compress(samples, RATE, MDCTSettings(kbps=wanted))
        estimates.append(codec.describe(data)["pesq_wb_estimate"])
        score = pesq(samples, codec.decompress(data)[0], "wb")
        assert estimates[-1] == pytest.approx(score, abs=0.7)
    assert estimates[0] < estimates[1]


@pytest.mark.slow
def test_bits_are_split(long_file):
    models = codec.find_models(long_file)
    description = codec.describe(long_file, models=models)
    parts = description["part_bits"]
    assert sum(parts.values()) == 8 * len(long_file)
    assert parts["signs"] == description["kept"] == np.count_nonzero(kept(long_file))
    assert 0 <= parts["filling"] < 80 and min(parts.values()) >= 0
    assert description["segments_decoded"] == 2
    # As many coefficients at random would take about the entropy of the share.
    share = parts["signs"] / kept(long_file).size
    entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    assert 0.3 * entropy < parts["mask"] / kept(long_file).size < entropy


@pytest.mark.slow
def test_bits_of_a_long_file_are_estimated_by_some_segments(long_file):
    header, segments = mdct_container.unpack(long_file)
    header = make_header(n_samples=20 * mdct_container.FRAMES_PER_SEGMENT * 256 - 256)
    data = mdct_container.pack(header, [segments[0]] * 20)
    description = codec.describe(data, models=codec.find_models(data))
    assert description["segments_decoded"] < 20
    whole = mdct_stream.decode_segment(
        segments[0].data, 320, segments[0].rate, load_codec().models
    ).values
    assert description["kept"] == 20 * np.count_nonzero(whole)
    assert sum(description["part_bits"].values()) == 8 * len(data)


def test_models_are_those_of_the_file(long_file, tmp_path):
    header, segments = mdct_container.unpack(long_file)
    other = replace(header, codec_sha256="0" * 16)
    data = mdct_container.pack(other, segments)
    assert codec.find_models(data) is None
    assert "coefficients" in codec.describe(data)["part_bits"]
    assert codec.find_models(mdct_container.pack(replace(header, codec="mine"), segments)) is None
    shipped = pretrained.shipped("mdct")
    models = codec.find_models(long_file, shipped)
    assert models is not None and models.keys() == load_codec().models.keys()
    with pytest.raises(JaxsparseError, match="other weights"):
        codec.find_models(data, shipped)
    (tmp_path / "no.json").write_text("[]")
    with pytest.raises(JaxsparseError, match="no codec"):
        codec.find_models(data, tmp_path / "no.safetensors")
