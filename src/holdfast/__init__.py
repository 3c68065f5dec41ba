"""Durable Python agents on a cluster of identical machines."""

from holdfast.agents.agent import Agent, State
from holdfast.agents.calls import Outcome
from holdfast.agents.context import Context
from holdfast.agents.handler import Handler, Reader, handler, reader
from holdfast.agents.ref import AgentRef
from holdfast.cluster.facts.events import Event
from holdfast.cluster.facts.registry import Entry
from holdfast.core.pools import Pool
from holdfast.core.query import Where
from holdfast.errors import (
    AlreadyExists,
    BadMessage,
    BadState,
    Closed,
    ConfigError,
    Conflict,
    DataLoss,
    DeadlineExceeded,
    Fenced,
    HandlerFailed,
    HoldfastError,
    InvalidName,
    Never,
    NoQuorum,
    NoResponders,
    NotDone,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    ReplayMismatch,
    StorageFailed,
    TooLarge,
    TurnOver,
    Unknown,
    UnknownKind,
    WouldDeadlock,
)
from holdfast.host.local_cluster import LocalCluster
from holdfast.loops import run
from holdfast.node.dead_letters import DeadLetter
from holdfast.node.node import Node
from holdfast.node.stored import StoredAgent, StoredTimer
from holdfast.node.views import AgentInfo, MemberInfo
from holdfast.security import Security
from holdfast.serving.workers.soundness import worker_broken
from holdfast.version import VERSION as __version__

__all__ = [
    "Agent",
    "AgentInfo",
    "AgentRef",
    "AlreadyExists",
    "BadMessage",
    "BadState",
    "Closed",
    "ConfigError",
    "Conflict",
    "Context",
    "DataLoss",
    "DeadLetter",
    "DeadlineExceeded",
    "Entry",
    "Event",
    "Fenced",
    "Handler",
    "HandlerFailed",
    "HoldfastError",
    "InvalidName",
    "LocalCluster",
    "MemberInfo",
    "Never",
    "NoQuorum",
    "NoResponders",
    "Node",
    "NotDone",
    "NotFound",
    "Outcome",
    "OutcomeUnknown",
    "Overloaded",
    "Pool",
    "Reader",
    "ReplayMismatch",
    "Security",
    "State",
    "StorageFailed",
    "StoredAgent",
    "StoredTimer",
    "TooLarge",
    "TurnOver",
    "Unknown",
    "UnknownKind",
    "Where",
    "WouldDeadlock",
    "__version__",
    "handler",
    "reader",
    "run",
    "worker_broken",
]
