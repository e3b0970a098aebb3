"""What goes wrong in a world."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edged.wire.errors import ErrorCode

if TYPE_CHECKING:
    from tests.simulation.world import World


class Faults:
    """Brings them about, each at a rate of its own.

    Attributes:
        power_cuts: how many there were that may cost what was said.
        switch_off: the machine is switched off when the daemon has ended in order.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.power_cuts = 0
        self.switch_off = False

    def plan(self, fault: str, rate: float) -> None:
        """Have one happen so often in a second, by and by."""
        if rate:
            self._world.agenda.after(self._world.rng.expovariate(rate), lambda: self._strike(fault, rate))

    def _strike(self, fault: str, rate: float) -> None:
        if self._world.calm:
            return
        self._world.checks.note(f"fault: {fault}")
        self._kinds[fault](self)
        self.plan(fault, rate)

    def _engine_dies(self) -> None:
        if self._world.node is not None and self._world.node.engine.loaded:
            self._world.node.engine.die(outside=self._world.rng.random() < 0.7)

    def _engine_cannot_load(self) -> None:
        if self._world.node is not None and not self._world.node.dead:
            self._world.node.engine.die(outside=False, error=ErrorCode.OUT_OF_MEMORY, again_s=1.0)

    def _daemon_is_killed(self) -> None:
        if self._world.node is not None and not self._world.node.dead:
            self._world.node.kill_in(self._world.rng.randrange(40))

    def _power_is_cut(self) -> None:
        self._world.checks.reasons.add("reboot")
        self.power_cuts += 1
        if self._world.node is not None and not self._world.node.dead:
            self._world.node.kill()
        self.machine_goes_down()
        if self._world.rng.random() < 0.3:  # it comes back, and goes again at once
            self._world.agenda.after(
                self._world.rng.random() * 3, lambda: None if self._world.calm else self._power_is_cut()
            )

    def machine_goes_down(self) -> None:
        """What is not safe is lost; the daemon is gone already."""
        self._world.checks.power_is_cut()
        self._world.disk.lose_power()
        self._world.clock.reboot()

    def _daemon_is_restarted(self) -> None:
        if self._world.node is not None and not self._world.node.dead:
            self._world.checks.reasons |= {"drained", "draining"}
            self._world.node.drain(self._world.rng.choice([0.0, 0.3, 3.0]))
            if self._world.rng.random() < 0.3:  # the machine is switched off after it, and nothing is lost
                self._world.checks.reasons.add("reboot")
                self.switch_off = True

    def _connection_is_cut(self) -> None:
        self._cut("edged-n")

    def _control_is_cut(self) -> None:
        self._cut("edged-n-ctl")

    def _cut(self, name: str) -> None:
        link = self._world.broker.sessions[name].link
        if link is not None:
            link.cut(late=self._world.rng.random() < 0.5)
            self._world.agenda.after(self._world.rng.random() * 0.5, lambda: link.client.ended(link))

    def _broker_stops(self) -> None:
        self._stop_broker(forget=False)

    def _broker_forgets(self) -> None:
        self._stop_broker(forget=True)

    def _stop_broker(self, *, forget: bool) -> None:
        self._world.broker.stop(forget=forget)
        self._world.agenda.after(self._world.rng.random() * 2, self._broker_is_back)

    def _broker_is_back(self) -> None:
        self._world.broker.up = True

    def _consumer_leaves(self) -> None:
        self._world.rng.choice(self._world.consumers).leave()

    def _disk_is_full(self) -> None:
        self._world.disk.full = True
        self._world.checks.reasons.add("unavailable")
        self._world.agenda.after(self._world.rng.random() * 3, self.disk_has_room)

    def disk_has_room(self) -> None:
        """It can be written again."""
        self._world.disk.full = False

    def _disk_fails(self) -> None:
        self._world.disk.failing = True
        self._world.checks.reasons.add("unavailable")
        self._world.agenda.after(self._world.rng.random() * 3, self._disk_works)

    def _disk_works(self) -> None:
        self._world.disk.failing = False

    def _clock_jumps(self) -> None:
        self._world.checks.reasons.add("jump")
        self._world.clock.jump(self._world.rng.uniform(-3000, 3000))

    _kinds: dict[str, Callable[[Faults], None]] = {  # noqa: RUF012 - it never changes
        "engine": _engine_dies,
        "load": _engine_cannot_load,
        "kill": _daemon_is_killed,
        "power": _power_is_cut,
        "restart": _daemon_is_restarted,
        "cut": _connection_is_cut,
        "cut control": _control_is_cut,
        "broker": _broker_stops,
        "forget": _broker_forgets,
        "offline": _consumer_leaves,
        "full": _disk_is_full,
        "failing": _disk_fails,
        "jump": _clock_jumps,
    }
