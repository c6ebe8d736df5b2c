"""Several devices, made of one processor by a program of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxsparse import sharding

# With fewer threads, devices that wait for each other hang on two cores.
EIGHT_DEVICES = {"JAX_NUM_CPU_DEVICES": "8", "NPROC": "16"}
PROGRAM = Path(__file__).with_name("on_devices.py")


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_a_search_is_the_same_on_any_number_of_devices(devices):
    command = [sys.executable, str(PROGRAM), str(devices)]
    environment = os.environ | EIGHT_DEVICES
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["split"]
    line = found["devices"][str(devices)]
    assert line["same masks"] and line["difference"] < 1e-6


def test_without_a_mesh_there_is_one_device():
    assert sharding.n_devices() == 1
    tree = {"a": [1, 2]}
    assert sharding.split(tree) is tree
    with jax.set_mesh(sharding.make_mesh(1)):
        assert sharding.n_devices() == 1


@pytest.mark.parametrize("n", [0, 1_000])
def test_a_mesh_has_the_devices_that_there_are(n):
    with pytest.raises(ValueError, match=f"a mesh has 1 to [0-9]+ devices here, not {n}"):
        sharding.make_mesh(n)
