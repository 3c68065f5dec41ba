"""What a node makes of the plan: which shards are to come to it, which it lets go of, and when.

Every node computes the plan for itself, from what it has heard. It takes nothing from anybody: it
claims what is free, and lets go of what others should own. Two nodes whose views differ cannot pass
a shard to and fro: who was named as the next owner counts as its holder, a view has to be stable
for a while, and a shard that was claimed rests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from holdfast import limits
from holdfast.cluster.facts.placement import Placement
from holdfast.cluster.members.beats import Beat
from holdfast.cluster.members.liveness import Liveness
from holdfast.cluster.members.membership import Membership
from holdfast.cluster.ownership.epochs import Epochs
from holdfast.core import plan

_LEFT_OUT_MAX: Final = 64
_logger = logging.getLogger(__name__)


class Planner:
    """See the module. ``plan``: the newest one."""

    def __init__(
        self,
        membership: Membership,
        placement: Placement,
        epochs: Epochs,
        life: Liveness,
        on_event: Callable[..., None],
    ) -> None:
        self.plan = plan.Plan({}, {}, [])
        self._on_event = on_event
        self._membership = membership
        self._placement = placement
        self._epochs = epochs
        self._life = life
        self._loop = asyncio.get_running_loop()
        self._view: tuple[Any, float] = ((), 0.0)
        self._moving_since: dict[int, float] = {}
        self._rests_until: dict[int, float] = {}
        self._unfit: list[str] = []
        self._trouble = ""
        self._left_out: set[str] = set()

    def look(self) -> None:
        """Make the plan again from what is known now. If that fails, the plan before is kept: it
        ends no node."""
        try:
            self._look()
        except Exception as error:
            if str(error) != self._trouble:
                _logger.exception("the plan cannot be made; the one before is kept")
            self._trouble = str(error)
        else:
            self._trouble = ""

    def _look(self) -> None:
        table = self._placement.table
        places = [
            place
            for beat in self._membership.live()
            if beat.kinds and (place := self._place(beat, table.cordoned))
        ]
        if (places, table) != self._view[0]:
            self._view = ((places, table), self._loop.time())
        cells = len(self._placement.manifest.cells)
        self.plan = plan.make(table, places, self._epochs.holders(), self._membership.warm(), cells)
        for name in self.plan.unfit:
            if name not in self._unfit and (pool := table.pool(name)) is not None:
                why = (
                    "no node that serves it, and is not cordoned, is labelled "
                    f"{', '.join(pool.labels)}"
                )
                self._on_event("placement-fallback", name, "", why=why)
        self._unfit = self.plan.unfit

    def _place(self, beat: Beat, cordoned: Collection[str]) -> plan.Place | None:
        """A member as the plan sees it; None for one that cannot be placed, which is said once."""
        try:
            return _place(beat, cordoned)
        except Exception:
            if beat.incarnation not in self._left_out and len(self._left_out) < _LEFT_OUT_MAX:
                self._left_out.add(beat.incarnation)
                _logger.exception("%s is left out of the plan", beat.incarnation)
            return None

    def is_coming(self, number: int) -> bool:
        """Whether a shard of another node is to move here, or is to be kept warm here."""
        me = self._life.incarnation
        return self.plan.owners.get(number) == me or me in self.plan.standbys.get(number, ())

    def has_heirs(self, owned: Iterable[int]) -> bool:
        """Whether there is another node for some of these shards."""
        return any(self.plan.owners.get(number) != self._life.incarnation for number in owned)

    def rest(self, number: int) -> None:
        """A shard was claimed from another owner: it is not moved again soon for the sake of
        balance."""
        self._rests_until[number] = self._loop.time() + limits.MOVE_REST_SECONDS

    def to_release(self, owned: Collection[int]) -> dict[int, str]:
        """The next few shards to let go of, each with who should own it.

        The next owner should have a shard's records in memory by then. A node that should own
        nothing at all need not wait for a stable view.
        """
        now, me = self._loop.time(), self._life.incarnation
        others = {n: to for n in owned if (to := self.plan.owners.get(n)) is not None and to != me}
        self._moving_since = {n: self._moving_since.get(n, now) for n in others}
        must_go = me not in self.plan.owners.values()
        if not must_go and now - self._view[1] <= limits.STABLE_SECONDS:
            return {}
        warm = self._membership.warm()
        ready = [
            number
            for number, to in others.items()
            if (
                to in warm.get(number, ())
                or now - self._moving_since[number] > limits.WARM_WAIT_SECONDS
            )
            and (must_go or now >= self._rests_until.get(number, now))
        ]
        return {number: others[number] for number in ready[: limits.HANDOFF_SHARDS_MAX]}


def _place(beat: Beat, cordoned: Collection[str]) -> plan.Place:
    versions = [*beat.state_versions, *[1] * len(beat.kinds)]
    kinds = dict(zip(beat.kinds, versions, strict=False))
    stopped = beat.draining or beat.host in cordoned or beat.name in cordoned
    return plan.Place(
        beat.incarnation, beat.host, kinds, tuple(beat.labels), beat.capacity, stopped
    )
