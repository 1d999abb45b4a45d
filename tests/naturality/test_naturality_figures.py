"""The audit as a figure that moves."""

from chapter_experiments import CHAPTERS
from naturality_chapter import DRAWINGS, STORED


def test_each_cell_has_its_verdict_and_the_defects_of_each_seed():
    table = STORED.stored_audit(
        CHAPTERS / "naturality" / "measured" / "audit-regression.json"
    )
    names, families = ["gd", "ngd", "kfac"], ["permutation", "affine", "sinh"]
    data = DRAWINGS.moving_table(table, names, families)
    words = data["panels"][0]["layers"][0]["data"]
    assert words[:6] == ["E", "U", "U", "E", "E", "N"]
    lines = data["panels"][1]["layers"]
    assert [line["label"] for line in lines] == [f"problem {s}" for s in table["cells"]]
    for seed, line in zip(table["cells"], lines, strict=True):
        values = table["cells"][seed]["ngd"]["sinh"]["values"]
        assert line["data"][5] == [
            [0.5 / k, v] for k, v in zip((16, 32, 64, 128), values, strict=True)
        ]
