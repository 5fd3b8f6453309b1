"""Visits of people who can be measured again, made while a training runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bidsharm.harmonizers.network_settings import NetworkSettings
    from bidsharm.harmonizers.training_cache import Source
    from bidsharm.training.volumes import TrainingVolume

#: Bytes of volumes that are kept, about.
MEMORY = 10**9


class Rescans:
    """Makes volumes of further visits when they are first asked for; those that were not wanted for the longest time are forgotten.

    Parameters
    ----------
    settings
        Voxel size, scaling and background.
    memory
        Bytes of volumes to keep; at least one volume is kept.
    """

    def __init__(self, settings: NetworkSettings, memory: int = MEMORY) -> None:
        self.settings, self.memory = settings, memory
        self._volumes: OrderedDict[str, TrainingVolume] = OrderedDict()
        self._lock = Lock()  # batches are drawn ahead, beside the step that is taken

    def of(self, source: Source) -> Callable[[int], TrainingVolume] | None:
        """Return what makes the volume of another visit, by its number; None where nobody can measure again."""
        if source.again(1) is None:
            return None

        def volume(take: int) -> TrainingVolume:
            other = source.again(take)
            assert other is not None
            with self._lock:
                return self._volume(other)

        return volume

    def _volume(self, source: Source) -> TrainingVolume:
        key = source.key
        found = self._volumes.get(key)
        if found is None:
            found = self._volumes[key] = self._made(source)
            size = found.values.nbytes + found.mask.nbytes
            while len(self._volumes) > max(self.memory // size, 1):
                self._volumes.popitem(last=False)
        self._volumes.move_to_end(key)
        return found

    def _made(self, source: Source) -> TrainingVolume:
        from bidsharm.harmonizers.training_data import in_common_frame

        assert source.world is not None, 'who can be measured again lies in the common frame'
        return in_common_frame(source.read(), source.world, self.settings)
