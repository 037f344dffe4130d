"""The mutants fit the tree; `make mutants` shows that each is caught."""

import pytest
from mutants import MUTANTS, ROOT, mutated


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_tree(mutant):
    compile(mutated(ROOT, mutant), mutant.file, "exec")
    assert all((ROOT / each).exists() for each in mutant.tests if each.endswith(".py"))


def test_no_two_mutants_have_one_name_and_the_table_has_all():
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)
    table = (ROOT / "docs" / "guarantees.md").read_text()
    assert [name for name in names if f"| {name} |" not in table] == []
