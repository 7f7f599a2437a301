"""Sources of revisions: one file for each. `mlspec_reconciler.source` is their contract."""
