"""A job in a few lines, for people who want to see that it says what they mean."""

from orchestrator.spec.data import DataSpec, SourceSpec
from orchestrator.spec.job import JobSpec


def summary_lines(spec: JobSpec) -> list[tuple[str, str]]:
    """(label, text) pairs: what is trained, on what, for how long, on which workers."""
    return [
        ("name", spec.name),
        ("task", spec.task),
        ("model", _model(spec)),
        ("tokenizer", _tokenizer(spec)),
        ("data", _data(spec.data)),
        ("train", _train(spec)),
        ("workers", _workers(spec)),
        ("cluster", _cluster(spec)),
    ]


def _model(spec: JobSpec) -> str:
    if spec.model.pretrained is not None:
        at = f" at {spec.model.revision}" if spec.model.revision else ""
        return f"weights of {spec.model.pretrained}{at}"
    fields = ", ".join(f"{key} {value}" for key, value in spec.model.config.items())
    return f"{spec.model.architecture} from scratch" + (f" ({fields})" if fields else "")


def _tokenizer(spec: JobSpec) -> str:
    if spec.tokenizer.train is not None:
        return f"byte-level BPE of {spec.tokenizer.train.vocab_size} tokens, trained on the corpus"
    return spec.tokenizer.pretrained or f"of {spec.model.pretrained}"


def _data(data: DataSpec) -> str:
    sources = ", ".join(_source(source) for source in data.sources)
    packed = "packed" if data.packing else "padded"
    held = "no validation" if data.validation is None else "validation from its own sources"
    if data.validation is not None and data.validation.fraction is not None:
        held = f"{data.validation.fraction:.3g} of it held back"
    return f"{sources}; {packed} samples of {data.sequence_length} tokens; {held}"


def _source(source: SourceSpec) -> str:
    name = source.hub or " ".join(source.files or ())
    return name if source.weight is None else f"{name} (weight {source.weight:g})"


def _train(spec: JobSpec) -> str:
    train = spec.train
    if train.steps is not None:
        length = f"{train.steps} steps"
    elif train.tokens is not None:
        length = f"{train.tokens} tokens"
    else:
        length = f"{train.epochs:g} epochs"
    tokens = train.global_batch * spec.data.sequence_length
    return (
        f"{length} of {train.global_batch} samples ({tokens} tokens), {train.optimizer.name}, lr {train.lr:g} "
        f"{train.schedule}, {train.precision}, ZeRO stage {spec.zero.stage}"
    )


def _workers(spec: JobSpec) -> str:
    resources = spec.resources
    workers = resources.workers
    count = str(workers) if isinstance(workers, int) else f"{workers.min} to {workers.max}"
    each = [f"{resources.cpus_per_worker:g} CPU"]
    if resources.gpus_per_worker:
        each.append(f"{resources.gpus_per_worker} GPU")
    if resources.memory_per_worker is not None:
        each.append(f"{resources.memory_per_worker} memory")
    each += [f"{amount:g} {name}" for name, amount in resources.custom.items()]
    return f"{count}, each with {', '.join(each)}; placement {resources.strategy}"


def _cluster(spec: JobSpec) -> str:
    if spec.cluster.address is not None:
        return f"Ray at {spec.cluster.address}"
    nodes = spec.cluster.nodes or 1
    return f"local, {nodes} node{'s' if nodes != 1 else ''}"
