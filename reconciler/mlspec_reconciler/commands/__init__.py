"""The commands of `mlspec`, one file each; `mlspec_reconciler.cli` lists them."""
