"""Where calls come in: from the bus in frames, and from callers of the same process.

A caller joins its calls for one node into a frame. The intake takes a frame apart, gives each call
to its agent, and sends the replies of one tick back as one frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from holdfast import codec, telemetry
from holdfast.agents.calls import Sink
from holdfast.calling import frames
from holdfast.cluster.members.liveness import Liveness
from holdfast.core.pools import Space
from holdfast.engines.base import Bus, Message, Subscription
from holdfast.errors import HoldfastError
from holdfast.records.messages import ERROR, NOT_OWNER, Call, Replies, Reply
from holdfast.serving import delivery, fast_path
from holdfast.serving.early_calls import EarlyCalls
from holdfast.serving.shards.shard import Shard
from holdfast.serving.tasks import Tasks
from holdfast.serving.turns import deadlocks, poison
from holdfast.serving.turns.activation import Activation

_LINGER_SECONDS: Final = 1.0
"""For so long a node listens for the calls of a shard that it let go of, to turn them away."""


class Intake:
    """See the module. It is made before everything that calls agents of this process."""

    def __init__(self, bus: Bus, life: Liveness, space: Space, tasks: Tasks) -> None:
        self.shards: dict[int, Shard] = {}
        """The shards that are served here, by number. Only `Runtime` changes it."""
        self.resident: dict[str, Activation] = {}
        """The agents in memory, of all shards. Only `Shard` changes it."""
        self.door = frames.calls_door()
        self._bus = bus
        self._life = life
        self._space = space
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._early = EarlyCalls(self._loop, self._take_again)
        self._next_owners: dict[int, bytes] = {}
        """Of shards just let go of: the nodes that are to own them."""
        self._outlets: dict[str, list[Reply]] = {}
        """The replies of this tick, by the subject that they go to."""
        self._subscriptions: dict[str, Subscription] = {}

    @property
    def incarnation(self) -> str:
        """The name of this life of the node."""
        return self._life.incarnation

    async def start(self) -> None:
        """Take the calls for this node under its present name."""
        await self._subscribe(f"hf.n.{self.incarnation}")

    async def _subscribe(self, subject: str) -> None:
        # In a queue, so that one attempt reaches one node, also while a shard moves and two of them
        # listen.
        self._subscriptions[subject] = await self._bus.subscribe(subject, self._on_frame, "owner")

    async def close(self) -> None:
        """Take no more calls."""
        for subscription in list(self._subscriptions.values()):
            await subscription.close()
        self._subscriptions.clear()

    # Shards ---------------------------------------------------------------------------------------

    def expect(self, numbers: Iterable[int]) -> None:
        """Keep the calls for these shards, for a moment: they are about to be owned."""
        self._early.expect(number for number in numbers if number not in self.shards)

    async def listen(self, numbers: Iterable[int]) -> None:
        """Take the calls for shards that were claimed, before they are recovered."""
        missing = [
            f"hf.s.{number}" for number in numbers if f"hf.s.{number}" not in self._subscriptions
        ]
        self.expect(numbers)
        await asyncio.gather(*(self._subscribe(subject) for subject in missing))

    def began(self, number: int) -> None:
        """A shard is served from now on: its agents get the calls that came early."""
        self._early.hand_on(number)

    def ended(self, number: int, next_owner: bytes | None) -> None:
        """A shard is not served here any more. ``next_owner``: the node that is to own it, empty if
        that is not known; None where the shard was not served."""
        if next_owner is not None:
            self._next_owners[number] = next_owner
        # What is on its way to this node is still to be turned away, so it listens a little longer.
        self._loop.call_later(_LINGER_SECONDS, self._stop_listening, number)

    def _stop_listening(self, number: int) -> None:
        self._next_owners.pop(number, None)
        if (
            number not in self.shards
            and (subscription := self._subscriptions.pop(f"hf.s.{number}", None)) is not None
        ):
            self._tasks.spawn(subscription.close())

    # Calls ----------------------------------------------------------------------------------------

    def at(self, token: str) -> Activation | None:
        """The agent, if it is in memory here."""
        shard = self.shards.get(self._space.shard_of(token))
        return None if shard is None else shard.activations.get(token)

    def _on_frame(self, message: Message) -> None:
        frame = self.door.read(message)
        if frame is None:
            return  # its sender's attempt ends unanswered
        reply = frame.reply
        outlet = self._outlets.get(reply)

        def sink(reference: int, outcome: int, payload: bytes) -> None:
            nonlocal outlet
            if outlet is None or not outlet:
                outlet = self._outlets.get(reply)
                if outlet is None:
                    outlet = self._outlets[reply] = []
                    if len(self._outlets) == 1:
                        self._loop.call_soon(self._flush)
            outlet.append(Reply(reference, outcome, payload))

        resident, fast = self.resident, _general if telemetry.listeners else fast_path.take
        for call in frame.calls:
            found = resident.get(call.token)
            if found is None or not call.reference or not fast(found, call, sink):
                self._take(call, sink if call.reference else None)
        for call in frame.cancelled:
            self.cancel(call)
        for probe in frame.probes:
            deadlocks.follow(self, probe)

    def cancel(self, call: Call) -> None:
        """Its caller gave it up."""
        activation = self.at(call.token)
        if activation is not None:
            activation.cancel(call)

    def take(self, call: Call, sink: Sink | None) -> None:
        """Give a call to its agent; where the shard is not served here the caller is told at
        once."""
        found = self.resident.get(call.token)
        if (
            found is None
            or sink is None
            or telemetry.listeners
            or not fast_path.take(found, call, sink)
        ):
            self._take(call, sink)

    def _take(self, call: Call, sink: Sink | None) -> None:
        """Do so the general way."""
        shard = self.shards.get(number := self._space.shard_of(call.token))
        if shard is None or not shard.active or shard.draining:
            if (shard is not None or not self._early.keep(number, call, sink)) and sink is not None:
                sink(
                    call.reference,
                    NOT_OWNER,
                    self._next_owners.get(number, b"") if shard is None else shard.next_owner,
                )
            return
        try:
            activation = shard.activations.get(call.token) or poison.reach(shard, call.token)
        except HoldfastError as error:
            if sink is not None:
                sink(call.reference, ERROR, delivery.refusal_bytes(error))
            return
        activation.deliver(delivery.from_call(call, sink))

    def _take_again(self, number: int, call: Call, sink: Sink | None) -> None:
        if number in self.shards:
            self.take(call, sink)
        elif sink is not None:
            sink(call.reference, NOT_OWNER, b"")

    def _flush(self) -> None:
        outlets, self._outlets = self._outlets, {}
        for subject, replies in outlets.items():
            for some in frames.split(replies, frames.reply_bytes):
                self._bus.publish(subject, codec.encode_raw(Replies(self.incarnation, some)))
            replies.clear()


def _general(_activation: Activation, _call: Call, _sink: Sink) -> bool:
    """Stand for the fast path where turns are told of: that one tells nobody."""
    return False
