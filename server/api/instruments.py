"""What the HTTP edge can show of the server besides answers: metrics, the engine's last steps, and its sizes."""

from collections.abc import Callable
from dataclasses import dataclass

from server.admission import QueueLimits
from server.engine.config import EngineConfig
from server.timeline import Timeline


@dataclass(frozen=True)
class Instruments:
    metrics_text: Callable[[], bytes]
    timeline: Timeline
    queue: QueueLimits
    engine: EngineConfig
