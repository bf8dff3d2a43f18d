import json

from pfedsam.report.result_file import commit, machine, markdown, write_result


def test_what_every_result_holds(tmp_path):
    write_result(
        tmp_path / "new", "x", command="c", seeds=[0, 1], figures={"a": 1.5, "b": None}, table="| t |\n\n", more=3
    )
    content = json.loads((tmp_path / "new" / "x.json").read_text())
    assert set(content) == {"command", "commit", "date", "machine", "versions", "seeds", "figures", "more"}
    assert content["figures"] == {"a": 1.5, "b": None}
    assert content["seeds"] == [0, 1]
    assert (tmp_path / "new" / "x.md").read_text() == "| t |\n"


def test_markdown_by_hand():
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_machine_and_commit():
    assert "cores" in machine()
    assert commit() is None or len(commit()) == 40
