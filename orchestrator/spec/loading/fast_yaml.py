"""PyYAML's parser and emitter in C, or those in Python if it was built without libyaml."""

try:
    from yaml import CSafeDumper as FastDumper
    from yaml import CSafeLoader as FastLoader
except ImportError:
    from yaml import SafeDumper as FastDumper  # type: ignore[assignment]
    from yaml import SafeLoader as FastLoader  # type: ignore[assignment]

__all__ = ["FastDumper", "FastLoader"]
