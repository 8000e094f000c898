"""The errors that a user can meet: each says where, what was found and what to do.

The scripts print them without a traceback. The verifier's worker processes import this module, so it imports nothing.
"""


class TrapoLiteError(Exception):
    """Every error of this package that a user can meet derives from this one."""


class ConfigError(TrapoLiteError):
    """The configuration or a command's option is wrong."""


class DataError(TrapoLiteError):
    """The data cannot be used."""


class ModelError(TrapoLiteError):
    """The model cannot be loaded or trained as asked."""


class EngineError(TrapoLiteError):
    """The engine died, refused a request or does not serve what it was given."""


class VerifierError(TrapoLiteError):
    """The verifier cannot work: it is closed, or its processes do not start."""


class RewardError(TrapoLiteError):
    """A reward function cannot be loaded or called, or fails on every rollout."""


class PackingError(TrapoLiteError):
    """The packed forward and backward pass computes another gradient than plain rows."""


class UpdateError(TrapoLiteError):
    """The update cannot be computed, or would destroy the adapter."""


class CheckpointError(TrapoLiteError):
    """A checkpoint cannot be written, read or used."""


class ExportError(TrapoLiteError):
    """The merged checkpoint cannot be written or is not the trained policy."""
