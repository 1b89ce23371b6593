"""What jobs can rely on with every master, in local mode."""

from __future__ import annotations

import pytest
from launcher_world import Context
from master_suite import MasterSuite

pytestmark = pytest.mark.spark


class TestLocal(MasterSuite):
    @pytest.fixture
    def on_master(self, context: Context) -> Context:
        return context
