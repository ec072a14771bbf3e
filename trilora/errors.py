"""What can go wrong, in one small tree: every message says what was given, why it cannot work, and what to do."""


class TriLoRAError(Exception):
    """Anything this package refuses to do."""


class RankError(TriLoRAError):
    """A rank that the layer's shape cannot hold."""


class FileError(TriLoRAError):
    """An adapter file that cannot be read or written as asked."""


class DataError(TriLoRAError):
    """Pictures or captions that cannot be trained on."""


class TargetError(TriLoRAError):
    """A choice of layers that names none, or layers that do not exist."""


class TrainingError(TriLoRAError):
    """A training that cannot start or cannot go on."""
