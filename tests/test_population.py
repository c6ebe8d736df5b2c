import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxsparse.masks import pack_mask, random_mask, unpack_mask
from jaxsparse.search.genetic import GeneticConfig, genetic
from jaxsparse.search.population import chunk_size, evaluate

SHAPE, COUNT = (4, 5), 6


def test_chunks_keep_to_their_bytes():
    shape = (64, 64)

    def spectral(mask):
        # Some floats for every entry.
        return jnp.sum(jnp.sin(jnp.fft.fft2(mask.astype(jnp.float32)).real)), None

    budget = 1 << 20
    few, many = (chunk_size(spectral, shape, n) for n in (1, budget))
    assert few == 1 and many > 1
    masks = jax.ShapeDtypeStruct((many, *shape), bool)
    memory = jax.jit(jax.vmap(spectral)).lower(masks).compile().memory_analysis()
    assert memory is not None
    assert budget / 4 < memory.temp_size_in_bytes + memory.output_size_in_bytes <= budget
    with pytest.raises(ValueError, match="positive"):
        chunk_size(spectral, shape, 0)


@pytest.mark.parametrize(("n", "chunk"), [(1, 4), (7, 3), (12, 5), (12, 50)])
def test_population_of_any_size_is_evaluated_whole(n, chunk):
    keys = jax.random.split(jax.random.key(0), n)
    draw = jax.jit(jax.vmap(lambda key: pack_mask(random_mask(key, SHAPE, COUNT))))
    bits = draw(keys)
    powers = 2.0 ** jnp.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE)

    def exact(mask):
        return jnp.sum(mask * powers), None

    expected = [exact(unpack_mask(packed, SHAPE))[0] for packed in bits]
    losses, _ = evaluate(exact, bits, SHAPE, chunk)
    np.testing.assert_array_equal(losses, expected)
    assert len(set(losses.tolist())) == n


@pytest.mark.slow
def test_memory_beyond_the_packed_population_does_not_grow_with_it():
    shape, count = (128, 64), 400
    weights = jax.random.normal(jax.random.key(0), shape)

    def linear(weights, mask):
        return jnp.sum(weights * mask), None

    def memory(size):
        objective = Partial(linear, weights)
        search = genetic(objective, shape, count, GeneticConfig(size), chunk_bytes=1 << 18)
        key = jax.random.key(0)
        state = jax.eval_shape(search.init, key)
        analysis = jax.jit(search.step).lower(key, state).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    few, many = memory(50), memory(5_000)
    packed = 5_000 * shape[0] * shape[1] // 8
    # The next population and its parts; unpacked, even one of them would be eight times as much.
    assert many - few < 3 * packed
    assert few < 1 << 20
