"""One step of one engine: what it takes, what fits, how its scheduler mixes prompts with decode."""

from trivet.cloud.engine.components import Components, compile_components
from trivet.cloud.engine.memory import Room, room
from trivet.cloud.engine.process import process
from trivet.cloud.engine.profiles import EngineProfile, own_profile, profile
from trivet.cloud.engine.scheduling import Schedule, schedule, vllm_limits
from trivet.cloud.engine.step import assemble, speculating, step_table

__all__ = [
    "Components",
    "EngineProfile",
    "Room",
    "Schedule",
    "assemble",
    "compile_components",
    "own_profile",
    "process",
    "profile",
    "room",
    "schedule",
    "speculating",
    "step_table",
    "vllm_limits",
]
