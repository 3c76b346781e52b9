"""The share of time in which a thread waited for a processor."""

from pathlib import Path

import pytest

from perfmodel.core.cpu_contention import Contention, TreeContention, thread_waited_s


class Machine:
    """A clock, and a scheduler that lets the thread wait."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.waited_s: float | None = 5.0

    def contention(self) -> Contention:
        return Contention(waited_s=lambda: self.waited_s, clock=lambda: self.now_s)


def test_only_waits_after_the_start_count() -> None:
    machine = Machine()
    contention = machine.contention()
    machine.now_s, machine.waited_s = 110.0, 5.5
    assert contention.waited_frac == pytest.approx(0.05)
    assert contention.warning is not None
    assert "waited 5.0 % of the time" in contention.warning


def test_an_idle_machine_gives_no_warning() -> None:
    machine = Machine()
    contention = machine.contention()
    machine.now_s, machine.waited_s = 110.0, 5.1
    assert contention.waited_frac == pytest.approx(0.01)
    assert contention.warning is None


def test_the_share_is_unknown_before_time_has_passed_and_on_systems_that_do_not_count() -> None:
    machine = Machine()
    assert machine.contention().waited_frac is None
    machine.waited_s = None
    contention = machine.contention()
    machine.now_s = 110.0
    assert contention.waited_frac is None
    assert contention.warning is None


@pytest.mark.parametrize(
    ("text", "expected"), [("2297628209698 1103557026 9348\n", 1.103557026), ("0\n", None), ("a b c\n", None)]
)
def test_the_second_number_is_nanoseconds_waited(tmp_path: Path, text: str, expected: float | None) -> None:
    path = tmp_path / "schedstat"
    path.write_text(text)
    assert thread_waited_s(path) == (expected and pytest.approx(expected))
    assert thread_waited_s(tmp_path / "none") is None


class Processes:
    """A /proc with processes, each of one thread of the same number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def set(self, process: int, *, children: tuple[int, ...] = (), waited_s: float) -> None:
        thread = self.folder / str(process) / "task" / str(process)
        thread.mkdir(parents=True, exist_ok=True)
        (thread / "schedstat").write_text(f"1 {round(waited_s * 1e9)} 1\n")
        (thread / "children").write_text(" ".join(map(str, children)) + " ")


def test_the_thread_of_a_process_tree_that_waited_longest_counts(tmp_path: Path) -> None:
    machine, processes = Machine(), Processes(tmp_path)
    processes.set(10, children=(11,), waited_s=7.0)
    processes.set(11, waited_s=3.0)
    processes.set(99, waited_s=0.0)
    contention = TreeContention(10, proc=tmp_path, clock=lambda: machine.now_s)
    machine.now_s = 110.0
    processes.set(10, children=(11,), waited_s=7.1)
    processes.set(11, children=(12,), waited_s=3.5)
    processes.set(12, waited_s=2.0)
    processes.set(99, waited_s=9.0)
    assert contention.waited_frac == pytest.approx(0.2)


def test_the_share_of_a_process_tree_is_unknown_where_nothing_is_counted(tmp_path: Path) -> None:
    assert TreeContention(10, proc=tmp_path).waited_frac is None
    Processes(tmp_path).set(10, waited_s=1.0)
    (tmp_path / "10" / "task" / "10" / "children").unlink()
    assert TreeContention(10, proc=tmp_path).waited_frac is None
