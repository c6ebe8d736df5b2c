"""One table of contract tests for `POLICIES`, and what each of them chooses."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from jaxsparse import cli, policies
from jaxsparse.contracts import Policy
from jaxsparse.policies import POLICIES, ScoredPolicy

SHAPE = (90, 14)
COUNTS = (0, 1, 2, 59, 600, 1259, 1260)
each = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


@pytest.fixture(scope="module")
def spectrogram():
    """Levels in whole dB, so that many tie."""
    return jnp.round(10 * jax.random.normal(jax.random.key(3), SHAPE) - 30)


@each
def test_the_count_is_exact_traced_or_not(policy, spectrogram, key):
    assert isinstance(policy, Policy)
    make = jax.jit(policy)
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
    masks = jax.vmap(policy, (0, 0, None))(keys, clips, 100)
    for own, clip, mask in zip(keys, clips, masks, strict=True):
        np.testing.assert_array_equal(mask, policy(own, clip, 100))


@each
def test_the_key_decides_on_what_is_drawn_alone(policy, spectrogram, key):
    one, again, other = (policy(k, spectrogram, 600) for k in (key, key, jax.random.key(9)))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any() == (policy is not policies.loudest)
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


def test_only_the_random_policy_ignores_the_content():
    ignoring = [
        name for name, policy in POLICIES.items() if not policies.depends_on_content(policy)
    ]
    assert ignoring == ["random"]
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
