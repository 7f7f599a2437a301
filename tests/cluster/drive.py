"""`python drive.py HOME`: the supervisor with the tests' program, short delays, and `naps` in the place of the controller.

MLSPEC_TEST_CONTROLLER names another module in its place.
"""

import os
import sys
from pathlib import Path

from mlspec_reconciler.clusters.local import lock
from mlspec_reconciler.clusters.local.launch import Pace
from mlspec_reconciler.clusters.local.supervisor import Program, Supervisor

PACE = Pace(
    idle=0.05,
    grace=2.0,
    drain=2.0,
    first_backoff=0.1,
    longest_backoff=0.5,
    settled=1.0,
    probe=0.2,
    probe_soon=0.05,
    silent=1.5,
)

CONTROLLER = Program("controller", os.environ.get("MLSPEC_TEST_CONTROLLER", "naps"))

if __name__ == "__main__":
    home = Path(sys.argv[1])
    program = (sys.executable, str(Path(__file__).with_name("program.py")))
    with lock.hold(home, 10.0, lock.about(home / "store")) as mine:
        if mine:
            Supervisor(home, home / "store", program, PACE, programs=(CONTROLLER,)).run()
