"""Errors the worker raises for its users to read. Each message names the field or file at fault and what to do about it.

    QuireWorkerError
    ├── ConfigError        a launch flag or a field of the engine's configuration is wrong
    ├── LoadError          the model cannot be loaded: a missing, corrupt or unsupported file, or not enough memory
    ├── DeviceError        the device is in a state that no further step can leave; the process must exit
    ├── StepMemoryError    a step found no memory; a smaller one may
    ├── WakeError          a sleeping worker finds no room for what it gave back
    └── PublisherError     KV events can no longer be published; the process must exit

Imports nothing of ours, so that every part of the worker may raise them.
"""


class QuireWorkerError(Exception):
    """Root of all errors that are meant for a person."""


class ConfigError(QuireWorkerError):
    """A setting is wrong. The message names it as the user wrote it, e.g. `--block-size`."""


class LoadError(QuireWorkerError):
    """The model cannot be loaded. The message names the file or `config.json` field and the fix."""


class WakeError(QuireWorkerError):
    """A sleeping worker finds no room for what it gave back; it sleeps on and may be woken later."""


class DeviceError(QuireWorkerError):
    """The device stays broken after this error (a sticky CUDA error, say): retrying a step cannot help."""


class StepMemoryError(QuireWorkerError):
    """A step found no memory. The device is none the worse, and a step of fewer tokens may go well."""


class PublisherError(QuireWorkerError):
    """Routers no longer hear of this worker's cache and load, so it must not go on as if they did."""
