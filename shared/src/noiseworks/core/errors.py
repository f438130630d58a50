"""Error types. Everything that is the caller's to mend is an `InputError` with one clear sentence."""


class NoiseworksError(Exception):
    """Base of all errors that Noiseworks raises on purpose."""


class InputError(NoiseworksError, ValueError):
    """Bad input, refused before any work: the message names the value, the allowed range and the fix."""


class ModelNotFoundError(InputError):
    """A model name that is neither a directory, nor an installed testbed, nor a hub id that can be loaded."""


class UnsupportedHostError(InputError, TypeError):
    """A host object (pipeline, model, policy) of a family that the method does not support."""


class ArtifactError(InputError):
    """An artifact directory that is missing, corrupt, of another kind or of another format version."""


class NonFiniteError(NoiseworksError, ArithmeticError):
    """NaN or infinity in a loss, reward or latent: the message names the tensor and the step."""


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, or the error's name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()


def last_line(error: BaseException) -> str:
    """Return the most telling line of a library's message: the last one, or the error's name where it says nothing.

    PyTorch's first line about weights that do not fit says only that they do not.
    """
    if isinstance(error, KeyError):
        return f"no entry {error}"
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
