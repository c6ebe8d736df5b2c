from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxsparse import policies
from jaxsparse.masks import (
    count_observed,
    project_to_count,
    random_mask,
    sparsity,
)

pytestmark = pytest.mark.usefixtures("strict_dtypes")

CLIP = (1025, 302)
COUNTS = {0.8: 61_910, 0.85: 46_432, 0.9: 30_955, 0.95: 15_477}
SHAPE = (6, 7)
# Few values, so that most of them tie, among them all that sort badly.
SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38]
special_scores = arrays(np.float32, SHAPE, elements=st.sampled_from(SPECIAL))
any_scores = arrays(np.float32, SHAPE, elements=st.floats(width=32))
counts = st.integers(0, 42)

# Their counts are traced.
project = jax.jit(project_to_count)
draw = jax.jit(random_mask, static_argnums=1)
mix = jax.jit(policies.mixed)


@pytest.mark.parametrize(("hidden", "count"), COUNTS.items())
def test_count_observed_of_a_clip(hidden, count):
    assert count_observed(CLIP, hidden) == count
    assert count_observed(CLIP, str(hidden)) == count
    assert count_observed(CLIP, Fraction(str(hidden))) == count
    assert count_observed(CLIP, float(np.float32(hidden).astype(str))) == count


def test_count_observed_is_exact_where_float64_is_not():
    assert int((1 - 0.8) * 1025 * 302) == 61_909
    assert int((1 - 0.9) * 1025 * 302) == 30_954
    for thousandths in range(1001):
        expected = (1000 - thousandths) * 1025 * 302 // 1000
        assert count_observed(CLIP, f"{thousandths / 1000:.3f}") == expected
        assert count_observed(CLIP, thousandths / 1000) == expected


def test_count_observed_at_the_ends():
    assert count_observed((7, 3), "0") == 21
    assert count_observed((7, 3), 1.0) == 0
    assert count_observed((0, 3), 0.5) == 0
    assert count_observed((), "0") == 1


@pytest.mark.parametrize("value", [-0.1, 1.01, "95", "nan", "inf", "-inf", "many", "", "1/0"])
def test_count_observed_refuses_what_is_no_share(value):
    with pytest.raises(ValueError):
        count_observed(CLIP, value)


@pytest.mark.optimised
@pytest.mark.parametrize(("hidden", "count"), COUNTS.items())
def test_exact_counts_on_a_clip(key, hidden, count):
    spectrogram = jnp.round(40 * jax.random.normal(key, CLIP))
    masks = {
        "random": draw(key, CLIP, count),
        "loudest": jax.jit(policies.loudest)(key, spectrogram, count),
        "mixed": mix(key, spectrogram, count),
        "of equals": project(jnp.zeros(CLIP), count),
    }
    for name, mask in masks.items():
        assert mask.shape == CLIP and mask.dtype == jnp.bool_, name
        assert int(mask.sum()) == count, name
        assert float(sparsity(mask)) == pytest.approx(hidden, abs=1e-5), name
    assert masks["of equals"].ravel()[:count].all()


@pytest.mark.optimised
@given(special_scores | any_scores, counts)
def test_project_to_count_equals_a_stable_sort(scores, count):
    expected = reference.project_to_count(scores, count)
    assert expected.sum() == count
    np.testing.assert_array_equal(project(jnp.asarray(scores), count), expected)


@pytest.mark.parametrize("count", [0, 1, 41, 42])
def test_project_to_count_equals_a_stable_sort_with_static_counts(count):
    scores = np.random.default_rng(0).integers(-2, 3, SHAPE).astype(np.float32)
    mask = project_to_count(jnp.asarray(scores), count)
    np.testing.assert_array_equal(mask, reference.project_to_count(scores, count))


@pytest.mark.parametrize("count", [-1, 43])
def test_impossible_counts_are_refused(key, count):
    with pytest.raises(ValueError, match=f"can't keep {count}"):
        project_to_count(jnp.zeros(SHAPE), count)
    with pytest.raises(ValueError, match="can't keep"):
        random_mask(key, SHAPE, count)
    with pytest.raises(ValueError, match="can't keep"):
        policies.mixed(key, jnp.zeros(SHAPE), count)


@pytest.mark.optimised
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_project_to_count_takes_other_floats(dtype):
    try:
        scores = jnp.asarray(jnp.array([1.0, 3.0, 2.0, 3.0]), dtype)
    except jax.errors.JaxRuntimeError:
        if dtype != jnp.float16:
            raise
        pytest.skip("XLA compiles no float16 for processors without F16C")
    np.testing.assert_array_equal(project_to_count(scores, 2), [False, True, False, True])


@pytest.mark.slow
@pytest.mark.optimised
def test_vmap_equals_loop_where_every_count_differs(key):
    scores = jnp.round(jax.random.normal(key, (5, *SHAPE)))
    numbers = jnp.array([0, 1, 20, 41, 42])
    keys = jax.random.split(key, 5)
    masks = jax.jit(jax.vmap(project_to_count))(scores, numbers)
    mixed = jax.jit(jax.vmap(policies.mixed))(keys, scores, numbers)
    drawn = jax.jit(jax.vmap(lambda k, n: random_mask(k, SHAPE, n)))(keys, numbers)
    for i, count in enumerate([0, 1, 20, 41, 42]):
        np.testing.assert_array_equal(
            masks[i], reference.project_to_count(np.asarray(scores[i]), count)
        )
        np.testing.assert_array_equal(mixed[i], mix(keys[i], scores[i], count))
        np.testing.assert_array_equal(drawn[i], draw(keys[i], SHAPE, count))
        assert int(mixed[i].sum()) == int(drawn[i].sum()) == count


def assert_uniform(frequencies, n_draws, share):
    """A chi-square test of how often each entry was drawn, at four standard deviations.

    A fixed count makes entries repel each other, which takes one degree of freedom.
    """
    n_entries = frequencies.size
    squares = (frequencies - n_draws * share) ** 2 / (n_draws * share * (1 - share))
    statistic = squares.sum() * (n_entries - 1) / n_entries
    assert abs(statistic - (n_entries - 1)) < 4 * np.sqrt(2 * (n_entries - 1))


def test_random_masks_are_uniform_and_independent():
    n_draws, shape, count = 4000, (12, 25), 60
    keys = jax.random.split(jax.random.key(1), n_draws)
    masks = np.asarray(jax.jit(jax.vmap(lambda k: random_mask(k, shape, count)))(keys))
    assert (masks.sum(axis=(1, 2)) == count).all()
    assert_uniform(masks.sum(axis=0), n_draws, count / 300)
    assert len(np.unique(masks.reshape(n_draws, -1), axis=0)) == n_draws
    # Two entries are both drawn with this probability, neighbours or not.
    both = count / 300 * (count - 1) / 299
    flat = masks.reshape(n_draws, -1)
    for distance in (1, 25, 150):
        together = (flat & np.roll(flat, distance, axis=1)).sum(axis=0)
        assert together.mean() == pytest.approx(n_draws * both, rel=0.02)
        # Pairs that share an entry are nearly independent; hence the same test, half as strict.
        squares = (together - n_draws * both) ** 2 / (n_draws * both * (1 - both))
        assert abs(squares.sum() - 300) < 8 * np.sqrt(600)


def test_random_mask_depends_on_its_key_alone(key):
    first = draw(key, SHAPE, 20)
    np.testing.assert_array_equal(first, random_mask(key, SHAPE, 20))
    assert (first != draw(jax.random.key(1), SHAPE, 20)).any()
    # A larger count of the same key adds to the mask.
    assert (first <= draw(key, SHAPE, 30)).all()


@pytest.mark.optimised
@pytest.mark.parametrize("count", [0, 1, 2, 59, 60, 150, 299, 300])
def test_mixed_mask_holds_the_loudest_half(key, count):
    spectrogram = jnp.round(3 * jax.random.normal(key, (12, 25)))  # with ties
    mask = mix(jax.random.key(1), spectrogram, count)
    assert int(mask.sum()) == count
    loudest = reference.project_to_count(np.asarray(spectrogram), count // 2)
    assert np.asarray(mask)[loudest].all()


def test_the_other_half_of_a_mixed_mask_is_uniform():
    n_draws, count = 4000, 61
    spectrogram = jax.random.normal(jax.random.key(0), (12, 25))
    keys = jax.random.split(jax.random.key(1), n_draws)
    masks = np.asarray(jax.jit(jax.vmap(lambda k: policies.mixed(k, spectrogram, count)))(keys))
    loudest = reference.project_to_count(np.asarray(spectrogram), 30)
    frequencies = masks.sum(axis=0)
    assert (frequencies[loudest] == n_draws).all()
    assert_uniform(frequencies[~loudest], n_draws, 31 / 270)
    levels = np.asarray(spectrogram)[~loudest]
    assert abs(np.corrcoef(levels, frequencies[~loudest])[0, 1]) < 4 / np.sqrt(270)


def test_no_sort_and_no_copy_for_each_entry(key):
    """Sorting takes keys and indices beside the entries; here the threshold is searched for."""
    functions = {
        "project_to_count": lambda s: project_to_count(s, 20),
        "random_mask": lambda s: random_mask(key, s.shape, 20),
        "mixed_mask": lambda s: policies.mixed(key, s, 20),
    }
    for name, function in functions.items():
        used = reference.primitives(function, jnp.zeros(SHAPE))
        assert not {"sort", "top_k", "approx_top_k", "gather", "scatter"} & set(used), name
    assert "sort" in reference.primitives(jnp.argsort, jnp.zeros(SHAPE))

    def temporaries(side):
        lowered = project.lower(jax.ShapeDtypeStruct((side, side), jnp.float32), 20)
        memory = lowered.compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes / side**2

    # Ranks and running counts: a few words per entry, however many entries.
    assert temporaries(1000) < 24
    assert temporaries(1000) < 1.1 * temporaries(250)
