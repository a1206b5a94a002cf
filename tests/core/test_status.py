"""Life-cycles: what may follow what."""

import pytest

from finery.core import status
from finery.core.errors import Conflict

MACHINES = [status.JOB, status.DEPLOYMENT, status.ENDPOINT]


@pytest.mark.parametrize("machine", MACHINES)
def test_every_status_leads_to_a_known_one_and_to_an_end(machine):
    for start in machine:
        assert machine[start] <= set(machine)
        reached, new = set(), {start}
        while new:
            reached |= new
            new = {after for one in new for after in machine[one]} - reached
        assert any(status.is_final(machine, one) for one in reached)


def test_nothing_follows_a_final_status():
    for end in ("completed", "failed", "cancelled"):
        with pytest.raises(Conflict):
            status.move(status.JOB, end, "running")
