"""The kinds of the spec language, one file each; `mlspec.kind_table` lists them."""
