"""A scheduler is named by its address or its file; `tests/cli/test_bad_input.py` has more."""

import re
import socket
import threading

import pytest

from densebatch.base.errors import InputError
from densebatch.planning.settings import load_settings
from densebatch.workers import scheduler as module
from densebatch.workers.cluster import open_executor
from densebatch.workers.scheduler import Scheduler, check_scheduler, find_address


@pytest.mark.parametrize("by", ["check", "open"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "does not exist"),
        ("", "holds no address"),
        ("[1]", "holds no address"),
        ('{"id": 1}', "holds no address"),
    ],
)
def test_scheduler_file_without_a_scheduler(tmp_path, monkeypatch, content, told, by):
    monkeypatch.setattr(module, "_FILE_WAIT_S", 0.3)
    monkeypatch.setattr(module, "_WRITE_WAIT_S", 0.3)
    file = tmp_path / "scheduler.json"
    if content is not None:
        file.write_text(content)
    told = f"scheduler file {file}: {told}; accepted is the file that "
    use = check_scheduler if by == "check" else lambda it: open_executor(0, it).__enter__()
    with pytest.raises(InputError, match=f"^{re.escape(told)}"):
        use(Scheduler(file=file))


def test_a_scheduler_has_one_name(tmp_path):
    file = tmp_path / "scheduler.json"
    file.write_text('{"address": "tcp://a:1"}')
    assert find_address(Scheduler(file=file)) == find_address(Scheduler("tcp://a:1")) == "tcp://a:1"
    told = f"scheduler address tcp://a:1 and scheduler file {file} are both given; accepted is one"
    with pytest.raises(InputError, match=f"^{re.escape(told)}$"):
        Scheduler("tcp://a:1", file)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_plain_tcp_beyond_this_machine_is_told(host):
    """Whoever reaches a scheduler can run programs with it."""
    own = "127.0.0.1" if host == "127.0.0.1" else find_own_address()
    with socket.create_server((host, 0)) as listener:
        port = listener.getsockname()[1]

        def greet():
            with listener.accept()[0] as caller:
                caller.sendall(b"x")

        greeter = threading.Thread(target=greet)
        greeter.start()
        told = []
        check_scheduler(Scheduler(f"tcp://{own}:{port}"), told.append)
        greeter.join()
    if host == "127.0.0.1":
        assert told == []
    else:
        assert len(told) == 1
        assert told[0].startswith(f"scheduler tcp://{own}:{port}: plain tcp; whoever reaches it ")


def find_own_address():
    """Of this machine, on a network; no byte is sent for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network")
        address = probe.getsockname()[0]
    if address.startswith("127."):
        pytest.skip("this machine has no network")
    return address


def test_settings_name_a_scheduler_or_none(tmp_path):
    assert load_settings(None).scheduler is None
    assert load_settings(None, scheduler_address="a:1").scheduler == Scheduler("a:1")
    assert load_settings(None, scheduler_file=tmp_path).scheduler == Scheduler(file=tmp_path)
    check_scheduler(None)
    patient = load_settings(None, scheduler_address="a:1", patience="10m").scheduler
    assert patient == Scheduler("a:1", patience_s=600.0)
