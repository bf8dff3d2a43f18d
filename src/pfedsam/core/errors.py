"""The tree of errors that pFedSAM raises, each kind with its own exit code.

    PfedsamError
    ├── OptionError      2  an option or a configuration is wrong
    ├── DataError        3  an image, a mask, a manifest or a split is wrong
    ├── CheckpointError  4  weights cannot be read or do not fit
    ├── PartitionError   5  a parameter is not exactly one of frozen, shared or local
    ├── UpdateError      6  the message of a site does not fit the run
    ├── StoreError       7  a file cannot be written or read back
    ├── RunError         8  a run cannot start, continue or be resumed
    └── QuorumError      9  too few sites replied in time

A message says what was wrong, what is allowed and what to do. A message about data names the site and the case. It never contains a
path outside the site's folder, unless that path itself is wrong.
"""

from typing import ClassVar


class PfedsamError(Exception):
    """Base class of all errors that a user can correct; the command line shows the text unchanged."""

    exit_code: ClassVar[int] = 1


class OptionError(PfedsamError):
    """An option has a value that is not allowed, or two options contradict each other."""

    exit_code = 2


class DataError(PfedsamError):
    """A site's data is missing, unreadable or inconsistent."""

    exit_code = 3


class CheckpointError(PfedsamError):
    """Weights cannot be read, or do not fit the model they are meant for."""

    exit_code = 4


class PartitionError(PfedsamError):
    """The partition into frozen, shared and local parameters is not total and disjoint."""

    exit_code = 5


class UpdateError(PfedsamError):
    """A site's update is malformed, belongs to another round, or contains tensors that this run does not share."""

    exit_code = 6


class StoreError(PfedsamError):
    """A file cannot be written, cannot be read, or has content that is not valid for its kind."""

    exit_code = 7


class RunError(PfedsamError):
    """A run cannot start, continue or be resumed."""

    exit_code = 8


class QuorumError(PfedsamError):
    """Too few sites replied within the deadline; the study is stopped after its last committed round and can be resumed."""

    exit_code = 9
