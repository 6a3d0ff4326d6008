"""What the type checker is told to overlook: each place by its code, and with a reason."""

import io
import re
import tokenize

import pytest

from tests.commands import REPOSITORY

MARK = re.compile(r"\b(type|pyrefly|pyright|mypy)\s*:\s*(ignore|disable)", re.IGNORECASE)
ALLOWED = re.compile(r"# pyrefly: ignore\[[a-z-]+\]: \S.*")


def faults(source: str) -> list[str]:
    """Returns the comments of a file that silence the checker, but for one finding with code and reason."""
    comments = [
        (token.string, token.line.strip() == token.string)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    # One that stands alone in its line could speak for a whole file.
    return [
        text for text, is_alone in comments if MARK.search(text) and (is_alone or not ALLOWED.fullmatch(text))
    ]


@pytest.mark.parametrize("package", ["vla_jax", "feature_cache", "experiments"])
def test_the_type_checker_is_silenced_only_with_a_code_and_a_reason(package):
    found = {
        str(path.relative_to(REPOSITORY)): silencing
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        if (silencing := faults(path.read_text(encoding="utf-8")))
    }
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "x = f()  # type: ignore",
        "x = f()  # type: ignore[arg-type]",
        "x = f()  # pyrefly: ignore",
        "x = f()  # pyrefly:ignore [bad-argument-type]: it takes pairs too",
        "x = f()  # pyrefly: ignore[bad-argument-type]",
        "x = f()  # pyrefly: ignore[bad-argument-type]: ",
        "x = f()  # noqa: E501  # pyrefly: ignore",
        "# pyrefly: ignore-errors",
        "# pyrefly: ignore[bad-argument-type]: for whatever comes next",
        "# mypy: ignore-errors",
    ],
)
def test_what_silences_more_is_found(line):
    assert faults(f"{line}\n")


def test_code_and_reason_are_enough():
    assert not faults("x = f()  # pyrefly: ignore[bad-argument-type]: it takes pairs too\n")
    assert not faults('x = "# type: ignore"\n')
