"""What the options of `train` become: a request and settings, each documented where it is defined."""

import dataclasses
import json
import typing

import pytest

from experiments.config_options import described, given, options_for
from experiments.option_groups import given_in_groups
from experiments.train import COMMAND, SETTINGS
from tests.vla_jax.evaluation.workspace import make_workspace
from vla_jax.errors import UserError
from vla_jax.storage import config_json
from vla_jax.training.beginning import SCHEDULE
from vla_jax.training.config import TrainConfig
from vla_jax.training.request import Request

ALL_SETTINGS = {option: name for names in SETTINGS.values() for option, name in names.items()}
REQUIRED = ("DATA", "--cache", "CACHE", "--out", "RUN")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("train"))


def settings(*words):
    return given_in_groups(COMMAND.parse([*REQUIRED, *words]).settings, SETTINGS)


def test_an_option_sets_the_field_that_it_is_made_from():
    assert settings() == {}
    assert settings("--lr", "3e-4", "--batch-size", "32", "--remat", "--fusion-strategy", "none") == {
        "optimizer.lr": 3e-4,
        "batch_size": 32,
        "policy.remat": True,
        "policy.fusion.strategy": "none",
    }
    assert settings("--no-remat", "--schedule", "constant") == {
        "policy.remat": False,
        "optimizer.schedule": "constant",
    }
    # What is not settled by a setting is asked for.
    request = COMMAND.parse(
        [*REQUIRED, "--recipe", "small", "--epochs", "2.5", "--no-sensor-enabled"]
    ).request
    assert (request.recipe, request.epochs, request.sensor) == ("small", 2.5, False)


def test_every_setting_is_a_documented_field_of_the_configuration():
    for option, name in ALL_SETTINGS.items():
        kind, text = described(TrainConfig, name)
        assert text.endswith("."), option
        assert typing.get_origin(kind) is typing.Literal or kind in (int, float, bool), option
    assert set(SCHEDULE) <= set(ALL_SETTINGS.values())
    with pytest.raises(AttributeError, match="no field nonsense"):
        described(TrainConfig, "optimizer.nonsense")


def test_an_option_of_one_among_several_dataclasses_is_found():
    @dataclasses.dataclass(frozen=True)
    class Square:
        side: int = 1
        """Length
        of a side."""

    # As a configuration has it: a field that is one of several dataclasses.
    assert described(Square | int, "side") == (int, "Length of a side.")
    made = options_for(Square, {"side_length": "side"}, default="the drawing's")
    assert given(made(side_length=3), {"side_length": "side"}) == {"side": 3}


def test_help_says_type_meaning_and_the_default(capsys):
    with pytest.raises(SystemExit, match="0"):
        COMMAND.run(["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--min-lr FLOAT Learning rate at the end of the cosine. (default: the recipe's)" in shown
    assert "--schedule {trapezoid,cosine,constant}" in shown
    for title in ("run", *SETTINGS, "machine"):
        assert f" {title} options " in shown
    for option in (*ALL_SETTINGS, *(field.name for field in dataclasses.fields(Request))):
        assert f"--{option.replace('_', '-')} " in shown.replace(",", " ")


def test_the_word_none_is_no_value(capsys):
    for words, told in (
        (("--fusion-strategy", "None"), "not None; did you mean none?"),
        (("--steps", "None"), "--steps takes INT, not None"),
        (("--recipe", "None"), "--recipe takes one of"),
    ):
        with pytest.raises(UserError) as error:
            COMMAND.parse([*REQUIRED, *words])
        assert told in str(error.value)


def test_print_config_prints_what_would_be_trained_and_trains_nothing(workspace, tmp_path, capsys):
    out = tmp_path / "run"
    words = [workspace.data, "--cache", workspace.cache, "--out", out, "--recipe", "debug", "--lr", "3e-4"]
    with pytest.raises(SystemExit, match="0"):
        COMMAND.run([*map(str, words), "--print-config"])
    shown = json.loads(capsys.readouterr().out)
    assert (shown["recipe"], shown["optimizer"]["lr"], shown["steps"]) == ("debug", 3e-4, 4)
    assert config_json.from_json(TrainConfig, json.dumps(shown)).policy.vl_dim == workspace.features.width
    assert not out.exists()
