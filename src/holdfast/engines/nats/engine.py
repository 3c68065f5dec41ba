"""placeholder"""
from holdfast.engines.local.engine import LocalEngine as NatsEngine
