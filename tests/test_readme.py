import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.decoders import DECODERS
from jaxsparse.pretrained import load_decoder, save_weights

ROOT = Path(__file__).resolve().parent.parent
README, MASKS, DEVICES = (ROOT / path for path in ("README.md", "docs/masks.md", "docs/devices.md"))
MARK = "<!-- tests/test_readme.py runs this -->"


def run_block(number, path=README):
    """Runs one of the blocks that say so as it stands, and returns its names."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(rf"^{MARK}\n```python\n(.*?)```", text, re.S | re.M)
    assert len(blocks) == text.count(MARK) == (1 if path == DEVICES else 2)
    names: dict[str, Any] = {"__name__": "readme"}
    exec(blocks[number], names)
    return names


def test_a_decoder_of_ones_own(monkeypatch, tmp_path):
    """It completes a spectrogram, also after its weights were saved by its name."""
    monkeypatch.setitem(DECODERS, "stripes", None)
    config = run_block(0)["StripesConfig"](5)
    decoder = config.build()
    params = decoder.init(jax.random.key(0))
    save_weights(tmp_path / "own.safetensors", params, config, {})
    loaded = load_decoder(tmp_path / "own.safetensors")
    assert loaded.decoder is decoder and decoder.halo == 2
    levels = jnp.arange(600.0).reshape(20, 30)
    expected = decoder.apply(params, levels, levels % 3 == 0)
    assert expected.shape == (20, 30) and jnp.ptp(expected) > 1
    np.testing.assert_array_equal(
        loaded.decoder.apply(loaded.params, levels, levels % 3 == 0), expected
    )
    with pytest.raises(ValueError, match="length"):
        type(config)(0)


def test_a_search_and_an_objective_of_ones_own():
    """It finds what it looks for."""
    names = run_block(1)
    result = names["result"]
    mask = result.mask((16, 32))
    assert int(mask.sum()) == 80
    assert names["objective"](mask)[0] == result.best.loss == 0.0


def test_what_rounding_keeps_is_what_the_page_says():
    shares = run_block(0, MASKS)["shares"]
    lines = re.findall(
        r"^\| `([a-z-]+)`[^|]* \| ([0-9.]+) \| ([0-9.]+) \|$", MASKS.read_text(), re.M
    )
    said = {
        (name, steepness): float(value)
        for name, *values in lines
        for steepness, value in zip((1.0, 10.0), values, strict=True)
    }
    assert said == {place: round(share, 2) for place, share in shares.items()}


def test_a_search_on_all_devices():
    """It finds the mask that the page asks for."""
    result = run_block(0, DEVICES)["result"]
    assert int(result.mask((64, 32)).sum()) == 100
    assert result.first > result.best.loss == -result.mask((64, 32))[:8].sum()


def test_an_annealed_relaxation_ends_nearly_hard(key):
    """It does so at the update that the page names, and not before."""
    to_mask = run_block(1, MASKS)["relaxation"].to_mask
    scores = jax.random.normal(key, (32, 16))
    between = []
    for update in (0, 64):
        mask = to_mask(scores, jnp.int32(60), jnp.int32(update))
        between.append(float(jnp.mean((mask > 0.01) & (mask < 0.99))))
    assert between[1] < 0.25 * between[0]
