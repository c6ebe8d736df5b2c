"""Makes the files of the corpus that are not found by fuzzing: valid ones, and faulty ones.

The same bytes on every machine; ``python -m tests.fuzz.make`` writes them and the READMEs of the
faulty ones. The messages stand here, and are not asked of the decoder.
"""

from pathlib import Path

from tests.fuzz import make_mdct, make_stft
from tests.fuzz.faults import Fault

CORPUS = Path(__file__).parent / "corpus"
FOLDERS = ("valid", "faulty", "mdct/valid", "mdct/faulty")
"""Those whose files are all made here."""

_README = """\
# Faulty files

What a decoder of `.jsac` files must refuse: `{command}` says the message in one line
behind the file's name, leaves with exit code 2 and writes nothing. So does `jaxsparse info`, except
for the files marked *decoded*, whose fault lies in what is coded or in the network: info decodes
nothing. Checksums and sizes fit unless the fault is in them.

`python -m tests.fuzz.make` makes the files and this table.

| file | bytes | what is wrong | message |
| --- | ---: | --- | --- |
"""


def readme(faults: list[Fault], command: str) -> str:
    """Gives the table of the faulty files."""
    lines = []
    for fault in faults:
        told = fault.fault + " (*decoded*)" * fault.decoded
        told, message = (text.replace("|", "\\|") for text in (told, fault.message))
        lines.append(f"| {fault.name}.jsac | {len(fault.data)} | {told} | `{message}` |\n")
    return _README.format(command=command) + "".join(lines)


def files() -> dict[str, bytes]:
    """Gives all files that this makes, by their place in the corpus."""
    made = {}
    for folder, module, options in (
        ("", make_stft, ""),
        ("mdct/", make_mdct, " --codec tests/small_codec.safetensors"),
    ):
        faults = list(module.faulty_files())
        made |= {f"{folder}valid/{name}.jsac": data for name, data in module.valid_files()}
        made |= {f"{folder}faulty/{fault.name}.jsac": fault.data for fault in faults}
        made[f"{folder}faulty/README.md"] = readme(
            faults, f"jaxsparse decompress{options}"
        ).encode()
    return made


def main() -> None:
    """Writes the files, and removes those that it doesn't make any more."""
    made = files()
    for folder in FOLDERS:
        (CORPUS / folder).mkdir(parents=True, exist_ok=True)
        for path in (CORPUS / folder).iterdir():
            path.unlink()
    for name, data in made.items():
        (CORPUS / name).write_bytes(data)


if __name__ == "__main__":
    main()
