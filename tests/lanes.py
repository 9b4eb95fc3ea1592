"""Stand-ins for a second CUDA stream: copies that run as late as they may, and work on both lanes in any order that its marks allow.

Each can be broken on purpose, by the name of a rule that it then ignores: a test that holds with a broken lane has seen nothing.
"""

import torch


class LateLanes:
    """The computation runs at once, as it does on a CPU; copies run when something waits for them, and not before."""

    def __init__(self, broken=""):
        self.broken, self.waiting, self.done, self.sent = broken, [], 0, 0

    def compute(self, work):
        work()

    def now(self):
        return None

    def copy(self, work, after, into):
        self.waiting.append(work)
        self.sent += 1
        return self.sent

    def _run_to(self, mark):
        while self.done < mark:
            self.waiting.pop(0)()
            self.done += 1

    def hold(self, mark):
        if self.broken != "hold":
            self._run_to(mark)

    def finish(self, mark):
        if self.broken != "finish":
            self._run_to(mark)

    def buffer(self, numbers, dtype):
        return torch.empty(numbers, dtype=dtype)


class AnyOrderLanes:
    """Two queues. Each runs in order; which of them goes on is drawn."""

    def __init__(self, generator, broken=""):
        self.generator, self.broken = generator, broken
        self.queues, self.done = {"compute": [], "copy": []}, {"compute": 0, "copy": 0}
        self.given = {"compute": 0, "copy": 0}

    def _give(self, lane, ready, work):
        self.queues[lane].append((ready, work))
        self.given[lane] += 1

    def compute(self, work):
        self._give("compute", lambda: True, work)

    def now(self):
        return self.given["compute"]

    def copy(self, work, after, into):
        self._give("copy", lambda: self.broken == "after" or self.done["compute"] >= after, work)
        return self.given["copy"]

    def hold(self, mark):
        self._give("compute", lambda: self.broken == "hold" or self.done["copy"] >= mark, lambda: None)

    def run_some(self, count):
        """Up to so many pieces of work."""
        for _ in range(count):
            able = [lane for lane, queue in self.queues.items() if queue and queue[0][0]()]
            if not able:
                return
            lane = able[int(torch.randint(len(able), (1,), generator=self.generator))]
            self.queues[lane].pop(0)[1]()
            self.done[lane] += 1

    def finish(self, mark):
        while self.broken != "finish" and self.done["copy"] < mark:
            self.run_some(1)

    def drain(self):
        self.run_some(sum(map(len, self.queues.values())))
        assert not any(self.queues.values()), "work that can never run"

    def buffer(self, numbers, dtype):
        return torch.empty(numbers, dtype=dtype)
