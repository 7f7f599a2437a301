"""The clusters that objects can live in: `local` (this machine), `kube`, `memory` (tests and benchmarks)."""
