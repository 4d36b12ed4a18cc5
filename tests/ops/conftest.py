from collections.abc import Iterator

import pytest

from fastlayers.runtime.threads import get_num_threads, set_num_threads


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    before = get_num_threads()
    yield
    set_num_threads(before)
