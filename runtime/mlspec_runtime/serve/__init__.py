"""The serving runtime: one process answers a ServingGraph over the Open Inference Protocol V2.

A request goes `app` -> `v2` or `rows` (decode) -> `plan` (steps) -> `batch` (models) -> `v2` or `rows` (encode) -> `log`.
A task document goes `server` -> `compile` -> `plan`; the app then holds the new plan by one reference.
"""
