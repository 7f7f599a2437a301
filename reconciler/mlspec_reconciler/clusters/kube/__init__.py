"""A real Kubernetes cluster, by its API server.

From below: `login` (the official client: kubeconfig, credentials, TLS), `errors` and `pacing`, `transport` (requests, lists
and watch streams in raw JSON), `discovery` (which kinds are served, and where), `access` (what we may do), `watching` (what
changes).
"""
