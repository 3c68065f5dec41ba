"""The version of Holdfast, as installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("holdfast")
except PackageNotFoundError:  # run from a source tree that was not installed
    VERSION = "0"
