"""The root of the one error tree, and what can be wrong with a snapshot.

Every error carries an HTTP-like ``status`` and a stable ``code``; its message says what was found,
what was wanted and what to do. The whole tree::

    ZerowakeError                 500 internal
    |- SnapshotError              422 snapshot_invalid
    |  |- SnapshotNotFound        404 snapshot_not_found
    |  |- UnsupportedVersion      422 snapshot_version
    |  |- DamagedSnapshot         422 snapshot_damaged
    |  |- ForbiddenClass          422 class_not_allowed
    |  |- UntrustedCode           403 code_not_trusted
    |  |- ProofFailed             422 proof_failed
    |  |- UnusableForm            422 form_unusable
    |  |  |- DamagedForm          422 form_damaged
    |- FreezeError                422 cannot_freeze
    |  |- CannotCompile           422 cannot_compile
    |- WakeFailed                 500 wake_failed
    |- DeviceError                503 device_unavailable
    |- StoreError                 502 store_failed
    |  |- NotInStore              404 not_in_store
    |  |- StoreDenied             403 store_denied
    |  |  |- NoCredentials        403 no_credentials
    |  |- StoreChanged            409 store_changed
    |  |- StoreInterrupted        503 store_interrupted
    |- (zerowake.runtime.errors continues below ZerowakeError)
"""

from typing import ClassVar


class ZerowakeError(Exception):
    """Root of every error that Zerowake raises on purpose."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"


class SnapshotError(ZerowakeError):
    """A snapshot cannot be used as it is."""

    status = 422
    code = "snapshot_invalid"


class SnapshotNotFound(SnapshotError):
    """There is no snapshot at the path given."""

    status = 404
    code = "snapshot_not_found"


class UnsupportedVersion(SnapshotError):
    """The snapshot was written in a format that this release does not read."""

    code = "snapshot_version"


class DamagedSnapshot(SnapshotError):
    """A file of the snapshot is missing, has the wrong length or the wrong digest, or contradicts itself."""

    code = "snapshot_damaged"

    def __str__(self) -> str:
        return f"{super().__str__()}; copy or freeze the snapshot again"


class ForbiddenClass(SnapshotError):
    """The skeleton names a class or function outside the allow-list."""

    code = "class_not_allowed"


class UntrustedCode(SnapshotError):
    """The snapshot's code was made by someone else and nobody vouched for it."""

    status = 403
    code = "code_not_trusted"


class ProofFailed(SnapshotError):
    """The restored object does not answer the probe as the original did."""

    code = "proof_failed"


class FreezeError(ZerowakeError):
    """What ``load`` left on the object cannot be frozen."""

    status = 422
    code = "cannot_freeze"


class WakeFailed(ZerowakeError):
    """The object came back, and its own ``wake`` raised; ``__cause__`` is what it raised."""

    code = "wake_failed"


class DeviceError(ZerowakeError):
    """The device asked for is not there or does not work."""

    status = 503
    code = "device_unavailable"


class StoreError(ZerowakeError):
    """An object store does not give or take what a remote snapshot needs."""

    status = 502
    code = "store_failed"


class NotInStore(StoreError):
    """The store has no such object."""

    status = 404
    code = "not_in_store"


class StoreDenied(StoreError):
    """The store wants other credentials, or any."""

    status = 403
    code = "store_denied"


class NoCredentials(StoreDenied):
    """There are none here at all, so the store was not even asked."""

    code = "no_credentials"


class StoreChanged(StoreError):
    """An object was replaced while it was read."""

    status = 409
    code = "store_changed"


class StoreInterrupted(StoreError):
    """A connection broke or the store was busy: what may go well when it is tried again."""

    status = 503
    code = "store_interrupted"


class UnusableForm(SnapshotError):
    """A compiled form is missing, not for this machine, not trusted or not what it says."""

    code = "form_unusable"


class DamagedForm(UnusableForm):
    """A compiled form that lies there for this machine is not what it says, or cannot be read."""

    code = "form_damaged"


class CannotCompile(FreezeError):
    """A module has no compiled form; the eager one serves."""

    code = "cannot_compile"
