"""A project's storage in S3 or what speaks its protocol: one bucket and a prefix. The one importer of its client.

`mlspec_runtime` keeps data, models and logs in it, `mlspec_reconciler` puts code there; neither knows the other, and both
import this package only when a target's storage is `s3://...`.
"""

from mlspec_storage.bucket import Bucket, Found, Refused

__all__ = ["Bucket", "Found", "Refused"]
