"""One table of contract tests for `POLICIES`, and what each of them chooses."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from jaxsparse import cli, policies
from jaxsparse.blue_noise import blue_noise_mask
from jaxsparse.contracts import Policy
from jaxsparse.densification import Densification
from jaxsparse.interpolate import Linear
from jaxsparse.masks import random_mask
from jaxsparse.nn.pyramid import PyramidConfig
from jaxsparse.policies import POLICIES, Audibility, Contrast, ScoredPolicy
from jaxsparse.spectrogram import log_power
from jaxsparse.transforms.stft import stft

SHAPE = (90, 14)
COUNTS = (0, 1, 2, 59, 600, 1259, 1260)
# They fill in with whole networks, round by round.
SLOW = ("learned", "densification-unet")
each = pytest.mark.parametrize(
    "policy",
    [
        pytest.param(policy, id=name, marks=[pytest.mark.slow] * (name in SLOW))
        for name, policy in POLICIES.items()
    ],
)


@pytest.fixture(scope="module")
def spectrogram():
    """Levels in whole dB, so that many tie."""
    return jnp.round(10 * jax.random.normal(jax.random.key(3), SHAPE) - 30)


@each
def test_the_count_is_exact_traced_or_not(policy, spectrogram, key):
    assert isinstance(policy, Policy)
    make = jax.jit(policy)
    # Some load a network.
    policy(key, spectrogram, 1)
    with reference.Compilations() as compilations:
        for count in COUNTS:
            mask = make(key, spectrogram, count)
            assert mask.shape == SHAPE and mask.dtype == bool and np.asarray(mask).sum() == count
    assert compilations.count == 1
    np.testing.assert_array_equal(policy(key, spectrogram, 59), make(key, spectrogram, 59))


@each
def test_a_count_out_of_range_is_refused(policy, spectrogram, key):
    for count in (-1, spectrogram.size + 1):
        with pytest.raises(ValueError, match="can't keep"):
            policy(key, spectrogram, count)


@each
def test_batches_are_loops(policy, key):
    keys = jax.random.split(key, 3)
    clips = jax.random.normal(key, (3, *SHAPE))
    masks = jax.jit(jax.vmap(policy, (0, 0, None)))(keys, clips, 100)
    alone = jax.jit(policy)
    for own, clip, mask in zip(keys, clips, masks, strict=True):
        np.testing.assert_array_equal(mask, alone(own, clip, 100))


@each
def test_the_key_decides_on_what_is_drawn_alone(policy, spectrogram, key):
    one, again, other = (policy(k, spectrogram, 600) for k in (key, key, jax.random.key(9)))
    np.testing.assert_array_equal(one, again)
    by_score_alone = isinstance(policy, ScoredPolicy) and policy.share == 1
    assert (one != other).any() != by_score_alone
    if isinstance(policy, ScoredPolicy):
        chosen = policy.choose(spectrogram, policy.n_chosen(600))
        assert bool(jnp.all(one & other | ~chosen)), "what is chosen by score is in both"


@pytest.mark.parametrize(
    ("share", "count"), [("0.7", 10**9), ("0.333", 10**9), ("0.999", 2**31 - 1), ("1", 7)]
)
def test_the_number_chosen_by_score_is_exact_in_32_bits(share, count):
    policy = ScoredPolicy(policies.level, Fraction(share), "any")
    expected = int(Fraction(share) * count)
    assert policy.n_chosen(count) == expected
    assert int(jax.jit(policy.n_chosen)(jnp.int32(count))) == expected


def test_contrast_is_the_level_above_the_mean_around(spectrogram):
    levels = np.asarray(spectrogram, np.float64)
    padded = np.pad(levels, ((32, 32), (0, 0)), mode="edge")
    expected = np.stack([levels[f] - 0.6 * padded[f : f + 65].mean(axis=0) for f in range(90)])
    np.testing.assert_allclose(policies.contrast(spectrogram), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["contrast", "contrast-70"])
def test_contrast_keeps_what_stands_out_and_not_what_is_loud(name, key):
    """A plateau is louder than the lines beyond it, which stand out more."""
    spectrum = np.full((300, 4), -80.0)
    spectrum[:150] = -20.0
    spectrum[200::10] = -30.0
    policy = POLICIES[name]
    assert isinstance(policy, ScoredPolicy)
    chosen = policy.choose(jnp.asarray(spectrum, jnp.float32), 40)
    assert set(np.flatnonzero(np.asarray(chosen).any(1))) == set(range(200, 300, 10))


@pytest.mark.parametrize(("window", "damping"), [(1, 0.25), (7, 1.0), (201, 0.0)])
def test_contrast_has_settings(window, damping, spectrogram):
    half = window // 2
    levels = np.asarray(spectrogram, np.float64)
    padded = np.pad(levels, ((half, half), (0, 0)), mode="edge")
    around = np.stack([padded[f : f + window].mean(axis=0) for f in range(90)])
    score = Contrast(window, damping)
    np.testing.assert_allclose(score(spectrogram), levels - damping * around, atol=1e-4)
    assert score == Contrast(window, damping) and hash(score) == hash(Contrast(window, damping))


@pytest.mark.parametrize("window", [-1, 0, 64])
def test_a_window_without_a_middle_is_refused(window):
    with pytest.raises(ValueError, match="odd and positive"):
        Contrast(window)
    with pytest.raises(ValueError, match="odd and positive"):
        densify(window=window)


def test_audibility_is_the_level_above_what_masks(spectrogram):
    """The threshold, bin by bin: what spreads from all others, and that in quiet."""
    n_bins, levels = 90, np.asarray(spectrogram, np.float64)
    hertz = np.arange(n_bins) * 8000 / (n_bins - 1)
    bark = 7 * np.arcsinh(hertz / 650)
    expected = np.zeros(SHAPE)
    for f in range(n_bins):
        distance = bark[f] - bark + 0.474
        share = 10 ** ((15.81 + 7.5 * distance - 17.5 * np.sqrt(1 + distance**2)) / 10)
        masking = share @ 10 ** (levels / 10)
        khz = max(hertz[f], 20) / 1000
        quiet = 3.64 * khz**-0.8 - 6.5 * np.exp(-0.6 * (khz - 3.3) ** 2) + khz**4 / 1000
        # 96 dB SPL is the peak of a sine of amplitude 1: half the sum of a Hann window of 178.
        quiet += 20 * np.log10(178 / 4) - 96
        expected[f] = levels[f] - 10 * np.log10(masking / 10**0.6 + 10 ** (quiet / 10))
    np.testing.assert_allclose(Audibility()(spectrogram), expected, atol=1e-3)


def test_a_sine_of_full_scale_is_played_at_its_level():
    """The threshold in quiet of 1 kHz is 3.4 dB SPL, above which a lone sine of 96 dB stands."""
    sine = np.sin(2 * np.pi * 1000 * np.arange(8192) / 16_000).astype(np.float32)
    levels = log_power(stft(jnp.asarray(sine)))
    # Masking by the sine itself counts for nothing at this offset.
    score = Audibility(offset=200.0)(levels)
    assert float(score[128, 16]) == pytest.approx(96 - 3.4, abs=0.1)


def test_what_is_masked_goes_first(key):
    """A tone beside a loud one is not heard, and one far off is."""
    spectrum = np.full((513, 1), -60.0, np.float32)
    spectrum[[100, 112, 400]] = [[20.0], [-20.0], [-20.0]]
    policy = POLICIES["masking"]
    assert isinstance(policy, ScoredPolicy)
    score = policy.score(jnp.asarray(spectrum))
    assert score[400, 0] > score[100, 0] - 20 > score[112, 0]


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.2])
def test_blue_noise_has_no_low_frequencies(share, key):
    """White noise has a power of one everywhere; holes and clumps would be low frequencies."""
    shape = (129, 101)
    count = int(share * 129 * 101)
    masks = jax.jit(jax.vmap(lambda k: blue_noise_mask(k, shape, count)))(jax.random.split(key, 8))
    power = np.abs(np.fft.fft2(masks - np.mean(masks, axis=(1, 2), keepdims=True))) ** 2
    power = power.mean(axis=0) / (share * (1 - share) * 129 * 101)
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(129), np.fft.fftfreq(101), indexing="ij"))
    # The radius of the ring on which evenly spread bins have most of their power is about this.
    low = (radius > 0) & (radius < 0.5 * np.sqrt(share))
    assert power[low].mean() < 0.25 < 0.8 < power[~low].mean()


def test_blue_noise_keeps_each_bin_as_often(key):
    draw = jax.jit(jax.vmap(lambda k: blue_noise_mask(k, (20, 12), 24)))
    masks = draw(jax.random.split(key, 4000))
    # Five standard deviations of 4,000 draws.
    np.testing.assert_allclose(np.mean(masks, axis=0), 0.1, atol=5 * np.sqrt(0.09 / 4000))


def test_more_of_blue_noise_is_more_of_the_same(key):
    draw = jax.jit(lambda count: blue_noise_mask(key, (40, 70), count))
    fewer, more = draw(100), draw(1000)
    assert bool(jnp.all(more | ~fewer))


def densify(**settings):
    return Densification(PyramidConfig().build(), **settings)


@pytest.mark.slow
def test_densification_lowers_the_error_of_its_decoder(key):
    """Against drawn bins, spread evenly or not, on lines and a plateau."""
    rows, columns = np.meshgrid(np.arange(90), np.arange(14), indexing="ij")
    levels = jnp.asarray(-60 + 40 * (rows % 9 == 0) + 20 * (columns > 6), jnp.float32)
    decoder = PyramidConfig().build()

    @jax.jit
    def error(mask):
        return jnp.mean((decoder.apply({}, levels, mask) - levels) ** 2)

    drawn = error(random_mask(key, SHAPE, 200))
    even = error(blue_noise_mask(key, SHAPE, 200))
    # Errors in dB, as the decoder's is measured.
    assert error(densify(exponent=0.0)(key, levels, 200)) < 0.85 * min(drawn, even)


@pytest.mark.slow
def test_a_round_takes_peaks_of_the_error_first(key):
    """Of a ridge of errors, its top; then, where there are no more peaks, what is largest."""
    levels = (
        jnp.full(SHAPE, -25.0).at[30:33, 4:7].set(-20.0).at[31, 5].set(0.0).at[60, 9].set(-24.0)
    )
    kept = {
        count: np.argwhere(densify(rounds=1, first_share=Fraction(0))(key, levels, count))
        for count in (1, 2)
    }
    np.testing.assert_array_equal(kept[1], [[31, 5]])
    np.testing.assert_array_equal(kept[2], [[31, 5], [60, 9]])


@pytest.mark.slow
def test_densification_by_a_name_is_that_by_the_decoder(spectrogram, key):
    by_name = jax.jit(Densification("pyramid"))
    np.testing.assert_array_equal(by_name(key, spectrogram, 200), densify()(key, spectrogram, 200))


def test_densification_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="runs on the host"):
        Densification(Linear().build())
    with pytest.raises(ValueError, match="runs on the host"):
        Densification("linear")(jax.random.key(0), jnp.zeros((3, 3)), 2)
    with pytest.raises(ValueError, match="brings its own params"):
        Densification("unet", {"a": jnp.zeros(1)})
    with pytest.raises(ValueError, match="rounds"):
        densify(rounds=0)
    with pytest.raises(ValueError, match="first_share"):
        densify(first_share=Fraction(3, 2))
    with pytest.raises(ValueError, match="exponent"):
        densify(exponent=-0.1)


def test_what_is_drawn_alone_ignores_the_content():
    ignoring = [
        name for name, policy in POLICIES.items() if not policies.depends_on_content(policy)
    ]
    assert ignoring == ["random", "blue-noise"]
    assert policies.depends_on_content(lambda key, spectrogram, count: spectrogram > 0)


def test_a_sentence_says_what_is_kept(monkeypatch):
    monkeypatch.setitem(POLICIES, "mine", lambda key, spectrogram, count: spectrogram > 0)
    assert {name: policies.describe(name) for name in ("random", "mixed", "loudest", "mine")} == {
        "random": "The bins kept are drawn at random, whatever the clip sounds like.",
        "mixed": "50% of the bins kept are the loudest ones, the others are drawn at random.",
        "loudest": "The bins kept are the loudest ones.",
        "mine": "The bins kept are those of the policy mine.",
    }


def test_the_command_line_names_them_all(capsys):
    with pytest.raises(SystemExit):
        cli.main(["compress", "--help"])
    # Lines break at hyphens too.
    told = "".join(capsys.readouterr().out.split())
    assert all(f"({name})" in told or f"({name}," in told for name in POLICIES)
