"""Parts of progress bars and lines."""

from __future__ import annotations

from rich.progress import ProgressColumn, Task
from rich.text import Text


class TimeLeft(ProgressColumn):
    """ "left 0:35" while there is something left; nothing before it is known, and at the end."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """The text of a task."""
        seconds = task.time_remaining
        if task.finished or not task.total or seconds is None:
            return Text("")
        return Text(f"left {clock(seconds)}", style="progress.remaining")


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are some: 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
