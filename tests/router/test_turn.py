"""A task's turn: who has it wakes the task at once. In C++ and in Python it is the same to a task and to whoever wakes it."""

import asyncio
import contextvars
import gc
import random
import weakref

import pytest

from quire_router.native.library import native
from quire_router.turn import Turn

NUM_RANDOM = 2000


@pytest.fixture(params=["native", "python"])
def turn_type(request):
    return native().Turn if request.param == "native" else Turn


class Waiting:
    """A task that waits at a turn, and what it has seen."""

    def __init__(self, turn_type):
        self.turn = turn_type(asyncio.get_running_loop())
        self.seen = []
        self.task = asyncio.create_task(self.run())

    async def run(self):
        try:
            await self.turn
            self.seen.append(asyncio.current_task())
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise


async def test_whoever_wakes_a_task_from_outside_of_tasks_has_it_run_at_once(turn_type):
    waiting = Waiting(turn_type)
    await asyncio.sleep(0)
    at_once = []

    def wake():
        waiting.turn.wake(None)
        at_once.extend(waiting.seen)

    asyncio.get_running_loop().call_soon(wake)
    await waiting.task

    assert at_once == [waiting.task]
    assert waiting.turn.done()


async def test_a_task_that_wakes_another_goes_on_first(turn_type):
    waiting = Waiting(turn_type)
    await asyncio.sleep(0)

    waiting.turn.wake(None)
    at_once = list(waiting.seen)
    await waiting.task

    assert (at_once, waiting.seen) == ([], [waiting.task])


async def test_a_turn_that_was_there_first_is_not_waited_for(turn_type):
    waiting = Waiting(turn_type)

    waiting.turn.wake(None)
    await waiting.task

    assert waiting.seen == [waiting.task]


@pytest.mark.parametrize("how", ["task", "turn"])
async def test_a_task_that_waits_can_be_cancelled(turn_type, how):
    waiting = Waiting(turn_type)
    await asyncio.sleep(0)

    told = [waiting.task.cancel() if how == "task" else waiting.turn.cancel()]
    told.append(waiting.turn.cancel())
    with pytest.raises(asyncio.CancelledError):
        await waiting.task

    assert (told, waiting.seen) == ([True, False], ["cancelled"])


async def test_a_task_that_was_cancelled_before_it_waits_does_not(turn_type):
    waiting = Waiting(turn_type)

    waiting.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting.task

    assert waiting.seen == []


@pytest.mark.parametrize("how", ["task", "turn"])
async def test_a_cancelled_task_is_forgotten_without_the_collector(turn_type, how):
    class Marked:
        """It can be seen to go."""

    async def run():
        kept.append(weakref.ref(mark := Marked()))
        await turn
        del mark

    kept, turn = [], turn_type(asyncio.get_running_loop())
    task = asyncio.create_task(run())
    await asyncio.sleep(0)

    gc.disable()
    try:
        (task if how == "task" else turn).cancel()
        await asyncio.wait([task])
        del task
        await asyncio.sleep(0)
        is_forgotten = kept[0]() is None
    finally:
        gc.enable()

    assert (turn.done(), is_forgotten) == (True, True)


async def test_a_task_waits_at_one_turn_again_and_again(turn_type):
    turn, seen = turn_type(asyncio.get_running_loop()), []

    async def run():
        for _ in range(3):
            seen.append(await turn)
            turn.begin_anew()

    task = asyncio.create_task(run())
    for value in (1, "b", None):
        await asyncio.sleep(0)
        turn.wake(value)
        await asyncio.sleep(0)
    await task

    assert seen == [1, "b", None]
    assert not turn.done()


async def test_what_is_set_instead_of_a_value_is_raised_where_the_task_waits(turn_type):
    turn = turn_type(asyncio.get_running_loop())
    asyncio.get_running_loop().call_soon(turn.set_exception, KeyError("a"))

    with pytest.raises(KeyError, match="a"):
        await turn

    assert isinstance(turn.exception(), KeyError)
    with pytest.raises(KeyError):
        turn.result()


async def test_a_task_that_is_woken_at_once_runs_in_its_own_context(turn_type):
    variable, seen = contextvars.ContextVar("variable", default="nobody's"), []
    turn = turn_type(asyncio.get_running_loop())

    async def run():
        variable.set("its own")
        await turn
        seen.append(variable.get())

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(turn.wake, None)
    await task

    assert (seen, variable.get()) == (["its own"], "nobody's")


async def test_a_task_and_a_turn_that_know_only_each_other_are_forgotten(turn_type):
    class Marked:
        pass

    async def run(turn):
        marked.append(weakref.ref(kept := Marked()))
        await turn
        return kept

    marked, turn = [], turn_type(asyncio.get_running_loop())
    running = run(turn)
    running.send(None)
    turn.add_done_callback(running.send)
    del running, turn
    gc.collect()

    assert marked[0]() is None


class Loop:
    """Keeps what is to be called soon."""

    def __init__(self):
        self.soon = []

    def call_soon(self, callback, *args, context=None):
        self.soon.append((callback, args, context))


class Told:
    """Does the same to a turn as others do, and keeps all that this shows."""

    def __init__(self, turn_type, contexts):
        self.loop, self.contexts, self.seen = Loop(), contexts, []
        self.turn = turn_type(self.loop)

    def called(self, turn):
        self.seen.append(("called", turn is self.turn, turn.done()))

    def step(self):
        try:
            given = self.turn.__await__().__next__()
        except StopIteration as end:
            return "end", end.value
        return given is self.turn, self.turn._asyncio_future_blocking

    def do(self, name, value, number):
        turn = self.turn
        try:
            if name == "step":
                found = self.step()
            elif name == "add":
                found = turn.add_done_callback(self.called, context=self.contexts[number])
            elif name in ("wake", "set_result", "set_exception"):
                found = getattr(turn, name)(value)
            else:
                found = getattr(turn, name)()
        except (KeyError, asyncio.CancelledError) as error:
            found = repr(error)
        if found is self.loop:
            found = "loop"
        soon = [(callback == self.called, args == (turn,), context) for callback, args, context in self.loop.soon]
        self.seen.append(
            (name, found if isinstance(found, tuple) else repr(found), turn.done(), repr(turn.exception()), soon)
        )


async def test_whatever_is_done_to_a_turn_both_kinds_show_the_same():
    rng, contexts = random.Random(5), [contextvars.copy_context(), contextvars.copy_context(), None]
    names = (
        "step",
        "add",
        "add",
        "wake",
        "wake",
        "set_result",
        "set_exception",
        "cancel",
        "begin_anew",
        "result",
        "get_loop",
        "done",
    )

    def play():
        for _ in range(NUM_RANDOM):
            steps = [(rng.choice(names), rng.randrange(3)) for _ in range(rng.randrange(1, 9))]
            both = [Told(turn_type, contexts) for turn_type in (Turn, native().Turn)]
            for told in both:
                for name, number in steps:
                    told.do(name, KeyError(number) if name == "set_exception" else number, number)
            assert both[0].seen == both[1].seen, steps

    await asyncio.get_running_loop().run_in_executor(None, play)  # where no task runs
