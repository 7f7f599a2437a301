"""The store in dictionaries keeps the contract, so that laws over it say something about the real ones."""

from __future__ import annotations

import pytest

from mlspec_reconciler.state import MemoryState, StateStore
from state.contract import Again, Contract


class TestMemoryState(Contract):
    """See `Contract`."""

    @pytest.fixture
    def store(self) -> StateStore:
        return MemoryState()

    @pytest.fixture
    def again(self, store: StateStore) -> Again:
        return lambda: store
