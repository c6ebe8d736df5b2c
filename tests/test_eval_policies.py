import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from pesq import pesq
from test_reference_metrics import speech_like

from eval import policies as program
from eval.reconstruction import mask_key
from jaxsparse.audio import read_audio
from jaxsparse.masks import count_observed
from jaxsparse.nn.pyramid import fill
from jaxsparse.policies import POLICIES
from jaxsparse.reconstruct import to_waveform
from jaxsparse.spectrogram import log_power, phase_mask
from jaxsparse.transforms.stft import stft
from jaxsparse.types import SAMPLE_RATE

N_SAMPLES = 12_000


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for i in range(3):
        soundfile.write(folder / f"{i}.flac", speech_like(N_SAMPLES / 16_000, i), SAMPLE_RATE)
    return folder


def flags(data, *more):
    return ["--data", str(data), "--n-samples", str(N_SAMPLES), "--workers", "2", *more]


@pytest.mark.slow
def test_a_mask_is_scored_as_by_hand(data, capsys):
    options = ["--clips", "1", "--policies", "contrast", "--sparsity", "0.9", "--json"]
    assert program.main(flags(data, *options, "--phase-threshold", "60")) == 0
    summary = json.loads(capsys.readouterr().out)
    signal = read_audio(data / "0.flac")[0][:, 0]
    spectrum = stft(jnp.asarray(signal))
    levels = log_power(spectrum)
    mask = POLICIES["contrast"](mask_key(0, "0.flac"), levels, count_observed(levels.shape, 0.9))
    filled = jnp.where(mask, levels, jax.jit(fill)(levels, mask))
    phase = jnp.where(phase_mask(levels, 60.0), jnp.angle(spectrum), 0)
    sound = np.asarray(to_waveform(filled, phase, length=N_SAMPLES))
    [group] = summary["groups"]
    assert group["policy"] == "contrast" and group["sparsity"] == 0.9
    error = np.mean(np.square(np.asarray(filled, np.float64) - np.asarray(levels)))
    assert group["mse"]["mean"] == pytest.approx(error, rel=1e-4)
    # PESQ in steps of the sound's last bits.
    assert group["pesq_wb"]["mean"] == pytest.approx(pesq(16_000, signal, sound, "wb"), abs=1e-2)
    assert 0 < group["seconds"]["mean"] < 10 and group["stoi"]["clips"] == 1


@pytest.mark.slow
def test_a_grid_has_all_settings_once(data, capsys):
    grid = ["--share", "0.25", "1", "--window", "5", "9", "--damping", "0.5"]
    names = ["--policies", "random", "blue-noise", "mixed", "contrast", "contrast"]
    options = ["--clips", "2", "--decoder", "nearest", "--sparsity", "0.9", "0.95"]
    assert program.main(flags(data, *options, *names, *grid)) == 0
    table = capsys.readouterr().out
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]
    labels = [
        *("random", "blue-noise", "mixed, share 0.25", "mixed, share 1"),
        *(f"contrast, share {s}, window {w}, damping 0.5" for w in (5, 9) for s in ("0.25", "1")),
    ]
    expected = [(f"| {label}", sparsity) for sparsity in ("0.9", "0.95") for label in labels]
    assert [tuple(line[:2]) for line in lines] == expected
    assert "Clips: 2; decoder: nearest; phases: all" in table
    # Not all rows are those of one policy.
    assert len({line[2] for line in lines}) == len(lines)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--policies", "loud"], "no policy is named 'loud'"),
        (["--window", "8"], "window 8 is not odd and positive"),
        (["--share", "0.0001"], "share 1/10000 is not from 0 to 1, in thousandths"),
        (["--share", "nan"], "share must be a number"),
        (["--damping", "inf"], "damping must be a number"),
        (["--sparsity", "1"], "sparsity needs"),
        (["--clips", "0"], "clips must be at least 1"),
        (["--decoder", "absent"], "absent"),
    ],
)
def test_bad_input_is_refused_in_one_line(data, capsys, options, reason):
    assert program.main(flags(data, *options)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("eval.policies: ") and reason in line


def test_an_unreadable_clip_is_named(tmp_path, capsys):
    (tmp_path / "bad.flac").write_bytes(b"fLaC and no more")
    assert program.main(flags(tmp_path, "--policies", "random")) == 2
    assert "eval.policies: bad.flac: " in capsys.readouterr().err
