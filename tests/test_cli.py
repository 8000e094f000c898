"""A mistyped option of a script names the option that was meant."""

import pytest

from trapo_lite.cli import ArgumentParser, train


@pytest.mark.parametrize(
    ("given", "suggested"),
    [
        (["--dryrun"], "unrecognized arguments: --dryrun; did you mean --dry-run?"),
        (["--rstart", "optim.lr=1"], "unrecognized arguments: --rstart; did you mean --restart?"),
        (["--quiet"], "unrecognized arguments: --quiet\n"),
    ],
)
def test_an_unknown_option_names_the_nearest(given: list[str], suggested: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        train(["--config", "any.yaml", *given])
    assert end.value.code == 2
    assert suggested in capsys.readouterr().err


def test_other_mistakes_are_told_as_argparse_tells_them(capsys: pytest.CaptureFixture) -> None:
    parser = ArgumentParser(prog="p")
    parser.add_argument("--seed", type=int, required=True)
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert "p: error: the following arguments are required: --seed" in capsys.readouterr().err
