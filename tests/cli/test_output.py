"""What leaves a command."""

from kinetics_jax.cli._output import print_table


def test_a_table_in_a_file_is_not_cut_off(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    columns, cells = ([f"{what} {number:02}, long enough" for number in range(8)] for what in ("column", "cell"))
    print_table("title", columns, [cells])
    lines = capsys.readouterr().out.splitlines()
    assert all(any(text in line for line in lines) for text in (*columns, *cells))
