"""A file is replaced whole or not at all; source of truth: the folder afterwards."""

import pytest

from dtwin_jax.core.files import replacing


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")
    return path


def test_what_was_written_takes_the_place_of_the_file(path):
    with replacing(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_file_and_nothing_beside_it(path):
    with pytest.raises(RuntimeError), replacing(path) as draft:
        draft.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
