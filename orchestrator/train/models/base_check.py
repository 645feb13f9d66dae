"""Checks in a worker whether the pretrained model fits the job, before any data is tokenised.

The files must be readable for the worker, and torch is there: names and shapes are compared with those of the model,
built without memory.
"""

from orchestrator.domain.errors import WeightsError
from orchestrator.json_values import JsonFields
from orchestrator.spec.job import JobSpec
from orchestrator.train.models.execution import attention_implementation, check_execution
from orchestrator.train.models.pretrained import base_config, directory_here, hub_tensors
from orchestrator.train.models.pretrained_weights import check_fit, check_values, declared, open_tensors, wanted_of
from orchestrator.weights.model_directory import Base, inspect

MAX_READ_BYTES = 16 << 30
"""Values are looked at here if there are no more bytes of weights than this: half a minute of a disk's time. Those of
larger models are when they are loaded."""


def check_base(question: JsonFields) -> None:
    """`question`: `spec`, and `thorough`: also read the values, once for all workers.

    Raises UsageError with the names of what is missing, unexpected, damaged or of another shape, or with the package
    that is not installed.
    """
    spec = JobSpec.model_validate(question["spec"])
    check_execution(spec)
    thorough = bool(question["thorough"])
    name = spec.model.pretrained
    if name is None:
        return
    config = base_config(spec, spec.data.sequence_length)
    attention_implementation(spec, config.model_type)
    wanted = wanted_of(config)
    directory = directory_here(name, spec.model.revision)
    if directory is not None:
        base = inspect(directory)
        with open_tensors(base) as tensors:
            compared = check_fit(str(base.directory), wanted, declared(base, tensors))
            if thorough and _size(base) <= MAX_READ_BYTES:
                check_values(str(base.directory), wanted, compared, tensors)
    elif thorough:
        found = hub_tensors(name, spec.model.revision)
        if found is not None:
            check_fit(name, wanted, found)


def _size(base: Base) -> int:
    try:
        return sum((base.directory / file).stat().st_size for file in base.files)
    except OSError as error:
        raise WeightsError(f"the weights in {base.directory} cannot be read: {error}") from error
