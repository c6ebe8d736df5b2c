"""The header of a ``.jsac`` file: limits, bytes, and what follows from it."""

import tracemalloc

import jaxtyping
import pytest

from jaxsparse.codec import container
from jaxsparse.errors import ContainerError
from tests.jsac_files import forge, make_file, make_header, small_header


def test_what_follows_from_the_header():
    header = make_header(sample_rate=44_100, n_samples=1_000_001)
    assert header.n_coded_samples == 362_813
    assert header.n_frames == 1 + 362_813 // 256 == 1418
    assert header.n_segments == 5
    assert header.segment_shape(3) == (1025, 302)
    assert header.segment_shape(4) == (1025, 210)


@pytest.mark.parametrize(
    ("sparsity", "count"), [("0.8", 61_910), ("0.85", 46_432), ("0.9", 30_955), ("0.95", 15_477)]
)
def test_counts_are_exact(sparsity, count):
    assert make_header(sparsity=sparsity).count(0) == count


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_samples", 0),
        ("n_samples", 2**40),
        ("n_samples", 2**64 - 1),
        ("n_samples", 77_276),
        ("n_samples", 2**31),
        ("sample_rate", 0),
        ("sample_rate", 999),
        ("sample_rate", 2**32 - 1),
        ("channels", 0),
        ("channels", 2),
        ("channels", 33),
        ("coded_rate", 16_001),
        ("n_fft", 0),
        ("n_fft", 33),
        ("n_fft", 2**14),
        ("n_fft", 2**31),
        ("win_length", 0),
        ("win_length", 33),
        ("win_length", 7),
        ("hop_length", 0),
        ("hop_length", 3),
        ("hop_length", 17),
        ("window", 1),
        ("center", 0),
        ("center", 2),
        ("pad_mode", 1),
        ("frames_per_segment", 0),
        ("frames_per_segment", 303),
        ("mask", 3),
        ("value_step_mdb", 0),
        ("value_step_mdb", 2**32 - 1),
        ("phase_bits", 0),
        ("phase_bits", 13),
        ("keep_observed", 2),
    ],
)
def test_forged_header_is_refused_without_large_memory(name, value):
    data, _ = make_file(small_header())
    tracemalloc.start()
    with pytest.raises(ContainerError):
        container.unpack(forge(data, **{name: value}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


@pytest.mark.parametrize(
    "name", ["seed", "phase_bits", "phase_threshold", "n_samples", "value_step_mdb"]
)
def test_whole_numbers_are_integers(name, monkeypatch):
    # The tests' own checks of types would come first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for value in (60.5, 60.0, True, "60"):
        with pytest.raises(ContainerError, match=f"{name} .* integer"):
            make_header(**{name: value})


def test_forging_works_at_all():
    data, _ = make_file(small_header())
    assert container.unpack(forge(data, seed=77)).header.seed == 77
    assert container.unpack(forge(data, sample_rate=16_001)).header.sample_rate == 16_001


@pytest.mark.parametrize(
    "sparsity", ["0", "1", "0.0", "1.5", "-0.5", "nan", "0.9e3", "0.5x", "", "0." + 19 * "1"]
)
def test_sparsity_is_a_plain_decimal(sparsity):
    with pytest.raises(ContainerError):
        make_header(sparsity=sparsity)
