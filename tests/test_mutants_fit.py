"""The table of mutants follows the code; whether a test kills each of them, `make mutants` tells."""

import pytest

from tests.commands import REPOSITORY
from tests.mutants.table import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.name}")
def test_what_a_mutant_changes_is_there_once(mutant):
    assert (REPOSITORY / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    for test in mutant.tests:
        path, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (REPOSITORY / path).read_text(encoding="utf-8") or not name
