"""The processes of a launch that share a stage of work: each does its part, and all of them get the whole."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

T = TypeVar("T")

_SECONDS_TO_SETTLE = 1.0


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this one is.

    Attributes:
        index: from 0; the first one writes and speaks.
        count: of all processes.
    """

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.index == 0

    @property
    def is_first_of_machine(self) -> bool:
        """Whether this process writes what each machine keeps for itself."""
        return self.count == 1 or PartialState().is_local_main_process

    def own(self, parts: Sequence[T]) -> Iterator[tuple[int, T]]:
        """This process's share of the parts, with their numbers; neighbours go to different processes."""
        return ((number, part) for number, part in enumerate(parts) if number % self.count == self.index)

    def gather(self, results: Sequence[tuple[int, T]]) -> list[T]:
        """The results of all parts, in the order of their numbers, on every process."""
        numbered = list(results) if self.count == 1 else gather_object(list(results))
        return [result for _, result in sorted(numbered, key=lambda item: item[0])]

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            PartialState().wait_for_everyone()

    def part(self) -> None:
        """End the process group, when its threads have nothing left to do.

        A thread of gloo takes the GIL once more after the last collective. A destructor that joins it earlier holds the
        GIL and waits forever, or aborts; without the pause one launch in six did.
        """
        if self.count > 1:
            self.wait()
            time.sleep(_SECONDS_TO_SETTLE)
            PartialState().destroy_process_group()


ALONE = Ranks()
