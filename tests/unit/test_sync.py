"""datalayer.sync: the same calls without await, from any thread."""

import ast
import inspect
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from pathlib import Path
from uuid import uuid4

import pytest

from datalayer.errors import Closed, ConfigurationError, DeadlineExceeded, InvalidArgument, NotFound
from datalayer.layer import DataLayer as AsyncDataLayer
from datalayer.layer import LayerOptions
from datalayer.settings import Settings, parse_settings
from datalayer.stores.memory.backend import MemoryBackend
from datalayer.sync import DataLayer
from datalayer.sync.facade import REPOSITORIES
from datalayer.sync.stubs import STUB, render
from tests.unit.cli_world import fresh_world


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    fresh_world(tmp_path, monkeypatch)
    return parse_settings({"backends": {"main": {"url": "memory://"}}})


@pytest.fixture
def layer(settings: Settings) -> Iterator[DataLayer]:
    with DataLayer.open(settings) as opened:
        yield opened


def test_every_method_without_await(layer: DataLayer) -> None:
    ann = layer.users.create(username="ann", email="ann@example.org")
    assert layer.users.get_by_username("ANN") == ann
    ann = layer.users.update(ann.id, display_name="Ann", expected_version=ann.version)
    room = uuid4()
    first = layer.messages.append(room, sender_id=ann.id, body="hi")
    layer.messages.append(room, sender_id=ann.id, body="ho")
    page = layer.messages.history(room, limit=1)
    assert [message.body for message in page.items] == ["ho"]
    assert layer.messages.history(room, limit=1, cursor=page.next_cursor).items == (first,)
    assert layer.messages.edit(room, first.id, body="hello").body == "hello"
    layer.messages.delete(room, first.id)
    assert layer.messages.get(room, first.id) is None
    assert layer.health()["ready"] is True


def test_errors_come_as_they_are(layer: DataLayer) -> None:
    with pytest.raises(NotFound):
        layer.messages.edit(uuid4(), uuid4(), body="x")
    with pytest.raises(InvalidArgument, match="must be a UUID"):
        layer.messages.get("x", "y")
    with pytest.raises(TypeError):
        layer.messages.append()  # type: ignore[call-arg]


def test_threads_share_one_layer(layer: DataLayer) -> None:
    room, sender = uuid4(), uuid4()

    def write(number: int) -> str:
        return layer.messages.append(room, sender_id=sender, body=str(number)).body

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(write, range(200))) == [str(number) for number in range(200)]
    assert len(layer.messages.history(room, limit=1000).items) == 200


def test_one_thread_serves_every_call_and_ends_with_the_layer(settings: Settings) -> None:
    before = threading.active_count()
    with DataLayer.open(settings) as layer:
        layer.messages.history(uuid4())
        opened = threading.active_count()
        for _ in range(20):
            layer.messages.history(uuid4())
        assert threading.active_count() == opened
    assert threading.active_count() == before


def test_a_closed_layer_says_so_and_closes_twice(settings: Settings) -> None:
    layer = DataLayer.connect(settings, options=LayerOptions(name="web"))
    layer.close()
    layer.close()
    with pytest.raises(Closed):
        layer.messages.history(uuid4())


def test_calls_under_way_end_before_close_returns(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = DataLayer.connect(settings)
    entered, ended = threading.Event(), threading.Event()
    call = MemoryBackend.call

    async def slow(backend: MemoryBackend, name: str, *args: object, **kwargs: object) -> object:
        if name == "history":
            entered.set()
        return await call(backend, name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(MemoryBackend, "call", slow)

    def read() -> None:
        layer.messages.history(uuid4())
        ended.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert entered.wait(5)
    layer.close()
    reader.join(5)
    assert ended.is_set()


def test_what_fails_to_open_leaves_no_thread(settings: Settings) -> None:
    before = threading.active_count()
    broken = parse_settings(
        {
            "backends": {"main": {"url": "redis://h/0"}},
            "control": {"url": "memory://"},
        }
    )
    with pytest.raises(ConfigurationError):
        DataLayer.connect(broken)
    assert threading.active_count() == before


def test_a_deadline_holds_in_its_own_thread_and_block_only(layer: DataLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    call = MemoryBackend.call

    async def watched(backend: MemoryBackend, name: str, *args: object, **kwargs: object) -> object:
        seen.extend(arg.remaining() for arg in args if hasattr(arg, "remaining"))
        return await call(backend, name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(MemoryBackend, "call", watched)
    room = uuid4()
    with layer.deadline(1.5):
        layer.messages.history(room)
        other = threading.Thread(target=layer.messages.history, args=(room,))
        other.start()
        other.join()
    layer.messages.history(room)
    assert [left <= 1.5 for left in seen] == [True, False, False]
    with layer.deadline(0.0001):
        time.sleep(0.01)
        with pytest.raises(DeadlineExceeded):
            layer.messages.history(room)


def _in_child(layer: DataLayer, answer: "multiprocessing.SimpleQueue[str]") -> None:
    try:
        layer.messages.history(uuid4())
    except Closed:
        answer.put("closed")
    layer.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_after_a_fork_it_is_closed_in_the_child_and_open_in_the_parent(layer: DataLayer) -> None:
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(layer, answer))
    child.start()
    child.join(10)
    assert child.exitcode == 0
    assert answer.get() == "closed"
    assert layer.messages.history(uuid4()).items == ()


def test_the_stub_is_what_the_asynchronous_methods_say() -> None:
    """Regenerate it with `python -m datalayer.sync.stubs`, then `ruff format`."""
    assert ast.unparse(ast.parse(STUB.read_text())) == ast.unparse(ast.parse(render()))


def test_the_stub_follows_a_changed_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    source = inspect.getsource
    needle = "async def history("

    def changed(thing: object) -> str:
        return source(thing).replace(needle, "async def past(")  # type: ignore[arg-type]

    monkeypatch.setattr(inspect, "getsource", changed)
    assert "def past(" in render()
    assert "def history(" not in render()


def public(kind: type, found: Callable[[object], bool]) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind, found) if not name.startswith("_")}


def test_every_repository_and_method_of_the_layer_is_there(layer: DataLayer) -> None:
    asynchronous = public(AsyncDataLayer, inspect.isroutine) - {"start", "router", "forked"}
    assert asynchronous == public(DataLayer, inspect.isroutine)
    for name, kind in REPOSITORIES.items():
        assert public(kind, inspect.iscoroutinefunction) <= set(dir(getattr(layer, name)))
        for method in public(kind, inspect.iscoroutinefunction):
            assert getattr(getattr(layer, name), method).__doc__ == getattr(kind, method).__doc__


def test_tokens_and_levels_without_await(layer: DataLayer) -> None:
    def calls() -> None:
        with layer.reading_after(None):
            ann = layer.users.create(username="ann")
            token = layer.token()
        with layer.reading_after(token), layer.reading("replica", max_lag_s=5):
            assert layer.users.get(ann.id) == ann
        assert layer.replicas() == {}

    Context().run(calls)
