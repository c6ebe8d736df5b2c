"""One table over several evaluations."""

import json

import pytest
import soundfile
from test_eval import voice

from eval import compare, reconstruction


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    (folder / "clips").mkdir()
    for i in range(2):
        soundfile.write(folder / "clips" / f"{i}.wav", voice(i + 1, 0.4), 16_000)
    for name, decoders, masks in (
        ("one", ("pyramid",), ("random", "loudest")),
        ("other", ("nearest", "pyramid"), ("random",)),
    ):
        reconstruction.run(
            reconstruction.Settings(
                folder / "clips",
                folder / name,
                decoders=decoders,
                mask=masks,
                sparsity=(0.9, 0.8),
                phases=("all",),
                seeds=(0,),
                n_samples=8_000,
            )
        )
    return folder


def flags(runs, *more):
    argv = ["--runs", str(runs / "one"), str(runs / "other"), "--out", str(runs / "out")]
    return [*argv, "--decoder", "pyramid", *more]


@pytest.mark.slow
def test_every_pair_has_a_row_and_every_sparsity_a_column(runs, capsys):
    assert compare.main(flags(runs)) == 0
    text = capsys.readouterr().out
    assert text.strip() == (runs / "out" / "table.md").read_text().strip()
    assert (runs / "out" / "pesq.png").read_bytes().startswith(b"\x89PNG")
    section = text.split("## PESQ wb")[1].split("##")[0]
    lines = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert lines[0] == ["| decoder", "masks", "80 %", "90 % |"]
    assert [line[:2] for line in lines[2:]] == [
        ["| pyramid", "random"],
        ["| pyramid", "loudest"],
        ["| nearest", "random"],
    ]
    groups = json.loads((runs / "one" / "summary.json").read_text())["groups"]
    expected = next(
        g["pesq_wb"]["mean"]
        for g in groups
        if (g["mask"], g["sparsity"], g["keep_observed"]) == ("loudest", 0.9, True)
    )
    assert float(lines[3][3].split(" ±")[0]) == pytest.approx(expected, abs=5e-4)
    assert "2 clips of" in text and "Ceiling: " in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--decoder", "unet"), "no evaluation has the decoder 'unet'"),
        (("--mask", "mixed"), "no evaluation has the mask 'mixed'"),
        (("--runs", "nowhere"), "nowhere holds no finished evaluation"),
    ],
)
def test_what_is_not_there_is_named(runs, capsys, more, reason):
    assert compare.main(flags(runs, *more)) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("text", ["{", "[]", '{"groups": 1, "settings": {}, "clips": 2}'])
def test_a_damaged_summary_is_named(runs, tmp_path, capsys, text):
    (tmp_path / "summary.json").write_text(text)
    assert compare.main(flags(runs, "--runs", str(tmp_path))) == 2
    assert f"{tmp_path}/summary.json is not what" in capsys.readouterr().err


@pytest.mark.slow
def test_a_group_without_a_score_is_drawn_as_a_gap(runs, tmp_path, capsys):
    summary = json.loads((runs / "one" / "summary.json").read_text())
    for group in summary["groups"]:
        group["pesq_wb"] |= {"mean": None, "standard_error": None}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert compare.main(flags(runs, "--runs", str(tmp_path), "--out", str(tmp_path))) == 0
    assert "none" in capsys.readouterr().out


@pytest.mark.slow
def test_two_networks_of_one_name_are_refused(runs, tmp_path, capsys):
    summary = json.loads((runs / "one" / "summary.json").read_text())
    for group in summary["groups"]:
        group["mse"]["mean"] += 1
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert compare.main(flags(runs, "--runs", str(runs / "one"), str(tmp_path))) == 2
    assert "two evaluations have other results for" in capsys.readouterr().err


@pytest.mark.slow
def test_other_clips_are_refused(runs, tmp_path, capsys):
    summary = json.loads((runs / "one" / "summary.json").read_text())
    summary["settings"]["limit"] = 1
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert compare.main(flags(runs, "--runs", str(runs / "one"), str(tmp_path))) == 2
    assert "differ in limit: None and 1" in capsys.readouterr().err
