"""What tests of whole runs share."""

from __future__ import annotations

import pytest

from densebatch.planning import flow_planner


@pytest.fixture(scope="module", autouse=True)
def _small_groups(request):
    """Several predict tasks on a small slide, in modules that say with `GROUP_PX` how small."""
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(request.module, "GROUP_PX"):
            patch.setattr(flow_planner, "_GROUP_PX", request.module.GROUP_PX)
        yield
