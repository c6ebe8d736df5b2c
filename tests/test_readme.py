import re
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def test_a_search_and_an_objective_of_ones_own():
    """The block that says so runs as it stands, and finds what it looks for."""
    text = README.read_text(encoding="utf-8")
    marked = text.split("<!-- tests/test_readme.py runs this -->")
    assert len(marked) == 2
    (block,) = re.findall(r"^\n```python\n(.*?)```", marked[1], re.S)
    names = {}
    exec(block, names)
    result = names["result"]
    mask = result.mask((16, 32))
    assert int(mask.sum()) == 80
    assert names["objective"](mask)[0] == result.best.loss == 0.0
