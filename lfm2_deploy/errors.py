"""Every error a user can meet.

A message is one line that says what failed, what was seen against what was
expected, and what to do next. The command line prints it and nothing else.

    Lfm2DeployError
    ├── ConfigError              config.json: missing, contradictory or unusable keys
    │   └── UnsupportedModelError    an architecture this package does not know
    ├── CheckpointError          weights: missing, mis-shaped, truncated, not finite
    │   └── SourceError              the place they come from: folder, Hub, synthetic
    ├── ExportError              tracing, lowering, quantizing or writing a graph
    │   ├── DiskFullError            no room; what is written is kept for --resume
    │   └── ResumeError              what is kept is not of this export
    ├── BundleError              a bundle is absent, damaged, foreign or in the way
    ├── CanaryError              a device computes something else than the model
    ├── RuntimeUnavailableError  a runtime, target or package is not there
    ├── TemplateError            a chat template or its messages
    ├── EvaluationError          a task is unknown, broken, or its data cannot be had
    ├── PublishError             the Hub does not take a bundle, or it should not have it
    ├── StoreError               the local store of models
    │   └── UnknownModelError        no folder and no model of that name (a BundleError, too)
    └── GenerationError          a request that cannot be generated
        ├── ContextOverflowError     more tokens than the context holds
        ├── GrammarError             a schema or grammar that cannot be followed
        ├── QueueFullError           too many requests wait
        └── ClosedError              the engine was closed, or is about to be

UsageError is mixed into those of a name that is none of the choices: `UnknownOptionError`
(an ExportError), `UnknownNameError` (a RuntimeUnavailableError), `UnknownTaskError` (an
EvaluationError) and `RequestError` (a GenerationError).
"""

from __future__ import annotations


class Lfm2DeployError(Exception):
    """Base of every error raised on purpose; `str(error)` is fit to show a user."""


class UsageError(Lfm2DeployError):
    """Mixed into others where a word of the command line is not one of its choices: the exit code
    is 2 then, as for what is refused while words are read."""


class ConfigError(Lfm2DeployError):
    """A config.json cannot be read as an LFM2 model."""


class UnsupportedModelError(ConfigError):
    """The config names an architecture that this package does not know."""


class CheckpointError(Lfm2DeployError):
    """A tensor is missing, unexpected, mis-shaped, truncated or not finite."""


class SourceError(CheckpointError):
    """The place a checkpoint should come from cannot be used."""


class ExportError(Lfm2DeployError):
    """A graph could not be traced, lowered, quantized or written."""


class DiskFullError(ExportError):
    """The disk cannot hold the bundle; an export that had begun can be resumed."""


class ResumeError(ExportError):
    """What an interrupted export left cannot be gone on with; it is kept."""


class BundleError(Lfm2DeployError):
    """A bundle is absent, damaged, of another schema, or in the way."""


class RuntimeUnavailableError(Lfm2DeployError):
    """A runtime, target or optional package that was asked for is not there."""


class CanaryError(Lfm2DeployError):
    """A device gives other logits than the bundle's canary says it must."""


class TemplateError(Lfm2DeployError):
    """A chat template is absent, fails, or refuses the messages."""


class EvaluationError(Lfm2DeployError):
    """A task cannot be run: there is none of that name, or it asks for what cannot be had."""


class GenerationError(Lfm2DeployError):
    """A generation request is invalid for this model or runtime."""


class ContextOverflowError(GenerationError):
    """Prompt and new tokens need more room than the context holds."""


class GrammarError(GenerationError):
    """A JSON schema, regular expression or grammar cannot be compiled, or is too large."""


class QueueFullError(GenerationError):
    """Too many requests wait already; try again later."""


class ClosedError(GenerationError):
    """The engine was closed, or takes no more requests."""


class PublishError(Lfm2DeployError):
    """A bundle cannot be uploaded: the Hub refuses, or something should be mended first."""


class StoreError(Lfm2DeployError):
    """The local store of models cannot be used, or has no such model."""


class UnknownModelError(StoreError, BundleError):
    """There is no folder, and no model of the store, of that name."""


class UnknownOptionError(ExportError, UsageError):
    """An export option has no such value."""


class UnknownNameError(RuntimeUnavailableError, UsageError):
    """There is no runtime or target of that name."""


class UnknownTaskError(EvaluationError, UsageError):
    """There is no task of that name."""


class RequestError(GenerationError, UsageError):
    """What is asked for is not among the choices, or not together."""
