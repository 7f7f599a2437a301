"""mlspec's language: YAML text becomes typed resources, and resources become the objects of a target.

Nothing in this package reads a clock, a network, a cluster or a subprocess.
"""

__version__ = "0.1.0"
API_VERSION = "mlspec.dev/v1alpha1"
