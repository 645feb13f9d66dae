"""TensorBoard's event files, written with the classes of the `tensorboard` package (without TensorFlow or PyTorch)."""

from collections.abc import Callable
from pathlib import Path

from orchestrator.trackers.tracker_points import Point
from orchestrator.trackers.tracker_sink import MAX_MARKERS, TrackedRun

FLUSH_S = 5
"""Points are on disk after at most this long."""
QUEUE_POINTS = 1000
"""Between the event file's writer and its thread."""


class TensorboardSink:
    """Writes one event file. A resumed run adds a file to the directory."""

    def __init__(self, run: TrackedRun) -> None:
        """Raises ImportError without the package, OSError if the directory cannot be written."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._session, self._summary = Event, SessionLog, Summary
        self._metadata, self._tensor, self._shape, self._string = (
            SummaryMetadata,
            TensorProto,
            TensorShapeProto,
            DT_STRING,
        )
        self.place = str(directory_of(run))
        self._writer = EventFileWriter(self.place, QUEUE_POINTS, FLUSH_S)
        self._step: int | None = None
        """The last one."""
        self._markers = 0
        self._spec = run.spec

    def log(self, point: Point) -> None:
        """See `TrackerSink`. A step that comes again replaces the earlier one: TensorBoard drops what a directory has
        of steps from the one of a `SessionLog.START` on (`purge_orphaned_data`)."""
        if point.kind:
            self._mark(point)
        elif "train/loss" in point.values or "train/learning_rate" in point.values:
            self._begin_step(point)
        elif self._step is None and point.step > 0:
            return  # of the step that a resumed run continues from: the earlier driver has logged it
        if point.values:
            values = [self._summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            summary = self._summary(value=values)
            self._writer.add_event(self._event(wall_time=point.time_s, step=point.step, summary=summary))

    def _begin_step(self, point: Point) -> None:
        """Drop what there is of this step and later ones: of an earlier driver, which may have gone further, or before
        a recovery. A validation loss comes before the step that it belongs to, and stays."""
        first = self._step is None
        if first or (self._step is not None and point.step <= self._step):
            session = self._session(status=self._session.START)
            self._writer.add_event(self._event(wall_time=point.time_s, step=point.step, session_log=session))
        if first:
            self._write_text("job", _as_yaml(self._spec), point.step, point.time_s)
        self._step = point.step

    def close(self, exit_code: int) -> None:
        """See `TrackerSink`."""
        self._writer.close()

    def _mark(self, point: Point) -> None:
        self._markers += 1
        if self._markers <= MAX_MARKERS:
            self._write_text(f"events/{point.kind}", point.text, point.step, point.time_s)

    def _write_text(self, tag: str, text: str, step: int, time_s: float) -> None:
        """As TensorBoard's text plugin reads it."""
        metadata = self._metadata(plugin_data=self._metadata.PluginData(plugin_name="text", content=b"\x08\x00"))
        shape = self._shape(dim=[self._shape.Dim(size=1)])
        tensor = self._tensor(dtype=self._string, string_val=[text.encode()], tensor_shape=shape)
        value = self._summary.Value(tag=f"{tag}/text_summary", metadata=metadata, tensor=tensor)
        self._writer.add_event(self._event(wall_time=time_s, step=step, summary=self._summary(value=[value])))


def directory_of(run: TrackedRun) -> Path:
    """Where the event files of a run are."""
    chosen = run.settings.get("dir")
    return Path(str(chosen)) / run.run_id if chosen else run.directory / "tensorboard"


def _as_yaml(spec: object) -> str:
    """In a code block of Markdown, which the text plugin renders."""
    import yaml

    return f"```yaml\n{yaml.safe_dump(spec, sort_keys=False)}```"


def open_tensorboard(run: TrackedRun, report: Callable[[str], None]) -> TensorboardSink:
    """See `OpenSink`."""
    return TensorboardSink(run)
