"""A job with a `matrix` to the jobs that it stands for."""

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.load import JobTree, LoadedJob, load_tree, parse_job, place_of_value
from orchestrator.spec.loading.overrides import put_value, segments_of
from orchestrator.spec.loading.yaml_source import ListNode, MapNode, Node, Scalar
from orchestrator.spec.spec_errors import Place, Problem, SpecError


@dataclass(frozen=True)
class MatrixJob:
    """One combination of the values of a matrix; or the job itself if it has none."""

    spec: JobSpec
    """Without `matrix`."""
    values: tuple[tuple[str, str], ...] = ()
    """Field and value, as written."""

    @property
    def label(self) -> str:
        """For people: `train.lr=1e-3, train.seed=2`; empty without a matrix."""
        return ", ".join(f"{key}={value}" for key, value in self.values)


def load_matrix(
    source: str, file: str, overrides: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> tuple[MatrixJob, ...]:
    """All jobs of a text, in the order of the values. Raises SpecError with every mistake of the job, or of the first
    combination that is wrong: it is at the value in the matrix."""
    root = parse_job(source, file, overrides, env)
    base = load_tree(root)
    matrix = root.values.get("matrix")
    if not base.matrix or not isinstance(matrix, MapNode):
        return (MatrixJob(base),)
    axes = [[(key, place, item) for item in _items(matrix.values[key])] for key, place in matrix.keys.items()]
    return tuple(_combined(root, choice) for choice in itertools.product(*axes))


def require_one_run(job: LoadedJob) -> None:
    """Raises SpecError if the job has a matrix: the command starts one run, without a server."""
    if job.spec.matrix:
        message = "a job with a `matrix` stands for several runs, and this command starts one"
        raise SpecError((Problem(place_of_value(job, "matrix"), message, f"convoy submit {job.path}"),))


def _items(node: Node) -> list[Node]:
    return node.items if isinstance(node, ListNode) else []


def _combined(root: JobTree, choice: tuple[tuple[str, Place, Node], ...]) -> MatrixJob:
    tree = copy.deepcopy(root)
    del tree.keys["matrix"], tree.values["matrix"]
    problems: list[Problem] = []
    for key, place, item in choice:
        parsed = segments_of(key, place)
        if parsed is None:
            problems.append(Problem(place, f"`{key}` is no field", "for example `train.lr`"))
        else:
            problems += put_value(tree, parsed, copy.deepcopy(item))
    if problems:
        raise SpecError(tuple(problems))
    values = tuple((key, item.text if isinstance(item, Scalar) else "...") for key, _, item in choice)
    return MatrixJob(load_tree(tree), values)
