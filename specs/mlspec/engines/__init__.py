"""The runtimes that mlspec lowers workloads to, one file each; `mlspec.compile` lists them."""
