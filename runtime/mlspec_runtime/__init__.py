"""What runs inside a pod or a local process: datasets, features, training, serving, monitoring.

The reconciler never imports this package; it starts `python -m mlspec_runtime`. `mlspec_runtime.__main__` lists the subjects.
"""

import os

# OpenMP's threads spin while they wait for each other. Beside other work on the same cores that is ruinous: gradient boosting
# on 245,000 rows took 26.9 s at load 5 on 2 cores, and 1.5 s when waiting threads sleep. libgomp reads this when it is loaded,
# so it stands before everything that may load it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
