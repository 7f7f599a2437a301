"""What runs inside a pod or a local process: datasets, features, training, serving, monitoring.

The reconciler never imports this package; it starts `python -m mlspec_runtime`. `mlspec_runtime.__main__` lists the subjects.
"""
