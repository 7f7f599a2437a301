"""Drivers: who calls `step`, when, and how long. They sleep and wait; nobody else does."""
