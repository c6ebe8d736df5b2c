"""The benchmark of the parts: its table, and cases that need no peer."""

import json

import pytest

from benchmarks.speed import __main__ as speed
from jaxsparse.errors import JaxsparseError


def row(case, variant, seconds, **more):
    ratio = 2.0 / seconds
    found = {"case": case, "clips": 1, "variant": variant, "seconds": seconds, "ratio": ratio}
    return found | {"floor_seconds": 0.5, "machine": "cpu, 2 threads"} | more


def test_the_table_gives_ratios():
    rows = [
        row("forward", "ours", 2.0, peak_bytes=3_000_000),
        row("forward", "torch", 4.0),
        row("codec", "ours", 1.0) | {"floor_seconds": 0.0},
    ]
    lines = speed.table(rows).splitlines()
    assert lines[2] == "| forward | 1 | ours |  | 4.0 | 3 |"
    assert lines[3] == "| forward | 1 | torch | 0.50 | 8.0 |  |"
    assert lines[4] == "| codec | 1 | ours |  |  |  |"
    assert lines[-1] == "On cpu, 2 threads."


def test_an_unknown_case_is_named():
    with pytest.raises(JaxsparseError, match="no case is named 'guess'; there are forward,"):
        speed.run(speed.Settings(cases=("guess",)))


@pytest.mark.slow
def test_a_case_without_a_peer_is_timed(tmp_path):
    kept = [row("stft", "ours", 1.0)]
    (tmp_path / "rows.json").write_text(json.dumps(kept))
    settings = speed.Settings(cases=("swaps-unet",), repeats=1, memory=False, out=tmp_path)
    (found,) = speed.run(settings)
    assert (found["case"], found["variant"], found["ratio"]) == ("swaps-unet", "ours", 1.0)
    assert 0 < found["floor_seconds"] < found["seconds"] < 60
    # What another run measured stays.
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [each["case"] for each in rows] == ["swaps-unet", "stft"]
    assert "| swaps-unet | 1 | ours |" in (tmp_path / "table.md").read_text()
