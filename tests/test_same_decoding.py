"""Committed files of version 3 decode to committed numbers, whatever a machine computes with.

The numbers are those that `tests/same_decoding.py` once gave on another setting.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import same_decoding, small_codec

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = json.loads(same_decoding.NUMBERS.read_text(encoding="utf-8"))
X86 = platform.machine() == "x86_64"
# OpenBLAS' kernels for processors of that age; on others it has those of its own.
ISAS = {"SSE4_2": "Nehalem", "AVX2": "Haswell"} if X86 else {}
ONE_THREAD = "one thread"


def show(**changes):
    """Decodes all in a process of its own, compiled as users' code is."""
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"} | changes
    command = [sys.executable, "-m", "tests.same_decoding", "--show"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    # What XLA says of a flag that it doesn't know.
    assert "Unknown" not in run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module", params=[*ISAS, ONE_THREAD])
def found(request):
    if request.param == ONE_THREAD:
        one = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        shown = show(XLA_FLAGS="--xla_cpu_multi_thread_eigen=false", **one)
        assert shown["setting"]["threads"] == [1]
        return shown
    kernels = ISAS[request.param]
    shown = show(
        XLA_FLAGS=f"--xla_cpu_max_isa={request.param}",
        OPENBLAS_CORETYPE=kernels,
    )
    assert shown["setting"]["blas"] == [kernels]
    return shown


def test_whole_numbers_are_equal(found):
    assert found["numbers"] == GOLDEN["numbers"]


def test_sound_is_that_of_elsewhere_within_a_step_of_16_bits(found):
    samples, golden = np.array(found["samples"]), np.array(GOLDEN["samples"])
    assert len(golden) > 1000 and np.abs(golden).max() > 1000
    assert np.abs(samples - golden).max() <= 1


def test_numbers_are_those_of_all_files():
    assert set(GOLDEN["numbers"]) == set(same_decoding.files())


@pytest.mark.parametrize("name", small_codec.make_models())
def test_committed_models_are_made_by_the_rule(name):
    made, committed = small_codec.make_models()[name], small_codec.models()[name]
    for part in made._fields:
        np.testing.assert_array_equal(getattr(made, part), getattr(committed, part), part)
